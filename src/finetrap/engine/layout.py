"""How the spans of a packed row are laid out for attention: those of about one length side by side, padded.

A product of many spans at once is faster than many products of one; and where all stand side by side, a block of
queries needs no more keys than the last of them sees, which is half as many as a span has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

QUERIES_AT_A_TIME = 128
"""Of a span in one block."""
SCORES_AT_A_TIME = 1 << 22
"""Of a batch's largest block, at most: more would leave the processor's cache, and are more memory."""
KEYS_MULTIPLE = 32
"""Keys of a block are so many, or a multiple: the softmax of other rows takes half again as long on a CPU."""


@dataclass(frozen=True)
class Span:
    """Tokens `start` to `stop` of a row, which see the row's first `prefix` tokens and, causally, each other."""

    start: int
    stop: int
    prefix: int = 0
    mask: Bool[Tensor, "queries own"] | None = None
    """Which of the span's own tokens each of them sees; None: those before it, and itself, at consecutive positions."""

    @property
    def length(self) -> int:
        """Its own tokens."""
        return self.stop - self.start


class Heads(NamedTuple):
    """How many heads a layer has."""

    queries: int
    keys: int

    @property
    def group(self) -> int:
        """Those that share a key head."""
        return self.queries // self.keys


class Block(NamedTuple):
    """Some queries of the longest sequences of a batch, and the keys that they see."""

    sequences: slice
    """Each once for every key head."""
    queries: slice
    """Of each, with the heads of a group one after another."""
    keys: slice
    bias: Float[Tensor, "#sequences 1 queries 1 keys"] | None
    """Added to the scores: minus infinity where a query does not see a key; None where it sees them all."""


class Batch(NamedTuple):
    """Sequences of about one length, the longest first, padded to it."""

    sequences: int
    """Each once for every key head."""
    queries: slice
    """Of the layout's queries."""
    keys: slice
    """Of the layout's keys."""
    prefix: int
    """How many keys stand in front of each sequence's own."""
    blocks: tuple[Block, ...]

    def of_queries(self, part: Float[Tensor, "laid_out size"]) -> Float[Tensor, "sequences queries size"]:
        """What of all that is laid out belongs to its queries."""
        return part[self.queries].view(self.sequences, -1, part.shape[1])

    def of_keys(self, part: Float[Tensor, "keys_laid_out size"]) -> Float[Tensor, "sequences keys size"]:
        """Likewise to its keys."""
        return part[self.keys].view(self.sequences, -1, part.shape[1])

    def summed_prefix(
        self, part: Float[Tensor, "sequences keys size"], heads: Heads
    ) -> Float[Tensor, "prefix key_heads size"]:
        """What stands at the prefix's keys, of all sequences together."""
        by_head = part[:, : self.prefix].view(-1, heads.keys, self.prefix, part.shape[2])
        return by_head.sum(dim=0).transpose(0, 1)


@dataclass(frozen=True)
class Layout:
    """Where the vectors of a packed row's tokens, one for each of their heads, stand in its batches."""

    heads: Heads
    tokens: int
    """That ask."""
    batches: tuple[Batch, ...]
    queries: Int[Tensor, " laid_out"]
    """Which vector of the row stands in each place, token by token."""
    keys: Int[Tensor, " keys_laid_out"]
    padding: Int[Tensor, " padded"]
    """Places among the queries that no token has."""
    places: Int[Tensor, " tokens_and_heads"]
    """The place of each query."""
    key_places: Int[Tensor, " tokens_and_key_heads"]
    """The place of each key among its sequence's own."""
    apart: int
    """Tokens of a prefix that stands in no batch: all behind it see it whole, and attend to it in one call."""


