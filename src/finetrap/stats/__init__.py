"""Statistics of a comparison: `artifact` over items, `recipe` over items and seeds, and the family around them."""

from finetrap.stats.artifact import (
    ALPHA,
    Interval,
    Scores,
    discordant,
    item_variance,
    macro_f1,
    mean_interval,
    minimum_detectable_effect,
    one_sided_p,
    paired_p,
    ratio_interval,
    tango,
    wilson,
)
from finetrap.stats.checkpoint import Discordant, beats, between_checkpoints
from finetrap.stats.family import Needed, adjusted, equivalent, holm, needed, sign_only
from finetrap.stats.looks import look_alpha
from finetrap.stats.recipe import (
    Components,
    Difference,
    SeedPool,
    accuracy_interval,
    components,
    difference,
    pool_seeds,
    seed_ratio,
    seeds_stand_out,
)
from finetrap.stats.regret import regret_bounds

__all__ = [
    "ALPHA",
    "Components",
    "Difference",
    "Discordant",
    "Interval",
    "Needed",
    "Scores",
    "SeedPool",
    "accuracy_interval",
    "adjusted",
    "beats",
    "between_checkpoints",
    "components",
    "difference",
    "discordant",
    "equivalent",
    "holm",
    "item_variance",
    "look_alpha",
    "macro_f1",
    "mean_interval",
    "minimum_detectable_effect",
    "needed",
    "one_sided_p",
    "paired_p",
    "pool_seeds",
    "ratio_interval",
    "regret_bounds",
    "seed_ratio",
    "seeds_stand_out",
    "sign_only",
    "tango",
    "wilson",
]
