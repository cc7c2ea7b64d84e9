"""The world that studies are drawn from, and what is true in it.

    logit P(correct) = arm + item (sd 1.6) + item by arm (sd 0.9) + seed

and an answer is Bernoulli, so that two arms of one accuracy disagree on 2.5% of the items at accuracy 0.02 and on 26%
at 0.5. The sd of the seed effect is given on the scale of accuracy. Zero-shot has no seeds: one fixed answer an item.
All effects are normal and independent, so that sums of them are normal, and the truth is an integral over one or two.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import root
from scipy.special import expit, logit

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

ITEM, ITEM_BY_ARM = 1.6, 0.9
CLUSTERED = 0.4
"""Share of the variance of item and of item by arm that the items of one cluster have in common."""

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(81)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


class Arm(NamedTuple):
    """On the logit scale: what gives an arm its accuracy and its seeds their sd."""

    mean: float
    seed: float


@cache
def arm(accuracy: float, seed_sd: float) -> Arm:
    """The arm with this expected accuracy, and this sd of accuracy between seeds on endless items."""
    own = math.hypot(ITEM, ITEM_BY_ARM)
    mean = float(logit(accuracy)) * math.sqrt(1 + 0.35 * own**2)
    slope = accuracy * (1 - accuracy) * 0.7

    def missed(at: Floats) -> list[float]:
        found = Arm(float(at[0]), float(np.exp(at[1])))
        return [float(logit(_accuracy(found))) - float(logit(accuracy)), math.log(_seed_sd(found) / seed_sd)]

    if seed_sd == 0:
        found = root(lambda at: float(logit(_accuracy(Arm(float(at[0]), 0.0)))) - float(logit(accuracy)), mean)
        return Arm(float(found.x[0]), 0.0)
    found = root(missed, [mean, math.log(seed_sd / slope)])
    if not found.success or max(map(abs, missed(found.x))) > 1e-6:
        raise ValueError(f"no arm has accuracy {accuracy} and sd {seed_sd} between seeds")
    return Arm(float(found.x[0]), float(np.exp(found.x[1])))


def _accuracy(of: Arm) -> float:
    return float(WEIGHTS @ expit(of.mean + math.hypot(ITEM, ITEM_BY_ARM, of.seed) * NODES))


def _seed_sd(of: Arm) -> float:
    own = math.hypot(ITEM, ITEM_BY_ARM)
    by_seed = expit(of.mean + of.seed * NODES[:, None] + own * NODES) @ WEIGHTS
    return math.sqrt(float(WEIGHTS @ by_seed**2) - float(WEIGHTS @ by_seed) ** 2)


@dataclass(frozen=True)
class World:
    """A kind of study. Arm 0 is zero-shot; the other arms have seeds."""

    n: int
    seeds: int
    accuracy: tuple[float, ...]
    """Of each arm, zero-shot first."""
    seed_sd: tuple[float, ...]
    """Of each arm but zero-shot, on the scale of accuracy."""
    samples: int = 1
    """Answers an item and seed; a score is their mean."""
    cluster: int = 1
    """Items that come together."""
    correlation: float = 0.0
    """Of the seed effects of two arms, as from a shared order of the data."""

    @property
    def arms(self) -> tuple[Arm, ...]:
        return tuple(arm(p, s) for p, s in zip(self.accuracy, (0.0, *self.seed_sd), strict=True))

    @property
    def differences(self) -> Floats:
        """What is true of each arm with seeds against zero-shot."""
        return np.array(self.accuracy[1:]) - self.accuracy[0]

    def draw(self, studies: int, generator: np.random.Generator) -> tuple[Floats, Floats]:
        """Zero-shot's scores (studies, n) and those of the arms with seeds (studies, arms, n, seeds)."""
        items = self.items(studies, generator)
        zero = self.answers(items[:, :1], np.zeros((studies, 1, 1)), generator)
        return zero[:, 0, :, 0], self.answers(items[:, 1:], self.seed_effects(studies, generator), generator)

    def items(self, studies: int, generator: np.random.Generator) -> Singles:
        """The logit of every arm's answer to every item, but for the seed: (studies, arms, n)."""
        means = np.array([arm.mean for arm in self.arms], dtype=np.float32)[:, None]
        logits = self._normal((studies, len(self.arms), self.n), generator)
        logits *= np.float32(ITEM_BY_ARM)
        logits += means
        logits += np.float32(ITEM) * self._normal((studies, 1, self.n), generator)
        return logits

    def _normal(self, shape: tuple[int, ...], generator: np.random.Generator) -> Singles:
        own = generator.standard_normal(shape, dtype=np.float32)
        if self.cluster == 1:
            return own
        groups = generator.standard_normal((*shape[:-1], -(-self.n // self.cluster)), dtype=np.float32)
        common = np.repeat(groups, self.cluster, axis=-1)[..., : self.n]
        return np.float32(math.sqrt(CLUSTERED)) * common + np.float32(math.sqrt(1 - CLUSTERED)) * own

    def seed_effects(self, studies: int, generator: np.random.Generator) -> Floats:
        """On the logit scale: (studies, arms with seeds, seeds)."""
        own = generator.standard_normal((studies, len(self.seed_sd), self.seeds))
        common = generator.standard_normal((studies, 1, self.seeds))
        effects: Floats = math.sqrt(self.correlation) * common + math.sqrt(1 - self.correlation) * own
        effects *= np.array([arm.seed for arm in self.arms[1:]])[:, None]
        return effects

    def answers(self, items: Singles, seeds: Floats, generator: np.random.Generator) -> Floats:
        """Scores (studies, arms, n, seeds) of logits (studies, arms, n) and effects (studies, arms, seeds)."""
        odds = np.exp(items)[..., None] * np.exp(seeds.astype(np.float32))[..., None, :]
        right = np.zeros(odds.shape)
        for _ in range(self.samples):
            uniform = generator.random(odds.shape, dtype=np.float32)
            right += uniform * (1 + odds) < odds
        right /= self.samples
        return right

    def covariance(self) -> Floats:
        """True covariance (arms, arms) of the observed accuracies: over items, seeds and answers.

        Where seeds are correlated, what they add to the covariance of two arms is taken as linear. Clusters are not
        in it.
        """
        seeds = np.array([1.0, *[self.seeds] * len(self.seed_sd)])
        spread = np.array([0.0, *self.seed_sd])
        # What an item expects of an arm, over all that arms do not share: (nodes, arms).
        shared = np.stack([_expected(own, ITEM, ITEM_BY_ARM, own.seed) for own in self.arms], axis=1)
        centred = shared - WEIGHTS @ shared
        matrix = centred.T @ (WEIGHTS[:, None] * centred) / self.n
        matrix += self.correlation * np.outer(spread, spread) / self.seeds
        for index, own in enumerate(self.arms):
            p = self.accuracy[index]
            by_item = _expected(own, math.hypot(ITEM, ITEM_BY_ARM), own.seed)
            between_items = float(WEIGHTS @ by_item**2) - p**2
            square = float(WEIGHTS @ expit(own.mean + math.hypot(ITEM, ITEM_BY_ARM, own.seed) * NODES) ** 2)
            one = (p - square) / self.samples + square - p**2
            same_seed, same_item = (self.n - 1) * spread[index] ** 2, (seeds[index] - 1) * between_items
            matrix[index, index] = (one + same_seed + same_item) / (self.n * seeds[index])
        return matrix


def _expected(of: Arm, outer: float, *inner: float) -> Floats:
    """E of the answer at each node of an effect with sd `outer`, over effects with sds `inner`."""
    expected: Floats = expit(of.mean + outer * NODES[:, None] + math.hypot(*inner) * NODES) @ WEIGHTS
    return expected


def variance_of(covariance: Floats, a: int, b: int) -> float:
    """Of the observed difference of two arms."""
    return float(covariance[a, a] + covariance[b, b] - 2 * covariance[a, b])


def rate(hits: Any) -> dict[str, float]:
    """A mean over studies and its Monte Carlo standard error."""
    values = np.asarray(hits, dtype=np.float64)
    return {"mean": float(values.mean()), "se": float(values.std() / math.sqrt(len(values)))}
