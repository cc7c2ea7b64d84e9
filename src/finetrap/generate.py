"""Greedy decoding: a shared prefix once, longest prompts first, and a waiting one in the place of each that is done."""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetrap.allocator import keep_freed_memory
from finetrap.attention import by_token_budget, common_prefix
from finetrap.cost import free_memory_bytes
from finetrap.decoding import Rows, decoding_attention_on

ROWS_AT_A_TIME = 64
CACHE_BYTES = 2 << 30
"""Of keys and values, at most, and no more than a quarter of the free memory; it bounds the rows."""
TOKENS_AT_A_TIME = 4096
"""Of prompts that are read in one pass."""


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
    if not prompts:
        return []
    keep_freed_memory()
    stop = _Stop(frozenset(stop_tokens), tuple(stop_texts), max_new_tokens)
    shared = common_prefix(prompts)
    waiting = deque(sorted(range(len(prompts)), key=lambda i: -len(prompts[i])))
    capacity = max(map(len, prompts)) - shared + max_new_tokens
    cache_bytes = min(CACHE_BYTES, free_memory_bytes(str(model.device)) // 4)
    fitting = cache_bytes // (_bytes_a_token(model) * capacity)
    rows = Rows(model, rows=max(1, min(rows_at_a_time, len(prompts), fitting)), capacity=capacity)
    new: dict[int, list[int]] = {}
    results: dict[int, Generated] = {}
    alive: list[int] = []
    with decoding_attention_on(model):
        rows.read_prefix(prompts[0][:shared])
        logits = torch.empty(0, 0)
        while waiting or alive:
            chosen = logits.argmax(dim=-1).tolist() if alive else []
            started = [waiting.popleft() for _ in range(min(rows.rows - len(alive), len(waiting)))]
            for part in by_token_budget([len(prompts[i]) - shared for i in started], TOKENS_AT_A_TIME):
                chosen += rows.read([prompts[started[i]][shared:] for i in part]).argmax(dim=-1).tolist()
            alive += started
            new |= {index: [] for index in started}
            finished = [_finish(tokenizer, new[index], token, stop) for index, token in zip(alive, chosen, strict=True)]
            results |= {index: done for index, done in zip(alive, finished, strict=True) if done is not None}
            ended = {row for row, done in enumerate(finished) if done is not None}
            if ended:
                progress(len(ended))
                order = rows.drop(ended)
                alive, chosen = [alive[row] for row in order], [chosen[row] for row in order]
            if alive:
                logits = rows.step(torch.tensor(chosen, device=model.device))
    return [results[index] for index in range(len(prompts))]


def _bytes_a_token(model: PreTrainedModel) -> int:
    config = model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)


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
