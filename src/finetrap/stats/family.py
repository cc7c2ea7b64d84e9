"""A family of comparisons: corrected tests and intervals, equivalence, and what would decide."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from finetrap.stats.artifact import ALPHA, Interval, Scores
from finetrap.stats.checkpoint import Discordant, beats
from finetrap.stats.recipe import KAPPA, POWER, Difference, SeedPool, components, difference, has_seeds, seed_variance


def above(table: Scores, trivial: Scores, pool: SeedPool | None = None) -> bool:
    """Whether an arm beats the trivial column (n,), one-sided at 5%: a gate in front of the tests, and no finding.

    Without a pool, or a second seed, it is the first seed's checkpoint that has to.
    """
    if pool is None or not has_seeds(table):
        return beats(table if table.ndim == 1 else table[:, 0], trivial)
    return difference(table, trivial, pool).interval(2 * ALPHA).low > 0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given (Holm 1979)."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def sign_only(interval: Interval, p_adjusted: float, positive: bool, *, alpha: float = ALPHA) -> tuple[Interval, bool]:
    """A simultaneous interval that agrees with Holm's test, and whether it had to be cut at 0 for that.

    Holm claims signs, not sizes: where it rejects and the interval holds 0, the near end is 0.
    """
    if p_adjusted >= alpha or interval.low > 0 or interval.high < 0:
        return interval, False
    return (Interval(0.0, interval.high) if positive else Interval(interval.low, 0.0)), True


def adjusted(difference: Difference, p_adjusted: float, family: int, *, alpha: float = ALPHA) -> tuple[Interval, bool]:
    """The interval simultaneous over a `family` of arms, level alpha / family, and whether only its sign is claimed."""
    return sign_only(difference.interval(alpha / max(1, family)), p_adjusted, difference.centre > 0, alpha=alpha)


def equivalent(difference: Difference | Discordant, margin: float, *, alpha: float = ALPHA) -> bool:
    """Whether the difference is shown to be within `margin`: two one-sided tests at `alpha` (Schuirmann 1987)."""
    low, high = difference.interval(2 * alpha)
    return -margin < low and high < margin


class Needed(NamedTuple):
    """What would decide, one of the two changed alone; None where no number of it suffices."""

    items: int | None
    seeds: int | None


def needed(
    a: Scores, b: Scores, pool: SeedPool | None, *, target: float, alpha: float = ALPHA, kappa: float = KAPPA
) -> Needed:
    """Items, or seeds an arm, that would show a difference of `target` at two-sided level `alpha` four times in five.

    The variance of the difference with n' items and S' seeds is (A + E / S') / n' + G / S', and has to be the square
    of `target` over (half-width / standard error + 0.84). For "no difference", `target` is the margin less |delta|, at
    twice the level. It is a plan, not a promise: the ratio is today's, and shrinks as seeds are added. `a` and `b` are
    as in `difference`, and so is `kappa`; every arm with seeds is given the same new number of them.
    """
    now = difference(a, b, pool, kappa=kappa)
    if target <= 0:
        return Needed(None, None)
    ratio = now.half_width(alpha) / now.standard_error + POWER
    allowed = (target / ratio) ** 2
    # With the pseudo-items in it, so that two equal columns ask for more than no items at all.
    of_items = len(a) * now.item_variance
    tables = [table for table in (a, b) if pool is not None and table.ndim == 2 and table.shape[1] > 1]
    arms = [components(table) for table in tables]
    item = of_items - sum(arm.residual / arm.seeds for arm in arms)
    cell = sum(arm.residual for arm in arms)
    seed = sum(table.shape[1] * seed_variance(table, pool, kappa) for table in tables)
    items = allowed - now.seed_variance
    seeds = allowed - item / len(a)
    return Needed(
        items=math.ceil(of_items / items) if items > 0 else None,
        seeds=max(2, math.ceil((cell / len(a) + seed) / seeds)) if arms and seeds > 0 else None,
    )
