"""HellaSwag: which ending continues the scene. A measure of general ability, not trained on."""

from finetrap.task import Example, Split, Task, packaged_rows, task


def _load(split: Split) -> tuple[Example, ...]:
    return tuple(
        Example(
            id=f"hellaswag-{row['ind']}",
            question=row["query"],
            reference=row["choices"][row["gold"]],
            gold=str(row["gold"]),
            choices=tuple(row["choices"]),
        )
        for row in packaged_rows("hellaswag", split)
    )


@task
def hellaswag() -> Task:
    """HellaSwag, 1000 rows of its validation split, prompted as in lm-evaluation-harness (arXiv:1905.07830)."""
    return Task(
        name="hellaswag",
        summary="everyday scenes, which ending fits; test only",
        kind="choice",
        license="MIT",
        load=_load,
        splits=("test",),
        blind_prompt="",
        siblings=frozenset({"hellaswag"}),
    )
