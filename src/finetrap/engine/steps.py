"""What the next tokens of answers see: the keys of their own rows so far, and those of the prefix before them.

A row may be given several tokens at once, each of which sees those before it, as a draft that is checked.
"""

from collections.abc import Sequence
from itertools import accumulate
from operator import add
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from finetrap.engine.blocks import Attended, attention_with_lse
from finetrap.engine.captured import Extent

PREFIX_MULTIPLE = 32
"""Of a prefix, in bfloat16 on a CPU: fused attention to a multiple of so many takes a quarter less time."""
ROWS_TOGETHER = 32
"""Whose own keys are attended to in one call on a CPU, up to the longest of them; on a GPU one call takes all."""


class Step(NamedTuple):
    """The tokens that rows are given at once, row by row on end."""

    rows: Int[Tensor, " tokens"]
    """Of each token."""
    places: Int[Tensor, " tokens"]
    """Of each token within its row."""
    counts: Sequence[int]
    """Tokens of each row, one at least."""
    lengths: Sequence[int] | None
    """Tokens of each row before; None where they are not known, since the step is captured."""
    extent: Extent
    prefix: int
    """Tokens that all rows begin with."""

    def span(self, rows: slice) -> tuple[int, int]:
        """Where the first token of some rows may stand, and where the last of them ends."""
        # A captured step computes the same keys whenever it is replayed, however far its rows have come.
        if self.lengths is None:
            return 0, self.extent.keys
        return min(self.lengths[rows]), max(map(add, self.lengths[rows], self.counts[rows]))


class Part(NamedTuple):
    """Some of the rows, and what the next tokens of each see of it."""

    rows: slice
    tokens: slice
    keys: slice
    bias: Float[Tensor, "rows 1 most keys"] | None
    padded: Int[Tensor, "rows most"] | None
    """The tokens of each row; None where each has one."""
    real: Int[Tensor, " tokens"] | None
    """Which of them are no padding, in order."""

    def attend(
        self,
        grouped: Float[Tensor, "tokens key_heads group size"],
        keys: Float[Tensor, "rows key_heads capacity size"],
        values: Float[Tensor, "rows key_heads capacity value_size"],
        scale: float,
    ) -> Attended:
        """Attention of these rows' tokens to their own keys, of all tokens and all rows; queries stand in groups."""
        keys, values = keys[self.rows, :, self.keys], values[self.rows, :, self.keys]
        if self.padded is None:
            return attention_with_lse(grouped[self.tokens], keys, values, self.bias, scale)
        rows, most = self.padded.shape
        heads, group = grouped.shape[1:3]
        asking = grouped[self.padded].transpose(1, 2).reshape(rows, heads, most * group, -1)
        bias = None if self.bias is None else self.bias.repeat_interleave(group, dim=2)
        padded = attention_with_lse(asking, keys, values, bias, scale)
        attended = padded.attended.view(rows, heads, most, group, -1).transpose(1, 2).flatten(0, 1)
        lse = padded.lse.view(rows, heads, most, group).transpose(1, 2).flatten(0, 1)
        return Attended(attended[self.real], lse[self.real])


class Seen(NamedTuple):
    """What the tokens of a step see; the same in every layer of one window."""

    own: tuple[Part, ...]
    prefix: slice
    """The prefix's keys, those that follow it without meaning among them."""
    prefix_bias: Float[Tensor, "#tokens prefix"] | None


def seen_in(step: Step, window: int | None, like: Tensor) -> Seen:
    """What tokens see under a sliding window, for queries as `like`."""
    rows, keys = step.extent
    reach = keys + step.prefix if window is None else window
    together = ROWS_TOGETHER if like.device.type == "cpu" else rows
    own = tuple(
        _part(step, slice(start, min(start + together, rows)), reach, like) for start in range(0, rows, together)
    )
    return Seen(own, *_seen_of_prefix(step, reach, like))


def _part(step: Step, rows: slice, reach: int, like: Tensor) -> Part:
    first, end = step.span(rows)
    keys = slice(max(0, first + 1 - reach), end)
    bounds = [*accumulate(step.counts, initial=0)]
    tokens, most = slice(bounds[rows.start], bounds[rows.stop]), max(step.counts[rows])
    places, padded, real = step.places[tokens, None], None, None
    if most > 1:
        there = torch.arange(most) < torch.tensor(step.counts[rows])[:, None]
        # In the place of what is not there stands the row's first token.
        padded = torch.tensor(bounds[rows])[:, None] + torch.arange(most) * there
        places, real = step.places[padded], there.flatten().nonzero()[:, 0]
    distance = places[:, :, None] - torch.arange(keys.start, keys.stop, device=like.device)
    bias = _bias((distance >= 0) & (distance < reach), like)
    return Part(rows, tokens, keys, None if bias is None else bias[:, None], padded, real)


def _seen_of_prefix(step: Step, reach: int, like: Tensor) -> tuple[slice, Float[Tensor, "#tokens prefix"] | None]:
    asked_from, end = step.span(slice(0, step.extent.rows))
    first = max(0, asked_from + step.prefix + 1 - reach)
    if first >= step.prefix:
        return slice(0, 0), None
    keys = slice(first, step.prefix + padding(step.prefix, like))
    is_limited = reach < end + step.prefix
    if not is_limited and keys.stop == step.prefix:
        return keys, None
    places = torch.arange(keys.start, keys.stop, device=like.device)
    visible = (places < step.prefix)[None]
    if is_limited:
        visible = visible & (step.places[:, None] + step.prefix - places < reach)
    return keys, _bias(visible, like)


def padding(prefix: int, like: Tensor) -> int:
    """Keys without meaning that are to follow those of a prefix, for queries as `like`."""
    return -prefix % PREFIX_MULTIPLE if like.device.type == "cpu" and like.dtype == torch.bfloat16 else 0


def _bias(visible: Bool[Tensor, "*tokens keys"], like: Tensor) -> Float[Tensor, "*tokens keys"] | None:
    """What is added to scores; None for nothing.

    Not minus infinity, since a row that sees nothing of the prefix would have no softmax.
    """
    if visible.device.type != "cuda" and bool(visible.all()):  # a GPU would have to be waited for
        return None
    return torch.zeros_like(visible, dtype=like.dtype).masked_fill_(~visible, torch.finfo(like.dtype).min / 2)
