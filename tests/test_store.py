"""The study folder: complete or not there, named safely, re-used where it can be."""

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import called, contents, evaluation_record, rows_in, study_file, trial_folder, written_at

from finetrap import store as store_module
from finetrap.config import load_study, make_study
from finetrap.errors import StudyError
from finetrap.method import Method, Training, method
from finetrap.records import (
    Evaluation,
    ItemRow,
    ModelRecord,
    TrainingRecord,
    Trial,
    items_digest,
    slug,
)
from finetrap.results import Results
from finetrap.store import Store
from finetrap.task import Example

pytestmark = pytest.mark.usefixtures("undrawn")

MODEL = ModelRecord(name="m", fingerprint="f", quantisation=None, parameters=1, aligned=False, chat=False)
TRIAL = Trial(
    model=MODEL,
    task="arc_easy",
    task_version=1,
    arm="lora",
    method="lora",
    settings={"rank": 2},
    seed=0,
    dtype="float32",
    train_items="t",
    validation_items="v",
)
EVALUATION = Evaluation(purpose="target", task="arc_easy", task_version=1, kind="choice", items="i", n=2, chat=False)
RECORD = evaluation_record(EVALUATION)
ROWS = [
    ItemRow(id="a", prompt="p", output="line\u2028separator\nand \x85 others", gold="0", correct=True),
    ItemRow(id="b", prompt="q", bits=0.1 + 0.2, bytes=3, loglikelihoods=(-1.5, -1e-300)),
]
TRAINING = TrainingRecord(
    outcome="completed",
    step=1,
    steps=1,
    validation_loss_before=None,
    validation_loss=None,
    trainable_parameters=1,
    train_tokens=1,
    train_seconds=1,
    tokens_per_second=1,
    peak_memory_bytes=1,
    artifact_bytes=1,
)


QUESTIONS = [
    Example("a", "line\u2028separator\nand \x85 others", "because", "1", ("<b>", "no")),
    Example("b", "\u05e2\u05d1\u05e8\u05d9\u05ea", gold="0"),
]
ASKED = EVALUATION.model_copy(update={"items": items_digest(QUESTIONS)})


class Crash(BaseException):
    """The process dies here."""


