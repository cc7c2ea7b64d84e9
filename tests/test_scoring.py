"""Answers are found where people write them, and compared by value."""

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetrap.scoring import (
    Verdict,
    is_degenerate,
    last_number,
    number_of,
    outcome_of,
    score_number,
    strict_number,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234,567", "1234567"),
        ("72.", "72"),
        ("-5", "-5"),
        ("$1,234.50", "1234.5"),
        ("-$20", "-20"),
        ("72.0", "72"),
        (" 8 ", "8"),
        (".5", "0.5"),
        ("007", "7"),
    ],
)
def test_a_number_is_read_as_people_write_it(text, value):
    assert number_of(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", ".", ",", "$", "-", "--", "1.2.3", "seven", "nan", "Infinity", "1-2"])
def test_what_is_no_number_has_no_value(text):
    assert number_of(text) is None


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("They had 1,250 apples.", "1250"),
        ("That makes 1,000,000 in all.", "1000000"),
        ("The answer is 72.", "72"),
        ("The answer is 72.0", "72"),
        ("It fell to -5 degrees", "-5"),
        ("She pays $18.50.", "18.5"),
        ("He owes -$20.", "-20"),
        ("It takes 12km of rope", "12"),
        ("Each gets 25% of it", "25"),
        ("First 3, then 4, so 3 + 4 = 7", "7"),
        ("#### 42", "42"),
        ("#### 42\nQuestion: how many are 6 and 7?", "42"),
        ("#### $1,250.00 dollars, not 9", "9"),
        ("The answer is **15**.", "15"),
        ("\\boxed{16}", "16"),
        ("72", "72.0"),
        ("9", "9"),
    ],
)
def test_the_flexible_answer_is_the_stated_number_or_else_the_last(text, gold):
    assert score_number(text, gold).correct


@pytest.mark.parametrize(
    ("text", "gold"),
    [("no number here", "5"), ("", "0"), ("17", "7"), ("The 7 of them ate 8", "7"), ("#### 5\nor 6", "6"), ("5", "-5")],
)
def test_another_number_or_none_is_not_correct(text, gold):
    assert not score_number(text, gold).correct


def test_without_any_number_nothing_is_extracted():
    assert score_number("I do not know.", "5") == Verdict(
        None, correct=False, strict=False, anywhere=False, formatted=False
    )


def test_strict_needs_the_stated_format():
    assert not score_number("The answer is 5", "5").strict
    assert score_number("so\n#### 5", "5").strict


def test_the_first_stated_number_counts():
    assert score_number("#### 5\n\n#### 6", "5").strict


def test_gold_in_the_middle_of_a_text_is_found_anywhere_only():
    verdict = score_number("So 1,200 apples, of which 3 are red.", "1200")
    assert verdict.anywhere
    assert not verdict.correct


def test_gold_within_another_number_is_not_anywhere():
    assert not score_number("The answer is 172", "72").anywhere


def test_a_gold_answer_that_is_no_number_is_an_error():
    with pytest.raises(ValueError, match="'many' is not a number"):
        score_number("5", "many")


TEXTS = [
    "",
    "no number",
    "5",
    "-5",
    "The answer is 72.",
    "The answer is 72.0.",
    "#### 72",
    "####72",
    "####  72",
    "#### -72",
    "#### $72",
    "#### 1,234",
    "#### 1,234.",
    "#### 12 and #### 13",
    "so 3 + 4 = 7\n#### 7\nQuestion: and 8?",
    "$1,234.50",
    "-$3",
    "It costs $5",
    "It costs $5.",
    "He has 5 apples, 6 pears, and 7 plums",
    "10-20",
    "3/4",
    "50%",
    "He ate 5...",
    "2 000 000",
    "1e5",
    "x=12.",
    "A: 4, B: 5,",
    "\u2212 5 and \u22126",
    "1,000,000 people; 2,5",
    "\\boxed{42}",
]


@pytest.mark.parametrize("text", TEXTS)
def test_extraction_equals_that_of_lm_evaluation_harness(text):
    extraction = pytest.importorskip("lm_eval.filters.extraction")
    # The filters of lm_eval/tasks/gsm8k/gsm8k.yaml, version 3.0.
    strict = extraction.RegexFilter(r"#### (\-?[0-9\.\,]+)")
    flexible = extraction.RegexFilter(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)
    expected = [filter_.apply([[text]], [{}])[0][0] for filter_ in (strict, flexible)]
    assert [strict_number(text) or "[invalid]", last_number(text) or "[invalid]"] == expected


@pytest.mark.parametrize(("text", "number"), [("He ate 5 ...", "5"), ("Wait, ...", None), ("4 by version 1.2.3", "4")])
def test_what_has_no_value_is_no_last_number(text, number):
    assert last_number(text) == number


@given(
    start=st.text(max_size=60),
    piece=st.text(min_size=1, max_size=120),
    more=st.integers(0, 3),
    cut=st.integers(0, 119),
)
def test_a_piece_repeated_to_the_end_is_degenerate(start, piece, more, cut):
    times = max(4, math.ceil(40 / len(piece))) + more
    assert is_degenerate(start + piece * times + piece[: cut % len(piece)])


words = st.text("abcdefghij", min_size=1, max_size=12)


@given(st.lists(words, unique=True, max_size=60))
def test_distinct_words_are_not_degenerate(distinct):
    assert not is_degenerate(" ".join(distinct))


@given(piece=words, times=st.integers(1, 3))
def test_a_piece_that_comes_three_times_is_not_degenerate(piece, times):
    start = "First of all we should look at what is given, then at what is asked, and only then begin to count: "
    assert not is_degenerate(start + f"{piece}0123456789." * times)


def test_a_short_stutter_is_not_degenerate():
    assert not is_degenerate("The answer is 7" + "." * 30)


@pytest.mark.parametrize(("loop", "least"), [(".", 40), ("ab", 40), ("abcdefghij", 40), ("abcdefghijkl", 48)])
def test_a_loop_is_four_times_its_piece_and_forty_characters(loop, least):
    text = loop * 40
    assert is_degenerate(text[:least])
    assert not is_degenerate(text[: least - 1])
    assert is_degenerate("Said once: " + text[:least])


def test_a_loop_that_the_text_leaves_is_not_degenerate():
    assert not is_degenerate("again and " * 20 + "then it stopped: 42")


RIGHT = score_number("#### 5", "5")
WRONG = score_number("#### 6", "5")
NOTHING = score_number("no idea", "5")
LOOP = "and on " * 30


@pytest.mark.parametrize(
    ("verdict", "text", "truncated", "outcome"),
    [
        (RIGHT, "#### 5", False, "correct"),
        (RIGHT, LOOP, True, "correct"),
        (WRONG, "#### 6", False, "wrong"),
        (WRONG, LOOP, False, "wrong"),
        (NOTHING, "no idea", False, "no_answer"),
        (NOTHING, "no idea", True, "truncated"),
        (WRONG, "first 6, then", True, "truncated"),
        (WRONG, LOOP, True, "degenerate"),
    ],
)
def test_every_answer_has_one_outcome(verdict, text, truncated, outcome):
    assert outcome_of(verdict, text, truncated=truncated) == outcome
