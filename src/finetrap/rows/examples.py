"""The user's rows to examples: each value checked, and what is wrong with it said with its place."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from finetrap.errors import StudyError
from finetrap.rows.read import Row, no_column, read_rows
from finetrap.task import Example, Split, Turn

if TYPE_CHECKING:
    from finetrap.rows.own_data import OwnData

CHAT_FIELD = "messages"


class Parsed(NamedTuple):
    """A row, and the example it makes or what is wrong with it."""

    row: Row
    example: Example | StudyError


def is_chat(data: "OwnData", row: Row) -> bool:
    """Whether rows are conversations: `messages`, or the column that was named, holds a list."""
    if data.prompt_field is None and CHAT_FIELD in row.values:
        return True
    return isinstance(row.values.get(data.prompt_field or "prompt"), list)


def parse(data: "OwnData", split: Split, data_dir: Path | None = None) -> list[Parsed]:
    """Every row of a split, with the example that it makes or what is wrong with it.

    Raises:
        StudyError: the file cannot be read, or no row has the column.
    """
    source = data.test if split == "test" and data.test else data.train
    rows = read_rows(source, split=split, data_dir=data_dir)
    chat = is_chat(data, rows[0])
    prompt_field = data.prompt_field or (CHAT_FIELD if CHAT_FIELD in rows[0].values else "prompt")
    answer_field = data.answer_field or (None if chat else "answer")
    fields = {"--prompt-field": prompt_field, "--answer-field": answer_field}
    fields |= {"--completion-field": data.completion_field, "--choices-field": data.choices_field}
    fields |= {"--group-field": data.group_field}
    for option, field in fields.items():
        if field is not None and not any(field in row.values for row in rows):
            raise no_column(rows, source, field, option)
    if chat and data.choices_field:
        raise StudyError(f"{source}: conversations have no choices; give the question in a column of its own.")
    names_choice = _how_choices_are_named(rows, answer_field, data.choices_field) if data.choices_field else 0
    reader = _Reader(data, prompt_field, answer_field, names_choice, chat=chat)
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
        said = (turn.content for turn in example.turns)
        "".join([*said, example.question, example.reference, example.gold, *example.choices, example.group]).encode()
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

    def __init__(
        self, data: "OwnData", prompt_field: str, answer_field: str | None, names_choice: int, *, chat: bool
    ) -> None:
        self.data = data
        self.prompt_field = prompt_field
        self.answer_field = answer_field
        self.names_choice = names_choice
        self.chat = chat

    def example(self, id: str, row: Row) -> Example:
        """The example that a row makes.

        Raises:
            StudyError: a value is empty or not what it has to be.
        """
        turns: tuple[Turn, ...] = ()
        said = None
        group = self._text(row, self.data.group_field) if self.data.group_field else ""
        if self.chat:
            turns, said = _conversation(row, self.prompt_field)
            question = turns[-1].content
            turns = turns[:-1]
        else:
            question = self._text(row, self.prompt_field)
        if self.data.choices_field:
            choices = _choices(row, self.data.choices_field)
            gold = _index_of(row, self._text(row, self.answer_field or "answer"), choices[self.names_choice])
            texts = choices.texts
            return Example(id, question, texts[gold], str(gold), texts, apart="\n".join(texts), group=group)
        answer = self._text(row, self.answer_field) if self.answer_field else str(said)
        completion = self._text(row, self.data.completion_field) if self.data.completion_field else (said or answer)
        return Example(id, question, completion, answer, turns=turns, group=group)

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
    """The names under which an answer may know a row's choices."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    """As the row gives them, else A, B, ..."""
    indices: tuple[str, ...]
    """From 0."""


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
    return _Choices(texts, tuple(map(_as_text, labels)), tuple(map(str, range(len(texts)))))


def _how_choices_are_named(rows: Sequence[Row], answer_field: str | None, choices_field: str) -> int:
    """Which names of `_Choices` the answers are: the first that fits every row, else the one that fits most.

    One reading for the whole column: the answer 2 is an index in every row, or a choice's text in every row. Numbers
    that answer choices of text are indices.
    """
    fits = [0, 0, 0]
    numbers = True
    for row in rows:
        value = row.values.get(answer_field or "answer")
        try:
            choices = _choices(row, choices_field)
        except StudyError:
            continue
        for kind, names in enumerate(choices):
            fits[kind] += _as_text(value) in names
        given = row.values.get(choices_field)
        texts = not isinstance(given, list) or all(isinstance(choice, str) for choice in given)
        numbers = numbers and isinstance(value, int | float) and texts
    order = (2, 0, 1) if numbers else (0, 1, 2)
    return max(order, key=lambda kind: fits[kind])


def _index_of(row: Row, answer: str, names: Sequence[str]) -> int:
    if answer in names:
        return names.index(answer)
    raise StudyError(
        f"{row.where}: the answer {answer[:60]!r} is not among its choices; give the choice's text, its letter "
        f"(A is the first) or its index (from 0), in every row the same way."
    )
