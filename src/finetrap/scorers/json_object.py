"""Answers that are a JSON object: is it valid, and which fields match."""

import json as json_module
from collections.abc import Sequence
from typing import Any

from finetrap.scoring import AnswerError, Scorer, Verdict, scorer

_DECODER = json_module.JSONDecoder()


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        value = json_module.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _objects(text: str) -> list[dict[str, Any]]:
    """Every JSON object in a text that is not inside another."""
    found: list[dict[str, Any]] = []
    start = text.find("{")
    while start >= 0:
        try:
            value, end = _DECODER.raw_decode(text, start)
            found.append(value)
        except (ValueError, RecursionError):
            end = start + 1
        start = text.find("{", end)
    return found


def _same(a: object, b: object) -> bool:
    """Equal as JSON: 1 equals 1.0, and true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def _score(text: str, gold: str) -> Verdict:
    wanted = _parsed(gold) or {}
    whole = _parsed(text.strip())
    objects = [whole] if whole is not None else _objects(text)
    first = objects[0] if objects else None
    return Verdict(
        extracted=None if first is None else json_module.dumps(first, ensure_ascii=False, sort_keys=True),
        correct=first is not None and _same(first, wanted),
        strict=whole is not None and _same(whole, wanted),
        anywhere=any(_same(value, wanted) for value in objects),
        formatted=whole is not None,
        parts=tuple(
            (key, first is not None and key in first and _same(first[key], wanted[key])) for key in sorted(wanted)
        ),
    )


@scorer
def json(answers: Sequence[str]) -> Scorer:
    """The first JSON object in the output equals the gold one, field by field; strictly: it is all of the output.

    Raises:
        AnswerError: a gold answer is not a JSON object.
    """
    fields: dict[str, None] = {}
    for index, answer in enumerate(answers):
        value = _parsed(answer)
        if value is None:
            raise AnswerError(index, f"the answer {answer[:40]!r} is not a JSON object, which --score json needs")
        fields.update(dict.fromkeys(value))
    return Scorer(
        _score, rule="the first JSON object equals the expected one", asks=f"a JSON object ({', '.join(fields)})"
    )
