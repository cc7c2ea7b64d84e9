"""IFEval: each instruction is verified as lm-evaluation-harness verifies it."""

import json
from dataclasses import replace
from typing import Any

import pytest

from finetrap.instructions import CHECKS, follows
from finetrap.task import get_task

EXAMPLES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["river", "Bank"]}, "The bank of the River.", "The river."),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "at least"}, "Tea, teas", "Tea"),
    ("keywords:frequency", {"keyword": "tea", "frequency": 1, "relation": "less than"}, "Milk", "Tea"),
    ("keywords:forbidden_words", {"forbidden_words": ["art"]}, "A start.", "Fine ART."),
    ("keywords:letter_frequency", {"letter": "Q", "let_frequency": 2, "let_relation": "at least"}, "Qq", "quay"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "two words", "it's: two"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb\n***", "a\n***\n***\nb"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Elm"},
        "Oak.\n\n'elm, and so on.",
        "Oak.\n\nThe elm.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] of [town]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP. P. S. More", "Bye.\nP.S. More"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n** b\n"),
    ("detectable_format:constrained_response", {}, "Well, My answer is no.", "no."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b*", "*a* and **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Day", "num_sections": 2},
        "Day 1 x Day 2 y",
        "Day one",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<Ode>>\nO sea", "<< >>\nO sea"),
    ("combination:two_responses", {}, "One.\n******\nTwo.", "One.******One."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, " say it. So I do.", "I say it."),
    ("startend:end_checker", {"end_phrase": "Peace!"}, '"In short: peace!"', "Peace! Bye"),
    ("startend:quotation", {}, ' "Quoted" ', '"'),
    ("punctuation:no_comma", {}, "No pause; none.", "A pause, here."),
]


@pytest.mark.parametrize(("name", "parameters", "right", "wrong"), EXAMPLES, ids=[example[0] for example in EXAMPLES])
def test_what_follows_an_instruction(name: str, parameters: dict[str, Any], right: str, wrong: str) -> None:
    assert follows(right, name, parameters)
    assert not follows(wrong, name, parameters)
    assert not follows(" \n", name, parameters)


def test_every_check_has_an_example() -> None:
    assert {name for name, *_ in EXAMPLES} == set(CHECKS)


def test_an_answer_is_right_where_it_follows_every_instruction() -> None:
    task = get_task("ifeval")
    asked = [["punctuation:no_comma", {}], ["startend:quotation", {"end_phrase": None}]]
    example = replace(task.load("test")[0], gold=json.dumps(asked))
    assert task.verdict('"No pause"', example).correct
    verdict = task.verdict('"A pause, here"', example)
    assert not verdict.correct
    assert dict(verdict.parts) == {"punctuation:no_comma": False, "startend:quotation": True}
    assert task.verdict("", example).extracted is None


def test_what_cannot_be_verified_or_does_not_fit_is_not_asked() -> None:
    asked = [json.loads(example.gold) for example in get_task("ifeval").load("test")]
    assert len(asked) == 361
    for name, given in (pair for instructions in asked for pair in instructions):
        assert name in CHECKS
        assert given.get("relation") != "at least" or (given.get("num_words") or 0) <= 150


ANSWERS = [
    *(example[2] for example in EXAMPLES),
    *(example[3] for example in EXAMPLES),
    "I would go.\n\n* one\n* two\n* three\n\nP.S. *marked* and **bold** [name] [town] [street]",
    "SECTION 1\na\nSECTION 2\nb\nSECTION 3\nc\nSection 4\nd\nSection 5 e Audience 1 f Audience 2",
    "a\n\n***\n\nb\n\n***\n\nc",
    "***\na *** b *** c *** d\n***",
    "****** left ****** right ******",
    "word " * 160,
    "[a]" * 12 + "*h* " * 20 + "- x\n- y\n - z\n * w\n",
    "no letters at all: 12345 !?",
    "<<>>\n<<T>> and <a>",
    '"quoted\n\nover\n\nparagraphs"',
    "one\n\n\n\nthree\n\n",
    "p.p.s. lower p. s. spaced",
]


def test_verdicts_equal_those_of_lm_evaluation_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("lm_eval", "langdetect", "immutabledict"):
        pytest.importorskip(module)  # what lm-eval[ifeval] brings
    # It fetches a tokenizer of sentences when it is imported; no check that is compared reads it.
    monkeypatch.setattr("nltk.download", lambda *_, **__: False)
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    seen: dict[str, set[bool]] = {}
    for example in get_task("ifeval").load("test"):
        asked = json.loads(example.gold)
        said = " ".join(str(value) for _, given in asked for value in given.values() if isinstance(value, str))
        words = " ".join(word for _, given in asked for word in (given.get("keywords") or ()))
        for name, given in asked:
            theirs = INSTRUCTION_DICT[name](name)
            theirs.build_description(**{key: value for key, value in given.items() if value})
            first = f"{given.get('first_word')} x" + "\n\ny" * ((given.get("num_paragraphs") or 1) - 1)
            for answer in (*ANSWERS, example.question, said, words, first):
                expected = bool(answer.strip() and theirs.check_following(answer))
                assert follows(answer, name, given) == expected, (name, given, answer)
                seen.setdefault(name, set()).add(expected)
    assert seen == {name: {True, False} for name in CHECKS}
