"""What check-data says of rows, number by number, against rows whose numbers are known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_rows import chat_rows, question, rows, write
from support import called

from finetrap import OwnData, StudyError
from finetrap.data import Encoder, load_splits, load_test
from finetrap.rows.check_data import DataReport, check
from finetrap.rows.own_data import own_task
from finetrap.task import Example

LONG = "one two three four five six seven eight nine ten eleven twelve"


@pytest.fixture(autouse=True)
def no_model_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETRAP_CACHE", str(tmp_path / "cache"))


def checked(folder: Path, values: list[dict[str, Any]], *, model: Path | None = None, **settings: Any) -> DataReport:
    data = OwnData(train=write(folder / "mine.jsonl", values), **settings)
    return check(data, model=str(model) if model else None)


def lengths(values: list[int]) -> dict[str, int]:
    """By plain sorting: the middle, the 19th of 20, the last."""
    ordered = sorted(values)
    return {
        "median": int(np.median(ordered)),
        "p95": ordered[int(np.ceil(0.95 * (len(ordered) - 1)))],
        "longest": ordered[-1],
    }


# --- rows and splits -------------------------------------------------------------------------------------------------


def test_rows_and_what_a_study_would_use_are_counted(tmp_path: Path) -> None:
    report = checked(tmp_path, rows(100))
    splits = load_splits(own_task(OwnData(train=str(tmp_path / "mine.jsonl"))))
    assert report.rows == {"train": 100}
    assert report.splits["train"] == len(splits.train)
    assert report.splits["validation"] == len(splits.validation)
    assert sum(report.splits.values()) == 100
    assert report.test_carved
    assert report.problems == ()


def test_a_test_set_of_its_own_is_counted(tmp_path: Path) -> None:
    report = checked(tmp_path, rows(60)[12:], test=write(tmp_path / "test.csv", rows(12)))
    assert report.rows == {"train": 48, "test": 12}
    assert (report.splits["test"], report.test_carved) == (12, False)


def test_every_empty_row_is_a_problem_and_the_others_are_still_looked_at(tmp_path: Path) -> None:
    values = rows(60)
    values[4]["answer"] = ""
    values[9]["prompt"] = None
    report = checked(tmp_path, [*values, values[0]])
    assert [problem.rpartition("mine.jsonl:")[2] for problem in report.problems] == [
        "5: 'answer' is empty; fill it in or leave the row out.",
        "10: 'prompt' is empty; fill it in or leave the row out.",
    ]
    assert report.splits == {}
    assert report.duplicates == 1


# --- doubles ---------------------------------------------------------------------------------------------------------


def test_duplicates_and_conflicts_are_counted_by_question(tmp_path: Path) -> None:
    first = rows(60)[0]
    again = [first, {**first, "prompt": f"  {first['prompt'].upper()}!"}, {**first, "answer": "other"}]
    report = checked(tmp_path, [*rows(60), *again])
    assert (report.duplicates, report.conflicts, report.near_duplicates) == (3, 1, 0)


def test_near_duplicates_are_counted_without_the_exact_ones(tmp_path: Path) -> None:
    near = [{"prompt": f"{LONG} {word}", "answer": "red"} for word in ("apple", "pear", "plum", "plum")]
    report = checked(tmp_path, [*rows(60), *near])
    assert (report.duplicates, report.near_duplicates) == (1, 2)


def test_questions_of_signs_alone_are_not_all_the_same(tmp_path: Path) -> None:
    signs = [{"prompt": sign, "answer": "red"} for sign in ("🙂", "🙁", "?!", "🙂")]
    assert checked(tmp_path, [*rows(60), *signs]).duplicates == 1


def test_overlap_with_test_is_counted_exactly_and_nearly(tmp_path: Path) -> None:
    near = [{"prompt": f"{LONG} {word}", "answer": "red"} for word in ("apple", "pear", "plum")]
    test = write(tmp_path / "test.csv", [*rows(12), *near[1:]])
    report = checked(tmp_path, [*rows(60)[8:], near[0]], test=test)
    assert (report.overlap, report.near_overlap) == (4, 2)
    assert report.splits["train"] + report.splits["validation"] == 53 - 4


def test_no_doubles_are_said_to_be_none(tmp_path: Path) -> None:
    report = checked(tmp_path, rows(60))
    assert (report.duplicates, report.conflicts, report.near_duplicates, report.overlap, report.near_overlap) == (
        0,
    ) * 5
    assert "no duplicates, no overlap" in report.text()


# --- answers ---------------------------------------------------------------------------------------------------------


def test_the_balance_of_few_answers_is_told_with_what_the_commonest_gets(tmp_path: Path) -> None:
    values = [*rows(90, ["red", "blue", "red"]), {"prompt": question(99), "answer": "green"}]
    report = checked(tmp_path, values, score="label")
    assert report.labels == {"red": 60, "blue": 30, "green": 1}
    text = report.text()
    assert "answers: red 60, blue 30, green 1" in text
    assert "always giving the most common one is right in 66%" in text
    assert "fewer than 10 rows: green;" in text


def test_choices_are_balanced_by_text(tmp_path: Path) -> None:
    report = checked(tmp_path, rows(60, ["A", "B"], options=["fire", "water"]), choices_field="options")
    assert report.labels == {"fire": 30, "water": 30}
    assert report.kind == "multiple choice"


@pytest.mark.parametrize(("different", "shown"), [(20, 20), (21, 0)])
def test_the_balance_of_many_answers_is_not_told(tmp_path: Path, different: int, shown: int) -> None:
    assert len(checked(tmp_path, rows(63, [f"a{i}" for i in range(different)])).labels) == shown


@pytest.mark.parametrize(
    ("score", "why", "wrong"),
    [
        ("exact", None, 0),
        ("number", "It is 3 or 4", 0),
        ("number", "It is 4 or 3", 1),
        ("regex:is (.*)", None, 1),
        ("regex:is (.*)", "It is 4", 0),
    ],
)
def test_completions_that_are_wrong_by_the_rule_itself_are_counted(
    tmp_path: Path, score: str, why: str | None, wrong: int
) -> None:
    values = [{**row, "why": why} for row in rows(60, ["4"])]
    report = checked(tmp_path, values, score=score, completion_field="why" if why else None)
    assert report.taught_wrong == wrong * (report.splits["train"] + report.splits["validation"])
    assert ("training teaches what gets no point" in report.text()) == bool(wrong)


# --- tokens ----------------------------------------------------------------------------------------------------------


def encoder_of(tmp_path: Path, tokenizer: Any, *, chat: bool = True) -> Encoder:
    return Encoder(tokenizer, own_task(OwnData(train=str(tmp_path / "mine.jsonl"))), chat=chat)


def test_lengths_are_those_of_the_model_s_tokenizer(tmp_path: Path, tiny_folder: Path, tiny_tokenizer: Any) -> None:
    values = [{**row, "answer": "x" * (1 + i)} for i, row in enumerate(rows(100))]
    tokens = checked(tmp_path, values, model=tiny_folder).tokens
    assert tokens is not None
    task = own_task(OwnData(train=str(tmp_path / "mine.jsonl")))
    train, test = load_splits(task).train, load_test(task).examples

    def prompt(example: Example) -> int:
        turns = [{"role": "user", "content": task.prompt(example.question)}]
        return len(tiny_tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"])

    assert tokens.prompts.model_dump() == lengths([prompt(e) for e in (*train, *test)])
    # A byte is a token here, and one more ends the turn.
    assert tokens.completions.model_dump() == lengths([len(e.reference) + 1 for e in train])
    assert (tokens.context, tokens.max_new_tokens, tokens.model) == (2048, 50, str(tiny_folder))
    assert tokens.cut_answers == sum(len(e.reference) + 1 > 50 for e in train)
    assert (tokens.left_out, tokens.prompts_too_long) == (0, 0)


def test_rows_longer_than_the_context_are_counted(tmp_path: Path, tiny_folder: Path) -> None:
    test = write(tmp_path / "test.csv", [*rows(12), {"prompt": "y" * 2030, "answer": "red"}])
    long = [{"prompt": f"{question(i)} {'x' * 2100}", "answer": "red"} for i in (200, 201)]
    report = checked(tmp_path, [*rows(60)[12:], *long], model=tiny_folder, test=test)
    assert report.tokens is not None
    kept = load_splits(own_task(OwnData(train=str(tmp_path / "mine.jsonl"), test=test))).train
    assert report.tokens.left_out == sum(len(example.question) > 2048 for example in kept) > 0
    assert report.tokens.prompts_too_long == 1
    assert "test prompts leave no room for the answer" in report.text()


@pytest.mark.parametrize("talk", [False, True])
def test_the_first_prompt_is_what_the_model_sees(
    tmp_path: Path, tiny_folder: Path, tiny_tokenizer: Any, talk: bool
) -> None:
    report = checked(tmp_path, chat_rows(60) if talk else rows(60), model=tiny_folder)
    encoder = encoder_of(tmp_path, tiny_tokenizer)
    first = load_splits(encoder.task).train[0]
    assert report.tokens is not None
    assert report.tokens.first_prompt == encoder.text(first)
    assert report.tokens.first_completion == f"{first.reference}<|im_end|>"
    for line in encoder.text(first).split("\n"):
        assert f"  | {line}" in report.text()


def test_without_a_model_at_hand_the_rows_are_looked_at_all_the_same(tmp_path: Path) -> None:
    report = checked(tmp_path, rows(60))
    assert report.tokens is None
    assert "lengths in tokens need a model: --model NAME" in report.text()


def test_a_problem_is_not_taken_for_a_missing_model(tmp_path: Path) -> None:
    report = checked(tmp_path, [*rows(60), {"prompt": "", "answer": "x"}])
    assert "need a model" not in report.text()


def test_a_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"there is no model at \./none"):
        check(OwnData(train=write(tmp_path / "mine.jsonl", rows(60))), model="./none")


# --- the command -----------------------------------------------------------------------------------------------------


def test_what_is_fine_exits_0_and_says_the_same_in_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_folder: Path
) -> None:
    report = checked(tmp_path, rows(60), model=tiny_folder)
    arguments = ["check-data", tmp_path / "mine.jsonl", "--model", tiny_folder]
    done = called(capsys, *arguments)
    assert (done.code, done.out, done.err) == (0, f"{report.text()}\n", "")
    done = called(capsys, *arguments, "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == report.model_dump(mode="json")


def test_problems_exit_2_with_the_whole_report_on_stdout(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = write(tmp_path / "mine.jsonl", [*rows(60), {"prompt": "", "answer": "x"}, {"prompt": "x", "answer": ""}])
    done = called(capsys, "check-data", data)
    assert done.code == 2
    assert done.out.count("  problem: ") == 2
    assert done.err.startswith("error: 2 problems would stop a study; the first: ")
    assert done.err.count("\n") == 1
    done = called(capsys, "check-data", data, "--json")
    assert done.code == 2
    assert len(json.loads(done.out)["problems"]) == 2
    assert done.err.count("\n") == 1


def test_of_many_problems_a_person_is_told_twenty_and_a_program_all(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = write(tmp_path / "mine.jsonl", [{"prompt": "x", "answer": ""}] * 30)
    done = called(capsys, "check-data", data)
    assert done.out.count("  problem: ") == 20
    assert "and 10 more (--json names all)" in done.out
    assert len(json.loads(called(capsys, "check-data", data, "--json").out)["problems"]) == 30


def test_a_file_that_cannot_be_read_prints_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = called(capsys, "check-data", "none.csv")
    assert (done.code, done.out, done.err) == (
        2,
        "",
        f"error: there is no file none.csv in {tmp_path}; a relative path starts where finetrap is run.\n",
    )
