"""Coverage, width, family-wise error and power: every arm with seeds against zero-shot."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from finetrap.stats import accuracy_interval, adjusted, difference, holm, pool_seeds
from truth.world import Floats, World, rate, variance_of

ALPHA = 0.05
Z = float(ndtri(1 - ALPHA / 2))
BATCH = 400_000
"""Answers that are drawn at once: what a processor's cache holds."""


class Study(NamedTuple):
    """What one study says."""

    covers: list[bool]
    """Of each arm: the interval of its difference to zero-shot at 95% holds the truth."""
    covers_adjusted: bool
    """The simultaneous ones all do."""
    covers_pair: bool
    """The interval of the first arm's difference to the last one's."""
    covers_accuracy: list[bool]
    covers_by_item: list[bool]
    """The interval that takes the items of a cluster for independent; where there are no clusters, `covers`."""
    width: float
    """Mean half-width over the arms."""
    width_pair: float
    rejects: list[bool]
    """Of each arm, by Holm's test: the sign of its difference to zero-shot is claimed."""
    rejects_oracle: list[bool]
    """By Holm's test with the true variances."""
    rejects_common: list[bool]
    """By a two-sample z-test on the first seed, uncorrected."""
    mde: float
    """Minimum detectable effect of the last arm in its family."""


def studies(world: World, number: int, generator: np.random.Generator) -> Iterator[tuple[Floats, Floats]]:
    """Zero-shot's scores (n,) and the arms' (arms, n, seeds) of each study."""
    at_once = max(1, BATCH // (world.n * len(world.seed_sd) * world.seeds))
    for start in range(0, number, at_once):
        yield from zip(*world.draw(min(at_once, number - start), generator), strict=True)


def read(world: World, covariance: Floats, zero: Floats, tables: Floats) -> Study:
    """What the statistics of finetrap make of a study's scores."""
    truth, family = world.differences, len(tables)
    pool = pool_seeds(tables)
    groups = [str(item // world.cluster) for item in range(world.n)] if world.cluster > 1 else None
    found = [difference(table, zero, pool, groups=groups) for table in tables]
    holds = [low <= true <= high for true, (low, high) in zip(truth, (d.interval(ALPHA) for d in found), strict=True)]
    naive = holds
    if groups:
        plain = [difference(table, zero, pool).interval(ALPHA) for table in tables]
        naive = [low <= true <= high for true, (low, high) in zip(truth, plain, strict=True)]
    p_adjusted = holm([d.p for d in found])
    simultaneous = [adjusted(d, 1.0, family)[0] for d in found]
    pair = difference(tables[0], tables[-1], pool, groups=groups) if family > 1 else found[0]
    low, high = pair.interval(ALPHA)
    accuracies = [accuracy_interval(table, pool, alpha=ALPHA) for table in tables]

    sd = np.array([np.sqrt(variance_of(covariance, 0, arm)) for arm in range(1, family + 1)])
    z = np.abs(tables.mean(axis=(1, 2)) - zero.mean()) / sd
    one, untouched = tables[:, :, 0].mean(axis=1), zero.mean()
    spread = np.sqrt((one * (1 - one) + untouched * (1 - untouched)) / world.n)
    return Study(
        covers=holds,
        covers_adjusted=all(low <= t <= high for t, (low, high) in zip(truth, simultaneous, strict=True)),
        covers_pair=bool(low <= (truth[0] - truth[-1] if family > 1 else truth[0]) <= high),
        covers_accuracy=[low <= t <= high for t, (low, high) in zip(world.accuracy[1:], accuracies, strict=True)],
        covers_by_item=naive,
        width=float(np.mean([d.half_width(ALPHA) for d in found])),
        width_pair=pair.half_width(ALPHA),
        rejects=[p < ALPHA for p in p_adjusted],
        rejects_oracle=[p < ALPHA for p in holm(list(2 * ndtr(-z)))],
        rejects_common=list(np.abs(one - untouched) > Z * spread),
        mde=found[-1].mde(ALPHA / family),
    )


def measure(world: World, number: int, generator: np.random.Generator) -> dict[str, Any]:
    """Rates over studies. Coverage is that of the arms that are alike; of several kinds of arm, the least."""
    covariance = world.covariance()
    read_all = [read(world, covariance, zero, tables) for zero, tables in studies(world, number, generator)]
    null = np.isclose(world.differences, 0)
    last = len(world.seed_sd)
    width = Z * float(np.mean([np.sqrt(variance_of(covariance, 0, arm)) for arm in range(1, last + 1)]))
    found: dict[str, Any] = {
        "coverage": _least(world, [s.covers for s in read_all]),
        "coverage_adjusted": rate([s.covers_adjusted for s in read_all]),
        "coverage_pair": rate([s.covers_pair for s in read_all]) if last > 1 else None,
        "coverage_accuracy": _least(world, [s.covers_accuracy for s in read_all]),
    }
    if world.cluster > 1:
        found["coverage_by_item"] = _least(world, [s.covers_by_item for s in read_all])
    else:
        found["width_ratio"] = float(np.mean([s.width for s in read_all])) / width
        oracle = Z * np.sqrt(variance_of(covariance, 1, last)) if last > 1 else width
        found["width_ratio_pair"] = float(np.mean([s.width_pair for s in read_all]) / oracle) if last > 1 else None
    if null.any():
        found["familywise_error"] = rate(np.array([s.rejects for s in read_all])[:, null].any(axis=1))
        found["familywise_error_oracle"] = rate(np.array([s.rejects_oracle for s in read_all])[:, null].any(axis=1))
        found["familywise_error_common"] = rate(np.array([s.rejects_common for s in read_all])[:, null].any(axis=1))
    if not null.all():
        found["power"] = rate(np.array([s.rejects for s in read_all])[:, ~null].mean(axis=1))
        found["power_oracle"] = rate(np.array([s.rejects_oracle for s in read_all])[:, ~null].mean(axis=1))
        found["mde"] = float(np.median([s.mde for s in read_all]))
    return found


def _least(world: World, covers: list[list[bool]]) -> dict[str, float]:
    kinds = list(zip(world.accuracy[1:], world.seed_sd, strict=True))
    table = np.array(covers)
    rates = [rate(table[:, [k == kind for k in kinds]].mean(axis=1)) for kind in dict.fromkeys(kinds)]
    return min(rates, key=lambda r: r["mean"])
