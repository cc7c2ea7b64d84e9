"""A task out of the user's own rows: which field is what, and every row checked before anything runs."""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, model_validator

from finetrap.errors import StudyError
from finetrap.records import digest, slug
from finetrap.rows.duplicates import carve, count_items
from finetrap.rows.examples import Parsed, is_chat, parse
from finetrap.rows.in_memory import named_table
from finetrap.rows.read import Row
from finetrap.scoring import AnswerError, check_scorer, make_scorer, scorer
from finetrap.task import Example, Kind, Split, Task, task
from finetrap.user_input import Input

TEST_SHARE = 0.2
"""Of the rows, cut off where no test set is given."""
FEWEST_TEST = 10

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
    group_field: str | None = None
    """Column of what a row belongs to, such as the text that it is a question on. Rows of one group stay on one side
    where test or validation is cut off, and are one test item, whose score is the share of them that is right."""
    prompt_template: str | None = None
    """What is asked, with `{prompt}` for the question. By default the question and the form that the answer takes."""
    system: str = ""
    """A system message in front of every question."""
    score: str = "exact"
    """exact, number, label, json, contains, regex:PATTERN, or a plugin's."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Tokens of an answer at most. By default about twice the longest reference, from 32 (256 for solutions) to 512."""

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
        if count_items(cut) < FEWEST_TEST or not kept:
            together, unit = (
                ("near-duplicates and groups", "groups") if data.group_field else ("near-duplicates", "them")
            )
            raise StudyError(
                f"{data.train} has {len(train)} rows, and where {together} stay together {count_items(cut)} of {unit} "
                f"are cut off as test; {FEWEST_TEST} are needed, and some left to train on: give more rows, or --test."
            )
    else:
        train_examples, test_examples = (tuple(parsed.example for parsed in split) for split in (train, test))
        if (items := count_items(test_examples)) < FEWEST_TEST:
            unit = "groups" if data.group_field else "rows"
            raise StudyError(
                f"{data.test} has {items} {unit}: fewer than {FEWEST_TEST} test items cannot show anything."
            )
    chat = any(example.turns for example in train_examples) or is_chat(data, train[0].row)
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
    # What belongs together changes no prompt and no score; it is in the items' digest.
    decides = data.model_dump(exclude={"train", "test", "name", "group_field"})
    plugin = scorer.plugin_of(data.score.partition(":")[0])

    def version(*derived: object) -> int:
        """What is derived from all rows can change where none that is trained on or tested does."""
        return int(digest([decides, plugin.digest if plugin else None, derived])[:8], 16)

    def task_asking(template: str, kind: Kind, *derived: object) -> Task:
        return Task(
            name=data.task_name,
            summary=f"own data: {data.train}",
            kind=kind,
            license="the user's",
            load=splits.__getitem__,
            prompt=lambda question: template.replace("{prompt}", question),
            system=data.system,
            version=version(*derived),
            carved=carved,
        )

    if data.choices_field:
        template = data.prompt_template or _CHOICE_TEMPLATE
        return replace(task_asking(template, "choice"), blind_prompt=template.partition("{prompt}")[2].strip())
    try:
        scored = make_scorer(data.score, [row.example.gold for row in rows])
    except AnswerError as error:
        raise StudyError(f"{rows[error.index].row.where}: {error}.") from None
    references = [scored.score(row.example.reference, row.example.gold) for row in rows]
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
    least = 256 if data.completion_field else 32
    max_new_tokens = data.max_new_tokens or min(512, max(least, longest // 2))
    stops = [stop for stop in ("\n\n", "\nUser:") if not any(stop in row.example.reference for row in rows)]
    return replace(
        task_asking(template, "generate", template, max_new_tokens, stops, scored.classes),
        score=scored.score,
        answer_format=stated,
        rule=scored.rule,
        states_format=2 * sum(verdict.strict for verdict in references) > len(references),
        classes=scored.classes,
        max_new_tokens=max_new_tokens,
        stops=tuple(stops),
    )
