"""Tasks of lm-evaluation-harness over rows that finetrap carries, as files of its own format."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from finetrap.task import Split, packaged_rows

Rows = list[dict[str, Any]]
Samples = dict[str, list[dict[str, Any]]]


def write_task(folder: Path, name: str, train: Rows, test: Rows, **config: Any) -> Path:
    """A task's YAML file in `folder`, its rows beside it; without `train` it has no such split."""
    files = {}
    for split, rows in (("train", train), ("test", test)):
        if rows:
            path = folder / f"{name}-{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            files[split] = str(path)
    shown = {"training_split": "train", "fewshot_split": "train"} if train else {}
    values = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "metadata": {"version": 1.0},
        **shown,
        **config,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def rows(name: str, split: Split, count: int, keep: Callable[[dict[str, Any]], bool] = lambda row: True) -> Rows:
    """The first rows of a data set that finetrap carries."""
    return [row for row in packaged_rows(name, split) if keep(row)][:count]


def metrics(*names: str) -> list[dict[str, Any]]:
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]


NUMBER = {"function": "regex", "regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)", "group_select": -1}
STATED = {"function": "regex", "regex_pattern": "#### (\\-?[0-9\\.\\,]+)"}
FIRST = {"function": "take_first"}


def science(folder: Path, train: int = 40, test: int = 12, **config: Any) -> Path:
    """ARC-Easy as the harness asks it."""
    return write_task(
        folder,
        "science",
        rows("arc_easy", "train", train),
        rows("arc_easy", "test", test),
        **{
            "output_type": "multiple_choice",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "metric_list": metrics("acc", "acc_bytes"),
            **config,
        },
    )


def scenes(folder: Path, test: int = 6, **config: Any) -> Path:
    """HellaSwag as the harness asks it; test only."""
    return write_task(
        folder,
        "scenes",
        [],
        rows("hellaswag", "test", test),
        **{
            "output_type": "multiple_choice",
            "doc_to_text": "{{query}}",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": metrics("acc", "acc_bytes"),
            **config,
        },
    )


def sums(folder: Path, train: int = 40, test: int = 12, **config: Any) -> Path:
    """GSM8K as the harness asks it, its answers short."""
    settings = {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False, "max_gen_toks": 16}
    return write_task(
        folder,
        "sums",
        rows("gsm8k", "train", train),
        rows("gsm8k", "test", test),
        **{
            "output_type": "generate_until",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": settings,
            "filter_list": [
                {"name": "strict-match", "filter": [STATED, FIRST]},
                {"name": "flexible-extract", "filter": [NUMBER, FIRST]},
            ],
            "metric_list": [{**metrics("exact_match")[0], "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"]}],
            **config,
        },
    )


def articles(folder: Path, test: int = 6, **config: Any) -> Path:
    """Pieces of WikiText-2, by rolling log-likelihood."""
    pieces = [{"page": row["text"][: 700 + 4000 * (i == 0)]} for i, row in enumerate(rows("wikitext2", "test", test))]
    measured = [{"metric": name, "aggregation": name, "higher_is_better": False} for name in ("bits_per_byte",)]
    shown = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "page"}
    return write_task(folder, "articles", [], pieces, **{**shown, "metric_list": measured, **config})


def last_words(folder: Path, test: int = 6, **config: Any) -> Path:
    """As LAMBADA: the last word of a passage."""
    passages = [row["question"].rsplit(" ", 1) for row in rows("gsm8k", "test", test)]
    return write_task(
        folder,
        "last_words",
        [],
        [{"start": start, "word": word} for start, word in passages],
        **{
            "output_type": "loglikelihood",
            "doc_to_text": "{{start}}",
            "doc_to_target": " {{word}}",
            "metric_list": metrics("acc"),
            **config,
        },
    )


def every_kind(folder: Path) -> dict[str, Path]:
    """One task of every kind."""
    return {make.__name__: make(folder) for make in (science, scenes, sums, articles, last_words)}


def evaluated(
    model: str,
    folder: Path,
    tasks: list[Path],
    *,
    shots: int = 0,
    chat: bool = False,
    limit: int | None = None,
    answers: dict[str, Any] | None = None,
    **args: Any,
) -> Samples:
    """What the harness logs of each item, by task; `answers` are settings of a generation."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    done = simple_evaluate(
        model=model,
        model_args={"pretrained": str(folder), "dtype": "float32", **args},
        tasks=[str(path) for path in tasks],
        device="cpu",
        num_fewshot=shots,
        limit=limit,
        gen_kwargs=answers,
        apply_chat_template=chat,
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    found: Samples = {}
    for name, samples in done["samples"].items():
        found[name] = sorted(samples, key=lambda sample: (sample["doc_id"], sample["filter"]))
    return found
