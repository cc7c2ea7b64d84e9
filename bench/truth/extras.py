"""What stands beside the comparison: plans, ceiling, looks, and one checkpoint without seeds."""

import math
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import numpy as np
from scipy.special import stdtrit

from finetrap.stats import difference, holm, look_alpha, needed, paired_p, pool_seeds, tango
from truth.intervals import ALPHA, studies
from truth.world import Floats, World, rate


def plan(world: World, number: int, generator: np.random.Generator) -> dict[str, Any]:
    """Whether the items, or the seeds, that `needed` asks for find the last arm's difference four times in five."""
    target, level = float(world.differences[-1]), ALPHA / len(world.seed_sd)
    asked = [
        needed(tables[-1], zero, pool_seeds(tables), target=target, alpha=level)
        for zero, tables in studies(world, number, generator)
    ]
    found: dict[str, Any] = {"target": target}
    for what, field, least in (("items", "n", world.n), ("seeds", "seeds", world.seeds)):
        numbers = [getattr(each, what) for each in asked]
        found[f"{what}_impossible"] = rate([each is None for each in numbers])
        middle = float(np.median([math.inf if each is None else each for each in numbers]))
        if least <= middle <= 20 * least:
            size: dict[str, Any] = {field: round(middle)}
            planned = replace(world, **size)
            found[f"{what}_planned"] = round(middle)
            found[f"{what}_power"] = rate(_found(planned, level, number // 2, generator))
    return found


def _found(world: World, level: float, number: int, generator: np.random.Generator) -> list[bool]:
    return [
        difference(tables[-1], zero, pool_seeds(tables)).p < level for zero, tables in studies(world, number, generator)
    ]


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
