"""Attention in blocks of queries, forward and backward written out as matrix products.

For sequences of a few hundred tokens on a CPU, products of a block's size are faster than torch's scaled dot product
attention and its backward pass, and by far faster than one call with a block mask over a whole row. To a long prefix
that all see (shots above all) torch's fused kernel is faster: there, attention is computed in two parts.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from finetrap.engine.layout import Block, Layout

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
        kept: list[Tensor | None] = []
        attended = attend(query, key, value, layout, scale, kept if any(ctx.needs_input_grad) else None)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.layout, ctx.scale = layout, scale
        return attended

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        layout: Layout = ctx.layout
        heads = layout.heads
        queries = _vectors(query).index_select(0, layout.queries)
        keys, values = (_vectors(part).index_select(0, layout.keys) for part in (key, value))
        above = gradient.reshape(-1, gradient.shape[3]).index_select(0, layout.queries)
        above.index_fill_(0, layout.padding, 0)
        d_queries = torch.empty_like(queries)
        d_keys, d_values = (torch.zeros_like(part, dtype=torch.float32) for part in (keys, values))
        of_prefix: list[tuple[Tensor, Tensor]] = []
        weights_of_blocks = iter(kept)
        for batch in layout.batches:
            asking, above_asking, d_asking = (batch.of_queries(part) for part in (queries, above, d_queries))
            seen, carried, d_seen, d_carried = (batch.of_keys(part) for part in (keys, values, d_keys, d_values))
            for block in batch.blocks:
                at, by = (block.sequences, block.queries), (block.sequences, block.keys)
                weights = next(weights_of_blocks)
                if weights is None:
                    weights = _scores(asking[at], seen[by], block, layout, ctx.scale).softmax(dim=-1)
                d_weights = torch.bmm(above_asking[at], carried[by].transpose(1, 2))
                d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
                d_asking[at] = torch.bmm(d_scores, seen[by])
                d_seen[by] += torch.bmm(d_scores.transpose(1, 2), asking[at])
                d_carried[by] += torch.bmm(weights.transpose(1, 2), above_asking[at])
            if batch.prefix:
                of_prefix.append((batch.summed_prefix(d_seen, heads), batch.summed_prefix(d_carried, heads)))
        d_query = d_queries.index_select(0, layout.places).view(layout.tokens, heads.queries, -1)
        d_key, d_value = (
            part.index_select(0, layout.key_places).view(layout.tokens, heads.keys, -1) for part in (d_keys, d_values)
        )
        for of_keys, of_values in of_prefix:
            d_key[: len(of_keys)] += of_keys
            d_value[: len(of_values)] += of_values
        scaled = d_query.mul_(ctx.scale), d_key.mul_(ctx.scale).to(key.dtype), d_value.to(value.dtype)
        return (*(part.transpose(0, 1)[None] for part in scaled), None, None)


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
    queries = _vectors(query).index_select(0, layout.queries)
    keys, values = (_vectors(part).index_select(0, layout.keys) for part in (key, value))
    out = values.new_empty(len(queries), values.shape[1])
    lse = queries.new_empty(len(queries), 1) if layout.apart else None
    for batch in layout.batches:
        asking, attended = batch.of_queries(queries), batch.of_queries(out)
        seen, carried = batch.of_keys(keys), batch.of_keys(values)
        for block in batch.blocks:
            at, by = (block.sequences, block.queries), (block.sequences, block.keys)
            scores = _scores(asking[at], seen[by], block, layout, scale)
            if lse is None:
                weights = scores.softmax(dim=-1)
            else:
                of_block = scores.logsumexp(dim=-1, keepdim=True)
                batch.of_queries(lse)[at] = of_block
                weights = scores.sub_(of_block).exp_()
            attended[at] = torch.bmm(weights, carried[by])
            if kept is not None:
                kept.append(weights if weights.shape[2] <= KEYS_KEPT else None)
    by_token = out.index_select(0, layout.places).view(layout.tokens, layout.heads.queries, -1)
    if lse is not None:
        behind = slice(layout.apart + layout.tokens - key.shape[2], None)
        known = slice(0, layout.apart)
        shared = attention_to_all(query[:, :, behind], key[:, :, known], value[:, :, known], scale)
        own = lse.index_select(0, layout.places).view(layout.tokens, layout.heads.queries)[behind]
        share = torch.sigmoid(shared.lse[0].T - own)[..., None]
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
    queries: Float[Tensor, "sequences queries size"],
    keys: Float[Tensor, "sequences keys size"],
    block: Block,
    layout: Layout,
    scale: float,
) -> Float[Tensor, "sequences queries keys"]:
    scores = torch.bmm(queries, keys.transpose(1, 2))
    if block.bias is None:
        return scores.mul_(scale)
    by_head = scores.view(-1, layout.heads.keys, block.bias.shape[2], layout.heads.group, scores.shape[2])
    torch.add(block.bias, by_head, alpha=scale, out=by_head)
    return scores


def _vectors(part: Float[Tensor, "1 heads tokens size"]) -> Float[Tensor, "tokens_and_heads size"]:
    """Token by token, one of each head."""
    return part[0].transpose(0, 1).reshape(-1, part.shape[3])
