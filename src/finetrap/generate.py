"""Greedy decoding in batches: left-padded, longest prompts first, finished rows leave the batch."""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from finetrap.attention import by_token_budget

ROWS_AT_A_TIME = 32
TOKENS_AT_A_TIME = 16_384
"""Of a batch's prompts, padding included; it bounds the memory of the cache."""


class Generated(NamedTuple):
    """One answer."""

    ids: list[int]
    """New tokens, without what ended them."""
    text: str
    """Decoded, cut before the first stop text, special tokens left out."""
    truncated: bool
    """Whether the limit of new tokens ended it."""


class _Stop(NamedTuple):
    tokens: frozenset[int]
    texts: tuple[str, ...]
    limit: int


@torch.no_grad()
def generate_greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_tokens: Collection[int],
    stop_texts: Sequence[str] = (),
    rows_at_a_time: int = ROWS_AT_A_TIME,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Generated]:
    """The likeliest token at every step, until a stop token, a stop text or `max_new_tokens`."""
    stop = _Stop(frozenset(stop_tokens), tuple(stop_texts), max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    results: dict[int, Generated] = {}
    longest = max(map(len, prompts), default=1)
    rows = max(1, min(rows_at_a_time, TOKENS_AT_A_TIME // longest))
    for group in by_token_budget([1] * len(order), rows):
        chosen = [order[i] for i in group]
        answers = _generate_batch(model, tokenizer, [prompts[i] for i in chosen], stop)
        results.update(zip(chosen, answers, strict=True))
        progress(len(chosen))
    return [results[i] for i in range(len(prompts))]


def _left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]:
    length = max(map(len, prompts))
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    return ids, mask


def _generate_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], stop: _Stop
) -> list[Generated]:
    ids, mask = (tensor.to(model.device) for tensor in _left_padded(prompts))
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    new: list[list[int]] = [[] for _ in prompts]
    results: dict[int, Generated] = {}
    alive = list(range(len(prompts)))
    while alive:
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        chosen = logits[:, -1].argmax(dim=-1)
        keep = []
        for row, (index, token) in enumerate(zip(alive, chosen.tolist(), strict=True)):
            finished = _finish(tokenizer, new[index], token, stop)
            if finished is None:
                keep.append(row)
            else:
                results[index] = finished
        if len(keep) < len(alive):
            rows = torch.tensor(keep, dtype=torch.long, device=model.device)
            cache.batch_select_indices(rows)
            chosen, mask, positions = chosen[rows], mask[rows], positions[rows]
            alive = [alive[row] for row in keep]
        ids = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return [results[index] for index in range(len(prompts))]


def _finish(tokenizer: PreTrainedTokenizerBase, new: list[int], token: int, stop: _Stop) -> Generated | None:
    """Add `token` to the `new` ones; the answer if that ends it."""
    if token in stop.tokens:
        return Generated(new, str(tokenizer.decode(new, skip_special_tokens=True)), truncated=False)
    new.append(token)
    if stop.texts:
        # A stop text is a few tokens long; only the end of the answer can have completed one.
        tail = str(tokenizer.decode(new[-16:], skip_special_tokens=True))
        if any(text in tail for text in stop.texts):
            text = str(tokenizer.decode(new, skip_special_tokens=True))
            cut = min((text.index(s) for s in stop.texts if s in text), default=len(text))
            return Generated(new, text[:cut], truncated=False)
    if len(new) >= stop.limit:
        return Generated(new, str(tokenizer.decode(new, skip_special_tokens=True)), truncated=True)
    return None
