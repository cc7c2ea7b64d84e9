"""How the spans of a packed row are laid out for attention: those of about one length side by side, padded.

A product of many spans at once is faster than many products of one; and where all stand side by side, a block of
queries needs no more keys than the last of them sees, on average half as many as a span has.
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
"""Of the largest block of a batch of more than one span, at most: more would leave the processor's cache."""
FEWEST_QUERIES = 32
"""As many are counted of a span that has fewer: then its keys, which are a copy, are what takes memory."""
KEYS_MULTIPLE = 32
"""Keys of a block are so many, or a multiple: the softmax of other rows takes half again as long on a CPU."""


@dataclass(frozen=True)
class Span:
    """Tokens `start` to `stop` of a row, which see the row's first `prefix` tokens and, causally, each other."""

    start: int
    stop: int
    prefix: int = 0
    mask: Bool[Tensor, "queries own"] | None = None
    """Which of the span's own tokens each of them sees; None: those before it, and itself, each at the position after
    the one before, the first at that after the prefix."""

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
    """Some queries of the longest spans of a batch, and the keys that they see."""

    sequences: slice
    """Each span once for every key head."""
    queries: slice
    """Of each, with the heads of a group one after another."""
    keys: slice
    bias: Float[Tensor, "#spans 1 queries 1 last_keys"] | None
    """Added to the scores of the last keys: minus infinity where a query does not see one; all see those before."""


class Batch(NamedTuple):
    """Spans of about one length, the longest first, padded to it."""

    sequences: int
    """Each span once for every key head."""
    queries: Int[Tensor, " laid_out"]
    """Which of the row's vectors, one a token and head, stand in its places."""
    padding: Int[Tensor, " padded"]
    """Places among them that no token has."""
    keys: Int[Tensor, " keys_laid_out"]
    """Which vectors stand in its places for keys, the prefix in front of each span's own."""
    places: slice
    """Of all batches' places, its own."""
    key_places: slice
    """Likewise for keys."""
    prefix: int
    """Keys of each span that are the prefix's."""
    blocks: tuple[Block, ...]

    def asking(self, vectors: Float[Tensor, "vectors size"]) -> Float[Tensor, "sequences queries size"]:
        """A copy of the row's vectors, as its queries stand."""
        return self._by_sequence(vectors.index_select(0, self.queries))

    def seen(self, vectors: Float[Tensor, "vectors size"]) -> Float[Tensor, "sequences keys size"]:
        """Likewise as its keys stand."""
        return self._by_sequence(vectors.index_select(0, self.keys))

    def of_queries(self, laid_out: Float[Tensor, "places size"]) -> Float[Tensor, "sequences queries size"]:
        """Its part of what all batches' queries have."""
        return self._by_sequence(laid_out[self.places])

    def of_keys(self, laid_out: Float[Tensor, "key_places size"]) -> Float[Tensor, "sequences keys size"]:
        """Its part of what all batches' keys have."""
        return self._by_sequence(laid_out[self.key_places])

    def _by_sequence(self, part: Float[Tensor, "places size"]) -> Float[Tensor, "sequences of_each size"]:
        return part.view(self.sequences, -1, part.shape[1])


@dataclass(frozen=True)
class Layout:
    """Where the vectors of a packed row's tokens, one for each of their heads, stand in its batches."""

    heads: Heads
    tokens: int
    """That ask."""
    batches: tuple[Batch, ...]
    places: Int[Tensor, " tokens_and_heads"]
    """Where each query stands."""
    key_places: Int[Tensor, " tokens_and_key_heads"]
    """Where each key stands among those of all batches, its span's own."""
    apart: int
    """Tokens of a prefix that stands in no batch: all behind it see it whole, and attend to it in one call."""

    @property
    def places_in_all(self) -> int:
        """Of the queries of all batches."""
        return int(self.batches[-1].places.stop)

    @property
    def key_places_in_all(self) -> int:
        """Of the keys of all batches."""
        return int(self.batches[-1].key_places.stop)


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
    batches: list[Batch] = []
    places = torch.empty(asking * heads.queries, dtype=torch.long)
    key_places = torch.empty(asking * heads.keys, dtype=torch.long)
    first = first_key = 0
    for alike in _alike(spans, heads, apart):
        prefix, longest = _prefix(alike[0], apart), alike[0].length
        own = torch.stack([torch.arange(span.start, span.start + longest) for span in alike])
        real = own < torch.tensor([span.stop for span in alike])[:, None]
        # A place without a token has the span's first: nothing sees it, but it is to be finite where the span is.
        own = own.where(real, own[:, :1])
        keys = own[:, :1].repeat(1, _rounded_up(prefix + longest))
        keys[:, :prefix] = torch.arange(prefix)
        keys[:, prefix : prefix + longest] = own
        real_keys = torch.zeros_like(keys, dtype=torch.bool)
        real_keys[:, prefix : prefix + longest] = real

        asked, seen = _vectors(own - before, heads.queries, heads), _vectors(keys, heads.keys, heads)
        padding = _note(places, asked, real, first)
        _note(key_places, _vectors(keys - before, heads.keys, heads), real_keys, first_key)
        batches.append(
            Batch(
                len(alike) * heads.keys,
                asked.flatten().to(like.device),
                (padding - first).to(like.device),
                seen.flatten().to(like.device),
                slice(first, first + asked.numel()),
                slice(first_key, first_key + seen.numel()),
                prefix,
                tuple(
                    _block(alike, start, prefix, positions, window, heads, like)
                    for start in range(0, longest, QUERIES_AT_A_TIME)
                ),
            )
        )
        first, first_key = batches[-1].places.stop, batches[-1].key_places.stop
    return Layout(heads, asking, tuple(batches), places.to(like.device), key_places.to(like.device), apart)


