"""Rows of one's own become a task: what the model sees, what is taught and scored, what is cut off as test."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_rows import chat_rows, question, rows, write
from sklearn.metrics import f1_score
from support import SMALL, called, rows_in, without_chat_template, written_at
from test_data import similar_pairs

from finetrap import OwnData, Results, Study, StudyError
from finetrap.config import load_study
from finetrap.data import Encoder, load_splits, load_test
from finetrap.evaluate import most_common_answer
from finetrap.progress import Reporter
from finetrap.rows.examples import parse
from finetrap.rows.own_data import make_own_data, own_task
from finetrap.study import run
from finetrap.task import Example, Task

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tables are written."""
    monkeypatch.setenv("FINETRAP_CACHE", str(tmp_path / "cache"))


def task_of(folder: Path, values: list[dict[str, Any]], *, name: str = "mine.jsonl", **settings: Any) -> Task:
    return own_task(OwnData(train=write(folder / name, values), **settings))


def all_of(task: Task) -> list[Example]:
    return [*task.load("train"), *task.load("test")]


def first_of(folder: Path, row: dict[str, Any], *, name: str = "one.jsonl", **settings: Any) -> Example:
    """The example that a row makes."""
    (parsed,) = parse(OwnData(train=write(folder / name, [row]), **settings), "train")
    if isinstance(parsed.example, StudyError):
        raise parsed.example
    return parsed.example


# --- columns ---------------------------------------------------------------------------------------------------------


def test_by_default_the_question_is_prompt_and_the_answer_is_answer(tmp_path: Path) -> None:
    example = first_of(tmp_path, {"prompt": " Why? ", "answer": " So.\n"})
    assert (example.question, example.gold, example.reference, example.choices) == ("Why?", "So.", "So.", ())


def test_columns_can_be_called_otherwise(tmp_path: Path) -> None:
    row = {"text": "Why?", "label": "So.", "prompt": "no", "answer": "no"}
    example = first_of(tmp_path, row, prompt_field="text", answer_field="label")
    assert (example.question, example.gold) == ("Why?", "So.")


def test_the_completion_is_taught_and_the_answer_is_scored(tmp_path: Path) -> None:
    row = {"prompt": "6 times 12?", "answer": "72", "solution": "It is 60 + 12.\n#### 72"}
    example = first_of(tmp_path, row, completion_field="solution", score="number")
    assert (example.reference, example.gold) == ("It is 60 + 12.\n#### 72", "72")


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (1.0, "1"), (1.5, "1.5"), (True, "true"), (0, "0"), (False, "false"), ([1, "é"], '[1, "é"]')],
)
def test_a_value_that_is_no_text_is_written_as_one(tmp_path: Path, value: object, text: str) -> None:
    assert first_of(tmp_path, {"prompt": "x", "answer": value}).gold == text


@pytest.mark.parametrize("empty", [None, "", "  ", float("nan")])
@pytest.mark.parametrize("field", ["prompt", "answer"])
def test_an_empty_value_is_told_with_its_line(tmp_path: Path, field: str, empty: object) -> None:
    with pytest.raises(StudyError, match=f"mine.jsonl:2: '{field}' is empty"):
        task_of(tmp_path, [{"prompt": "x", "answer": "y"}, {"prompt": "x", "answer": "y", field: empty}])


def test_a_nested_answer_is_its_json(tmp_path: Path) -> None:
    answer = {"city": "Orléans", "rooms": [{"beds": 2}]}
    assert json.loads(first_of(tmp_path, {"prompt": "x", "answer": answer}, score="json").gold) == answer


def test_an_index_of_pandas_with_holes_is_read_as_the_numbers_that_it_held(tmp_path: Path) -> None:
    frame = pd.DataFrame({"prompt": ["a", "b"], "answer": [1, None]})
    good, empty = parse(OwnData(train=frame), "train")
    assert isinstance(good.example, Example)
    assert good.example.gold == "1"
    assert "'answer' is empty" in str(empty.example)


def test_half_an_emoji_is_told(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"one.jsonl:1: holds half a character \(\\ud83d\)"):
        first_of(tmp_path, {"prompt": "hi \ud83d", "answer": "y"})


# --- choices ---------------------------------------------------------------------------------------------------------

CHOICES = ["fire", "water", "a stone"]


