"""The recommendation: how often an arm is recommended that is much worse than the best, and how often none is.

ours      the cheapest arm whose bound on regret is within the margin, else undecided (`finetrap.stats.regret_bounds`)
oracle    the same with the true variances of every pair
common    one seed, unpaired, one learning rate for all, best test score wins
tuned     common, but with every arm at its own learning rate
"""

from typing import Any

import numpy as np
from scipy.special import ndtri

from finetrap.stats import pool_seeds, regret_bounds
from truth.intervals import BATCH
from truth.world import Floats, Singles, World, arm, rate, variance_of

MARGIN = 0.02
ALPHA = 0.10
PENALTY = 0.05
"""The most that a learning rate which suits another method costs a trained arm; the cost is uniform below it.

Gains over LoRA that were published without tuning each method's rate are about 1 to 5 points (DoRA, arXiv:2402.09353:
1.0 and 3.7 on commonsense reasoning with LLaMA 13B and 7B; PiSSA, arXiv:2404.02948: 5.2 on GSM8K with Mistral 7B).
Tuned one by one, such methods lie within 1 to 2 points of each other (arXiv:2602.04998).
"""
PROMPTED = 2
"""Arms 0 and 1 are zero-shot and few-shot: they have no learning rate. Arms are ordered by what they cost."""
GRID = np.linspace(0, PENALTY, 11)


def measure(world: World, number: int, generator: np.random.Generator) -> dict[str, Any]:
    """Shares of studies with a wrong recommendation, and with none."""
    truth = np.array(world.accuracy)
    wrong_arm = truth.max() - truth > MARGIN + 1e-12
    names = [str(index) for index in range(len(truth))]
    reach = _reach(world)
    # Where a penalty would leave nothing of an arm, it takes half of what there is.
    means = [[arm(max(p - cost, p / 2), 0.0).mean for cost in GRID] for p in truth]
    chosen: dict[str, list[int | None]] = {"ours": [], "oracle": [], "common": [], "tuned": []}
    covered = []
    at_once = max(1, BATCH // (world.n * len(world.seed_sd) * world.seeds))
    for start in range(0, number, at_once):
        batch = min(at_once, number - start)
        items = world.items(batch, generator)
        zeros = world.answers(items[:, :1], np.zeros((batch, 1, 1)), generator)[:, 0, :, 0]
        tables = world.answers(items[:, 1:], world.seed_effects(batch, generator), generator)
        for zero, table, common in zip(zeros, tables, _one_rate(world, means, items, generator), strict=True):
            accuracy = np.array([zero.mean(), *table.mean(axis=(1, 2))])
            bounds = regret_bounds(dict(zip(names, [zero, *table], strict=True)), pool_seeds(table), alpha=ALPHA)
            ours = np.array([bounds[name] for name in names])
            covered.append(bool((ours >= truth.max() - truth - 1e-12).all()))
            oracle = np.maximum(0, (accuracy[None, :] - accuracy[:, None] + reach).max(axis=1))
            chosen["ours"].append(_cheapest(ours))
            chosen["oracle"].append(_cheapest(oracle))
            chosen["common"].append(int(common.argmax()))
            chosen["tuned"].append(int(np.argmax([zero.mean(), *table[:, :, 0].mean(axis=1)])))
    found: dict[str, Any] = {"coverage_regret": rate(covered)}
    for name, arms in chosen.items():
        found[f"wrong_{name}"] = rate([index is not None and bool(wrong_arm[index]) for index in arms])
    for name in ("ours", "oracle"):
        found[f"undecided_{name}"] = rate([index is None for index in chosen[name]])
    return found


def _reach(world: World) -> Floats:
    """What the oracle adds to each difference, (arms, arms); itself is no rival."""
    covariance, k = world.covariance(), len(world.accuracy)
    quantile = float(ndtri(1 - ALPHA / (k - 1)))
    reach = np.full((k, k), -np.inf)
    for a in range(k):
        for b in range(k):
            if a != b:
                reach[a, b] = quantile * np.sqrt(variance_of(covariance, a, b))
    return reach


def _one_rate(world: World, means: list[list[float]], items: Singles, generator: np.random.Generator) -> Floats:
    """One seed's accuracies (studies, arms) where trained arms pay for the rate that they were given."""
    studies, arms = len(items), len(world.accuracy)
    cost = generator.uniform(0, PENALTY, (studies, arms))
    cost[:, :PROMPTED] = 0
    shift = np.stack([np.interp(cost[:, a], GRID, means[a]) - means[a][0] for a in range(arms)], axis=1)
    effect = shift[:, 1:, None] + world.seed_effects(studies, generator)[:, :, :1]
    trained = world.answers(items[:, 1:], effect, generator).mean(axis=(2, 3))
    zero = world.answers(items[:, :1], np.zeros((studies, 1, 1)), generator).mean(axis=(2, 3))
    return np.concatenate([zero, trained], axis=1)


def _cheapest(bounds: Floats) -> int | None:
    within = np.flatnonzero(bounds <= MARGIN)
    return int(within[0]) if len(within) else None