def _vectors(
    tokens: Int[Tensor, "spans of_each"], total: int, heads: Heads
) -> Int[Tensor, "spans key_heads of_each group"]:
    """Which vectors some tokens have, of a row with `total` heads a token."""
    head = torch.arange(total).view(heads.keys, 1, -1)
    return tokens[:, None, :, None] * total + head


def _note(
    places: Int[Tensor, " vectors"],
    vectors: Int[Tensor, "spans key_heads of_each group"],
    real: Bool[Tensor, "spans of_each"],
    first: int,
) -> Int[Tensor, " padded"]:
    """Note where each vector of a token stands, counted from `first`; returns the places that no token has."""
    of_token = real[:, None, :, None].expand_as(vectors)
    standing = first + torch.arange(vectors.numel()).view_as(vectors)
    places[vectors[of_token]] = standing[of_token]
    return standing[~of_token]


def _prefix(span: Span, apart: int) -> int:
    """Tokens of its prefix that stand in front of its own."""
    return 0 if span.prefix == apart else span.prefix


def _alike(spans: Sequence[Span], heads: Heads, apart: int) -> list[list[Span]]:
    """In groups that can stand side by side, the longest first."""
    order = sorted(spans, key=lambda span: (span.prefix, span.mask is None, -span.length))
    groups: list[list[Span]] = []
    for span in order:
        first = groups[-1][0] if groups else span
        queries = min(QUERIES_AT_A_TIME, max(FEWEST_QUERIES, first.length))
        scores = heads.queries * queries * _rounded_up(_prefix(first, apart) + first.length)
        if (
            not groups
            or (span.prefix, span.mask is None) != (first.prefix, first.mask is None)
            # Few of the products' numbers are to be in vain.
            or first.length > 1.3 * span.length + 8
            or (len(groups[-1]) + 1) * scores > SCORES_AT_A_TIME
        ):
            groups.append([])
        groups[-1].append(span)
    return groups


def _block(
    alike: Sequence[Span],
    start: int,
    prefix: int,
    positions: Int[Tensor, " keys"],
    window: int | None,
    heads: Heads,
    like: Tensor,
) -> Block:
    stop = min(start + QUERIES_AT_A_TIME, alike[0].length)
    asking = [span for span in alike if span.length > start]
    # Without masks, all are as the longest of them.
    told = asking if asking[0].mask is not None else asking[:1]
    visible = torch.zeros(len(told), stop - start, _rounded_up(prefix + stop), dtype=torch.bool)
    for of_span, span in zip(visible, told, strict=True):
        end = min(stop, span.length)
        of_span[: end - start, : prefix + end] = _visible(span, start, end, prefix, positions, window)
        # What asks in vain sees what the last token sees.
        of_span[end - start :] = of_span[end - start - 1]
    seen = visible.any(dim=(0, 1)).nonzero()[:, 0]
    # What a window has left behind is cut off.
    first = int(seen[0]) // KEYS_MULTIPLE * KEYS_MULTIPLE
    keys = slice(first, visible.shape[2])
    hidden = ~visible[:, :, keys]
    some = hidden.any(dim=(0, 1)).nonzero()[:, 0]
    bias = None
    if len(some) > 0:
        hidden = hidden[:, :, int(some[0]) :]
        bias = torch.zeros(hidden.shape, dtype=like.dtype).masked_fill_(hidden, float("-inf"))
        bias = bias[:, None, :, None].to(like.device)
    return Block(slice(0, len(asking) * heads.keys), slice(start * heads.group, stop * heads.group), keys, bias)


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
