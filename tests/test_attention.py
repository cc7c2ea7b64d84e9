"""Packed rows give what each sequence gives alone."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetrap.engine.attention import (
    LONG_PREFIX,
    PackedRow,
    by_token_budget,
    check_packing,
    logits_at,
    pack_causal,
    packed_attention_on,
)
from finetrap.engine.layout import Span
from finetrap.errors import StudyError

SEQUENCES = [[65, 66, 67], list(range(97, 122)), [42], list(range(30, 60)), list(range(8)), list(range(9))]
"""Two of them far longer than Gemma's window of 8, one exactly as long and one longer by one."""


def plain_logits(model, ids):
    return model(input_ids=torch.tensor([ids])).logits[0]


@torch.no_grad()
def test_packed_logits_equal_those_of_each_sequence_alone(tiny_model, family):
    model = tiny_model(family)
    row = pack_causal(SEQUENCES, "cpu")
    with packed_attention_on(model):
        packed = logits_at(model, row, torch.arange(row.input_ids.shape[1]))
    alone = torch.cat([plain_logits(model, ids) for ids in SEQUENCES])
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [13, LONG_PREFIX + 13])
@torch.no_grad()
def test_branches_of_a_tree_behind_a_shared_prefix_equal_each_path_alone(tiny_model, family, length):
    model = tiny_model(family)
    prefix, trunk, branches = (
        [100 + 7 * i % 90 for i in range(length)],
        list(range(60, 71)),
        [list(range(20, 29)), [33], [40, 41]],
    )
    ids = [*prefix, *trunk, *(token for branch in branches for token in branch)]
    own = len(ids) - len(prefix)
    mask = torch.ones(own, own, dtype=torch.bool).tril()
    positions = list(range(len(prefix) + len(trunk)))
    start = len(trunk)
    for branch in branches:
        mask[start : start + len(branch), len(trunk) : start] = False
        positions.extend(range(len(prefix) + len(trunk), len(prefix) + len(trunk) + len(branch)))
        start += len(branch)
    spans = (Span(0, len(prefix)), Span(len(prefix), len(ids), len(prefix), mask))
    row = PackedRow(torch.tensor([ids]), torch.tensor([positions]), spans)
    with packed_attention_on(model):
        packed = logits_at(model, row, torch.arange(len(ids)))
    before = len(prefix) + len(trunk)
    paths = [plain_logits(model, [*prefix, *trunk, *branch]) for branch in branches]
    alone = torch.cat([paths[0][:before], *(path[before:] for path in paths)])
    torch.testing.assert_close(packed, alone, rtol=0, atol=3e-5)


@torch.no_grad()
def test_sequences_of_any_length_behind_a_long_prefix_equal_each_alone(tiny_model, family):
    model = tiny_model(family)
    prefix = [100 + 7 * i % 90 for i in range(LONG_PREFIX + 3)]
    sequences = [[*prefix, *([60 + i % 31 for i in range(length)])] for length in (5, 300, 1, 40)]
    row = pack_causal(sequences, "cpu", prefix=len(prefix))
    with packed_attention_on(model):
        packed = logits_at(model, row, torch.arange(len(prefix), row.input_ids.shape[1]))
    alone = torch.cat([plain_logits(model, ids)[len(prefix) :] for ids in sequences])
    torch.testing.assert_close(packed, alone, rtol=0, atol=3e-5)


@torch.no_grad()
def test_logits_are_given_at_the_positions_asked_for_and_in_that_order(tiny_model):
    model = tiny_model()
    row = pack_causal(SEQUENCES, "cpu")
    chosen = torch.tensor([40, 2, 2, 11])
    with packed_attention_on(model):
        everywhere = logits_at(model, row, torch.arange(row.input_ids.shape[1]))
        some = logits_at(model, row, chosen)
    torch.testing.assert_close(some, everywhere[chosen], rtol=0, atol=1e-6)


def test_the_model_gets_its_own_attention_back_even_after_an_error(tiny_model):
    model = tiny_model()
    with pytest.raises(KeyError), packed_attention_on(model):
        raise KeyError
    assert model.config._attn_implementation == "sdpa"


lengths_and_budget = given(lengths=st.lists(st.integers(1, 50), max_size=40), budget=st.integers(1, 60))


@lengths_and_budget
def test_groups_hold_every_index_once_and_in_order(lengths, budget):
    groups = by_token_budget(lengths, budget)
    assert [index for group in groups for index in group] == list(range(len(lengths)))


@lengths_and_budget
def test_a_group_stays_within_the_budget_unless_it_is_one_that_is_too_long(lengths, budget):
    for group in by_token_budget(lengths, budget):
        assert group
        assert len(group) == 1 or sum(lengths[index] for index in group) <= budget


@lengths_and_budget
def test_a_group_ends_only_where_the_next_length_does_not_fit(lengths, budget):
    groups = by_token_budget(lengths, budget)
    for group, following in pairwise(groups):
        assert sum(lengths[index] for index in [*group, following[0]]) > budget


def test_every_tested_family_packs_without_a_leak(family, tiny_model):
    check_packing(tiny_model(family))
    check_packing(tiny_model(family, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_family_whose_layers_would_leak_is_refused(dtype):
    from transformers import Lfm2Config, Lfm2ForCausalLM

    config = Lfm2Config(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    with pytest.raises(StudyError, match="models of type 'lfm2' cannot be compared yet"):
        check_packing(Lfm2ForCausalLM(config).to(dtype).eval())
