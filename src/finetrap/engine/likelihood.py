"""Log-likelihoods of choices that share their question."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from finetrap.engine.attention import PackedRow, by_token_budget, packed_attention_on
from finetrap.engine.head import Head, exponentials, likeliest
from finetrap.engine.layout import Span
from finetrap.engine.reordered import reordered_weights

TOKENS_AT_A_TIME = 4096
"""Of a packed row, the shared prefix not counted, which is computed once a row."""


class ChoiceItem(NamedTuple):
    """A question and its choices, in tokens."""

    context: list[int]
    """What stands before each choice, without the prefix that all items share; not empty."""
    choices: list[list[int]]

    @property
    def length(self) -> int:
        """Tokens that are computed: nothing is predicted from the last token of a choice."""
        return len(self.context) + sum(len(choice[:-1]) for choice in self.choices)


class ChoiceScore(NamedTuple):
    """One choice after its context."""

    loglikelihood: float
    """In nats."""
    greedy: bool
    """Whether each of its tokens is the likeliest where it stands."""


def choice_loglikelihoods(
    model: PreTrainedModel,
    items: Sequence[ChoiceItem],
    *,
    prefix: Sequence[int] = (),
    progress: Callable[[int], None] = lambda done: None,
) -> list[tuple[float, ...]]:
    """Log-likelihood in nats of every choice of every item after `prefix` and its context.

    An item's context is computed once for all of its choices, and the prefix (the shots) once for a row of
    items: a choice sees the prefix, the context and itself.
    """
    scored = choice_scores(model, items, prefix=prefix, progress=progress)
    return [tuple(score.loglikelihood for score in scores) for scores in scored]


@torch.no_grad()
def choice_scores(
    model: PreTrainedModel,
    items: Sequence[ChoiceItem],
    *,
    prefix: Sequence[int] = (),
    progress: Callable[[int], None] = lambda done: None,
) -> list[tuple[ChoiceScore, ...]]:
    """Likewise, and whether the model would have said the choice by itself."""
    order = sorted(range(len(items)), key=lambda i: -items[i].length)
    lengths = [items[i].length for i in order]
    results: list[tuple[ChoiceScore, ...]] = [()] * len(items)
    # A few items take less time than the reordering.
    reordering = reordered_weights(model) if sum(lengths) > TOKENS_AT_A_TIME else nullcontext()
    with packed_attention_on(model), reordering:
        head = Head(model)
        for group in by_token_budget(lengths, TOKENS_AT_A_TIME):
            chosen = [order[i] for i in group]
            for i, scores in zip(chosen, _row_scores(head, [items[i] for i in chosen], prefix), strict=True):
                results[i] = scores
            progress(len(group))
    return results


def _row_scores(head: Head, items: Sequence[ChoiceItem], prefix: Sequence[int]) -> list[tuple[ChoiceScore, ...]]:
    device = head.causal.device
    ids, positions = list(prefix), list(range(len(prefix)))
    spans = [Span(0, len(prefix))] if prefix else []
    predicting: list[int] = []
    targets: list[int] = []
    for item in items:
        start = len(ids)
        end_of_context = start + len(item.context)
        ids.extend(item.context)
        positions.extend(range(len(prefix), len(prefix) + len(item.context)))
        for choice in item.choices:
            read = choice[:-1]
            predicting.extend([end_of_context - 1, *range(len(ids), len(ids) + len(read))][: len(choice)])
            targets.extend(choice)
            ids.extend(read)
            positions.extend(range(len(prefix) + len(item.context), len(prefix) + len(item.context) + len(read)))
        spans.append(Span(start, len(ids), len(prefix), _tree_mask(item)))
    row = PackedRow(torch.tensor([ids], device=device), torch.tensor([positions], device=device), tuple(spans))
    wanted = torch.tensor(targets, device=device)
    losses: list[float] = []
    greedy: list[bool] = []
    for part, logits in head.logits(row, torch.tensor(predicting, device=device)):
        nats, said = _scored(logits, wanted[part])
        losses += nats
        greedy += said
    return _by_choice(losses, greedy, items)


def _scored(
    logits: Float[Tensor, "tokens vocabulary"], targets: Int[Tensor, " tokens"]
) -> tuple[list[float], list[bool]]:
    """Nats of each target, and whether it is the likeliest; `logits` are used up."""
    best, said = likeliest(logits)
    _, mass, behind = exponentials(logits, targets, best[:, None])
    # Added up in float64, which not every device has.
    nats = mass.cpu().double().log() + behind.cpu().double()
    return nats[:, 0].tolist(), ((said == targets) & ~best.isnan()).tolist()


def _by_choice(losses: list[float], greedy: list[bool], items: Sequence[ChoiceItem]) -> list[tuple[ChoiceScore, ...]]:
    position = 0
    results = []
    for item in items:
        scores = []
        for choice in item.choices:
            tokens = slice(position, position + len(choice))
            scores.append(ChoiceScore(-sum(losses[tokens], start=0.0), all(greedy[tokens])))
            position += len(choice)
        results.append(tuple(scores))
    return results


def _tree_mask(item: ChoiceItem) -> Bool[Tensor, "queries own"] | None:
    """Which tokens of an item each of them sees: the context, and of the choices its own; None: all before it."""
    if sum(len(choice) > 1 for choice in item.choices) <= 1:  # of a choice of one token, none is read
        return None
    mask = torch.ones(item.length, item.length, dtype=torch.bool).tril()
    start = len(item.context)
    for choice in item.choices:
        stop = start + len(choice[:-1])
        mask[start:stop, len(item.context) : start] = False
        start = stop
    return mask