@pytest.mark.parametrize("answer", ["water", "B", "1", 1])
def test_the_right_choice_is_named_by_text_letter_or_index(tmp_path: Path, answer: object) -> None:
    example = first_of(tmp_path, {"prompt": "Wet?", "answer": answer, "options": CHOICES}, choices_field="options")
    assert (example.choices, example.gold, example.reference) == (tuple(CHOICES), "1", "water")


def test_a_choice_s_text_counts_before_its_index(tmp_path: Path) -> None:
    row = {"prompt": "1 + 1?", "answer": 2, "options": [1, 2, 3]}
    assert first_of(tmp_path, row, choices_field="options").gold == "1"


def test_numbers_that_answer_choices_of_text_are_indices(tmp_path: Path) -> None:
    row = {"prompt": "4!?", "answer": 2, "options": ["8", "2", "24", "120"]}
    assert first_of(tmp_path, row, choices_field="options").reference == "24"


def test_a_column_names_its_choices_in_one_way(tmp_path: Path) -> None:
    values = rows(20, ["2", "0"], options=["8", "2", "24", "120"])
    golds = [
        p.example.gold
        for p in parse(OwnData(train=write(tmp_path / "a.csv", values), choices_field="options"), "train")
    ]
    # "0" is no choice's text, so that the "2" of other rows is an index too.
    assert golds == ["2", "0"] * 10


def test_half_an_emoji_in_a_system_message_is_told(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"holds half a character"):
        task_of(tmp_path, chat_rows(60, "hi \ud83d"))


def test_conversations_with_choices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="conversations have no choices"):
        task_of(tmp_path, [{**row, "options": CHOICES} for row in chat_rows(60)], choices_field="options")


@pytest.mark.parametrize(("labels", "answer"), [(["A", "B", "C"], "C"), (["1", "2", "3"], "3"), ([1, 2, 3], 3)])
def test_choices_may_be_written_as_arc_writes_them(tmp_path: Path, labels: list[object], answer: object) -> None:
    row = {"prompt": "Hard?", "choices": {"text": CHOICES, "label": labels}, "answerKey": answer}
    example = first_of(tmp_path, row, choices_field="choices", answer_field="answerKey")
    assert (example.choices, example.gold) == (tuple(CHOICES), "2")


@pytest.mark.parametrize("value", [CHOICES, {"text": CHOICES, "label": ["A", "B", "C"]}])
def test_choices_in_a_csv_are_json(tmp_path: Path, value: object) -> None:
    row = {"prompt": "Wet?", "answer": "B", "options": value}
    assert first_of(tmp_path, row, name="one.csv", choices_field="options").choices == tuple(CHOICES)


def test_a_task_with_choices_is_multiple_choice_prompted_plainly(tmp_path: Path, tiny_tokenizer: Any) -> None:
    task = task_of(tmp_path, rows(60, ["B"], options=CHOICES), choices_field="options", system="Think.")
    assert task.kind == "choice"
    text = Encoder(tiny_tokenizer, task, chat=True).text(Example("x", "Wet?", "water", "1", tuple(CHOICES)))
    assert text == "Think.\n\nQuestion: Wet?\nAnswer:"


def test_the_blind_prompt_of_choices_is_what_follows_the_question(tmp_path: Path) -> None:
    settings = {"choices_field": "options", "prompt_template": "Q: {prompt}\nPick: "}
    assert task_of(tmp_path, rows(60, ["B"], options=CHOICES), **settings).blind_prompt == "Pick:"


@pytest.mark.parametrize("vain", [{"score": "number"}, {"completion_field": "x"}, {"max_new_tokens": 8}])
def test_what_choices_would_not_use_is_refused(vain: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match=f"leave {next(iter(vain))} out"):
        OwnData(train="x.csv", choices_field="options", **vain)


# --- conversations ---------------------------------------------------------------------------------------------------


def test_a_conversation_is_asked_its_last_question_and_taught_the_last_answer(tmp_path: Path) -> None:
    example = first_of(tmp_path, chat_rows(1)[0])
    assert (example.question, example.reference, example.gold) == (question(0), "red", "red")
    assert [turn.content for turn in example.turns] == ["hello", "yes?"]


def test_a_conversation_s_answer_to_score_may_stand_in_a_column(tmp_path: Path) -> None:
    example = first_of(tmp_path, {**chat_rows(1)[0], "gold": "RED"}, answer_field="gold")
    assert (example.reference, example.gold) == ("red", "RED")


