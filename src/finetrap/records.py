"""What is written: plain frozen values between the stages, and the keys that name them."""

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from finetrap.scoring import Outcome
from finetrap.task import Example, Kind

PROTOCOL = 3
"""Raised whenever the comparison protocol can give another number; part of every training key."""

TUNING_SEED = 1_000_000
"""Of every tuning candidate; no final trial has it."""

Purpose = Literal["target", "retention", "out_of_distribution", "validation"]


class Record(BaseModel):
    """Frozen, and strict about unknown fields. The docstring under a field is its description in the JSON Schema."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, use_attribute_docstrings=True
    )


def digest(value: object) -> str:
    """SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def items_digest(examples: Iterable[Example]) -> str:
    """SHA-256 of examples: their ids and all that they say, in order."""
    return _items_digest(tuple(examples))


@lru_cache(maxsize=64)  # every trial of a study names the same few sets
def _items_digest(examples: tuple[Example, ...]) -> str:
    # Turns and groups only where there are any: what was recorded before they came keeps its key.
    return digest(
        [
            [e.id, e.question, e.reference, e.gold, list(e.choices), *([list(e.turns)] if e.turns else [])]
            + ([{"group": e.group}] if e.group else [])
            for e in examples
        ]
    )


class ModelRecord(Record):
    """The model that a study starts from."""

    name: str
    """As the user named it: a preset, Hub id, folder or GGUF file; of a model in memory its name and a hash."""
    fingerprint: str
    """SHA-256 of its weights, configuration and tokenizer."""
    quantisation: str | None
    """The GGUF quantisation that it was dequantised from; None for full-precision weights."""
    parameters: int
    """Number of weights, tied ones counted once."""
    aligned: bool
    """Whether it was tuned to follow instructions."""
    chat: bool
    """Whether generation is prompted through its chat template."""
    revision: str | None = None
    """Commit of the Hub repository."""
    file_bytes: int | None = None
    """Of the weights as they were given; None of a model in memory."""

    @property
    def label(self) -> str:
        """The name, with the quantisation it started from."""
        return f"{self.name} (from GGUF {self.quantisation})" if self.quantisation else self.name


class Trial(Record):
    """One (model, task, method, settings, seed): all that decides what is trained."""

    model: ModelRecord
    task: str
    task_version: int
    arm: str
    method: str
    settings: dict[str, str | int | float]
    """Complete: defaults filled in."""
    seed: int
    dtype: Literal["float32", "bfloat16"]
    """Of the compute in training and of the stored weights in evaluation."""
    train_items: str
    """Digest of the training examples that the method reads."""
    validation_items: str
    """Digest of the validation examples that it reads."""
    checkpoint: str | None = None
    """Digest of the user's checkpoint, where the method is one."""
    plugin: str | None = None
    """Digest of the plugin that defines the method, where one does."""
    best_checkpoint: bool = False
    """Whether the weights are those of the lowest validation loss, as of every tuned arm, and not the last."""
    parent: str | None = None
    """Training key of the trial whose weights it goes on from, where it does."""
    replayed: str | None = None
    """Digest of the general text that is mixed into training, where some is."""
    protocol: int = PROTOCOL

    @property
    def training_key(self) -> str:
        """Names the artifact. The arm's name is not part of it, nor is where the files lie."""
        # Left out where they say nothing: what was recorded before they came keeps its key.
        silent = {name for name in ("plugin", "best_checkpoint", "parent", "replayed") if not getattr(self, name)}
        decides = self.model_dump(exclude={"arm", "model", *silent})
        if self.method == "checkpoint":
            decides["settings"] = {}
        if self.parent:
            decides["settings"].pop("of")
        if not decides["settings"].get("replay"):
            decides["settings"].pop("replay", None)
        return digest({**decides, "model": self.model.fingerprint, "chat": self.model.chat})

    @property
    def folder(self) -> str:
        """Name of the trial's folder."""
        return f"{slug(self.model.name)}--{self.task}--{slug(self.arm)}--seed{self.seed}--{self.training_key[:12]}"


