"""The final number of a solution is the one a careful reader would name, or none."""

import re
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finetrap.final_answer import final_answer, score_final
from finetrap.numerals import agree, canonical, value_of
from finetrap.scoring import Verdict
from finetrap.task import packaged_rows


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234,567", "1234567"),
        ("$1,234.50", "1234.5"),
        ("-$20", "-20"),
        ("$-20", "-20"),
        ("\N{MINUS SIGN}5", "-5"),
        ("€3.20", "3.2"),
        ("£ 7", "7"),
        ("25%", "25"),
        (r"12.5\%", "12.5"),
        ("3/4", "3/4"),
        ("3 / 4", "3/4"),
        ("-3/4", "-3/4"),
        ("2 1/2", "5/2"),
        ("2 and 1/2 hours", "5/2"),
        ("½", "1/2"),
        ("2½", "5/2"),
        (r"\frac{3}{4}", "3/4"),
        (r"-\dfrac{1}{8}", "-1/8"),
        (r"2\frac{1}{2}", "5/2"),
        (r"$\frac{5}{3}$", "5/3"),
        (r"12\text{ cm}", "12"),
        (r"1{,}250", "1250"),
        (r"2\,500", "2500"),
        ("1\u202f234\u202f567", "1234567"),
        ("72 km/h", "72"),
        ("$5/hour", "5"),
        ("5 apples", "5"),
        ("36 cm^2", "36"),
        ("36 m²", "36"),
        (r"45^\circ", "45"),
        (".5", "0.5"),
        ("72.", "72"),
        ("007", "7"),
        ("1e5", "100000"),
        ("3 \u00d7 10^6", "3000000"),
        (r"3 \times 10^{-2}", "0.03"),
        ("5 million people", "5000000"),
        ("**15**", "15"),
        ("twelve", "12"),
        ("Four apples", "4"),
    ],
)
def test_a_number_is_read_as_people_write_it(text, value):
    assert value_of(text) == Fraction(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no number",
        "3:4",
        "3 to 4",
        "10-20",
        "10\u201320 apples",
        "2024-01-05",
        "5:30 PM",
        "1.2.3",
        "1,23",
        "1,2,3",
        "1 234",
        "5, 6 and 7",
        "5 or 6",
        "3rd",
        "21st",
        "a 5-day trip",
        "COVID-19",
        "B2",
        "x_1",
        "3x",
        "2 + 3",
        "5 - 3",
        "2^10",
        "3π",
        r"2\sqrt{3}",
        r"\frac{x}{2}",
        "1 3/2",
        "1/0",
        "0.333...",
        "x > 5",
        "7 remainder 2",
        "2 hours 30 minutes",
        "5 feet 6 inches",
        "five or six",
        "two hundred",
        "1e999999999",
        "9" * 5000,
    ],
)
def test_what_is_not_one_number_has_no_value(text):
    assert value_of(text) is None


WORKED = "20 / 5 = 4.\n\n"

