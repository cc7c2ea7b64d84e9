"""Attention for answers that are being written: a prefix that all share, and rows that come and go.

Registered with Transformers' `AttentionInterface`, as `finetrap.engine.attention` is, and for the same reason. Keys and
values are kept here and not in one of Transformers' caches: those of the shared prefix once, whatever the number of
rows, and those of each row in a place of its own, allocated once. A step attends to the prefix for all rows at once, to
each row's own part, and merges the two through their log-sum-exp.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import AttentionInterface, PreTrainedModel

from finetrap.engine.attention import PackedRow, attention_on, has_varlen_kernel, varlen_attention
from finetrap.engine.blocks import Attended, attend, attention_with_lse
from finetrap.engine.captured import CapturedSteps, Extent, can_capture
from finetrap.engine.layout import Span
from finetrap.engine.reordered import reordered_weights
from finetrap.engine.steps import Seen, Step, padding, seen_in

NAME = "finetrap_decoding"


class Rows:
    """Answers that are being written, side by side: their keys and values, and how far each has come.

    The first `active` rows are in use. `capacity` is the most tokens that a row holds, the prefix not counted.
    """

    def __init__(self, model: PreTrainedModel, *, rows: int, capacity: int) -> None:
        self.model = model
        self.rows = rows
        self.capacity = capacity
        self.active = 0
        self.lengths: Int[Tensor, " rows"] = torch.zeros(rows, dtype=torch.long, device=model.device)
        self.prefix_length = 0
        self._known: list[int] = []
        """The lengths of the rows in use once more, where reading them waits for no GPU."""
        self._captured = CapturedSteps(model.device, rows=rows) if can_capture(model.device) else None
        self._current: Step | None = None
        self._prefix: dict[int, tuple[Tensor, Tensor]] = {}
        self._own: dict[int, tuple[Tensor, Tensor]] = {}
        self._reading: _Reading | None = None
        self._seen: dict[int | None, Seen] = {}

    def read_prefix(self, prefix: Sequence[int]) -> None:
        """Compute what all rows share; before any row is read."""
        if prefix:
            self._read([(-1, prefix)])
            self.prefix_length = len(prefix)

    def read(self, prompts: Sequence[Sequence[int]], *, copies: int = 1) -> Float[Tensor, "rows vocabulary"]:
        """Give each prompt (what follows the prefix) so many rows, after those in use; logits of what comes next.

        It is computed once.
        """
        first = self.active
        self.active += len(prompts) * copies
        logits = self._read([(first + index * copies, prompt) for index, prompt in enumerate(prompts)])
        self._known += [len(prompt) for prompt in prompts for _ in range(copies)]
        self.lengths[first : self.active] = torch.tensor(self._known[first:], device=self.lengths.device)
        if copies > 1:
            longest = max(map(len, prompts))
            for part in (part for parts in self._own.values() for part in parts):
                of_prompts = part[first : self.active].view(-1, copies, *part.shape[1:])[:, :, :, :longest]
                of_prompts[:, 1:] = of_prompts[:, :1]
        return logits.repeat_interleave(copies, dim=0)

    def step(self, tokens: Sequence[Sequence[int]]) -> Float[Tensor, "tokens vocabulary"]:
        """Add tokens to every row in use, one at least; logits of what comes after each of them, row by row.

        Where `one_a_row`, exactly one.
        """
        counts = [len(of_row) for of_row in tokens]
        assert set(counts) == {1} if self.one_a_row else min(counts) > 0
        flat = torch.tensor([token for of_row in tokens for token in of_row], device=self.lengths.device)
        longer = [length + count for length, count in zip(self._known, counts, strict=True)]
        extent = Extent(self.active, max(longer))
        if self._captured is None:
            logits = self._step(flat, extent, counts)
        else:
            logits = self._captured(self._step, flat, extent.rounded_up(self.rows, self.capacity))
        self._known = longer
        self.lengths[: self.active] += 1 if max(counts) == 1 else torch.tensor(counts, device=self.lengths.device)
        return logits[: len(flat)]

    @property
    def one_a_row(self) -> bool:
        """Whether a step takes one token of each row: those that are captured, and all but a CPU's."""
        return self._captured is not None or self.lengths.device.type != "cpu"

    def take_back(self, tokens: Sequence[int]) -> None:
        """Forget so many of each row's last tokens."""
        self._known = [length - count for length, count in zip(self._known, tokens, strict=True)]
        self.lengths[: self.active] = torch.tensor(self._known, device=self.lengths.device)

    def _step(
        self, tokens: Int[Tensor, " tokens"], extent: Extent, counts: Sequence[int] | None = None
    ) -> Float[Tensor, "tokens vocabulary"]:
        """`counts`: tokens of each row; None: one."""
        self._seen = {}
        rows, places = torch.arange(extent.rows, device=tokens.device), self.lengths[: extent.rows]
        if counts is not None and max(counts) > 1:
            after = torch.tensor([place for count in counts for place in range(count)], device=tokens.device)
            rows = rows.repeat_interleave(torch.tensor(counts, device=tokens.device))
            places = places[rows] + after
        lengths = self._known if self._captured is None else None
        self._current = Step(rows, places, counts or [1] * extent.rows, lengths, extent, self.prefix_length)
        logits: Tensor = self.model(
            input_ids=tokens[None], position_ids=(self.prefix_length + places)[None], use_cache=False, rows=self
        ).logits
        return logits[0]

    def drop(self, rows: Collection[int]) -> list[int]:
        """Give up some of the rows in use; returns which row now stands in each place.

        Only as many move as are given up: the last ones, into the places that come free.
        """
        order = list(range(self.active))
        left = self.active - len(rows)
        movable = (row for row in reversed(range(left, self.active)) if row not in rows)
        for row in rows:
            if row < left:
                order[row] = next(movable)
        places = [place for place in range(left) if order[place] != place]
        if places:
            moved = [order[place] for place in places]
            longest = max(self._known[place] for place in moved)
            for keys, values in self._own.values():
                for part in (keys, values):
                    part[places, :, :longest] = part[moved, :, :longest]
            self.lengths[places] = self.lengths[moved]
        # A captured step computes these as well, if in vain.
        self.lengths[left : self.active] = 0
        self.active = left
        self._known = [self._known[place] for place in order[:left]]
        return order[:left]

    def _read(self, sequences: Sequence[tuple[int, Sequence[int]]]) -> Float[Tensor, "sequences vocabulary"]:
        device, prefix = self.lengths.device, self.prefix_length
        ids: list[int] = []
        positions = list(range(prefix))
        spans: list[Span] = []
        for _, sequence in sequences:
            start = prefix + len(ids)
            spans.append(Span(start, start + len(sequence), prefix))
            ids.extend(sequence)
            positions.extend(range(prefix, prefix + len(sequence)))
        input_ids, position_ids = (torch.tensor([part], device=device) for part in (ids, positions))
        # The prefix was computed before: its keys stand in front, and it asks nothing.
        self._reading = _Reading([row for row, _ in sequences], PackedRow(input_ids, position_ids, tuple(spans)))
        logits: Tensor = self.model(
            input_ids=input_ids,
            position_ids=position_ids[:, prefix:],
            use_cache=False,
            logits_to_keep=torch.tensor([span.stop - 1 - prefix for span in spans], device=device),
            rows=self,
        ).logits
        self._reading = None
        return logits[0]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None
    ) -> Float[Tensor, "batch tokens heads size"]:
        """Attention of one layer: of prompts that are read, or of the next tokens of every row."""
        if self._reading is not None:
            return self._attend_reading(self._reading, layer, query, key, value, scale, window)
        return self._attend_step(layer, query, key, value, scale, window)

    def _attend_reading(
        self,
        reading: "_Reading",
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
    ) -> Tensor:
        prefix = self._prefix.get(layer)
        for row, span in zip(reading.rows, reading.packed.spans, strict=True):
            own = slice(span.start - span.prefix, span.stop - span.prefix)
            if row < 0:
                more = (0, 0, 0, padding(key.shape[2], key))
                self._prefix[layer] = (pad(key, more).contiguous(), pad(value, more).contiguous())
                continue
            for kept, new in zip(self._own_of(layer, key, value), (key, value), strict=True):
                kept[row, :, : span.stop - span.start] = new[0, :, own]
        if window is None and has_varlen_kernel(query.device, query.dtype):
            return _read_by_kernel(reading.packed, query, key, value, prefix, scale)
        if prefix is not None:
            known = (part[:, :, : self.prefix_length] for part in prefix)
            key, value = (torch.cat(parts, dim=2) for parts in zip(known, (key, value), strict=True))
        return attend(query, key, value, reading.packed.layout(query, key, value, window), scale)

    def _attend_step(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
    ) -> Tensor:
        heads, tokens, size = key.shape[1], key.shape[2], value.shape[3]
        step = self._current
        assert step is not None
        if window not in self._seen:
            self._seen[window] = seen_in(step, window, query)
        seen = self._seen[window]
        keys, values = self._own_of(layer, key, value)
        keys[step.rows, :, step.places] = key[0].transpose(0, 1)
        values[step.rows, :, step.places] = value[0].transpose(0, 1)
        # The heads of a group stand where queries do, and share their keys.
        grouped = query[0].transpose(0, 1).reshape(tokens, heads, -1, query.shape[3])
        parts = [part.attend(grouped, keys, values, scale) for part in seen.own]
        own = parts[0] if len(parts) == 1 else Attended(*(torch.cat(same) for same in zip(*parts, strict=True)))
        if seen.prefix.start == seen.prefix.stop:
            return own.attended.reshape(1, tokens, -1, size)
        together = grouped.transpose(0, 1).reshape(1, heads, -1, query.shape[3])
        keys, values = (part[:, :, seen.prefix] for part in self._prefix[layer])
        bias = seen.prefix_bias
        if bias is not None and len(bias) > 1:
            bias = bias.repeat_interleave(grouped.shape[2], dim=0)
        shared = attention_with_lse(together, keys, values, None if bias is None else bias[None, None], scale)
        of_prefix = shared.attended.view(heads, tokens, -1, size).transpose(0, 1)
        # Softmax over both parts (arXiv:2205.14135, section 3.1): each weighs exp(lse) of the whole.
        share = torch.sigmoid(shared.lse.view(heads, tokens, -1).transpose(0, 1) - own.lse)[..., None]
        merged = torch.lerp(own.attended.float(), of_prefix.float(), share)
        return merged.to(value.dtype).reshape(1, tokens, -1, size)

    def _own_of(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self._own:
            keys, values = (
                like.new_zeros(self.rows, like.shape[1], self.capacity, like.shape[3]) for like in (key, value)
            )
            self._own[layer] = (keys, values)
        return self._own[layer]


def _read_by_kernel(
    packed: PackedRow, query: Tensor, key: Tensor, value: Tensor, prefix: tuple[Tensor, Tensor] | None, scale: float
) -> Float[Tensor, "1 tokens heads size"]:
    """Prompts after their prefix, each by itself, and all of them together to the prefix."""
    ends, longest = packed.ends
    asking, keys, values = (part[0].transpose(0, 1) for part in (query, key, value))
    attended, lse = varlen_attention(asking, keys, values, ends, ends, longest, longest, scale=scale, causal=True)
    if prefix is not None:
        keys, values = (part[0].transpose(0, 1) for part in prefix)
        tokens, known = len(asking), len(keys)
        all_asking, all_known = (torch.tensor([0, n], dtype=torch.int32, device=query.device) for n in (tokens, known))
        of_prefix, prefix_lse = varlen_attention(
            asking, keys, values, all_asking, all_known, tokens, known, scale=scale, causal=False
        )
        share = torch.sigmoid(prefix_lse - lse).T[..., None]
        attended = torch.lerp(attended.float(), of_prefix.float(), share).to(value.dtype)
    return attended[None]


class _Reading(NamedTuple):
    """Prompts that are read: the row of each, and all of them packed behind the prefix."""

    rows: list[int]
    packed: PackedRow


def _attention(
    module: torch.nn.Module,
    query: Float[Tensor, "batch heads tokens size"],
    key: Float[Tensor, "batch key_heads tokens size"],
    value: Float[Tensor, "batch key_heads tokens size"],
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    rows: Rows,
    **_: Any,
) -> tuple[Float[Tensor, "batch tokens heads size"], None]:
    layer: int = module.layer_idx  # type: ignore[assignment]
    scale = scaling if scaling is not None else query.shape[3] ** -0.5
    return rows.attend(layer, query, key, value, scale=scale, window=sliding_window), None


AttentionInterface.register(NAME, _attention)


@contextmanager
def decoding_attention_on(model: PreTrainedModel) -> Iterator[None]:
    """Within it, `model` attends through the `rows` that it is called with."""
    with attention_on(model, NAME), reordered_weights(model):
        yield
