"""What stands beside the comparison: plans, floor, ceiling, looks, and one checkpoint without seeds."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import numpy as np
from scipy.special import stdtrit

from finetrap.stats import (
    REGRET_KAPPA,
    Needed,
    above,
    difference,
    holm,
    look_alpha,
    needed,
    paired_p,
    pool_seeds,
    tango,
)
from truth.intervals import ALPHA, studies
from truth.regret import ALPHA as BOUND
from truth.regret import MARGIN
from truth.world import Floats, World, rate


def plan(world: World, number: int, generator: np.random.Generator) -> dict[str, Any]:
    """Whether the items, or the seeds, that `needed` asks for find the last arm's difference four times in five."""
    target, level = float(world.differences[-1]), ALPHA / len(world.seed_sd)

    def asks(zero: Floats, tables: Floats) -> Needed:
        return needed(tables[-1], zero, pool_seeds(tables), target=target, alpha=level)

    def finds(zero: Floats, tables: Floats) -> bool:
        return difference(tables[-1], zero, pool_seeds(tables)).p < level

    return {"target": target, **_planned(world, asks, finds, number, generator)}


def plan_regret(world: World, number: int, generator: np.random.Generator) -> dict[str, Any]:
    """The same of a recommendation: that the last arm loses at most the margin against the first trained one."""
    lead, level = world.accuracy[-1] - world.accuracy[1], 2 * BOUND / (len(world.accuracy) - 1)

    def asks(zero: Floats, tables: Floats) -> Needed:
        pool = pool_seeds(tables)
        return needed(tables[0], tables[-1], pool, target=MARGIN + lead, alpha=level, kappa=REGRET_KAPPA)

    def finds(zero: Floats, tables: Floats) -> bool:
        loss = difference(tables[0], tables[-1], pool_seeds(tables), kappa=REGRET_KAPPA)
        return loss.centre + loss.half_width(level) <= MARGIN

    return {"target": MARGIN + lead, **_planned(world, asks, finds, number, generator)}


def _planned(
    world: World,
    asks: Callable[[Floats, Floats], Needed],
    finds: Callable[[Floats, Floats], bool],
    number: int,
    generator: np.random.Generator,
) -> dict[str, Any]:
    """The median plan of many first studies, and the power of new ones of that size."""
    asked = [asks(zero, tables) for zero, tables in studies(world, number, generator)]
    found: dict[str, Any] = {}
    for what, field, least in (("items", "n", world.n), ("seeds", "seeds", world.seeds)):
        numbers = [getattr(each, what) for each in asked]
        found[f"{what}_impossible"] = rate([each is None for each in numbers])
        middle = float(np.median([math.inf if each is None else each for each in numbers]))
        if least <= middle <= 20 * least:
            size: dict[str, Any] = {field: round(middle)}
            new = studies(replace(world, **size), number // 2, generator)
            found[f"{what}_planned"] = round(middle)
            found[f"{what}_power"] = rate([finds(zero, tables) for zero, tables in new])
    return found


def floor(world: World, number: int, generator: np.random.Generator) -> dict[str, Any]:
    """How often arms that are no better than the trivial one pass the gate; its answers know nothing of the items.

    A checkpoint is no better where its seed is not: arms without a spread between seeds stand for it.
    """
    checkpoint = replace(world, seeds=1, seed_sd=(0.0,) * len(world.seed_sd))
    found: dict[str, Any] = {}
    for name, each in (("passes", world), ("passes_checkpoint", checkpoint)):
        passes = []
        for _, tables in studies(each, number, generator):
            trivial = (generator.random(world.n) < world.accuracy[0]).astype(float)
            pool = pool_seeds(tables)
            passes.append([above(table, trivial, pool) for table in tables])
        found[name] = rate(np.mean(passes, axis=1))
        found[f"{name}_any"] = rate(np.any(passes, axis=1))
    return found


def ceiling(world: World, number: int, generator: np.random.Generator) -> dict[str, Any]:
    """How many errors zero-shot must make for a perfect arm to be shown, and whether that rule is ever contradicted."""
    level = ALPHA / len(world.seed_sd)
    square = float(stdtrit(world.n - 1, 1 - level / 2)) ** 2
    least = next(errors for errors in range(1, world.n) if _perfect_is_shown(world.n, errors, level))
    called, contradicted = [], []
    for zero, tables in studies(world, number, generator):
        pool = pool_seeds(tables)
        called.append(world.n - zero.sum() < least)
        gains = [difference(table, zero, pool) for table in tables]
        contradicted.append(called[-1] and any(gain.centre > 0 and gain.p < level for gain in gains))
    return {
        "errors_needed": least,
        "errors_at_most_by_formula": (square + math.sqrt(square**2 + 8 * square)) / 2,
        "errors_needed_checkpoint": next(errors for errors in range(1, world.n) if paired_p(errors, 0) < level),
        "ceiling": rate(called),
        "contradicted": rate(contradicted),
    }


def _perfect_is_shown(n: int, errors: int, level: float) -> bool:
    zero = np.ones(n)
    zero[:errors] = 0
    return difference(np.ones(n), zero).p < level


def looks(world: World, number: int, generator: np.random.Generator) -> dict[str, Any]:
    """Family-wise error of three looks at arms that are all equal, with the declared schedule and without."""
    items = [(round(world.n * share), world.seeds) for share in (0.3, 0.6, 1)]
    seeds = [(world.n, number) for number in (2, 3, world.seeds)]
    found = {}
    for name, sizes in (("items", items), ("seeds", seeds)):
        scheduled, careless = [], []
        for zero, tables in studies(world, number, generator):
            p = [_least_p(zero[:n], tables[:, :n, :s]) for n, s in sizes]
            scheduled.append(any(each < look_alpha(look, ALPHA) for look, each in enumerate(p, start=1)))
            careless.append(min(p) < ALPHA)
        found[f"familywise_error_by_{name}"] = rate(scheduled)
        found[f"familywise_error_by_{name}_without_schedule"] = rate(careless)
    return found


def _least_p(zero: Floats, tables: Floats) -> float:
    pool = pool_seeds(tables)
    return min(holm([difference(table, zero, pool).p for table in tables]))


def artifact(n: int, discordant: float, delta: float, number: int, generator: np.random.Generator) -> dict[str, Any]:
    """Coverage of Tango's interval and, where the truth is 0, the size of its test: one checkpoint, items alone."""
    only_a, only_b = (discordant + delta) / 2, (discordant - delta) / 2
    drawn = generator.multinomial(n, [only_a, only_b, 1 - discordant], size=number)[:, :2]

    @cache
    def covers(b: int, c: int) -> bool:
        low, high = tango(b, c, n, alpha=ALPHA)
        return low - 1e-12 <= delta <= high + 1e-12

    found: dict[str, Any] = {"coverage": rate([covers(int(b), int(c)) for b, c in drawn])}
    if delta == 0:
        rejects = lru_cache(maxsize=None)(lambda b, c: paired_p(b, c) < ALPHA)
        found["size"] = rate([rejects(int(b), int(c)) for b, c in drawn])
    return found
