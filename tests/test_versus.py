"""Verdicts on recipes: tables of scores whose answer is known."""

import math

import numpy as np
import pytest
from scipy.stats import norm, t

from finetrap import stats
from finetrap.results import Artifact, Recipe, VersusZeroShot
from finetrap.versus import Scored, pairs, pool_of, versus_zero_shot

N = 600


def _first(count: int, *, n: int = N) -> stats.Scores:
    return (np.arange(n) < count).astype(float)


def _arm(*counts: int, n: int = N) -> Scored:
    """Right on its first so many items, by seed."""
    return Scored(np.stack([_first(count, n=n) for count in counts], axis=1))


def _family(zero: int = 180, trivial: int = 30, *, n: int = N, **arms: Scored) -> dict[str, Scored]:
    return {"constant": _arm(trivial, n=n), "zero_shot": _arm(zero, n=n), **arms}


def _recipe(versus: VersusZeroShot) -> Recipe:
    assert versus.recipe is not None
    return versus.recipe


def test_an_arm_that_gains_with_one_seed_only_is_no_gain_of_the_recipe() -> None:
    lucky = _arm(260, 170, 175)
    alone = versus_zero_shot(_family(lucky=Scored(lucky.table[:, :1])), margin=0.02)["lucky"]
    assert (alone.verdict, alone.recipe) == ("gain", None)
    among = versus_zero_shot(_family(lucky=lucky, other=_arm(180, 185, 175)), margin=0.02)["lucky"]
    assert among.verdict == "undecided"
    assert among.artifact.delta == pytest.approx(80 / N)
    assert _recipe(among).delta == pytest.approx((260 + 170 + 175) / 3 / N - 180 / N)
    assert among.decisive is among.recipe


def test_steady_arms_gain_and_harm_as_recipes() -> None:
    arms = _family(better=_arm(280, 276, 284), worse=_arm(90, 94, 88))
    found = versus_zero_shot(arms, margin=0.02)
    assert {name: versus.verdict for name, versus in found.items()} == {"better": "gain", "worse": "harm"}
    recipe = _recipe(found["better"])
    pool = pool_of(arms)
    difference = stats.difference(arms["better"].table, arms["zero_shot"].first, pool)
    assert recipe.p == difference.p
    assert recipe.ci95 == difference.interval(0.05)
    assert recipe.ci95_adjusted == difference.interval(0.025)
    assert recipe.mde == difference.mde(0.025)
    assert (recipe.seeds, recipe.df_seeds, recipe.items_needed) == (3, pool.df if pool else None, None)


def test_recipes_need_four_seeds_beyond_the_first() -> None:
    few = versus_zero_shot(_family(a=_arm(200, 205, 210), b=_arm(200, 210)), margin=0.02)
    assert [versus.recipe for versus in few.values()] == [None, None]
    enough = versus_zero_shot(_family(a=_arm(200, 205, 210), b=_arm(200, 210, 205), c=_arm(200)), margin=0.02)
    assert _recipe(enough["a"]).seeds == 3
    assert enough["c"].recipe is None, "a checkpoint has no other seed"


def test_one_family_holds_the_p_of_recipes_and_of_checkpoints() -> None:
    arms = _family(a=_arm(225, 230, 220), b=_arm(190, 195, 200), mine=_arm(215))
    found = versus_zero_shot(arms, margin=0.02)
    p_values = [_recipe(found["a"]).p, _recipe(found["b"]).p, found["mine"].artifact.p]
    adjusted = [_recipe(found["a"]).p_adjusted, _recipe(found["b"]).p_adjusted, found["mine"].artifact.p_adjusted]
    assert adjusted == pytest.approx(stats.holm(p_values))


