"""What a study would make of the user's rows, before a model is touched."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from finetrap.data import Encoder, draw_shots, load_splits, load_test
from finetrap.errors import StudyError
from finetrap.method import build, default_settings
from finetrap.presets import EMBEDDED, PRESETS, here
from finetrap.records import Record
from finetrap.rows.duplicates import clusters, near_overlap, normalise
from finetrap.rows.examples import parse
from finetrap.rows.own_data import OwnData, own_task
from finetrap.task import Example, Task

if TYPE_CHECKING:
    from finetrap.models import Reader

MOST_LABELS = 20
"""Different answers up to which their balance is worth a look."""
RARE = 10
"""Rows of a label below which little can be learned or measured of it."""


class Lengths(Record):
    """Lengths in tokens."""

    median: int
    p95: int
    """19 of 20 are no longer."""
    longest: int


class Tokens(Record):
    """What a model makes of the rows."""

    model: str
    context: int
    """Tokens that it can read."""
    max_new_tokens: int
    """Tokens of an answer at most; 0 for multiple choice."""
    prompts: Lengths
    completions: Lengths
    left_out: int
    """Training rows longer than the context: they are left out."""
    cut_answers: int
    """Completions longer than the limit of new tokens: such an answer would be cut off."""
    prompts_too_long: int
    """Test prompts that leave no room for an answer: a study refuses them."""
    first_prompt: str
    """As the model will see it."""
    first_completion: str


class DataReport(Record):
    """What was found."""

    source: str
    kind: str
    rows: dict[str, int]
    """By split of the file: rows read."""
    problems: tuple[str, ...]
    """What stops a study."""
    splits: dict[str, int]
    """train, validation and test as a study would use them; empty where something stops it."""
    test_carved: bool
    duplicates: int
    """Rows of train whose question was asked before."""
    conflicts: int
    """Of these, such with another answer."""
    near_duplicates: int
    """Further rows that differ little from an earlier one."""
    overlap: int
    """Train rows whose question stands in test: they are left out of train."""
    near_overlap: int
    """Test rows that differ little from a train row: they stay, and flatter what was trained."""
    groups: dict[str, int] = Field(default_factory=dict)
    """Groups of rows by split of the file, where a column says what belongs together."""
    groups_in_both: int = 0
    """Groups of test of which train has rows too."""
    labels: dict[str, int]
    """Rows by answer, where there are few different ones."""
    taught_wrong: int
    """Train rows whose completion is wrong by the rule that scores: what training would teach gets no point."""
    tokens: Tokens | None
    """None where no model is at hand."""

    def text(self) -> str:
        """For a person."""
        lines = [f"{self.source}: {self.kind}; rows read: {_counts(self.rows)}"]
        lines += [f"  problem: {problem}" for problem in self.problems[:20]]
        if len(self.problems) > 20:
            lines.append(f"  and {len(self.problems) - 20} more (--json names all)")
        if self.splits:
            lines.append(f"a study would use: {_counts(self.splits)}")
        if self.test_carved:
            lines.append("  no test set was given: a fifth of the rows is cut off as one, near-duplicates together")
        lines += [f"  {line}" for line in self._doubles()]
        if self.groups:
            lines.append(f"groups: {_counts(self.groups)}; each is one test item")
        if self.groups_in_both:
            lines.append(f"  {self.groups_in_both} groups stand in train and in test, which flatters what was trained")
        if self.labels:
            lines.append(f"answers: {_counts(self.labels)}")
            commonest = max(self.labels.values()) / sum(self.labels.values())
            lines.append(f"  always giving the most common one is right in {commonest:.0%}")
            rare = [label for label, count in self.labels.items() if count < RARE]
            if rare:
                lines.append(f"  fewer than {RARE} rows: {', '.join(rare)}; little can be learned or measured of them")
        if self.taught_wrong:
            lines.append(f"{self.taught_wrong} completions are wrong by --score: training teaches what gets no point")
        if self.tokens:
            lines += self._token_lines()
        elif not self.problems:
            lines.append(_NO_MODEL)
        return "\n".join(lines)

    def _doubles(self) -> list[str]:
        lines = []
        if self.duplicates:
            other = f", {self.conflicts} of them with another answer" if self.conflicts else ""
            lines.append(f"{self.duplicates} train rows ask what an earlier one asked{other}")
        if self.near_duplicates:
            lines.append(f"{self.near_duplicates} train rows differ little from an earlier one")
        if self.overlap:
            lines.append(f"{self.overlap} train rows stand in test; they are left out of train")
        if self.near_overlap:
            lines.append(
                f"{self.near_overlap} test rows differ little from a train row, which flatters what was trained"
            )
        return lines or ["no duplicates, no overlap"]

    def _token_lines(self) -> list[str]:
        assert self.tokens is not None
        tokens = self.tokens
        answers = f", answers of {tokens.max_new_tokens} tokens at most" if tokens.max_new_tokens else ""
        lines = [f"in tokens of {tokens.model} (reads {tokens.context}{answers}):"]
        for what, lengths in (("prompts", tokens.prompts), ("completions", tokens.completions)):
            lines.append(f"  {what}: median {lengths.median}, 95% up to {lengths.p95}, longest {lengths.longest}")
        if tokens.left_out:
            lines.append(f"  {tokens.left_out} train rows are longer than the context and would be left out")
        if tokens.cut_answers:
            lines.append(
                f"  {tokens.cut_answers} completions are longer than --max-new-tokens: such answers are cut off"
            )
        if tokens.prompts_too_long:
            lines.append(f"  {tokens.prompts_too_long} test prompts leave no room for the answer; a study refuses them")
        lines += ["the first prompt, as the model sees it:", _indent(tokens.first_prompt)]
        return [*lines, "and what training teaches after it:", _indent(tokens.first_completion)]


_NO_MODEL = f"lengths in tokens need a model: --model NAME, or first: finetrap models get {EMBEDDED}"


def _counts(values: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in values.items())


def _indent(text: str) -> str:
    return "\n".join(f"  | {line}" for line in text.split("\n"))


def check(data: OwnData, *, model: str | None = None, data_dir: Path | None = None) -> DataReport:
    """Look at rows as a study would, and at what it would not say.

    Raises:
        StudyError: a file cannot be read at all, or the model is not there.
    """
    parsed = {"train": parse(data, "train", data_dir)}
    if data.test:
        parsed["test"] = parse(data, "test", data_dir)
    good = {split: [p.example for p in rows if isinstance(p.example, Example)] for split, rows in parsed.items()}
    problems = [str(p.example) for rows in parsed.values() for p in rows if isinstance(p.example, StudyError)]
    task, splits = None, {}
    if not problems:
        try:
            task = own_task(data, data_dir)
            used = load_splits(task)
            splits = {"train": len(used.train), "validation": len(used.validation)}
            splits["test"] = len(load_test(task).examples)
        except StudyError as error:
            problems.append(str(error))
    duplicates, conflicts = _duplicates(good["train"])
    # By themselves: what is of one group may differ as it likes.
    alone, test = ([replace(e, group="") for e in good.get(split, [])] for split in ("train", "test"))
    groups = {split: {e.group for e in examples} for split, examples in good.items() if data.group_field}
    asked = {normalise(example.asked) for example in test}
    tokens = _tokens(task, model, problems) if task is not None else None
    answers = Counter(e.choices[int(e.gold)] if e.choices else e.gold for e in good["train"])
    return DataReport(
        source=data.train,
        kind="multiple choice" if data.kind == "choice" else f"generation, scored by {data.score}",
        rows={split: len(rows) for split, rows in parsed.items()},
        problems=tuple(problems),
        splits=splits,
        test_carved=task is not None and task.carved,
        duplicates=duplicates,
        conflicts=conflicts,
        near_duplicates=len(alone) - len(clusters(alone)) - duplicates,
        overlap=sum(normalise(example.asked) in asked for example in good["train"]),
        near_overlap=near_overlap(alone, test),
        groups={split: len(names) for split, names in groups.items()},
        groups_in_both=len(set.intersection(*groups.values())) if len(groups) > 1 else 0,
        labels=dict(answers.most_common()) if len(answers) <= MOST_LABELS else {},
        taught_wrong=_taught_wrong(task) if task is not None else 0,
        tokens=tokens,
    )


def _duplicates(examples: Sequence[Example]) -> tuple[int, int]:
    first: dict[str, str] = {}
    duplicates = conflicts = 0
    for example in examples:
        question = normalise(example.asked)
        if question in first:
            duplicates += 1
            conflicts += first[question] != example.gold
        first.setdefault(question, example.gold)
    return duplicates, conflicts


def _taught_wrong(task: Task) -> int:
    score, splits = task.score, load_splits(task)
    taught = (*splits.carved, *splits.validation) if score is not None else ()
    return sum(score is not None and not score(e.reference, e.gold).correct for e in taught)


def _tokens(task: Task, model: str | None, problems: list[str]) -> Tokens | None:
    """Lengths in a model's tokens; prompts that it cannot read join the `problems`."""
    if model is None and not here(PRESETS[EMBEDDED]):
        return None
    from finetrap.config import ModelSpec
    from finetrap.models import find, load_reader

    source = find(ModelSpec(name=model or EMBEDDED))
    reader = load_reader(source)
    encoder = Encoder(reader.tokenizer, task, chat=source.record.chat)
    for shots in (0, build("few_shot", default_settings("few_shot")).shots):
        try:
            solved = draw_shots(load_splits(task), shots, 0)
            encoder.check_fits(load_test(task).examples, solved, limit=reader.context, model=source.record.name)
        except StudyError as error:
            problems.append(f"with {shots} shots: {error}")
    return _token_lengths(encoder, reader, source.record.name)


def _token_lengths(encoder: Encoder, reader: "Reader", model: str) -> Tokens:
    task = encoder.task
    train = load_splits(task).train
    rows = [encoder.training_row(example) for example in train]
    completions = [len(ids) - length for ids, length in rows]
    room = task.max_new_tokens
    prompts = [len(encoder.prompt(example).ids) for example in load_test(task).examples]
    first = encoder.prompt(train[0])
    return Tokens(
        model=model,
        context=reader.context,
        max_new_tokens=room,
        prompts=_lengths([length for _, length in rows] + prompts),
        completions=_lengths(completions),
        left_out=sum(len(ids) > reader.context for ids, _ in rows),
        cut_answers=sum(length > room for length in completions) if room else 0,
        prompts_too_long=sum(length + max(1, room) > reader.context for length in prompts),
        first_prompt=first.text,
        first_completion=reader.tokenizer.decode(rows[0][0][rows[0][1] :]),
    )


def _lengths(values: Sequence[int]) -> Lengths:
    return Lengths(
        median=int(np.median(values)), p95=int(np.quantile(values, 0.95, method="higher")), longest=max(values)
    )
