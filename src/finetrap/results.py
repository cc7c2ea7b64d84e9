"""The study's machine-readable answer: what results.json holds.

All scores, rates and differences are fractions. A delta is adapted minus untouched. What does not apply, or was not
measured, is null.
"""

from collections.abc import Iterator
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field, PrivateAttr

from finetrap.arm_result import (
    ArmCost,
    ArmResult,
    Artifact,
    OutOfDistribution,
    Recipe,
    Retention,
    RetentionTask,
    TuningCandidate,
    Verdict,
    VersusZeroShot,
)
from finetrap.errors import StudyError
from finetrap.records import Environment, Record
from finetrap.scoring import Outcome

if TYPE_CHECKING:
    import pandas

__all__ = [
    "SCHEMA",
    "ArmCost",
    "ArmResult",
    "Artifact",
    "ClaimResult",
    "ClaimVerdict",
    "Comparison",
    "Estimand",
    "Failure",
    "OutOfDistribution",
    "Recipe",
    "Recommendation",
    "Rescue",
    "Results",
    "Retention",
    "RetentionTask",
    "TuningCandidate",
    "Verdict",
    "VersusZeroShot",
]

SCHEMA = "finetrap/results/1"

Estimand = Literal["artifact", "recipe"]
"""This checkpoint, over items; or this way of adapting, over items and seeds."""

ClaimVerdict = Literal["supported", "refuted", "undetermined"]


class Comparison(Record):
    """A pair of arms, exploratory: outside the corrected family."""

    model: str
    task: str
    a: str
    b: str
    delta: float
    """Accuracy of a minus b."""
    ci95: tuple[float, float]
    """Tango's score interval of the first seeds; of a recipe, over items and seeds."""
    p: float
    """McNemar, the larger of mid-p and score; of a recipe, the one that agrees with the interval."""
    p_adjusted: float | None
    """Null: pairs are outside the corrected family."""
    verdict: Literal["gain", "harm", "undecided", "floor"]
    """Of a against b, by the uncorrected p at 5%; `floor`: neither beats the trivial arm."""
    estimand: Estimand = "artifact"
    """`recipe` where both arms have the seeds for it."""


class Rescue(Record):
    """What came of an arm that was to remove another one's harm; exploratory."""

    arm: str
    of: str
    """The arm that did harm."""
    way: Literal["half", "lower", "replay"]
    """Half-way back to the untouched model, a lower learning rate, or general text mixed in."""
    removes: bool | None
    """True: the harm that was shown is ruled out; false: harm is shown again; null: undecided."""
    sentence: str
    """The same with numbers, for a person."""


class Recommendation(Record):
    """What to do with a model on a task."""

    model: str
    task: str
    method: str
    """The arm to take, or `undecided`, or `floor`."""
    why: tuple[str, ...]
    """The evidence, a sentence each."""
    confidence: float | None
    """That the arm loses at most `regret_upper` against the best: of this checkpoint, or of this recipe."""
    regret_upper: float | None
    """Of the recommended arm, or of the leader where undecided."""
    next_step: str
    """What to do now, or what would decide."""
    leader: str | None = None
    """The arm with the highest accuracy that was not dropped."""
    dropped: dict[str, str] = Field(default_factory=dict)
    """Arm to the reason why it is out."""
    rescues: tuple[Rescue, ...] = ()
    """Of the arms that did harm, where the study was to rescue them."""
    estimand: Estimand = "artifact"
    """What `regret_upper` is about: `recipe` where arms have seeds; an arm without them is in it as its checkpoint."""
    prior_advice: str | None = None
    """What others found for models of this kind, no evidence of this study; only where it is undecided."""
    look: int = 1
    """Which answer this is to tests of the same arms: raised when items, seeds or settings are changed after one."""
    alpha: float = 0.05
    """Level of this look's tests."""

    @property
    def undecided(self) -> bool:
        """Whether no arm is recommended, and the model is not at the floor either."""
        return self.method == "undecided"


