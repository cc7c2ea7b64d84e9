"""The artifact estimand: one checkpoint on one draw of items, variance over items only.

Nothing here says anything of another seed: that is `recipe`. Which procedure was chosen and why stands in
docs/decisions/0002-artifact-statistics.md.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm, t

ALPHA = 0.05
"""Level of tests and intervals."""

Scores = NDArray[np.float64]
"""Scores in [0, 1]: one an item, (n,), or items down and seeds across, (n, S)."""


class Interval(NamedTuple):
    """Both ends of an interval."""

    low: float
    high: float


def wilson(accuracy: float, n: int, *, alpha: float = 0.05) -> Interval:
    """Wilson's score interval of a share of n items (Wilson 1927)."""
    z2 = norm.isf(alpha / 2) ** 2 / n
    centre = (accuracy + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * accuracy * (1 - accuracy) + z2**2 / 4) / (1 + z2)
    return Interval(float(max(0.0, centre - half)), float(min(1.0, centre + half)))


def discordant(a: Scores, b: Scores) -> tuple[int, int]:
    """How many items only `a` gets right, and how many only `b`.

    Raises:
        ValueError: a score is neither 0 nor 1.
    """
    if not np.isin([a, b], (0, 1)).all():
        raise ValueError("fractions of items cannot be counted; `between_checkpoints` compares them.")
    return int(np.sum((a == 1) & (b == 0))), int(np.sum((a == 0) & (b == 1)))


def paired_p(only_a: int, only_b: int) -> float:
    """Two-sided p that two paired arms are equal: the larger of mid-p and score McNemar.

    Mid-p (Fagerland, Lydersen, Laake 2013) is the exact conditional test less half of the observed
    table's probability. The score test (McNemar 1947) is what Tango's interval inverts; taking the
    larger keeps interval and test together, and both below their level.
    """
    total = only_a + only_b
    if total == 0:
        return 1.0
    smaller = min(only_a, only_b)
    mid = 1.0 if only_a == only_b else 2 * binom.cdf(smaller, total, 0.5) - binom.pmf(smaller, total, 0.5)
    score = 2 * norm.sf(abs(only_a - only_b) / math.sqrt(total))
    return float(min(1.0, max(mid, score)))


def one_sided_p(only_a: int, only_b: int) -> float:
    """Mid-p McNemar that `a` is no better than `b`."""
    total = only_a + only_b
    if total == 0:
        return 1.0
    return float(binom.sf(only_a - 1, total, 0.5) - 0.5 * binom.pmf(only_a, total, 0.5))


def tango(only_a: int, only_b: int, n: int, *, alpha: float = 0.05) -> Interval:
    """Tango's score interval of a paired difference of shares, a - b (Tango 1998).

    All D with |b - c - nD| <= z sqrt(n (2q + D (1 - D))), q the constrained estimate. Where the test
    of `paired_p` does not reject at `alpha` and the interval would leave out 0, it is extended to 0.
    """
    z = float(norm.isf(alpha / 2))
    b, c = only_a, only_b
    delta = (b - c) / n
    if b + c == 0:
        half = z * z / (n + z * z)
        return Interval(-half, half)

    def outside(difference: float) -> bool:
        coefficient = (2 * n - b + c) * difference - b - c
        constant = -c * difference * (1 - difference)
        q = (math.sqrt(max(0.0, coefficient**2 - 8 * n * constant)) - coefficient) / (4 * n)
        variance = n * (2 * q + difference * (1 - difference))
        return abs(b - c - n * difference) > z * math.sqrt(max(0.0, variance))

    low = _edge(outside, inside=delta, limit=-1.0)
    high = _edge(outside, inside=delta, limit=1.0)
    if paired_p(b, c) > alpha:
        low, high = min(low, 0.0), max(high, 0.0)
    return Interval(low, high)


def _edge(outside: Callable[[float], bool], *, inside: float, limit: float) -> float:
    if not outside(limit):
        return limit
    for _ in range(60):
        middle = (inside + limit) / 2
        if outside(middle):
            limit = middle
        else:
            inside = middle
    return inside


def item_variance(differences: Scores) -> tuple[float, float]:
    """Mean and its variance of differences (n,) in [-1, 1], with the two pseudo-items +1 and -1 put in.

    Bonett and Price (2012), carried over to fractions: above 0 even where all differences are 0.
    """
    n = len(differences)
    mean = float(differences.sum()) / (n + 2)
    variance = ((float((differences**2).sum()) + 2) / (n + 2) - mean**2) / (n + 2)
    return mean, variance


def minimum_detectable_effect(difference: Scores, *, alpha: float) -> float:
    """The true difference that a study of this size would find significant four times in five; approximate."""
    _, variance = item_variance(difference)
    return float((norm.isf(alpha / 2) + norm.isf(0.2)) * math.sqrt(variance))


def mean_interval(differences: Sequence[Scores], scales: Sequence[float], *, alpha: float = 0.05) -> Interval:
    """Interval of the mean over independent tasks of scaled mean differences."""
    parts = [item_variance(d) for d in differences]
    mean = sum(float(d.mean()) * s for d, s in zip(differences, scales, strict=True)) / len(parts)
    variance = sum(v * s**2 for (_, v), s in zip(parts, scales, strict=True)) / len(parts) ** 2
    half = float(norm.isf(alpha / 2)) * math.sqrt(variance)
    return Interval(max(-max(scales), mean - half), min(max(scales), mean + half))


def ratio_interval(numerator: Scores, denominator: Scores, *, alpha: float = 0.05) -> Interval:
    """Interval of sum(numerator) / sum(denominator) over independent texts (Cochran 1977, section 6.4)."""
    n = len(numerator)
    ratio = float(numerator.sum() / denominator.sum())
    residual = numerator - ratio * denominator
    variance = n / (n - 1) * float((residual**2).sum()) / float(denominator.sum()) ** 2
    half = float(t.isf(alpha / 2, n - 1)) * math.sqrt(variance)
    return Interval(ratio - half, ratio + half)


def macro_f1(answers: Sequence[tuple[str, str | None]]) -> float:
    """Mean of F1 over the labels that occur in (gold, answer) pairs; an answer of None is no label's.

    F1 of a label is twice its right answers over the times it is gold plus the times it is answered (Manning et al.,
    Introduction to Information Retrieval, 2008, section 8.3 and 13.6).
    """
    labels = {label for pair in answers for label in pair if label is not None}
    scores = []
    for label in labels:
        right = sum(gold == answer == label for gold, answer in answers)
        scores.append(2 * right / sum((gold == label) + (answer == label) for gold, answer in answers))
    return float(np.mean(scores)) if scores else 0.0