def test_conversations_may_stand_in_another_column(tmp_path: Path) -> None:
    row = {"talk": chat_rows(1)[0]["messages"]}
    assert first_of(tmp_path, row, prompt_field="talk").question == question(0)


def templated(tokenizer: Any, turns: list[tuple[str, str]]) -> str:
    said = [{"role": role, "content": content} for role, content in turns]
    return str(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))


def test_the_model_sees_all_turns_and_the_system_message_of_the_task(tmp_path: Path, tiny_tokenizer: Any) -> None:
    task = task_of(tmp_path, chat_rows(60), system="Be brief.")
    example = next(e for e in all_of(task) if e.question == question(0))
    turns = [("system", "Be brief."), ("user", "hello"), ("assistant", "yes?"), ("user", question(0))]
    assert Encoder(tiny_tokenizer, task, chat=True).text(example) == templated(tiny_tokenizer, turns)


def test_a_conversation_s_own_system_message_comes_before_the_task_s(tmp_path: Path, tiny_tokenizer: Any) -> None:
    task = task_of(tmp_path, chat_rows(60, system="Be kind."), system="Be brief.")
    text = Encoder(tiny_tokenizer, task, chat=True).text(task.load("train")[0])
    assert (text.count("Be kind."), text.count("Be brief."), text.count("system")) == (1, 0, 1)


def test_shots_of_conversations_are_their_turns_and_answers(tmp_path: Path, tiny_tokenizer: Any) -> None:
    task = task_of(tmp_path, chat_rows(60, system="Be kind."))
    shot, example = task.load("train")[:2]
    turns = [("system", "Be kind."), ("user", "hello"), ("assistant", "yes?"), ("user", shot.question)]
    turns += [("assistant", shot.reference), ("user", "hello"), ("assistant", "yes?"), ("user", example.question)]
    assert Encoder(tiny_tokenizer, task, chat=True).text(example, [shot]) == templated(tiny_tokenizer, turns)


def test_without_a_template_a_conversation_is_a_script(tmp_path: Path, tiny_tokenizer: Any) -> None:
    example = first_of(tmp_path, chat_rows(1)[0])
    text = Encoder(tiny_tokenizer, task_of(tmp_path, chat_rows(60)), chat=False).text(example)
    assert text == f"User: hello\nAssistant: yes?\nUser: {question(0)}\nAssistant:"


def test_without_a_template_too_a_conversation_has_one_system_message(tmp_path: Path, tiny_tokenizer: Any) -> None:
    task = task_of(tmp_path, chat_rows(60, system="Be kind."), system="Be brief.")
    text = Encoder(tiny_tokenizer, task, chat=False).text(task.load("train")[0])
    assert text.startswith("System: Be kind.\nUser: hello\n")
    assert "Be brief." not in text


def test_a_plain_answer_stops_where_the_model_would_go_on_by_itself(tmp_path: Path) -> None:
    assert task_of(tmp_path, rows(60)).stops == ("\n\n", "\nUser:")
    assert task_of(tmp_path, rows(60, ["a\n\nb"]), name="long.jsonl").stops == ("\nUser:",)


def test_conversations_that_end_in_the_same_question_are_not_duplicates(tmp_path: Path) -> None:
    values = chat_rows(60)
    for index, row in enumerate(values):
        row["messages"][0] = {"role": "user", "content": question(100 + index)}
        row["messages"][2] = {"role": "user", "content": "Go on."}
    splits = load_splits(task_of(tmp_path, values))
    assert splits.dropped == ()
    assert len({example.question for example in splits.train}) == 1


# --- the prompt ------------------------------------------------------------------------------------------------------


def test_the_template_and_the_system_message_reach_the_model(tmp_path: Path, tiny_tokenizer: Any) -> None:
    task = task_of(tmp_path, rows(60), prompt_template="Sort: {prompt}\nColour?", system="You sort.")
    example = task.load("train")[0]
    asked = f"Sort: {example.question}\nColour?"
    chat = Encoder(tiny_tokenizer, task, chat=True).text(example)
    assert chat == templated(tiny_tokenizer, [("system", "You sort."), ("user", asked)])
    assert Encoder(tiny_tokenizer, task, chat=False).text(example) == f"You sort.\n\n{asked}\nAnswer:"


