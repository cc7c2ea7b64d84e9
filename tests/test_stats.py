"""Statistics over items against SciPy, statsmodels, closed forms and published tables."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, norm
from scipy.stats import t as student
from statsmodels.stats.proportion import proportion_confint

from finetrap import stats

counts = st.integers(min_value=0, max_value=60)


@given(correct=st.integers(0, 200), n=st.integers(200, 400), alpha=st.sampled_from([0.05, 0.01]))
def test_wilson_equals_statsmodels(correct: int, n: int, alpha: float) -> None:
    expected = proportion_confint(correct, n, alpha=alpha, method="wilson")
    assert stats.wilson(correct / n, n, alpha=alpha) == pytest.approx(expected, abs=1e-12)


def _mid_p(b: int, c: int) -> float:
    """From SciPy's exact test: less half of the two tails' boundary tables."""
    return binomtest(min(b, c), b + c, 0.5).pvalue - binom.pmf(min(b, c), b + c, 0.5)


@given(b=counts, c=counts)
def test_paired_p_is_the_larger_of_mid_p_and_score_p(b: int, c: int) -> None:
    if b == c:
        assert stats.paired_p(b, c) == 1
        return
    score = 2 * norm.sf(abs(b - c) / math.sqrt(b + c))
    assert stats.paired_p(b, c) == pytest.approx(max(_mid_p(b, c), score), abs=1e-12)


@pytest.mark.parametrize(
    ("b", "c", "n", "mid_p", "low", "high"),
    [
        (1, 7, 21, 0.0391, -0.5172, -0.0260),  # the airway example of Fagerland et al. 2014
        (12, 2, 50, 0.0074, 0.0611, 0.3447),
        (6, 1, 100, 0.0703, -0.0025, 0.1165),
        (0, 0, 100, 1.0, -0.03699, 0.03699),
    ],
)
def test_published_paired_tables_are_met(b: int, c: int, n: int, mid_p: float, low: float, high: float) -> None:
    if b + c:
        assert _mid_p(b, c) == pytest.approx(mid_p, abs=5e-5)
    assert stats.paired_p(b, c) >= mid_p - 5e-5
    assert stats.tango(b, c, n) == pytest.approx((low, high), abs=5e-5)


@given(b=counts, c=counts, more=st.integers(1, 300))
def test_limits_of_tango_put_the_score_statistic_at_z(b: int, c: int, more: int) -> None:
    n = b + c + more
    z = norm.isf(0.025)
    for limit in stats.tango(b, c, n):
        if abs(limit) in (0.0, 1.0):
            continue
        # The constrained maximum likelihood estimate of P(only b right), by Tango (1998), equation 11.
        big_b = (2 * n - b + c) * limit - b - c
        q = (math.sqrt(big_b**2 + 8 * n * c * limit * (1 - limit)) - big_b) / (4 * n)
        statistic = (b - c - n * limit) / math.sqrt(n * (2 * q + limit * (1 - limit)))
        assert abs(statistic) == pytest.approx(z, abs=1e-4)


@given(b=counts, c=counts, more=st.integers(0, 300), alpha=st.sampled_from([0.05, 0.01, 0.0083]))
def test_interval_excludes_zero_exactly_when_the_test_rejects(b: int, c: int, more: int, alpha: float) -> None:
    n = max(1, b + c + more)
    low, high = stats.tango(b, c, n, alpha=alpha)
    if stats.paired_p(b, c) > alpha:
        assert low <= 0 <= high
    else:
        assert low > 0 or high < 0


@given(b=counts, c=counts, more=st.integers(1, 300))
def test_swapping_the_arms_flips_the_sign(b: int, c: int, more: int) -> None:
    n = b + c + more
    low, high = stats.tango(b, c, n)
    assert stats.tango(c, b, n) == pytest.approx((-high, -low), abs=1e-9)
    assert stats.paired_p(b, c) == pytest.approx(stats.paired_p(c, b))


@given(b=counts, c=counts, more=st.integers(1, 300))
def test_a_smaller_level_gives_a_wider_interval(b: int, c: int, more: int) -> None:
    n = b + c + more
    wide, narrow = stats.tango(b, c, n, alpha=0.01), stats.tango(b, c, n, alpha=0.05)
    assert wide.low <= narrow.low + 1e-12
    assert wide.high >= narrow.high - 1e-12


@given(b=counts, c=counts)
def test_one_sided_p_of_both_directions_adds_up_to_one(b: int, c: int) -> None:
    if b + c:
        assert stats.one_sided_p(b, c) + stats.one_sided_p(c, b) == pytest.approx(1)
    else:
        assert stats.one_sided_p(b, c) == 1


def test_an_arm_equal_to_the_trivial_column_is_never_above_it() -> None:
    column = np.array([1.0, 0.0, 1.0, 1.0])
    assert not stats.beats(column, column)
    assert not stats.beats(np.zeros(500), np.zeros(500))
    assert not stats.beats(np.ones(500), np.ones(500))
    assert stats.beats(np.ones(20), np.zeros(20))


def test_item_variance_is_that_of_bonett_and_price() -> None:
    difference = np.array([1.0] * 12 + [-1.0] * 2 + [0.0] * 36)
    mean, variance = stats.item_variance(difference)
    p_gain, p_loss = 13 / 52, 3 / 52  # one added to each discordant cell, two to the total
    assert mean == pytest.approx(p_gain - p_loss)
    assert variance == pytest.approx((p_gain + p_loss - (p_gain - p_loss) ** 2) / 52)


def test_minimum_detectable_effect_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    n, discordant = 1000, 0.2
    pilot = rng.choice([1.0, -1.0, 0.0], size=n, p=[0.1, 0.1, 0.8])
    effect = stats.minimum_detectable_effect(pilot, alpha=0.05)
    probabilities = [(discordant + effect) / 2, (discordant - effect) / 2, 1 - discordant]
    tables = rng.multinomial(n, probabilities, size=2000)
    found = np.mean([stats.paired_p(int(b), int(c)) < 0.05 for b, c, _ in tables])
    assert 0.74 < found < 0.86


def test_mean_interval_of_one_task_covers_its_difference_and_scales_with_it() -> None:
    rng = np.random.default_rng(1)
    difference = rng.choice([1.0, -1.0, 0.0], size=400, p=[0.1, 0.2, 0.7])
    plain = stats.mean_interval([difference], [1.0])
    doubled = stats.mean_interval([difference], [2.0])
    assert plain.low < difference.mean() < plain.high
    assert doubled == pytest.approx((2 * plain.low, 2 * plain.high))
    assert np.mean(plain) == pytest.approx(difference.mean())


def test_mean_interval_covers_the_truth_at_its_level() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(1000):
        tasks = [rng.choice([1.0, -1.0, 0.0], size=150, p=[0.05, 0.15, 0.8]) for _ in range(2)]
        low, high = stats.mean_interval(tasks, [1.0, 1.0])
        hits += low <= -0.1 <= high
    assert 0.93 < hits / 1000 < 0.98


def test_ratio_interval_covers_the_truth_at_its_level() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(1000):
        lengths = rng.integers(300, 700, size=100).astype(float)
        low, high = stats.ratio_interval(0.1 * lengths + rng.normal(0, 20, size=100), lengths)
        hits += low <= 0.1 <= high
    assert 0.93 < hits / 1000 < 0.97


def test_regret_of_two_arms_is_the_one_sided_interval() -> None:
    rng = np.random.default_rng(4)
    a, b = (rng.integers(0, 2, size=200).astype(float) for _ in range(2))
    mean, variance = stats.item_variance(b - a)
    expected = max(0.0, mean + student.isf(0.1, 199) * math.sqrt(variance))
    assert stats.regret_bounds({"a": a, "b": b})["a"] == pytest.approx(expected)


def test_regret_does_not_depend_on_the_order_of_arms_and_grows_with_a_hopeless_one() -> None:
    rng = np.random.default_rng(5)
    arms = {name: (rng.random(300) < p).astype(float) for name, p in (("a", 0.5), ("b", 0.55), ("c", 0.6))}
    bounds = stats.regret_bounds(arms)
    assert stats.regret_bounds(dict(reversed(arms.items()))) == pytest.approx(bounds)
    with_hopeless = stats.regret_bounds({**arms, "hopeless": np.zeros(300)})
    assert all(with_hopeless[name] >= bounds[name] for name in arms)
    assert stats.regret_bounds({"a": arms["a"]}) == {"a": 0.0}


def test_regret_bound_holds_for_the_chosen_arm() -> None:
    rng = np.random.default_rng(6)
    truths = np.array([0.5, 0.52, 0.54])
    misses = 0
    for _ in range(500):
        arms = {str(i): (rng.random(200) < p).astype(float) for i, p in enumerate(truths)}
        bounds = stats.regret_bounds(arms)
        misses += any(bounds[str(i)] < truths.max() - p for i, p in enumerate(truths))
    assert misses / 500 < 0.12
