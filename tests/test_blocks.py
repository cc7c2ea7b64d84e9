"""Attention in blocks is attention: forward and backward, for spans of any length, prefix, mask and window."""

from unittest.mock import patch

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetrap.engine import attention as attention_module
from finetrap.engine import blocks as blocks_module
from finetrap.engine import layout as layout_module
from finetrap.engine.attention import PackedRow
from finetrap.engine.blocks import BlockAttention, attend
from finetrap.engine.layout import Span


def tree(trunk, branches):
    """Tokens that see a trunk and, of some branches, their own; with their positions."""
    length = trunk + sum(branches)
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    positions = list(range(trunk))
    for branch in branches:
        start = len(positions)
        mask[start : start + branch, trunk:start] = False
        positions += range(trunk, trunk + branch)
    return mask, positions


spans_of_rows = st.lists(
    st.one_of(
        st.integers(1, 60).map(lambda length: (None, list(range(length)))),
        st.tuples(st.integers(1, 20), st.lists(st.integers(1, 12), min_size=1, max_size=4)).map(lambda t: tree(*t)),
    ),
    min_size=1,
    max_size=9,
)


def packed(prefix, spans):
    """A row of such spans behind a prefix, and which key each of its tokens sees."""
    positions = list(range(prefix))
    made = [Span(0, prefix)] if prefix else []
    for mask, own in spans:
        made.append(Span(len(positions), len(positions) + len(own), prefix, mask))
        positions += [prefix + position for position in own]
    visible = torch.zeros(len(positions), len(positions), dtype=torch.bool)
    for span in made:
        own = slice(span.start, span.stop)
        visible[own, : span.prefix] = True
        visible[own, own] = torch.ones(span.length, span.length).tril().bool() if span.mask is None else span.mask
    return PackedRow(torch.zeros(1, len(positions), dtype=torch.long), torch.tensor([positions]), tuple(made)), visible


def reference(query, key, value, visible, scale):
    """Of every token to every other, those that it does not see left out."""
    groups = query.shape[1] // key.shape[1]
    keys, values = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    scores = (query @ keys.transpose(2, 3) * scale).masked_fill(~visible, float("-inf"))
    return (scores.softmax(dim=-1) @ values).transpose(1, 2)


@settings(deadline=None)
@given(
    prefix=st.integers(0, 20),
    spans=spans_of_rows,
    window=st.sampled_from([None, 1, 5, 30]),
    heads=st.sampled_from([(4, 2), (3, 1), (2, 2)]),
    queries_at_a_time=st.sampled_from([7, 128]),
    scores_at_a_time=st.sampled_from([1, 3000, 1 << 22]),
    keys_kept=st.sampled_from([0, 512]),
    seed=st.integers(0, 100),
)
def test_forward_and_backward_are_those_of_a_mask_over_the_whole_row(
    prefix, spans, window, heads, queries_at_a_time, scores_at_a_time, keys_kept, seed
):
    row, visible = packed(prefix, spans)
    if window is not None:
        distance = row.position_ids[0, :, None] - row.position_ids[0]
        visible &= distance < window
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(1, n, len(visible), size, generator=generator, dtype=torch.float64).requires_grad_()
        for n, size in ((heads[0], 8), (heads[1], 8), (heads[1], 5))
    )
    above = torch.randn(1, len(visible), heads[0], 5, generator=generator, dtype=torch.float64)
    with (
        patch.object(layout_module, "QUERIES_AT_A_TIME", queries_at_a_time),
        patch.object(layout_module, "SCORES_AT_A_TIME", scores_at_a_time),
        patch.object(blocks_module, "KEYS_KEPT", keys_kept),
    ):
        layout = row.layout(query, key, value, window)
        attended = BlockAttention.apply(query, key, value, layout, 0.3)
        found = torch.autograd.grad(attended, (query, key, value), above)
    wanted = reference(query, key, value, visible, 0.3)
    torch.testing.assert_close(attended, wanted, rtol=1e-9, atol=1e-9)
    for got, expected in zip(found, torch.autograd.grad(wanted, (query, key, value), above), strict=True):
        # Gradients of keys and values add up in float32.
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@settings(deadline=None)
@given(prefix=st.integers(3, 20), spans=spans_of_rows, cached=st.booleans(), seed=st.integers(0, 100))
def test_a_prefix_apart_even_one_that_was_computed_before_changes_nothing(prefix, spans, cached, seed):
    row, visible = packed(prefix, spans)
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(1, n, len(visible), 8, generator=generator) for n in (4, 2, 2))
    wanted = reference(query, key, value, visible, 0.3)
    if cached:
        row = PackedRow(row.input_ids[:, prefix:], row.position_ids, row.spans[1:])
        query, wanted = query[:, :, prefix:], wanted[:, prefix:]
    with patch.object(attention_module, "LONG_PREFIX", 3), torch.no_grad():
        layout = row.layout(query, key, value, None)
    assert layout.apart == prefix
    torch.testing.assert_close(attend(query, key, value, layout, 0.3), wanted, rtol=1e-4, atol=1e-5)


@settings(deadline=None)
@given(
    prefix=st.integers(1, 20),
    spans=spans_of_rows,
    window=st.sampled_from([None, 5]),
    value_size=st.sampled_from([8, 5]),
)
def test_behind_a_prefix_that_was_computed_before_but_does_not_stand_apart(prefix, spans, window, value_size):
    row, visible = packed(prefix, spans)
    if window is not None:
        visible &= row.position_ids[0, :, None] - row.position_ids[0] < window
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, n, len(visible), size, generator=generator) for n, size in ((4, 8), (2, 8), (2, value_size))
    )
    wanted = reference(query, key, value, visible, 0.3)[:, prefix:]
    row = PackedRow(row.input_ids[:, prefix:], row.position_ids, row.spans[1:])
    # As long as one that would stand apart, where a window or the sizes of keys and values forbid it.
    longest = 1 if window or value_size != 8 else prefix + 1
    with patch.object(attention_module, "LONG_PREFIX", longest), torch.no_grad():
        layout = row.layout(query[:, :, prefix:], key, value, window)
    if window is None or int(row.position_ids.max()) >= window:
        assert not layout.apart
    torch.testing.assert_close(attend(query[:, :, prefix:], key, value, layout, 0.3), wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_is_not_finite_in_one_span_stays_in_it():
    row, _ = packed(3, [(None, list(range(length))) for length in (9, 12, 10)])
    query, key, value = (torch.randn(1, n, row.input_ids.shape[1], 8) for n in (4, 2, 2))
    broken = row.spans[1]
    for part in (query, key, value):
        part[:, :, broken.start : broken.stop] = float("nan")
    finite = attend(query, key, value, row.layout(query, key, value, None), 0.3).isfinite().all(dim=-1).all(dim=-1)[0]
    assert not finite[broken.start : broken.stop].any()
    assert finite.sum() == len(finite) - broken.length


def test_one_row_serves_both_precisions_and_both_grad_modes():
    row, visible = packed(600, [(None, list(range(length))) for length in (40, 150, 3)])
    query, key, value = (torch.randn(1, n, len(visible), 8) for n in (4, 2, 2))
    wanted = reference(query, key, value, visible, 0.3)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float32, 1e-5)):
        parts = [part.to(dtype) for part in (query, key, value)]
        with_gradient = BlockAttention.apply(*parts, row.layout(*parts, None), 0.3)
        with torch.no_grad():
            without = attend(*parts, row.layout(*parts, None), 0.3)
        for attended in (with_gradient, without):
            torch.testing.assert_close(attended.float(), wanted, rtol=tolerance, atol=tolerance)
