"""What is recommended, and in which words, from arms whose scores are known."""

from typing import Any

import numpy as np
import pytest

from finetrap import stats
from finetrap.config import Study
from finetrap.recommend import cost_to_own, recommend
from finetrap.results import ArmCost, ArmResult, Recommendation, Retention, RetentionTask, VersusZeroShot
from finetrap.versus import Scored, pool_of, versus_zero_shot

N = 400
TRAINED = ("lora", "full")


def right(*counts: int) -> Scored:
    """Right on its first so many items of 400, by seed."""
    return Scored(np.stack([(np.arange(N) < count).astype(float) for count in counts], axis=1))


def arm_result(name: str, scored: Scored, versus: VersusZeroShot | None, **more: Any) -> ArmResult:
    """An arm of a model of 1000 weights that reads 90 tokens a query and writes 10."""
    cost = ArmCost(
        trainable_params=10 if name in TRAINED else 0,
        train_tokens=5000 if name in TRAINED else 0,
        train_seconds=1,
        eval_seconds=1,
        tokens_per_second=None,
        peak_memory_bytes=1,
        artifact_bytes=1,
        prompt_tokens_per_query=more.pop("prompt_tokens", 90),
        output_tokens_per_query=10,
        shipped_bytes=more.pop("shipped_bytes", None),
    )
    values: dict[str, Any] = {
        "arm": name,
        "method": name,
        "model": "m",
        "params": 1000,
        "task": "t",
        "hyperparameters": {},
        "seeds": tuple(range(scored.table.shape[1])),
        "n_test": N,
        "accuracy": float(scored.table.mean()),
        "ci95": (0.0, 1.0),
        "accuracy_strict": None,
        "accuracy_raw": None,
        "format_rate": None,
        "vs_zero_shot": versus,
        "retention": None,
        "out_of_distribution": (),
        "cost": cost,
        "outcomes": {},
        "truncated_rate": 0.0,
    }
    return ArmResult.model_validate({**values, **more})


def recommended(
    scored: dict[str, Scored],
    *,
    facts: dict[str, dict[str, Any]] | None = None,
    incomplete: tuple[str, ...] = (),
    available: int = 10_000,
    alpha: float = 0.05,
    params: int = 1000,
    **settings: Any,
) -> Recommendation:
    """What is recommended of arms with these scores, and with these `facts` by name."""
    study = Study.model_validate({"models": "m", "tasks": "gsm8k", **settings})
    scored = {"constant": right(40), "zero_shot": right(120), **scored}
    versus = versus_zero_shot(scored, margin=study.margin)
    arms = [
        arm_result(name, arm, versus.get(name), params=params, **(facts or {}).get(name, {}))
        for name, arm in scored.items()
    ]
    return recommend(study, arms, scored, aligned=True, available=available, incomplete=incomplete, alpha=alpha)


def bounds(scored: dict[str, Scored], *, alpha: float = 0.1) -> dict[str, float]:
    """Regret of these arms and of zero-shot, over items."""
    tables = {"zero_shot": right(120), **scored}
    return stats.regret_bounds({name: arm.first for name, arm in tables.items()}, alpha=alpha)


def forgot(**changed: Any) -> Retention:
    values: dict[str, Any] = {
        "mean": 0.3,
        "delta": -0.1,
        "ci95": (-0.2, -0.05),
        "verdict": "harm",
        "bits_per_byte": 1.5,
        "bits_per_byte_delta": 0.25,
        "tasks": {
            "hellaswag": RetentionTask(score=0.3, delta=-0.125, ci95=(-0.2, -0.05)),
            "arc_easy": RetentionTask(score=0.5, delta=0.05, ci95=(0, 0.1)),
        },
    }
    return Retention.model_validate({**values, **changed})


def test_the_cheapest_arm_that_is_not_far_behind_is_taken() -> None:
    arms = {"lora": right(300), "few_shot": right(300)}
    facts = {"few_shot": {"prompt_tokens": 990}}
    found = recommended(arms, facts=facts, queries=50)
    bound = bounds(arms)["lora"]
    assert (found.method, found.leader, found.model, found.task) == ("lora", "lora", "m", "t")
    assert (found.confidence, found.regret_upper) == (0.9, pytest.approx(bound))
    assert (found.estimand, found.dropped, found.prior_advice) == ("artifact", {}, None)
    assert found.why == (
        "'lora' is the cheapest to own, over 50 queries, of the arms that lose at most 2.0 points against the best: "
        f"75.0%, at most {100 * bound:.1f} points behind.",
        "Shown to be above the untouched model: lora +45.0, few_shot +45.0 points.",
    )
    # 15,000 tokens of training are as dear as 900 more a query, 17 times.
    assert found.next_step == (
        "Check 'lora' on questions of your own before you ship it. Below about 17 queries in its life, 'few_shot' "
        "would be cheaper to own."
    )
    few = recommended(arms, facts=facts, queries=0)
    assert few.method == "few_shot"
    assert few.next_step.endswith("Above about 17 queries in its life, 'lora' would be cheaper to own.")
    # The same at every query: training decides, whatever their number.
    assert recommended(arms).next_step == "Check 'few_shot' on questions of your own before you ship it."


