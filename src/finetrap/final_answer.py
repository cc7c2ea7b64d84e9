r"""The one number that a free-text solution arrives at: pure functions on strings.

Made for solutions that nobody marked up, such as those of microsoft/orca-math-word-problems-200k. Where does
the answer stand? The first of these that is there decides, even if what it decides is that there is no one number:

1. `\boxed{...}`; several with different values are several answers.
2. A line `#### n`.
3. The last sentence with "the answer is".
4. The last sentence with a cue (Therefore, So, Thus, Hence, in total, ...); a later sentence of the same line must
   not name another number. A cue in an earlier line was a step, and then, as without any cue, the final sentence
   counts. Checks and remarks after the answer ("To verify: ...") are passed over.

Within that sentence brackets, "Since ..., " before and ", because ..." after the claim are left out, and "..., so"
narrows it to what follows. Then: the number right after its last equals sign; else its only number; else the number
after "is" or "are" at its end, apart from asides ("in 3 days"); else its only number that the solution computed (that
stands after an equals sign anywhere), if every other was mentioned before: so a number out of the question said again
is not taken for the answer. What is not decided by then is None: a row that is left out costs less than a row with a
wrong answer.

Measured on GSM8K's test split, on which no rule was made: of 1,319 solutions with the marked answer cut off, 1,301
give that answer, 15 none, and 3 another (twice dollars where cents are marked, once a mark unlike its solution).
"""

import re
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

from finetrap.numerals import DIGITS, Number, agree, canonical, counting, numbers_in, plain, value_of, word_value
from finetrap.scoring import Verdict

_STATED = re.compile(r"^ ?#### (.*)", re.M)
_BOXED = re.compile(r"\\(?:boxed|fbox) ?\{")
_MARKER = re.compile(r"^ ?(?:[-*•] |[0-9]{1,2}[.)] |#{1,6} )+", re.M)
# A stop ends a sentence where a capital, a digit or the like follows; not after "Mr." or before "m. on".
_STOP = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)[.!?][\"')*]* (?=[A-Z0-9$\\(\"'-])")
_ANSWER = re.compile(
    r"(?:^\W*|\b(?:the|final|correct|our|my) )answer\b(?: (?:to|for) [^.:=\n]{0,60}?)?(?: (?:is|would be)\b| ?[:=])",
    re.I,
)
_CUE = re.compile(
    r"^\W*(?:and |but )?so(?! far| that)\b|\b(?:therefore|thus|hence|consequently|finally|altogether|in total"
    r"|as a result|in conclusion|this means|that means)\b",
    re.I,
)
_REMARK = re.compile(
    r"^\W*(?:to |let's |let us |we can |you can |now,? )?(?:double[- ]?)?(?:check|verif|confirm|note\b|remember\b"
    r"|(?:i )?hope\b|this is because|because\b[^,]*$|indeed\b|please\b|this (?:makes sense|matches|is correct))",
    re.I,
)
_BRACKETS = re.compile(r"\([^()]*\)")
_OPENING = re.compile(r"^\W*(?:therefore|thus|so|hence|finally|now|consequently|in conclusion),? ", re.I)
_LEAD = re.compile(
    r"^\W*"
    r"(?:since|if|when|with|because|as|given|after|for|at|in|out of|by|from|rounding|to)\b[^,]{1,200}, (?:then )?",
    re.I,
)
_REASON = re.compile(r",? (?:since|because|given that|so that(?!'))\b|, as\b", re.I)
_SO = re.compile(r",? (?:so(?! that )|therefore|thus|hence|which means|meaning|then) ", re.I)
_IS = re.compile(r"\b(?:is|are|was|were|be|equals|equal to)\b", re.I)
_ROUNDS = re.compile(r"\bround", re.I)
# x = 2, y = 3: two answers, where 2 + 3 = 5, 5 + 1 = 6 is one.
_ASSIGNS = re.compile(r"(?:^|[,;:] ?|\b(?:and|or) )[A-Za-z][A-Za-z' ]{0,30}= ?$")
_ANOTHER = re.compile(r"[,;]|\b(?:and|or|while|but|which)\b", re.I)


class _Known(NamedTuple):
    """What the whole solution says, to judge one sentence of it by."""

    computed: frozenset[Fraction]
    mentioned: Counter[str]


def final_answer(solution: str) -> str | None:
    """The canonical text of the one number that a solution arrives at; None where it is not one number."""
    text = plain(solution)
    value = _final_value(text, numbers_in(text))
    return None if value is None else canonical(value)


def _final_value(text: str, numbers: list[Number]) -> Fraction | None:
    computed = frozenset(number.value for number in numbers if number.computed and number.value is not None)
    known = _Known(computed, Counter(DIGITS.findall(text)))
    boxes = {_claimed(box, known) for box in _boxed(text)}
    if boxes:
        return boxes.pop() if len(boxes) == 1 else None
    stated = _STATED.findall(text)
    if stated and (value := value_of(stated[-1])) is not None:
        return value
    if not re.search("[0-9]", text):
        return word_value(_sentences(text)[-1][-1]) if text.strip() else None
    return _concluded(_sentences(text), known)


def _boxed(text: str) -> list[str]:
    """What is inside each box, up to the brace that closes it."""
    boxes, end = [], 0
    for match in _BOXED.finditer(text):
        if match.start() < end:
            continue
        depth, end = 1, match.end()
        while depth and end < len(text):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        boxes.append(text[match.end() : end - (depth == 0)])
    return boxes