def test_an_undecided_recipe_says_what_would_decide() -> None:
    arms = _family(a=_arm(186, 187, 185), b=_arm(180, 181, 179))
    versus = versus_zero_shot(arms, margin=0.001)["a"]
    recipe = _recipe(versus)
    assert versus.verdict == "undecided"
    assert recipe.items_needed is not None
    expected = stats.needed(
        arms["a"].table, arms["zero_shot"].first, pool_of(arms), target=abs(recipe.delta), alpha=0.025
    )
    assert (recipe.items_needed, recipe.seeds_needed) == expected
    # Nothing rules out a difference of the margin that the arm itself shows.
    assert (recipe.items_to_rule_out, recipe.seeds_to_rule_out) == (None, None)
    wider = _recipe(versus_zero_shot(arms, margin=0.016)["a"])
    target = 0.016 - abs(recipe.delta)
    expected = stats.needed(arms["a"].table, arms["zero_shot"].first, pool_of(arms), target=target, alpha=0.05)
    assert (wider.items_to_rule_out, wider.seeds_to_rule_out) == expected
    assert expected.items is not None


def _checkpoint(times: int = 1) -> Scored:
    """Of 600 items, or so many times 600, 20 that only it gets right, and 12 that only the first 180 do."""
    table = _first(200 * times, n=N * times)
    table[: 12 * times] = 0
    return Scored(table[:, None])


def test_an_undecided_checkpoint_says_what_would_decide() -> None:
    arms = _family(a=_checkpoint(), b=_arm(300))
    found = versus_zero_shot(arms, margin=0.02)
    close, shown = found["a"].artifact, found["b"].artifact
    assert (found["a"].verdict, found["b"].verdict) == ("undecided", "gain")
    # 32 of 600 items differ: their variance with the two pseudo-items, and the t and power of the family of two.
    variance = (32 + 2) / 602 - (8 / 602) ** 2

    def items(target: float, alpha: float) -> float:
        return (t.isf(alpha / 2, N - 1) + norm.isf(0.2)) ** 2 * variance * N / (N + 2) / target**2

    assert close.items_needed == pytest.approx(items(8 / N, 0.025), abs=1)
    assert close.items_to_rule_out == pytest.approx(items(0.02 - 8 / N, 0.05), abs=1)
    assert (shown.items_needed, shown.items_to_rule_out) == (None, None)


def test_more_items_of_the_same_kind_do_decide() -> None:
    few = versus_zero_shot(_family(a=_checkpoint()), margin=0.001)["a"]
    assert (few.verdict, few.artifact.items_to_rule_out) == ("undecided", None)
    assert few.artifact.items_needed is not None
    times = math.ceil(few.artifact.items_needed / N)
    more = _family(180 * times, 30 * times, n=N * times, a=_checkpoint(times))
    assert versus_zero_shot(more, margin=0.001)["a"].verdict == "gain"


def test_what_is_ruled_out_needs_no_more_items() -> None:
    found = versus_zero_shot(_family(600, 100, n=2000, a=_arm(601, n=2000)), margin=0.02)["a"]
    assert (found.verdict, found.artifact.items_to_rule_out) == ("no_difference", None)


def test_records_of_before_are_read() -> None:
    said = versus_zero_shot(_family(a=_checkpoint()), margin=0.02)["a"].artifact.model_dump()
    del said["items_needed"], said["items_to_rule_out"]
    assert Artifact.model_validate(said).items_needed is None


def test_seeds_that_differ_much_more_than_the_others_are_told() -> None:
    found = versus_zero_shot(
        _family(wild=_arm(60, 250, 400), **{f"calm{i}": _arm(200, 202, 198) for i in range(4)}), margin=0.02
    )
    assert _recipe(found["wild"]).seed_ratio > 2 > _recipe(found["calm0"]).seed_ratio
    assert [name for name in found if _recipe(found[name]).seeds_stand_out] == ["wild"]


def test_equal_recipes_are_no_difference_within_a_margin_that_the_items_can_show() -> None:
    arms = {
        "constant": _arm(300, n=4000),
        "zero_shot": _arm(1200, n=4000),
        "a": _arm(1200, 1201, 1199, n=4000),
        "b": _arm(1200, 1202, 1198, n=4000),
    }
    assert versus_zero_shot(arms, margin=0.02)["a"].verdict == "no_difference"
    assert versus_zero_shot(arms, margin=0.0005)["a"].verdict == "undecided"


