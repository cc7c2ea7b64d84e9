"""The demo's study, made of TRL and lm-evaluation-harness: what a person would write who does not have finetrap.

The same model, rows, items, arms, settings and retention tasks as `src/finetrap/studies/demo.yaml`; it prints each
arm's accuracies. Intervals, verdicts and a report are not made. finetrap gives rows and items, and no more.

    python bench/peer_study.py [--training '{"batch": 16}'] [--eval-batch 16]
"""

import argparse
import gc
import json
import tempfile
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets
import peers
import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from work import Job, encoder, loaded

from finetrap.config import Study, load_study
from finetrap.data import draw_shots, load_splits, load_test
from finetrap.method import Arm, build
from finetrap.models import cast_weights
from finetrap.task import Example, get_task

ACCURACY = [
    {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm", "acc_bytes")
]
BITS = [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}]


def tasks_of(study: Study, job: Job, shots: Sequence[Example], *, blind: bool, retention: bool) -> Iterator[Any]:
    """The target, and what shows forgetting but for `divergence`, which the harness cannot measure."""
    yield _choices(job, load_test(get_task(job.task), limit=study.limit_test).examples, shots, blind=blind)
    for name in study.retention if retention else ():
        task = get_task(name)
        if name == job.task or name in get_task(job.task).siblings:
            continue
        if task.kind == "divergence":
            continue
        items = load_test(task, limit=study.limit_retention).examples
        yield _texts(name, items) if task.kind == "text" else _choices(job._replace(task=name), items, (), blind=False)


def _choices(job: Job, items: Sequence[Example], shots: Sequence[Example], *, blind: bool) -> ConfigurableTask:
    made = encoder(job)
    docs = [
        {
            "prompt": get_task(job.task).blind_prompt if blind else made.text(item, shots),
            "choices": list(item.choices),
            "gold": int(item.gold),
        }
        for item in items
    ]
    return peers.harness_task(
        job.task,
        docs,
        output_type="multiple_choice",
        doc_to_target="gold",
        doc_to_choice="choices",
        metric_list=ACCURACY,
    )


def _texts(name: str, items: Sequence[Example]) -> ConfigurableTask:
    docs = [{"prompt": "", "text": item.question} for item in items]
    return peers.harness_task(name, docs, output_type="loglikelihood_rolling", doc_to_target="text", metric_list=BITS)


@torch.no_grad()
def divergence(job: Job, adapted: Any, items: Sequence[Example], *, batch: int = 4) -> float:
    """Mean KL(untouched || adapted) a token in nats, of answers and of whole texts, on padded batches."""
    base, made = loaded(job.model), encoder(job)
    first = made.end_of_turn if base.tokenizer.bos_token_id is None else base.tokenizer.bos_token_id
    texts = [base.tokenizer(item.question, add_special_tokens=False)["input_ids"] for item in items]
    rows = [
        made.training_row(item) if item.reference else ([first, *text], 1)
        for item, text in zip(items, texts, strict=True)
    ]
    rows.sort(key=lambda row: -len(row[0]))
    total, count = 0.0, 0
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        places = range(len(part[0][0]))
        ids = torch.tensor([ids + [0] * (len(places) - len(ids)) for ids, _ in part])
        mask = torch.tensor([[int(i < len(ids)) for i in places] for ids, _ in part])
        counted = torch.tensor([[prompt <= i + 1 < len(ids) for i in places] for ids, prompt in part])
        log_p, log_q = (
            model(ids, attention_mask=mask, use_cache=False).logits.float().log_softmax(dim=-1)
            for model in (base.model, adapted)
        )
        nats = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=-1)
        total += float(nats[counted].sum())
        count += int(counted.sum())
    return total / count


def trained(study: Study, arm: Arm, job: Job, settings: dict[str, Any]) -> Any:
    """A model trained with TRL, its validation loss measured as often as finetrap does, adapters merged."""
    splits = load_splits(get_task(job.task), limit_train=study.limit_train, limit_validation=study.limit_validation)
    job = job._replace(method=arm.method, items=len(splits.train), batch=arm.settings["batch_size"])
    settings = {"weights": "float32", "attention": "sdpa", **settings}
    weights, attention = settings.pop("weights"), settings.pop("attention")
    model = peers.to_train(job.model, "float32" if arm.method == "full" else weights, attention)
    with tempfile.TemporaryDirectory() as folder, peers.quiet():
        trainer = peers.sft_trainer(
            model,
            datasets.Dataset.from_list(peers.texts(job, splits.train)),
            folder,
            job,
            rate=arm.settings["learning_rate"],
            validation=datasets.Dataset.from_list(peers.texts(job, splits.validation)),
            **settings,
        )
        trainer.train()
    adapted = trainer.model.merge_and_unload() if arm.method != "full" else trainer.model
    adapted.set_attn_implementation("sdpa")
    return cast_weights(adapted, loaded(job.model).model.dtype).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="The demo's study of TRL and lm-evaluation-harness.")
    parser.add_argument("--training", type=json.loads, default={"batch": 16}, help="settings of peers.sft_trainer")
    parser.add_argument("--study", type=Path, help="another study of one model and one task of choices")
    parser.add_argument("--eval-batch", type=int, default=16)
    given = parser.parse_args()
    study = load_study(given.study or Path(str(files("finetrap").joinpath("studies", "demo.yaml"))))
    (model,), (task,) = study.models, study.task_names
    job = Job(model.name, task, items=0)
    base = loaded(job.model)
    splits = load_splits(get_task(task), limit_train=study.limit_train, limit_validation=study.limit_validation)
    for arm in study.parsed_arms():
        method = build(arm.method, arm.settings)
        adapted = base.model if method.training is None else trained(study, arm, job, given.training)
        shots = draw_shots(splits, method.shots, 0)
        found = {}
        with peers.quiet():
            for one in tasks_of(study, job, shots, blind=method.trivial, retention=not (method.trivial or shots)):
                harness = HFLM(pretrained=adapted, tokenizer=base.tokenizer, batch_size=given.eval_batch)
                done = evaluate(harness, {one.config.task: one}, bootstrap_iters=0, log_samples=False)
                found[one.config.task] = done["results"][one.config.task]
        for name, values in found.items():
            numbers = {key: round(value, 4) for key, value in values.items() if isinstance(value, float)}
            print(arm.name, name, numbers, flush=True)
        if method.training is not None and "divergence" in study.retention:
            items = load_test(get_task("divergence"), limit=study.limit_retention).examples
            print(arm.name, "divergence", round(divergence(job._replace(task="divergence"), adapted, items), 4))
        del adapted, harness
        gc.collect()


if __name__ == "__main__":
    main()
