"""Attention in blocks of queries, forward and backward written out as matrix products.

For sequences of a few hundred tokens on a CPU, products of a block's size are faster than torch's scaled dot product
attention and its backward pass, and by far faster than one call with a block mask over a whole row. To a long prefix
that all see (shots above all) torch's fused kernel is faster: there, attention is computed in two parts.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

LONG_PREFIX = 512
"""Tokens from which on a prefix is attended to apart, in float32 on a CPU."""
KEYS_KEPT = 512
"""Keys of a block up to which its weights are kept for the backward pass: a fifth of SmolLM2's activations, about."""


class Block(NamedTuple):
    """Some queries of a span and all keys that they see, as positions in the row."""

    queries: slice
    prefix: slice
    own: slice
    bias: Float[Tensor, "queries keys"] | None
    """Added to the scores: minus infinity where a query does not see a key; None where it sees them all. The queries
    of all heads that share a key head stand one after another."""
    sees_prefix: bool
    """Whether each query sees all of the prefix."""


class BlockAttention(torch.autograd.Function):
    """Softmax(scale Q K^T) V within each block; the backward pass computes weights of many keys again.

    Derivatives as in FlashAttention (arXiv:2205.14135, appendix B.4). Gradients of keys and values add up in
    float32, since many blocks share a prefix.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], scale: float
    ) -> Float[Tensor, "1 tokens heads size"]:
        kept: list[Tensor | None] = []
        attended = attend(query, key, value, blocks, scale, kept if any(ctx.needs_input_grad) else None)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.blocks, ctx.scale = blocks, scale
        return attended

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        heads, key_heads = query.shape[1], key.shape[1]
        d_query = torch.empty_like(query)
        d_key, d_value = (torch.zeros_like(part, dtype=torch.float32) for part in (key, value))
        for block, weights in zip(ctx.blocks, kept, strict=True):
            keys, values = _seen(key, block), _seen(value, block)
            queries = _by_key_head(query[0, :, block.queries], key_heads)
            above = _by_key_head(gradient[0, block.queries].transpose(0, 1), key_heads)
            if weights is None:
                weights = _scores(queries, keys, block, ctx.scale).softmax(dim=-1)
            d_weights = torch.bmm(above, values.transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_query[0, :, block.queries] = _by_head(torch.bmm(d_scores, keys), heads)
            _add_seen(d_key, block, torch.bmm(d_scores.transpose(1, 2), queries))
            _add_seen(d_value, block, torch.bmm(weights.transpose(1, 2), above))
        return d_query.mul_(ctx.scale), d_key.mul_(ctx.scale).to(key.dtype), d_value.to(value.dtype), None, None


def attend(
    query: Float[Tensor, "1 heads queries size"],
    key: Float[Tensor, "1 key_heads tokens size"],
    value: Float[Tensor, "1 key_heads tokens value_size"],
    blocks: Sequence[Block],
    scale: float,
    kept: list[Tensor | None] | None = None,
) -> Float[Tensor, "1 queries heads value_size"]:
    """Attention within each block, without a gradient; the queries are the last of the tokens that the keys are of.

    `kept` receives each block's weights, or None where there are too many.
    """
    _, heads, tokens, _ = query.shape
    before = key.shape[2] - tokens
    attended = value.new_empty(1, tokens, heads, value.shape[3])
    apart = _prefix_apart(blocks, key) if key.shape[3] == value.shape[3] else None
    of_prefix = None
    if apart is not None:
        # All queries behind the prefix ask for it.
        asking = slice(apart.stop - before, None)
        of_prefix = attention_to_all(query[:, :, asking], key[:, :, apart], value[:, :, apart], scale)
    for block in blocks:
        asking = slice(block.queries.start - before, block.queries.stop - before)
        queries = _by_key_head(query[0, :, asking], key.shape[1])
        if of_prefix is None or block.prefix != apart:
            weights = _scores(queries, _seen(key, block), block, scale).softmax(dim=-1)
            out = torch.bmm(weights, _seen(value, block))
            attended[0, asking] = _by_head(out, heads).transpose(0, 1)
            if kept is not None:
                kept.append(weights if weights.shape[2] <= KEYS_KEPT else None)
            continue
        own = Block(block.queries, slice(0, 0), block.own, _of_own(block), sees_prefix=True)
        scores = _scores(queries, _seen(key, own), own, scale)
        lse = scores.logsumexp(dim=-1, keepdim=True)
        out = _by_head(torch.bmm(scores.sub_(lse).exp_(), _seen(value, own)), heads)
        behind = slice(block.queries.start - apart.stop, block.queries.stop - apart.stop)
        share = torch.sigmoid(of_prefix.lse[0, :, behind, None] - lse.view(heads, -1, 1))
        attended[0, asking] = torch.lerp(out, of_prefix.attended[0, :, behind], share).transpose(0, 1)
        if kept is not None:
            kept.append(None)
    return attended


class Attended(NamedTuple):
    """Attention to a part of the keys; two parts make a whole by exp(lse) of each (arXiv:2205.14135, section 3.1)."""

    attended: Float[Tensor, "batch heads queries value_size"]
    lse: Float[Tensor, "batch heads queries"]
    """Log of the sum of exp(score), in float32."""


def attention_with_lse(
    query: Float[Tensor, "batch heads queries size"],
    key: Float[Tensor, "batch heads keys size"],
    value: Float[Tensor, "batch heads keys value_size"],
    bias: Float[Tensor, "#batch #heads #queries keys"] | None,
    scale: float,
) -> Attended:
    """Attention of all queries to all keys, as far as `bias`, which is added to the scores, lets them."""
    if query.device.type == "cpu" and key.shape[3] == value.shape[3]:
        mask = None if bias is None else bias.expand(-1, -1, query.shape[2], -1)
        return Attended(
            *torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query, key, value, 0.0, False, attn_mask=mask, scale=scale
            )
        )
    scores = (query @ key.transpose(2, 3)).float() * scale
    scores = scores if bias is None else scores + bias
    lse = scores.logsumexp(dim=-1)
    return Attended((scores - lse[..., None]).exp().to(value.dtype) @ value, lse)


def attention_to_all(
    query: Float[Tensor, "1 heads queries size"],
    key: Float[Tensor, "1 key_heads keys size"],
    value: Float[Tensor, "1 key_heads keys size"],
    scale: float,
) -> Attended:
    """Likewise without a bias, heads grouped: those of a group stand where queries do, and share their keys."""
    _, heads, tokens, size = query.shape
    grouped = query.reshape(1, key.shape[1], -1, size)
    attended, lse = attention_with_lse(grouped, key, value, None, scale)
    return Attended(attended.reshape(1, heads, tokens, -1), lse.reshape(1, heads, tokens))


def _prefix_apart(blocks: Sequence[Block], like: Tensor) -> slice | None:
    """The prefix that is attended to for all that see it in one call; None where each block does so by itself."""
    if like.device.type != "cpu" or like.dtype != torch.float32:
        return None
    seeing = [block for block in blocks if block.prefix.stop > block.prefix.start]
    prefixes = {(block.prefix.start, block.prefix.stop) for block in seeing}
    if len(prefixes) != 1 or not all(block.sees_prefix for block in seeing):
        return None
    start, stop = prefixes.pop()
    # What stands behind it has to be all that sees it.
    all_see = len(seeing) == sum(block.queries.start >= stop for block in blocks)
    return slice(start, stop) if stop - start >= LONG_PREFIX and start == 0 and all_see else None


def _of_own(block: Block) -> Tensor | None:
    return None if block.bias is None else block.bias[:, block.prefix.stop - block.prefix.start :]


def _scores(
    queries: Float[Tensor, "key_heads queries size"],
    keys: Float[Tensor, "key_heads keys size"],
    block: Block,
    scale: float,
) -> Float[Tensor, "key_heads queries keys"]:
    if block.bias is None:
        return torch.bmm(queries, keys.transpose(1, 2)).mul_(scale)
    return torch.baddbmm(block.bias, queries, keys.transpose(1, 2), alpha=scale)


def _seen(keys: Float[Tensor, "1 heads tokens size"], block: Block) -> Float[Tensor, "heads keys size"]:
    own = keys[0, :, block.own]
    return torch.cat([keys[0, :, block.prefix], own], dim=1) if block.prefix.stop > block.prefix.start else own


def _add_seen(total: Tensor, block: Block, part: Float[Tensor, "heads keys size"]) -> None:
    shared = block.prefix.stop - block.prefix.start
    total[0, :, block.own] += part[:, shared:]
    if shared:
        total[0, :, block.prefix] += part[:, :shared]


def _by_key_head(tensor: Float[Tensor, "heads queries size"], key_heads: int) -> Float[Tensor, "key_heads rows size"]:
    """The queries of all heads that share a key head, one after another: grouped heads without a copy of the keys."""
    return tensor.reshape(key_heads, -1, tensor.shape[2])


def _by_head(tensor: Float[Tensor, "key_heads rows size"], heads: int) -> Float[Tensor, "heads queries size"]:
    return tensor.view(heads, -1, tensor.shape[2])
