"""Attention for packed rows: many sequences in one row, none of which sees another, no padding.

Registered with Transformers' `AttentionInterface`, so that it serves every family without a copy
of model code. The spans of a row are laid out side by side (`finetrap.engine.layout`) and attended to in blocks of
queries (`finetrap.engine.blocks`). On CUDA, where each of many small products would wait for its launch, rows of plain
causal sequences go through a kernel for varying lengths instead: FlashAttention's in half precision.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from finetrap.engine.allocator import keep_freed_memory
from finetrap.engine.blocks import BlockAttention, attend
from finetrap.engine.layout import Heads, Layout, Span, lay_out
from finetrap.engine.norms import norms_on
from finetrap.errors import StudyError

NAME = "finetrap_packed"
LONG_PREFIX = 256
"""Tokens from which on a prefix is attended to apart, in float32 on a CPU and without a gradient."""


@dataclass(frozen=True)
class PackedRow:
    """One row of tokens with its spans."""

    input_ids: Int[Tensor, "1 tokens"]
    position_ids: Int[Tensor, "1 keys"]
    """Restart with every sequence, after its prefix. A prefix computed before has its positions in front."""
    spans: tuple[Span, ...]
    """In order, without gaps."""
    _layouts: dict[tuple[int | None, Heads, torch.dtype, int], Layout] = field(default_factory=dict)

    @cached_property
    def is_plain(self) -> bool:
        """Whether it is nothing but causal sequences, without a prefix that they share."""
        return all(span.prefix == 0 and span.mask is None for span in self.spans)

    @cached_property
    def ends(self) -> tuple[Int[Tensor, " spans_and_one"], int]:
        """Where each span begins, and the end of the last; and the longest span's length."""
        lengths = [span.length for span in self.spans]
        places = torch.tensor([*accumulate(lengths, initial=0)], dtype=torch.int32, device=self.input_ids.device)
        return places, max(lengths)

    def layout(self, query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Layout:
        """The row's layout for such tensors under a sliding window; the same in every layer that has them."""
        heads = Heads(query.shape[1], key.shape[1])
        # The fused kernel has no gradient, and takes keys and values of one size.
        fused = not torch.is_grad_enabled() and key.shape[3] == value.shape[3]
        apart = self._prefix_apart(window, query) if fused else 0
        known = (window, heads, query.dtype, apart)
        if known not in self._layouts:
            asking = self.input_ids.shape[1]
            self._layouts[known] = lay_out(
                self.spans, self.position_ids[0], asking=asking, heads=heads, window=window, apart=apart, like=query
            )
        return self._layouts[known]

    def _prefix_apart(self, window: int | None, like: Tensor) -> int:
        """The length of the prefix that is attended to for all that see it in one call."""
        if like.device.type != "cpu" or like.dtype != torch.float32:
            return 0
        prefixes = {span.prefix for span in self.spans if span.start > 0}
        longest = max(prefixes, default=0)
        all_see = prefixes == {longest} and (window is None or int(self.position_ids.max()) < window)
        return longest if longest >= LONG_PREFIX and all_see else 0


def packed_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "1 heads tokens size"],
    key: Float[Tensor, "1 key_heads tokens size"],
    value: Float[Tensor, "1 key_heads tokens size"],
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packed: PackedRow,
    **_: Any,
) -> tuple[Float[Tensor, "1 tokens heads size"], None]:
    """Attention within each span of `packed`; the signature is that of `AttentionInterface`.

    The dropout of attention weights that a few configurations ask for is left out.
    """
    scale = scaling if scaling is not None else query.shape[3] ** -0.5
    if packed.is_plain and has_varlen_kernel(query.device, query.dtype):
        return _varlen(query, key, value, packed, scale, sliding_window), None
    if packed.is_plain and query.device.type == "cuda" and query.dtype == torch.float32:
        return _varlen_float32(query, key, value, packed, scale, sliding_window), None
    layout = packed.layout(query, key, value, sliding_window)
    if not torch.is_grad_enabled():
        return attend(query, key, value, layout, scale), None
    attended: Tensor = BlockAttention.apply(query, key, value, layout, scale)  # type: ignore[no-untyped-call]
    return attended, None


def has_varlen_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has FlashAttention for sequences of varying lengths there: from NVIDIA's Ampere on."""
    half = dtype in (torch.bfloat16, torch.float16)
    return device.type == "cuda" and half and torch.cuda.get_device_capability(device) >= (8, 0)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, packed: PackedRow, scale: float, window: int | None
) -> Float[Tensor, "1 tokens heads size"]:
    """Attention within each span by the kernel for varying lengths, windows and grouped heads as they are."""
    ends, longest = packed.ends
    queries, keys, values = (part[0].transpose(0, 1) for part in (query, key, value))
    attended, _ = varlen_attention(
        queries, keys, values, ends, ends, longest, longest, scale=scale, causal=True, window=window
    )
    return attended[None]


