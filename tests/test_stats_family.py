"""Families of comparisons, equivalence, planning, regret and looks."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student
from statsmodels.stats.multitest import multipletests

from finetrap import stats


def _arms(
    seed: int, accuracies: list[float], *, n: int = 300, seeds: int = 3, sd: float = 0.04
) -> dict[str, stats.Scores]:
    rng = np.random.default_rng(seed)
    difficulty = rng.random((n, 1))
    shift = rng.normal(0, sd, (len(accuracies), seeds))
    return {
        f"arm{i}": (0.5 * difficulty + 0.5 * rng.random((n, seeds)) < p + shift[i]).astype(float)
        for i, p in enumerate(accuracies)
    }


@settings(max_examples=25)  # statsmodels collects garbage at every call
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_equals_statsmodels(p_values: list[float]) -> None:
    expected = multipletests(p_values, method="holm")[1]
    assert stats.holm(p_values) == pytest.approx(list(expected))


def test_the_adjusted_interval_is_simultaneous_and_agrees_with_holm() -> None:
    difference = stats.Difference(0.06, 0.06, 4e-4, 2e-4, item_df=299.0, seed_df=8.0)
    wide = difference.interval(0.05 / 6)
    assert wide.low < 0 < wide.high, "the case is meant to be one that the family leaves open"
    assert stats.adjusted(difference, 0.2, 6) == (wide, False)
    assert stats.adjusted(difference, 0.03, 6) == ((0, wide.high), True)
    interval, sign_only = stats.adjusted(difference._replace(delta=-0.06, centre=-0.06), 0.03, 6)
    assert sign_only
    assert interval == pytest.approx((-wide.high, 0))
    assert stats.adjusted(difference, 0.03, 1)[0] == difference.interval(0.05)


@given(st.floats(-0.2, 0.2), st.floats(1e-5, 1e-2), st.floats(0, 1e-2), st.floats(0.01, 0.3))
def test_equivalence_is_two_one_sided_tests(centre: float, items: float, seeds: float, margin: float) -> None:
    difference = stats.Difference(centre, centre, items, seeds, item_df=99.0, seed_df=6.0)
    # A one-sided p is half of the two-sided one of the difference moved by the margin.
    above = difference._replace(centre=centre + margin)
    below = difference._replace(centre=centre - margin)
    p_above = above.p / 2 if above.centre > 0 else 1 - above.p / 2
    p_below = below.p / 2 if below.centre < 0 else 1 - below.p / 2
    if min(abs(p_above - 0.05), abs(p_below - 0.05)) > 1e-9:
        assert stats.equivalent(difference, margin, alpha=0.05) == (p_above < 0.05 and p_below < 0.05)


@pytest.mark.parametrize("kappa", [1.0, 2.5])
@pytest.mark.parametrize("fixed", [True, False])
def test_what_is_needed_for_what_is_there_is_what_is_there(fixed: bool, kappa: float) -> None:
    arms = _arms(2, [0.5, 0.6])
    pool = stats.pool_seeds(arms.values())
    a, b = arms["arm1"], arms["arm0"][:, 0] if fixed else arms["arm0"]
    now = stats.difference(a, b, pool, kappa=kappa)
    needed = stats.needed(a, b, pool, target=now.mde(0.05) * (1 - 1e-9), alpha=0.05, kappa=kappa)
    assert needed.items in (300, 301)
    assert needed.seeds in (3, 4)
    assert stats.needed(a, b, pool, target=now.mde(0.05) * (1 + 1e-9), alpha=0.05, kappa=kappa) == (300, 3)


def test_arms_of_different_numbers_of_seeds_are_planned_for_by_each_ones_own() -> None:
    a, b = _arms(8, [0.5], seeds=2)["arm0"], _arms(9, [0.55], seeds=6)["arm0"]
    pool = stats.pool_seeds([a, b])
    now = stats.difference(a, b, pool, kappa=1.0)
    ratio = now.mde(0.05) / now.standard_error
    items = 300 * now.item_variance
    cells = seeds = 0.0
    for table, number in ((a, 2), (b, 6)):
        arm = stats.components(table)
        items -= arm.residual / number
        cells += arm.residual
        seeds += max(0.0, max(arm.between, arm.pooled_between(pool)) - arm.residual / 300)

    def variance(number: int) -> float:
        return (items + cells / number) / 300 + seeds / number

    for target in (0.08, 0.1, 0.12):
        needed = stats.needed(a, b, pool, target=target, kappa=1.0).seeds
        assert needed is not None
        assert needed > 2
        assert variance(needed) <= (target / ratio) ** 2 < variance(needed - 1)


@pytest.mark.parametrize("fixed", [True, False])
def test_the_planned_variance_falls_with_items_and_with_seeds(fixed: bool) -> None:
    arms = _arms(2, [0.5, 0.6], sd=0.02)
    pool = stats.pool_seeds(arms.values())
    a, b = arms["arm1"], arms["arm0"][:, 0] if fixed else arms["arm0"]
    now = stats.difference(a, b, pool)
    found = now.half_width(0.05) / now.standard_error + 0.8416
    for share in (0.99, 0.97):
        allowed = (share * now.mde(0.05) / found) ** 2
        needed = stats.needed(a, b, pool, target=share * now.mde(0.05))
        assert needed.items is not None
        assert needed.items > 300
        # With so many items the variance is what is allowed, with one less it is not; seeds stay as they are.
        variances = [300 * now.item_variance / items + now.seed_variance for items in (needed.items - 1, needed.items)]
        assert variances[0] > allowed * (1 - 1e-4)
        assert variances[1] < allowed * (1 + 1e-4)
        assert needed.seeds is not None
        assert needed.seeds > 3


def test_where_the_seeds_alone_are_too_much_no_number_of_items_suffices() -> None:
    arms = _arms(3, [0.5, 0.6])
    pool = stats.pool_seeds(arms.values())
    now = stats.difference(arms["arm1"], arms["arm0"], pool)
    ratio = now.mde(0.05) / now.standard_error
    beyond = stats.needed(arms["arm1"], arms["arm0"], pool, target=0.99 * ratio * math.sqrt(now.seed_variance))
    assert beyond.items is None
    within = stats.needed(arms["arm1"], arms["arm0"], pool, target=1.01 * ratio * math.sqrt(now.seed_variance))
    assert within.items is not None
    assert stats.needed(arms["arm1"], arms["arm0"], pool, target=0) == (None, None)


def test_of_checkpoints_only_items_can_be_added() -> None:
    rng = np.random.default_rng(4)
    a, b = (rng.integers(0, 2, 200).astype(float) for _ in range(2))
    needed = stats.needed(a, b, None, target=0.01)
    assert needed.seeds is None
    assert needed.items is not None
    assert needed.items > 200


def test_regret_of_two_recipes_is_the_one_sided_interval_over_items_and_seeds() -> None:
    arms = _arms(5, [0.5, 0.6])
    pool = stats.pool_seeds(arms.values())
    difference = stats.difference(arms["arm1"], arms["arm0"], pool, kappa=1.0)
    bounds = stats.regret_bounds(arms, pool)
    half = math.sqrt(
        student.isf(0.1, 299) ** 2 * difference.item_variance
        + student.isf(0.1, pool.df) ** 2 * difference.seed_variance
    )
    assert bounds["arm0"] == pytest.approx(difference.centre + half)
    assert bounds["arm1"] == pytest.approx(max(0.0, half - difference.centre))


def test_regret_does_not_depend_on_the_order_and_seeds_and_hopeless_arms_widen_it() -> None:
    arms = _arms(6, [0.5, 0.52, 0.54])
    pool = stats.pool_seeds(arms.values())
    bounds = stats.regret_bounds(arms, pool)
    assert stats.regret_bounds(dict(reversed(arms.items())), pool) == pytest.approx(bounds)
    assert min(bounds, key=bounds.__getitem__) == max(arms, key=lambda name: float(arms[name].mean()))
    over_items = stats.regret_bounds({name: table.mean(axis=1) for name, table in arms.items()})
    assert pool.scale > 0
    assert all(bounds[name] > over_items[name] for name in arms)
    hopeless = stats.regret_bounds({**arms, "hopeless": np.zeros(300)}, pool)
    assert all(hopeless[name] >= bounds[name] for name in arms)


def test_levels_of_the_looks_add_up_to_the_whole() -> None:
    assert [stats.look_alpha(look) for look in (1, 2, 3)] == pytest.approx([0.04, 0.008, 0.0016])
    assert sum(stats.look_alpha(look, alpha=0.1) for look in range(1, 40)) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="counted from 1"):
        stats.look_alpha(0)


def test_seeds_that_differ_hold_an_arm_back_from_the_trivial_one() -> None:
    shares = np.array([0.5, 0.3, 0.1])
    table = (np.arange(400)[:, None] % 100 < 100 * shares).astype(float)
    trivial = (np.arange(400) % 5 == 0).astype(float)
    assert stats.above(table, trivial, None)
    assert not stats.above(table, trivial, stats.pool_seeds([table, table]))
