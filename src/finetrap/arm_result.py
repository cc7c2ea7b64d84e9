"""What results.json says of an arm on a model and task.

All scores, rates and differences are fractions. A delta is adapted minus untouched. What does not apply, or was not
measured, is null.
"""

from typing import Literal

from pydantic import Field

from finetrap.records import Record, Sampled
from finetrap.scoring import Outcome

Verdict = Literal["gain", "harm", "no_difference", "format_only", "undecided", "floor", "ceiling"]


class Artifact(Record):
    """One checkpoint (the first seed's) against the untouched model: variance over items only."""

    delta: float
    """Accuracy of the arm minus that of the untouched model."""
    ci95: tuple[float, float]
    """Tango's score interval; where scores are fractions (drawn answers, groups), Bonett and Price's."""
    ci95_adjusted: tuple[float, float]
    """The same, simultaneous over all arms of the model and task."""
    sign_only: bool = False
    """Holm's method shows the sign, and the adjusted interval no size: its near end was set to 0."""
    p: float
    """McNemar, the larger of mid-p and score; where scores are fractions, the one that agrees with the interval."""
    p_adjusted: float
    """Holm's, within the model and task."""
    mde: float
    """Minimum detectable effect: found significant four times in five."""
    items_needed: int | None = None
    """Test items that would show this difference, if scores stay as they are; null: it is shown, or no number does."""
    items_to_rule_out: int | None = None
    """Likewise that would rule out one of the margin; null where one is shown or ruled out, or no number does."""


class Recipe(Record):
    """This way of adapting against the untouched model: variance over items and seeds, which arms lend each other."""

    delta: float
    """Accuracy of the arm, the mean over seeds, minus that of the untouched model."""
    ci95: tuple[float, float]
    """Over items and seeds."""
    ci95_adjusted: tuple[float, float]
    """The same, simultaneous over all arms of the model and task."""
    sign_only: bool = False
    """Holm's method shows the sign, and the adjusted interval no size: its near end was set to 0."""
    p: float
    """Agrees with `ci95`: below 5% exactly where that leaves out 0."""
    p_adjusted: float
    """Holm's, within the model and task; of an arm without seeds its checkpoint's p is in the family."""
    mde: float
    """Minimum detectable effect: found significant four times in five; approximate."""
    seeds: int
    """How many."""
    df_seeds: float | None = None
    """Degrees of freedom of the pooled variance between seeds; null where no arm's seeds differ."""
    items_needed: int | None = None
    """Test items that would show this difference, if scores stay as they are; null: it is shown, or no number does."""
    seeds_needed: int | None = None
    """Likewise seeds of every arm."""
    items_to_rule_out: int | None = None
    """Test items that would rule out a difference of the margin; null where one is shown or ruled out, or no number
    does."""
    seeds_to_rule_out: int | None = None
    """Likewise seeds of every arm."""
    seed_ratio: float = 1.0
    """Variance of this arm's accuracy between its seeds, over what all arms together say that it is."""
    seeds_stand_out: bool = False
    """Whether that variance is more than chance beside the other arms', at 1%: the interval may be too narrow."""


class VersusZeroShot(Record):
    """The difference to the untouched model with the same prompt."""

    verdict: Verdict
    """`docs/verdicts.md` says what each word means."""
    margin: float
    """Differences below it would not change the choice."""
    artifact: Artifact
    """The first seed's checkpoint; the verdict is about it where `recipe` is null."""
    recipe: Recipe | None = None
    """Over seeds; the verdict is about it. Null where this arm, or all arms together, have too few of them."""

    @property
    def decisive(self) -> Artifact | Recipe:
        """What the verdict is from."""
        return self.recipe or self.artifact


class RetentionTask(Record):
    """A general task, before and after."""

    score: float
    """Accuracy after, in this task's own scale."""
    delta: float
    """After minus before."""
    ci95: tuple[float, float]
    """Of the delta: Tango's score interval."""
    at_chance: bool = False
    """The untouched model is not above chance on it: it has no part in the mean."""


class Retention(Record):
    """What is left of general abilities."""

    mean: float | None
    """Over the tasks where the untouched model is above chance, chance at 0 and all right at 1."""
    delta: float | None
    """After minus before, of the mean."""
    ci95: tuple[float, float] | None
    """Of the delta, over items."""
    verdict: Verdict
    """`harm`: forgetting beyond the tolerance is shown, or that fewer answers are whole turns by more than it;
    `no_difference`: forgetting beyond the tolerance is ruled out; else `undecided`."""
    bits_per_byte: float | None
    """Of general text, after; lower is better."""
    bits_per_byte_delta: float | None
    """Worse is positive."""
    bits_per_byte_ci95: tuple[float, float] | None = None
    """Of the delta, over texts."""
    kl: float | None = None
    """KL(untouched || adapted), nats a token, over all texts of `divergence`; 0 where nothing moved."""
    kl_ci95: tuple[float, float] | None = None
    """Of it, over texts."""
    kl_texts: dict[str, float] = Field(default_factory=dict)
    """By kind of text, `general` and `chat`; of chat the answers alone."""
    chat_format: float | None = None
    """Share of answers to general instructions that are whole turns, after: they end by themselves, are not empty, run
    into no loop and hold no mark of the chat template. Null where none was asked for."""
    chat_format_delta: float | None = None
    chat_format_ci95: tuple[float, float] | None = None
    """Of the delta: Tango's score interval."""
    tasks: dict[str, RetentionTask]
    """By name; general text stands in the bits per byte."""
    seed: int | None = None
    """Of the checkpoint that the numbers are of: the first that is shown to forget, else the first. Null for arms that
    only prompt, and in records of before."""
    seeds: dict[str, Verdict] = Field(default_factory=dict)
    """By seed, what is shown of its checkpoint; the verdict is `harm` where one of them is, `no_difference` where all
    are."""


