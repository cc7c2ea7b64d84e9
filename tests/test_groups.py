"""Questions that belong together, as those on one text do: they stay on one side, and are one test item."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_rows import question, write
from support import called, rows_in, trial_folder

from finetrap import stats
from finetrap.config import Study
from finetrap.data import load_splits, load_test
from finetrap.errors import StudyError
from finetrap.records import ItemRow, items_digest
from finetrap.results import Results
from finetrap.retention import retention_of, scores_of
from finetrap.rows.check_data import check
from finetrap.rows.duplicates import near_overlap
from finetrap.rows.own_data import OwnData, own_task
from finetrap.task import Example, Task

pytestmark = pytest.mark.usefixtures("undrawn")

SIZES = (1, 2, 3, 4)


def grouped(count: int, start: int = 0) -> list[dict[str, Any]]:
    """So many texts, with one to four questions each."""
    texts = [f"text {start + i}" for i in range(count) for _ in range(SIZES[i % 4])]
    return [{"prompt": question(1000 * start + i), "answer": "ae"[i % 2], "text": t} for i, t in enumerate(texts)]


def task_of(folder: Path, values: list[dict[str, Any]], **settings: Any) -> Task:
    return own_task(OwnData(train=write(folder / "mine.jsonl", values), group_field="text", **settings))


def test_a_group_stays_on_one_side_of_every_cut(tmp_path: Path) -> None:
    task = task_of(tmp_path, grouped(80))
    splits = load_splits(task)
    sides = [{e.group for e in side} for side in (task.load("test"), splits.train, splits.validation)]
    assert all(sides)
    assert set.union(*sides) == {f"text {i}" for i in range(80)}
    assert sum(map(len, sides)) == 80


def test_a_limit_of_test_items_takes_whole_groups_and_more_of_them_extend_it(tmp_path: Path) -> None:
    task = task_of(tmp_path, grouped(80))
    few, more = (load_test(task, limit=limit).examples for limit in (5, 10))
    assert (len({e.group for e in few}), len({e.group for e in more})) == (5, 10)
    assert set(few) < set(more)
    assert {e.group for e in few}.isdisjoint({e.group for e in set(task.load("test")) - set(few)})


def test_check_data_counts_groups_and_those_on_both_sides(tmp_path: Path) -> None:
    train, test = (
        write(tmp_path / f"{name}.jsonl", grouped(20, start)) for name, start in (("train", 0), ("test", 15))
    )
    found = check(OwnData(train=train, test=test, group_field="text", score="regex:([ae])"))
    assert (found.groups, found.groups_in_both) == ({"train": 20, "test": 20}, 5)
    assert (found.near_duplicates, found.near_overlap) == (0, 0)
    assert "groups: train 20, test 20; each is one test item" in found.text()
    assert "5 groups stand in train and in test" in found.text()


def test_a_test_item_of_a_group_that_train_has_is_an_overlap(tmp_path: Path) -> None:
    train, test = (
        write(tmp_path / f"{name}.jsonl", grouped(20, start)) for name, start in (("train", 0), ("test", 15))
    )
    task = own_task(OwnData(train=train, test=test, group_field="text", score="regex:([ae])"))
    assert near_overlap(task.load("train"), task.load("test")) == 5


def test_an_empty_group_and_a_column_that_is_not_there_are_told(tmp_path: Path) -> None:
    rows = grouped(20)
    rows[3]["text"] = ""
    with pytest.raises(StudyError, match=r"mine.jsonl:4: 'text' is empty"):
        task_of(tmp_path, rows)
    with pytest.raises(StudyError, match="--group-field"):
        own_task(OwnData(train=write(tmp_path / "none.jsonl", grouped(20)), group_field="document"))


def test_few_groups_are_few_test_items_however_many_rows_they_have(tmp_path: Path) -> None:
    rows = [{"prompt": question(i), "answer": "ae"[i % 2], "text": f"text {i // 30}"} for i in range(240)]
    with pytest.raises(
        StudyError, match=r"near-duplicates and groups stay together [1-7] of groups are cut off as test"
    ):
        task_of(tmp_path, rows)
    test = write(tmp_path / "test.jsonl", rows[:210])
    with pytest.raises(StudyError, match="has 7 groups: fewer than 10 test items cannot show anything"):
        task_of(tmp_path, rows, test=test)


def test_retention_takes_grouped_rows_too() -> None:
    def rows(right: list[bool]) -> list[ItemRow]:
        return [
            ItemRow(id=str(i), prompt="p", correct=r, group=str(i // 3), loglikelihoods=(0, 0))
            for i, r in enumerate(right)
        ]

    before, after = ([i % 10 < most for i in range(90)] for most in (9, 6))
    study = Study.model_validate({"models": "m", "tasks": "gsm8k"})
    kept = retention_of(study, {"x": rows(before)}, {"x": rows(after)}, arms=1, prompts_only=False)
    assert kept is not None
    task = kept.tasks["x"]
    shares = [scores_of(rows(right)) for right in (after, before)]
    assert task.delta == pytest.approx(-0.3)
    assert task.ci95 == pytest.approx(stats.between_checkpoints(*shares).interval(0.05))


def test_groups_are_in_the_digest_of_items_and_none_leave_it_as_it_was() -> None:
    alone = Example("1", "question", gold="a")
    assert items_digest([alone]) != items_digest([Example("1", "question", gold="a", group="text")])
    # As it was before there were groups.
    assert items_digest([alone]) == "e5b8c11245ca8b8f4c2a91bfed899abb857b8f8cb862419634f49d93363ef9ca"


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.booleans()), min_size=1))
def test_a_group_s_score_is_the_share_of_its_questions(asked: list[tuple[str, bool]]) -> None:
    rows = [ItemRow(id=str(i), prompt="p", correct=right, group=name) for i, (name, right) in enumerate(asked)]
    wanted = [np.mean([right for name, right in asked if name == group]) for group in sorted({n for n, _ in asked})]
    assert scores_of(rows) == pytest.approx(wanted)


def test_of_groups_of_one_size_shares_say_what_cluster_sums_do() -> None:
    # The note's variance for clusters, but for two pseudo-items that are groups here and questions there.
    rng = np.random.default_rng(0)
    a, b = ((rng.random((200, 1)) + rng.random((200, 5)) < p).astype(float) for p in (1.1, 0.9))
    shares = stats.difference(a.mean(axis=1), b.mean(axis=1))
    sums = stats.difference(a.ravel(), b.ravel(), groups=[str(i // 5) for i in range(1000)])
    assert shares.delta == pytest.approx(sums.delta)
    assert shares.item_df == sums.item_df == 199
    assert shares.item_variance == pytest.approx(sums.item_variance, rel=0.05)
    alone = stats.difference(a.ravel(), b.ravel())
    assert shares.item_variance > 1.5 * alone.item_variance


def test_a_study_counts_groups_and_says_so(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        name: write(tmp_path / f"{name}.jsonl", grouped(n, k))
        for k, (name, n) in enumerate({"train": 20, "test": 30}.items())
    }
    options = ["--train", files["train"], "--test", files["test"], "--group-field", "text", "--score", "regex:([ae])"]
    limits = ["--limit-test", "20", "--arm", "few_shot:shots=1", "--max-new-tokens", "20", "--dtype", "float32"]
    out = tmp_path / "out"
    called(capsys, "compare", "--model", tiny_folder, *options, *limits, "--out", out)
    results = Results.model_validate_json((out / "results.json").read_text())
    name = trial_folder(out, "few_shot").name
    (rows,) = (rows for key, rows in rows_in(out).items() if key.startswith(f"trials/{name}/target--"))
    arm = next(arm for arm in results.arms if arm.arm == "few_shot")
    assert (arm.n_test, arm.n_questions) == (20, len(rows))
    assert 20 < len(rows) <= 80
    by_text: dict[str, list[float]] = {}
    for row in rows:
        by_text.setdefault(row["group"], []).append(float(row["correct"]))
    shares = np.array([np.mean(right) for right in by_text.values()])
    assert arm.accuracy == pytest.approx(shares.mean())
    assert arm.ci95 == pytest.approx(stats.accuracy_interval(shares[:, None], None))
    said = f"on 20 test items, which are groups of {len(rows)} questions in all and count alike."
    assert said in " ".join((out / "report.md").read_text().split())
