"""The simulation of bench/truth knows its own truth, and finetrap's statistics stand up to it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm
from truth import intervals, regret
from truth.__main__ import code, summary
from truth.cells import cells, key, simulate
from truth.extras import artifact, ceiling, floor, looks, plan, plan_regret
from truth.world import ITEM, ITEM_BY_ARM, World, arm, variance_of

FILE = Path(__file__).parent.parent / "bench" / "results" / "truth.json"
KEYS = {"date", "machine", "versions", "seconds", "cells"}
NUMBERS = {
    "coverage_min",
    "coverage_min_stress",
    "coverage_mean",
    "width_ratio_to_oracle",
    "familywise_error_max",
    "power_gap",
    "wrong_ours",
    "wrong_common",
    "undecided_ours",
    "undecided_oracle",
}


# --- the world -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("accuracy", "sd"), [(0.02, 0.003), (0.3, 0.01), (0.9, 0.03)])
def test_an_arm_has_the_accuracy_and_the_spread_between_seeds_that_were_asked_for(accuracy: float, sd: float) -> None:
    made = arm(accuracy, sd)
    # A plain sum over even steps, of the seed's effect down and the items' across.
    seeds, items = (np.linspace(-9, 9, 2001) * scale for scale in (made.seed, math.hypot(ITEM, ITEM_BY_ARM)))
    weights = norm.pdf(np.linspace(-9, 9, 2001))
    weights /= weights.sum()
    by_seed = expit(made.mean + seeds[:, None] + items) @ weights
    assert weights @ by_seed == pytest.approx(accuracy, rel=1e-5)
    assert math.sqrt(weights @ (by_seed - weights @ by_seed) ** 2) == pytest.approx(sd, rel=1e-4)


def test_an_arm_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no arm has accuracy 0\.02 and sd 0\.2"):
        arm(0.02, 0.2)


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_the_oracle_knows_the_variance_of_what_is_drawn(correlation: float) -> None:
    world = World(40, 3, (0.3, 0.2, 0.5), (0.02, 0.05), correlation=correlation)
    zero, tables = world.draw(6000, np.random.default_rng(1))
    seen = np.concatenate([zero.mean(axis=1)[:, None], tables.mean(axis=(2, 3))], axis=1)
    assert seen.mean(axis=0) == pytest.approx(np.array(world.accuracy), abs=0.004)
    covariance = world.covariance()
    for a, b in ((0, 1), (0, 2), (1, 2)):
        difference = np.var(seen[:, a] - seen[:, b])
        assert difference == pytest.approx(variance_of(covariance, a, b), rel=0.07)
    assert np.var(seen, axis=0) == pytest.approx(np.diag(covariance), rel=0.07)


def test_several_answers_an_item_leave_less_to_chance() -> None:
    one, eight = (World(50, 2, (0.3, 0.3), (0.01,), samples=samples) for samples in (1, 8))
    assert variance_of(eight.covariance(), 0, 1) < 0.7 * variance_of(one.covariance(), 0, 1)
    _, table = eight.draw(3, np.random.default_rng(1))
    assert set(np.unique(table * 8)) <= set(range(9))
    assert len(np.unique(table)) > 2


# --- what is measured ------------------------------------------------------------------------------------------------


def test_intervals_hold_the_truth_and_common_practice_finds_what_is_not_there() -> None:
    found = intervals.measure(World(150, 3, (0.4,) * 4, (0.05,) * 3), 80, np.random.default_rng(3))
    assert found["coverage"]["mean"] > 0.93
    assert found["familywise_error"]["mean"] < 0.06
    assert found["familywise_error_common"]["mean"] > 0.15
    assert 1 < found["width_ratio"] < 1.8
    assert "power" not in found


def test_a_large_effect_is_found_and_does_not_count_as_an_error() -> None:
    found = intervals.measure(World(200, 3, (0.2, 0.2, 0.6), (0.01,) * 2), 30, np.random.default_rng(3))
    assert (found["power"]["mean"], found["power_oracle"]["mean"]) == (1, 1)
    assert found["familywise_error"]["mean"] < 0.1


def test_clusters_that_are_taken_for_items_are_told() -> None:
    found = intervals.measure(World(400, 3, (0.4,) * 4, (0.003,) * 3, cluster=20), 40, np.random.default_rng(3))
    assert found["coverage"]["mean"] > found["coverage_by_item"]["mean"] + 0.04
    assert found["coverage"]["mean"] > 0.92


def test_a_clear_best_is_recommended_and_twins_are_not_wrong() -> None:
    clear = regret.measure(World(400, 3, (0.2, 0.2, 0.2, 0.5), (0.01,) * 3), 40, np.random.default_rng(3))
    assert (clear["wrong_ours"]["mean"], clear["undecided_ours"]["mean"]) == (0, 0)
    assert (clear["wrong_common"]["mean"], clear["undecided_oracle"]["mean"]) == (0, 0)
    twins = regret.measure(World(50, 3, (0.3, 0.3, 0.31), (0.01,) * 2), 40, np.random.default_rng(3))
    assert (twins["wrong_ours"]["mean"], twins["wrong_common"]["mean"], twins["wrong_tuned"]["mean"]) == (0, 0, 0)
    assert twins["undecided_ours"]["mean"] > 0.8
    trap = regret.measure(World(100, 3, (0.3, 0.3, 0.3, 0.33), (0.01,) * 3), 60, np.random.default_rng(3))
    assert trap["wrong_common"]["mean"] >= trap["wrong_tuned"]["mean"] > 0.2


def test_the_ceiling_is_where_its_closed_form_says() -> None:
    for arms, least, checkpoint in ((1, 6, 5), (5, 9, 7)):
        world = World(300, 3, (0.98,) * (arms + 1), (0.001,) * arms)
        found = ceiling(world, 20, np.random.default_rng(1))
        assert found["errors_needed"] == math.floor(found["errors_at_most_by_formula"]) + 1 == least
        assert found["errors_needed_checkpoint"] == checkpoint
        assert found["contradicted"]["mean"] == 0


def test_the_gate_lets_few_through_that_are_no_better_than_the_trivial_arm() -> None:
    found = floor(World(100, 3, (0.3,) * 4, (0.01,) * 3), 60, np.random.default_rng(1))
    for end in ("", "_checkpoint"):
        assert 0 < found[f"passes{end}"]["mean"] <= found[f"passes{end}_any"]["mean"] < 0.25
    assert found["passes"]["mean"] < 0.08
    better = floor(World(100, 3, (0.1,) + (0.4,) * 3, (0.01,) * 3), 10, np.random.default_rng(1))
    assert (better["passes"]["mean"], better["passes_checkpoint"]["mean"]) == (1, 1)


def test_a_plan_and_three_looks_are_simulated() -> None:
    found = plan(World(200, 3, (0.3, 0.3, 0.4), (0.01,) * 2), 20, np.random.default_rng(1))
    assert found["items_planned"] >= 200
    assert found["items_power"]["mean"] > 0.5
    found = plan_regret(World(60, 3, (0.3, 0.3, 0.4), (0.01,) * 2), 20, np.random.default_rng(1))
    assert found["target"] == pytest.approx(0.12)
    assert found["items_planned"] >= 60
    assert found["items_power"]["mean"] > 0.5
    found = looks(World(60, 5, (0.3,) * 3, (0.01,) * 2), 20, np.random.default_rng(1))
    for name in ("items", "seeds"):
        scheduled, careless = (found[f"familywise_error_by_{name}{end}"]["mean"] for end in ("", "_without_schedule"))
        assert scheduled <= careless < 0.3


def test_one_checkpoint_is_drawn_with_its_true_difference() -> None:
    found = artifact(100, 0.2, 0.1, 1000, np.random.default_rng(1))
    assert found["coverage"]["mean"] == pytest.approx(0.95, abs=0.025)
    assert "size" not in found


def test_the_summary_takes_extremes_and_means_of_the_right_cells() -> None:
    def row(kind: str, seeds: int, coverage: float, **more: Any) -> dict[str, Any]:
        rate = {"mean": coverage, "se": 0.001}
        return {"kind": kind, "world": {"seeds": seeds}, "coverage": rate, "coverage_pair": None, **more}

    rows = [
        row("coverage", 3, 0.96, width_ratio=1.2, familywise_error={"mean": 0.02, "se": 0.002}),
        row("coverage", 2, 0.95, width_ratio=1.9, familywise_error={"mean": 0.03, "se": 0.003}),
        row("samples", 3, 0.94, width_ratio=5.0),
        row("stress", 3, 0.91, familywise_error={"mean": 0.04, "se": 0.004}),
    ]
    found = summary(rows)
    assert (found["coverage_min"], found["coverage_min_stress"], found["coverage_mean"]) == (0.94, 0.91, 0.955)
    assert (found["width_ratio_to_oracle"], found["familywise_error_max"]) == (1.2, 0.04)
    assert (found["coverage_min_se"], found["familywise_error_max_se"]) == (0.001, 0.004)


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    """bench/results/truth.json."""
    read: dict[str, Any] = json.loads(FILE.read_text())
    return read


def test_the_file_holds_cells_that_are_asked_for_and_what_is_said_at_its_head(written: dict[str, Any]) -> None:
    assert written.keys() >= KEYS | NUMBERS
    # The largest cells may still be missing: `make truth` goes on where it was stopped.
    assert {key(row["kind"], row["world"]) for row in written["cells"]} <= {key(c.kind, c.world) for c in cells()}
    assert {row["kind"] for row in written["cells"]} >= {"coverage", "stress", "null", "power", "regret"}
    assert {name: written[name] for name in summary(written["cells"])} == summary(written["cells"])


def test_the_statistics_hold_up_to_the_error_of_the_simulation(written: dict[str, Any]) -> None:
    assert written["coverage_min"] >= 0.94 - 2 * written["coverage_min_se"]
    assert written["coverage_min_stress"] >= 0.90 - 2 * written["coverage_min_stress_se"]
    assert written["width_ratio_to_oracle"] <= 1.25
    assert written["familywise_error_max"] <= 0.05 + 2 * written["familywise_error_max_se"]
    assert written["power_gap"] <= 0.12
    assert written["wrong_ours"] <= written["wrong_common"] / 5
    assert written["wrong_ours"] <= written["wrong_tuned"] / 5
    assert written["undecided_ours"] <= written["undecided_oracle"] + 0.25


def test_the_statistics_that_ship_are_those_of_the_file(written: dict[str, Any]) -> None:
    rows = {key(row["kind"], row["world"]): row for row in written["cells"]}
    for kind, choose in (("null", lambda w: len(w["seed_sd"]) == 1), ("regret", lambda w: len(w["seed_sd"]) == 2)):
        cell = next(cell for cell in cells() if cell.kind == kind and choose(cell.world))
        before = rows[key(cell.kind, cell.world)]
        again = simulate(cell, before["studies"])
        # Of older code until `make truth` is run: the draws are the same, and what changed is within their error.
        old = before["code"] != code()
        for name, value in before.items():
            if isinstance(value, dict) and "mean" in value:
                error = 2 * value["se"] if old else 0.0
                assert again[name]["mean"] == pytest.approx(value["mean"], abs=max(0.003, error)), name