def test_the_floor_is_that_of_recipes() -> None:
    # The first seed alone beats the trivial answer; the recipe does not.
    arms = _family(zero=20, trivial=24, a=_arm(60, 10, 12), b=_arm(22, 24, 20))
    assert versus_zero_shot(arms, margin=0.02)["a"].verdict == "floor"
    assert versus_zero_shot({**arms, "a": Scored(arms["a"].table[:, :1])}, margin=0.02)["a"].verdict == "gain"


def test_harm_is_not_claimed_of_an_untouched_model_at_the_floor() -> None:
    trivial = Scored(((np.arange(N) >= 100) & (np.arange(N) < 275)).astype(float)[:, None])
    above = Scored(np.stack([_first(560)] * 3, axis=1))
    arms = {"constant": trivial, "zero_shot": _arm(180), "worse": _arm(0, 1, 2), "above": above}
    found = versus_zero_shot(arms, margin=0.02)
    assert (found["worse"].verdict, found["above"].verdict) == ("floor", "gain")


@pytest.mark.parametrize(("errors", "verdict"), [(5, "ceiling"), (100, "undecided")])
@pytest.mark.parametrize("seeds", [1, 3])
def test_where_even_a_perfect_arm_could_not_be_told_it_is_the_ceiling(errors: int, verdict: str, seeds: int) -> None:
    # Two items lost and three won, so that a small margin is not ruled out.
    zero = _first(N - errors)
    won = zero.copy()
    won[:2] = 0
    won[N - errors : N - errors + 3] = 1
    arm = Scored(np.stack([won] * seeds, axis=1))
    arms = {"constant": _arm(30), "zero_shot": Scored(zero[:, None]), "a": arm, "b": arm}
    assert versus_zero_shot(arms, margin=0.001)["a"].verdict == verdict


@pytest.mark.parametrize(
    ("seeds", "errors", "lost", "verdict"),
    [
        # More is left than would be found (0.9 points of 1.0); a perfect checkpoint would be shown, a recipe would not.
        (1, 6, 0, "undecided"),
        (3, 6, 0, "ceiling"),
        # A perfect arm would be shown, and yet less is left than would be found.
        (1, 8, 6, "ceiling"),
        (3, 8, 6, "ceiling"),
    ],
)
def test_a_ceiling_is_too_little_left_or_a_perfect_arm_that_is_not_shown(
    seeds: int, errors: int, lost: int, verdict: str
) -> None:
    zero = _first(N - errors)
    won = zero.copy()
    won[:lost] = 0
    won[N - errors : N - errors + lost + 1] = 1
    arm = Scored(np.stack([won] * seeds, axis=1))
    arms = {"constant": _arm(30), "zero_shot": Scored(zero[:, None]), "a": arm, "b": arm}
    assert versus_zero_shot(arms, margin=0.001)["a"].verdict == verdict


def test_the_effect_that_would_be_found_is_that_of_the_family() -> None:
    arms = _family(a=_arm(200), b=_arm(210))
    found = versus_zero_shot(arms, margin=0.02)["a"].artifact
    lost = arms["a"].first - arms["zero_shot"].first
    assert found.mde == stats.minimum_detectable_effect(lost, alpha=0.025)


def test_pairs_need_no_trivial_arm() -> None:
    (pair,) = pairs("m", "t", {"a": _arm(300), "b": _arm(200)})
    assert (pair.delta, pair.verdict) == (pytest.approx(100 / N), "gain")