CASES = [
    ("a cue and one number", "We add 70 and 2. Therefore, the number is 72.", "72"),
    ("the last equals sign, a unit after it", "He earns 2 * 617.25 = $1,234.50 per day.", "1234.5"),
    ("a fraction", "4x = 3\nx = 3/4", "0.75"),
    ("a fraction that never ends", "3x = 1\nSo, x = 1/3.", "1/3"),
    ("a mixed number", "Thus, she needs 2 1/2 cups of flour.", "2.5"),
    ("a percentage", "Therefore, the price rose by 25%.", "25"),
    ("a percentage in LaTeX", r"So the increase is \(12.5\%\).", "12.5"),
    ("thousands", "In total, 1,250,000 people voted.", "1250000"),
    ("currency", "So, Mary has $7.50 left.", "7.5"),
    ("negative", "Therefore, the temperature is -5 degrees.", "-5"),
    ("negative with the Unicode minus", "So, x = \N{MINUS SIGN}12.", "-12"),
    ("square unit", "The area is 6 * 6 = 36 cm^2.", "36"),
    ("speed", "Hence the train's speed is 72 km/h.", "72"),
    ("a power that is worked out", "So 2^10 = 1024.", "1024"),
    ("a power that is not", "So the result is 2^10.", None),
    ("scientific notation", "The distance is 3 \\times 10^{5} km.", "300000"),
    ("boxed", r"So \boxed{42} is it, from 6 and 7.", "42"),
    ("boxed before stated", "#### 5\nThus \\boxed{6}.", "6"),
    ("boxed fraction", r"\[ x = \boxed{\frac{3}{4}} \]", "0.75"),
    ("boxed equation with unit", r"\boxed{x = 12 \text{ cm}}", "12"),
    ("boxed twice, the same", r"\boxed{8} ... so again \boxed{8.0}", "8"),
    ("boxed twice, not the same", r"\boxed{8} and \boxed{9}", None),
    ("boxed, not a number", r"There are 5: \boxed{x + 1}", None),
    ("boxed without an end", r"\boxed{5", "5"),
    ("stated", "8 - 3 = 5\n#### 5", "5"),
    ("stated before a cue", "So it is 4.\n#### 5", "5"),
    ("the answer is", "The answer is 12 apples for 3 days.", "12"),
    ("the answer is, then its reason", "The final answer is 12. This is because 3 boxes of 5 would be 15.", "12"),
    ("the answer is a word", "The answer is four.", "4"),
    ("the answer is two", "The answer is 5 and 6.", None),
    ("the answer: on a line of its own", "Adding up gives the total.\n**Answer:** 17 books", "17"),
    ("question's numbers said again", WORKED + "Therefore, if 5 people share 20 apples, each gets 4 apples.", "4"),
    ("question's numbers said again, answer in front", WORKED + "So they get 4 apples each when 5 share 20.", "4"),
    ("said again without a clause", WORKED + "So 5 people get 4 apples each.", "4"),
    (
        "two numbers after the equation",
        "8 - 3 = 5, so Jungkook is left with 5 apples and gave away 3.",
        "5",
    ),
    ("two numbers after the last equals sign", "20 * 3 = 60 pages in 3 days", "60"),
    ("two numbers, both computed", "3*4 = 12\n5*3 = 15\nSo there are 12 boys and 15 girls.", None),
    ("two numbers, none computed", "So there are 12 boys and 15 girls.", None),
    ("two assignments", "Therefore, x = 2 and y = 3.", None),
    ("two steps in one line", "8 - 3 = 5, 5 + 2 = 7", "7"),
    ("two solutions", "Therefore, x = 2 or x = -2.", None),
    ("a list", "Thus, the numbers are 5, 6, and 7.", None),
    ("a rounded result", "14 / 3 = 4.67, which is rounded up to 5.", None),
    ("rounding in words", "23 / 5 = 4.6.\nSince half a bus will not do, 5 buses are needed.", "5"),
    ("an approximation", r"So x \approx 3.14.", "3.14"),
    ("followed by a check in brackets", "So each gets 4 apples (since 5*4=20).", "4"),
    ("followed by a check in its own line", "Therefore, x = 4.\n\nTo check: 5 * 4 = 20, which is right.", "4"),
    ("followed by a check in the same line", "Therefore, x = 4. We can verify this: 5 * 4 = 20.", "4"),
    ("a reason after it", "So he needs 4 boxes, because each holds 5 apples.", "4"),
    ("a reason that says another number", "He has $4 left because 20 - 6 = 14.", None),
    ("a reason before it", "Since each box holds 5 apples, 4 boxes are needed.", "4"),
    ("a polite end", "So, the total is 17.\n\nI hope this helps!", "17"),
    ("a cue, then another claim", "So the width is 5. The length is 10.", None),
    ("a cue that was only a step", "So x = 5.\nThe larger number is 2 * 5 = 10.", "10"),
    ("so far is no cue", "So far he has 5. He gets 2 more, 5 + 2 = 7.", "7"),
    ("an announcement", "So the total is:\n\n5 + 7 = 12", "12"),
    ("display LaTeX", "Therefore:\n\\[\n\\frac{10}{4} = 2.5\n\\]", "2.5"),
    ("dollars as maths", "Thus, $x = 15$.", "15"),
    ("a ratio", "Therefore, the ratio of boys to girls is 3:4.", None),
    ("a range", "So it takes 10-20 minutes.", None),
    ("a date", "So the party is on 2024-05-17.", None),
    ("a time", "Therefore, she arrives at 5:30 PM.", None),
    ("two units", "Thus it takes 2 hours and 30 minutes.", None),
    ("a rank is no number", "If Jungkook is in 5th place, then 4 people crossed the line before him.", "4"),
    ("only a rank", "Therefore, he came in 3rd.", None),
    ("a number within a word", "So 12 people had COVID-19.", "12"),
    ("an adjective", "So the 5-day trip costs $300.", "300"),
    ("an answer that is a name", "Jimin has 1.3 > 1.2.\nTherefore, Jimin is the tallest.", None),
    ("an answer that is a name, after an equation", "5 - 3 = 2, so Jimin has more.", None),
    ("an open expression", "So the total is 3x + 5.", None),
    ("an inequality", "So x > 5.", None),
    ("a root", r"Thus the side is 5\sqrt{2}.", None),
    ("no number at all", "It cannot be known.", None),
    ("only words", "He is fifth, so four people came before him.", "4"),
    ("nothing", "", None),
    ("only spaces", " \n ", None),
    ("a numbered list of steps", "1. Add: 3 + 4 = 7\n2. Double: 7 * 2 = 14", "14"),
    ("a title", "So Mr. Kim has 12 apples.", "12"),
    ("a context that no equation gave", "2 + 2 = 4\nSo each of the 5 children gets the same.", None),
    ("an aside behind it", "Therefore, there are 12 girls in the class of 27.", None),
    ("a purpose", "So Jin should have 25 stickers so that everyone has 10.", "25"),
    ("a bound in words", "Therefore, Sohyun has more than 5 apples.", None),
    ("the same value twice", r"So the value is \frac{7}{2} or 3.5.", "3.5"),
    ("a rounding said as well", "So the probability is 1/6 or 16.67%.", None),
    ("a number inside the subject", "Therefore, the average after 5 new students join is 17 years.", "17"),
    ("an aside behind a copula", "Therefore, the number of girls is 12 in the other class.", "12"),
]


