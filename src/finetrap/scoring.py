"""Answers out of text, and whether they are right: pure functions on strings."""

import re
from decimal import Decimal, InvalidOperation
from typing import Literal, NamedTuple

Outcome = Literal["correct", "wrong", "no_answer", "truncated", "degenerate"]

# The two patterns of lm-evaluation-harness's gsm8k task (its filters `strict-match` and
# `flexible-extract`), so that strict and flexible accuracy mean what its users expect.
_STATED = re.compile(r"#### (\-?[0-9\.\,]+)")
_ANY = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


class Verdict(NamedTuple):
    """What one generated text says and how it scores under three rules."""

    extracted: str | None
    """The answer by the flexible rule: the stated format where it is there, else the last number."""
    correct: bool
    """The flexible answer equals gold."""
    strict: bool
    """The answer in the stated format equals gold."""
    anywhere: bool
    """Gold occurs somewhere in the text."""
    formatted: bool
    """The stated format is there."""


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
    """Score a text whose answer is one number; compared by value, so 72.0 equals 72."""
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
