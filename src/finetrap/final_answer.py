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
after "is" or "are" at its end; else its only number that the solution computed (that stands after an equals sign
anywhere), so that a number out of the question said again is not taken for the answer. What is not decided by then
is None: a row that is left out costs less than a row with a wrong answer.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from finetrap.scoring import Verdict

_LONGEST = 40
"""Characters of a number; what is longer is no answer, and would be slow to compute with."""
_LARGEST_EXPONENT = 30

_SPACE = re.compile(r"[^\S\n]+")
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac ?\{ ?(-?[0-9.,]+) ?\} ?\{ ?([0-9.,]+) ?\}")
_LATEX_TEXT = re.compile(r"\\(?:text[a-z]*|math(?:rm|bf)|mbox) ?\{([^{}]*)\}")
_LATEX = {
    r"\$": "$",
    r"\%": "%",
    "{,}": ",",
    r"\!": "",
    r"\,": "\u2009",
    r"\;": " ",
    r"\(": " ",
    r"\)": " ",
    r"\[": " ",
    r"\]": " ",
    r"\times": "*",
    r"\cdot": "*",
    r"\div": "\N{DIVISION SIGN}",
    "\N{MULTIPLICATION SIGN}": "*",
    "\N{EN DASH}": "-",
    r"\approx": "≈",
    r"^\circ": "°",
    r"^{\circ}": "°",
    "\N{MINUS SIGN}": "-",
    "\N{FRACTION SLASH}": "/",
}
_LATEX_SIGN = re.compile("|".join(map(re.escape, _LATEX)))
_EMPHASIS = re.compile(r"(?<![0-9])\*\*|\*\*(?![0-9])|`")
# A plain space between digits may as well part two numbers of a list; only those spaces that keep digits together
# are read as a thousands separator.
_THIN_SPACE = re.compile("(?<=[0-9])[\u00a0\u2009\u202f](?=[0-9]{3}(?![0-9]))")
_POWER = re.compile(r"\^\{(-?\w{1,9})\}")

# Wide on purpose: all that hangs together (3:4, 10-20, 1.2.3, 3 to 4) is one piece, whose parts are no answer.
_PIECE = re.compile(
    r"(?<![\w.^])(?<![A-Za-z^]-)"
    r"(?P<sign>-?(?:(?:US)?[$€£] ?)?-?)"
    r"(?P<body>(?:[0-9]+(?: | and |-)[0-9]+/|\.)?[0-9]+"
    r"(?:(?:[.,:-]| ?/ ?| to )[$€£]?[0-9]+)*)"
    r"(?P<power>[eE][+-]?[0-9]{1,3}\b| ?[x*] ?10\^-?[0-9]{1,3})?"
    r"(?P<scale> (?:hundred|thousand|million|billion|trillion)\b)?"
)
_DIGITS = re.compile(r"[0-9]+(?:[.,][0-9]+)*")
_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]+)?"
_BODY = re.compile(
    rf"(?:(?P<whole>[0-9]+)(?: | and |-)(?=[0-9]+/))?(?P<top>{_DECIMAL})(?: ?/ ?(?P<bottom>{_DECIMAL}))?"
)
_SCALE = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_WORD = re.compile(rf"\b(?:{'|'.join(_WORDS)})\b(?![ -](?:hundred|thousand|million|and a|half|thirds?)\b)", re.I)

