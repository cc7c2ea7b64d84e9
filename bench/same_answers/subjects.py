"""The models of the matrix: tiny ones of each family and the real SmolLM2, untouched and adapted by each method.

Each is there twice: as finetrap holds it, and as Transformers and PEFT alone read it.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel
from tiny import VARIANTS, make_model, make_tokenizer
from transformers import GenerationConfig, PreTrainedModel

from finetrap.config import ModelSpec
from finetrap.data import Encoder, load_splits, load_test
from finetrap.method import build, complete_settings
from finetrap.models import LoadedModel, cast_weights, find, load
from finetrap.presets import EMBEDDED, PRESETS, here
from finetrap.quiet import quiet_libraries
from finetrap.records import ModelRecord
from finetrap.scoring import score_number
from finetrap.task import Example, Task, get_task
from finetrap.trial import load_checkpoint

SMOLLM2 = "smollm2-135m-instruct"
ADAPTING = ("full", "lora", "dora")
WORDLESS = "llama-vocabulary-50000"
"""Its tokens beyond the tokenizer's 261 have no text."""
SPECIAL: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3-window-16": (
        "gemma3-untied",
        {
            "sliding_window": 16,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "llama-one-key-head": ("llama-untied", {"num_key_value_heads": 1}),
    WORDLESS: ("llama-tied", {"vocab_size": 50_000}),
}
"""A name, the variant that it is and what differs from it."""
TINY = (*VARIANTS, *SPECIAL)


@dataclass(frozen=True)
class Pair:
    """The same weights twice."""

    ours: Any
    """As finetrap holds it."""
    reference: Any
    """As Transformers, or PEFT around it, reads it."""


def models() -> tuple[str, ...]:
    """Names of the models on this machine."""
    return (*TINY, SMOLLM2) if here(PRESETS[EMBEDDED]) else TINY


