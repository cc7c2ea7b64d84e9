import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.optimize import brentq
from scipy.stats import t
from support import SMALL, called, study_file
from test_answer import Records, _first, _target_rows

from finetrap import stats
from finetrap.claim_spec import make_claim
from finetrap.claims import Cell, cells_of, judge
from finetrap.config import load_study, make_study
from finetrap.errors import StudyError
from finetrap.records import ModelRecord
from finetrap.results import ClaimResult, Results
from finetrap.versus import Scored

pytestmark = pytest.mark.usefixtures("undrawn")

ARMS = ("constant", "zero_shot", "few_shot", "full", "lora", "dora")
BASE = {"constant": 0.02, "zero_shot": 0.4, "few_shot": 0.4, "full": 0.4, "lora": 0.4, "dora": 0.4}
ORDERING = {"type": "ordering", "id": "one", "says": "LoRA beats full.", "a": "lora", "b": "full"}


def model(name: str = "small", parameters: int = 135_000_000, *, aligned: bool = True) -> ModelRecord:
    return ModelRecord(
        name=name, fingerprint=name, quantisation=None, parameters=parameters, aligned=aligned, chat=aligned
    )


def cell(
    accuracy: Mapping[str, float] = {},
    *,
    of: ModelRecord | None = None,
    task: str = "gsm8k",
    n: int = 400,
    seeds: int = 3,
    draw: int = 0,
    rules: Mapping[str, Mapping[str, float]] = {},
) -> Cell:
    """Simulated scores: items of different difficulty, answered independently; trained arms with several seeds."""
    rng = np.random.default_rng([draw, len(task), n])
    difficulty = rng.normal(0, 1.5, n)
    arms = {}
    for arm, mean in {**BASE, **accuracy}.items():
        shift = np.quantile(-difficulty, 1 - mean)  # about `mean` of the items are easier than that
        p = 1 / (1 + np.exp(3 * (difficulty + shift)))
        columns = seeds if arm in ("few_shot", "full", "lora", "dora") else 1
        table = (rng.random((n, columns)) < p[:, None]).astype(float)
        by_rule = {rule: np.full((n, columns), means.get(arm, mean)) for rule, means in rules.items()}
        arms[arm] = Scored(table, by_rule)
    return Cell(of or model(), task, arms)


def tables(one: Cell) -> dict[str, stats.Scores]:
    return {arm: scored.table for arm, scored in one.arms.items()}


def one(cells: Sequence[Cell], **claim: Any) -> ClaimResult:
    (result,) = judge([make_claim({**ORDERING, **claim})], cells)
    return result


MODELS = [model("small"), model("middle", 360_000_000, aligned=False), model("large", 1_200_000_000)]
TRUE = {"lora": 0.6, "full": 0.3}
EVERY_TYPE = {
    "ordering": ({}, [TRUE, TRUE], [{"lora": 0.3, "full": 0.6}] * 2),
    "equivalence": ({"margin": 0.15}, [{}, {}], [TRUE, TRUE]),
    "interaction": ({"tasks": ["gsm8k", "orca"]}, [TRUE, {"lora": 0.3, "full": 0.6}], [{"lora": 0.3}, TRUE]),
}


@pytest.mark.parametrize("quantifier", ["all", "any", "most", "mean"])
@pytest.mark.parametrize("kind", EVERY_TYPE)
def test_what_is_so_by_far_is_supported_and_the_contrary_refuted(kind: str, quantifier: str) -> None:
    settings, true, contrary = EVERY_TYPE[kind]
    for accuracies, verdict in ((true, "supported"), (contrary, "refuted")):
        cells = [
            cell(accuracy, of=of, task=task, draw=i)
            for i, of in enumerate(MODELS)
            for task, accuracy in zip(("gsm8k", "orca"), accuracies, strict=True)
        ]
        result = one(cells, type=kind, **settings, **{"for": quantifier})
        assert result.verdict == verdict, result.evidence
        assert result.p == result.p_adjusted
        assert result.p is not None
        assert result.p < 0.05


@pytest.mark.parametrize("quantifier", ["all", "any", "most", "mean"])
def test_swapping_the_arms_turns_the_verdict_of_an_ordering_round(quantifier: str) -> None:
    cells = [cell(TRUE, of=of, draw=i) for i, of in enumerate(MODELS)]
    forth, back = (one(cells, a=a, b=b, **{"for": quantifier}) for a, b in (("lora", "full"), ("full", "lora")))
    assert (forth.verdict, back.verdict) == ("supported", "refuted")
    if quantifier == "mean":
        assert forth.p == pytest.approx(back.p)