def test_braces_and_format_signs_of_a_question_stay_as_they_are(tmp_path: Path) -> None:
    task = task_of(tmp_path, rows(60), prompt_template="{x} {prompt} %d")
    assert task.prompt("{prompt} %s {0}") == "{x} {prompt} %s {0} %d"


@pytest.mark.parametrize(
    ("score", "answers", "asks"),
    [
        ("exact", ["red"], "Give the answer and nothing else."),
        ("number", ["1", "2"], "Give the number and nothing else."),
        ("label", ["red", "blue"], "Give one of these labels (blue, red) and nothing else."),
        ("json", ['{"a": 1, "b": 2}', '{"c": 1}'], "Give a JSON object (a, b, c) and nothing else."),
        ("contains", ["red"], None),
        ("regex:(.*)", ["red"], None),
    ],
)
def test_by_default_the_prompt_states_the_form_of_the_answer(
    tmp_path: Path, score: str, answers: list[str], asks: str | None
) -> None:
    task = task_of(tmp_path, rows(60, answers), score=score)
    assert task.prompt("Why?") == (f"Why?\n{asks}" if asks else "Why?")


def test_where_a_solution_is_taught_the_prompt_asks_for_nothing_else(tmp_path: Path) -> None:
    task = task_of(tmp_path, rows(60, ["1"], why="so 1"), completion_field="why", score="number")
    assert task.prompt("Why?") == "Why?"


@pytest.mark.parametrize(("why", "states"), [("so it is 1", False), ("so it is\n#### 1", True), (None, True)])
def test_the_strict_rule_counts_where_the_references_follow_it(tmp_path: Path, why: str | None, states: bool) -> None:
    settings = {"completion_field": "why"} if why else {}
    task = task_of(tmp_path, rows(60, ["1"], why=why or "-"), score="number", **settings)
    assert task.states_format == states


def test_turns_in_the_prompt_s_column_are_a_conversation(tmp_path: Path) -> None:
    values = [{"prompt": row["messages"]} for row in chat_rows(60)]
    assert all(example.turns for example in all_of(task_of(tmp_path, values)))


@pytest.mark.parametrize(
    "values",
    [
        chat_rows(150, "You are a helpful assistant of a shop that sells lamps. " * 5),
        [
            {
                "prompt": f"Below is an instruction. Write a response that completes it well.\n{question(i)}",
                "answer": "a",
            }
            for i in range(150)
        ],
        [{"prompt": f"What is {i} plus {7 * i}?", "answer": str(8 * i)} for i in range(150)],
        [
            {"prompt": "Which of these is true?", "answer": "A", "options": [question(i), question(-i - 1)]}
            for i in range(150)
        ],
    ],
    ids=["system_message", "instructions", "arithmetic", "common_stem"],
)
def test_what_all_rows_share_does_not_make_them_alike(tmp_path: Path, values: list[dict[str, Any]]) -> None:
    settings = {"choices_field": "options"} if "options" in values[0] else {}
    splits = load_splits(task := task_of(tmp_path, values, **settings))
    assert 15 <= len(load_test(task).examples) <= 50
    assert 5 <= len(splits.validation) <= 30
    assert not splits.dropped


def test_a_new_line_of_a_shell_is_one(tmp_path: Path) -> None:
    assert make_own_data({"train": "x.csv", "prompt_template": r"a\n{prompt}"}).prompt_template == "a\n{prompt}"


# --- the limit of an answer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("longest", "tokens"), [(1, 32), (64, 32), (200, 100), (5000, 512)])
def test_an_answer_may_take_twice_the_tokens_of_the_longest(tmp_path: Path, longest: int, tokens: int) -> None:
    assert task_of(tmp_path, rows(60, ["x" * longest, "y"])).max_new_tokens == tokens


def test_the_limit_of_an_answer_can_be_set(tmp_path: Path) -> None:
    assert task_of(tmp_path, rows(60, ["x" * 300]), max_new_tokens=7).max_new_tokens == 7


# --- the test set ----------------------------------------------------------------------------------------------------


def test_without_a_test_set_about_a_fifth_is_cut_from_train(tmp_path: Path) -> None:
    task = task_of(tmp_path, rows(1000))
    assert task.carved
    assert 0.16 < len(task.load("test")) / 1000 < 0.24
    assert len(task.load("train")) + len(task.load("test")) == 1000