def lay_out(
    spans: Sequence[Span],
    positions: Int[Tensor, " keys"],
    *,
    asking: int,
    heads: Heads,
    window: int | None,
    apart: int,
    like: Tensor,
) -> Layout:
    """Lay out the spans of a row under a sliding window of `window` positions.

    `positions`: of all keys; the last `asking` of them ask. `apart`: see `Layout`. `like` has the precision and device.
    """
    positions = positions.cpu()
    before = len(positions) - asking
    queries, keys, padding, batches = [], [], [], []
    places = torch.empty(asking * heads.queries, dtype=torch.long)
    key_places = torch.empty(asking * heads.keys, dtype=torch.long)
    first_query = first_key = 0
    for alike in _alike(spans, heads.queries):
        prefix = 0 if alike[0].prefix == apart else alike[0].prefix
        count, longest = len(alike) * heads.keys, alike[0].length
        length = _rounded_up(prefix + longest)
        own = torch.stack([torch.arange(span.start, span.start + longest) for span in alike])
        real = own < torch.tensor([span.stop for span in alike])[:, None]
        # A place without a token has the first token's vectors: nothing sees it, but they have to be finite.
        own = own.where(real, before)
        seen = torch.full((len(alike), length), before)
        seen[:, :prefix] = torch.arange(prefix)
        seen[:, prefix : prefix + longest] = own

        head = torch.arange(heads.queries).view(heads.keys, 1, heads.group)
        asked = (own - before)[:, None, :, None] * heads.queries + head
        real_queries = real[:, None, :, None].expand_as(asked)
        place = first_query + torch.arange(asked.numel()).view_as(asked)
        places[asked[real_queries]] = place[real_queries]
        queries.append(asked.flatten())
        padding.append(place[~real_queries])

        key_head = torch.arange(heads.keys)[:, None]
        kept = seen[:, None] * heads.keys + key_head
        own_keys = (own - before)[:, None] * heads.keys + key_head
        real_keys = real[:, None].expand_as(own_keys)
        place = first_key + torch.arange(kept.numel()).view_as(kept)[:, :, prefix : prefix + longest]
        key_places[own_keys[real_keys]] = place[real_keys]
        keys.append(kept.flatten())

        blocks = [
            _block(alike, start, prefix, positions, window, heads, like)
            for start in range(0, longest, QUERIES_AT_A_TIME)
        ]
        after_queries, after_keys = first_query + asked.numel(), first_key + kept.numel()
        batches.append(
            Batch(count, slice(first_query, after_queries), slice(first_key, after_keys), prefix, tuple(blocks))
        )
        first_query, first_key = after_queries, after_keys
    device = like.device
    return Layout(
        heads,
        asking,
        tuple(batches),
        torch.cat(queries).to(device),
        torch.cat(keys).to(device),
        torch.cat(padding).to(device),
        places.to(device),
        key_places.to(device),
        apart,
    )


def _alike(spans: Sequence[Span], heads: int) -> list[list[Span]]:
    """In groups that can stand side by side, the longest first."""
    order = sorted(spans, key=lambda span: (span.prefix, span.mask is None, -span.length))
    groups: list[list[Span]] = []
    for span in order:
        first = groups[-1][0] if groups else span
        largest = heads * min(QUERIES_AT_A_TIME, first.length) * (first.prefix + first.length)
        if (
            not groups
            or (span.prefix, span.mask is None) != (first.prefix, first.mask is None)
            # Few of the products' numbers are in vain.
            or first.length > 1.3 * span.length + 8
            or (len(groups[-1]) + 1) * largest > SCORES_AT_A_TIME
        ):
            groups.append([])
        groups[-1].append(span)
    return groups


def _block(
    alike: Sequence[Span],
    start: int,
    prefix: int,
    positions: Tensor,
    window: int | None,
    heads: Heads,
    like: Tensor,
) -> Block:
    longest = alike[0].length
    stop = min(start + QUERIES_AT_A_TIME, longest)
    asking = [span for span in alike if span.length > start]
    # Without masks, all are as the longest of them.
    told = asking if asking[0].mask is not None else asking[:1]
    length = min(_rounded_up(prefix + longest), _rounded_up(prefix + stop))
    visible = torch.zeros(len(told), stop - start, length, dtype=torch.bool)
    for of_span, span in zip(visible, told, strict=True):
        end = min(stop, span.length)
        of_span[: end - start, : prefix + end] = _visible(span, start, end, prefix, positions, window)
        # What asks in vain needs something to see.
        of_span[end - start :] = True
    seen = visible.any(dim=(0, 1)).nonzero()[:, 0]
    # What a window has left behind is cut off.
    first = int(seen[0]) // KEYS_MULTIPLE * KEYS_MULTIPLE
    visible = visible[:, :, first:]
    bias = None
    if not bool(visible.all()):
        bias = torch.zeros(visible.shape, dtype=like.dtype).masked_fill_(~visible, float("-inf"))
        bias = bias[:, None, :, None].to(like.device)
    return Block(
        slice(0, len(asking) * heads.keys),
        slice(start * heads.group, stop * heads.group),
        slice(first, length),
        bias,
    )


def _visible(
    span: Span, start: int, end: int, prefix: int, positions: Int[Tensor, " keys"], window: int | None
) -> Bool[Tensor, "queries seen"]:
    """What tokens `start` to `end` of a span see of its prefix and of its own up to there."""
    keys = torch.cat([positions[:prefix], positions[span.start : span.start + end]])
    distance = positions[span.start + start : span.start + end, None] - keys[None, :]
    visible = distance >= 0
    if span.mask is not None:
        visible[:, prefix:] &= span.mask[start:end, :end].to(visible.device)
    if window is not None:
        visible &= distance < window
    return visible


def _rounded_up(keys: int) -> int:
    return -(-keys // KEYS_MULTIPLE) * KEYS_MULTIPLE
