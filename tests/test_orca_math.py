"""Orca-Math's rows become examples that teach and score the stated answer."""

from finetrap.task import get_task
from finetrap.tasks.orca_math import examples

ROWS = [
    {"question": " How much is 8 - 3? ", "answer": "8 - 3 = 5. So 5 is left.\n"},
    {"question": "Who is taller?", "answer": "Therefore, Jimin is taller."},
    {"question": "What is x?", "answer": "3x = 1\nTherefore, x = 1/3."},
]


def test_the_reference_is_the_solution_and_its_stated_answer():
    first = examples(ROWS)[0]
    assert (first.question, first.gold) == ("How much is 8 - 3?", "5")
    assert first.reference == "8 - 3 = 5. So 5 is left.\n#### 5"


def test_a_row_without_one_number_is_left_out_and_moves_no_id():
    assert [example.id for example in examples(ROWS)] == ["orca_math-0", "orca_math-2"]


def test_every_reference_is_scored_correct_and_formatted():
    task = get_task("orca_math")
    for example in examples(ROWS):
        verdict = task.score(example.reference, example.gold)
        assert verdict.correct
        assert verdict.strict


def test_a_bare_answer_in_the_stated_format_is_read():
    task = get_task("orca_math")
    assert task.score(task.answer_format("1/3"), "1/3").strict


def test_it_is_put_as_gsm8k_is():
    assert get_task("orca_math").prompt("How many?") == get_task("gsm8k").prompt("How many?")


def test_word_problems_are_siblings_both_ways():
    assert get_task("orca_math").siblings == {"gsm8k", "svamp"}
    assert all("orca_math" in get_task(name).siblings for name in ("gsm8k", "svamp"))
