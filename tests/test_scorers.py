"""Scorers of own data: what is right strictly, flexibly and anywhere."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetrap.errors import StudyError
from finetrap.scoring import AnswerError, make_scorer, scorer

GOLDS = {
    "exact": ["Paris"],
    "contains": ["Paris"],
    "number": ["72"],
    "label": ["spam", "not spam"],
    "json": ['{"a": 1}'],
}
SPECS = [*GOLDS, "regex:answer is (.*)"]

# scorer, gold, output -> (extracted, correct, strict, anywhere, formatted)
CASES = [
    ("exact", "Paris", "Paris", ("Paris", True, True, True, True)),
    ("exact", "Paris", " paris.", ("paris.", True, False, True, True)),
    ("exact", "Paris", "Paris\nIt is the capital.", ("Paris", True, False, True, False)),
    ("exact", "Paris", "The capital is Paris.", ("The capital is Paris.", False, False, True, True)),
    ("exact", "Paris", "Parisian", ("Parisian", False, False, False, True)),
    ("exact", "Paris", "", (None, False, False, False, False)),
    ("exact", "!", "?", ("?", False, False, False, True)),
    ("contains", "Paris", "It is paris, of course", ("Paris", True, False, True, True)),
    ("contains", "Paris", "It is Paris, of course", ("Paris", True, True, True, True)),
    ("contains", "Paris", "Parisian", (None, False, False, False, True)),
    ("number", "72", "#### 72", ("72", True, True, True, True)),
    ("number", "72", "72.0", ("72.0", True, True, True, True)),
    ("number", "72", "It is $72.", ("$72.", True, False, True, False)),
    ("number", "72", "72 and then 5", ("5", False, False, True, False)),
    ("number", "72", "none", (None, False, False, False, False)),
    ("label", "spam", "spam", ("spam", True, True, True, True)),
    ("label", "spam", "Spam.", ("spam", True, False, True, False)),
    ("label", "spam", "This is not spam", ("not spam", False, False, False, False)),
    ("label", "not spam", "This is not spam", ("not spam", True, False, True, False)),
    ("label", "spam", "spam or not spam?", (None, False, False, False, False)),
    ("label", "spam", "spammer", (None, False, False, False, False)),
    ("json", '{"a": 1}', '{"a": 1.0}', ('{"a": 1.0}', True, True, True, True)),
    ("json", '{"a": 1}', '```json\n{"a": 1}\n```', ('{"a": 1}', True, False, True, False)),
    ("json", '{"a": 1}', '{"a": 2} no, {"a": 1}', ('{"a": 2}', False, False, True, False)),
    ("json", '{"a": 1}', '{"a": true}', ('{"a": true}', False, False, False, True)),
    ("json", '{"a": 1}', '{"a": 1', (None, False, False, False, False)),
    ("regex:answer is (.*)", "B", "The answer is A\nThe answer is b.", ("b.", True, False, True, True)),
    ("regex:answer is (.*)", "B", "B", (None, False, False, True, False)),
]


def golds_for(spec: str, gold: str) -> list[str]:
    return GOLDS["label"] if spec == "label" else [gold]


@pytest.mark.parametrize(("spec", "gold", "output", "expected"), CASES)
def test_an_output_is_scored_by_every_rule(spec: str, gold: str, output: str, expected: tuple[object, ...]) -> None:
    verdict = make_scorer(spec, golds_for(spec, gold)).score(output, gold)
    assert tuple(verdict)[:5] == expected


def test_each_field_of_a_json_answer_is_told() -> None:
    gold = '{"city": "Paris", "rooms": 2, "tags": ["a", "b"]}'
    verdict = make_scorer("json", [gold]).score(
        'Sure: {"city": "Paris", "rooms": "2", "tags": ["a", "b"], "x": 1}', gold
    )
    assert dict(verdict.parts) == {"city": True, "rooms": False, "tags": True}
    assert not verdict.correct


def test_an_answer_that_repeats_all_labels_names_none_of_them() -> None:
    # The default prompt lists them; a model that echoes it has not answered.
    score = make_scorer("label", ["a", "b", "c"]).score
    assert not score("one of a, b, c", "b").anywhere
    assert score("a or b", "b").anywhere


def test_every_scorer_is_among_the_specs_that_are_tested() -> None:
    assert {spec.partition(":")[0] for spec in SPECS} == set(scorer.names())


@pytest.mark.parametrize("spec", SPECS)
@given(st.text())
def test_no_output_breaks_a_scorer(spec: str, output: str) -> None:
    name = spec.partition(":")[0]
    golds = GOLDS.get(name, ["B"])
    verdict = make_scorer(spec, golds).score(output, golds[0])
    assert verdict.correct <= verdict.anywhere
    assert not verdict.correct or verdict.extracted is not None


@pytest.mark.parametrize("spec", SPECS)
def test_the_gold_answer_itself_is_right_by_every_rule(spec: str) -> None:
    name = spec.partition(":")[0]
    golds = GOLDS.get(name, ["B"])
    output = "The answer is B" if name == "regex" else golds[0]
    assert tuple(make_scorer(spec, golds).score(output, golds[0]))[1:4] == (True, True, True)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_a_json_answer_equals_itself_however_it_is_written(value: object) -> None:
    gold = json.dumps({"x": value})
    written = json.dumps({"x": value}, indent=2, ensure_ascii=False)
    assert make_scorer("json", [gold]).score(written, gold).strict


@pytest.mark.parametrize(
    ("spec", "answers", "says", "index"),
    [
        ("number", ["1", "two"], "'two' is not a number", 1),
        ("json", ["{}", "[1]"], "is not a JSON object", 1),
        ("label", ["Yes", "No", "yes"], "differ in case", None),
        ("label", [str(n) for n in range(101)], "101 different answers", 0),
    ],
)
def test_answers_that_do_not_suit_a_scorer_are_named(
    spec: str, answers: list[str], says: str, index: int | None
) -> None:
    with pytest.raises(AnswerError, match=says) as raised:
        make_scorer(spec, answers)
    if index is not None:
        assert raised.value.index == index


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("exakt", "did you mean 'exact'"),
        ("regex", "write regex:PATTERN"),
        ("exact:x", "write exact alone"),
        ("regex:(", "not a regular expression"),
    ],
)
def test_a_scorer_that_is_none_is_an_error(spec: str, says: str) -> None:
    with pytest.raises(StudyError, match=says):
        make_scorer(spec, ["a"])