def test_a_gain_of_the_recipe_has_to_be_there_by_every_rule_and_over_all_seeds() -> None:
    better, same = _arm(280, 276, 284), _arm(180, 178, 176)
    zero = Scored(_arm(180).table, {"strict": _arm(20).table, "anywhere": _arm(180).table})
    arms = {
        "constant": _arm(30),
        "zero_shot": zero,
        "solver": Scored(better.table, {"strict": better.table, "anywhere": better.table}),
        "formatter": Scored(better.table, {"strict": better.table, "anywhere": same.table}),
    }
    found = versus_zero_shot(arms, margin=0.02)
    assert (found["solver"].verdict, found["formatter"].verdict) == ("gain", "format_only")


def test_a_smaller_level_asks_for_more() -> None:
    arms = _family(a=_arm(222, 214, 206), b=_arm(180, 181, 182))
    p_adjusted = _recipe(versus_zero_shot(arms, margin=0.02)["a"]).p_adjusted
    assert p_adjusted < 0.05
    strict = versus_zero_shot(arms, margin=0.02, alpha=p_adjusted * 0.99)["a"]
    assert strict.verdict == "undecided"
    plain = versus_zero_shot(arms, margin=0.02)["a"]
    assert plain.verdict == "gain"
    assert _recipe(strict).ci95 == _recipe(plain).ci95
    assert _recipe(strict).ci95_adjusted[0] < _recipe(plain).ci95_adjusted[0]


def test_pairs_are_recipes_where_both_have_seeds() -> None:
    arms = _family(a=_arm(280, 276, 284), b=_arm(180, 184, 176), mine=_arm(280))
    found = {(pair.a, pair.b): pair for pair in pairs("m", "t", arms)}
    both = found["a", "b"]
    difference = stats.difference(arms["a"].table, arms["b"].table, pool_of(arms))
    assert (both.estimand, both.verdict, both.p) == ("recipe", "gain", difference.p)
    assert (both.delta, both.ci95) == (difference.delta, difference.interval(0.05))
    checkpoint = found["b", "mine"]
    assert (checkpoint.estimand, checkpoint.verdict, checkpoint.p_adjusted) == ("artifact", "harm", None)
    assert checkpoint.delta == pytest.approx(-100 / N)


def test_without_a_trivial_arm_the_floor_is_nothing_right() -> None:
    arms = {"zero_shot": _arm(0), "a": _arm(3)}
    assert versus_zero_shot(arms, margin=0.02)["a"].verdict == "floor"
    assert versus_zero_shot({"zero_shot": _arm(180), "a": _arm(280)}, margin=0.02)["a"].verdict == "gain"


def test_a_family_without_arms_or_without_its_reference_has_no_verdicts() -> None:
    assert versus_zero_shot({"zero_shot": _arm(10)}, margin=0.02) == {}
    assert versus_zero_shot({"a": _arm(10)}, margin=0.02) == {}


def test_a_checkpoint_of_which_only_the_sign_is_shown_says_so() -> None:
    # Holm's last arm is tested at 5%, and its interval holds for all eight.
    arms = {"zero_shot": _arm(180), **{f"a{i}": _arm(280) for i in range(7)}, "b": _arm(187)}
    found = versus_zero_shot(arms, margin=0.02)
    low, high = found["b"].artifact.ci95_adjusted
    assert (found["b"].verdict, found["b"].artifact.sign_only, low, high > 0) == ("gain", True, 0.0, True)
    assert not found["a0"].artifact.sign_only


def test_a_checkpoint_keeps_its_sign_by_its_own_seed() -> None:
    first, second = _arm(280).table, _arm(100).table
    both = np.concatenate([first, second], axis=1)
    zero = _arm(180).table
    # By the strict rule its first seed gains, and the mean of both is no more than zero-shot.
    arms = {"zero_shot": Scored(zero, {"strict": zero}), "a": Scored(first, {"strict": both})}
    assert versus_zero_shot(arms, margin=0.02)["a"].verdict == "gain"
    arms["a"] = Scored(first, {"strict": both[:, ::-1]})
    assert versus_zero_shot(arms, margin=0.02)["a"].verdict == "format_only"


