"""The recipe estimand: a way of adapting, over items and seeds, which are crossed random factors.

Every arm is scored on the same items with several seeds (Obuchowski and Rockette 1995; Hillis 2007; Owen 2007). Two
or three seeds say little of one arm's own seed variance, so that arms lend each other theirs (`pool_seeds`), and no
arm's is put below what it shows by itself. docs/decisions/0008-recipe-statistics.md has the choices.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import fdtri, ndtri, stdtr, stdtrit

from finetrap.stats.artifact import ALPHA, Interval, Scores, item_variance, wilson

KAPPA = 1.75
"""Least weight of an arm's own seed variance beside the pooled one: calibrated by simulation, not derived."""
POWER = float(ndtri(0.8))
"""Standard errors between the critical value and an effect that is found four times in five."""


class Components(NamedTuple):
    """Mean squares of one arm's table, two-way, without replication."""

    n: int
    seeds: int
    accuracy: float
    residual: float
    """R, item x seed: one answer a cell, so with the answer's own chance in it."""
    between: float
    """M, the variance between seeds of the accuracy; it expects the seed component + R / n."""

    @property
    def smoothed(self) -> float:
        """Accuracy with one item right and one wrong put in, so that its p (1 - p) is above 0."""
        return (self.n * self.accuracy + 1) / (self.n + 2)

    def pooled_between(self, pool: "SeedPool") -> float:
        """What M would be by the pooled seed component: v."""
        return pool.scale * self.smoothed * (1 - self.smoothed) + self.residual / self.n


def components(table: Scores) -> Components:
    """Mean squares of `table` (n, S), S at least 2.

    Raises:
        ValueError: the table has no second seed.
    """
    if not has_seeds(table):
        raise ValueError(
            f"a table of shape {table.shape} has no seed variance; it takes items down, 2 or more seeds across."
        )
    n, seeds = table.shape
    of_items, of_seeds, accuracy = table.mean(axis=1), table.mean(axis=0), float(table.mean())
    interaction = table - of_items[:, None] - of_seeds + accuracy
    return Components(
        n=n,
        seeds=seeds,
        accuracy=accuracy,
        residual=_above_rounding(float((interaction**2).sum()) / max(1, (n - 1) * (seeds - 1))),
        between=_above_rounding(float(((of_seeds - accuracy) ** 2).sum()) / (seeds - 1)),
    )


class SeedPool(NamedTuple):
    """What the arms of a model and task say together of the variance between seeds."""

    scale: float
    """lambda: the seed component over p (1 - p)."""
    df: float
    """nu: Satterthwaite's degrees of freedom; infinite where no seed of any arm differs from another."""


def pool_seeds(tables: Iterable[Scores]) -> SeedPool:
    """The pooled seed component of arms (n, S); those without a second seed, (n,) or (n, 1), lend nothing."""
    arms = [components(table) for table in tables if has_seeds(table)]
    spread = sum((arm.seeds - 1) * (arm.between - arm.residual / arm.n) for arm in arms)
    weight = sum((arm.seeds - 1) * arm.smoothed * (1 - arm.smoothed) for arm in arms)
    pool = SeedPool(max(0.0, spread / weight) if arms else 0.0, math.inf)
    variances = [(arm.seeds - 1, arm.pooled_between(pool)) for arm in arms]
    squares = sum(df * v**2 for df, v in variances)
    return pool._replace(df=sum(df * v for df, v in variances) ** 2 / squares) if squares else pool


class Difference(NamedTuple):
    """Of two arms, a - b, paired by item."""

    delta: float
    """As observed: the mean over items and seeds."""
    centre: float
    """The middle of the interval: `delta` with two pseudo-items in it, +1 and -1 (Bonett and Price 2012)."""
    item_variance: float
    seed_variance: float
    item_df: float
    seed_df: float

    def half_width(self, alpha: float) -> float:
        """Half of the two-sided interval: each variance with the square of its own t (Banerjee 1960)."""
        squares = _t_squared(self.item_df, alpha) * self.item_variance
        if self.seed_variance:
            squares += _t_squared(self.seed_df, alpha) * self.seed_variance
        return math.sqrt(squares)

    def interval(self, alpha: float = ALPHA) -> Interval:
        """Two-sided at level `alpha`, within [-1, 1]; it leaves out 0 exactly where p < alpha."""
        half = self.half_width(alpha)
        return Interval(max(-1.0, self.centre - half), min(1.0, self.centre + half))

    @property
    def standard_error(self) -> float:
        """Over items and seeds."""
        return math.sqrt(self.item_variance + self.seed_variance)

    @property
    def p(self) -> float:
        """Two-sided: the level at which the interval just reaches 0."""
        distance = abs(self.centre)
        if distance < 1e-12 or self.item_variance == 0:
            return 1.0
        # With one t for both variances, the two degrees of freedom give the two ends between which p lies.
        dfs = (self.item_df, self.seed_df if self.seed_variance else self.item_df)
        low, high = sorted(2 * float(stdtr(df, -distance / self.standard_error)) for df in dfs)
        if low == high or high < _LEAST:
            return max(_LEAST, high)
        low, high = max(_LEAST, low * (1 - 1e-6)), min(1.0, high * (1 + 1e-6))

        def excess(log_alpha: float) -> float:
            return self.half_width(math.exp(log_alpha)) - distance

        if excess(math.log(low)) <= 0:
            return low  # p is below what a float can tell from 0
        return math.exp(brentq(excess, math.log(low), math.log(high), xtol=1e-12))

    def mde(self, alpha: float = ALPHA) -> float:
        """The true difference that is found significant four times in five; approximate, as it moves the variance."""
        return self.half_width(alpha) + POWER * self.standard_error