def test_equal_arms_are_told_apart_in_at_most_5_percent() -> None:
    studies = [[cell(of=of, n=100, draw=10 * draw + i) for i, of in enumerate(MODELS)] for draw in range(40)]
    for quantifier in ("all", "any", "most", "mean"):
        wrong = sum(one(cells, **{"for": quantifier}).verdict != "undetermined" for cells in studies)
        # At a true rate of 5%, 7 or more of 40 have a probability of 0.3%.
        assert wrong < 7, quantifier


def test_one_model_and_task_is_the_statistics_own_difference() -> None:
    scores = cell({"lora": 0.5}, draw=1)
    result = one([scores])
    lora, full = scores.arms["lora"].table, scores.arms["full"].table
    assert result.p == pytest.approx(stats.difference(lora, full, stats.pool_seeds(tables(scores).values())).p)


def test_one_seed_is_the_difference_over_items_alone_and_says_so() -> None:
    scores = cell({"lora": 0.5}, seeds=1, draw=1)
    result = one([scores])
    d = np.concatenate(
        [scores.arms["lora"].first - scores.arms["full"].first, [1, -1]]
    )  # Bonett and Price's pseudo-items
    expected = 2 * t.sf(abs(d.mean()) / np.sqrt(d.var() / len(d)), len(d) - 3)
    assert result.p == pytest.approx(expected)
    assert "one seed, which says nothing of another" in result.evidence[0]


def test_the_quantifiers_are_partial_conjunctions_of_the_cases() -> None:
    cells = [
        cell({"lora": mean}, of=of, draw=i) for i, (of, mean) in enumerate(zip(MODELS, (0.6, 0.5, 0.42), strict=True))
    ]
    p = sorted(float(one([c]).p or 1) for c in cells)
    assert all(c.arms["lora"].table.mean() > c.arms["full"].table.mean() for c in cells)
    assert one(cells, **{"for": "all"}).p == pytest.approx(p[2])
    assert one(cells, **{"for": "most"}).p == pytest.approx(2 * p[1])
    assert one(cells, **{"for": "any"}).p == pytest.approx(3 * p[0])


def test_all_is_refuted_by_one_model_and_any_supported_by_one() -> None:
    cells = [cell(TRUE, of=MODELS[0]), cell({"lora": 0.2, "full": 0.6}, of=MODELS[1]), cell(of=MODELS[2], n=50)]
    assert one(cells, **{"for": "all"}).verdict == "refuted"
    assert one(cells, **{"for": "any"}).verdict == "supported"
    assert one(cells, **{"for": "most"}).verdict == "undetermined"


def test_the_mean_pairs_models_on_the_items_that_they_share() -> None:
    small, large = (cell({"lora": 0.5}, of=of, draw=i) for i, of in enumerate(MODELS[:2]))
    mean = {arm: (small.arms[arm].table + large.arms[arm].table) / 2 for arm in ARMS}
    pool = stats.pool_seeds(mean.values())
    expected = stats.difference(mean["lora"], mean["full"], pool)
    result = one([small, large], **{"for": "mean"})
    assert result.p == pytest.approx(expected.p)
    assert f"{100 * expected.delta:+.1f} points" in result.evidence[-1]


def test_an_interaction_is_the_difference_of_differences_of_independent_tasks() -> None:
    cells = [cell({"lora": 0.5}, draw=1), cell({"lora": 0.38}, task="orca", draw=2)]
    parts = [
        stats.difference(of_arm["lora"], of_arm["full"], stats.pool_seeds(of_arm.values()))
        for of_arm in map(tables, cells)
    ]
    result = one(cells, type="interaction", tasks=["gsm8k", "orca"])
    z = abs(parts[0].centre - parts[1].centre) / np.hypot(parts[0].standard_error, parts[1].standard_error)
    # Between the p of t with the fewest degrees of freedom and that of many.
    assert result.p is not None
    assert 2 * t.sf(z, 1e9) < result.p < 2 * t.sf(z, min(part.seed_df for part in parts))
    assert f"{100 * (parts[0].delta - parts[1].delta):+.1f} points" in result.evidence[0]


