import json
import random
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import own_rows
import pytest
import yaml
from support import called, contents, model_copy, study_file

from finetrap.config import load_study, make_study
from finetrap.study import run
from finetrap.task import get_task, task
from finetrap.tune import RUNGS

STUDIES = Path(__file__).parent.parent / "studies"
PAPER = STUDIES / "fine_tuning_trap.yaml"


def test_a_dry_run_without_the_hub_names_what_it_would_fetch_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETRAP_CACHE", str(tmp_path / "cache"))
    path = study_file(tmp_path, "smollm2-135m", tasks=["orca_math"])
    before = contents(tmp_path)
    done = called(capsys, "run", path, "--out", tmp_path / "out", "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert contents(tmp_path) == before
    assert "to fetch: smollm2-135m (HuggingFaceTB/SmolLM2-135M on the Hub), about 269 MB" in done.out
    assert "to fetch: orca_math (microsoft/orca-math-word-problems-200k on the Hub), about 84 MB" in done.out
    assert done.out.splitlines()[-1].startswith("3 trials, roughly ")
    planned = json.loads(called(capsys, "run", path, "--out", tmp_path / "out", "--dry-run", "--json").out)
    assert [trial["trial"]["arm"] for trial in planned["trials"]] == ["constant", "zero_shot", "lora"]
    assert all(trial["seconds"] > 0 for trial in planned["trials"][1:])
    assert [download["bytes"] for download in planned["downloads"]] == [269_030_016, 84_248_748]


def test_a_hub_model_that_nobody_knows_is_of_unknown_size_and_not_in_the_time(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = study_file(tmp_path, tiny_folder, models=[str(tiny_folder), "someone/some-model"])
    lines = called(capsys, "run", path, "--out", tmp_path / "out", "--dry-run").out.splitlines()
    assert "someone/some-model, of unknown size:" in lines
    assert "to fetch: someone/some-model (someone/some-model on the Hub), size unknown" in lines
    assert "and what someone/some-model takes; nothing was run." in lines[-1]
    assert sum(" unknown  evaluated on " in line for line in lines) == 3


def test_a_time_to_fit_into_is_left_open_where_something_is_to_fetch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = study_file(tmp_path, "smollm2-135m", size="45m")
    done = called(capsys, "run", path, "--out", tmp_path / "out", "--dry-run")
    assert done.out.splitlines()[-1].startswith("what fits into 45m is decided when all of it is here")


def test_a_dry_run_of_compare_does_not_fetch_either(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "qwen2.5-0.5b", "--task", "arc_easy", "--limit-train", 16, "--limit-test", 10]
    done = called(capsys, "compare", *arguments, "--out", tmp_path / "out", "--dry-run")
    assert done.code == 0
    assert "to fetch: qwen2.5-0.5b (Qwen/Qwen2.5-0.5B on the Hub), about 988 MB" in done.out


def test_a_name_that_is_no_model_is_refused_by_a_dry_run_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = called(capsys, "compare", "--model", "smollm2-135", "--task", "arc_easy", "--out", tmp_path, "--dry-run")
    assert done.code == 2
    assert "unknown model 'smollm2-135'" in done.err


def test_the_papers_study_is_planned_offline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = load_study(PAPER)
    assert [claim.id for claim in study.claims] == ["1", "2", "3", "3a", "3b", "4", "5"]
    assert (study.limit_train, study.out_of_distribution) == (10000, ("svamp",))
    small = ["--limit-train", 16, "--limit-test", 10, "--seeds", 1, "--out", tmp_path / "out"]
    done = called(capsys, "run", PAPER, *small, "--dry-run")
    assert done.code == 0
    for model in study.models:
        assert f"to fetch: {model.name} (" in done.out
    tuned = {
        "few_shot": 4,
        **{name: sum(r.start + r.follow for r in RUNGS["standard"]) for name in ("full", "lora", "dora")},
    }
    lines = [line.split() for line in done.out.splitlines()]
    candidates = Counter(words[0] for words in lines if words[1:2] == ["tuning"])
    assert candidates == {name: len(study.models) * 2 * count for name, count in tuned.items()}
    trials = len(study.models) * 2 * (len(study.arms) + sum(tuned.values()))
    assert any(line.startswith(f"{trials} trials, roughly ") for line in done.out.splitlines())


def test_every_study_file_is_a_study() -> None:
    for path in STUDIES.glob("*.yaml"):
        assert load_study(path).models, path


@pytest.fixture
def orca(tmp_path: Path) -> Path:
    """A copy of Orca-Math as people keep it, of a few rows."""
    folder = tmp_path / "data" / "orca-math-word-problems-200k"
    folder.mkdir(parents=True)
    drawn = random.Random(0)
    rows = [
        {"question": own_rows.question(index), "answer": f"It is {(n := drawn.randint(1, 3))}, so {n}."}
        for index in range(600)
    ]
    own_rows.write(folder / "train.jsonl", rows)
    return folder.parent


@pytest.mark.slow
@pytest.mark.thorough
def test_the_papers_study_runs_as_it_stands_on_tiny_models(
    tmp_path: Path, tiny_folder: Path, orca: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_copy(tiny_folder, tmp_path / "model", max_position_embeddings=8192)
    values = yaml.safe_load(PAPER.read_text())
    small = {"limit_train": 12, "limit_validation": 10, "limit_test": 10, "limit_retention": 10}
    values |= {
        **small,
        "models": [str(model)],
        "seeds": 2,
        "tune": "quick",
        "epochs": 1,
        "data_dir": str(orca),
        "dtype": "float32",
    }
    values["claims"][-1]["models"] = [str(model)]
    for name in ("gsm8k", "svamp", "orca_math"):
        # A random model says nothing of more worth in the other hundreds.
        short = replace(get_task(name, orca), max_new_tokens=4)
        monkeypatch.setitem(task._entries, name, partial(replace, short))
    study = make_study(values)
    results = run(study, tmp_path / "out")
    assert not results.failures
    assert len(results.arms) == 2 * len(study.arms)
    tuned = {arm.arm for arm in results.arms if arm.tuning}
    assert tuned == {"few_shot", "full", "lora", "dora"}
    trained = [arm for arm in results.arms if arm.arm in ("full", "lora_one_rate")]
    assert all(len(arm.seeds) == 2 and arm.retention is not None and arm.retention.kl is not None for arm in trained)
    assert {other.task for arm in results.arms for other in arm.out_of_distribution} == {"svamp"}
    # Ten items of a random model are at the floor, or show nothing.
    assert [claim.id for claim in results.claims] == [claim.id for claim in study.claims]
    assert {claim.verdict for claim in results.claims} == {"undetermined"}
    assert all(claim.evidence for claim in results.claims)
