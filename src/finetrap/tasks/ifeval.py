"""IFEval: instructions whose following can be verified. Whether an aligned model still does what it is told."""

import json
from typing import Any

from finetrap.instructions import CHECKS, follows
from finetrap.scoring import Verdict
from finetrap.task import Example, Split, Task, packaged_rows, task

MAX_NEW_TOKENS = 256
"""A fifth of the original's 1280, which would take minutes an arm on a laptop."""
MOST_WORDS = 150
"""Asked for at least, of an answer that fits into that with room to spare."""
LONGEST_PROMPT = 600
"""Characters; the two above it are pages to be rewritten."""


def is_asked(row: dict[str, Any]) -> bool:
    """Whether all instructions of a row can be verified here, and followed in `MAX_NEW_TOKENS`."""
    if len(row["prompt"]) > LONGEST_PROMPT or not set(row["instruction_id_list"]) <= set(CHECKS):
        return False
    for given in row["kwargs"]:
        long = given.get("relation") == "at least" and (given.get("num_words") or 0) > MOST_WORDS
        # The original's check counts another letter, drawn at random, in place of one that is none.
        if long or not (given.get("letter") or "a").isalpha():
            return False
    return True


def _load(split: Split) -> tuple[Example, ...]:
    return tuple(
        Example(
            id=f"ifeval-{row['key']}",
            question=row["prompt"],
            gold=json.dumps(list(zip(row["instruction_id_list"], row["kwargs"], strict=True)), ensure_ascii=False),
        )
        for row in packaged_rows("ifeval", split)
        if is_asked(row)
    )


def score(answer: str, gold: str) -> Verdict:
    """Prompt-level strict accuracy: whether an answer follows each of its instructions, which `gold` holds as JSON."""
    instructions = json.loads(gold)
    followed = [follows(answer, name, parameters) for name, parameters in instructions]
    right = all(followed)
    return Verdict(
        extracted=answer or None,
        correct=right,
        strict=right,
        anywhere=right,
        formatted=right,
        parts=tuple((name, done) for (name, _), done in zip(instructions, followed, strict=True)),
    )


@task
def ifeval() -> Task:
    """IFEval: those of its 541 prompts whose instructions can be verified without a model (arXiv:2311.07911)."""
    return Task(
        name="ifeval",
        summary="instructions that can be verified, such as no commas or three bullets; test only, for aligned models",
        kind="generate",
        license="Apache-2.0",
        load=_load,
        splits=("test",),
        score=score,
        rule="every instruction is followed",
        max_new_tokens=MAX_NEW_TOKENS,
        chat_only=True,
        siblings=frozenset({"ifeval"}),
    )
