"""One checkpoint against another, over items: McNemar and Tango where scores are 0 and 1, else as in `recipe`.

A score is a fraction where several answers were drawn of an item. McNemar's and Tango's methods count items, so that
there the interval of Bonett and Price (2012) stands for them, without a seed term; its test agrees with it.
"""

from typing import NamedTuple

import numpy as np

from finetrap.stats.artifact import ALPHA, Interval, Scores, discordant, one_sided_p, paired_p, tango
from finetrap.stats.recipe import Difference, difference


class Discordant(NamedTuple):
    """Two checkpoints, a - b, with scores of 0 and 1."""

    only_a: int
    """Items that only a gets right."""
    only_b: int
    n: int

    @property
    def delta(self) -> float:
        """Accuracy of a minus that of b."""
        return (self.only_a - self.only_b) / self.n

    @property
    def p(self) -> float:
        """Two-sided: `paired_p`."""
        return paired_p(self.only_a, self.only_b)

    def interval(self, alpha: float = ALPHA) -> Interval:
        """Two-sided at level `alpha`: `tango`."""
        return tango(self.only_a, self.only_b, self.n, alpha=alpha)


def between_checkpoints(a: Scores, b: Scores) -> Discordant | Difference:
    """The difference a - b of scores (n,) on the same items."""
    if _of_shares(a) or _of_shares(b):
        return difference(a, b)
    return Discordant(*discordant(a, b), len(a))


def beats(a: Scores, b: Scores) -> bool:
    """Whether `a` is above `b`, one-sided at 5%: the gate in front of a corrected test, not a finding."""
    found = between_checkpoints(a, b)
    if isinstance(found, Discordant):
        return one_sided_p(found.only_a, found.only_b) < ALPHA
    return found.interval(2 * ALPHA).low > 0


def _of_shares(scores: Scores) -> bool:
    return not np.isin(scores, (0, 1)).all()