class ClaimResult(Record):
    """What the study's records say of a claim."""

    id: str
    says: str
    verdict: ClaimVerdict
    """`refuted`: the contrary is shown; a claim for which there is only no evidence is `undetermined`."""
    p: float | None
    """Of the verdict's direction, two-sided; null where there is nothing to judge by."""
    p_adjusted: float | None
    """Holm's, over the claims of the study; supported or refuted where it is below 5%, or the level of this look."""
    evidence: tuple[str, ...]
    """In sentences: the difference for each model and task, and what it comes to."""


class Failure(Record):
    """A trial that failed; it has no score."""

    trial: str
    """Name of its folder, where failure.json has the traceback."""
    error: str
    """In one line."""


class Results(Record):
    """The answer of a study."""

    schema_: str = Field(default=SCHEMA, alias="schema")
    """Raised when a key changes its meaning or goes."""
    study: dict[str, object]
    """Name, protocol version, settings as in a study file, command, when it finished, train rows dropped, trials."""
    environment: Environment
    """Of the machine that planned the study last."""
    arms: tuple[ArmResult, ...]
    """One for each arm on each model and task."""
    comparisons: tuple[Comparison, ...]
    """Pairs of arms, exploratory."""
    recommendations: tuple[Recommendation, ...]
    """One a model and task."""
    claims: tuple[ClaimResult, ...] = ()
    """Those that the study states."""
    failures: tuple[Failure, ...]
    """Trials that failed and were not done since."""
    warnings: tuple[str, ...]
    """What a reader has to know before trusting a number."""
    _folder: Path | None = PrivateAttr(default=None)

    def __repr__(self) -> str:
        # All of it is to_json(); this is what a person reads at a prompt.
        from finetrap.report.table import groups, headline

        answers = [
            f"{task} with {model}: {', '.join(arm.arm for arm in arms)}. {headline(recommendation)}"
            for model, task, arms, recommendation in groups(self)
        ]
        return f"<Results of {self.study.get('name')}: {' '.join(answers)}>"

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str:
        from finetrap.report.notebook import results_html

        return results_html(self, self.report() if self._folder else None)

    def within(self, folder: Path) -> "Results":
        """The same, knowing the study's folder."""
        self._folder = folder
        return self

    def to_json(self) -> str:
        """What results.json holds."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"

    @staticmethod
    def json_schema() -> dict[str, Any]:
        """The JSON Schema of results.json."""
        return Results.model_json_schema(by_alias=True, mode="serialization")

    def table(self) -> str:
        """The table that the command line prints, as plain text."""
        from finetrap.report.table import plain_table

        return plain_table(self)

    def to_pandas(self) -> "pandas.DataFrame":
        """One row an arm; a column for each number or text, `cost.train_seconds` by name, intervals as low and high."""
        import pandas

        frame = pandas.DataFrame([dict(_flat("", arm.model_dump(mode="json"))) for arm in self.arms])
        # Where one arm lacks a part that another has, the part's own name is left, and empty.
        parts = [name for name in frame if any(str(other).startswith(f"{name}.") for other in frame)]
        return frame.drop(columns=parts)

    def report(self) -> Path:
        """The report that goes with these results, a page for a browser; report.md beside it says the same.

        Raises:
            StudyError: they were not made by a study in a folder.
        """
        if self._folder is None:
            raise StudyError("these results were read from a file; `finetrap report DIR` writes a study's report.")
        return self._folder / "report.html"

    def recommend(self) -> tuple[Recommendation, ...]:
        """One recommendation a model and task."""
        return self.recommendations


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What stands in a record, by dotted name."""
    if name == "outcomes":
        value = {**dict.fromkeys(get_args(Outcome), 0), **value}
    if isinstance(value, list) and "ci95" in name:
        value = dict(zip(("low", "high"), value, strict=True))
    if name == "tuning":
        return  # a table of its own
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = {record["task"]: record for record in value}
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else key, inner)
    elif isinstance(value, list):
        yield name, ", ".join(map(str, value))
    else:
        yield name, nan if value is None else value