@pytest.mark.parametrize(
    ("models", "chosen"),
    [
        ({"below": "300M"}, ["small"]),
        ({"above": "0.3B"}, ["middle", "large"]),
        ({"above": 135_000_000, "below": "1.2B"}, ["middle"]),
        ({"aligned": True}, ["small", "large"]),
        ({"aligned": False}, ["middle"]),
        ("large", ["large"]),
        (["small", "middle"], ["small", "middle"]),
        ({}, ["small", "middle", "large"]),
    ],
)
def test_models_are_chosen_by_name_size_and_alignment(models: object, chosen: list[str]) -> None:
    result = one([cell(of=of) for of in MODELS], models=models)
    assert [line.split()[0] for line in result.evidence[:-1]] == chosen


def test_no_such_model_leaves_a_claim_undetermined() -> None:
    result = one([cell()], models={"below": "100M"})
    assert (result.verdict, result.p, result.p_adjusted) == ("undetermined", None, None)
    assert result.evidence == ("The study has no model below 100M parameters.",)


def test_the_floor_decides_nothing_and_says_so() -> None:
    floor = {"zero_shot": 0.02, "full": 0.02, "lora": 0.025}
    for claim in ({"type": "ordering"}, {"type": "equivalence", "margin": 0.2}):
        result = one([cell(floor)], **claim)
        assert (result.verdict, result.p) == ("undetermined", None)
        assert "neither arm beats the trivial one, and floors decide nothing" in result.evidence[0]
    cells = [cell(floor, of=MODELS[0]), cell(TRUE, of=MODELS[1])]
    assert one(cells, **{"for": "all"}).verdict == "undetermined"
    assert one(cells, **{"for": "any"}).verdict == "supported"
    mean = one(cells, **{"for": "mean"})
    assert mean.verdict == "supported"
    assert mean.evidence[-1].startswith("The mean of 1: ")


def test_arms_that_are_not_done_are_named_and_leave_a_claim_undetermined() -> None:
    there, gone = cell(TRUE, of=MODELS[0]), cell(of=MODELS[1])
    gone = Cell(gone.model, gone.task, {arm: scored for arm, scored in gone.arms.items() if arm != "lora"})
    for quantifier in ("all", "most", "mean"):
        result = one([there, gone], **{"for": quantifier})
        assert result.verdict == "undetermined"
        assert "there are no scores of 'lora' on gsm8k yet" in result.evidence[1]


def test_a_mean_that_cannot_be_taken_says_why() -> None:
    floor = {"zero_shot": 0.02, "full": 0.02, "lora": 0.025}
    gone = Cell(MODELS[1], "gsm8k", {})
    for cells, why in (
        ([cell(floor)], "The mean cannot be taken: nothing is above the floor."),
        ([cell(TRUE), gone], "The mean cannot be taken: something is missing."),
    ):
        result = one(cells, **{"for": "mean"})
        assert (result.verdict, result.p, result.p_adjusted) == ("undetermined", None, None)
        assert result.evidence[-1] == why


@pytest.mark.parametrize("margin", [0.02, 0.06, 0.15])
def test_an_equivalence_is_two_one_sided_tests_of_its_margin(margin: float) -> None:
    compared = cell({"lora": 0.45})
    arms = tables(compared)
    pool = stats.pool_seeds([table for table in arms.values() if table.shape[1] > 1])
    found = stats.difference(arms["lora"], arms["full"], pool)

    def beyond(centre: float) -> float:
        """One-sided p of a centre above 0: the level whose one-sided interval just reaches it."""
        level = brentq(lambda alpha: found.half_width(2 * alpha) - abs(centre), 1e-12, 0.5 - 1e-12)
        return level if centre > 0 else 1 - level

    inside = max(beyond(margin - found.centre), beyond(margin + found.centre))
    outside = min(1.0, 2 * min(beyond(found.centre - margin), beyond(-found.centre - margin)))
    result = one([compared], type="equivalence", margin=margin)
    assert result.p == pytest.approx(min(inside, outside), abs=1e-9)
    said = ("supported" if inside < outside else "refuted") if min(inside, outside) < 0.05 else "undetermined"
    assert result.verdict == said


def test_what_only_the_format_explains_decides_nothing() -> None:
    accuracy = {"lora": 0.6, "full": 0.3}
    same, other = {"anywhere": accuracy}, {"anywhere": {"lora": 0.3, "full": 0.6}}
    assert one([cell(TRUE, rules=same)]).verdict == "supported"
    result = one([cell(TRUE, rules=other)])
    assert result.verdict == "undetermined"
    assert "not by every way of reading an answer" in result.evidence[0]


