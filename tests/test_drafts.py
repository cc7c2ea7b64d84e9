"""Drafts are what followed before, several tokens of a row at once are as one after another, and no answer changes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetrap.engine import generate as generate_module
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


@pytest.mark.parametrize("shared", [0, 5, 40])
@pytest.mark.parametrize("counts", [(1, 1, 1), (3, 1, 2), (1, 4, 1)])
def test_tokens_of_a_row_at_once_are_as_one_after_another(tiny_model, family, shared, counts):
    model = tiny_model(family)
    generator = torch.Generator().manual_seed(1)
    prefix, *prompts = (torch.randint(0, 256, (n,), generator=generator).tolist() for n in (shared, 3, 20, 9))
    fed = [torch.randint(0, 256, (n,), generator=generator).tolist() for n in counts]
    with torch.no_grad(), decoding_attention_on(model):
        rows = Rows(model, rows=3, capacity=40)
        rows.read_prefix(prefix)
        rows.read(prompts)
        # What was given in vain leaves no trace.
        rows.step([[7, 8, 9], [7], [8, 9]])
        rows.take_back([3, 1, 2])
        together = rows.step(fed).split(counts)
        after = rows.step([[11], [12], [13]])
    for prompt, tokens, logits, last, token in zip(prompts, fed, together, after, (11, 12, 13), strict=True):
        with torch.no_grad():
            whole = model(torch.tensor([[*prefix, *prompt, *tokens, token]])).logits[0, -len(tokens) - 1 :]
        torch.testing.assert_close(torch.cat([logits, last[None]]), whole, rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("most", [3, 12, 1000])
def test_drafts_change_no_answer_and_save_steps(tiny_model, tiny_tokenizer, family, monkeypatch, counted, most):
    model, prompts = tiny_model(family), prompts_that_repeat()
    plain = written_without_drafts(model, tiny_tokenizer, prompts, monkeypatch, rows_at_a_time=4)
    steps_without, counted.steps = counted.steps, 0
    monkeypatch.setitem(generate_module.DRAFTING, torch.float32, most)
    assert generate_greedy(model, tiny_tokenizer, prompts, rows_at_a_time=4, **SETTINGS) == plain
    # Random models come to repeat themselves.
    assert counted.steps < steps_without or most == 3


@pytest.mark.parametrize("most", [8, 14])
def test_a_step_has_no_more_tokens_than_drafts_are_for(tiny_model, tiny_tokenizer, monkeypatch, most):
    seen = []

    class Watched(Rows):
        def step(self, tokens):
            seen.append([len(of_row) for of_row in tokens])
            return super().step(tokens)

    monkeypatch.setattr(generate_module, "Rows", Watched)
    monkeypatch.setitem(generate_module.DRAFTING, torch.float32, most)
    generate_greedy(tiny_model(), tiny_tokenizer, prompts_that_repeat(12), **SETTINGS)
    assert max(map(len, seen)) == 12
    assert max(map(sum, seen)) == max(12, most)
    assert any(max(counts) > 1 for counts in seen) == (most > 12)


@pytest.mark.parametrize("limit", [1, 2, 3, 30])
def test_an_answer_ends_where_it_would_within_a_draft(tiny_model, tiny_tokenizer, monkeypatch, limit):
    model, prompts = tiny_model("qwen2"), prompts_that_repeat()
    whole = written_without_drafts(model, tiny_tokenizer, prompts, monkeypatch)
    stops = sorted({answer.ids[20] for answer in whole})
    texts = [answer.text[9:11] for answer in whole if answer.text[9:11].isascii() and len(answer.text) > 11]
    settings = {"max_new_tokens": limit, "stop_tokens": stops, "stop_texts": texts}
    plain = written_without_drafts(model, tiny_tokenizer, prompts, monkeypatch, **settings)
    assert generate_greedy(model, tiny_tokenizer, prompts, **settings) == plain


def test_drawn_answers_have_no_drafts(tiny_model, tiny_tokenizer, counted):
    sampling = Sampling(samples=3, seed=4)
    answers = generate_samples(tiny_model(), tiny_tokenizer, prompts_that_repeat(4), sampling, **SETTINGS)
    # The first token of each comes of the prompt, and the last is given to the model only to be ended.
    ended = sum(not sample.truncated for samples in answers for sample in samples)
    assert counted.tokens == sum(len(sample.ids) - 1 for samples in answers for sample in samples) + ended