# Counts nothing: the 3rd, a 5-day trip, Step 2.
_NO_COUNT_AFTER = re.compile(r"(?:st|nd|rd|th)\b|-[A-Za-z]{2}")
_NO_COUNT_BEFORE = re.compile(r"\b(?:step|case|option|part|equation|method|question) $", re.I)
# Part of an expression that nobody worked out, or of a bound.
_OPEN_AFTER = re.compile(
    r" ?(?:[+*÷±√π\\<>≤≥…^]|\.\.\.|/ ?[(xyzn]|- ?[0-9$(xyzn\\]|x [0-9]|pi\b|remainder\b)|[xyznab]\b|[eE][+-]?[0-9]"
)
_OPEN_BEFORE = re.compile(
    r"(?:[+*÷±√^/≤≥]|(?<![-=])[<>]|[\w)] -|[0-9] x|\\(?!boxed|fbox)[A-Za-z]{1,20} ?\{?|\} ?\{|\bsqrt ?\() ?$"
)
_UNIT = (
    r"(?:hours?|hrs?|h|minutes?|mins?|seconds?|days?|weeks?|months?|years?|feet|foot|ft|inch(?:es)?|pounds?|lbs?"
    r"|ounces?|oz|dollars?|cents?|kilometers?|km|meters?|m|centimeters?|cm|kilograms?|kg|grams?|g)"
)
# Between two numbers that are one answer in two units (2 hours 30 minutes), or two answers (5, 6 and 7).
_JOINT = re.compile(rf" ?{_UNIT}?,? ?(?:and|or|&)? ?")
# Says when, of what or among how many; the number asked for seldom stands here.
_ASIDE = re.compile(
    r"\b(?:in|for|after|per|every|within|all|both|the|these|those|each|among|between|from|than|into|with|by|at|when"
    r"|before|during|if|out of|on|first|last|next) $",
    re.I,
)
_EQUALS = re.compile(r"(?:(?<![<>!])[=≈]|\b(?:equals|is equal to|gives(?: us| you)?)) ?(?:approximately |about )?$")


class _Number(NamedTuple):
    start: int
    end: int
    value: Fraction | None
    """None where it is a ratio, a range, a date, or within an expression."""
    aside: bool
    computed: bool
    """Stands right after an equals sign."""


class _Known(NamedTuple):
    """What the whole solution says, to judge one sentence of it by."""

    computed: frozenset[Fraction]
    mentioned: Counter[str]


def _plain(text: str) -> str:
    """The text with LaTeX and Unicode's ways to write numbers made plain, and single spaces."""
    text = _LATEX_SIGN.sub(lambda match: _LATEX[match.group()], text)
    text = _VULGAR.sub(
        lambda match: " " + unicodedata.normalize("NFKC", match.group()).replace("\N{FRACTION SLASH}", "/"), text
    )
    text = _SPACE.sub(" ", _THIN_SPACE.sub(",", _LATEX_TEXT.sub(r" \1", _EMPHASIS.sub("", text))))
    return _LATEX_FRACTION.sub(_slashed, _POWER.sub(r"^\1", text))


def _slashed(match: re.Match[str]) -> str:
    space = " " if match.string[: match.start()][-1:].isdigit() else ""
    return f"{space}{match[1]}/{match[2]}"


def _value(piece: re.Match[str]) -> Fraction | None:
    body = _BODY.fullmatch(piece["body"]) if len(piece.group()) <= _LONGEST else None
    if body is None or not body["top"] or body["bottom"] == "":
        return None
    value = Fraction(body["top"].replace(",", ""))
    if body["bottom"]:
        bottom = Fraction(body["bottom"].replace(",", ""))
        if not bottom:
            return None
        value /= bottom
    if body["whole"]:
        if value >= 1:
            return None
        value += int(body["whole"])
    exponent = int(re.split(r"[eE^]", piece["power"])[-1]) if piece["power"] else 0
    exponent += _SCALE[piece["scale"].strip()] if piece["scale"] else 0
    if abs(exponent) > _LARGEST_EXPONENT:
        return None
    value *= Fraction(10) ** exponent
    return -value if "-" in piece["sign"] else value


def _counting(text: str) -> Iterator[tuple[re.Match[str], str]]:
    """The pieces that count something, each with what stands right before it."""
    for piece in _PIECE.finditer(text):
        before = text[max(0, piece.start() - 25) : piece.start()]
        if not _NO_COUNT_AFTER.match(text, piece.end()) and not _NO_COUNT_BEFORE.search(before):
            yield piece, before


