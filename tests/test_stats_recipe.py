"""Intervals over items and seeds: the worked example, statsmodels, and what has to hold for any table."""

import math

import numpy as np
import pandas
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from finetrap import stats


def _column(digits: str) -> stats.Scores:
    return np.array([float(digit) for digit in digits])


def _table(*seeds: str) -> stats.Scores:
    return np.stack([_column(seed) for seed in seeds], axis=1)


# Computed by hand from the formulas, and independently of this code; 12 items, 3 seeds.
ZERO = _column("110000010000")
A = _table("111100110000", "111000111000", "101101110000")
B = _table("110000011000", "110100010000", "111100011010")

tables = st.integers(2, 30).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 1), min_size=n, max_size=n), min_size=7, max_size=7)
)
"""Seven columns of answers to the same items: zero-shot, and three seeds of two arms."""


def _arms(columns: list[list[int]]) -> tuple[stats.Scores, stats.Scores, stats.Scores, stats.SeedPool]:
    zero, *seeds = [np.array(column, dtype=float) for column in columns]
    a, b = np.stack(seeds[:3], axis=1), np.stack(seeds[3:], axis=1)
    return zero, a, b, stats.pool_seeds([a, b])


def test_the_components_of_the_worked_example() -> None:
    a, b = stats.components(A), stats.components(B)
    assert (a.n, a.seeds, a.accuracy, a.between) == (12, 3, 0.5, 0)
    assert b.accuracy == pytest.approx(0.416667, abs=1e-6)
    assert (a.residual, b.residual) == pytest.approx((0.121212, 0.098485), abs=1e-6)
    assert b.between == pytest.approx(0.020833, abs=1e-6)
    pool = stats.pool_seeds([A, B])
    assert pool == pytest.approx((0.0051026, 3.96631), rel=1e-5)
    assert [arm.pooled_between(pool) for arm in (a, b)] == pytest.approx([0.0113767, 0.0094567], abs=1e-7)


@pytest.mark.parametrize(
    ("a", "b", "delta", "items", "seeds", "low", "high", "p"),
    [
        (A, ZERO, 0.25, 0.0210965, 0.00042521, -0.1105, 0.5391, 0.1732),
        (B, ZERO, 0.16667, 0.0144153, 0.00768098, -0.2169, 0.5026, 0.3703),
        (A, B, 0.08333, 0.0194768, 0.00810619, -0.3251, 0.4680, 0.6798),
    ],
)
def test_the_differences_of_the_worked_example(
    a: stats.Scores, b: stats.Scores, delta: float, items: float, seeds: float, low: float, high: float, p: float
) -> None:
    # The weight of an arm's own seed variance that the example was computed with.
    difference = stats.difference(a, b, stats.pool_seeds([A, B]), kappa=1.5)
    assert difference.delta == pytest.approx(delta, abs=1e-5)
    assert (difference.item_variance, difference.seed_variance) == pytest.approx((items, seeds), abs=1e-7)
    assert difference.interval(0.05) == pytest.approx((low, high), abs=1e-4)
    assert difference.p == pytest.approx(p, abs=1e-4)


@pytest.mark.parametrize("seeds", [2, 4])
def test_components_are_the_mean_squares_of_a_two_way_analysis_of_variance(seeds: int) -> None:
    table = np.random.default_rng(seeds).random((15, seeds))
    rows = {
        "y": table.ravel(),
        "item": [str(i) for i in range(15) for _ in range(seeds)],
        "seed": [str(s) for _ in range(15) for s in range(seeds)],
    }
    squares = anova_lm(ols("y ~ C(item) + C(seed)", pandas.DataFrame(rows)).fit())["mean_sq"]
    found = stats.components(table)
    assert found.residual == pytest.approx(squares["Residual"])
    assert found.between == pytest.approx(squares["C(seed)"] / 15)


def test_a_table_without_a_second_seed_has_no_components() -> None:
    for table in (ZERO, ZERO[:, None]):
        with pytest.raises(ValueError, match="2 or more seeds"):
            stats.components(table)
    assert stats.pool_seeds([ZERO]) == (0, math.inf)


def test_identical_seeds_are_the_interval_of_bonett_and_price() -> None:
    # 12 items only the arm gets right, 2 only the other, of 50: one is added to each, two to the total.
    a, b = _column("1" * 12 + "0" * 38), _column("0" * 12 + "1" * 2 + "0" * 36)
    difference = stats.difference(np.stack([a] * 3, axis=1), b, stats.pool_seeds([np.stack([a] * 3, axis=1)]))
    gain, loss = 13 / 52, 3 / 52
    half = student.isf(0.025, 49) * math.sqrt((gain + loss - (gain - loss) ** 2) / 52)
    assert difference.seed_variance == 0
    assert difference.interval(0.05) == pytest.approx((gain - loss - half, gain - loss + half))
    assert difference.p == pytest.approx(2 * student.sf(difference.centre / difference.standard_error, 49))