@pytest.fixture(scope="module")
def ran_once(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a small study wrote; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    run_study(folder, tiny_folder)
    return folder / "out"


@pytest.fixture
def out(ran_once: Path, tmp_path: Path) -> Path:
    """A copy of it, where `run_study` goes on."""
    return shutil.copytree(ran_once, tmp_path / "out")


def run_study(folder: Path, model: Path, **settings: object) -> Results:
    """A small study without retention, in `folder`/out."""
    return load_study(study_file(folder, model, **{"retention": [], **settings})).run(folder / "out")


# --- whole or not at all ---------------------------------------------------------------------------------------------


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save_evaluation(TRIAL, RECORD, ROWS)
    assert store.rows(TRIAL, EVALUATION) == ROWS
    assert store.evaluation(TRIAL, EVALUATION) == RECORD


def test_questions_come_back_as_they_were(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.items(ASKED) == {}
    store.save_items(ASKED, QUESTIONS)
    assert list(store.items(ASKED).values()) == QUESTIONS


@pytest.mark.parametrize(
    "content",
    [b"", b"not gzip", gzip.compress(b"{}\n"), gzip.compress(b'{"id": "a", "question": "other"}\n')],
    ids=["empty", "not gzip", "no question", "another question"],
)
def test_questions_that_are_damaged_or_others_are_not_shown(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path)
    store.save_items(ASKED, QUESTIONS)
    (path,) = tmp_path.glob("items/*")
    path.write_bytes(content)
    with pytest.raises(StudyError, match=r"delete .* and run again"):
        store.items(ASKED)


def test_a_study_keeps_the_questions_it_asked(out: Path) -> None:
    names = [path.name for path in (out / "items").iterdir()]
    assert len(names) == 1
    assert names[0].startswith("arc_easy--")


def test_a_crash_between_rows_and_result_leaves_the_evaluation_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = store_module.write_file

    def dies(path: Path, content: str | bytes) -> Path:
        if path.name == "result.json":
            raise Crash
        return write(path, content)

    monkeypatch.setattr(store_module, "write_file", dies)
    store = Store(tmp_path)
    with pytest.raises(Crash):
        store.save_evaluation(TRIAL, RECORD, ROWS)
    assert list(tmp_path.glob("trials/*/*/rows.jsonl.gz"))
    assert store.evaluation(TRIAL, EVALUATION) is None


@pytest.mark.parametrize("dies_at", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    store = Store(tmp_path)
    store.write("results.json", "old")

    def dies(*_: object) -> None:
        raise Crash

    if dies_at == "fsync":
        monkeypatch.setattr(os, "fsync", dies)
    else:
        monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(Crash):
        store.write("results.json", "new")
    assert contents(tmp_path) == {"results.json": b"old"}


def test_a_crash_while_weights_are_saved_leaves_no_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def save(folder: Path) -> None:
        (folder / "half.safetensors").write_bytes(b"half")
        raise Crash

    with pytest.raises(Crash):
        store.save_artifact(TRIAL, save)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_weights_without_the_record_of_their_training_are_no_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save_artifact(TRIAL, lambda folder: (folder / "adapter.safetensors").write_bytes(b"whole"))
    assert store.artifact(TRIAL) is None
    store.save_training(TRIAL, TRAINING, [])
    artifact = store.artifact(TRIAL)
    assert artifact is not None
    assert (artifact / "adapter.safetensors").read_bytes() == b"whole"


def test_dropped_weights_leave_their_records(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save_artifact(TRIAL, lambda folder: (folder / "adapter.safetensors").write_bytes(b"whole"))
    store.save_training(TRIAL, TRAINING, [])
    store.drop_weights(TRIAL)
    assert store.artifact(TRIAL) is None
    assert store.training(TRIAL) == TRAINING


def test_a_crash_while_weights_are_dropped_leaves_no_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.save_artifact(TRIAL, lambda folder: (folder / "adapter.safetensors").write_bytes(b"whole"))
    store.save_training(TRIAL, TRAINING, [])

    def dies(*_: object) -> None:
        raise Crash

    monkeypatch.setattr(shutil, "rmtree", dies)
    with pytest.raises(Crash):
        store.drop_weights(TRIAL)
    assert store.artifact(TRIAL) is None


def test_what_a_killed_process_left_is_harmless(tiny_folder: Path, tmp_path: Path, out: Path) -> None:
    rows = rows_in(out)
    trial = trial_folder(out, "lora")
    evaluation = next(trial.glob("*/result.json")).parent
    (evaluation / "result.json").unlink()
    (evaluation / ".part-x").write_bytes(b"half a row")
    (trial / ".part-y").mkdir()
    (trial / ".part-y" / "adapter_model.safetensors").write_bytes(b"half an adapter")
    (out / ".part-z").write_text("half a table")
    run_study(tmp_path, tiny_folder)
    assert rows_in(out) == rows


def test_artifacts_can_be_read_by_others(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = store.save_artifact(TRIAL, lambda folder: (folder / "x").touch())
    path = store.write("results.json", "{}")
    assert (artifact.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o755, 0o644)


# --- names -----------------------------------------------------------------------------------------------------------

ODD = st.text() | st.sampled_from(
    ["", ".", "..", "../..", "/etc/passwd", "a/../../b", "~", "-", "\0", "con", "a" * 999]
)


@given(model=ODD, arm=ODD)
def test_a_trial_s_folder_lies_in_the_study_s_whatever_the_names(model: str, arm: str) -> None:
    trial = TRIAL.model_copy(update={"arm": arm, "model": MODEL.model_copy(update={"name": model})})
    trials = Path("/study/trials")
    assert (trials / trial.folder).resolve().parent == trials
    assert len(trial.folder.encode()) < 255
    assert trial.folder.isascii()
    assert trial.folder.isprintable()


@given(task=ODD)
def test_an_evaluation_s_folder_lies_in_the_trial_s_whatever_the_names(task: str) -> None:
    name = EVALUATION.model_copy(update={"task": task}).folder("key")
    assert Path("/trial", name).resolve().parent == Path("/trial")
    assert len(name.encode()) < 255


@given(ODD)
def test_a_slug_is_one_plain_part_of_a_path(name: str) -> None:
    made = slug(name)
    assert made
    assert made not in (".", "..")
    assert not set(made) & set('/\\:*?"<>| \0\n')
    assert slug(made) == made


@given(ODD)
def test_the_default_folder_of_a_study_lies_in_the_current_one(name: str) -> None:
    study = load_study_values(name[:100] or "x")
    assert study.default_folder().parent == Path()


def load_study_values(name: str):
    from finetrap.config import make_study

    return make_study({"name": name, "models": "m", "tasks": "arc_easy"})


def test_a_trial_is_found_under_the_name_its_arm_had(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save_evaluation(TRIAL, RECORD, ROWS)
    assert store.rows(TRIAL.model_copy(update={"arm": "renamed"}), EVALUATION) == ROWS


# --- what is used again ----------------------------------------------------------------------------------------------


def test_more_test_items_are_evaluated_by_the_weights_that_are_there(
    tiny_folder: Path, tmp_path: Path, out: Path
) -> None:
    kept = {name: written_at(out, name) for name in ("training.json", "adapter_model.safetensors")}
    first = rows_in(out)
    results = run_study(tmp_path, tiny_folder, limit_test=14)
    assert {name: written_at(out, name) for name in kept} == kept
    assert {arm.n_test for arm in results.arms} == {14}
    assert {key: rows for key, rows in rows_in(out).items() if key in first} == first


def test_the_first_items_of_a_larger_test_are_those_of_the_smaller(
    tiny_folder: Path, tmp_path: Path, out: Path
) -> None:
    run_study(tmp_path, tiny_folder, arms=["zero_shot"], limit_test=14)
    smaller, larger = sorted((rows for key, rows in rows_in(out).items() if "zero_shot" in key), key=len)
    assert larger[: len(smaller)] == smaller


def test_a_deleted_trial_runs_again_and_no_other(tiny_folder: Path, tmp_path: Path, out: Path) -> None:
    before, rows = written_at(out), rows_in(out)
    shutil.rmtree(trial_folder(out, "lora"))
    run_study(tmp_path, tiny_folder)
    after = written_at(out)
    assert {key for key in after if after[key] != before[key]} == {key for key in after if "--lora--" in key}
    assert rows_in(out) == rows


def test_every_reading_of_a_test_set_is_noted(tiny_folder: Path, tmp_path: Path, out: Path) -> None:
    def looks() -> list[tuple[str, int]]:
        lines = map(json.loads, (out / "looks.jsonl").read_text().splitlines())
        return [(look["task"], look["n"]) for look in lines]

    assert looks() == [("arc_easy", 10)] * 3
    run_study(tmp_path, tiny_folder)
    assert looks() == [("arc_easy", 10)] * 3
    run_study(tmp_path, tiny_folder, limit_test=14, retention=["wikitext2"])
    assert sorted(looks()[3:]) == [("arc_easy", 14)] * 3 + [("wikitext2", 10)] * 2


# --- weights that are kept -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "kept"), [("none", set()), ("best", {"lora"}), ("all", {"full", "lora", "half"})])
def test_the_weights_that_were_asked_for_are_kept(tiny_folder: Path, tmp_path: Path, keep: str, kept: set[str]) -> None:
    results = run_study(tmp_path, tiny_folder, arms=["full", "lora:rank=2", "half=interpolated:of=full"], keep=keep)
    assert results.recommendations[0].method not in ("full", "half")
    trained = ("full", "lora", "half")
    assert {arm for arm in trained if (trial_folder(tmp_path / "out", arm) / "artifact").is_dir()} == kept


def test_weights_that_were_not_kept_are_not_trained_again_while_nothing_is_missing(
    tiny_folder: Path, tmp_path: Path, out: Path
) -> None:
    run_study(tmp_path, tiny_folder, keep="none")
    assert not (trial_folder(out, "lora") / "artifact").exists()
    before = contents(out / "trials")
    run_study(tmp_path, tiny_folder, keep="none")
    assert contents(out / "trials") == before


def test_weights_that_are_not_kept_go_with_their_trial(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for those that another trial goes on from, so that a long study needs the disk of two models."""
    there: dict[str, set[str]] = {}
    begin = Store.begin

    def beginning(store: Store, trial: Trial) -> Path:
        there[trial.arm] = {path.parent.name.split("--")[-3] for path in store.folder.glob("trials/*/artifact")}
        return begin(store, trial)

    monkeypatch.setattr(Store, "begin", beginning)
    arms = ["full", "other=full:learning_rate=1e-3", "lora:rank=2", "half=interpolated:of=full"]
    run_study(tmp_path, tiny_folder, arms=arms, keep="none")
    assert (there["other"], there["lora"], there["half"]) == ({"full"}, {"full"}, {"full"})
    assert not list(tmp_path.glob("out/trials/*/artifact"))


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A method called `breaks`, which raises what is in the list while something is."""
    said = ["the first line\nthe second"]

    def breaks() -> Method:
        """Trains nothing that works."""

        def prepare(model: object) -> object:
            if said:
                raise ArithmeticError(said[0])
            return model

        return Method(training=Training(learning_rate=1e-3), prepare=prepare)

    method.names()
    monkeypatch.setitem(method._entries, "breaks", breaks)
    return said


@pytest.fixture
def broken(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], breaks: list[str]
) -> Callable[..., object]:
    """Run a study in which the second of four trials fails."""
    path = study_file(tmp_path, tiny_folder, retention=[], arms=["constant", "breaks", "zero_shot", "few_shot:shots=1"])
    return lambda *options: called(capsys, "run", path, "--out", tmp_path / "out", *options)


def test_a_trial_that_fails_is_recorded_and_the_others_go_on(broken: Callable[..., object], tmp_path: Path) -> None:
    done = broken()
    out = tmp_path / "out"
    assert done.code == 1
    assert "1 trials failed" in done.err
    assert "--retry-failed" in done.err
    failure = json.loads((trial_folder(out, "breaks") / "failure.json").read_text())
    assert failure["error"] == "ArithmeticError: the first line"
    assert "the second" in failure["traceback"]
    assert len(rows_in(out)) == 3
    results = json.loads((out / "results.json").read_text())
    assert [arm["arm"] for arm in results["arms"]] == ["constant", "zero_shot", "few_shot"]
    assert [failure["error"] for failure in results["failures"]] == ["ArithmeticError: the first line"]


def test_what_failed_is_not_tried_again_by_itself(broken: Callable[..., object], tmp_path: Path) -> None:
    broken()
    before = contents(tmp_path / "out" / "trials")
    assert broken().code == 1
    assert contents(tmp_path / "out" / "trials") == before


def test_what_failed_is_tried_again_when_asked_for(
    broken: Callable[..., object], breaks: list[str], tmp_path: Path
) -> None:
    broken()
    before = written_at(tmp_path / "out")
    breaks.clear()
    assert broken("--retry-failed").code == 0
    after = written_at(tmp_path / "out")
    assert {key: after[key] for key in before} == before
    assert not (trial_folder(tmp_path / "out", "breaks") / "failure.json").exists()
    assert json.loads((tmp_path / "out" / "results.json").read_text())["failures"] == []


def test_status_names_what_failed_and_why(
    broken: Callable[..., object], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    broken()
    done = called(capsys, "status", tmp_path / "out")
    assert "failed   breaks" in done.out
    assert "ArithmeticError: the first line" in done.out
    assert "3 done, 0 running, 1 failed, 0 left" in done.out


def test_a_failure_does_not_count_once_nothing_is_missing_any_more(
    tiny_folder: Path, tmp_path: Path, out: Path
) -> None:
    (trial_folder(out, "lora") / "failure.json").write_text('{"trial": "t", "error": "e", "traceback": ""}')
    assert not run_study(tmp_path, tiny_folder).failures


@pytest.mark.parametrize("settings", ["learning_rate=1000,batch_size=2", "learning_rate=100"], ids=["early", "at_last"])
def test_divergence_is_an_outcome_and_not_a_failure(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: str
) -> None:
    arms = [f"wild=full:{settings}", "zero_shot"]
    path = study_file(tmp_path, tiny_folder, retention=[], arms=arms)
    done = called(capsys, "run", path, "--out", tmp_path / "out")
    assert done.code == 0
    assert "training diverged with seeds [0]" in done.out
    trained = json.loads((trial_folder(tmp_path / "out", "wild") / "training.json").read_text())
    assert trained["outcome"] == "diverged"
    assert trained["step"] < trained["steps"]
    assert any("--wild--" in key for key in rows_in(tmp_path / "out"))


def test_a_folder_is_free_again_once_a_study_is_over(tmp_path: Path) -> None:
    study = load_study_values("one")
    store = Store(tmp_path / "out")
    with store.open(study):
        pass
    with store.open(study), pytest.raises(StudyError, match="another finetrap is writing"), store.open(study):
        pass


def test_a_folder_with_hidden_files_of_the_users_is_neither_taken_nor_emptied(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("ref")
    with pytest.raises(StudyError, match="is not empty"):
        Store(tmp_path).check(make_study({"models": "tiny", "tasks": "gsm8k"}))
    assert (tmp_path / ".git" / "HEAD").read_text() == "ref"


def test_what_a_killed_process_left_half_written_is_swept_up(tmp_path):
    study = make_study({"models": "tiny", "tasks": "gsm8k"})
    part = tmp_path / "study" / "trials" / "one" / ".part-x"
    store = Store(tmp_path / "study")
    with store.open(study):
        part.mkdir(parents=True)
        (part / "model.safetensors").write_text("half")
    with store.open(study):
        assert not part.exists()