def test_owning_an_arm_is_tuning_training_and_its_queries() -> None:
    arm = arm_result("lora", right(300), None)
    # 2 operations a weight and token; a token that is trained on counts three times.
    assert cost_to_own(arm, queries=7) == 2 * 1000 * (3 * 5000 + 7 * 100)
    searched = {"tune_tokens": 2000, "tune_answer_tokens": 300}
    tuned = arm.model_copy(update={"cost": arm.cost.model_copy(update=searched)})
    assert cost_to_own(tuned, queries=7) == 2 * 1000 * (3 * 7000 + 300 + 7 * 100)


def test_what_harms_is_out_and_its_harm_is_named() -> None:
    arms = {"lora": right(300), "full": right(60)}
    found = recommended(arms)
    assert found.dropped == {"full": "it is 15.0 points below the untouched model on the task"}
    assert found.why[1] == "'full' is out: it is 15.0 points below the untouched model on the task."
    assert found.method == "lora"


def test_harm_of_what_was_trained_comes_with_what_may_remove_it() -> None:
    arms = {"lora": right(300), "full": right(60), "few_shot": right(60)}
    hint = "Whether a lower rate, replay or going half-way back removes the harm of 'full': --rescue tries it."
    assert recommended(arms).why[-1] == hint
    assert not any("--rescue" in why for why in recommended(arms, rescue=True).why)
    assert not any("--rescue" in why for why in recommended({"lora": right(300), "few_shot": right(60)}).why)


def test_what_forgets_is_out_and_what_it_forgets_is_named() -> None:
    arms = {"lora": right(300), "full": right(360)}

    def reason(retention: Retention) -> str | None:
        return recommended(arms, facts={"full": {"retention": retention}}).dropped.get("full")

    assert reason(forgot()) == "it forgets: general text costs +0.25 bits a byte, hellaswag -12.5 points"
    assert reason(forgot(bits_per_byte_delta=None, chat_format_delta=-0.5)) == (
        "it forgets: hellaswag -12.5 points, answers that are whole turns in chat -50.0 points"
    )
    assert reason(forgot(bits_per_byte_delta=-0.1, chat_format_delta=0.5)) == "it forgets: hellaswag -12.5 points"
    # What the intervals do not show is named only where none of them shows anything.
    unsure = {"hellaswag": RetentionTask(score=0.3, delta=-0.125, ci95=(-0.3, 0.05))}
    mean = {"ci95": (-0.2, 0.1)}
    assert reason(forgot(bits_per_byte_ci95=(0.2, 0.3), tasks=unsure, **mean)) == (
        "it forgets: general text costs +0.25 bits a byte"
    )
    assert reason(forgot(bits_per_byte_ci95=(-0.1, 0.6), tasks=unsure, **mean)) == (
        "it forgets: general text costs +0.25 bits a byte, hellaswag -12.5 points"
    )
    # A task at chance has no part in the verdict; the mean may show what no task shows by itself.
    at_chance = {"arc_easy": RetentionTask(score=0.1, delta=-0.2, ci95=(-0.3, -0.1), at_chance=True)}
    assert reason(forgot(bits_per_byte_delta=None, tasks={**unsure, **at_chance})) == (
        "it forgets: general tasks -10.0 points in the mean"
    )
    in_chat = {"ci95": (-0.2, 0.1), "chat_format_delta": -0.5, "chat_format_ci95": (-0.6, -0.4)}
    assert reason(forgot(bits_per_byte_ci95=(-0.1, 0.6), tasks=unsure, **in_chat)) == (
        "it forgets: answers that are whole turns in chat -50.0 points"
    )
    assert reason(forgot(verdict="undecided")) is None
    # What is out may be the best: nothing is said to be close to it.
    found = recommended(arms, facts={"full": {"retention": forgot()}})
    assert (found.method, found.leader, found.regret_upper) == (
        "undecided",
        "lora",
        pytest.approx(bounds(arms)["lora"]),
    )
    assert found.next_step == (
        "'full' scores higher than 'lora' but is out: mend what does harm in it, and compare again."
    )