def slug(name: str) -> str:
    """A name that is safe as one part of a path."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in name).strip(".-")
    return kept[-60:].lstrip(".-") or digest(name)[:12]


class Sampled(Record):
    """Answers that are drawn of each item, in place of the likeliest one; the trial's seed decides which."""

    samples: int
    """Of each item; its score is the share of them that is right."""
    temperature: float
    """By which logits are divided before the softmax."""

    def __str__(self) -> str:
        answers = "one sampled answer" if self.samples == 1 else f"mean of {self.samples} sampled answers"
        return f"{answers} an item, temperature {self.temperature:g}"


class Evaluation(Record):
    """What an artifact is asked: the target, a retention task, or an out-of-distribution task."""

    purpose: Purpose
    task: str
    task_version: int
    kind: Kind
    items: str
    """Digest of the examples."""
    n: int
    """Number of examples."""
    chat: bool
    shots: tuple[str, ...] = ()
    """Ids of the solved examples in front of each question."""
    max_new_tokens: int = 0
    # Left out where it says nothing: what was recorded before it came keeps its key.
    sampled: Sampled | None = Field(default=None, exclude_if=lambda sampled: sampled is None)
    """None: the likeliest answer alone."""

    def key(self, training_key: str) -> str:
        """Names the predictions of one artifact."""
        return digest({"artifact": training_key, **self.model_dump(mode="json", exclude={"purpose"})})

    def folder(self, training_key: str) -> str:
        """Name of the evaluation's folder within its trial's."""
        return f"{self.purpose}--{slug(self.task)}--{self.key(training_key)[:12]}"


class ItemRow(Record):
    """One item's answer and score; of an item of which several answers were drawn, one of them."""

    id: str
    sample: int | None = None
    """Which of the item's drawn answers, from 0: they stand one after the other. None of the likeliest answer."""
    group: str = ""
    """What the question belongs to, where such groups are the test items."""
    prompt: str
    """First 16 hex digits of the SHA-256 of the prompt's text."""
    output: str = ""
    """The generated text, or the chosen choice."""
    extracted: str | None = None
    gold: str = ""
    correct: bool | None = None
    """By the rule that decides; None for a `text` task."""
    strict: bool | None = None
    """Right in the stated format (`generate`)."""
    anywhere: bool | None = None
    """Gold stands somewhere in the output (`generate`)."""
    raw: bool | None = None
    """Right by log-likelihood that is not normalised by length (`choice`)."""
    formatted: bool | None = None
    """The stated answer format is there (`generate`)."""
    parts: dict[str, bool] = Field(default_factory=dict)
    """By field of a structured answer: whether it matches."""
    truncated: bool = False
    outcome: Outcome | None = None
    loglikelihoods: tuple[float, ...] = ()
    """Of each choice, in nats (`choice`)."""
    bits: float | None = None
    """Of the whole text (`text`)."""
    bytes: int | None = None
    """Of the text in UTF-8 (`text`)."""
    kl: float | None = None
    """KL(untouched || adapted) in nats, the sum over `kl_tokens` (`divergence`)."""
    kl_tokens: int | None = None
    """Tokens whose distributions were compared (`divergence`)."""
    chat_format: bool | None = None
    """Whether the answer is a whole turn: it ends by itself, is not empty, runs into no loop and holds no mark of the
    chat template (`generate`, through one)."""
    prompt_tokens: int = 0
    output_tokens: int = 0


class TrainingLogEntry(Record):
    """One optimiser step."""

    step: int
    epoch: float
    loss: float
    """Nats a completion token, mean over the step's tokens."""
    learning_rate: float
    gradient_norm: float
    """Before clipping."""
    tokens: int
    """Prompt and completion tokens seen so far."""
    seconds: float
    validation_loss: float | None = None


class TrainingRecord(Record):
    """What training came to."""

    outcome: Literal["completed", "diverged"]
    """`diverged`: the loss or a gradient stopped being finite, or the loss exploded."""
    step: int
    """The step whose weights are the artifact: the last, or the best one of a run that diverged."""
    steps: int
    validation_loss_before: float | None
    """Of the untouched model; with a plugin's method, of what that made of it."""
    validation_loss: float | None
    trainable_parameters: int
    train_tokens: int
    train_seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    artifact_bytes: int
    skipped_too_long: int = 0
    """Training examples longer than the model's context, left out."""


