"""A task out of the user's own rows: which field is what, and every row checked before anything runs."""

import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, model_validator

from finetrap.duplicates import carve
from finetrap.errors import StudyError
from finetrap.in_memory import named_table
from finetrap.records import Input, digest, slug
from finetrap.rows import Row, no_column, read_rows
from finetrap.scoring import AnswerError, check_scorer, make_scorer, scorer
from finetrap.task import Example, Kind, Split, Task, Turn, task

TEST_SHARE = 0.2
"""Of the rows, cut off where no test set is given."""
FEWEST_TEST = 10
CHAT_FIELD = "messages"

_CHOICE_TEMPLATE = "Question: {prompt}\nAnswer:"


class OwnData(Input):
    """Rows of one's own as a task: files (.jsonl, .csv, .parquet), a data set of the Hub, or a table in memory."""

    train: Annotated[str, BeforeValidator(named_table)]
    """File, folder or Hub id (`ORG/NAME`, `ORG/NAME:CONFIGURATION`); in Python also a pandas or `datasets` table."""
    test: Annotated[str | None, BeforeValidator(named_table)] = None
    """Likewise. Without it a fifth of the rows is cut from train, near-duplicates kept together."""
    name: str = Field(default="", pattern=r"^[\w.+-]{0,60}$")
    """By default the train file's name."""
    prompt_field: str | None = None
    """Column of the question: `prompt` by default; rows with `messages` are read as conversations."""
    answer_field: str | None = None
    """Column of the answer that is scored: `answer` by default; in a conversation the last turn."""
    completion_field: str | None = None
    """Column of the text that training teaches, such as a solution that ends in the answer. By default the answer."""
    choices_field: str | None = None
    """Column of the answers to choose from: makes it multiple choice."""
    prompt_template: str | None = None
    """What is asked, with `{prompt}` for the question. By default the question and the form that the answer takes."""
    system: str = ""
    """A system message in front of every question."""
    score: str = "exact"
    """exact, number, label, json, contains, regex:PATTERN, or a plugin's."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Tokens of an answer at most. By default about twice the longest reference, 32 to 512."""

    @model_validator(mode="after")
    def _can_be_asked_and_scored(self) -> "OwnData":
        if self.prompt_template is not None and "{prompt}" not in self.prompt_template:
            raise StudyError(
                f"the prompt template {self.prompt_template!r} does not say where the question goes; "
                f"write {{prompt}} there."
            ).at("prompt_template")
        try:
            check_scorer(self.score)
        except StudyError as error:
            raise error.at("score") from None
        return self

    @model_validator(mode="after")
    def _says_nothing_in_vain(self) -> "OwnData":
        if self.choices_field:
            for name in ("score", "completion_field", "max_new_tokens"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise StudyError(
                        f"multiple choice (choices_field) is decided by each choice's likelihood; leave {name} out."
                    )
        return self

    @property
    def task_name(self) -> str:
        """The name, which no task that finetrap brings has."""
        name = self.name or slug(Path(Path(self.train).name.partition(":")[0]).stem)
        return f"{name}-data" if name in task.names() else name

    @property
    def kind(self) -> Kind:
        """How it is scored."""
        return "choice" if self.choices_field else "generate"


def make_own_data(values: dict[str, Any]) -> OwnData:
    """Own data out of plain values, such as options of a command.

    Raises:
        StudyError: a value is wrong.
    """
    if "prompt_template" in values:
        # A shell has no other way to write a new line in quotes.
        values = {**values, "prompt_template": values["prompt_template"].replace("\\n", "\n")}
    try:
        return OwnData.model_validate(values)
    except StudyError as error:
        name = "".join(map(str, error.location[:1]))
        raise StudyError(str(error).replace(f"'{name}'", f"--{name.replace('_', '-')}", 1)) from None


class Parsed(NamedTuple):
    """A row, and the example it makes or what is wrong with it."""

    row: Row
    example: Example | StudyError


def own_task(data: OwnData, data_dir: Path | None = None) -> Task:
    """The task that the rows make.

    Raises:
        StudyError: a file or row is wrong; the message says which, where, and how to mend it.
    """
    files = [Path(source) for source in (data.train, data.test) if source and os.path.isfile(source)]
    state = tuple((path.stat().st_mtime_ns, path.stat().st_size) for path in files)
    return _own_task(data, data_dir, (state, scorer.plugin_of(data.score.partition(":")[0])))


@lru_cache(maxsize=16)
def _own_task(data: OwnData, data_dir: Path | None, _: object) -> Task:
    """Read once, and again when a file or the plugin that scores has changed."""
    train = _checked(parse(data, "train", data_dir))
    test = _checked(parse(data, "test", data_dir)) if data.test else []
    carved = not test
    if carved:
        kept, cut = carve([parsed.example for parsed in train], TEST_SHARE, "test")
        train_examples, test_examples = tuple(kept), tuple(cut)
        if len(cut) < FEWEST_TEST or not kept:
            raise StudyError(
                f"{data.train} has {len(train)} rows, and where near-duplicates stay together {len(cut)} of them are "
                f"cut off as test; {FEWEST_TEST} are needed, and some left to train on: give more rows, or --test."
            )
    else:
        train_examples, test_examples = (tuple(parsed.example for parsed in split) for split in (train, test))
        if len(test) < FEWEST_TEST:
            raise StudyError(
                f"{data.test} has {len(test)} rows: fewer than {FEWEST_TEST} test items cannot show anything."
            )
    chat = any(example.turns for example in train_examples) or _is_chat(data, train[0].row)
    return _task(data, [*train, *test], chat, {"train": train_examples, "test": test_examples}, carved=carved)


class _Good(NamedTuple):
    row: Row
    example: Example


def _checked(parsed: Sequence[Parsed]) -> list[_Good]:
    good = []
    for row, example in parsed:
        if isinstance(example, StudyError):
            raise example
        good.append(_Good(row, example))
    return good


def _task(
    data: OwnData, rows: Sequence[_Good], chat: bool, splits: dict[Split, tuple[Example, ...]], *, carved: bool
) -> Task:
    decides = data.model_dump(exclude={"train", "test", "name"})
    plugin = scorer.plugin_of(data.score.partition(":")[0])

    def version(*derived: object) -> int:
        """What is derived from all rows can change where none that is trained on or tested does."""
        return int(digest([decides, plugin.digest if plugin else None, derived])[:8], 16)

    if data.choices_field:
        template = data.prompt_template or _CHOICE_TEMPLATE
        return Task(
            name=data.task_name,
            summary=f"own data: {data.train}",
            kind="choice",
            license="the user's",
            load=splits.__getitem__,
            prompt=lambda question: template.replace("{prompt}", question),
            blind_prompt=template.partition("{prompt}")[2].strip(),
            system=data.system,
            version=version(),
            carved=carved,
        )
    try:
        scored = make_scorer(data.score, [row.example.gold for row in rows])
    except AnswerError as error:
        raise StudyError(f"{rows[error.index].row.where}: {error}.") from None
    says_format = bool(scored.asks) and not chat and data.completion_field is None
    default = f"{{prompt}}\nGive {scored.asks} and nothing else." if says_format else "{prompt}"
    template = data.prompt_template or default

    @lru_cache(maxsize=16)
    def stated(gold: str) -> str:
        """The answer as training teaches it, if that is right by the rule: a solution may not end in its answer."""
        taught = (example.reference for example in splits["train"] if example.gold == gold)
        return next((text for text in taught if scored.score(text, gold).correct), gold)

    longest = max(len(row.example.reference) for row in rows)
    # A token has about four characters, and a verbose arm is not to be cut off where a trained one is done.
    max_new_tokens = data.max_new_tokens or min(512, max(32, longest // 2))
    stops = [stop for stop in ("\n\n", "\nUser:") if not any(stop in row.example.reference for row in rows)]
    return Task(
        name=data.task_name,
        summary=f"own data: {data.train}",
        kind="generate",
        license="the user's",
        load=splits.__getitem__,
        prompt=lambda question: template.replace("{prompt}", question),
        score=scored.score,
        answer_format=stated,
        rule=scored.rule,
        classes=scored.classes,
        max_new_tokens=max_new_tokens,
        system=data.system,
        stops=tuple(stops),
        version=version(template, max_new_tokens, stops, scored.classes),
        carved=carved,
    )


def _is_chat(data: OwnData, row: Row) -> bool:
    """Whether rows are conversations: `messages`, or the column that was named, holds a list."""
    if data.prompt_field is None:
        return CHAT_FIELD in row.values
    return isinstance(row.values.get(data.prompt_field), list)


def parse(data: OwnData, split: Split, data_dir: Path | None = None) -> list[Parsed]:
    """Every row of a split, with the example that it makes or what is wrong with it.

    Raises:
        StudyError: the file cannot be read, or no row has the column.
    """
    source = data.test if split == "test" and data.test else data.train
    rows = read_rows(source, split=split, data_dir=data_dir)
    chat = _is_chat(data, rows[0])
    prompt_field = data.prompt_field or (CHAT_FIELD if chat else "prompt")
    answer_field = data.answer_field or (None if chat else "answer")
    fields = {"--prompt-field": prompt_field, "--answer-field": answer_field}
    fields |= {"--completion-field": data.completion_field, "--choices-field": data.choices_field}
    for option, field in fields.items():
        if field is not None and not any(field in row.values for row in rows):
            raise no_column(rows, source, field, option)
    reader = _Reader(data, prompt_field, answer_field, chat=chat)
    kinds: dict[str, tuple[str, str]] = {}
    parsed = []
    for index, row in enumerate(rows):
        try:
            _check_kinds(row, [field for field in fields.values() if field], kinds)
            # Without the file's name: what is cut off as test stays when a file is renamed.
            parsed.append(Parsed(row, _encodable(row, reader.example(f"{split}-{index}", row))))
        except StudyError as error:
            parsed.append(Parsed(row, error))
    return parsed


def _encodable(row: Row, example: Example) -> Example:
    """The example, if all of it can be written as UTF-8.

    Raises:
        StudyError: half a character is left, as where a text was cut between the two that write an emoji in JSON.
    """
    try:
        "".join([example.asked, example.reference, example.gold, *example.choices]).encode()
    except UnicodeEncodeError as error:
        raise StudyError(
            f"{row.where}: holds half a character (\\u{ord(error.object[error.start]):04x}); mend or leave out the row."
        ) from None
    return example


_KINDS = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}


def _check_kinds(row: Row, fields: Sequence[str], kinds: dict[str, tuple[str, str]]) -> None:
    """Each column holds values of one kind, that of its first row; an empty value has none."""
    for field in fields:
        value = row.values.get(field)
        if _as_text(value) == "":
            continue
        kind = _KINDS.get(type(value), type(value).__name__)
        first, where = kinds.setdefault(field, (kind, row.where))
        if kind != first:
            raise StudyError(
                f"{row.where}: '{field}' is {kind} here ({str(value)[:40]!r}) and {first} in {where}; "
                f"write the column in one way."
            )


def _as_text(value: object) -> str:
    """A value as it is written in a prompt or an answer; empty where there is none."""
    if isinstance(value, str):
        return value.strip()
    if value is None or value != value:  # pandas writes NaN where there is nothing
        return ""
    if isinstance(value, float):
        return repr(value).removesuffix(".0")  # pandas makes 1.0 of 1 where another row of the column is empty
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list | bool) else str(value)


class _Reader:
    """Makes examples of rows whose columns are known."""

    def __init__(self, data: OwnData, prompt_field: str, answer_field: str | None, *, chat: bool) -> None:
        self.data = data
        self.prompt_field = prompt_field
        self.answer_field = answer_field
        self.chat = chat

    def example(self, id: str, row: Row) -> Example:
        """The example that a row makes.

        Raises:
            StudyError: a value is empty or not what it has to be.
        """
        turns: tuple[Turn, ...] = ()
        said = None
        if self.chat:
            turns, said = _conversation(row, self.prompt_field)
            question = turns[-1].content
            turns = turns[:-1]
        else:
            question = self._text(row, self.prompt_field)
        if self.data.choices_field:
            choices = _choices(row, self.data.choices_field)
            gold = _index_of(row, self._text(row, self.answer_field or "answer"), choices)
            return Example(id, question, choices.texts[gold], str(gold), choices.texts)
        answer = self._text(row, self.answer_field) if self.answer_field else str(said)
        completion = self._text(row, self.data.completion_field) if self.data.completion_field else (said or answer)
        return Example(id, question, completion, answer, turns=turns)

    def _text(self, row: Row, field: str) -> str:
        text = _as_text(row.values.get(field))
        if not text:
            raise StudyError(f"{row.where}: '{field}' is empty; fill it in or leave the row out.")
        return text


def _conversation(row: Row, field: str) -> tuple[tuple[Turn, ...], str]:
    """All turns before the assistant's last, which end with the user's, and that last one's text."""
    messages = row.values.get(field)
    if not isinstance(messages, list) or not messages:
        raise StudyError(f"{row.where}: '{field}' has to be a list of turns ({{role, content}}).")
    turns = []
    for message in messages:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise StudyError(
                f"{row.where}: each turn needs a role (system, user or assistant) and a content of text, "
                f"got {str(message)[:60]!r}."
            )
        turns.append(Turn(role, content))
    if turns[-1].role != "assistant" or not turns[-1].content.strip():
        raise StudyError(
            f"{row.where}: the conversation does not end with the assistant's turn, which is what is taught."
        )
    if len(turns) < 2 or turns[-2].role != "user":
        raise StudyError(f"{row.where}: the assistant's last turn does not follow one of the user.")
    return tuple(turns[:-1]), turns[-1].content


class _Choices(NamedTuple):
    texts: tuple[str, ...]
    labels: tuple[str, ...]


def _choices(row: Row, field: str) -> _Choices:
    value: Any = row.values.get(field)
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            value = json.loads(value)  # how a CSV writes a list
        except ValueError:
            value = None
    labels: Any = None
    if isinstance(value, dict):  # as ARC on the Hub: {"text": [...], "label": ["A", ...]}
        value, labels = value.get("text"), value.get("label")
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(v, str | int | float) for v in value):
        raise StudyError(f"{row.where}: '{field}' has to be a list of at least two answers.")
    texts = tuple(map(_as_text, value))
    if len(set(texts)) < len(texts) or not all(texts):
        raise StudyError(f"{row.where}: two of its choices are the same, or one is empty.")
    if not isinstance(labels, list):
        labels = [chr(ord("A") + index) for index in range(len(texts))]
    if len(labels) != len(texts):
        raise StudyError(f"{row.where}: '{field}' has {len(texts)} answers and {len(labels)} labels.")
    return _Choices(texts, tuple(map(_as_text, labels)))


def _index_of(row: Row, answer: str, choices: _Choices) -> int:
    """Which choice is right: by its text, else its label (A, B, ...), else its index from 0."""
    for names in (choices.texts, choices.labels, tuple(map(str, range(len(choices.texts))))):
        if answer in names:
            return names.index(answer)
    raise StudyError(
        f"{row.where}: the answer {answer[:60]!r} is not among its choices; give the choice's text, its letter "
        f"(A is the first) or its index (from 0)."
    )