def test_what_is_too_large_is_out() -> None:
    facts = {"lora": {"shipped_bytes": 2_500_000}, "full": {"shipped_bytes": 1_000_000}}
    found = recommended({"lora": right(300), "full": right(300)}, facts=facts, max_size="1MB")
    assert found.dropped == {"lora": "its weights take 2 MB as they ship, and 1 MB is the limit"}
    assert found.method == "full"


def test_a_format_that_was_learned_is_no_reason_to_take_an_arm() -> None:
    base = right(120)
    arms = {
        "constant": right(40),
        "zero_shot": Scored(base.table, {"strict": base.table}),
        "lora": Scored(right(300).table, {"strict": base.table}),
        "full": Scored(right(60).table, {"strict": base.table}),
    }
    found = recommended(arms)
    assert found.why[1:] == (
        "Learned the answer format and nothing more that is shown: lora.",
        "Below the untouched model, but not by every way of reading an answer: full -15.0 points; look at the outputs "
        "before you take it.",
    )
    assert found.dropped == {}


def test_an_incomplete_study_says_what_is_missing() -> None:
    found = recommended({"lora": right(300)}, incomplete=("full", "dora"))
    assert (found.method, found.why) == ("undecided", ("The study is not complete: full, dora.",))
    assert found.next_step == "Run it again, with --retry-failed if something failed: what is done is kept."
    assert (found.regret_upper, found.confidence, found.leader) == (None, None, None)


def test_where_all_are_out_nothing_is_left() -> None:
    small = {name: {"shipped_bytes": 2_000_000} for name in ("zero_shot", "lora")}
    found = recommended({"lora": right(300)}, facts=small, max_size="1MB")
    reason = "its weights take 2 MB as they ship, and 1 MB is the limit"
    assert found.why == ("No arm is left.", f"'zero_shot' is out: {reason}.", f"'lora' is out: {reason}.")
    assert found.next_step == "Take another model, or accept more: --max-size, or a larger forgetting tolerance."


def test_at_the_floor_nothing_is_better_than_the_trivial_answer() -> None:
    found = recommended({"constant": right(140), "lora": right(130)})
    assert (found.method, found.leader, found.regret_upper, found.confidence) == ("floor", None, None, None)
    assert found.why == (
        "No way of adapting this model is above the trivial answer (35.0%): the best scores 32.5% on 400 items.",
        "Which of them scores highest is noise; nothing here shows that one is better.",
    )
    assert found.next_step == (
        "Take a larger model, or an easier task: at the floor more data of this study decides nothing."
    )


def close() -> dict[str, Scored]:
    """Two arms that disagree on 80 items and differ by 4."""
    scores = np.arange(N) < 300
    other = scores.copy()
    other[:42], other[300:338] = False, True
    return {"lora": right(300), "full": Scored(other.astype(float)[:, None])}


def test_an_undecided_study_says_how_many_items_would_decide() -> None:
    arms = close()
    found = recommended(arms)
    bound = bounds(arms)["lora"]
    assert (found.method, found.leader, found.regret_upper, found.confidence) == (
        "undecided",
        "lora",
        pytest.approx(bound),
        None,
    )
    assert found.why[0] == (
        f"'lora' leads with 75.0%, but on 400 items it may still lie {100 * bound:.1f} points behind another arm; "
        f"2.0 would be accepted."
    )
    # The one arm that may be ahead decides; zero-shot is far behind. Three arms: two pairs share the level.
    items = stats.needed(arms["full"].first, arms["lora"].first, None, target=0.02 + 0.01, alpha=0.1).items
    assert items
    rounded = f"About {-(-items // 100) * 100:,} test items would decide if the scores stay as they are (now 400"
    assert found.next_step == (
        f"{rounded} items): raise --limit-test, which re-uses the weights that are kept; or accept a wider margin."
    )
    assert recommended(arms, keep="none").next_step == (
        f"{rounded} items): raise --limit-test; or accept a wider margin."
    )
    assert recommended(arms, available=500).next_step == (
        f"{rounded}), more than the 500 that the task has; accept a wider margin, or another task."
    )
    assert found.prior_advice is not None
    assert "adapters" in found.prior_advice
    assert recommended(arms, params=2_000_000_000).prior_advice is None


def test_a_further_look_bounds_regret_with_more_confidence() -> None:
    arms = {"lora": right(300), "full": right(300)}
    later = recommended(arms, alpha=0.01, margin=0.05)
    assert later.confidence == pytest.approx(0.98)
    assert later.regret_upper == pytest.approx(bounds(arms, alpha=0.02)["lora"])


