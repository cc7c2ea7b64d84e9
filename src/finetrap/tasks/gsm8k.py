"""Grade-school arithmetic: GSM8K, and SVAMP to test what was learned on other problems."""

import re
from decimal import Decimal

from finetrap.scoring import score_number
from finetrap.task import Example, Split, Task, packaged_rows, task

_CALCULATOR = re.compile(r"<<[^>]*>>")


def prompt(question: str) -> str:
    """A question that asks for reasoning and a stated number; all word problems are put this way."""
    return f'Question: {question}\nThink step by step, then end with a last line "#### " and the number.'


def stated(answer: str) -> str:
    """An answer in the format that the prompt asks for."""
    return f"#### {answer}"


def _gsm8k(split: Split) -> tuple[Example, ...]:
    examples = []
    for index, row in enumerate(packaged_rows("gsm8k", split)):
        _, number = row["answer"].rsplit("####", 1)
        # Annotations such as <<48/2=24>> call a calculator that nobody has at the other end.
        reasoning = _CALCULATOR.sub("", row["answer"])
        gold = number.strip().replace(",", "")
        examples.append(Example(f"gsm8k-{split}-{index}", row["question"].strip(), reasoning, gold))
    return tuple(examples)


@task
def gsm8k() -> Task:
    """GSM8K: word problems answered by reasoning and a number (arXiv:2110.14168)."""
    return Task(
        name="gsm8k",
        summary="grade-school word problems, free text with a number at the end",
        kind="generate",
        license="MIT",
        load=_gsm8k,
        prompt=prompt,
        score=score_number,
        rule="stated answer, else last number",
        answer_format=stated,
        max_new_tokens=320,
        siblings=frozenset({"svamp", "orca_math"}),
    )


def _plain(value: float) -> str:
    return format(Decimal(str(value)).normalize(), "f")


def _svamp(split: Split) -> tuple[Example, ...]:
    examples = []
    for row in packaged_rows("svamp", split):
        body = row["Body"].strip()
        body = body if body.endswith((".", "?", "!")) else f"{body}."
        gold = _plain(row["Answer"])
        examples.append(Example(f"svamp-{row['ID']}", f"{body} {row['Question'].strip()}", f"#### {gold}", gold))
    return tuple(examples)


@task
def svamp() -> Task:
    """SVAMP: simpler word problems, varied to defeat shortcuts (arXiv:2103.07191). Test only."""
    return Task(
        name="svamp",
        summary="simple word problems with varied wording, a number at the end; test only",
        kind="generate",
        license="MIT",
        load=_svamp,
        splits=("test",),
        prompt=prompt,
        score=score_number,
        rule="stated answer, else last number",
        answer_format=stated,
        max_new_tokens=320,
        siblings=frozenset({"gsm8k", "orca_math"}),
    )
