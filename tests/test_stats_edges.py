"""Statistics against their formulas written out another way, and at the ends of their ranges."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import f, norm, t
from sklearn.metrics import f1_score

from finetrap import stats

RNG = np.random.default_rng(0)
SPREAD = (RNG.random((80, 3)) < RNG.random((80, 1))).astype(float)
"""80 items of all difficulties, 3 seeds."""
OTHER = (RNG.random((80, 3)) < RNG.random((80, 1))).astype(float)

SPREAD_WIDE = (np.arange(1000)[:, None] < [480, 500, 520]).astype(float)


def test_items_are_counted_that_only_one_of_two_arms_gets_right() -> None:
    a, b = np.array([1.0, 1, 1, 1, 0, 0, 0, 0, 0]), np.array([1.0, 0, 0, 0, 1, 1, 0, 0, 0])
    assert stats.discordant(a, b) == (3, 2)


def test_the_gate_above_the_trivial_arm_is_one_sided_at_five_percent() -> None:
    # Mid-p one-sided of 4 to 0 is 1/32, of 3 to 0 1/16.
    trivial = np.zeros(10)
    ones = [(np.arange(10) < count).astype(float) for count in (3, 4)]
    assert [stats.beats(column, trivial) for column in ones] == [False, True]


def test_of_shares_the_gate_is_one_sided_at_five_percent_too() -> None:
    trivial = np.zeros(40)
    for halves, above in ((6, False), (7, True)):
        shares = np.where(np.arange(40) < halves, 0.5, 0.0)
        assert stats.beats(shares, trivial) is above
        assert (stats.between_checkpoints(shares, trivial).interval(0.1).low > 0) is above


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_seeds_stand_out_above_the_one_percent_point_of_f(seeds: int) -> None:
    def arm(spread: float) -> stats.Scores:
        shares = 0.5 + spread * (np.arange(seeds) / (seeds - 1) - 0.5)
        return (np.arange(1000)[:, None] < 1000 * shares).astype(float)

    others = [SPREAD_WIDE, SPREAD_WIDE[::-1]]
    pool = stats.pool_seeds(others)
    point = f.isf(0.01, seeds - 1, pool.df)
    ratios = {stats.seed_ratio(arm(spread), pool) > point for spread in np.linspace(0.002, 0.6, 60)}
    assert ratios == {True, False}
    for spread in np.linspace(0.002, 0.6, 60):
        assert stats.seeds_stand_out(arm(spread), others) == (stats.seed_ratio(arm(spread), pool) > point)


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_limits_of_an_accuracy_put_its_statistic_at_the_critical_value(alpha: float) -> None:
    n, pool = 80, stats.pool_seeds([SPREAD, OTHER])
    seeds = stats.difference(SPREAD, np.zeros(n), pool).seed_variance
    # Items with two more, one right and one wrong; the seed term is the one of a difference to a fixed column.
    padded = np.append(SPREAD.mean(axis=1), [0.0, 1.0])
    square = t.isf(alpha / 2, n - 1) ** 2 * padded.var() / (n + 2) + t.isf(alpha / 2, pool.df) ** 2 * seeds
    design = square / (padded.mean() * (1 - padded.mean()))

    def excess(p: float) -> float:
        return float((SPREAD.mean() - p) ** 2 - design * p * (1 - p))

    expected = brentq(excess, 0, SPREAD.mean()), brentq(excess, SPREAD.mean(), 1)
    assert seeds > 0
    assert stats.accuracy_interval(SPREAD, pool, alpha=alpha) == pytest.approx(expected, abs=1e-9)


def test_an_accuracy_without_seeds_has_the_level_that_is_asked_for() -> None:
    column, pool = SPREAD[:, 0], stats.pool_seeds([SPREAD, OTHER])
    for alpha in (0.05, 0.2):
        expected = stats.wilson(float(column.mean()), 80, alpha=alpha)
        assert stats.accuracy_interval(column, pool, alpha=alpha) == expected


def test_an_accuracy_s_interval_ends_at_zero_and_one() -> None:
    right, pool = np.ones((20, 3)), stats.pool_seeds([SPREAD, OTHER])
    assert stats.accuracy_interval(right, pool).high == 1
    assert stats.accuracy_interval(1 - right, pool).low == 0


def test_seeds_that_never_differ_are_as_uneven_as_a_pool_that_says_nothing() -> None:
    right = np.ones((20, 3))
    assert stats.seed_ratio(right, stats.pool_seeds([right])) == 1


def test_an_interval_is_cut_at_zero_only_where_the_test_rejects_and_it_holds_zero() -> None:
    across, above, below = stats.Interval(-0.1, 0.3), stats.Interval(0.1, 0.3), stats.Interval(-0.3, -0.1)
    assert stats.sign_only(across, 0.01, True) == ((0, 0.3), True)
    assert stats.sign_only(across, 0.01, False) == ((-0.1, 0), True)
    for interval in (above, below):
        assert stats.sign_only(interval, 0.01, True) == (interval, False)
    # A test that just reaches its level does not reject.
    assert stats.sign_only(across, 0.05, True) == (across, False)
    assert stats.sign_only(across, 0.03, True, alpha=0.02) == (across, False)
    # 0 at the very end is held.
    assert stats.sign_only(stats.Interval(0, 0.3), 0.01, True) == ((0, 0.3), True)
    assert stats.sign_only(stats.Interval(-0.3, 0), 0.01, False) == ((-0.3, 0), True)


def test_the_level_of_a_look_is_that_of_the_cut() -> None:
    found = stats.difference(SPREAD[:, 0], np.zeros(80))
    wide = found._replace(item_variance=found.centre**2 / 4)
    assert stats.adjusted(wide, 0.03, 3, alpha=0.05)[1]
    assert not stats.adjusted(wide, 0.03, 3, alpha=0.02)[1]


def test_what_is_needed_solves_for_the_variance_that_decides() -> None:
    zero, pool = np.zeros(80), stats.pool_seeds([SPREAD, OTHER])
    now = stats.difference(SPREAD, zero, pool)
    target = 1.5 * abs(now.delta)
    arm = stats.components(SPREAD)
    critical = now.half_width(0.05) / now.standard_error + float(norm.isf(0.2))
    allowed = (target / critical) ** 2
    of_items, cell, seed = 80 * now.item_variance, arm.residual, 3 * now.seed_variance
    item = of_items - cell / 3
    needed = stats.needed(SPREAD, zero, pool, target=target)
    assert needed.items == math.ceil(of_items / (allowed - seed / 3))
    assert needed.seeds == max(2, math.ceil((cell / 80 + seed) / (allowed - item / 80)))


def test_two_seeds_are_the_fewest_that_are_planned() -> None:
    needed = stats.needed(SPREAD, np.zeros(80), stats.pool_seeds([SPREAD, OTHER]), target=0.9)
    assert needed.seeds == 2


def test_no_number_shows_a_difference_of_nothing() -> None:
    pool = stats.pool_seeds([SPREAD, OTHER])
    assert stats.needed(SPREAD, OTHER, pool, target=0) == (None, None)
    assert stats.needed(SPREAD, OTHER, pool, target=-0.1) == (None, None)


def test_of_arms_with_two_seeds_both_items_and_seeds_can_be_added() -> None:
    a, b = SPREAD[:, :2], OTHER[:, :2]
    needed = stats.needed(a, b, stats.pool_seeds([a, b]), target=0.9)
    assert needed.items is not None
    assert needed.seeds == 2


def test_an_arm_of_one_column_has_no_seeds_to_add() -> None:
    pool = stats.pool_seeds([SPREAD, OTHER])
    assert stats.needed(SPREAD[:, :1], OTHER[:, 0], pool, target=0.3).seeds is None
    assert stats.needed(SPREAD[:, 0], OTHER[:, 0], pool, target=0.3).seeds is None


def test_macro_f1_is_that_of_scikit_learn_and_no_answer_is_no_label() -> None:
    gold = ["a", "a", "b", "c", "b", "c", "a"]
    said = ["a", "b", "b", None, "a", "c", "a"]
    theirs = f1_score(gold, [s or "-" for s in said], labels=["a", "b", "c"], average="macro")
    assert stats.macro_f1(list(zip(gold, said, strict=True))) == pytest.approx(theirs)
    assert stats.macro_f1([]) == 0


def test_equivalence_is_the_interval_of_twice_the_level_within_the_margin() -> None:
    up = stats.difference(SPREAD[:, 0], OTHER[:, 0])._replace(centre=0.01)
    for found, end in ((up, up.interval(0.1).high), (up._replace(centre=-0.01), up.interval(0.1).high)):
        assert stats.equivalent(found, end * (1 + 1e-9), alpha=0.05)
        assert not stats.equivalent(found, end * (1 - 1e-9), alpha=0.05)


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_the_mean_over_tasks_has_the_variances_of_its_parts(alpha: float) -> None:
    parts, scales = [SPREAD[:, 0] - SPREAD[:, 1], (OTHER[:, 0] - OTHER[:, 2])[:50]], [1.25, 4 / 3]
    # Each with two more items, +1 and -1; the mean is the observed one.
    variances = [np.append(d, [1.0, -1.0]).var() / (len(d) + 2) for d in parts]
    mean = np.mean([d.mean() * s for d, s in zip(parts, scales, strict=True)])
    half = norm.isf(alpha / 2) * math.sqrt(sum(v * s**2 for v, s in zip(variances, scales, strict=True))) / 2
    assert stats.mean_interval(parts, scales, alpha=alpha) == pytest.approx((mean - half, mean + half))


def test_the_mean_over_tasks_takes_a_scale_a_task() -> None:
    with pytest.raises(ValueError, match="zip"):
        stats.mean_interval([SPREAD[:, 0] - OTHER[:, 0]], [1.0, 1.0])


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_the_interval_of_a_ratio_is_the_delta_method_s(alpha: float) -> None:
    x = RNG.integers(300, 700, size=9).astype(float)
    y = 0.1 * x + RNG.normal(0, 20, size=9)
    ratio, (s_x, s_xy), (_, s_y) = y.sum() / x.sum(), *np.cov(x, y)
    half = t.isf(alpha / 2, 8) * math.sqrt((s_y + ratio**2 * s_x - 2 * ratio * s_xy) / 9) / x.mean()
    assert stats.ratio_interval(y, x, alpha=alpha) == pytest.approx((ratio - half, ratio + half))
