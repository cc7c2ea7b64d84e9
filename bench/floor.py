"""The least time that work can take on this machine: its operations over the measured rate of matrix products.

Decoding is bounded by memory as well: the weights are read once a step for all rows together. What needs no matrix
product (norms, DoRA's magnitudes, the optimiser, tokenisation) counts nothing.
"""

import math
import statistics
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

import torch
from measure import seconds_of
from torch.nn.functional import linear
from work import Job, encoder, loaded, shots, test_examples, training_examples

from finetrap.engine.lookup import DRAFTED

ROWS = 2048
"""Of the products that are timed: tokens of a packed row."""
REPEATS = 5
COPIED_BYTES = 2**29


class Machine(NamedTuple):
    """What it does a second."""

    operations: float
    """In matrix products of the model's own shapes and precision."""
    bytes: float
    """Read and written by a copy of a large tensor."""


class Shape(NamedTuple):
    """Of a model, what decides its operations."""

    linear: int
    """Weights of linear layers, the head left out."""
    head: int
    attention: int
    """Heads x head size x layers."""
    bytes_each: int


class Floor(NamedTuple):
    """The least time, and what it was computed from."""

    seconds: float
    operations: float
    machine: Machine


def _linear_shapes(model: str) -> Counter[tuple[int, ...]]:
    base = loaded(model).model
    head = base.get_output_embeddings()
    return Counter(
        tuple(module.weight.shape)
        for module in base.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )


def shape(model: str) -> Shape:
    base = loaded(model).model
    config = base.config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(
        linear=sum(rows * columns * count for (rows, columns), count in _linear_shapes(model).items()),
        head=base.get_output_embeddings().weight.numel(),
        attention=heads * size * config.num_hidden_layers,
        bytes_each=next(base.parameters()).element_size(),
    )


@lru_cache(maxsize=1)
@torch.no_grad()
def machine(model: str) -> Machine:
    """Medians of a few repeats, measured once in a process."""
    base = loaded(model).model
    operations, seconds = 0.0, 0.0
    for (rows, columns), count in _linear_shapes(model).items():
        given = torch.randn(ROWS, columns, dtype=base.dtype, device=base.device)
        weight = torch.randn(rows, columns, dtype=base.dtype, device=base.device)
        linear(given, weight)
        times = [seconds_of(lambda given=given, weight=weight: linear(given, weight)) for _ in range(REPEATS)]
        seconds += count * statistics.median(times)
        operations += count * 2 * ROWS * rows * columns
    source, target = (torch.ones(COPIED_BYTES, dtype=torch.uint8, device=base.device) for _ in range(2))
    copies = [seconds_of(lambda: target.copy_(source)) for _ in range(REPEATS)]
    return Machine(operations / seconds, 2 * COPIED_BYTES / statistics.median(copies))


def train(job: Job) -> Floor:
    """Forward and backward to the inputs: 4 operations a weight and token; where all weights are trained, 2 more.

    Tokens with which all rows begin count once an optimiser step, and the head where there is a loss. Causal
    attention is 2 operations forward and 4 backward for each of two products, head, number of its size, and pair.
    """
    of, rows = shape(job.model), [encoder(job).training_row(example) for example in training_examples(job)]
    steps = math.ceil(len(rows) / job.batch)
    common = _common([ids for ids, _ in rows])
    lengths = [len(ids) for ids, _ in rows]
    tokens = sum(lengths) - (len(rows) - steps) * common
    learned = sum(len(ids) - prompt for ids, prompt in rows)
    pairs = sum(map(_pairs, lengths)) - (len(rows) - steps) * _pairs(common)
    each = 6 if job.method == "full" else 4
    operations = each * (of.linear * tokens + of.head * learned) + 12 * of.attention * pairs
    reached = machine(job.model)
    return Floor(operations / reached.operations, operations, reached)


def generate(job: Job, written: tuple[int, ...]) -> Floor:
    """Tokens common to all prompts once, the rest once an item; then each step reads the weights once.

    A step writes a token of each answer, and as many more as are drafted if all are right.
    """
    of, prompts = shape(job.model), _prompts(job)
    common, lengths = _common(prompts), [len(ids) for ids in prompts]
    own = sum(length - common for length in lengths)
    pairs = _pairs(common) + sum(_pairs(length) - _pairs(common) for length in lengths)
    prefill = 2 * of.linear * (common + own) + 2 * of.head * len(prompts) + 4 * of.attention * pairs
    pairs = sum(_pairs(length + new) - _pairs(length) for length, new in zip(lengths, written, strict=True))
    decode = 2 * (of.linear + of.head) * sum(written) + 4 * of.attention * pairs
    read = max(written) / (1 + DRAFTED) * (of.linear + of.head) * of.bytes_each
    reached = machine(job.model)
    seconds = prefill / reached.operations + max(decode / reached.operations, read / reached.bytes)
    return Floor(seconds, prefill + decode, reached)


def choose(job: Job) -> Floor:
    """Common tokens once, each context once, each choice once; the head where a choice's token is predicted."""
    of, made, prompts = shape(job.model), encoder(job), _prompts(job)
    common = _common(prompts)
    tokens, predicted, pairs = common, 0, _pairs(common)
    for ids, example in zip(prompts, test_examples(job), strict=True):
        prompt = made.prompt(example, shots(job))
        choices = [len(made.completion(prompt, choice)) for choice in example.choices]
        tokens += len(ids) - common + sum(choices)
        predicted += sum(choices)
        pairs += _pairs(len(ids)) - _pairs(common)
        pairs += sum(_pairs(len(ids) + size) - _pairs(len(ids)) for size in choices)
    operations = 2 * of.linear * tokens + 2 * of.head * predicted + 4 * of.attention * pairs
    reached = machine(job.model)
    return Floor(operations / reached.operations, operations, reached)


def _prompts(job: Job) -> list[list[int]]:
    made, given = encoder(job), shots(job)
    return [made.prompt(example, given).ids for example in test_examples(job)]


def _common(sequences: list[list[int]]) -> int:
    """How many tokens all begin with: those of the least and the greatest, since the others lie between them."""
    first, last = min(sequences), max(sequences)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


def _pairs(length: int) -> float:
    """Pairs of a token and one that it sees."""
    return length * (length + 1) / 2