def test_ids_are_unique_and_a_renamed_file_keeps_its_test_set(tmp_path: Path) -> None:
    one, other = (task_of(tmp_path, rows(100), name=f"{name}.jsonl") for name in ("one", "other"))
    assert len({example.id for example in all_of(one)}) == 100
    assert one.load("test") == other.load("test")


def test_rows_that_are_added_move_no_other_from_one_side_to_the_other(tmp_path: Path) -> None:
    fewer = {example.id for example in task_of(tmp_path, rows(100), name="a.jsonl").load("test")}
    more = {example.id for example in task_of(tmp_path, rows(120), name="b.jsonl").load("test")}
    assert fewer == {id for id in more if int(id.rpartition("-")[2]) < 100}


@pytest.mark.parametrize("kind", ["ndjson", "json", "csv", "tsv", "parquet", "TSV"])
def test_the_kind_of_file_decides_nothing(tmp_path: Path, kind: str) -> None:
    lines = task_of(tmp_path, rows(60))
    path = Path(write(tmp_path / f"mine.{kind.lower()}", rows(60)))
    other = own_task(OwnData(train=str(path.rename(tmp_path / f"mine.{kind}"))))
    assert (other.name, other.version) == (lines.name, lines.version)
    for split in ("train", "test"):
        assert other.load(split) == lines.load(split)


def test_a_table_of_pandas_makes_the_same_rows(tmp_path: Path) -> None:
    assert own_task(OwnData(train=pd.DataFrame(rows(60)))).load("test") == task_of(tmp_path, rows(60)).load("test")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), min_size=80, max_size=120))
def test_near_duplicates_never_stand_on_both_sides(tmp_path: Path, made: list[tuple[int, int]]) -> None:
    values = [{"prompt": f"{question(base)} {question(base)} {number}", "answer": "x"} for base, number in made]
    try:
        task = task_of(tmp_path, values)
    except StudyError as error:
        assert "near-duplicates stay together" in str(error)  # noqa: PT017  # few groups may all fall on one side
        return
    assert similar_pairs(task.load("test"), task.load("train")) == []


def test_a_test_set_of_its_own_is_used_whole(tmp_path: Path) -> None:
    test = write(tmp_path / "held.csv", rows(12))
    task = task_of(tmp_path, rows(60)[12:], test=test)
    assert not task.carved
    assert [example.question for example in task.load("test")] == [question(i) for i in range(12)]
    assert len(task.load("train")) == 48


def test_ids_of_train_and_test_differ(tmp_path: Path) -> None:
    task = task_of(tmp_path, rows(60), test=write(tmp_path / "held.csv", rows(12)))
    assert len({example.id for example in all_of(task)}) == 72


# --- names and versions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "name"),
    [
        ("tickets.csv", "tickets"),
        ("/a:b/tickets v2.jsonl", "tickets-v2"),
        ("someone/word-problems:main", "word-problems"),
        ("gsm8k.csv", "gsm8k-data"),
    ],
)
def test_a_task_is_called_as_its_file(train: str, name: str) -> None:
    assert OwnData(train=train).task_name == name


def test_a_name_can_be_given_and_never_is_one_of_finetrap_s() -> None:
    assert OwnData(train="x.csv", name="mine").task_name == "mine"
    assert OwnData(train="x.csv", name="gsm8k").task_name == "gsm8k-data"


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_template": "{prompt}"},
        {"system": "Be brief."},
        {"score": "label"},
        {"score": "contains"},
        {"max_new_tokens": 9},
        {"completion_field": "answer"},
        {"prompt_field": "prompt"},
    ],
)
def test_a_setting_that_can_move_a_number_changes_the_version(tmp_path: Path, change: dict[str, Any]) -> None:
    assert task_of(tmp_path, rows(60), **change).version != task_of(tmp_path, rows(60)).version


def test_neither_the_file_s_name_nor_the_task_s_changes_the_version(tmp_path: Path) -> None:
    version = task_of(tmp_path, rows(60)).version
    assert task_of(tmp_path, rows(60), name="other.csv").version == version
    assert own_task(OwnData(train=str(tmp_path / "mine.jsonl"), name="x")).version == version


@pytest.mark.parametrize(
    ("score", "answer"), [("label", "green"), ("json", '{"b": 1}')], ids=["a label", "a field of JSON"]
)
def test_a_row_that_changes_every_prompt_changes_the_version(tmp_path: Path, score: str, answer: str) -> None:
    values = rows(60, ['{"a": 1}'] if score == "json" else ["red", "blue"])
    changed = [*values, {"prompt": question(99), "answer": answer}]
    before, after = (task_of(tmp_path, r, score=score, name=f"{len(r)}.jsonl") for r in (values, changed))
    assert before.prompt("x") != after.prompt("x")
    assert before.version != after.version