def test_one_item_more_by_another_rule_is_the_same_sign_and_none_is_not() -> None:
    zero, arm = _arm(180).table, _arm(280).table
    found = {
        count: versus_zero_shot(
            {"zero_shot": Scored(zero, {"strict": zero}), "a": Scored(arm, {"strict": _arm(count).table})}, margin=0.02
        )["a"].verdict
        for count in (179, 180, 181)
    }
    assert found == {179: "format_only", 180: "format_only", 181: "gain"}


def test_a_reference_with_seeds_is_one_over_its_seeds() -> None:
    arms = {"lora": _arm(180, 190, 170), "dora": _arm(280, 276, 284)}
    versus = versus_zero_shot(arms, margin=0.02, reference="lora")
    assert versus.keys() == {"dora"}
    expected = stats.difference(arms["dora"].table, arms["lora"].table, pool_of(arms))
    assert _recipe(versus["dora"]).ci95 == expected.interval(0.05)
    by_rule = {name: Scored(arm.table, {"strict": arm.table}) for name, arm in arms.items()}
    assert versus_zero_shot(by_rule, margin=0.02, reference="lora")["dora"].verdict == "gain"
    swapped = {"lora": Scored(arms["lora"].table, {"strict": arms["dora"].table})}
    swapped["dora"] = Scored(arms["dora"].table, {"strict": arms["lora"].table})
    assert versus_zero_shot(swapped, margin=0.02, reference="lora")["dora"].verdict == "format_only"


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("others", [1, 4])
def test_equivalence_is_shown_at_twice_the_level_of_an_arm(seeds: int, others: int) -> None:
    same = [180, 181, 179][:seeds]
    arms = _family(**{f"a{i}": _arm(*same, *([180] * (5 if seeds > 1 else 0))) for i in range(others)})
    zero, arm = arms["zero_shot"], arms["a0"]
    level = 2 * 0.05 / others
    pool = pool_of(arms)
    if pool is None:
        ends = stats.tango(*stats.discordant(arm.first, zero.first), N, alpha=level)
    else:
        ends = stats.difference(arm.table, zero.table, pool).interval(level)
    width = max(-ends.low, ends.high)
    for margin, verdict in ((width * 1.001, "no_difference"), (width * 0.999, "undecided")):
        assert versus_zero_shot(arms, margin=margin)["a0"].verdict == verdict


@pytest.mark.parametrize("seeds", [1, 3])
def test_of_a_pair_at_the_floor_nothing_is_said(seeds: int) -> None:
    found = {}
    for trivial in (0, 110):
        arms = _family(trivial=trivial, a=_arm(*[100] * seeds), b=_arm(*[60] * seeds))
        (pair,) = pairs("m", "t", arms)
        assert pair.p < 0.05
        found[trivial] = pair.verdict
    assert found == {0: "gain", 110: "floor"}


def test_pairs_that_do_not_differ_are_undecided() -> None:
    (pair,) = pairs("m", "t", _family(a=_arm(180), b=_arm(182)))
    assert pair.verdict == "undecided"
    (apart,) = pairs("m", "t", _family(a=_arm(100), b=_arm(200)))
    assert (apart.verdict, apart.delta) == ("harm", pytest.approx(-100 / N))


def test_a_recipe_of_which_only_the_sign_is_shown_says_so_and_what_would_decide() -> None:
    strong = {f"a{i}": _arm(280, 281, 279) for i in range(7)}
    found = versus_zero_shot({"zero_shot": _arm(180), **strong, "b": _arm(188, 189, 187)}, margin=0.02)["b"]
    recipe = _recipe(found)
    assert (found.verdict, recipe.sign_only, recipe.ci95_adjusted[0]) == ("gain", True, 0.0)
    unsure = _recipe(
        versus_zero_shot({"zero_shot": _arm(180), "a": _arm(190, 240, 200), "b": _arm(180, 230, 200)}, margin=0.02)["a"]
    )
    assert unsure.seeds_needed is not None
    assert not unsure.sign_only
