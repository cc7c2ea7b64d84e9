"""KL from the untouched model equals what torch makes of the logits that Transformers computes."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from finetrap import divergence
from finetrap.data import Encoder
from finetrap.divergence import divergences, token_divergences
from finetrap.engine.loss import TrainingRow
from finetrap.evaluate import Asked, evaluate
from finetrap.models import LoadedModel
from finetrap.task import get_task

pytestmark = pytest.mark.usefixtures("undrawn")

TEXTS = [
    TrainingRow([256, *range(97, 120)], 1),
    TrainingRow([259, 65, 66, 67, 259, 70, 71, 260], 5),
    TrainingRow(list(range(40, 75)), 30),
    TrainingRow([256, 65], 1),
]
"""Whole texts and answers; long and short against Gemma's window of 8."""


def moved(model: PreTrainedModel, amount: float = 0.1) -> PreTrainedModel:
    """Change a model's weights by `amount` of their size."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for weight in model.parameters():
            weight += amount * weight.std(correction=0) * torch.randn_like(weight)
    return model


@torch.no_grad()
def plain_divergence(untouched: PreTrainedModel, adapted: PreTrainedModel, text: TrainingRow) -> float:
    log_p, log_q = (
        model(torch.tensor([text.ids])).logits[0, text.prompt_length - 1 : -1].float().log_softmax(dim=-1)
        for model in (untouched, adapted)
    )
    return float(kl_div(log_q, log_p, log_target=True, reduction="sum"))


def test_it_equals_torch_on_the_logits_of_transformers(tiny_model: Callable[..., PreTrainedModel], family: str) -> None:
    untouched, adapted = tiny_model(family), moved(tiny_model(family))
    expected = [plain_divergence(untouched, adapted, text) for text in TEXTS]
    # A sum of differences between logarithms: rounding is of their size, not of the divergence's.
    assert divergences(untouched, adapted, TEXTS) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert min(expected) > 0.01


def test_it_is_of_the_adapted_model_from_the_untouched_one(tiny_model: Callable[..., PreTrainedModel]) -> None:
    untouched, adapted = tiny_model(), moved(tiny_model())
    there, back = divergences(untouched, adapted, TEXTS), divergences(adapted, untouched, TEXTS)
    assert all(abs(a - b) > 1e-3 * a for a, b in zip(there, back, strict=True))


def test_an_untouched_copy_has_none(tiny_model: Callable[..., PreTrainedModel], family: str) -> None:
    assert divergences(tiny_model(family), tiny_model(family), TEXTS) == [0.0] * len(TEXTS)


@pytest.mark.parametrize("tokens", [1, 30, 40])
def test_neither_order_nor_rows_nor_parts_matter(
    tiny_model: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    models = tiny_model(), moved(tiny_model())
    together = divergences(*models, TEXTS)
    assert divergences(*models, TEXTS[::-1]) == pytest.approx(together[::-1], rel=1e-5)
    monkeypatch.setattr(divergence, "TOKENS_AT_A_TIME", tokens)
    monkeypatch.setattr(divergence, "LOGITS_AT_A_TIME", 4 * 261 * 3)
    done: list[int] = []
    assert divergences(*models, TEXTS, progress=done.append) == pytest.approx(together, rel=1e-5)
    assert sum(done) == len(TEXTS)


def test_logits_that_a_family_caps_are_compared_as_it_caps_them(tiny_model: Callable[..., PreTrainedModel]) -> None:
    models = [tiny_model("gemma3", final_logit_softcapping=2.0) for _ in range(2)]
    moved(models[1])
    expected = [plain_divergence(models[0], models[1], text) for text in TEXTS]
    assert divergences(*models, TEXTS) == pytest.approx(expected, rel=1e-5)


def test_a_vocabulary_that_is_padded_otherwise_is_compared_where_both_are() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    padded = torch.cat([logits, torch.full((2, 2), 5.0)], dim=1)
    assert token_divergences(logits.clone(), padded).tolist() == [0.0, 0.0]


def test_a_study_s_rows_are_of_the_texts_as_the_model_reads_them(tiny_loaded: LoadedModel) -> None:
    adapted = replace(tiny_loaded, model=moved(tiny_loaded.copy()), untouched=tiny_loaded.model)
    task = get_task("divergence")
    by_id = {example.id: example for example in task.load("test") if example.id in ("chat-13", "general-3")}
    found = evaluate(adapted, task, list(by_id.values()), Asked(), progress=lambda done: None)
    rows = {row.id: row for row in found}
    ids, start = Encoder(adapted.tokenizer, task, chat=True).training_row(by_id["chat-13"])
    text = adapted.tokenizer.decode(ids)
    assert text.count("<|im_start|>assistant") == 2  # of two exchanges the last answer is compared
    assert adapted.tokenizer.decode(ids[start:]) == f"{by_id['chat-13'].reference}<|im_end|>"
    general = [256, *adapted.tokenizer(by_id["general-3"].question)["input_ids"]]
    for name, compared in (("chat-13", TrainingRow(ids, start)), ("general-3", TrainingRow(general, 1))):
        assert rows[name].kl == pytest.approx(plain_divergence(tiny_loaded.model, adapted.model, compared), rel=1e-5)
        assert rows[name].kl_tokens == compared.completion_length


def test_the_untouched_model_has_rows_too_and_did_not_move(tiny_loaded: LoadedModel) -> None:
    task = get_task("divergence")
    rows = evaluate(tiny_loaded, task, task.load("test"), Asked(), progress=lambda done: None)
    assert {row.id.partition("-")[0] for row in rows} == {"general", "chat"}
    assert {row.kl for row in rows} == {0.0}
    assert all(row.kl_tokens for row in rows)