def _sentences(text: str) -> list[list[str]]:
    """The sentences of each line; one that ends in a colon only announces, and is left out unless it is all."""
    lines = [_STOP.split(line) for line in _MARKER.sub("", text).splitlines() if line.strip()]
    kept = [line for sentences in lines if (line := [s for s in sentences if s.strip()[-1:] not in (":", "")])]
    return kept or [[text]]


def _concluded(lines: list[list[str]], known: _Known) -> Fraction | None:
    for sentence in (s for line in reversed(lines) for s in reversed(line)):
        if found := list(_ANSWER.finditer(sentence)):
            return _claimed(sentence[found[-1].end() :], known, stated=True)
    while len(lines) > 1 and _REMARK.match(lines[-1][0]) and not any(map(_CUE.search, lines[-1])):
        lines = lines[:-1]
    line = lines[-1]
    cued = max((i for i, sentence in enumerate(line) if _CUE.search(sentence)), default=None)
    if cued is None:
        return _claimed([line[0], *(s for s in line[1:] if not _REMARK.match(s))][-1], known)
    value = _claimed(line[cued], known)
    for sentence in line[cued + 1 :]:
        if _REMARK.match(sentence):
            break
        if numbers_in(sentence) and _claimed(sentence, known) != value:
            return None
    return value


def _claimed(sentence: str, known: _Known, *, stated: bool = False) -> Fraction | None:
    """The one number that a sentence claims; `stated` where it begins right after "the answer is"."""
    claim, reason = _narrowed(sentence)
    numbers = numbers_in(claim)
    value = _chosen(claim, numbers, known, stated=stated)
    # "He has $4 left because 20 - 6 = 14": one of them is wrong.
    reasons = [number.value for number in numbers_in(reason) if number.computed]
    return value if not reasons or reasons[-1] == value else None


def _chosen(claim: str, numbers: list[Number], known: _Known, *, stated: bool) -> Fraction | None:
    equals = max(claim.rfind("="), claim.rfind("≈"))
    if equals >= 0:
        return _right_hand_side(claim, equals, numbers)
    if not numbers:
        return word_value(claim) if stated else None
    if len({number.value for number in numbers}) == 1:
        # "Each of the 5 children gets the same" names no answer where the solution computed others.
        doubtful = known.computed and all(n.aside and n.value not in known.computed for n in numbers)
        return None if doubtful and not stated else numbers[0].value
    direct = [number for number in numbers if not number.aside] or numbers
    if stated and len(direct) == 1:
        return direct[0].value
    gap = claim[direct[-2].end if len(direct) > 1 else 0 : direct[-1].start]
    if _IS.search(gap) and not _ANOTHER.search(gap):
        return direct[-1].value
    hits = {number.value for number in numbers} & known.computed
    elsewhere = known.mentioned - Counter(DIGITS.findall(claim))
    others = [claim[number.start : number.end] for number in direct if number.value not in hits]
    # A number that was neither computed nor mentioned before may be the answer as well.
    if len(hits) != 1 or any(digits not in elsewhere for text in others for digits in DIGITS.findall(text)):
        return None
    return hits.pop()


def _right_hand_side(claim: str, equals: int, numbers: list[Number]) -> Fraction | None:
    after = [number for number in numbers if number.start > equals]
    assigned = {number.value for number in numbers if _ASSIGNS.search(claim[: number.start][-40:])}
    if not after or not after[0].computed or len(assigned) > 1:
        return None
    rest = [n.value for n in after[1:] if _IS.search(claim, after[0].end, n.start) or _ROUNDS.search(claim, 0, n.start)]
    return after[0].value if set(rest) <= {after[0].value} else None


def _narrowed(sentence: str) -> tuple[str, str]:
    """The sentence less what stands around its claim, and the reason that it gives after it."""
    claim = _BRACKETS.sub("", sentence)
    claim = _LEAD.sub("", _OPENING.sub("", claim if any(counting(claim)) else sentence))
    claim = _SO.split(claim)[-1]
    reasons = list(_REASON.finditer(claim))
    # With a comma after it, it is not the end of the sentence: "..., since each holds 4, he needs 5".
    if reasons and ", " not in claim[(start := reasons[-1].start()) + 2 :] and any(counting(claim[:start])):
        return claim[:start], claim[start:]
    return claim, ""


def score_final(text: str, gold: str) -> Verdict:
    """Score a text whose answer is one number, by value; what the prompt asks for, "#### n", counts first.

    The answer is the first "#### n", else the final answer of the text as `finetrap.final_answer` reads it, else, since
    an untouched model writes as it likes, the last number.
    """
    target = value_of(gold)
    if target is None:
        raise ValueError(f"gold answer {gold!r} is not a number")
    text = plain(text)
    numbers = numbers_in(text)
    stated = next((n.value for n in numbers if n.value is not None and text[: n.start].endswith("#### ")), None)
    extracted = stated if stated is not None else _final_value(text, numbers)
    if extracted is None:
        extracted = next((n.value for n in reversed(numbers) if n.value is not None), None)
    return Verdict(
        extracted=None if extracted is None else canonical(extracted),
        correct=extracted is not None and agree(extracted, target),
        strict=stated is not None and agree(stated, target),
        anywhere=any(n.value is not None and agree(n.value, target) for n in numbers),
        formatted=stated is not None,
    )
