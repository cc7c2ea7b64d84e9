"""lm-evaluation-harness: its `hf` model and ours say the same of every item, and its tasks are tasks of a study."""

import math
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from peft import LoraConfig, get_peft_model
from support import without_chat_template
from test_families import LIKE, Like, loaded_from
from transformers import AutoModelForCausalLM

lm_eval = pytest.importorskip("lm_eval")
from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

import finetrap.lm_eval_model  # noqa: E402, F401  # registers the model
from finetrap.config import Study  # noqa: E402
from finetrap.records import ItemRow  # noqa: E402
from finetrap.store import Store  # noqa: E402

Rows = dict[str, dict[str, ItemRow]]
Samples = dict[str, list[dict[str, Any]]]


def evaluated(
    model: str, folder: Path, tasks: list[Path], *, shots: int = 0, chat: bool = False, **args: Any
) -> Samples:
    """What the harness logs of each item, by task."""
    done = simple_evaluate(
        model=model,
        model_args={"pretrained": str(folder), "dtype": "float32", **args},
        tasks=[str(path) for path in tasks],
        device="cpu",
        num_fewshot=shots,
        apply_chat_template=chat,
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    found: Samples = {}
    for name, samples in done["samples"].items():
        found[name] = sorted(samples, key=lambda sample: (sample["doc_id"], sample["filter"]))
    return found


def same(ours: Samples, theirs: Samples) -> None:
    """The same items, asked the same, with the same answers and scores."""
    assert ours.keys() == theirs.keys()
    for name, samples in theirs.items():
        for our, their in zip(ours[name], samples, strict=True):
            assert our["arguments"] == their["arguments"]
            for one, other in zip(our["filtered_resps"], their["filtered_resps"], strict=True):
                # A long text's sum is rounded in float32 there.
                value, *greedy = one if isinstance(one, tuple) else (one,)
                expected, *expected_greedy = other if isinstance(other, tuple) else (other,)
                assert value == (expected if isinstance(expected, str) else pytest.approx(expected, rel=1e-6, abs=1e-4))
                assert greedy == expected_greedy
            for metric in their["metrics"]:
                assert our[metric] == pytest.approx(their[metric], rel=1e-6)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One task of every kind."""
    folder = tmp_path_factory.mktemp("tasks")
    made = (harness.science, harness.scenes, harness.sums, harness.articles, harness.last_words)
    return {make.__name__: make(folder) for make in made}


@pytest.fixture(scope="module", params=LIKE)
def like(request: pytest.FixtureRequest) -> Like:
    return LIKE[request.param]


@pytest.fixture(scope="module")
def folder(like: Like, tmp_path_factory: pytest.TempPathFactory, tiny_model: Any) -> Path:
    """A tiny model of each family, its tokenizer like the real one's."""
    folder = tmp_path_factory.mktemp("model")
    loaded_from(folder, like, tiny_model, like.kind)
    return folder


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Path:
    """A LoRA adapter that changes every answer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    wrapped.save_pretrained(folder / "adapter")
    return folder / "adapter"


def test_every_request_is_answered_as_by_the_harness_s_own_model(folder: Path, tasks: dict[str, Path]) -> None:
    asked = list(tasks.values())
    same(evaluated("finetrap", folder, asked), evaluated("hf", folder, asked))


# --- its tasks in a study ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return without_chat_template(tiny_folder, tmp_path_factory.mktemp("plain") / "tiny")


@pytest.fixture(scope="module")
def study_rows(plain_folder: Path, tasks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """What a study kept of the untouched model, by task."""
    name = {task: f"lm_eval:{path}" for task, path in tasks.items()}
    study = Study(
        models=str(plain_folder),
        tasks=[name["science"], name["sums"]],
        arms=["few_shot:shots=1", "lora:rank=2"],
        limit_train=16,
        retention=[name["scenes"], name["articles"]],
        dtype="float32",
    )
    folder = tmp_path_factory.mktemp("study")
    results = study.run(folder / "study")
    assert not results.failures
    store = Store(folder / "study")
    return {
        Path(evaluation.task).stem: {row.id: row for row in store.rows(planned.trial, evaluation)}
        for planned in store.plan().planned
        for evaluation in planned.evaluations
        if planned.trial.arm == "zero_shot"
    }


@pytest.fixture(scope="module")
def harness_items(plain_folder: Path, tasks: dict[str, Path]) -> Samples:
    """What the harness's own model says of the same."""
    return evaluated("hf", plain_folder, list(tasks.values()))


@pytest.mark.parametrize("name", ["science", "scenes"])
def test_choices_in_a_study_score_as_in_the_harness(study_rows: Rows, harness_items: Samples, name: str) -> None:
    assert len(study_rows[name]) == len(harness_items[name])
    for item in harness_items[name]:
        row = study_rows[name][f"{name}-test-{item['doc_id']}"]
        assert row.loglikelihoods == pytest.approx([value for value, _ in item["filtered_resps"]], abs=1e-4)
        assert (row.correct, row.raw) == (item["acc_bytes"] == 1, item["acc"] == 1)


def test_answers_in_a_study_score_as_in_the_harness(study_rows: Rows, harness_items: Samples) -> None:
    by_filter = {(item["doc_id"], item["filter"]): item for item in harness_items["sums"]}
    assert len(by_filter) == 2 * len(study_rows["sums"])
    for (index, name), item in by_filter.items():
        row = study_rows["sums"][f"sums-test-{index}"]
        assert row.output == item["resps"][0][0]
        right = {"flexible-extract": row.correct, "strict-match": row.strict}
        assert right[name] == (item["exact_match"] == 1)


def test_texts_in_a_study_have_the_likelihood_of_the_harness(study_rows: Rows, harness_items: Samples) -> None:
    assert len(study_rows["articles"]) == len(harness_items["articles"])
    for item in harness_items["articles"]:
        row = study_rows["articles"][f"articles-test-{item['doc_id']}"]
        value, length = item["bits_per_byte"]
        assert row.bits == pytest.approx(-value / math.log(2), rel=1e-6)
        assert row.bytes == length
