"""Log-likelihoods: of choices that share their question, and of whole texts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from finetrap.attention import PackedRow, Span, by_token_budget, logits_at, packed_attention_on

TOKENS_AT_A_TIME = 2048
"""Of a packed row, the shared prefix not counted."""


class ChoiceItem(NamedTuple):
    """A question and its choices, in tokens."""

    context: list[int]
    """What stands before each choice, without the prefix that all items share; not empty."""
    choices: list[list[int]]

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.context) + sum(map(len, self.choices))


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
    results: list[tuple[ChoiceScore, ...]] = [()] * len(items)
    with packed_attention_on(model):
        for group in by_token_budget([items[i].length for i in order], TOKENS_AT_A_TIME):
            chosen = [order[i] for i in group]
            for i, scores in zip(chosen, _row_scores(model, [items[i] for i in chosen], prefix), strict=True):
                results[i] = scores
            progress(len(group))
    return results


def _row_scores(
    model: PreTrainedModel, items: Sequence[ChoiceItem], prefix: Sequence[int]
) -> list[tuple[ChoiceScore, ...]]:
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
            predicting.extend([end_of_context - 1, *range(len(ids), len(ids) + len(choice))][: len(choice)])
            targets.extend(choice)
            ids.extend(choice)
            positions.extend(range(len(prefix) + len(item.context), len(prefix) + len(item.context) + len(choice)))
        spans.append(Span(start, len(ids), len(prefix), _tree_mask(item)))
    row = PackedRow(
        torch.tensor([ids], device=model.device), torch.tensor([positions], device=model.device), tuple(spans)
    )
    logits = logits_at(model, row, torch.tensor(predicting, device=model.device))
    wanted = torch.tensor(targets, device=model.device)
    losses = cross_entropy(logits, wanted, reduction="none")
    return _by_choice(losses.double().tolist(), (logits.argmax(dim=-1) == wanted).tolist(), items)


def _by_choice(
    losses: list[float], likeliest: list[bool], items: Sequence[ChoiceItem]
) -> list[tuple[ChoiceScore, ...]]:
    position = 0
    results = []
    for item in items:
        scores = []
        for choice in item.choices:
            tokens = slice(position, position + len(choice))
            scores.append(ChoiceScore(-sum(losses[tokens], start=0.0), all(likeliest[tokens])))
            position += len(choice)
        results.append(tuple(scores))
    return results


def _tree_mask(item: ChoiceItem) -> Bool[Tensor, "queries own"]:
    """Which tokens of an item each of them sees: the context, and of the choices its own."""
    mask = torch.ones(item.length, item.length, dtype=torch.bool).tril()
    start = len(item.context)
    for choice in item.choices:
        stop = start + len(choice)
        mask[start:stop, len(item.context) : start] = False
        start = stop
    return mask


def text_loglikelihoods(
    model: PreTrainedModel,
    texts: Sequence[list[int]],
    *,
    first: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """Log-likelihood in nats of every text, its first token predicted from the token `first`."""
    items = [ChoiceItem([first], [text]) for text in texts]
    return [values[0] for values in choice_loglikelihoods(model, items, progress=progress)]
