"""One dial: what a size decides, what overrides it, and that a time given is kept to."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from support import called, study_file

from finetrap.config import Study, load_study
from finetrap.errors import StudyError
from finetrap.prepare import prepare
from finetrap.results import Results
from finetrap.size import FILL, LADDER, SIZES, fit, in_words, seconds_of, sized_text


def study(**settings: object) -> Study:
    return Study.model_validate({"models": "m", "tasks": "arc_easy", **settings})


# --- by name ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "tune", "limit_train", "seeds", "limit_test"),
    [
        ("quick", "quick", 256, 1, 200),
        ("standard", "standard", 1_000, 3, 500),
        ("thorough", "thorough", 10_000, 5, None),
    ],
)
def test_a_size_decides_examples_seeds_items_and_tuning(
    size: str, tune: str, limit_train: int, seeds: int, limit_test: int | None
) -> None:
    sized = study(size=size)
    assert (sized.tune, sized.limit_train, len(sized.seeds), sized.limit_test) == (tune, limit_train, seeds, limit_test)


def test_each_size_is_larger_than_the_one_before_in_everything() -> None:
    order = ("quick", "standard", "thorough")
    for small, large in pairwise(LADDER):
        assert order.index(small.tune) <= order.index(large.tune)
        for name in ("limit_train", "limit_validation", "limit_retention", "seeds", "epochs"):
            assert getattr(small, name) <= getattr(large, name)
        assert large.limit_test is None or (small.limit_test or 0) < large.limit_test


def test_what_is_stated_overrides_the_size() -> None:
    sized = study(size="standard", limit_test=50, seeds=[7], tune="none", limit_train=None)
    assert (sized.limit_test, sized.seeds, sized.tune, sized.limit_train) == (50, (7,), "none", None)
    assert sized.limit_validation == SIZES["standard"].limit_validation


def test_without_a_size_nothing_changes() -> None:
    plain = study()
    assert (plain.size, plain.tune, plain.seeds, plain.limit_train, plain.epochs) == (None, "none", (0,), None, None)


@pytest.mark.parametrize("size", ["huge", "45", "0m", "-1h", "45 m", ""])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(StudyError, match="unknown size"):
        study(size=size)


@pytest.mark.parametrize(("text", "seconds"), [("45m", 2700), ("2h", 7200), ("1.5h", 5400), ("quick", None)])
def test_a_time_is_read(text: str, seconds: float | None) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(("seconds", "words"), [(20, "20 s"), (600, "10 min"), (9000, "2.5 h"), (432e6, "5,000 days")])
def test_a_time_is_said(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


# --- by the time there is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(len(LADDER)))
def test_a_time_gets_the_largest_size_that_fits(index: int) -> None:
    # A second a training example: the time is just enough for one of them.
    minutes = LADDER[index].limit_train / FILL / 60
    chosen = fit(f"{minutes + 0.01:.3f}m", (), lambda settings: settings["limit_train"])
    assert chosen == LADDER[index].derived(())


def test_what_is_stated_is_left_out_of_what_a_time_decides() -> None:
    chosen = fit("100h", {"limit_train", "seeds"}, lambda settings: 1.0)
    assert set(chosen) == {"tune", "limit_validation", "limit_test", "limit_retention", "epochs"}


def test_a_time_that_is_too_short_is_refused_with_what_it_takes() -> None:
    with pytest.raises(StudyError, match="--size 5m is too short: the smallest study takes roughly 10 min"):
        fit("5m", (), lambda settings: 600.0)


def test_what_was_given_up_is_said() -> None:
    text = sized_text(study(size="standard", limit_test=50), 600.0)
    assert text.splitlines()[0].startswith("size standard: tune standard, limit_train 1000, ")
    assert "roughly 10 min" in text
    assert "given up against thorough: tune standard of thorough, limit_train 1000 of 10000," in text
    assert "limit_test 50 of all" in text
    assert "given up" not in sized_text(study(size="thorough"), 600.0)


# --- a study with a size ---------------------------------------------------------------------------------------------


def test_what_a_size_decided_is_written_down_as_if_it_were_stated() -> None:
    # 200 is the default: it is still there when the folder is read again.
    stated = study(size="quick", limit_validation=200).stated()
    assert (stated["size"], stated["limit_train"], stated["seeds"]) == ("quick", 256, [0])
    assert Study.model_validate(stated).limit_validation == 200
    assert set(study(limit_test=20).stated()) == {"models", "tasks", "limit_test"}


def test_a_time_is_measured_out_once_said_before_and_kept(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = study_file(tmp_path, tiny_folder, retention=[], arms=["zero_shot"], limit_train=None, limit_retention=None)
    out = tmp_path / "out"
    seen = called(capsys, "run", path, "--out", out, "--size", "1m", "--dry-run")
    assert seen.code == 0, seen.err
    assert re.search(r"size 1m: tune \w+, limit_train \d+, .*; roughly \d+ s left", seen.out)
    assert "given up against thorough" in seen.out
    assert not out.exists()

    done = called(capsys, "run", path, "--out", out, "--size", "1m")
    assert done.code == 0
    assert done.err.index("size 1m: tune") < done.err.index("done ")
    results = Results.model_validate_json((out / "results.json").read_bytes())
    begun = load_study(out / "study.yaml")
    assert results.study["settings"] == begun.model_dump(mode="json")
    assert (begun.size, begun.limit_test) == ("1m", 10)
    assert begun.limit_retention in [size.limit_retention for size in LADDER]

    (out / "study.yaml").write_text(yaml.safe_dump({**begun.stated(), "limit_retention": 77, "limit_test": 11}))
    again = prepare(load_study(path, {"size": "1m"}), out).study
    assert (again.limit_retention, again.limit_test) == (77, 10)