@given(tables)
def test_swapping_the_arms_flips_the_sign(columns: list[list[int]]) -> None:
    _, a, b, pool = _arms(columns)
    there, back = stats.difference(a, b, pool), stats.difference(b, a, pool)
    low, high = there.interval(0.05)
    assert back.interval(0.05) == pytest.approx((-high, -low))
    assert (back.delta, back.p) == pytest.approx((-there.delta, there.p))


@given(tables)
def test_the_order_of_items_and_of_seeds_is_irrelevant(columns: list[list[int]]) -> None:
    zero, a, b, pool = _arms(columns)
    rng = np.random.default_rng(len(zero))
    items, seeds = rng.permutation(len(zero)), rng.permutation(3)
    shuffled = a[items][:, seeds]
    assert stats.pool_seeds([b[items], shuffled]) == pytest.approx(pool)
    before, after = stats.difference(a, zero, pool), stats.difference(shuffled, zero[items], pool)
    assert after.interval(0.05) == pytest.approx(before.interval(0.05))
    assert after.p == pytest.approx(before.p)


@given(tables, st.sampled_from([0.2, 0.05, 0.01]))
def test_the_interval_leaves_out_zero_exactly_where_the_test_rejects(columns: list[list[int]], alpha: float) -> None:
    zero, a, b, pool = _arms(columns)
    for one, other in ((a, zero), (b, zero), (a, b)):
        difference = stats.difference(one, other, pool)
        low, high = difference.interval(alpha)
        if abs(difference.p - alpha) > 1e-9:
            assert (low > 0 or high < 0) == (difference.p < alpha)
        if abs(difference.centre) > 1e-12:
            assert difference.half_width(difference.p) == pytest.approx(abs(difference.centre))


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("n", [1, 2, 50])
def test_nothing_breaks_where_every_answer_is_the_same(value: float, n: int) -> None:
    dead = np.full((n, 3), value)
    pool = stats.pool_seeds([dead, dead])
    assert pool == (0, math.inf)
    for other in (np.zeros(n), np.ones(n), dead):
        difference = stats.difference(dead, other, pool)
        low, high = difference.interval(0.05)
        assert -1 <= low < high <= 1
        assert 0 < difference.p <= 1
    low, high = stats.accuracy_interval(dead, pool)
    assert 0 <= low <= value <= high <= 1
    assert low < high


def test_an_arm_at_zero_borrows_the_seed_variance_of_the_others() -> None:
    rng = np.random.default_rng(0)
    moving = (rng.random((400, 3)) < [0.3, 0.4, 0.5]).astype(float)
    dead, reference = np.zeros((400, 3)), (rng.random(400) < 0.3).astype(float)
    alone = stats.difference(dead, reference, stats.pool_seeds([dead]))
    among = stats.difference(dead, reference, stats.pool_seeds([dead, moving]))
    assert alone.seed_variance == 0
    assert among.seed_variance > 0


def test_an_arm_that_varies_more_than_the_pool_keeps_its_own_variance() -> None:
    rng = np.random.default_rng(1)
    steady = [(rng.random((400, 3)) < 0.5).astype(float) for _ in range(4)]
    odd = (rng.random((400, 3)) < [0.2, 0.5, 0.8]).astype(float)
    pool = stats.pool_seeds([*steady, odd])
    own = stats.components(odd)
    seeds = stats.difference(odd, np.zeros(400), pool).seed_variance
    assert seeds == pytest.approx((1.75 * own.between - own.residual / 400) / 3)
    assert seeds > 3 * stats.difference(steady[0], np.zeros(400), pool).seed_variance
    assert stats.seed_ratio(odd, pool) == pytest.approx(own.between / own.pooled_between(pool))
    assert stats.seed_ratio(odd, pool) > 1
    assert stats.seeds_stand_out(odd, steady)
    assert not stats.seeds_stand_out(steady[0], [*steady[1:], odd])


def test_the_gate_is_the_one_sided_interval_of_a_recipe_and_mid_p_of_a_checkpoint() -> None:
    # 4 of 100, and the trivial arm none: mid-p is 1/32. Of a recipe the pseudo-items ask for more.
    few, trivial = _column("1" * 4 + "0" * 96), np.zeros(100)
    table = np.stack([few] * 3, axis=1)
    pool = stats.pool_seeds([table])
    assert stats.difference(table, trivial, pool).p > 0.1
    assert not stats.above(table, trivial, pool)
    assert stats.above(table, trivial)
    assert stats.above(few, trivial, pool)
    assert stats.above(np.stack([_column("1" * 5 + "0" * 95)] * 3, axis=1), trivial, pool)
    for column in (few[:, None], table):
        assert not stats.above(column, few, pool), "what equals the trivial arm is not above it"


def test_without_a_pool_there_is_no_seed_term() -> None:
    assert stats.difference(A, ZERO).seed_variance == 0
    assert stats.difference(A, ZERO).item_variance == stats.difference(A, ZERO, stats.pool_seeds([A])).item_variance


