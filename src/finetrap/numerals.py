"""Numbers as people write them in text, read exactly: pure functions on strings."""

import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

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
DIGITS = re.compile(r"[0-9]+(?:[.,][0-9]+)*")
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
    r"(?:[+*÷±√^/≤≥]|(?<![-=])[<>]|[\w)] -|[0-9] x|\\(?!boxed|fbox)[A-Za-z]{1,20} ?\{?|\} ?\{|\bsqrt ?\("
    r"|\b(?:more|less|fewer|greater) than) ?$"
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


class Number(NamedTuple):
    """A number in a text, and how it stands there."""

    start: int
    end: int
    value: Fraction | None
    """None where it is a ratio, a range, a date, or within an expression."""
    aside: bool
    computed: bool
    """Stands right after an equals sign."""


def plain(text: str) -> str:
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


def counting(text: str) -> Iterator[tuple[re.Match[str], str]]:
    """The pieces that count something, each with what stands right before it."""
    for piece in _PIECE.finditer(text):
        before = text[max(0, piece.start() - 25) : piece.start()]
        if not _NO_COUNT_AFTER.match(text, piece.end()) and not _NO_COUNT_BEFORE.search(before):
            yield piece, before


def numbers_in(text: str) -> list[Number]:
    """All that count something, in order."""
    found: list[Number] = []
    for piece, before in counting(text):
        start, end = piece.span()
        value = None if _OPEN_AFTER.match(text, end) or _OPEN_BEFORE.search(before) else _value(piece)
        if (
            found
            and found[-1].value != value
            and start - found[-1].end < 20
            and _JOINT.fullmatch(text, found[-1].end, start)
        ):
            found[-1], value = found[-1]._replace(value=None), None
        found.append(Number(start, end, value, bool(_ASIDE.search(before)), bool(_EQUALS.search(before))))
    return found


def value_of(text: str) -> Fraction | None:
    r"""The exact value of a text that is one number, with a unit or without; None where it is not.

    "25%" is 25: a question that asks for a percentage is answered by "25%" and by "25 percent" alike. Units are not
    converted: "50 cents" is 50. "1 234" with a plain space is two numbers, with a no-break or thin space one. "3rd"
    is a rank, not a number.
    """
    text = plain(text)
    numbers = numbers_in(text)
    if not numbers:
        return word_value(text)
    return numbers[0].value if len(numbers) == 1 else None


def word_value(text: str) -> Fraction | None:
    """The value of the one number word, up to twelve, of a text without digits."""
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
