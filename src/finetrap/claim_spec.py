"""Claims as a study states them: what is said of its arms, in a form that its records can support or refute."""

import re
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from finetrap.errors import StudyError, unknown
from finetrap.user_input import Input

Quantifier = Literal["all", "any", "most", "mean"]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMB]?)", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


def as_tuple(value: object) -> tuple[object, ...]:
    """A list as it is; one value for a list of one."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _size(value: object) -> object:
    """300M, 1.5B or a plain number, in parameters."""
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    return round(float(found[1]) * _UNITS[found[2].upper()]) if found else value


Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]
Size = Annotated[int, BeforeValidator(_size), Field(gt=0)]


class ModelChoice(Input):
    """Which of the study's models a claim is about; without any condition, all of them."""

    names: Names = ()
    """As the study names them."""
    below: Size | None = None
    """Only models with fewer parameters: a number, or one such as 300M or 1B."""
    above: Size | None = None
    """Only models with more parameters."""
    aligned: bool | None = None
    """Only models that were tuned to follow instructions (true), or only base models (false)."""

    def holds(self, name: str, parameters: int, *, aligned: bool) -> bool:
        """Whether a model is meant."""
        return (
            (not self.names or name in self.names)
            and (self.below is None or parameters < self.below)
            and (self.above is None or parameters > self.above)
            and (self.aligned is None or aligned == self.aligned)
        )

    def __str__(self) -> str:
        conditions = [
            *([f"called {' or '.join(self.names)}"] if self.names else ()),
            *([f"below {self.below / 1e6:g}M parameters"] if self.below else ()),
            *([f"above {self.above / 1e6:g}M parameters"] if self.above else ()),
            *([] if self.aligned is None else ["that is aligned" if self.aligned else "that is a base model"]),
        ]
        return ", ".join(conditions) or "at all"


def _choice(value: object) -> object:
    try:
        return ModelChoice.model_validate({"names": value} if isinstance(value, str | list | tuple) else value)
    except StudyError as error:
        raise error.within("models") from None


class _Claim(Input):
    model_config = ConfigDict(serialize_by_alias=True)

    id: Annotated[str, BeforeValidator(str)] = Field(min_length=1)
    """Unique in the study."""
    says: str = Field(min_length=1)
    """The claim as a sentence, for people."""
    a: str
    """An arm."""
    b: str
    """The arm that it is compared with."""
    quantifier: Quantifier = Field(default="all", alias="for")
    """Of the models and tasks chosen: all, any, most (more than half), or mean, which is of these models."""
    models: Annotated[ModelChoice, BeforeValidator(_choice)] = ModelChoice()
    """Names, or conditions on size and alignment; by default every model of the study."""
    tasks: Names = ()
    """Target tasks; by default every one."""

    def check(self, arms: Collection[str], models: Collection[str], tasks: Collection[str]) -> None:
        """Check that what the claim names is in the study.

        Raises:
            StudyError: it is not; the message names the nearest.
        """
        for field in ("a", "b"):
            name = getattr(self, field)
            if name not in arms:
                raise unknown("arm", name, arms).at(field)
        if self.a == self.b:
            raise StudyError(f"'b': the claim compares the arm '{self.a}' with itself.").at("b")
        for index, name in enumerate(self.models.names):
            if name not in models:
                raise unknown("model", name, models).at("models", index)
        for index, name in enumerate(self.tasks):
            if name not in tasks:
                raise unknown("task", name, tasks).at("tasks", index)


class Ordering(_Claim):
    """Arm `a` is above arm `b` in accuracy."""

    type: Literal["ordering"]


class Equivalence(_Claim):
    """Arms `a` and `b` differ by less than a margin."""

    type: Literal["equivalence"]
    margin: float = Field(gt=0, lt=1)
    """In accuracy, a fraction."""


class Interaction(_Claim):
    """Arm `a` is further ahead of arm `b` on the first task than on the second: a difference of differences."""

    type: Literal["interaction"]
    tasks: Names = Field(min_length=2, max_length=2)
    """The task that favours `a`, then the one that favours `b`."""

    def check(self, arms: Collection[str], models: Collection[str], tasks: Collection[str]) -> None:
        super().check(arms, models, tasks)
        if self.tasks[0] == self.tasks[1]:
            raise StudyError(f"'tasks': the claim compares the task '{self.tasks[0]}' with itself.").at("tasks")


Claim = Annotated[Ordering | Equivalence | Interaction, Field(discriminator="type")]
TYPES: dict[str, type[Ordering | Equivalence | Interaction]] = {
    "ordering": Ordering,
    "equivalence": Equivalence,
    "interaction": Interaction,
}


def make_claim(value: object) -> Claim:
    """A claim out of the mapping that a study file holds.

    Raises:
        StudyError: it is none.
    """
    if isinstance(value, Ordering | Equivalence | Interaction):
        return value
    kind: Any = value.get("type") if isinstance(value, dict) else None
    if kind is None:
        raise StudyError(f"a claim is a mapping with `type: {'|'.join(TYPES)}`, `id:`, `says:`, `a:` and `b:`.")
    if kind not in TYPES:
        raise unknown("type of claim", str(kind), TYPES).at("type")
    return TYPES[kind].model_validate(value)


def check_claims(
    claims: Sequence[Claim], *, arms: Collection[str], models: Collection[str], tasks: Collection[str]
) -> None:
    """Check that ids are unique and that arms, models and tasks are there.

    Raises:
        StudyError: one is not.
    """
    for index, claim in enumerate(claims):
        if any(claim.id == other.id for other in claims[:index]):
            raise StudyError(f"two claims have the id '{claim.id}'; give one another.").at("claims", index)
        try:
            claim.check(arms, models, tasks)
        except StudyError as error:
            raise error.within("claims", index) from None
