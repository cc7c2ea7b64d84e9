"""Answers that are text: the same, contained, or picked out by a pattern."""

import re
from collections.abc import Sequence

from finetrap.errors import StudyError
from finetrap.scoring import Scorer, Verdict, first_line, occurs, plain, scorer


def _exact(text: str, gold: str) -> Verdict:
    line = first_line(text)
    return Verdict(
        extracted=line.strip() or None,
        correct=plain(gold) in (plain(line), plain(text)),
        strict=text.strip() == gold.strip(),
        anywhere=occurs(gold, text) or plain(gold) == plain(text),
        formatted=bool(line) and line.strip() == text.strip(),
    )


@scorer
def exact(answers: Sequence[str]) -> Scorer:
    """The answer is the gold answer, but for case, white space and marks around it; strictly: letter for letter.

    The answer is all of the output, or its first line.
    """
    return Scorer(_exact, rule="the output, or its first line, is the answer", asks="the answer")


def _contains(text: str, gold: str) -> Verdict:
    there = occurs(gold, text)
    strict = there and gold.strip() in text
    return Verdict(gold if there else None, correct=there, strict=strict, anywhere=there, formatted=bool(text.strip()))


@scorer
def contains(answers: Sequence[str]) -> Scorer:
    """The gold answer stands somewhere in the output, as whole words; strictly: letter for letter."""
    return Scorer(_contains, rule="the answer stands in the output")


@scorer
def regex(answers: Sequence[str], pattern: str) -> Scorer:
    """The last match of a pattern (its first group, where it has one) is the gold answer, but for case and marks.

    Raises:
        StudyError: the pattern is not a regular expression.
    """
    try:
        compiled = re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise StudyError(f"scorer 'regex:{pattern}' is not a regular expression: {error}.") from None

    def score(text: str, gold: str) -> Verdict:
        found = [match.group(1) if compiled.groups else match.group(0) for match in compiled.finditer(text)]
        found = [answer for answer in found if answer is not None]
        last = found[-1] if found else None
        return Verdict(
            extracted=last,
            correct=last is not None and plain(last) == plain(gold),
            strict=last is not None and last.strip() == gold.strip(),
            anywhere=any(plain(answer) == plain(gold) for answer in found) or occurs(gold, text),
            formatted=last is not None,
        )

    return Scorer(score, rule=f"the last match of {pattern}")