def test_a_file_that_changes_is_read_anew_and_one_that_does_not_is_read_once(tmp_path: Path) -> None:
    task = task_of(tmp_path, rows(60))
    assert own_task(OwnData(train=str(tmp_path / "mine.jsonl"))) is task
    assert len(all_of(task_of(tmp_path, rows(61)))) == 61


# --- the trivial arm -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "answers", "why"),
    [
        ("exact", ["Red!", "Red!", "blue"], None),
        ("exact", ["Red!", "Red!", "blue"], "Since it is dark: Red!"),
        ("contains", ["Red", "Red", "blue"], None),
        ("number", ["$1,000", "$1,000", "2"], None),
        ("number", ["1000", "1000", "2"], "500 and 500.\n#### 1000"),
        ("label", ["not red", "not red", "red"], None),
        ("json", ['{"a": 1}', '{"a": 1}', '{"a": 2}'], None),
        ("json", [{"a": 1}, {"a": 1}, {"a": 2}], None),
        ("regex:is (.*)", ["red", "red", "blue"], "it is red"),
    ],
)
def test_the_trivial_answer_is_right_wherever_the_most_common_gold_is(
    tmp_path: Path, score: str, answers: list[Any], why: str | None
) -> None:
    more = {} if why is None else {"why": why}
    task = task_of(tmp_path, rows(60, answers, **more), score=score, completion_field="why" if why else None)
    assert task.score is not None
    common = most_common_answer(load_splits(task).carved)
    output = task.answer_format(common)
    for example in load_test(task).examples:
        assert task.score(output, example.gold).correct == (example.gold == common)


# --- whole studies ---------------------------------------------------------------------------------------------------

FIELDS = ['{"colour": "red", "size": 1}', '{"colour": "blue", "size": 1}', '{"colour": "red", "size": 1}']
KINDS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "label": (rows(100), {"score": "label", "max_new_tokens": 4}),
    "json": (rows(100, FIELDS), {"score": "json", "max_new_tokens": 4}),
    "choice": (rows(100, ["water", "fire"], options=CHOICES), {"choices_field": "options"}),
    "chat": (chat_rows(100), {"score": "contains", "max_new_tokens": 4}),
}


class Ran(NamedTuple):
    """A study that ran; its data file has gone since."""

    kind: str
    folder: Path
    data: Path
    results: Results


def study_of(model: Path, data: OwnData, **settings: Any) -> Study:
    return Study(models=model, **{**SMALL, "tasks": [data], "arms": ["full:epochs=2"], "retention": [], **settings})


