"""Answers out of text, and whether they are right: pure functions on strings. Each scorer is one in `scorers/`."""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Literal, NamedTuple

from finetrap.errors import StudyError
from finetrap.registry import Plugin, Registry

Outcome = Literal["correct", "wrong", "no_answer", "truncated", "degenerate"]

# The two patterns of lm-evaluation-harness's gsm8k task (its filters `strict-match` and
# `flexible-extract`), so that strict and flexible accuracy mean what its users expect.
_STATED = re.compile(r"#### (\-?[0-9\.\,]+)")
_ANY = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


class Verdict(NamedTuple):
    """What one generated text says and how it scores under three rules."""

    extracted: str | None
    """What counts as its answer; None where there is none."""
    correct: bool
    """By the rule that decides, the answer is gold."""
    strict: bool
    """Gold is given in the stated form, or letter for letter."""
    anywhere: bool
    """Gold stands somewhere in the text."""
    formatted: bool
    """The stated form is there, whatever the answer is."""
    parts: tuple[tuple[str, bool], ...] = ()
    """Of a JSON answer: each of its fields, and whether it matches."""


@dataclass(frozen=True)
class Scorer:
    """How answers to the user's own questions are scored."""

    score: Callable[[str, str], Verdict]
    """(text, gold) to verdict."""
    rule: str
    """How accuracy is decided, in words: "Accuracy: ..."."""
    asks: str = ""
    """What the prompt asks for: "Give ... and nothing else."; empty where the format cannot be said."""
    classes: tuple[str, ...] = ()
    """The labels of a classification."""


scorer = Registry("scorer", "finetrap.scorers", Scorer)
"""A scorer is a function of the gold answers, so that it can check them and say what they look like."""


def make_scorer(text: str, answers: Sequence[str]) -> Scorer:
    """The scorer that `NAME` or `NAME:ARGUMENT` (`regex:PATTERN`) asks for, for these gold answers.

    Raises:
        StudyError: there is none, it takes no argument or needs one, or an answer does not suit it.
    """
    check_scorer(text)
    name, colon, argument = text.partition(":")
    made = scorer.make(name, answers, argument) if colon else scorer.make(name, answers)
    plugin = scorer.plugin_of(name)
    return made if plugin is None else replace(made, score=_checked(made.score, plugin))


def _checked(score: Callable[[str, str], Verdict], plugin: Plugin) -> Callable[[str, str], Verdict]:
    """A plugin's rule, whose verdicts are verdicts."""

    def checked(text: str, gold: str) -> Verdict:
        verdict = score(text, gold)
        rules = verdict[1:5] if isinstance(verdict, Verdict) else ()
        if not rules or not all(isinstance(rule, bool) for rule in rules):
            raise StudyError(
                f"the plugin {plugin.path}: its scorer returned {verdict!r:.60}, and has to return a Verdict "
                f"whose correct, strict, anywhere and formatted are True or False."
            )
        return verdict

    return checked


def check_scorer(text: str) -> None:
    """Check what can be without any answers: that there is such a scorer, and that its argument suits it.

    Raises:
        StudyError: there is none, it takes no argument or needs one, or the argument is wrong.
    """
    name, colon, argument = text.partition(":")
    parameters = list(inspect.signature(scorer[name]).parameters)[1:]
    if bool(colon) != bool(parameters):
        wanted = f"write {name}:{parameters[0].upper()}" if parameters else f"write {name} alone"
        raise StudyError(f"scorer '{text}': {wanted}.")
    if colon and scorer.plugin_of(name) is None:
        scorer.make(name, (), argument)  # a plugin's may need the answers


class AnswerError(StudyError):
    """A gold answer that a scorer cannot use; `index` says which."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


_AROUND = " .,;:!?\"'`*()[]{}\u201c\u201d\u2018\u2019"


def plain(text: str) -> str:
    """Lower case, without the space, quotes and marks around; inner white space as single spaces."""
    line = " ".join(text.casefold().split())
    return line.strip(_AROUND) or line


def occurs(part: str, text: str) -> bool:
    """Whether `part` stands in `text` as whole words, case and marks around it aside."""
    wanted = plain(part)
    return (
        bool(wanted) and re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", " ".join(text.casefold().split())) is not None
    )


def first_line(text: str) -> str:
    """The first line that is not empty."""
    return next((line for line in text.splitlines() if line.strip()), "")


def number_of(text: str) -> Decimal | None:
    """The value of a number as people write it ("$1,234.50", "72."), None where it is none."""
    cleaned = text.replace(",", "").replace("$", "").strip().rstrip(".")
    try:
        value = Decimal(cleaned)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def strict_number(text: str) -> str | None:
    """The first number after "#### ", or None."""
    found = _STATED.search(text)
    return found.group(1) if found else None


def last_number(text: str) -> str | None:
    """The last number anywhere in the text, or None.

    lm-evaluation-harness's pattern also takes "..." for one; what has no value is passed over here.
    """
    found = [match.group(0) for match in _ANY.finditer(text) if number_of(match.group(0)) is not None]
    return found[-1] if found else None


def score_number(text: str, gold: str) -> Verdict:
    """Score a text whose answer is one number; compared by value, so 72.0 equals 72.

    The answer is the first "#### n", else the last number of the text.
    """
    target = number_of(gold)
    if target is None:
        raise ValueError(f"gold answer {gold!r} is not a number")
    stated = strict_number(text)
    extracted = stated if stated is not None else last_number(text)
    values = {number_of(match.group(0)) for match in _ANY.finditer(text)}
    return Verdict(
        extracted=extracted,
        correct=extracted is not None and number_of(extracted) == target,
        strict=stated is not None and number_of(stated) == target,
        anywhere=target in values,
        formatted=stated is not None,
    )


_LONGEST_LOOP = 120
"""Characters; the longest piece whose repetition counts as a loop."""


def is_degenerate(text: str) -> bool:
    """Whether a text ends in a loop: one piece, four times in a row and for 40 characters at least."""
    for period in range(1, min(_LONGEST_LOOP, len(text) // 4) + 1):
        length = period
        while length < len(text) and text[-1 - length] == text[-1 - length + period]:
            length += 1
        if length >= max(40, 4 * period):
            return True
    return False


def outcome_of(verdict: Verdict, text: str, *, truncated: bool) -> Outcome:
    """Which of the five outcomes an answer is; a right answer is right even if text follows it."""
    if verdict.correct:
        return "correct"
    if truncated:
        return "degenerate" if is_degenerate(text) else "truncated"
    return "no_answer" if verdict.extracted is None else "wrong"
