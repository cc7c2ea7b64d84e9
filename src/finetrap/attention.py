"""Attention for packed rows: many sequences in one row, none of which sees another, no padding.

Registered with Transformers' `AttentionInterface`, so that it serves every family without a copy
of model code. Each span of a row is one call of torch's scaled dot product attention: on a CPU
that is cheaper than one call with a block mask over the whole row, by far.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from finetrap.errors import StudyError

NAME = "finetrap_packed"


@dataclass(frozen=True)
class Span:
    """Tokens `start` to `stop` of a row, which see each other and the row's first `prefix` tokens."""

    start: int
    stop: int
    prefix: int = 0
    mask: Bool[Tensor, "queries keys"] | None = None
    """Which keys (the prefix's, then the span's own) each query sees; None: causal, no prefix."""


@dataclass(frozen=True)
class PackedRow:
    """One row of tokens with its spans."""

    input_ids: Int[Tensor, "1 tokens"]
    position_ids: Int[Tensor, "1 tokens"]
    """Restart with every sequence."""
    spans: tuple[Span, ...]
    """In order, without gaps."""

    def visible(self, span: Span, window: int) -> Bool[Tensor, "queries keys"]:
        """The span's mask, narrowed to a sliding window of `window` positions."""
        positions = self.position_ids[0]
        own = positions[span.start : span.stop]
        keys = torch.cat([positions[: span.prefix], own])
        mask = span.mask if span.mask is not None else own[:, None] >= keys[None, :]
        return mask & (own[:, None] - keys[None, :] < window)


def packed_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "1 heads tokens size"],
    key: Float[Tensor, "1 key_heads tokens size"],
    value: Float[Tensor, "1 key_heads tokens size"],
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    packed: PackedRow,
    **_: Any,
) -> tuple[Float[Tensor, "1 tokens heads size"], None]:
    """Attention within each span of `packed`; the signature is that of `AttentionInterface`."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    attended = []
    for span in packed.spans:
        own_keys, own_values = key[:, :, span.start : span.stop], value[:, :, span.start : span.stop]
        if span.prefix:
            own_keys = torch.cat([key[:, :, : span.prefix], own_keys], dim=2)
            own_values = torch.cat([value[:, :, : span.prefix], own_values], dim=2)
        mask = span.mask
        if sliding_window is not None and own_keys.shape[2] > sliding_window:
            mask = packed.visible(span, sliding_window)
        attended.append(
            scaled_dot_product_attention(
                query[:, :, span.start : span.stop],
                own_keys,
                own_values,
                attn_mask=mask,
                dropout_p=dropout if module.training else 0.0,
                is_causal=mask is None,
                scale=scaling,
            )
        )
    return torch.cat(attended, dim=2).transpose(1, 2), None


AttentionInterface.register(NAME, packed_attention)


@contextmanager
def packed_attention_on(model: PreTrainedModel) -> Iterator[None]:
    """Within it, `model` attends by `packed_attention`."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def logits_at(
    model: torch.nn.Module, row: PackedRow, positions: Int[Tensor, " kept"]
) -> Float[Tensor, "kept vocabulary"]:
    """Logits of a packed row at some positions only, in float32; within `packed_attention_on`."""
    logits: Tensor = model(
        input_ids=row.input_ids,
        position_ids=row.position_ids,
        use_cache=False,
        logits_to_keep=positions,
        packed=row,
    ).logits
    return logits[0].float()


@torch.no_grad()
def check_packing(model: PreTrainedModel) -> None:
    """Check that sequences of a packed row do not see each other, and are what they are alone.

    Most families of Transformers attend through its `AttentionInterface`. One that does not (state-space layers,
    short convolutions, attention of its own) would leak from one sequence into the next without an error.

    Raises:
        StudyError: the model is of such a family.
    """
    one, other, last = ([10 + (a * i) % 90 for i in range(24)] for a in (3, 7, 11))
    positions = torch.arange(len(one), len(one) + len(last), device=model.device)
    try:
        with packed_attention_on(model):
            after_one, after_other = (
                logits_at(model, pack_causal([first, last], model.device), positions) for first in (one, other)
            )
        alone = model(torch.tensor([last], device=model.device), use_cache=False).logits[0].float()
    except (TypeError, ValueError, KeyError, NotImplementedError) as error:
        raise StudyError(_UNSUPPORTED.format(kind=model.config.model_type)) from error
    size = alone.norm(dim=-1)
    leaked = ((after_one - after_other).norm(dim=-1) / size).max()
    differs = ((after_one - alone).norm(dim=-1) / size).max()
    # What precedes must not matter at all; against the plain pass another kernel rounds otherwise.
    if leaked > 1e-3 or differs > 0.1:
        raise StudyError(_UNSUPPORTED.format(kind=model.config.model_type))


_UNSUPPORTED = (
    "models of type '{kind}' cannot be compared yet: their layers do not attend through Transformers' attention "
    "interface, and sequences would leak into each other; take one of another family (`finetrap models`)."
)


def pack_causal(sequences: Sequence[Sequence[int]], device: torch.device | str) -> PackedRow:
    """One row out of plain causal sequences."""
    ids: list[int] = []
    positions: list[int] = []
    spans: list[Span] = []
    for sequence in sequences:
        spans.append(Span(len(ids), len(ids) + len(sequence)))
        ids.extend(sequence)
        positions.extend(range(len(sequence)))
    return PackedRow(torch.tensor([ids], device=device), torch.tensor([positions], device=device), tuple(spans))


def by_token_budget(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in groups whose lengths add up to at most `budget`; a longer one stands alone."""
    groups: list[list[int]] = []
    room = 0
    for index, length in enumerate(lengths):
        if not groups or length > room:
            groups.append([])
            room = budget
        groups[-1].append(index)
        room -= length
    return groups