def test_a_task_of_choices_does_not_hide_that_only_the_format_explains_a_mean() -> None:
    lower = {"anywhere": {"lora": 0.3, "full": 0.6}}
    choices = cell(task="arc_easy", draw=3)
    result = one([cell(TRUE, rules=lower), choices], **{"for": "mean"})
    assert result.verdict == "undetermined"
    assert "not by every way of reading an answer" in result.evidence[-1]
    # By the other rule too the mean is higher: choices are read in one way alone, and lend what they show.
    higher = cell({"lora": 0.9, "full": 0.1}, task="arc_easy", draw=3)
    assert one([cell(TRUE, rules=lower), higher], **{"for": "mean"}).verdict == "supported"


def test_claims_are_one_family_that_counts_those_that_cannot_be_judged() -> None:
    claims = [
        make_claim({**ORDERING, "id": "a"}),
        make_claim({**ORDERING, "id": "b", "a": "dora"}),
        make_claim({**ORDERING, "id": "c", "models": {"below": "1M"}}),
    ]
    results = judge(claims, [cell({"lora": 0.5, "dora": 0.47}, draw=1)])
    p = [result.p or 1.0 for result in results]
    assert [result.p_adjusted or 1.0 for result in results] == pytest.approx(stats.holm(p))
    assert "corrected for 3 claims" in results[0].evidence[-1]


def test_evidence_is_in_points_with_intervals_items_and_seeds() -> None:
    scores = cell(TRUE)
    of_arm = tables(scores)
    d = stats.difference(of_arm["lora"], of_arm["full"], stats.pool_seeds(of_arm.values()))
    low, high = d.interval()
    result = one([scores])
    assert result.evidence[0] == (
        f"small on gsm8k: lora - full {100 * d.delta:+.1f} points (95% interval {100 * low:+.1f} to {100 * high:+.1f}; "
        f"400 items, 3 seeds)."
    )
    assert result.evidence[1].startswith("Has to hold in 1 of 1: it does in 1, the contrary does in 0; p ")


STUDY = {**SMALL, "models": ["smollm2-135m"], "tasks": ["gsm8k", "arc_easy"], "arms": ["default"], "retention": []}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"a": "lorra"}, "unknown arm 'lorra'; did you mean 'lora'?"),
        ({"b": "lora"}, "'claims.0.b': the claim compares the arm 'lora' with itself."),
        ({"tasks": "gsm8"}, "unknown task 'gsm8'; did you mean 'gsm8k'?"),
        ({"models": "smollm2-135"}, "unknown model 'smollm2-135'; did you mean 'smollm2-135m'?"),
        ({"models": {"below": "many"}}, "'claims.0.models.below': input should be a valid integer"),
        ({"models": {"belw": "3M"}}, "unknown setting 'claims.0.models.belw'; did you mean 'below'?"),
        ({"for": "some"}, "'claims.0.for': input should be 'all', 'any', 'most' or 'mean', got 'some'."),
        ({"fro": "all"}, "unknown setting 'claims.0.fro'; did you mean 'for'?"),
        ({"type": "order"}, "unknown type of claim 'order'; did you mean 'ordering'?"),
        ({"type": None}, "a claim is a mapping with `type: ordering|equivalence|interaction`"),
        ({"type": "equivalence"}, "'claims.0.margin' is missing."),
        ({"type": "interaction"}, "'claims.0.tasks' is missing."),
        ({"type": "interaction", "tasks": ["gsm8k", "gsm8k"]}, "compares the task 'gsm8k' with itself"),
    ],
)
def test_a_wrong_claim_says_what_and_where(change: dict[str, object], says: str) -> None:
    with pytest.raises(StudyError) as error:
        make_study({**STUDY, "claims": [{**ORDERING, **change}]})
    assert says in str(error.value)


def test_two_claims_of_one_id_are_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "claims": [ORDERING, ORDERING]}))
    with pytest.raises(StudyError, match=r"study.yaml:\d+: .*two claims have the id 'one'"):
        load_study(path)


def test_claims_survive_being_written_and_read() -> None:
    claims = [
        {**ORDERING, "models": {"below": "300M"}, "for": "any"},
        {**ORDERING, "id": "two", "type": "equivalence", "margin": 0.03},
        {**ORDERING, "id": 3, "type": "interaction", "tasks": ["gsm8k", "arc_easy"]},
    ]
    study = make_study({**STUDY, "claims": claims})
    again = make_study(yaml.safe_load(yaml.safe_dump(study.model_dump(mode="json", exclude_defaults=True))))
    assert again == study