@pytest.mark.parametrize(("text", "answer"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_final_answer_is_what_a_careful_reader_would_name(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("72.0", "72", True),
        ("3/4", "0.75", True),
        ("0.33", "1/3", True),
        ("0.333", "1/3", True),
        ("0.34", "1/3", False),
        ("0.3", "1/3", False),
        ("66.67", "200/3", True),
        ("66.66", "200/3", False),
        ("67", "200/3", False),
        ("0.13", "0.125", False),
        ("3.33", "3.333", False),
        ("1/3", "2/6", True),
        ("5", "-5", False),
        ("0.25", "25%", False),
        ("0.29", "2/7", True),  # 0.2857...: off by 0.43 of the last digit
    ],
)
def test_answers_agree_exactly_or_as_the_rounding_of_what_no_decimal_can_say(one, other, same):
    assert agree(value_of(one), value_of(other)) == same
    assert agree(value_of(other), value_of(one)) == same


def test_the_stated_answer_counts_before_everything_else():
    verdict = score_final("#### 5\nSo \\boxed{6}\n#### 7", "5")
    assert verdict == Verdict("5", correct=True, strict=True, anywhere=True, formatted=True)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The total is 3 + 4 = 7, which is 7 dollars.", "7"),
        ("3 * 4 = 12, which is 13", None),
        ("So 5 + 7 = 12 apples, and 3 pears are left.", "12"),
        ("10 / 4 = 2.5, rounded 3", None),
        ("The answer is three apples.", "3"),
        ("The answer is one, the 3rd of them.", None),
        ("First 2 + 2 = 4.\nThen 4 + 5 = 9.\nI hope this helps the 3 of you!", "9"),
        ("So he has 9. That leaves none. She is glad.", "9"),
    ],
)
def test_what_stands_behind_an_equation_has_to_agree_where_it_says_that_it_is(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize("stated", ["#### 1,250", "#### $1250.00", "so\n#### 1250 dollars", "#### 1250."])
def test_a_stated_answer_is_read_with_currency_separators_and_unit(stated):
    assert score_final(stated, "1250").strict


def test_a_stated_fraction_equals_its_decimal():
    assert score_final("#### 3/4", "0.75").strict


def test_without_the_stated_format_the_final_answer_counts():
    verdict = score_final("So 5 people get 4 apples each, as 20 / 5 = 4.", "4")
    assert verdict == Verdict("4", correct=True, strict=False, anywhere=True, formatted=False)


def test_where_no_final_answer_is_found_the_last_number_counts_and_not_before():
    assert score_final("10 / 4 = 2.5, rounded 3", "3").extracted == "3"
    assert score_final("The answer is 7, since 12 were there.", "7").extracted == "7"


def test_gold_that_is_not_the_answer_is_anywhere_only():
    verdict = score_final("From 72 he takes 2.\n#### 70", "72")
    assert (verdict.correct, verdict.strict, verdict.anywhere, verdict.formatted) == (False, False, True, True)


def test_gold_within_another_number_is_not_anywhere():
    assert not score_final("The answer is 172", "72").anywhere


def test_without_an_answer_nothing_is_extracted():
    assert score_final("I do not know.", "5") == Verdict(
        None, correct=False, strict=False, anywhere=False, formatted=False
    )


def test_a_gold_answer_that_is_no_number_is_an_error():
    with pytest.raises(ValueError, match="'many' is not a number"):
        score_final("5", "many")


integers = st.integers(-(10**12), 10**12).map(Fraction)
decimals = st.builds(lambda n, places: Fraction(n, 10**places), st.integers(-(10**9), 10**9), st.integers(0, 6))
fractions = st.builds(Fraction, st.integers(-999, 999), st.integers(1, 999))


@given(integers | decimals | fractions)
def test_the_canonical_text_has_the_value(value):
    assert value_of(canonical(value)) == value


@given(integers)
def test_an_integer_is_read_with_and_without_separators(value):
    assert value_of(f"{int(value):,}") == value_of(str(int(value))) == value


@given(
    decimals, st.sampled_from(["{}", "${}", "{}%", "{} km/h", "{} apples", "€{}", r"\boxed{{{}}}", "**{}**", "${}$"])
)
def test_any_way_to_write_the_answer_is_found(value, form):
    text = form.format(canonical(value))
    assert final_answer(f"Therefore, the answer is {text}.") == canonical(value)


@given(st.integers(0, 99), st.integers(1, 99), st.integers(2, 99))
def test_a_mixed_number_is_its_sum(whole, top, bottom):
    value = value_of(f"{whole} {top}/{bottom}")
    assert value == (whole + Fraction(top, bottom) if top < bottom else None)


PIECES = [
    "So ",
    "the answer is ",
    "\\boxed{",
    "}",
    "{",
    "\\frac",
    "1",
    "23",
    ",",
    ".",
    " ",
    "\n",
    "= ",
    "-",
    "/",
    "$",
    "#### ",
]
PIECES += ["%", "(", ")", "x", "to ", "since ", ", ", "and ", "e5", "^", "\\text{", "½", "٣", "10^", "million", ": "]
pieces = st.sampled_from(PIECES)


@given(st.text(max_size=200) | st.lists(pieces, max_size=60).map("".join))
@example("1/0")
@example("\\frac{1.}{,}")
@example("5 \u00d7 10^99999")
def test_no_text_is_an_error(text):
    answer = final_answer(text)
    assert answer is None or value_of(answer) is not None
    score_final(text, "5")


HUGE = ["1", " ", "\\", "{", "}", "1 ", "1,", "1,234,", "1/", "1 1/", "-", "\\frac{", "\\boxed{", "\\text{", "(", "1("]
HUGE += [
    "= ",
    "= 1 ",
    "since ",
    "since 1, ",
    "so ",
    "So 1. ",
    "is 1 ",
    "#### ",
    "#### 1\n",
    "the answer ",
    ".",
    "$",
    "a",
]
HUGE += ["1 to ", "and ", "\n", "x = 1\n", "**", "10^", "^{", "If 1, ", "1-", ": ", "one "]


LENGTHS = [(piece, 20_000) for piece in HUGE] + [
    (piece, 100_000) for piece in ("1", " ", "\\", "{", "}", "(", "\\frac{")
]


@pytest.mark.parametrize(("piece", "length"), LENGTHS)
def test_a_huge_text_is_scored_in_a_time_that_a_backtracking_pattern_would_not_end_in(piece, length):
    assert score_final(piece * (length // len(piece)), "5") is not None


def test_of_gsm8ks_marked_solutions_three_of_1319_give_another_answer():
    # Twice dollars where cents are marked ($0.10, mark 10), once a mark that its solution does not arrive at.
    found = Counter()
    for row in packaged_rows("gsm8k", "test"):
        solution, mark = re.sub(r"<<[^>]*>>", "", row["answer"]).rsplit("####", 1)
        answer = final_answer(solution)
        found["none" if answer is None else agree(value_of(answer), value_of(mark))] += 1
    assert found == {True: 1301, "none": 15, False: 3}
