"""What both sides work on: models, and real rows with their prompts."""

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from finetrap.config import ModelSpec
from finetrap.data import Encoder, draw_shots, load_splits, load_test
from finetrap.models import LoadedModel, Source, choose_device, choose_dtype, find, load, load_reader
from finetrap.task import Example, Task, get_task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


class Job(NamedTuple):
    """One piece of work, the same for both sides."""

    model: str
    """As `finetrap.config.ModelSpec` takes it."""
    task: str
    items: int
    shots: int = 0
    new_tokens: int = 0
    method: str = ""
    batch: int = 16
    """Rows in an optimiser step."""


def warm_up(job: Job) -> Job:
    """The least work of its kind, for what a process does only once."""
    return job._replace(items=2, batch=2, new_tokens=min(job.new_tokens, 2))


def precision() -> "torch.dtype":
    """What both sides compute in: bfloat16 where the machine multiplies in it."""
    return choose_dtype("auto", choose_device("auto"))


def precision_name() -> str:
    """Its name."""
    return str(precision()).removeprefix("torch.")


@lru_cache(maxsize=1)
def source(model: str) -> Source:
    """Where the model is."""
    return find(ModelSpec(name=model))


def fresh(model: str) -> LoadedModel:
    """The model in the precision that it computes in, read from disk."""
    return load(source(model), dtype=precision(), device=choose_device("auto"))


loaded = lru_cache(maxsize=1)(fresh)
"""The same, kept in memory; not to be changed."""


@lru_cache(maxsize=1)
def tokenizer(model: str) -> "PreTrainedTokenizerBase":
    """The model's, without its weights."""
    return load_reader(source(model)).tokenizer


def task_of(job: Job) -> Task:
    """The task with the job's limit of new tokens."""
    task = get_task(job.task)
    return replace(task, max_new_tokens=job.new_tokens) if task.kind == "generate" else task


def encoder(job: Job) -> Encoder:
    """What makes the job's prompts."""
    return Encoder(tokenizer(job.model), task_of(job), chat=source(job.model).record.chat)


def training_examples(job: Job) -> tuple[Example, ...]:
    """Rows to train on."""
    return load_splits(get_task(job.task)).train[: job.items]


def test_examples(job: Job) -> tuple[Example, ...]:
    """Items to evaluate."""
    return load_test(get_task(job.task), limit=job.items).examples


def shots(job: Job) -> tuple[Example, ...]:
    """The same solved examples for every item."""
    return draw_shots(load_splits(get_task(job.task)), job.shots, seed=0) if job.shots else ()
