"""ARC: school science questions with (mostly) four choices, the easy set and the challenge set."""

from functools import partial

from finetrap.task import Example, Split, Task, packaged_rows, task

NEAR = frozenset({"arc_easy", "arc_challenge"})
"""From one pool of exams: what is learned of one set is not forgotten by the other."""


def _load(name: str, split: Split) -> tuple[Example, ...]:
    return tuple(
        Example(
            id=f"{name}-{split}-{index}",
            question=row["question"].strip(),
            reference=row["choices"][row["answer"]],
            gold=str(row["answer"]),
            choices=tuple(row["choices"]),
        )
        for index, row in enumerate(packaged_rows(name, split))
    )


def _prompt(question: str) -> str:
    return f"Question: {question}\nAnswer:"


@task
def arc_easy() -> Task:
    """ARC-Easy, prompted and scored as lm-evaluation-harness's `arc_easy` (arXiv:1803.05457)."""
    return Task(
        name="arc_easy",
        summary="school science, multiple choice by log-likelihood",
        kind="choice",
        license="CC BY-SA 4.0",
        load=partial(_load, "arc_easy"),
        prompt=_prompt,
        siblings=NEAR,
    )


@task
def arc_challenge() -> Task:
    """ARC-Challenge, prompted and scored as lm-evaluation-harness's `arc_challenge` (arXiv:1803.05457)."""
    return Task(
        name="arc_challenge",
        summary="harder school science, multiple choice by log-likelihood; test only",
        kind="choice",
        license="CC BY-SA 4.0",
        load=partial(_load, "arc_challenge"),
        splits=("test",),
        prompt=_prompt,
        siblings=NEAR,
    )
