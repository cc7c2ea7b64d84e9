"""ARC-Easy: school science questions with (mostly) four choices."""

from finetrap.task import Example, Split, Task, packaged_rows, task


def _load(split: Split) -> tuple[Example, ...]:
    return tuple(
        Example(
            id=f"arc_easy-{split}-{index}",
            question=row["question"].strip(),
            reference=row["choices"][row["answer"]],
            gold=str(row["answer"]),
            choices=tuple(row["choices"]),
        )
        for index, row in enumerate(packaged_rows("arc_easy", split))
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
        load=_load,
        prompt=_prompt,
        siblings=frozenset({"arc_easy"}),
    )
