"""The one dial: how many examples, items, seeds and tuning candidates a study has, by name or by the time there is."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from finetrap.errors import StudyError, unknown

if TYPE_CHECKING:
    from finetrap.config import Study

FILL = 0.8
"""Share of a given time that is planned with: an estimate is one."""


@dataclass(frozen=True)
class Size:
    """What follows from a size, by the study's names for it. What the study states itself comes before."""

    tune: str
    limit_train: int
    limit_validation: int
    limit_test: int | None
    limit_retention: int
    seeds: int
    epochs: int

    def derived(self, given: Collection[str]) -> dict[str, Any]:
        """Its settings but for those that are `given`."""
        values = {**asdict(self), "seeds": tuple(range(self.seeds))}
        return {key: value for key, value in values.items() if key not in given}


LADDER = (
    Size("quick", 64, 16, 50, 50, 1, 1),
    Size("quick", 256, 64, 200, 100, 1, 1),
    Size("quick", 512, 128, 300, 100, 2, 1),
    Size("standard", 1_000, 200, 500, 200, 3, 2),
    Size("standard", 3_000, 300, 1_000, 200, 3, 2),
    Size("thorough", 10_000, 500, None, 500, 5, 3),
)
"""From small to large: what a duration chooses among."""
SIZES = {"quick": LADDER[1], "standard": LADDER[3], "thorough": LADDER[5]}


def check_size(size: str) -> str:
    """The size, if it is a name or a duration.

    Raises:
        StudyError: it is neither.
    """
    if size not in SIZES and not seconds_of(size):
        raise unknown("size", size, (*SIZES, "45m", "2h"))
    return size


def seconds_of(size: str) -> float | None:
    """The seconds of a duration (`45m`, `1.5h`); None of what is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(m|h)", size)
    return float(found[1]) * (60 if found[2] == "m" else 3600) if found else None


def with_size(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a study with what follows from the name of their size."""
    size = values.get("size")
    derived = SIZES[size].derived(values) if isinstance(size, str) and size in SIZES else {}
    return {**derived, **values}


def fit(size: str, given: Collection[str], seconds: Callable[[dict[str, Any]], float]) -> dict[str, Any]:
    """The settings of the largest size that fits into the duration `size`, but for those that are `given`.

    `seconds` estimates a study with such settings.

    Raises:
        StudyError: none fits.
    """
    limit = seconds_of(size)
    assert limit is not None
    for step in reversed(LADDER):
        derived = step.derived(given)
        taken = seconds(derived)
        if taken <= FILL * limit:
            return derived
    raise StudyError(
        f"--size {size} is too short: the smallest study takes roughly {in_words(taken)}. Give more time (a fifth of "
        f"it is kept back), leave arms or tasks out, or state limits (--limit-train, --limit-test)."
    )


def sized_text(study: "Study", seconds: float) -> str:
    """What a study's size came to, what it gave up, and how long it will take, for the user before it starts."""
    names = [field.name for field in fields(Size)]
    now = {name: getattr(study, name) for name in names} | {"seeds": len(study.seeds)}
    most = asdict(SIZES["thorough"])
    stated = ", ".join(f"{name} {_shown(now[name])}" for name in names)
    less = [f"{name} {_shown(now[name])} of {_shown(most[name])}" for name in names if _is_less(now[name], most[name])]
    text = f"size {study.size}: {stated}; roughly {in_words(seconds)} left"
    return f"{text}\ngiven up against thorough: {', '.join(less)}" if less else text


def _shown(value: Any) -> str:
    return "all" if value is None else str(value)


def _is_less(now: Any, most: Any) -> bool:
    """Whether a setting is below the thorough one; None is all there is."""
    if isinstance(most, str):
        return bool(now != most)
    return now is not None and (most is None or now < most)


def in_words(seconds: float) -> str:
    """A time as a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:,.0f} days"