@pytest.fixture(scope="module", params=KINDS)
def ran(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    values, settings = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    data = Path(write(folder / "mine.jsonl", values))
    results = study_of(tiny_folder, OwnData(train=data, **settings)).run(folder / "out")
    data.unlink()
    return Ran(request.param, folder / "out", data, results)


def test_every_arm_of_own_data_is_done(ran: Ran) -> None:
    assert [arm.arm for arm in ran.results.arms] == ["constant", "zero_shot", "full"]
    assert ran.results.failures == ()
    assert {arm.n_test for arm in ran.results.arms} == {10}


@pytest.mark.parametrize("ran", ["label", "json", "chat"], indirect=True)
def test_the_trivial_arm_of_own_data_always_gives_the_most_common_answer(ran: Ran) -> None:
    (found,) = (found for name, found in rows_in(ran.folder).items() if "--constant--" in name)
    (output,) = {str(row["output"]) for row in found}
    right = sum(row["gold"] == output for row in found)
    assert 0 < right < len(found)
    assert ran.results.arms[0].accuracy == right / len(found)


def test_results_say_by_which_rule_and_by_class_or_field_where_there_are_any(ran: Ran) -> None:
    written = json.loads((ran.folder / "results.json").read_text())
    for arm in written["arms"]:
        assert arm["rule"] != ""
        assert (arm["macro_f1"] is not None) == (ran.kind == "label")
        assert set(arm["fields"]) == ({"colour", "size"} if ran.kind == "json" else set())


@pytest.mark.parametrize("ran", ["label"], indirect=True)
def test_macro_f1_is_that_of_scikit_learn(ran: Ran) -> None:
    by_arm = {name.split("--")[2]: found for name, found in rows_in(ran.folder).items()}
    for arm in ran.results.arms:
        gold = [str(row["gold"]) for row in by_arm[arm.arm]]
        said = [str(row.get("extracted") or "") for row in by_arm[arm.arm]]
        labels = sorted({*gold, *said} - {""})
        assert arm.macro_f1 == pytest.approx(f1_score(gold, said, labels=labels, average="macro", zero_division=0))


@pytest.mark.parametrize("ran", ["json"], indirect=True)
def test_a_field_s_share_is_that_of_the_items_in_which_it_matches(ran: Ran) -> None:
    constant = next(arm for arm in ran.results.arms if arm.arm == "constant")
    (found,) = (found for name, found in rows_in(ran.folder).items() if "--constant--" in name)
    red = sum(json.loads(str(row["gold"]))["colour"] == "red" for row in found) / len(found)
    assert constant.fields == {"colour": pytest.approx(red), "size": 1.0}


def test_the_report_can_be_made_again_when_the_data_have_gone(
    ran: Ran, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    copied = shutil.copytree(ran.folder, tmp_path / "out")
    (copied / "results.json").unlink()
    done = called(capsys, "report", copied)
    assert (done.code, done.err) == (0, "")
    assert json.loads((copied / "results.json").read_text())["arms"] == json.loads(ran.results.to_json())["arms"]


def test_a_test_set_that_was_cut_is_said_to_be(ran: Ran) -> None:
    assert any("no test set was given" in warning for warning in ran.results.warnings)


def test_raising_the_limit_of_test_reuses_the_weights(tiny_folder: Path, tmp_path: Path) -> None:
    data = OwnData(train=write(tmp_path / "mine.csv", rows(100)), score="label", max_new_tokens=4)
    study_of(tiny_folder, data, keep="all").run(tmp_path / "out")
    before = written_at(tmp_path / "out", "training.json")
    results = study_of(tiny_folder, data, keep="all", limit_test=14).run(tmp_path / "out")
    assert {arm.n_test for arm in results.arms} == {14}
    assert written_at(tmp_path / "out", "training.json") == before


def test_train_rows_that_stand_in_test_are_left_out_and_told(tiny_folder: Path, tmp_path: Path) -> None:
    test = write(tmp_path / "test.csv", rows(12))
    data = OwnData(train=write(tmp_path / "train.csv", rows(60)), test=test, max_new_tokens=4)
    study = study_of(tiny_folder, data)
    results = study.run(tmp_path / "out")
    assert any("12 train rows stand in test; they were left out" in warning for warning in results.warnings)
    kept = {example.question for example in load_splits(study.task("train")).carved}
    assert kept.isdisjoint(question(i) for i in range(12))


def test_a_model_without_a_template_is_asked_conversations_plainly(tiny_folder: Path, tmp_path: Path) -> None:
    model = without_chat_template(tiny_folder, tmp_path / "base")
    data = OwnData(train=write(tmp_path / "talk.jsonl", chat_rows(100)), system="Be brief.", max_new_tokens=4)
    assert study_of(model, data, arms=["few_shot"]).run(tmp_path / "out").failures == ()


def test_data_that_change_while_a_study_runs_fail_the_trial(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    study = study_of(tiny_folder, OwnData(train=write(path, rows(100)), max_new_tokens=4))

    class Changing(Reporter):
        """Writes the file anew as soon as the first trial begins."""

        def say(self, text: str) -> None:
            write(path, rows(100, ["green"]))

    results = run(study, tmp_path / "out", reporter=Changing())
    assert results.arms == ()
    assert "the data of 'mine' changed while the study ran" in results.failures[0].error


def test_data_stand_in_a_study_file_as_the_user_names_them(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "mine.csv", rows(60))
    (tmp_path / "study.yaml").write_text(
        f"models: {tiny_folder}\ntasks:\n  - train: mine.csv\n    score: label\n  - arc_easy\n"
    )
    monkeypatch.chdir(tmp_path)
    study = load_study(Path("study.yaml"))
    assert study.task_names == ("mine", "arc_easy")
    assert study.model_dump(mode="json", exclude_defaults=True)["tasks"][0] == {"train": "mine.csv", "score": "label"}
    assert study.task("mine").classes == ("blue", "red")