def test_over_seeds_the_bound_is_that_of_recipes_and_seeds_may_decide() -> None:
    arms = {"lora": right(290, 310, 300), "full": right(296, 288, 298)}
    found = recommended(arms)
    everything = {"constant": right(40), "zero_shot": right(120), **arms}
    tables = {"zero_shot": right(120).first, "lora": arms["lora"].table, "full": arms["full"].table}
    pool = pool_of(everything)
    assert found.estimand == "recipe"
    assert found.regret_upper == pytest.approx(stats.regret_bounds(tables, pool)["lora"])
    assert "but on 400 items and 3 seeds it may still lie" in found.why[0]
    room = 0.02 + (900 - 882) / 1200
    # With the weight that the bound gives to an arm's own seeds.
    seeds = stats.needed(tables["full"], tables["lora"], pool, target=room, alpha=0.1, kappa=1.0).seeds
    assert seeds != stats.needed(tables["full"], tables["lora"], pool, target=room, alpha=0.1).seeds
    assert seeds
    assert found.next_step == (
        f"About {seeds} seeds would decide if the scores stay as they are (now 400 items): raise --seeds; or accept a "
        f"wider margin."
    )


def test_two_seeds_of_four_arms_are_recipes() -> None:
    arms = {"lora": right(290, 310), "full": right(280, 296), "dora": right(270, 280), "few_shot": right(200, 215)}
    found = recommended(arms)
    pool = pool_of({"constant": right(40), "zero_shot": right(120), **arms})
    tables = {"zero_shot": right(120).first, **{name: arm.table for name, arm in arms.items()}}
    assert found.estimand == "recipe"
    assert found.regret_upper == pytest.approx(stats.regret_bounds(tables, pool)[found.leader or ""])


def seeded(rng: np.random.Generator, accuracy: float, sd: float) -> Scored:
    """Three seeds of an arm, each a little better or worse than the others."""
    difficulty = rng.random((N, 1)) + rng.normal(0, 0.1, (N, 3))
    return Scored((difficulty < accuracy + rng.normal(0, sd, (1, 3))).astype(float))


@pytest.mark.parametrize("seed", [9, 3, 6])  # neither, items, items
def test_what_would_decide_between_recipes_is_said_of_items_and_of_seeds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arms = {"lora": seeded(rng, 0.75, 0.004), "full": seeded(rng, 0.74, 0.004)}
    found = recommended(arms)
    assert found.method == "undecided"
    tables = {"lora": arms["lora"].table, "full": arms["full"].table}
    leader = found.leader or ""
    (other,) = set(tables) - {leader}
    pool = pool_of({"constant": right(40), "zero_shot": right(120), **arms})
    room = 0.02 + float(tables[leader].mean() - tables[other].mean())
    items, seeds = stats.needed(tables[other], tables[leader], pool, target=room, alpha=0.1, kappa=1.0)
    by_items = f"about {-(-items // 100) * 100:,} test items" if items else ""
    by_seeds = f"about {seeds} seeds" if seeds else ""
    options = " or ".join(option for number, option in ((items, "--limit-test"), (seeds, "--seeds")) if number)
    kept = ", which re-uses the weights that are kept" if items else ""
    ways = " or ".join(way for way in (by_items, by_seeds) if way)
    expected = (
        f"{ways} would decide if the scores stay as they are (now 400 items): "
        f"raise {options}{kept}; or accept a wider margin."
    ).capitalize()
    if not options:
        expected = (
            "Neither more test items nor more seeds alone would decide: raise --limit-test and --seeds, or accept a "
            "wider margin."
        )
    assert found.next_step == expected


def test_more_items_than_there_are_are_not_asked_for_where_seeds_would_do() -> None:
    rng = np.random.default_rng(2)
    arms = {name: Scored((rng.random((N, 3)) < p).astype(float)) for name, p in (("lora", 0.75), ("full", 0.74))}
    assert recommended(arms).next_step == (
        "About 1,600 test items or about 8 seeds would decide if the scores stay as they are (now 400 items): raise "
        "--limit-test or --seeds, which re-uses the weights that are kept; or accept a wider margin."
    )
    assert recommended(arms, available=1000).next_step == (
        "About 8 seeds would decide if the scores stay as they are (now 400 items): raise --seeds; or accept a wider "
        "margin."
    )


def test_a_checkpoint_among_recipes_is_said_to_be_one() -> None:
    arms = {"lora": right(200, 210, 190), "full": right(196, 188, 200), "mine": right(320)}
    found = recommended(arms)
    assert found.method == "mine"
    assert "points behind and as this one checkpoint." in found.why[0]