class EvaluationRecord(Record):
    """That an evaluation is done, and what it cost; the scores are in the rows beside it."""

    evaluation: Evaluation
    eval_seconds: float
    peak_memory_bytes: int
    prompt_tokens: int
    """All that the model had to read, shots included and counted once an item."""
    output_tokens: int
    validation_loss: float | None = None
    """Nats a completion token, of what was asked to choose a prompt by."""
    environment: str
    """Digest of the environment; its text is in the study folder."""
    finished: str
    """UTC, ISO 8601."""


class FailureRecord(Record):
    """A trial that failed. It has no score: it is not a zero."""

    trial: str
    error: str
    traceback: str


class Look(Record):
    """One reading of a test set."""

    time: str
    trial: str
    task: str
    n: int
    evaluation: str


class Answered(Record):
    """An answer that a study gave of a model and task; giving it again is no further look."""

    time: str
    model: str
    task: str
    evaluated: dict[str, str]
    """By arm: digest of the keys of its target evaluations, which change with items, seeds and settings."""
    alpha: float
    """Level that its tests spent."""
    retention: dict[str, str] = Field(default_factory=dict)
    """By retention task: digest of what it asked. Empty in records from before it was kept."""
    claims: tuple[str, ...] | None = None
    """Digests of the claims that the study stated, each with its models and tasks; null from before they were kept."""


class Environment(Record):
    """Recorded with every result, not part of any key."""

    finetrap: str
    """Its version."""
    commit: str | None
    """Of the checkout that ran; null where it was no checkout."""
    python: str
    packages: dict[str, str] = Field(default_factory=dict)
    """Versions of those that can move a number."""
    system: str
    """Operating system and architecture."""
    processor: str
    cores: int
    threads: int
    """That torch computes with."""
    memory_bytes: int
    device: str
    dtype: str
    """Of the compute and of the stored weights."""

    @property
    def key(self) -> str:
        """Digest of all of it."""
        return digest(self.model_dump(mode="json"))


class TaskRecord(Record):
    """What is said of a target task beside its results."""

    rule: str
    """How its accuracy is decided, in words."""
    states_format: bool = True
    """Whether the references are right strictly, so that the strict rule says something of an arm."""
    classes: tuple[str, ...] = ()
    """The labels of a classification."""
    near_overlap: int = 0
    """Test items that differ little from a train row, where the user gave both."""
    train: int
    validation: int
    test_available: int
    """Test items that there are; a study may use fewer."""
    grouped: bool = False
    """Whether test items are groups of rows."""
    test_carved: bool
    """Whether test was cut from train, for want of a test set."""


class Planned(Record):
    """A trial and what its artifact is asked."""

    trial: Trial
    evaluations: tuple[Evaluation, ...]
    rung: int | None = None
    """Of a tuning candidate, which is asked of validation items alone and leaves no weights; None of a final trial."""
    train_rows: int | None = None
    """Of a tuning candidate that trains: so many of the training examples, the first."""
    rescue_of: str | None = None
    """The arm whose harm it is to remove: added by the study itself, after the first verdicts."""


class Plan(Record):
    """All that a study needs, resolved on this machine: what `status` and `report` compare the records with."""

    command: str | None
    """That started the study, where one did."""
    environment: Environment
    dropped_train_rows: dict[str, int]
    """By task: train rows left out because they stand in test."""
    planned: tuple[Planned, ...]
    """The final trials. The settings of an arm that is still being tuned are provisional."""
    candidates: tuple[Planned, ...] = ()
    """Tuning: what was tried, and what is expected to be, in order."""
    tasks: dict[str, TaskRecord] = Field(default_factory=dict)
    """By name: the target tasks."""
    estimated_seconds: float | None = None
    """What the study was estimated to take when it was first run; None in plans of before this was kept."""