def difference(
    a: Scores,
    b: Scores,
    pool: SeedPool | None = None,
    *,
    kappa: float = KAPPA,
    groups: Sequence[str] | None = None,
) -> Difference:
    """Compare two arms, a - b, over items and, with a `pool`, over the seeds of what has seeds.

    `a` and `b` are (n,), a fixed column as zero-shot or a checkpoint, or (n, S). Items that belong together, as the
    questions on one text, have the same entry of `groups` (n,).

    Raises:
        ValueError: the two have not the same items, or `groups` not one entry an item.
    """
    if len(a) != len(b) or (groups is not None and len(groups) != len(a)):
        raise ValueError(f"scores of {len(a)} and of {len(b)} items do not pair.")
    return paired(of_items(a), of_items(b), seed_variance(a, pool, kappa) + seed_variance(b, pool, kappa), pool, groups)


def of_items(table: Scores) -> Scores:
    """One score an item, (n,): the mean over its seeds."""
    return table if table.ndim == 1 else table.mean(axis=1)


def paired(
    a: Scores, b: Scores, seed_variance: float, pool: SeedPool | None, groups: Sequence[str] | None = None
) -> Difference:
    """`difference` of columns (n,) that are means over seeds, where the seed variance is known."""
    n = len(a)
    columns = a - b
    delta = float(columns.mean())
    centre, variance = item_variance(columns)
    df = n - 1
    if groups is not None:
        of_group = np.unique(np.asarray(groups), return_inverse=True)[1]
        sums = np.bincount(of_group, weights=columns - delta)
        df = len(sums) - 1
        variance = (df + 1) / max(1, df) * float((sums**2).sum()) / n**2 + 2 / (n + 2) ** 2
    return Difference(
        delta=delta,
        centre=centre,
        item_variance=variance,
        seed_variance=seed_variance,
        item_df=float(max(1, df)),
        seed_df=pool.df if pool is not None else math.inf,
    )


def seed_variance(table: Scores, pool: SeedPool | None, kappa: float) -> float:
    """Of an arm's mean over its seeds, beyond what the item term holds; an arm without seeds, or no pool: 0."""
    if pool is None or not has_seeds(table):
        return 0.0
    arm = components(table)
    guarded = max(arm.pooled_between(pool), kappa * arm.between)
    return max(0.0, guarded / arm.seeds - arm.residual / (arm.n * arm.seeds))


def seeds_stand_out(table: Scores, others: Iterable[Scores]) -> bool:
    """Whether an arm varies more between its seeds than the other arms say: M / v above the 99% point of F(S - 1, nu).

    The pool is of the others alone: within one that holds the arm itself, M / v can hardly exceed the number of arms.
    """
    arm, pool = components(table), pool_seeds(others)
    return seed_ratio(table, pool) > float(fdtri(arm.seeds - 1, min(pool.df, 1e6), 0.99))


def seed_ratio(table: Scores, pool: SeedPool) -> float:
    """How much more an arm varies between its seeds than the pool says, M / v; 1 where both are 0."""
    arm = components(table)
    pooled = arm.pooled_between(pool)
    return arm.between / pooled if pooled else 1.0


def accuracy_interval(table: Scores, pool: SeedPool | None, *, alpha: float = ALPHA) -> Interval:
    """Of one arm's accuracy: Wilson's (1927) with the design effect of items and seeds.

    Without a pool, or seeds, over items alone: Wilson's own where scores are 0 and 1.
    """
    accuracy, n = float(table.mean()), len(table)
    seeds = seed_variance(table, pool, KAPPA)
    if (pool is None or not has_seeds(table)) and np.isin(table, (0, 1)).all():
        return wilson(accuracy, n, alpha=alpha)
    p = (n * accuracy + 1) / (n + 2)
    spread = float(((of_items(table) - accuracy) ** 2).sum())
    items = ((spread + n * accuracy**2 + 1) / (n + 2) - p**2) / (n + 2)
    square = _t_squared(max(1, n - 1), alpha) * items
    if pool is not None and seeds:
        square += _t_squared(pool.df, alpha) * seeds
    c = square / (p * (1 - p))
    middle = (accuracy + c / 2) / (1 + c)
    half = math.sqrt(c * accuracy * (1 - accuracy) + c**2 / 4) / (1 + c)
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


_LEAST = 1e-300


def _above_rounding(square: float) -> float:
    # Equal seeds have no variance: what a mean of thirds leaves would give the pool degrees of freedom of its own.
    return square if square > 1e-24 else 0.0


def has_seeds(table: Scores) -> bool:
    """Whether a table has a second seed."""
    return table.ndim == 2 and table.shape[1] > 1


def _t_squared(df: float, alpha: float) -> float:
    return float(stdtrit(df, alpha / 2)) ** 2
