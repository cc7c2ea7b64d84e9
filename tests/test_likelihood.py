"""Log-likelihoods equal those of one plain forward pass each."""

import pytest
import torch

from finetrap.engine import head, likelihood
from finetrap.engine.likelihood import ChoiceItem, choice_loglikelihoods, choice_scores

ITEMS = [
    ChoiceItem([65, 66, 67], [[70], [71, 72], [73, 74, 75, 76]]),
    ChoiceItem(list(range(97, 117)), [list(range(40, 52)), [99, 100]]),
    ChoiceItem([33], [[34, 35], [34, 36], [34]]),
    ChoiceItem([44, 45], [[34], [35], [36, 37, 38]]),
]
"""Short and long against Gemma's window of 8; shortest neither first nor last."""
PREFIX = list(range(120, 137))


@torch.no_grad()
def plain_loglikelihood(model, context, completion):
    logits = model(input_ids=torch.tensor([[*context, *completion]])).logits[0].double()
    logs = logits.log_softmax(dim=-1)[len(context) - 1 : -1]
    return float(logs[torch.arange(len(completion)), completion].sum())


@pytest.mark.parametrize("prefix", [[], PREFIX], ids=["no prefix", "shared prefix"])
def test_choices_equal_one_plain_pass_each(tiny_model, family, prefix):
    model = tiny_model(family)
    expected = [[plain_loglikelihood(model, prefix + context, c) for c in choices] for context, choices in ITEMS]
    for got, want in zip(choice_loglikelihoods(model, ITEMS, prefix=prefix), expected, strict=True):
        assert got == pytest.approx(want, rel=1e-6, abs=1e-5)


def test_items_spread_over_several_rows_score_the_same(tiny_model, monkeypatch):
    model = tiny_model()
    together = choice_loglikelihoods(model, ITEMS, prefix=PREFIX)
    monkeypatch.setattr(likelihood, "TOKENS_AT_A_TIME", 12)
    for apart, expected in zip(choice_loglikelihoods(model, ITEMS, prefix=PREFIX), together, strict=True):
        assert apart == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_logits_computed_a_few_at_a_time_score_the_same(tiny_model, monkeypatch, at_a_time):
    model = tiny_model()
    together = choice_scores(model, ITEMS, prefix=PREFIX)
    monkeypatch.setattr(head, "SCORED_AT_A_TIME", at_a_time)
    for apart, expected in zip(choice_scores(model, ITEMS, prefix=PREFIX), together, strict=True):
        wanted = [score.loglikelihood for score in expected]
        assert [score.loglikelihood for score in apart] == pytest.approx(wanted, abs=1e-5)
        assert [score.greedy for score in apart] == [score.greedy for score in expected]


def test_a_model_that_gives_no_numbers_would_have_said_nothing(tiny_model):
    model = tiny_model()
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    for scores in choice_scores(model, [ChoiceItem([65], [[0], [70]])]):
        assert [score.greedy for score in scores] == [False, False]


def test_progress_adds_up_to_the_number_of_items(tiny_model, monkeypatch):
    monkeypatch.setattr(likelihood, "TOKENS_AT_A_TIME", 12)
    done = []
    choice_loglikelihoods(tiny_model(), ITEMS, progress=done.append)
    assert sum(done) == len(ITEMS)
    assert len(done) > 1


def test_a_text_equals_the_loss_that_transformers_computes(tiny_model, family):
    model = tiny_model(family)
    texts, first = [list(range(97, 120)), [65], list(range(50, 60))], 256
    items = [ChoiceItem([first], [text]) for text in texts]
    for text, (got,) in zip(texts, choice_loglikelihoods(model, items), strict=True):
        ids = torch.tensor([[first, *text]])
        with torch.no_grad():
            mean_loss = model(input_ids=ids, labels=ids).loss.item()
        assert got == pytest.approx(-mean_loss * len(text), rel=1e-5)


def test_an_empty_text_has_likelihood_one(tiny_model):
    assert choice_loglikelihoods(tiny_model(), [ChoiceItem([256], [[]]), ChoiceItem([256], [[65]])])[0] == (0.0,)


def test_the_model_is_left_with_its_own_attention(tiny_model):
    model = tiny_model()
    choice_loglikelihoods(model, ITEMS)
    assert model.config._attn_implementation == "sdpa"
