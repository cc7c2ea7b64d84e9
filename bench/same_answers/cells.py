"""What a cell of the matrix is, and what comes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

TIE = 1e-4
"""Two best logits as close as that may swap by rounding."""
RELATIVE = 1e-5
"""How far losses and gradients in float32 may lie apart."""


class Outcome(NamedTuple):
    """How far two ways of computing the same thing lie apart."""

    items: int
    tokens: int
    differing: int
    """Items that differ by more than rounding explains."""
    worst_gap: float | None = None
    """Of differing tokens, the reference's two best logits: the largest distance; 0 where no token differs."""
    worst_relative: float | None = None
    """Of numbers, the largest relative difference."""
    passed: bool = False
    says: str = ""
    """What differed, in words; or what else was measured."""
    counts: dict[str, int] | None = None
    """Of items, where several things are counted."""


@dataclass(frozen=True)
class Cell:
    """One comparison."""

    what: str
    model: str
    method: str
    compute: Callable[[], Outcome]
    rows: int | None = None
    """In a batch."""
    shots: int | None = None
    adapter: str | None = None
    """`merged`, or `in place`; None where there is none."""

    @property
    def key(self) -> str:
        """What tells it from every other."""
        parts = [self.what, self.model, self.method]
        parts += [f"{self.rows} rows"] * (self.rows is not None) + [f"{self.shots} shots"] * (self.shots is not None)
        return " / ".join([*parts, *filter(None, [self.adapter])])


def of_numbers(differences: dict[str, float], *, tokens: int, limit: float = RELATIVE, says: str = "") -> Outcome:
    """The outcome of relative differences, by what they are of."""
    worst = max(differences, key=lambda name: _not_nan(differences[name]))
    over = [name for name, value in differences.items() if not value <= limit]
    said = f"{worst}: {differences[worst]:.2g}" if over else says
    return Outcome(len(differences), tokens, len(over), None, differences[worst], not over, said)


def _not_nan(value: float) -> float:
    return value if value == value else float("inf")
