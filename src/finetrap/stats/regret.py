"""How much an arm may lose against the best: the bound behind a recommendation."""

from collections.abc import Mapping

from finetrap.stats.artifact import Scores
from finetrap.stats.recipe import SeedPool, of_items, paired, seed_variance

REGRET_KAPPA = 1.0
"""Weight of an arm's own seed variance: the pooled one or the own, the larger, covers here. `recipe.KAPPA` is more."""


def regret_bounds(
    tables: Mapping[str, Scores], pool: SeedPool | None = None, *, alpha: float = 0.10
) -> dict[str, float]:
    """For every arm the most that it loses against the best, all at once with confidence 1 - alpha.

    Multiple comparisons with the best (Hsu 1981, 1984): of k arms only the k - 1 pairs with the truly best one have to
    hold, so each is bounded one-sidedly at alpha / (k - 1), and the arm may be chosen after seeing the bounds. A table
    (n,) is a checkpoint, over items only; with a `pool`, a table (n, S) is a recipe over items and seeds.
    """
    if len(tables) < 2:
        return dict.fromkeys(tables, 0.0)
    level = 2 * alpha / (len(tables) - 1)
    columns = {name: of_items(table) for name, table in tables.items()}
    seeds = {name: seed_variance(table, pool, REGRET_KAPPA) for name, table in tables.items()}
    bounds = dict.fromkeys(tables, 0.0)
    for name in tables:
        for other in tables:
            if other != name:
                loss = paired(columns[other], columns[name], seeds[other] + seeds[name], pool)
                bounds[name] = max(bounds[name], loss.centre + loss.half_width(level))
    return bounds