class OutOfDistribution(Record):
    """Another task that the arm was not trained for."""

    task: str
    n_test: int
    """Items, not items x seeds."""
    accuracy: float
    """Mean over seeds."""
    ci95: tuple[float, float]
    """Over items, by Wilson; over items and seeds where the verdict is about the recipe."""
    vs_zero_shot: VersusZeroShot | None
    """To the untouched model on the same items, in the family of all arms on this task. Null for the trivial arm and
    for zero-shot itself."""


class ArmCost(Record):
    """Of one seed, the mean over seeds."""

    trainable_params: int
    train_tokens: int
    """Prompt and completion tokens that training read."""
    train_seconds: float
    tune_seconds: float | None = None
    """Of all tuning candidates of the arm, training and validation; null where it was not tuned."""
    tune_tokens: int | None = None
    """Prompt and completion tokens that their training read."""
    tune_answer_tokens: int | None = None
    """Prompt and output tokens of their answers to validation items."""
    eval_seconds: float
    """Of the target's test items."""
    tokens_per_second: float | None
    """In training."""
    peak_memory_bytes: int
    """The highest of training and of evaluation on the target, over seeds."""
    artifact_bytes: int
    """On disk: the adapter, or the whole model."""
    prompt_tokens_per_query: float
    """Shots included."""
    output_tokens_per_query: float
    """For multiple choice the tokens of all choices, which are scored and not generated."""
    shipped_bytes: int | None = None
    """Of the weights on a device: for arms that prompt the file or files given, else all weights, adapters merged, in
    the precision of the evaluation. Null where it is not known."""


class TuningCandidate(Record):
    """A value of the tuned setting that was tried, and what it came to on validation items."""

    rung: int
    """Of the search, from 0; each is a training of its own from the untouched model."""
    setting: str
    value: str | int | float
    train_rows: int | None
    """Training examples that it read; null where the arm prompts."""
    n: int
    """Validation items."""
    accuracy: float | None
    """On them; null where the candidate failed."""
    validation_loss: float | None
    """On them, in nats a completion token."""
    seconds: float
    """Of its training and validation."""
    tokens: int
    """Prompt and completion tokens that its training read."""
    answer_tokens: int = 0
    """Prompt and output tokens of its answers to validation items."""
    diverged: bool = False
    chosen: bool = False
    """Whether it decided the arm's setting: the best of the last rung."""


class ArmResult(Record):
    """An arm on a model and task."""

    arm: str
    """Its name, unique in the study."""
    method: str
    model: str
    """With the quantisation it started from."""
    params: int
    """Weights of the model, tied ones counted once."""
    task: str
    hyperparameters: dict[str, str | int | float]
    """All settings of the method, defaults included."""
    rescue_of: str | None = None
    """The arm whose harm it was to remove: added after the first verdicts, in a family of its own, exploratory."""
    seeds: tuple[int, ...]
    """Those that are done."""
    n_test: int
    """Items, not items x seeds."""
    n_questions: int | None = None
    """All that is asked in them, where test items are groups of questions."""
    sampled: Sampled | None = None
    """How answers to test items were drawn, of whose scores accuracy is then the mean; null: the likeliest alone."""
    accuracy: float
    """By the rule that decides; mean over seeds."""
    ci95: tuple[float, float]
    """Over items, by Wilson; over items and seeds where the verdict is about the recipe."""
    accuracy_strict: float | None
    """In the stated format; null for multiple choice, and where no format is taught."""
    accuracy_raw: float | None
    """Multiple choice by log-likelihood that is not normalised by length; null for generation."""
    format_rate: float | None
    """Share of answers in the stated format; null for multiple choice, and where no format is taught."""
    macro_f1: float | None = None
    """Mean over the labels of F1, for classification; mean over seeds."""
    fields: dict[str, float] = Field(default_factory=dict)
    """For JSON answers: by field, the share of items in which it matches."""
    rule: str = ""
    """How accuracy is decided, in words."""
    vs_zero_shot: VersusZeroShot | None
    """Null for the trivial arm and for zero-shot itself."""
    retention: Retention | None
    """Null for the trivial arm, and where no retention task was asked for."""
    out_of_distribution: tuple[OutOfDistribution, ...]
    cost: ArmCost
    outcomes: dict[Outcome, int]
    """Items x seeds, and x drawn answers of each."""
    truncated_rate: float
    """Share of answers that the limit of new tokens ended, right ones included."""
    skipped_too_long: int = 0
    """Training examples longer than the model's context, left out."""
    diverged_seeds: tuple[int, ...] = ()
    """Scored at their best validation checkpoint."""
    shots: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """By seed: ids of the solved examples in the prompt."""
    tuning: tuple[TuningCandidate, ...] = ()
    """What was tried to choose its setting, in order; empty where it was not tuned."""
