"""Orca-Math: 200,000 word problems with GPT-4's solutions, whose answers nobody marked."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from finetrap.final_answer import final_answer, score_final
from finetrap.rows.duplicates import carve
from finetrap.rows.read import dataset_rows
from finetrap.task import Example, HubData, Split, Task, task
from finetrap.tasks.gsm8k import prompt, stated

REPOSITORY = "microsoft/orca-math-word-problems-200k"
TEST_SHARE = 0.02
"""Of the rows: some 4,000 test items."""
HUB = HubData(REPOSITORY, rows=200_035, text_bytes=225_322_861, download_bytes=84_248_748, test_share=TEST_SHARE)
"""By the data set's card."""


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


@lru_cache(maxsize=2)
def _splits(data_dir: Path | None) -> dict[Split, tuple[Example, ...]]:
    train, test = carve(examples(dataset_rows(REPOSITORY, "train", data_dir)), TEST_SHARE, "test")
    return {"train": tuple(train), "test": tuple(test)}


@task
def orca_math(data_dir: Path | None = None) -> Task:
    """Orca-Math: word problems of many kinds, solved in words by GPT-4 (arXiv:2402.14830).

    Read from the Hub, or from a copy below --data-dir; a fiftieth is cut off as test, near-duplicates kept together.
    Rows whose solution does not arrive at one number are left out.
    """
    return Task(
        name="orca_math",
        summary="word problems of many kinds, free text with a number at the end",
        kind="generate",
        license="MIT",
        load=lambda split: _splits(data_dir)[split],
        prompt=prompt,
        score=score_final,
        rule="stated answer, else the final answer of the text, else the last number",
        answer_format=stated,
        max_new_tokens=512,
        carved=True,
        hub=HUB,
        siblings=frozenset({"gsm8k", "svamp"}),
    )