def _varlen_float32(
    query: Tensor, key: Tensor, value: Tensor, packed: PackedRow, scale: float, window: int | None
) -> Float[Tensor, "1 tokens heads size"]:
    """Likewise in float32, by the kernel after Rabe and Staats (arXiv:2112.05682), which knows no grouped heads."""
    ends, longest = packed.ends
    groups = query.shape[1] // key.shape[1]
    queries, keys, values = (
        part.transpose(1, 2)
        for part in (query, key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1))
    )
    from_top_left = 1  # of the kernel's masks, the causal one
    attended: Tensor = torch.ops.aten._efficient_attention_forward(
        queries,
        keys,
        values,
        None,
        ends,
        ends,
        longest,
        longest,
        0.0,
        from_top_left,
        True,
        scale=scale,
        window_size=window,
    )[0]
    return attended


def varlen_attention(
    query: Float[Tensor, "queries heads size"],
    key: Float[Tensor, "keys key_heads size"],
    value: Float[Tensor, "keys key_heads size"],
    query_ends: Int[Tensor, " sequences_and_one"],
    key_ends: Int[Tensor, " sequences_and_one"],
    most_queries: int,
    most_keys: int,
    *,
    scale: float,
    causal: bool,
    window: int | None = None,
) -> tuple[Float[Tensor, "queries heads size"], Float[Tensor, "heads queries"]]:
    """FlashAttention-2 (arXiv:2307.08691) of sequences on end, and the log of each query's sum of exp(score)."""
    attended, lse = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        query_ends,
        key_ends,
        most_queries,
        most_keys,
        0.0,
        causal,
        False,
        scale=scale,
        window_size_left=None if window is None else window - 1,
        window_size_right=None if window is None else 0,
    )[:2]
    return attended, lse


AttentionInterface.register(NAME, packed_attention)


@contextmanager
def attention_on(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Within it, `model` attends by the function that is registered under a name, and has norms of `norms`.

    From then on the process keeps memory that is freed (`finetrap.engine.allocator`).
    """
    keep_freed_memory()
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        with norms_on(model):
            yield
    finally:
        model.set_attn_implementation(before)


def packed_attention_on(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Within it, `model` attends by `packed_attention`."""
    return attention_on(model, NAME)


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
            # A leak is there each time. In bfloat16, on a CPU with matrix units, a process's first pass now and then
            # came out 2% apart from the same pass after it.
            tried = [
                [logits_at(model, pack_causal([first, last], model.device), positions) for first in (one, other)]
                for _ in range(3)
            ]
        alone = model(torch.tensor([last], device=model.device), use_cache=False).logits[0].float()
    except (TypeError, ValueError, KeyError, NotImplementedError) as error:
        raise StudyError(_UNSUPPORTED.format(kind=model.config.model_type)) from error
    size = alone.norm(dim=-1)
    leaked = min(((a - b).norm(dim=-1) / size).max() for a, b in tried)
    differs = ((tried[-1][0] - alone).norm(dim=-1) / size).max()
    # What precedes must not matter at all; against the plain pass another kernel rounds otherwise.
    if leaked > 1e-3 or differs > 0.1:
        raise StudyError(_UNSUPPORTED.format(kind=model.config.model_type))


_UNSUPPORTED = (
    "models of type '{kind}' cannot be compared yet: their layers do not attend through Transformers' attention "
    "interface, and sequences would leak into each other; take one of another family (`finetrap models`)."
)


def pack_causal(sequences: Sequence[Sequence[int]], device: torch.device | str, *, prefix: int = 0) -> PackedRow:
    """One row out of plain causal sequences, the first `prefix` tokens, which all share, in a span of their own."""
    ids = list(sequences[0][:prefix])
    positions = list(range(prefix))
    spans = [Span(0, prefix)] if prefix else []
    for sequence in sequences:
        start = len(ids)
        ids.extend(sequence[prefix:])
        positions.extend(range(prefix, len(sequence)))
        spans.append(Span(start, len(ids), prefix))
    return PackedRow(torch.tensor([ids], device=device), torch.tensor([positions], device=device), tuple(spans))


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with, one left over for each."""
    # Whatever the least and the greatest in order share, all in between share too.
    lists = [list(sequence) for sequence in sequences]
    first, last = min(lists), max(lists)
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return max(0, min(shared, min(map(len, lists)) - 1))


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
