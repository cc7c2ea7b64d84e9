"""Tasks of lm-evaluation-harness in a study score each item as the harness does."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from harness import Samples, evaluated
from support import study_file, without_chat_template

lm_eval = pytest.importorskip("lm_eval")

from finetrap.config import ModelSpec, Study, load_study  # noqa: E402
from finetrap.errors import StudyError  # noqa: E402
from finetrap.evaluate import Asked, evaluate  # noqa: E402
from finetrap.models import find, load  # noqa: E402
from finetrap.records import ItemRow  # noqa: E402
from finetrap.store import Store  # noqa: E402
from finetrap.task import get_task  # noqa: E402

pytestmark = pytest.mark.usefixtures("undrawn")

Rows = dict[str, dict[str, ItemRow]]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return harness.every_kind(tmp_path_factory.mktemp("tasks"))


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
        arms=["lora:rank=2"],
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
        assert row.loglikelihoods == pytest.approx([v for v, _ in item["filtered_resps"]], rel=1e-6, abs=1e-4)
        assert (row.correct, row.raw) == (item["acc_bytes"] == 1, item["acc"] == 1)


@pytest.mark.parametrize(("name", "packaged"), [("science", "arc_easy"), ("scenes", "hellaswag")])
def test_packaged_choices_score_as_in_the_harness_on_the_same_rows(
    plain_folder: Path, harness_items: Samples, name: str, packaged: str
) -> None:
    loaded = load(find(ModelSpec(name=str(plain_folder))), dtype=torch.float32, device="cpu")
    task, items = get_task(packaged), harness_items[name]
    rows = evaluate(loaded, task, task.load("test")[: len(items)], Asked(), progress=lambda done: None)
    for row, item in zip(rows, items, strict=True):
        assert row.loglikelihoods == pytest.approx([v for v, _ in item["filtered_resps"]], rel=1e-6, abs=1e-4)
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


def test_a_description_and_other_delimiters_stand_in_a_study_s_prompts_too(plain_folder: Path, tmp_path: Path) -> None:
    made = {"description": "Answer these.\n", "target_delimiter": "\n", "doc_to_text": "{{question}} "}
    path = harness.science(tmp_path, test=10, **made)
    loaded = load(find(ModelSpec(name=str(plain_folder))), dtype=torch.float32, device="cpu")
    task = get_task(f"lm_eval:{path}")
    rows = evaluate(loaded, task, task.load("test"), Asked(), progress=lambda done: None)
    for row, item in zip(rows, evaluated("hf", plain_folder, [path])["science"], strict=True):
        assert row.loglikelihoods == pytest.approx([v for v, _ in item["filtered_resps"]], rel=1e-6, abs=1e-4)


def test_the_trivial_arm_sees_what_all_questions_end_with(tasks: dict[str, Path]) -> None:
    assert get_task(f"lm_eval:{tasks['science']}").blind_prompt == "Answer:"
    assert get_task(f"lm_eval:{tasks['scenes']}").blind_prompt == ""


def test_gold_is_the_answer_alone_and_a_reference_all_of_it(tasks: dict[str, Path]) -> None:
    task = get_task(f"lm_eval:{tasks['sums']}")
    example = task.load("train")[0]
    assert example.reference == harness.rows("gsm8k", "train", 1)[0]["answer"]
    assert example.reference.endswith(f"#### {example.gold}")
    verdict = task.verdict(f"It is {example.gold}.\nQuestion: 3", example)
    assert (verdict.correct, verdict.strict, verdict.formatted) == (True, False, False)
    assert verdict.extracted == f"{example.gold}."
    assert task.verdict(f"#### {example.gold}", example).strict


def test_part_of_the_marks_is_not_right(tmp_path: Path) -> None:
    (tmp_path / "marks.py").write_text("def marks(doc, said):\n    return {'half': 0.5 + 0.5 * ('9' in said[0])}\n")
    path = harness.sums(tmp_path, metric_list=harness.metrics("half"))
    path.write_text(path.read_text() + "process_results: !function marks.marks\n")
    task = get_task(f"lm_eval:{path}")
    example = task.load("test")[0]
    assert [task.verdict(text, example).correct for text in ("8", "9")] == [False, True]


def test_a_version_changes_with_the_task_s_file(tmp_path: Path) -> None:
    versions = {get_task(f"lm_eval:{harness.scenes(tmp_path, doc_to_text=text)}").version for text in ("a", "b")}
    assert len(versions) == 2


@pytest.mark.parametrize(
    ("make", "config", "says"),
    [
        (harness.last_words, {}, "scored by loglikelihood; a study takes multiple_choice, generate_until"),
        (harness.sums, {"generation_kwargs": {"until": ["x"], "do_sample": True}}, "its answers are sampled"),
        (harness.sums, {"repeats": 4}, "its answers are sampled"),
        (harness.sums, {"metric_list": [{"metric": "bleu"}]}, r"scores no single answer \(bleu\)"),
        (harness.scenes, {"doc_to_text": "{{gold}}"}, "its choices stand in the question"),
        (harness.scenes, {"doc_to_target": [0, 1]}, "several of its choices are right"),
        (
            harness.scenes,
            {"doc_to_target": "{{gold if ind == 29519 else 7}}"},
            "the right choice is 7, which is none of its choices",
        ),
        (harness.scenes, {"unsafe_code": True}, "it runs code that the model wrote"),
        (harness.scenes, {"dataset_path": "nowhere_at_all"}, "cannot be loaded: "),
        (harness.scenes, {"doc_to_text": "{{nothing}}"}, "cannot be loaded: 'nothing' is undefined"),
    ],
)
def test_a_task_that_a_study_cannot_score_is_an_error(
    make: Callable[..., Path], config: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(StudyError, match=says):
        get_task(f"lm_eval:{make(tmp_path, **config)}")


def test_without_the_harness_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(StudyError, match=r"pip install 'finetrap\[lm-eval\]'"):
        get_task("lm_eval:not_asked_for_before")


def test_a_file_that_is_not_there_is_an_error() -> None:
    with pytest.raises(StudyError, match=r"there is no task file nowhere\.yaml"):
        get_task("lm_eval:nowhere.yaml")


def test_a_target_without_train_is_an_error(plain_folder: Path, tasks: dict[str, Path], tmp_path: Path) -> None:
    study = Study(models=str(plain_folder), tasks=f"lm_eval:{tasks['scenes']}", retention=[])
    with pytest.raises(StudyError, match=r"scenes\.yaml' has no train split"):
        study.run(tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_study_file_cannot_name_a_file_that_can_run_code(
    plain_folder: Path, tasks: dict[str, Path], tmp_path: Path
) -> None:
    path = study_file(tmp_path, plain_folder, retention=[f"lm_eval:{tasks['scenes']}"])
    with pytest.raises(StudyError, match="can run code, which a study file does not name"):
        load_study(path)


def test_the_harness_s_own_arc_easy_is_no_retention_task_of_ours() -> None:
    assert get_task("arc_easy").is_near("lm_eval:arc_easy")
    assert not get_task("arc_easy").is_near("lm_eval:hellaswag")


def test_names_are_the_harness_s_own() -> None:
    """Without its data, which no test downloads."""
    with pytest.raises(StudyError, match="the task 'lm_eval:arc_easy' cannot be loaded"):
        get_task("lm_eval:arc_easy")


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hellaswagg", "no task 'hellaswagg'; did you mean 'lm_eval:hellaswag'"),
        ("mmlu", "'lm_eval:mmlu' is a group of tasks; name those"),
    ],
)
def test_a_name_that_is_no_task_is_an_error(name: str, says: str) -> None:
    with pytest.raises(StudyError, match=says):
        get_task(f"lm_eval:{name}")