def test_clusters_are_the_cluster_robust_variance_of_the_mean_and_the_pseudo_items() -> None:
    rng = np.random.default_rng(2)
    n = 90
    groups = [f"text {i // 3}" for i in range(n)]
    a, b = rng.random(n) + 0.3 * np.repeat(rng.random(n // 3), 3), rng.random(n)
    codes = np.repeat(np.arange(n // 3), 3)
    fit = sm.OLS(a - b, np.ones(n)).fit(
        cov_type="cluster", cov_kwds={"groups": codes, "use_correction": False}, use_t=True
    )
    clusters = n // 3
    robust = float(np.asarray(fit.cov_params())[0, 0]) * clusters / (clusters - 1)
    difference = stats.difference(a, b, groups=groups)
    assert difference.item_variance == pytest.approx(robust + 2 / (n + 2) ** 2)
    assert difference.item_df == clusters - 1


def test_columns_of_other_items_do_not_pair() -> None:
    with pytest.raises(ValueError, match="do not pair"):
        stats.difference(A, ZERO[:5], stats.pool_seeds([A]))
    with pytest.raises(ValueError, match="do not pair"):
        stats.difference(A, ZERO, groups=["a"])


def test_accuracy_without_seeds_is_wilsons_and_with_them_wider() -> None:
    rng = np.random.default_rng(3)
    table = (rng.random((300, 3)) < [0.4, 0.5, 0.6]).astype(float)
    pool = stats.pool_seeds([table])
    assert stats.accuracy_interval(table[:, 0], pool) == stats.wilson(float(table[:, 0].mean()), 300)
    low, high = stats.accuracy_interval(table, pool)
    narrow = stats.wilson(float(table.mean()), 300)
    assert low < narrow.low < narrow.high < high


@pytest.mark.parametrize("wild", [0.02, 0.2])
def test_accuracys_ends_solve_wilsons_equation_with_the_variance_over_items_and_seeds(wild: float) -> None:
    rng = np.random.default_rng(5)
    n, seeds = 200, 4
    table = (rng.random((n, seeds)) < 0.4 + wild * np.array([-1, 0, 0, 1])).astype(float)
    pool = stats.pool_seeds([table, (rng.random((n, seeds)) < 0.3).astype(float)])
    m, of_items, of_seeds = table.mean(), table.mean(axis=1), table.mean(axis=0)
    p = (n * m + 1) / (n + 2)
    items = (((n - 1) * of_items.var(ddof=1) + n * m**2 + 1) / (n + 2) - p**2) / (n + 2)
    residual = ((table - of_items[:, None] - of_seeds + m) ** 2).sum() / ((n - 1) * (seeds - 1))
    pooled = pool.scale * p * (1 - p) + residual / n
    between = max(0, max(pooled, 1.75 * of_seeds.var(ddof=1)) / seeds - residual / (n * seeds))
    for alpha in (0.05, 0.01):
        square = student.isf(alpha / 2, n - 1) ** 2 * items + student.isf(alpha / 2, pool.df) ** 2 * between
        for end in stats.accuracy_interval(table, pool, alpha=alpha):
            assert (end - m) ** 2 == pytest.approx(square / (p * (1 - p)) * end * (1 - end))


def _study(rng: np.random.Generator, *, seed_sd: float) -> tuple[stats.Scores, list[stats.Scores]]:
    """Five arms of the same true accuracy as zero-shot: items, item x arm and seeds on the logit scale."""
    n, seeds = 200, 3
    difficulty = rng.normal(0, 1.6, n)
    zero = rng.random(n) < 1 / (1 + np.exp(-(difficulty + rng.normal(0, 0.9, n))))
    arms = []
    for _ in range(5):
        logits = difficulty + rng.normal(0, 0.9, n)
        by_seed = logits[:, None] + rng.normal(0, seed_sd, seeds)
        arms.append((rng.random((n, seeds)) < 1 / (1 + np.exp(-by_seed))).astype(float))
    return zero.astype(float), arms


def test_intervals_cover_no_difference_at_their_level_whatever_the_seeds_do() -> None:
    rng = np.random.default_rng(4)
    covered = total = 0
    for _ in range(200):
        zero, arms = _study(rng, seed_sd=0.25)
        pool = stats.pool_seeds(arms)
        for arm in arms:
            low, high = stats.difference(arm, zero, pool).interval(0.05)
            covered += low <= 0 <= high
            total += 1
    # 1,000 correlated intervals: three standard errors of the 95% are about two points.
    assert covered / total > 0.93


@settings(max_examples=50)
@given(tables)
def test_the_mean_squares_add_up_to_the_total(columns: list[list[int]]) -> None:
    _, a, _, _ = _arms(columns)
    found = stats.components(a)
    n, seeds = a.shape
    items = seeds * float(((a.mean(axis=1) - a.mean()) ** 2).sum())
    parts = items + (seeds - 1) * n * found.between + (n - 1) * (seeds - 1) * found.residual
    assert parts == pytest.approx(float(((a - a.mean()) ** 2).sum()), abs=1e-9)