def _numbers(text: str) -> list[_Number]:
    """All that count something, in order."""
    found: list[_Number] = []
    for piece, before in _counting(text):
        start, end = piece.span()
        value = None if _OPEN_AFTER.match(text, end) or _OPEN_BEFORE.search(before) else _value(piece)
        if found and start - found[-1].end < 20 and _JOINT.fullmatch(text, found[-1].end, start):
            found[-1], value = found[-1]._replace(value=None), None
        found.append(_Number(start, end, value, bool(_ASIDE.search(before)), bool(_EQUALS.search(before))))
    return found


def value_of(text: str) -> Fraction | None:
    r"""The exact value of a text that is one number, with a unit or without; None where it is not.

    "25%" is 25: a question that asks for a percentage is answered by "25%" and by "25 percent" alike. Units are not
    converted: "50 cents" is 50. "1 234" with a plain space is two numbers, with a no-break or thin space one. "3rd"
    is a rank, not a number.
    """
    plain = _plain(text)
    numbers = _numbers(plain)
    if not numbers:
        return _word_value(plain)
    return numbers[0].value if len(numbers) == 1 else None


def _word_value(text: str) -> Fraction | None:
    words = {match.group().lower() for match in _WORD.finditer(text)}
    return Fraction(_WORDS.index(words.pop()) + 1) if len(words) == 1 and not re.search("[0-9]", text) else None


