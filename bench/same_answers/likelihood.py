"""Log-likelihoods of choices and texts against one plain forward pass each."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

import torch

from finetrap.engine.likelihood import ChoiceItem, choice_loglikelihoods
from same_answers.cells import Cell, Outcome, of_numbers
from same_answers.subjects import ADAPTING, SMOLLM2, adapted, base, choices, solved

SHOTS = (0, 1, 5)


@torch.no_grad()
def plain_loglikelihood(model: Any, context: list[int], completion: list[int]) -> float:
    """In nats, by the model's own forward pass."""
    logits = model(input_ids=torch.tensor([[*context, *completion]]), use_cache=False).logits[0]
    logs = logits[len(context) - 1 : -1].double().log_softmax(dim=-1)
    return float(logs[torch.arange(len(completion)), completion].sum())


def _choices(model: str, method: str, adapter: str | None, shots: int) -> Outcome:
    pair = adapted(model, method, merged=adapter == "merged")
    asked = choices(base(model), 3 if model == SMOLLM2 else 5, shots)
    columns = zip(*(prompt for prompt, _ in asked), strict=False)
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns)) if shots else 0
    items = [ChoiceItem(prompt[shared:], own) for prompt, own in asked]
    got = choice_loglikelihoods(pair.ours, items, prefix=asked[0][0][:shared])
    differences, tokens = {}, 0
    for index, ((prompt, own), values) in enumerate(zip(asked, got, strict=True)):
        for choice, (ids, value) in enumerate(zip(own, values, strict=True)):
            expected = plain_loglikelihood(pair.reference, prompt, ids)
            differences[f"item {index}, choice {choice}"] = abs(value / expected - 1)
            tokens += len(ids)
    return of_numbers(differences, tokens=tokens)


def _texts(model: str, method: str, adapter: str | None) -> Outcome:
    pair, loaded = adapted(model, method, merged=adapter == "merged"), base(model)
    texts = [ids for ids, _ in solved(loaded, 4)]
    first = int(loaded.tokenizer.eos_token_id)
    scored = choice_loglikelihoods(pair.ours, [ChoiceItem([first], [text]) for text in texts])
    expected = [plain_loglikelihood(pair.reference, [first], text) for text in texts]
    differences = {f"text {i}": abs(a / b - 1) for i, ((a,), b) in enumerate(zip(scored, expected, strict=True))}
    return of_numbers(differences, tokens=sum(map(len, texts)))


def cells(models: Sequence[str]) -> Iterator[Cell]:
    """Every model and adapter."""
    for model in models:
        for method, adapter in [("none", None), *((method, "merged") for method in ADAPTING)]:
            for shots in SHOTS:
                compute = partial(_choices, model, method, adapter, shots)
                yield Cell("log-likelihoods of choices", model, method, compute, shots=shots, adapter=adapter)
            yield Cell(
                "log-likelihoods of texts", model, method, partial(_texts, model, method, adapter), adapter=adapter
            )
