"""Orca-Math: 200,000 word problems with GPT-4's solutions, whose answers nobody marked."""

from collections.abc import Iterable, Mapping
from typing import Any

from finetrap.final_answer import final_answer, score_final
from finetrap.rows import dataset_rows
from finetrap.task import Example, Split, Task, task
from finetrap.tasks.gsm8k import prompt, stated

REPOSITORY = "microsoft/orca-math-word-problems-200k"


def examples(rows: Iterable[Mapping[str, Any]]) -> tuple[Example, ...]:
    """The rows whose solution arrives at one number; an id keeps the row's place among all of them.

    The stated answer is added to each solution: the prompt asks for it, so it is what training has to teach.
    """
    made = []
    for index, row in enumerate(rows):
        gold = final_answer(row["answer"])
        if gold is not None:
            reference = f"{row['answer'].strip()}\n{stated(gold)}"
            made.append(Example(f"orca_math-{index}", row["question"].strip(), reference, gold))
    return tuple(made)


def _load(split: Split) -> tuple[Example, ...]:
    return examples(dataset_rows(REPOSITORY, split))


@task
def orca_math() -> Task:
    """Orca-Math: word problems of many kinds, solved in words by GPT-4 (arXiv:2402.14830)."""
    return Task(
        name="orca_math",
        summary="word problems of many kinds, free text with a number at the end",
        kind="generate",
        license="MIT",
        load=_load,
        prompt=prompt,
        score=score_final,
        answer_format=stated,
        max_new_tokens=512,
        siblings=frozenset({"gsm8k", "svamp"}),
    )
