"""WikiText-2: general text, scored in bits per byte."""

from finetrap.task import Example, Split, Task, packaged_rows, task

WINDOW_CHARACTERS = 500
"""A window ends with the sentence that reaches this length, some 115 tokens."""


def _windows(text: str) -> list[str]:
    windows = [""]
    for sentence in text.replace(" . ", " . \0").split("\0"):
        if len(windows[-1]) >= WINDOW_CHARACTERS:
            windows.append("")
        windows[-1] += sentence
    return windows


def _load(split: Split) -> tuple[Example, ...]:
    return tuple(
        Example(f"wikitext2-{article}-{index}", window)
        for article, row in enumerate(packaged_rows("wikitext2", split))
        for index, window in enumerate(_windows(row["text"]))
        if window.strip()
    )


@task
def wikitext2() -> Task:
    """WikiText-2 raw, test articles in windows; the loss on them shows forgetting (arXiv:1609.07843)."""
    return Task(
        name="wikitext2",
        summary="encyclopedia text, bits per byte; test only",
        kind="text",
        license="CC BY-SA 3.0",
        load=_load,
        splits=("test",),
        siblings=frozenset({"wikitext2"}),
    )