@lru_cache(maxsize=2)
def base(name: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """A model that nothing adapted."""
    if name == SMOLLM2:
        loaded = load(find(ModelSpec(name=EMBEDDED)), dtype=dtype, device="cpu")
    else:
        variant, settings = SPECIAL.get(name, (name, {}))
        model = make_model(variant, **settings)
        _liven(model)
        record = ModelRecord(
            name=name, fingerprint=name, quantisation=None, parameters=model.num_parameters(), aligned=True, chat=True
        )
        loaded = LoadedModel(record, cast_weights(model, dtype), make_tokenizer())
    # Not to stop, sample or penalise by anything that the call does not say.
    loaded.model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    return loaded


@torch.no_grad()
def _liven(model: PreTrainedModel) -> None:
    """Give norms and biases values of their own: new, they are ones and zeros, which hide what is left out."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            spread = 0.8 if name == "model.norm.weight" else 0.3
            parameter += spread * torch.randn(parameter.shape, generator=generator)
    if model.config.model_type == "gemma3_text" and model.config.tie_word_embeddings:
        # Gemma scales its embeddings up; random and tied, they would have it repeat its last token for ever.
        model.get_parameter("model.embed_tokens.weight").mul_(0.1)


@lru_cache(maxsize=2)
def adapted(name: str, method: str, *, merged: bool) -> Pair:
    """A model to evaluate: ours as a trial would load it, or with its adapter in place; to be left as it is.

    The reference is PEFT's own model around its own base, never merged.
    """
    loaded = base(name)
    if method == "none":
        return Pair(loaded.model, _own(loaded))
    with TemporaryDirectory() as folder, quiet_libraries():
        wrapped = _changed(loaded, method)
        wrapped.save_pretrained(folder)
        reference = _reference(loaded, method, wrapped, Path(folder)).eval()
        if merged:
            return Pair(load_checkpoint(Path(folder), loaded), reference)
    return Pair(wrapped.get_base_model().eval(), reference)


def trainable(name: str, method: str, dtype: torch.dtype = torch.float32) -> Pair:
    """A model to train, adapters away from zero so that all of them get gradients, and the reference in float32."""
    loaded = base(name)
    wrapped = _changed(loaded, method)
    with TemporaryDirectory() as folder, quiet_libraries():
        if method != "full":
            wrapped.save_pretrained(folder)
        reference = _reference(loaded, method, wrapped, Path(folder))
    return Pair(cast_weights(wrapped, dtype), reference)


def _own(loaded: LoadedModel) -> PreTrainedModel:
    model = loaded.copy()
    model.set_attn_implementation("sdpa")
    return model


def _changed(loaded: LoadedModel, method: str) -> Any:
    """The model as its method prepares it, and what it would train moved by noise."""
    torch.manual_seed(0)
    model = build(method, complete_settings(method, {})).prepare(loaded.copy())  # type: ignore[misc]
    generator = torch.Generator().manual_seed(2)
    size = 0.02 if loaded.record.name.startswith("smollm2") else 0.1
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = size * torch.randn(parameter.shape, generator=generator) if parameter.requires_grad else None
            if noise is not None and "lora_B" in name:
                parameter += noise
            elif noise is not None and "lora_A" not in name:
                parameter *= 1 + noise
    return model


def _reference(loaded: LoadedModel, method: str, changed: Any, folder: Path) -> Any:
    model = _own(loaded)
    if method == "full":
        model.load_state_dict(changed.state_dict())
        return model.requires_grad_(True)
    return PeftModel.from_pretrained(model, str(folder), is_trainable=True, autocast_adapter_dtype=False)


# --- what they are asked ---------------------------------------------------------------------------------------------

_NAMES = ("Ann", "Benjamin", "Cleo", "Dominic", "Eve")


def _sum(index: int) -> Example:
    """A sum in words; questions differ in length, and from their first words on."""
    a, b = 3 * index % 17, 5 * index % 11
    more = " and waits" * (index % 4)
    question = f"{_NAMES[index % 5]} has {a} apples{more}. What is {a} and {b}?"
    return Example(f"sum-{index}", question, f"{a} + {b} = {a + b}\n#### {a + b}", str(a + b))


SUMS = Task(
    "sums",
    "sums in words",
    "generate",
    "MIT",
    lambda split: tuple(_sum(i) for i in range(200)),
    system="Say the number.",
    score=score_number,
    max_new_tokens=40,
)


def questions(loaded: LoadedModel, count: int, shots: int) -> list[list[int]]:
    """Prompts with solved examples in front, in tokens."""
    encoder, train, test = _task(loaded)
    return [encoder.prompt(example, train[:shots]).ids for example in test[:count]]


def solved(loaded: LoadedModel, count: int) -> list[tuple[list[int], int]]:
    """Rows to train on, which all begin with what the chat template puts in front: ids and the prompt's length."""
    encoder, train, _ = _task(loaded)
    return [encoder.training_row(example) for example in train[:count]]


def choices(loaded: LoadedModel, count: int, shots: int) -> list[tuple[list[int], list[list[int]]]]:
    """Prompts of ARC-Easy with their choices, in tokens."""
    task = get_task("arc_easy")
    encoder = Encoder(loaded.tokenizer, task, chat=True)
    train = _shortest(load_splits(task, limit_train=64).train)
    items = []
    for example in load_test(task, limit=count).examples:
        prompt = encoder.prompt(example, train[:shots])
        items.append((prompt.ids, [encoder.completion(prompt, choice) for choice in example.choices]))
    return items


def _task(loaded: LoadedModel) -> tuple[Encoder, list[Example], list[Example]]:
    if loaded.record.name in TINY:
        rows = list(SUMS.load("train"))
        return Encoder(loaded.tokenizer, SUMS, chat=True), rows[100:], rows[:100]
    task = get_task("gsm8k")
    train = _shortest(load_splits(task, limit_train=64).train)
    return Encoder(loaded.tokenizer, task, chat=True), train, list(load_test(task, limit=100).examples)


def _shortest(examples: tuple[Example, ...]) -> list[Example]:
    return sorted(examples, key=lambda example: len(example.question) + len(example.reference))
