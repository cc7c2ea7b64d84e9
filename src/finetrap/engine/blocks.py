"""Attention in blocks of queries, forward and backward written out as matrix products.

For sequences of a few hundred tokens on a CPU, products of a block's size are faster than torch's scaled dot product
attention and its backward pass, and by far faster than one call with a block mask over a whole row. In float32 on a CPU
and without a gradient, torch's fused kernel is faster to a long prefix that all see (shots above all): there, attention
is computed in two parts.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from finetrap.engine.layout import Batch, Block, Layout

KEYS_KEPT = 512
"""Keys of a block up to which its weights are kept for the backward pass: a fifth of SmolLM2's activations, about."""


class BlockAttention(torch.autograd.Function):
    """Softmax(scale Q K^T) V within each block; the backward pass computes weights of many keys again.

    Derivatives as in FlashAttention (arXiv:2205.14135, appendix B.4). Gradients of keys and values add up in
    float32, since many blocks share a prefix. For rows that hold their prefix, none of it apart.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float
    ) -> Float[Tensor, "1 tokens heads size"]:
        assert not layout.apart, "its gradient would be left out"
        kept: list[Tensor | None] = []
        attended = attend(query, key, value, layout, scale, kept if any(ctx.needs_input_grad) else None)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.layout, ctx.scale = layout, scale
        return attended

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        layout: Layout = ctx.layout
        queries, keys, values = (_by_head(part) for part in (query, key, value))
        aboves = gradient.reshape(-1, gradient.shape[3])
        d_queries = queries.new_empty(layout.places_in_all, queries.shape[1])
        d_keys, d_values = (
            part.new_zeros(layout.key_places_in_all, part.shape[1], dtype=torch.float32) for part in (keys, values)
        )
        of_prefix: list[tuple[Tensor, Tensor]] = []
        weights_of_blocks = iter(kept)
        for batch in layout.batches:
            asking, seen, carried = batch.asking(queries).mul_(ctx.scale), batch.seen(keys), batch.seen(values)
            above = batch.asking(aboves)
            above.view(-1, above.shape[2]).index_fill_(0, batch.padding, 0)
            d_asking, d_seen, d_carried = batch.of_queries(d_queries), batch.of_keys(d_keys), batch.of_keys(d_values)
            for block in batch.blocks:
                at, by = (block.sequences, block.queries), (block.sequences, block.keys)
                weights = next(weights_of_blocks)
                if weights is None:
                    weights = _scores(asking[at], seen[by], block, layout).softmax(dim=-1)
                d_weights = torch.bmm(above[at], carried[by].transpose(1, 2))
                d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
                d_asking[at] = torch.bmm(d_scores, seen[by])
                d_seen[by] += torch.bmm(d_scores.transpose(1, 2), asking[at])
                d_carried[by] += torch.bmm(weights.transpose(1, 2), above[at])
            if batch.prefix:
                of_prefix.append((_of_prefix(d_seen, batch, layout), _of_prefix(d_carried, batch, layout)))
        d_query = _by_token(d_queries, layout.places, layout)
        d_key, d_value = (_by_token(part, layout.key_places, layout) for part in (d_keys, d_values))
        for of_keys, of_values in of_prefix:
            d_key[: len(of_keys)] += of_keys
            d_value[: len(of_values)] += of_values
        parts = d_query.mul_(ctx.scale), d_key.to(key.dtype), d_value.to(value.dtype)
        return (*(part.transpose(0, 1)[None] for part in parts), None, None)


def attend(
    query: Float[Tensor, "1 heads queries size"],
    key: Float[Tensor, "1 key_heads tokens size"],
    value: Float[Tensor, "1 key_heads tokens value_size"],
    layout: Layout,
    scale: float,
    kept: list[Tensor | None] | None = None,
) -> Float[Tensor, "1 queries heads value_size"]:
    """Attention within each block, without a gradient; the queries are the last of the tokens that the keys are of.

    `kept` receives each block's weights, or None where there are too many.
    """
    queries, keys, values = (_by_head(part) for part in (query, key, value))
    out = values.new_empty(layout.places_in_all, values.shape[1])
    lse = queries.new_empty(layout.places_in_all, 1) if layout.apart else None
    for batch in layout.batches:
        asking, seen, carried = batch.asking(queries).mul_(scale), batch.seen(keys), batch.seen(values)
        attended = batch.of_queries(out)
        for block in batch.blocks:
            at, by = (block.sequences, block.queries), (block.sequences, block.keys)
            scores = _scores(asking[at], seen[by], block, layout)
            weights = scores.softmax(dim=-1)
            if lse is not None:
                # Not torch's logsumexp: its exponentials of minus infinity take ten times those of other numbers.
                batch.of_queries(lse)[at] = (
                    scores.amax(dim=-1, keepdim=True) - weights.amax(dim=-1, keepdim=True).log_()
                )
            attended[at] = torch.bmm(weights, carried[by])
            if kept is not None:
                kept.append(weights if weights.shape[2] <= KEYS_KEPT else None)
    by_token = _by_token(out, layout.places, layout)
    if lse is not None:
        behind = slice(layout.apart + layout.tokens - key.shape[2], None)
        known = slice(0, layout.apart)
        shared = attention_to_all(query[:, :, behind], key[:, :, known], value[:, :, known], scale)
        own = _by_token(lse, layout.places, layout)[behind]
        share = torch.sigmoid(shared.lse[0].T[..., None] - own)
        by_token[behind] = torch.lerp(by_token[behind], shared.attended[0].transpose(0, 1), share)
    return by_token[None]


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


def _scores(
    scaled: Float[Tensor, "sequences queries size"],
    keys: Float[Tensor, "sequences keys size"],
    block: Block,
    layout: Layout,
) -> Float[Tensor, "sequences queries keys"]:
    """Of queries that were multiplied by the scale."""
    scores = torch.bmm(scaled, keys.transpose(1, 2))
    if block.bias is not None:
        _, _, queries, _, biased = block.bias.shape
        by_head = scores.view(-1, layout.heads.keys, queries, layout.heads.group, scores.shape[2])
        by_head[..., scores.shape[2] - biased :] += block.bias
    return scores


def _by_head(part: Float[Tensor, "1 heads tokens size"]) -> Float[Tensor, "tokens_and_heads size"]:
    """Token by token, one of each head."""
    return part[0].transpose(0, 1).reshape(-1, part.shape[3])


def _by_token(
    laid_out: Float[Tensor, "places size"], places: Int[Tensor, " vectors"], layout: Layout
) -> Float[Tensor, "tokens heads size"]:
    """Back in the row's order."""
    return laid_out.index_select(0, places).view(layout.tokens, -1, laid_out.shape[1])


def _of_prefix(
    part: Float[Tensor, "sequences keys size"], batch: Batch, layout: Layout
) -> Float[Tensor, "prefix key_heads size"]:
    """What a batch's sequences have at the prefix's keys, all together."""
    by_head = part[:, : batch.prefix].view(-1, layout.heads.keys, batch.prefix, part.shape[2])
    return by_head.sum(dim=0).transpose(0, 1)
