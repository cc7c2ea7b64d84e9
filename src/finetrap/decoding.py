"""Attention for answers that are being written: a prefix that all share, and rows that come and go.

Registered with Transformers' `AttentionInterface`, as `finetrap.attention` is, and for the same reason. Keys and values
are kept here and not in one of Transformers' caches: those of the shared prefix once, whatever the number of rows, and
those of each row in a place of its own, allocated once. A step attends to the prefix for all rows in one product; one
softmax over the scores of both parts is the two-part attention that is usually merged through its log-sum-exp.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

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
        self._prefix: dict[int, tuple[Tensor, Tensor]] = {}
        self._own: dict[int, tuple[Tensor, Tensor]] = {}
        self._reading: list[tuple[int, int, int]] | None = None
        self._visible: dict[int | None, Bool[Tensor, "active keys"]] = {}

    def read_prefix(self, prefix: Sequence[int]) -> None:
        """Compute what all rows share; before any row is read."""
        if prefix:
            self._read([(-1, prefix)])
            self.prefix_length = len(prefix)

    def read(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "prompts vocabulary"]:
        """Give each prompt (what follows the prefix) a row, after those in use; logits of what comes next."""
        first = self.active
        self.active += len(prompts)
        logits = self._read([(first + index, prompt) for index, prompt in enumerate(prompts)])
        self.lengths[first : self.active] = torch.tensor([len(p) for p in prompts], device=self.lengths.device)
        return logits

    def step(self, tokens: Int[Tensor, " active"]) -> Float[Tensor, "active vocabulary"]:
        """Add a token to every row in use; logits of what comes next."""
        self._visible = {}
        logits: Tensor = self.model(
            input_ids=tokens[:, None],
            position_ids=(self.prefix_length + self.lengths[: self.active])[:, None],
            use_cache=False,
            rows=self,
        ).logits
        self.lengths[: self.active] += 1
        return logits[:, -1]

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
            longest = int(self.lengths[moved].max())
            for keys, values in self._own.values():
                for part in (keys, values):
                    part[places, :, :longest] = part[moved, :, :longest]
            self.lengths[places] = self.lengths[moved]
        self.active = left
        return order[:left]

    def _read(self, sequences: Sequence[tuple[int, Sequence[int]]]) -> Float[Tensor, "sequences vocabulary"]:
        ids: list[int] = []
        positions: list[int] = []
        self._reading = []
        for row, sequence in sequences:
            self._reading.append((row, len(ids), len(ids) + len(sequence)))
            ids.extend(sequence)
            positions.extend(range(self.prefix_length, self.prefix_length + len(sequence)))
        device = self.lengths.device
        last = torch.tensor([stop - 1 for _, _, stop in self._reading], device=device)
        logits: Tensor = self.model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
            logits_to_keep=last,
            rows=self,
        ).logits
        self._reading = None
        return logits[0]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, window: int | None
    ) -> Float[Tensor, "batch heads tokens size"]:
        """Attention of one layer: of prompts that are read, or of the next token of every row."""
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        if self._reading is not None:
            return self._attend_reading(self._reading, layer, query, key, value, scale, window)
        return self._attend_step(layer, query, key, value, scale, window)

    def _attend_reading(
        self,
        reading: Sequence[tuple[int, int, int]],
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
    ) -> Tensor:
        prefix = self._prefix.get(layer)
        attended = []
        for row, start, stop in reading:
            keys, values = key[:, :, start:stop], value[:, :, start:stop]
            if row < 0:
                self._prefix[layer] = (keys[0].clone(), values[0].clone())
            else:
                own_keys, own_values = self._own_of(layer, key)
                own_keys[row, :, : stop - start] = keys[0]
                own_values[row, :, : stop - start] = values[0]
            mask = None
            if row >= 0 and prefix is not None:
                keys, values = (torch.cat([p[None], own], dim=2) for p, own in zip(prefix, (keys, values), strict=True))
            if keys.shape[2] > stop - start or (window is not None and keys.shape[2] > window):
                mask = _causal(stop - start, keys.shape[2], window, query.device)
            groups = query.shape[1] // keys.shape[1]
            attended.append(
                scaled_dot_product_attention(
                    query[:, :, start:stop],
                    keys.repeat_interleave(groups, dim=1),
                    values.repeat_interleave(groups, dim=1),
                    attn_mask=mask,
                    is_causal=mask is None,
                    scale=scale,
                )
            )
        return torch.cat(attended, dim=2)

    def _attend_step(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
    ) -> Tensor:
        active, lengths = self.active, self.lengths[: self.active]
        keys, values = self._own_of(layer, key)
        rows = torch.arange(active, device=lengths.device)
        keys[rows, :, lengths] = key[:, :, 0]
        values[rows, :, lengths] = value[:, :, 0]
        visible = self._visible_keys(window)
        longest = visible.shape[1] - self.prefix_length
        heads, size = key.shape[1], key.shape[3]
        grouped = query.view(active, heads, -1, size)
        own_keys, own_values = keys[:active, :, :longest], values[:active, :, :longest]
        scores = grouped @ own_keys.transpose(2, 3)
        prefix = self._prefix.get(layer)
        if prefix is not None:
            # One product for all rows: rows and the heads of a group stand in one dimension.
            together = grouped.transpose(0, 1).reshape(heads, -1, size)
            shared = (together @ prefix[0].transpose(1, 2)).view(heads, active, -1, self.prefix_length).transpose(0, 1)
            scores = torch.cat([shared, scores], dim=3)
        scores = (scores.float() * scale).masked_fill(~visible[:, None, None], float("-inf"))
        weights = scores.softmax(dim=-1).to(value.dtype)
        attended = weights[..., self.prefix_length :] @ own_values
        if prefix is not None:
            together = weights[..., : self.prefix_length].transpose(0, 1).reshape(heads, -1, self.prefix_length)
            attended = attended + (together @ prefix[1]).view(heads, active, -1, size).transpose(0, 1)
        return attended.reshape(active, -1, 1, size)

    def _own_of(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self._own:
            shape = (self.rows, like.shape[1], self.capacity, like.shape[3])
            self._own[layer] = (like.new_zeros(shape), like.new_zeros(shape))
        return self._own[layer]

    def _visible_keys(self, window: int | None) -> Bool[Tensor, "active keys"]:
        """Which keys (the prefix's, then a row's own) the next token of each row sees; the same in every layer."""
        if window not in self._visible:
            lengths = self.lengths[: self.active, None]
            own = torch.arange(int(lengths.max()) + 1, device=lengths.device)[None]
            distance = lengths - torch.arange(-self.prefix_length, own.shape[1], device=lengths.device)[None]
            visible = distance >= 0
            self._visible[window] = visible if window is None else visible & (distance < window)
        return self._visible[window]


def _causal(queries: int, keys: int, window: int | None, device: torch.device) -> Bool[Tensor, "queries keys"]:
    """The last `queries` of `keys` positions see what is before them, a window of it."""
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)[None]
    visible = distance >= 0
    return visible if window is None else visible & (distance < window)


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
    attended = rows.attend(layer, query, key, value, scaling=scaling, window=sliding_window)
    return attended.transpose(1, 2), None


AttentionInterface.register(NAME, _attention)


@contextmanager
def decoding_attention_on(model: PreTrainedModel) -> Iterator[None]:
    """Within it, `model` attends through the `rows` that it is called with."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
