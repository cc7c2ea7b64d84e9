"""How often answers in bfloat16 differ: from those of Transformers, and those of Transformers from its own.

Rounding decides between tokens that are nearly as likely, and the order of additions decides the rounding: another
batch size is another answer now and then. How often is measured here, on SmolLM2 and GSM8K; nothing passes or fails.
A processor that does not multiply in bfloat16 would take hours, and no study computes in it there: it has no cells.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from finetrap.data import Encoder, draw_shots, load_splits, load_test
from finetrap.engine.generate import generate_greedy
from finetrap.models import choose_device, choose_dtype
from finetrap.task import Example, get_task
from same_answers.cells import Cell, Outcome
from same_answers.generation import transformers_answers
from same_answers.subjects import SMOLLM2, base

ITEMS = 64
SLICE = 16
"""Items of a cell: also the batch size of `model.generate`."""
OTHER_ROWS = 4
"""The batch size at which `model.generate` is compared with itself."""
NEW = 128


def _measure(start: int, shots: int) -> Outcome:
    loaded, task = base(SMOLLM2, torch.bfloat16), get_task("gsm8k")
    encoder = Encoder(loaded.tokenizer, task, chat=True)
    solved = draw_shots(load_splits(task), shots, 0)
    examples = load_test(task, limit=ITEMS).examples[start : start + SLICE]
    prompts = [encoder.prompt(example, solved).ids for example in examples]
    stops = {encoder.end_of_turn}
    model = loaded.copy()
    theirs, again = (
        [
            str(loaded.tokenizer.decode(answer.ids, skip_special_tokens=True))
            for answer in transformers_answers(model, prompts, rows=rows, new=NEW, stops=stops)
        ]
        for rows in (SLICE, OTHER_ROWS)
    )
    ours = generate_greedy(loaded.model, loaded.tokenizer, prompts, max_new_tokens=NEW, stop_tokens=stops)
    mine = [answer.text for answer in ours]
    counts = {
        "text_differs": _differing(mine, theirs),
        "correct_differs": _differing(_correct(mine, examples), _correct(theirs, examples)),
        "text_differs_between_batch_sizes": _differing(again, theirs),
        "correct_differs_between_batch_sizes": _differing(_correct(again, examples), _correct(theirs, examples)),
    }
    tokens = sum(len(answer.ids) for answer in ours)
    return Outcome(len(examples), tokens, counts["text_differs"], passed=True, counts=counts)


def _differing(some: Sequence[Any], others: Sequence[Any]) -> int:
    return sum(a != b for a, b in zip(some, others, strict=True))


def _correct(texts: Sequence[str], examples: Sequence[Example]) -> list[bool]:
    score = get_task("gsm8k").score
    assert score is not None
    return [bool(score(text, example.gold).correct) for text, example in zip(texts, examples, strict=True)]


def possible() -> bool:
    """Whether studies on this machine compute in bfloat16."""
    return choose_dtype("auto", choose_device("auto")) == torch.bfloat16


def cells(models: Sequence[str]) -> Iterator[Cell]:
    """GSM8K's first items, some at a time."""
    if SMOLLM2 in models and possible():
        for shots in (0, 5):
            for start in range(0, ITEMS, SLICE):
                what = f"answers in bfloat16, items {start + 1} to {start + SLICE}"
                yield Cell(what, SMOLLM2, "none", partial(_measure, start, shots), SLICE, shots)


def summary(measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The shares, by number of shots."""
    rows = []
    for shots in sorted({cell["shots"] for cell in measured}):
        own = [cell for cell in measured if cell["shots"] == shots]
        items = sum(cell["items"] for cell in own)
        shares = {name: sum(cell["counts"][name] for cell in own) / items for name in own[0]["counts"]}
        rows.append({"model": SMOLLM2, "task": "gsm8k", "shots": shots, "items": items, "new_tokens": NEW, **shares})
    return rows