def canonical(value: Fraction) -> str:
    """The one text for a value: a decimal where it ends, else a fraction in lowest terms."""
    digits = _ending_digits(value)
    if digits is None:
        return f"{value.numerator}/{value.denominator}"
    if not digits:
        return str(value.numerator)
    whole, part = divmod(abs(value.numerator) * 10**digits // value.denominator, 10**digits)
    return f"{'-' if value < 0 else ''}{whole}.{part:0{digits}d}"


def _ending_digits(value: Fraction) -> int | None:
    """How many decimals write the value exactly; None where none do, as with 1/3."""
    rest = value.denominator
    powers = []
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest, power = rest // prime, power + 1
        powers.append(power)
    return max(powers) if rest == 1 else None


def agree(one: Fraction, other: Fraction) -> bool:
    """Whether two answers are the same: exactly, or one is a repeating decimal and the other is it, rounded.

    0.33 and 0.333 stand for 1/3, since no decimal is it; 0.3 does not, as with one digit too many answers would be
    one (two digits are what money and percentages are rounded to). 0.13 does not stand for 0.125, which can be
    written. Two roundings of different length (3.33 and 3.333) are different answers.
    """
    if one == other:
        return True
    digits, more = _ending_digits(one), _ending_digits(other)
    if (digits is None) == (more is None):
        return False
    rounded, exact, places = (one, other, digits) if digits is not None else (other, one, more)
    assert places is not None
    return places >= 2 and abs(rounded - exact) * 2 * 10**places <= 1


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
_LEAD = re.compile(
    r"^\W*(?:(?:therefore|thus|so|hence|finally|now),? )?"
    r"(?:since|if|when|with|because|as|given|after|for|at|in|out of|by|from|rounding|to)\b[^,]{1,200}, (?:then )?",
    re.I,
)
_REASON = re.compile(r",? (?:since|because|given that)\b|, as\b", re.I)
_SO = re.compile(r",? (?:so|therefore|thus|hence|which means|meaning|then) ", re.I)
_IS = re.compile(r"\b(?:is|are|was|were|be|equals|equal to)\b", re.I)
_ROUNDS = re.compile(r"\bround", re.I)
# x = 2, y = 3: two answers, where 2 + 3 = 5, 5 + 1 = 6 is one.
_ASSIGNS = re.compile(r"(?:^|[,;:] ?|\b(?:and|or) )[A-Za-z][A-Za-z' ]{0,30}= ?$")
_ANOTHER = re.compile(r"[,;]|\b(?:and|or|while|but|which)\b", re.I)


def final_answer(solution: str) -> str | None:
    """The canonical text of the one number that a solution arrives at; None where it is not one number."""
    plain = _plain(solution)
    value = _final_value(plain, _numbers(plain))
    return None if value is None else canonical(value)


def _final_value(text: str, numbers: list[_Number]) -> Fraction | None:
    computed = frozenset(number.value for number in numbers if number.computed and number.value is not None)
    known = _Known(computed, Counter(_DIGITS.findall(text)))
    boxes = {_claimed(box, known) for box in _boxed(text)}
    if boxes:
        return boxes.pop() if len(boxes) == 1 else None
    stated = _STATED.findall(text)
    if stated and (value := value_of(stated[-1])) is not None:
        return value
    if not re.search("[0-9]", text):
        return _word_value(_sentences(text)[-1][-1]) if text.strip() else None
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
        if _numbers(sentence) and _claimed(sentence, known) != value:
            return None
    return value


def _claimed(sentence: str, known: _Known, *, stated: bool = False) -> Fraction | None:
    """The one number that a sentence claims; `stated` where it begins right after "the answer is"."""
    claim, reason = _narrowed(sentence)
    numbers = _numbers(claim)
    value = _chosen(claim, numbers, known, stated=stated)
    # "He has $4 left because 20 - 6 = 14": one of them is wrong.
    reasons = [number.value for number in _numbers(reason) if number.computed]
    return value if not reasons or reasons[-1] == value else None


def _chosen(claim: str, numbers: list[_Number], known: _Known, *, stated: bool) -> Fraction | None:
    equals = max(claim.rfind("="), claim.rfind("≈"))
    if equals >= 0:
        return _right_hand_side(claim, equals, numbers)
    if not numbers:
        return _word_value(claim) if stated else None
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
    elsewhere = known.mentioned - Counter(_DIGITS.findall(claim))
    others = [claim[number.start : number.end] for number in direct if number.value not in hits]
    # A number that was neither computed nor mentioned before may be the answer as well.
    if len(hits) != 1 or any(digits not in elsewhere for text in others for digits in _DIGITS.findall(text)):
        return None
    return hits.pop()


def _right_hand_side(claim: str, equals: int, numbers: list[_Number]) -> Fraction | None:
    after = [number for number in numbers if number.start > equals]
    assigned = {number.value for number in numbers if _ASSIGNS.search(claim[: number.start][-40:])}
    if not after or not after[0].computed or len(assigned) > 1:
        return None
    rest = [n.value for n in after[1:] if _IS.search(claim, after[0].end, n.start) or _ROUNDS.search(claim, 0, n.start)]
    return after[0].value if set(rest) <= {after[0].value} else None


def _narrowed(sentence: str) -> tuple[str, str]:
    """The sentence less what stands around its claim, and the reason that it gives after it."""
    claim = _BRACKETS.sub("", sentence)
    claim = _LEAD.sub("", claim if any(_counting(claim)) else sentence, count=1)
    claim = _SO.split(claim)[-1]
    reasons = list(_REASON.finditer(claim))
    # With a comma after it, it is not the end of the sentence: "..., since each holds 4, he needs 5".
    if reasons and ", " not in claim[(start := reasons[-1].start()) + 2 :] and any(_counting(claim[:start])):
        return claim[:start], claim[start:]
    return claim, ""


def score_final(text: str, gold: str) -> Verdict:
    """Score a text whose answer is one number, by value; what the prompt asks for, "#### n", counts first.

    `correct` goes by the first "#### n", else by `final_answer`, which is stricter with an untouched model than
    taking the last number is: a text that names several answers has none.
    """
    target = value_of(gold)
    if target is None:
        raise ValueError(f"gold answer {gold!r} is not a number")
    plain = _plain(text)
    numbers = _numbers(plain)
    stated = next((n.value for n in numbers if n.value is not None and plain[: n.start].endswith("#### ")), None)
    extracted = stated if stated is not None else _final_value(plain, numbers)
    return Verdict(
        extracted=None if extracted is None else canonical(extracted),
        correct=extracted is not None and agree(extracted, target),
        strict=stated is not None and agree(stated, target),
        anywhere=any(n.value is not None and agree(n.value, target) for n in numbers),
        formatted=stated is not None,
    )
