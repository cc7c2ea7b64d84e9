"""Drafts are what followed before, several tokens of a row at once are as one after another, and no answer changes."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetrap.engine import generate as generate_module
from finetrap.engine import steps as steps_module
from finetrap.engine.decoding import Rows, decoding_attention_on
from finetrap.engine.generate import Sampling, generate_greedy, generate_samples
from finetrap.engine.lookup import DRAFTED, KNOWN, Lookup

NEW = 60
SETTINGS = {"max_new_tokens": NEW, "stop_tokens": [258]}


def followed(tokens, most):
    """By going back through the tokens."""
    for end in range(len(tokens) - 1, KNOWN - 1, -1):
        if tokens[end - KNOWN : end] == tokens[-KNOWN:]:
            return tokens[end : end + most]
    return []


@given(st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=4), st.integers(0, 4))
def test_a_draft_is_what_followed_the_last_tokens_before(parts, most):
    lookup = Lookup(parts[0])
    for part in parts[1:]:
        lookup.add(part)
    tokens = [token for part in parts for token in part]
    assert lookup.draft(most) == followed(tokens, min(DRAFTED, most))


def stepped(model, prefix, prompts, fed):
    """Logits after each of some tokens that rows are given at once, and after one token more."""
    with torch.no_grad(), decoding_attention_on(model):
        rows = Rows(model, rows=len(prompts), capacity=40)
        rows.read_prefix(prefix)
        rows.read(prompts)
        # What was given in vain leaves no trace.
        rows.step([[7, 8, 9], [7], [8, 9]])
        rows.take_back([3, 1, 2])
        together = rows.step(fed).split([len(tokens) for tokens in fed])
        last = rows.step([[11], [12], [13]])
    return [torch.cat([logits, after[None]]) for logits, after in zip(together, last, strict=True)]


@pytest.mark.parametrize("rows_together", [1, 2, 32])
@pytest.mark.parametrize("shared", [0, 5, 40, 64])
@pytest.mark.parametrize("counts", [(1, 1, 1), (3, 1, 2), (1, 1, 4)])
def test_tokens_of_a_row_at_once_are_as_one_after_another(
    tiny_model, family, shared, counts, rows_together, monkeypatch
):
    monkeypatch.setattr(steps_module, "ROWS_TOGETHER", rows_together)
    model = tiny_model(family)
    generator = torch.Generator().manual_seed(1)
    prefix, *prompts = (torch.randint(0, 256, (n,), generator=generator).tolist() for n in (shared, 3, 20, 9))
    fed = [torch.randint(0, 256, (n,), generator=generator).tolist() for n in counts]
    found = stepped(model, prefix, prompts, fed)
    # In bfloat16 what is shared is padded; both models have weights that it can hold.
    rounded = deepcopy(model).bfloat16()
    in_bfloat16 = stepped(rounded, prefix, prompts, fed)
    exact = rounded.float()
    for prompt, tokens, logits, low, token in zip(prompts, fed, found, in_bfloat16, (11, 12, 13), strict=True):
        ids, kept = torch.tensor([[*prefix, *prompt, *tokens, token]]), len(tokens) + 1
        with torch.no_grad():
            torch.testing.assert_close(logits, model(ids).logits[0, -kept:], rtol=1e-4, atol=1e-4)
            of_rounded = exact(ids).logits[0, -kept:]
        assert (low.float() - of_rounded).norm() < 0.1 * of_rounded.norm()


class Counted(Rows):
    """Rows that count what they are given."""

    steps = tokens = 0

    def step(self, tokens):
        Counted.steps += 1
        Counted.tokens += sum(map(len, tokens))
        return super().step(tokens)


@pytest.fixture
def counted(monkeypatch):
    """Steps and tokens of all that is generated from here on."""
    monkeypatch.setattr(generate_module, "Rows", Counted)
    monkeypatch.setattr(Counted, "steps", 0)
    monkeypatch.setattr(Counted, "tokens", 0)
    return Counted


def prompts_that_repeat(count=10):
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(1, 12, (count,), generator=generator).tolist()
    return [2 * torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]


def written_without_drafts(model, tokenizer, prompts, monkeypatch, **settings):
    with monkeypatch.context() as patch:
        patch.setattr(generate_module, "DRAFTING", {})
        return generate_greedy(model, tokenizer, prompts, **{**SETTINGS, **settings})


@pytest.mark.parametrize("most", [1, 12, 1000])
def test_drafts_change_no_answer_and_save_steps(tiny_model, tiny_tokenizer, family, monkeypatch, counted, most):
    model, prompts = tiny_model(family), prompts_that_repeat()
    plain = written_without_drafts(model, tiny_tokenizer, prompts, monkeypatch, rows_at_a_time=4)
    steps_without, counted.steps = counted.steps, 0
    monkeypatch.setitem(generate_module.DRAFTING, torch.float32, most)
    assert generate_greedy(model, tiny_tokenizer, prompts, rows_at_a_time=4, **SETTINGS) == plain
    # Random models come to repeat themselves.
    assert (counted.steps < steps_without) == (most > 1)


@pytest.mark.parametrize("most", [8, 14])
def test_a_step_has_no_more_tokens_than_drafts_are_for(tiny_model, tiny_tokenizer, monkeypatch, most):
    seen = []

    class Watched(Rows):
        def step(self, tokens):
            seen.append([len(of_row) for of_row in tokens])
            return super().step(tokens)

    monkeypatch.setattr(generate_module, "Rows", Watched)
    monkeypatch.setitem(generate_module.DRAFTING, torch.float32, most)
    answers = generate_greedy(tiny_model(), tiny_tokenizer, prompts_that_repeat(12), **SETTINGS)
    assert all(answer.truncated for answer in answers), "with fewer rows there would be room for drafts"
    assert max(map(len, seen)) == 12
    assert max(map(sum, seen)) == max(12, most)
    assert any(max(counts) > 1 for counts in seen) == (most > 12)


@pytest.fixture
def in_turn(tiny_model):
    """A model that writes 1, 2, 3, 36 in turn: what comes next is decided by the last token."""
    model = tiny_model("qwen2")
    follows = {1: 2, 2: 3, 3: 36}

    def next_of(module, given, logits):
        last = given[0].argmax(dim=-1)
        return torch.nn.functional.one_hot(
            last.apply_(lambda token: follows.get(token, 1)), model.config.vocab_size
        ).float()

    width = model.config.hidden_size
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(10 * torch.eye(model.config.vocab_size, width))
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model.lm_head.register_forward_hook(next_of)
    return model


@pytest.mark.parametrize(
    ("stops", "texts", "limit", "ids", "text", "steps"),
    [
        ([3], [], 9, [2], "#", 1),
        ([36], [], 9, [2, 3], "#$", 1),
        ([], ["$"], 9, [2, 3], "#", 1),
        ([], [], 1, [2], "#", 0),
        ([], [], 2, [2, 3], "#$", 1),
        ([], [], 3, [2, 3, 36], "#$E", 1),
        ([], [], 4, [2, 3, 36, 1], '#$E"', 1),
        # 36 and 1 do not stand together in the prompt: the second step has no draft.
        ([], [], 9, [2, 3, 36, 1, 2, 3, 36, 1, 2], '#$E"#$E"#', 4),
    ],
)
def test_an_answer_ends_where_it_would_within_a_draft(
    in_turn, tiny_tokenizer, counted, stops, texts, limit, ids, text, steps
):
    prompt = [1, 2, 3, 36, 9, 1]
    settings = {"max_new_tokens": limit, "stop_tokens": stops, "stop_texts": texts}
    (answer,) = generate_greedy(in_turn, tiny_tokenizer, [prompt], **settings)
    assert (answer.ids, answer.text) == (ids, text)
    assert counted.steps == steps


def test_drawn_answers_have_no_drafts(tiny_model, tiny_tokenizer, counted):
    sampling = Sampling(samples=3, seed=4)
    answers = generate_samples(tiny_model(), tiny_tokenizer, prompts_that_repeat(4), sampling, **SETTINGS)
    # The first token of each comes of the prompt, and the last is given to the model only to be ended.
    ended = sum(not sample.truncated for samples in answers for sample in samples)
    assert counted.tokens == sum(len(sample.ids) - 1 for samples in answers for sample in samples) + ended