def test_a_study_judges_its_claims_and_the_command_prints_them(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    claim = {**ORDERING, "b": "zero_shot", "says": "LoRA helps."}
    path = tmp_path / "study.yaml"
    settings = {**SMALL, "models": [str(tiny_folder)], "retention": []}
    path.write_text(yaml.safe_dump({**settings, "claims": [claim]}))
    out = tmp_path / "out"
    assert called(capsys, "run", path, "--out", out).code == 0
    results = Results.model_validate_json((out / "results.json").read_text())
    (result,) = results.claims
    lora, zero = (next(arm for arm in results.arms if arm.arm == name) for name in ("lora", "zero_shot"))
    assert f"lora - zero_shot {100 * (lora.accuracy - zero.accuracy):+.1f} points" in result.evidence[0]
    printed = called(capsys, "claims", out)
    assert printed.out.startswith(f"one: {result.verdict.upper()}. LoRA helps.\n  {result.evidence[0]}")
    assert json.loads(called(capsys, "claims", out, "--json").out) == [result.model_dump(mode="json")]


def test_a_study_without_claims_says_how_to_state_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study_file(tmp_path, "smollm2-135m")
    done = called(capsys, "claims", tmp_path)
    assert done.code == 2
    assert "states no claims; add `claims:`" in done.err


def _filled(folder: Path, arms: Mapping[str, Sequence[int]]) -> Records:
    """A study's folder with arms that are right on their first so many of 200 items, by seed."""
    records = Records(folder)
    records.add("constant", "constant", _target_rows(_first(4, 200)))
    for arm, counts in arms.items():
        for seed, count in enumerate(counts):
            records.add(arm, "interpolated" if "+" in arm else arm, _target_rows(_first(count, 200)), seed=seed)
    return records


CLAIMED: dict[str, Any] = {"arms": ["full", "lora"], "claims": [ORDERING]}


def test_with_too_few_seeds_the_other_rules_are_of_the_first_seeds_too(tmp_path: Path) -> None:
    alone = _filled(tmp_path / "alone", {"lora": [100], "full": [80]}).results(**CLAIMED).claims
    two = _filled(tmp_path / "two", {"lora": [100, 20], "full": [80, 80]}).results(**CLAIMED).claims
    assert [claim.verdict for claim in alone] == ["supported"]
    assert two == alone


def test_claims_are_about_the_target_s_items_alone(tmp_path: Path) -> None:
    more = Records(tmp_path / "more")
    for arm, right in (("constant", 4), ("lora", 100), ("full", 80)):
        more.add(arm, arm, _target_rows(_first(right, 200)), hellaswag=_first(10, 50))
    alone = _filled(tmp_path / "alone", {"lora": [100], "full": [80]})
    expected, found = (judge([make_claim(ORDERING)], cells_of(r.plan(), r.store)) for r in (alone, more))
    assert found == expected


@pytest.mark.parametrize(("states_format", "verdict"), [(True, "undetermined"), (False, "supported")])
def test_a_format_that_is_not_taught_decides_no_claim(tmp_path: Path, states_format: bool, verdict: str) -> None:
    records = Records(tmp_path)
    for arm, right, formatted in (("constant", 4, 4), ("lora", 100, 0), ("full", 60, 10)):
        records.add(arm, arm, _target_rows(_first(right, 200), strict=_first(formatted, 200)))
    (claim,) = records.results(states_format=states_format, **CLAIMED).claims
    assert claim.verdict == verdict


def test_every_way_of_reading_is_asked_of_both_arms() -> None:
    # By the other rule full has what lora has, or lora what full has: no sign at all.
    for reading in ({"lora": 0.6, "full": 0.6}, {"lora": 0.3, "full": 0.3}):
        assert one([cell(TRUE, rules={"anywhere": reading})]).verdict == "undetermined"


def test_the_arms_that_rescue_another_tell_claims_nothing(tmp_path: Path) -> None:
    first = {"lora": [100, 90, 95], "full": [80, 85, 80]}
    records = _filled(tmp_path, {**first, "full+half": [60, 120, 90]})
    records.planned = [
        planned.model_copy(update={"rescue_of": "full"}) if planned.trial.arm == "full+half" else planned
        for planned in records.planned
    ]
    before = _filled(tmp_path / "before", first)
    expected, found = (judge([make_claim(ORDERING)], cells_of(r.plan(), r.store)) for r in (before, records))
    assert expected[0].p is not None
    assert found == expected
