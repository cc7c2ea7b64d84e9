"""Whatever is wrong with data of one's own: exit code 2, one line that says what, where and how to mend it."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from own_rows import chat_rows, rows, write
from support import Place, called, cases, check, contents, error_of

Arguments = Callable[[Place], list[object]]


def of(name: str, content: str | bytes | list[dict[str, object]], *arguments: object) -> Arguments:
    """`finetrap compare` of a file with this content."""

    def make(place: Place) -> list[object]:
        path = place.folder / name
        if isinstance(content, list):
            write(path, content)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return place.own(name, *arguments)

    return make


def with_row(row: dict[str, object], *arguments: object, count: int = 60, **more: object) -> Arguments:
    """A file of good rows, and this one after them, in line 61."""
    return of("mine.jsonl", [*rows(count, **more), {**rows(1, **more)[0], **row}], *arguments)


def with_turns(turns: object) -> Arguments:
    return of("mine.jsonl", [*chat_rows(60), {"messages": turns}])


def said(*turns: tuple[str, object]) -> list[dict[str, object]]:
    return [{"role": role, "content": content} for role, content in turns]


def a_folder(place: Place) -> list[object]:
    (place.folder / "data").mkdir()
    (place.folder / "data" / "notes.md").write_text("mine")
    return place.own("data")


def a_folder_named_as_a_file(place: Place) -> list[object]:
    (place.folder / "mine.jsonl").mkdir()
    return place.own("mine.jsonl")


def train_as_test(place: Place) -> list[object]:
    write(place.folder / "mine.csv", rows(60))
    return place.own("mine.csv", "--test", "mine.csv")


def a_small_test_set(place: Place) -> list[object]:
    write(place.folder / "test.csv", rows(9))
    write(place.folder / "mine.csv", rows(60)[9:])
    return place.own("mine.csv", "--test", "test.csv")


def a_long_question(place: Place) -> list[object]:
    write(place.folder / "test.csv", [*rows(9), {"prompt": "long " * 1000, "answer": "red"}])
    write(place.folder / "mine.csv", rows(60)[9:])
    return place.own("mine.csv", "--test", "test.csv")


def no_data_folder(place: Place) -> list[object]:
    write(place.folder / "mine.csv", rows(60))
    return place.own("mine.csv", "--data-dir", "none")


def a_system_message_refused(place: Place) -> list[object]:
    write(place.folder / "mine.csv", rows(60))
    shutil.copytree(place.model, place.folder / "model")
    (place.folder / "model" / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "{{ m.content }}<|im_end|>{% endfor %}"
    )
    return ["compare", "--model", "model", "--train", "mine.csv", "--system", "Be brief."]


def truncated_parquet(place: Place) -> list[object]:
    whole = Path(write(place.folder / "mine.parquet", rows(60)))
    whole.write_bytes(whole.read_bytes()[:-20])
    return place.own("mine.parquet")


@cases(
    ("not there", lambda p: p.own("none.csv"), "there is no file none.csv in /"),
    ("a whole path not there", lambda p: p.own("/no/such.csv"), "there is no file /no/such.csv.\n"),
    ("neither file nor data set", lambda p: p.own("none"), "there is no file or folder none in /"),
    ("unknown ending", of("mine.txt", "prompt"), "mine.txt has no ending that says what it is; give one of .jsonl"),
    ("a folder that is no data set", a_folder, "data' has no split 'train' that can be read in "),
    ("a folder named as a file", a_folder_named_as_a_file, "mine.jsonl' has no split 'train' that can be read in "),
    ("not on the Hub", lambda p: p.own("nobody/nothing"), "has no split 'train' that can be read on the Hub"),
    ("empty", of("mine.jsonl", ""), "mine.jsonl is empty; give a file with one example a row."),
    ("empty CSV", of("mine.csv", ""), "mine.csv is empty"),
    ("header only", of("mine.csv", "prompt,answer\n"), "mine.csv is empty"),
    ("empty list", of("mine.json", "[]"), "mine.json is empty"),
    ("empty parquet", of("mine.parquet", b""), "mine.parquet is no Parquet file"),
    ("truncated parquet", truncated_parquet, "mine.parquet is no Parquet file"),
    ("binary", of("mine.jsonl", b"\x80\x02\x00\x00"), "is not text, though it is named .jsonl"),
    ("a picture", of("mine.csv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), "is not text, though it is named .csv"),
    ("UTF-16", of("mine.csv", "prompt,answer\na,b".encode("utf-16")), "save UTF-16 as UTF-8"),
    ("not UTF-8", of("mine.csv", b"prompt,answer\na,b\nc,\xe9\n"), "mine.csv:3: byte 0xe9 is not UTF-8"),
    ("broken JSON", of("mine.jsonl", '{"prompt": "a"}\n\n{"prompt": \n'), "mine.jsonl:3: not JSON"),
    ("a line no object", of("mine.jsonl", '{"prompt": "a"}\n["a"]\n'), "mine.jsonl:2: expected an object"),
    ("a JSON list of text", of("mine.json", '["a"]'), "mine.json, row 1: expected an object"),
    ("ragged", of("mine.csv", "prompt,answer\na,b\na,b,c\n"), "mine.csv:3: 3 values, and the header names 2 columns"),
    ("two columns of a name", of("mine.csv", "prompt,prompt\na,b\n"), "mine.csv:1: two columns have the same name"),
    ("quote left open", of("mine.csv", 'prompt,answer\n"a,b\n'), "mine.csv:2: not CSV"),
    ("semicolons", of("mine.csv", "prompt;answer\na, b;c\n"), "mine.csv:1: its columns are separated by ';'"),
    ("tabs", of("mine.csv", "prompt\tanswer\na\tc\n"), "mine.csv:1: its columns are separated by '\\t'"),
    ("no such data folder", no_data_folder, "there is no folder none (--data-dir)"),
)
def test_a_file_that_cannot_be_read_is_told(
    capsys: pytest.CaptureFixture[str], place: Place, arguments: Arguments, says: str
) -> None:
    one_line(capsys, place, arguments, says)


def one_line(capsys: pytest.CaptureFixture[str], place: Place, arguments: Arguments, says: str) -> None:
    assert says in error_of(check(capsys, place, arguments(place)))


TWO = ["fire", "water"]


@cases(
    ("no prompt", of("mine.csv", "text,answer\na,b\n"), "has no column 'prompt'; it has 'text', 'answer'. Name the"),
    ("other case", of("mine.csv", "Prompt,Answer\na,b\n"), "did you mean --prompt-field Prompt?"),
    ("a slip", of("mine.csv", rows(60), "--answer-field", "anser"), "did you mean --answer-field answer?"),
    ("a column in two words", of("mine.csv", "prompt 1,answer\na,b\n"), "did you mean --prompt-field 'prompt 1'?"),
    (
        "ShareGPT",
        of("mine.jsonl", [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]),
        "rename the column to messages, and in each turn 'from' to 'role'",
    ),
    (
        "turns in another column",
        of("mine.jsonl", [{"conversations": said(("user", "a"), ("assistant", "b"))}]),
        "These are conversations: --prompt-field conversations.",
    ),
    (
        "Alpaca",
        of("mine.csv", "instruction,input,output\na,,b\n"),
        "Use --prompt-field instruction --answer-field output; where 'input' is filled, join it to the instruction",
    ),
    ("no named column", of("mine.csv", rows(60), "--answer-field", "label"), "has no column 'label'"),
    ("no choices", of("mine.csv", rows(60), "--choices-field", "options"), "Name the right one with --choices-field"),
    ("no completion", of("mine.csv", rows(60), "--completion-field", "why"), "one with --completion-field"),
    ("empty answer", of("mine.csv", "prompt,answer\na,b\na,\n"), "mine.csv:3: 'answer' is empty; fill it in or leave"),
    ("empty prompt", with_row({"prompt": " "}), "mine.jsonl:61: 'prompt' is empty"),
    ("column left out", of("mine.jsonl", [*rows(60), {"prompt": "a"}]), "mine.jsonl:61: 'answer' is empty"),
    (
        "mixed types",
        with_row({"answer": 3}),
        "mine.jsonl:61: 'answer' is a number here ('3') and text in mine.jsonl:1",
    ),
    ("a true among numbers", with_row({"answer": True}, answers=[1, 2]), "is true or false here"),
    ("half a character", with_row({"prompt": "hi \ud83d"}), "mine.jsonl:61: holds half a character"),
    ("prompt too long", a_long_question, "can read 2048"),
    ("turns not a list", with_turns("hello"), "mine.jsonl:61: 'messages' is text here"),
    ("no turns", with_turns([]), "mine.jsonl:61: 'messages' has to be a list of turns"),
    ("turns of text", with_turns(["hello"]), "mine.jsonl:61: each turn needs a role"),
    ("no assistant", with_turns(said(("user", "a"))), "does not end with the assistant's turn"),
    ("assistant says nothing", with_turns(said(("user", "a"), ("assistant", " "))), "does not end with the assistant"),
    ("nobody asks", with_turns(said(("system", "a"), ("assistant", "b"))), "does not follow one of the user"),
    ("wrong role", with_turns(said(("human", "a"), ("assistant", "b"))), "needs a role (system, user or assistant)"),
    ("content no text", with_turns(said(("user", ["a"]), ("assistant", "b"))), "a content of text"),
    (
        "answer not among choices",
        with_row({"answer": "ice"}, "--choices-field", "options", answers=["fire"], options=TWO),
        "mine.jsonl:61: the answer 'ice' is not among its choices; give the choice's text, its letter",
    ),
    (
        "one choice",
        with_row({"options": ["fire"]}, "--choices-field", "options", answers=["fire"], options=TWO),
        "mine.jsonl:61: 'options' has to be a list of at least two answers",
    ),
    (
        "duplicate choices",
        with_row({"options": ["fire", "fire "]}, "--choices-field", "options", answers=["fire"], options=TWO),
        "mine.jsonl:61: two of its choices are the same",
    ),
    (
        "choices no list",
        of("mine.csv", rows(60, options="fire or water"), "--choices-field", "options"),
        "mine.csv:2: 'options' has to be a list of at least two answers",
    ),
    (
        "more labels than choices",
        with_row(
            {"options": {"text": TWO, "label": ["A", "B", "C"]}, "answer": "C"},
            "--choices-field",
            "options",
            answers=["A"],
            options={"text": TWO, "label": ["A", "B"]},
        ),
        "mine.jsonl:61: 'options' has 2 answers and 3 labels",
    ),
    ("number of text", of("mine.csv", rows(60), "--score", "number"), "mine.csv:2: the answer 'red' is not a number"),
    ("JSON of text", of("mine.csv", rows(60), "--score", "json"), "mine.csv:2: the answer 'red' is not a JSON object"),
    (
        "200 labels",
        of("mine.csv", rows(200, [f"l{i}" for i in range(200)]), "--score", "label"),
        "there are 200 different answers, and --score label is for 100 at most",
    ),
    (
        "labels alike",
        with_row({"answer": "Red"}, "--score", "label"),
        "mine.jsonl:61: the labels 'Red' and 'red' differ in case or marks only",
    ),
    ("train as test", train_as_test, "every question of train stands in test; nothing is left to train on"),
    ("too few rows", of("mine.csv", rows(5)), "mine.csv has 5 rows, and where near-duplicates stay together"),
    (
        "rows all alike",
        of("mine.csv", [{"prompt": "What is 1 plus 1?", "answer": 2} for _ in range(200)]),
        "where near-duplicates stay together",
    ),
    ("too few test rows", a_small_test_set, "test.csv has 9 rows: fewer than 10 test items cannot show anything"),
    (
        "system message refused",
        a_system_message_refused,
        "no system here. Its turns are system, user; leave",
    ),
)
def test_rows_that_cannot_be_used_are_told(
    capsys: pytest.CaptureFixture[str], place: Place, arguments: Arguments, says: str
) -> None:
    one_line(capsys, place, arguments, says)


def good(*arguments: object) -> Arguments:
    return of("mine.csv", rows(60), *arguments)


def in_yaml(data: str) -> Arguments:
    """`finetrap run` of a study file whose lines from the fourth on are these."""

    def make(place: Place) -> list[object]:
        write(place.folder / "mine.csv", rows(60))
        (place.folder / "study.yaml").write_text(f"models: {place.model}\nlimit_test: 10\ntasks:\n{data}")
        return ["run", "study.yaml"]

    return make


@cases(
    ("score misspelt", good("--score", "labl"), "unknown scorer 'labl'; did you mean 'label'?"),
    ("regex without pattern", good("--score", "regex"), "scorer 'regex': write regex:PATTERN"),
    ("regex broken", good("--score", "regex:("), "is not a regular expression"),
    ("argument in vain", good("--score", "label:x"), "scorer 'label:x': write label alone"),
    ("template without prompt", good("--prompt-template", "Sort it."), "does not say where the question goes; write {"),
    ("task and train", good("--task", "gsm8k"), "--task gsm8k brings its own data; leave out --train"),
    (
        "task and field",
        lambda p: p.compare("--prompt-field", "text"),
        "--task arc_easy brings its own data; leave out --prompt-field",
    ),
    (
        "neither",
        lambda p: ["compare", "--model", p.model],
        "name a task (--task, one of `finetrap tasks`) or",
    ),
    (
        "test without train",
        lambda p: ["compare", "--model", p.model, "--test", "x.csv"],
        "give rows of your own (--train FILE)",
    ),
    ("score and choices", good("--choices-field", "options", "--score", "number"), "leave score out"),
    ("unknown key", in_yaml("  - train: mine.csv\n    scor: label\n"), "study.yaml:5: unknown setting 'tasks.0.scor'"),
    (
        "key of the wrong type",
        in_yaml("  - train: mine.csv\n    max_new_tokens: 0\n"),
        "study.yaml:5: 'tasks.0.max_",
    ),
    ("score misspelt in a file", in_yaml("  - train: mine.csv\n    score: lable\n"), "study.yaml:5: unknown scorer"),
    (
        "regex broken in a file",
        in_yaml("  - train: mine.csv\n    score: 'regex:('\n"),
        "study.yaml:5: scorer 'regex:('",
    ),
    (
        "template without prompt in a file",
        in_yaml("  - train: mine.csv\n    prompt_template: Sort it.\n"),
        "study.yaml:5: the prompt template 'Sort it.' does not say",
    ),
    ("no train", in_yaml("  - score: label\n"), "study.yaml:4: 'tasks.0.train' is missing"),
    ("a name with a slash", in_yaml("  - train: mine.csv\n    name: a/b\n"), "study.yaml:5: 'tasks.0.name'"),
    (
        "two of a name",
        in_yaml("  - train: mine.csv\n  - train: mine.csv\n"),
        "study.yaml:5: the task 'mine' is named twice; give one a `name:`",
    ),
    ("a plugin", in_yaml("  - arc_easy\nplugin: mine.py\n"), "study.yaml:5: unknown setting 'plugin'"),
    (
        "a plugin for data",
        in_yaml("  - train: mine.csv\n    plugin: mine.py\n"),
        "study.yaml:5: unknown setting 'tasks.0.plugin'",
    ),
)
def test_settings_of_data_that_cannot_be_are_told(
    capsys: pytest.CaptureFixture[str], place: Place, arguments: Arguments, says: str
) -> None:
    one_line(capsys, place, arguments, says)


def test_an_answer_of_no_tokens_is_refused_by_the_command_line(
    capsys: pytest.CaptureFixture[str], place: Place
) -> None:
    assert "--max-new-tokens" in check(capsys, place, good("--max-new-tokens", 0)(place)).err


@pytest.mark.parametrize("name", ["mine.csv", "mine.parquet"])
def test_a_file_that_may_not_be_read_is_told(
    capsys: pytest.CaptureFixture[str], place: Place, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bytes:  # to root nothing is forbidden
        raise PermissionError(errno.EACCES, "Permission denied", path)

    write(place.folder / name, rows(60))
    monkeypatch.setattr(Path, "read_bytes", refuse)
    done = called(capsys, *place.own(name))
    assert (done.code, done.out, done.err) == (2, "", f"error: cannot read {name}: Permission denied.\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (with_row({"answer": ""}), "mine.jsonl:61: 'answer' is empty; fill it in"),
        (good("--score", "number"), "mine.csv:2: the answer 'red' is not a number"),
        (good("--score", "labl"), "unknown scorer 'labl'"),
        (of("mine.csv", rows(5)), "where near-duplicates stay together"),
    ],
)
def test_check_data_says_what_would_stop_a_study_in_one_line_too(
    capsys: pytest.CaptureFixture[str], place: Place, arguments: Arguments, says: str
) -> None:
    _, _, _, _, train, _, _, *rest = arguments(place)
    before = contents(place.folder)
    done = called(capsys, "check-data", train, "--model", place.model, *rest)
    assert done.code == 2
    assert says in error_of(done)
    assert contents(place.folder) == before


def test_check_data_names_every_bad_row(capsys: pytest.CaptureFixture[str], place: Place) -> None:
    values = rows(60)
    for index in (3, 7):
        values[index]["answer"] = ""
    write(place.folder / "mine.jsonl", values)
    done = called(capsys, "check-data", "mine.jsonl", "--json")
    assert done.code == 2
    assert [problem.partition(": ")[0] for problem in json.loads(done.out)["problems"]] == [
        "mine.jsonl:4",
        "mine.jsonl:8",
    ]
