"""From records to verdicts, on hand-made rows whose answer is known."""

from pathlib import Path

import pytest

from finetrap import stats
from finetrap.answer import build_results
from finetrap.config import Study
from finetrap.records import (
    Environment,
    Evaluation,
    EvaluationRecord,
    ItemRow,
    ModelRecord,
    Plan,
    Planned,
    TaskRecord,
    TrainingRecord,
    Trial,
)
from finetrap.report.charts import TONES
from finetrap.report.page import write_page
from finetrap.report.sections import sections
from finetrap.report.table import COLUMNS, cells
from finetrap.results import ArmResult, Results
from finetrap.retention import over_seeds
from finetrap.store import Store, now

pytestmark = pytest.mark.usefixtures("undrawn")

ENVIRONMENT = Environment(
    finetrap="0",
    commit=None,
    python="3.11",
    system="Linux",
    processor="test",
    cores=2,
    threads=2,
    memory_bytes=1,
    device="cpu",
    dtype="float32",
)
MODEL = ModelRecord(name="m", fingerprint="f", quantisation="Q4_1", parameters=1000, aligned=True, chat=True)


def _trial(arm: str, method: str, seed: int = 0, model: str = "m") -> Trial:
    return Trial(
        model=MODEL.model_copy(update={"name": model, "fingerprint": model}),
        task="gsm8k",
        task_version=1,
        arm=arm,
        method=method,
        settings={"arm": arm},
        seed=seed,
        dtype="float32",
        train_items="t",
        validation_items="v",
    )


def _evaluation(purpose: str, task: str, kind: str, n: int) -> Evaluation:
    return Evaluation.model_validate(
        {"purpose": purpose, "task": task, "task_version": 1, "kind": kind, "items": "i", "n": n, "chat": True}
    )


def _target_rows(right: list[bool], *, strict: list[bool] | None = None) -> list[ItemRow]:
    strict = right if strict is None else strict
    return [
        ItemRow(
            id=str(i),
            prompt="p",
            output="",
            gold="1",
            correct=r,
            strict=s,
            anywhere=r,
            formatted=s,
            outcome="correct" if r else "wrong",
        )
        for i, (r, s) in enumerate(zip(right, strict, strict=True))
    ]


def _choice_rows(right: list[bool]) -> list[ItemRow]:
    return [
        ItemRow(
            id=str(i), prompt="p", correct=r, raw=r, outcome="correct" if r else "wrong", loglikelihoods=(0, 0, 0, 0)
        )
        for i, r in enumerate(right)
    ]


def _text_rows(bits_a_byte: float) -> list[ItemRow]:
    return [ItemRow(id=str(i), prompt="p", bits=(bits_a_byte + 0.001 * (i % 3)) * 500, bytes=500) for i in range(50)]


class Records:
    """A study's folder filled by hand."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder)
        self.planned: list[Planned] = []

    def add(
        self,
        arm: str,
        method: str,
        target: list[ItemRow],
        *,
        hellaswag: list[bool] | None = None,
        bits: float | None = None,
        svamp: list[ItemRow] | None = None,
        seed: int = 0,
        diverged: bool = False,
        model: str = "m",
        environment: str = ENVIRONMENT.key,
        rung: int | None = None,
    ) -> None:
        trial = _trial(arm, method, seed, model)
        rows = {_evaluation("target", "gsm8k", "generate", len(target)): target}
        if hellaswag is not None:
            rows[_evaluation("retention", "hellaswag", "choice", len(hellaswag))] = _choice_rows(hellaswag)
        if bits is not None:
            rows[_evaluation("retention", "wikitext2", "text", 50)] = _text_rows(bits)
        if svamp is not None:
            rows[_evaluation("out_of_distribution", "svamp", "generate", len(svamp))] = svamp
        for evaluation, items in rows.items():
            record = EvaluationRecord(
                evaluation=evaluation,
                eval_seconds=1,
                peak_memory_bytes=1,
                prompt_tokens=100,
                output_tokens=100,
                environment=environment,
                finished=now(),
            )
            self.store.save_evaluation(trial, record, items)
        if method in ("full", "lora", "dora"):
            training = TrainingRecord(
                outcome="diverged" if diverged else "completed",
                step=1,
                steps=1,
                validation_loss_before=1,
                validation_loss=1,
                trainable_parameters=10,
                train_tokens=100,
                train_seconds=1,
                tokens_per_second=100,
                peak_memory_bytes=1,
                artifact_bytes=1,
            )
            self.store.save_training(trial, training, [])
        self.planned.append(Planned(trial=trial, evaluations=tuple(rows), rung=rung))

    def results(self, *, states_format: bool = True, **settings: object) -> Results:
        study = Study.model_validate({"models": "m", "tasks": "gsm8k", **settings})
        return build_results(study, self.plan(states_format=states_format), self.store)

    def plan(self, *, states_format: bool = True) -> Plan:
        return Plan(
            command=None,
            environment=ENVIRONMENT,
            dropped_train_rows={},
            planned=tuple(p for p in self.planned if p.rung is None),
            candidates=tuple(p for p in self.planned if p.rung is not None),
            tasks={
                "gsm8k": TaskRecord(
                    rule="rule",
                    states_format=states_format,
                    train=9,
                    validation=9,
                    test_available=1319,
                    test_carved=False,
                )
            },
        )


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "study")


def _first(n: int, of: int = 400) -> list[bool]:
    return [i < n for i in range(of)]


def _arm(results: Results, name: str) -> ArmResult:
    return next(arm for arm in results.arms if arm.arm == name)


def _verdict(results: Results, name: str) -> str:
    versus = _arm(results, name).vs_zero_shot
    assert versus is not None
    return versus.verdict


def _references(records: Records, zero_shot: int = 120, trivial: int = 40) -> None:
    records.add("constant", "constant", _target_rows(_first(trivial)))
    records.add("zero_shot", "zero_shot", _target_rows(_first(zero_shot)))


def test_a_clear_difference_is_gain_or_harm(records: Records) -> None:
    _references(records)
    records.add("better", "lora", _target_rows(_first(200)))
    records.add("worse", "full", _target_rows(_first(60)))
    results = records.results()
    assert _verdict(results, "better") == "gain"
    assert _verdict(results, "worse") == "harm"
    versus = _arm(results, "worse").vs_zero_shot
    assert versus is not None
    assert versus.artifact.delta == pytest.approx(-0.15)
    assert versus.artifact.ci95_adjusted[1] < 0


def test_a_gain_in_the_stated_format_only_is_no_gain(records: Records) -> None:
    n = 400
    records.add("constant", "constant", _target_rows([False] * n))
    records.add("zero_shot", "zero_shot", _target_rows(_first(120), strict=[False] * n))
    # By the flexible rule it gains, but gold stands in the untouched model's answers just as often.
    gained = [row.model_copy(update={"anywhere": i < 120}) for i, row in enumerate(_target_rows(_first(180)))]
    records.add("formatter", "lora", gained)
    assert _verdict(records.results(), "formatter") == "format_only"


def test_a_loss_that_another_rule_calls_a_gain_is_said_to_be_a_loss(records: Records) -> None:
    n = 400
    records.add("constant", "constant", _target_rows([False] * n))
    records.add("zero_shot", "zero_shot", _target_rows(_first(200), strict=[False] * n))
    records.add("formatter", "full", _target_rows(_first(100)))
    results = records.results()
    assert _verdict(results, "formatter") == "format_only"
    said = " ".join(results.recommendations[0].why)
    assert "formatter -25.0 points" in said
    assert "nothing more" not in said


def test_where_no_format_is_taught_a_gain_needs_none(records: Records) -> None:
    n = 400
    records.add("constant", "constant", _target_rows([False] * n))
    records.add("zero_shot", "zero_shot", _target_rows(_first(60), strict=_first(20)))
    records.add("solver", "lora", _target_rows(_first(300), strict=[False] * n))
    assert _verdict(records.results(), "solver") == "format_only"
    results = records.results(states_format=False)
    assert _verdict(results, "solver") == "gain"
    assert (_arm(results, "solver").accuracy_strict, _arm(results, "solver").format_rate) == (None, None)


def test_where_nothing_beats_the_trivial_answer_it_is_the_floor(records: Records) -> None:
    _references(records, zero_shot=10, trivial=12)
    records.add("lora", "lora", _target_rows(_first(14)))
    results = records.results()
    assert _verdict(results, "lora") == "floor"
    (recommendation,) = results.recommendations
    assert recommendation.method == "floor"
    assert recommendation.leader is None


def test_harm_needs_an_untouched_model_above_the_trivial_answer(records: Records) -> None:
    n = 400
    records.add("constant", "constant", _target_rows([60 <= i < 175 for i in range(n)]))
    records.add("zero_shot", "zero_shot", _target_rows(_first(120)))
    records.add("worse", "full", _target_rows([False] * n))
    assert _verdict(records.results(), "worse") == "floor"


def test_a_small_difference_is_undecided(records: Records) -> None:
    _references(records)
    right = _first(120)
    right[130:145] = [True] * 15
    right[0:10] = [False] * 10
    records.add("lora", "lora", _target_rows(right))
    assert _verdict(records.results(), "lora") == "undecided"


def test_the_same_answers_are_no_difference_with_enough_items(records: Records) -> None:
    records.add("constant", "constant", _target_rows(_first(400, 4000)))
    records.add("zero_shot", "zero_shot", _target_rows(_first(1200, 4000)))
    records.add("lora", "lora", _target_rows(_first(1202, 4000)))
    assert _verdict(records.results(), "lora") == "no_difference"


def test_nothing_left_to_gain_is_the_ceiling(records: Records) -> None:
    records.add("constant", "constant", _target_rows(_first(30, 100)))
    records.add("zero_shot", "zero_shot", _target_rows(_first(97, 100)))
    right = _first(99, 100)
    right[0:2] = [False] * 2
    records.add("lora", "lora", _target_rows(right))
    assert _verdict(records.results(), "lora") == "ceiling"


def test_forgetting_shown_by_general_text_drops_an_arm_that_gains(records: Records) -> None:
    retained = _first(100, 200)
    records.add("constant", "constant", _target_rows(_first(40)))
    records.add("zero_shot", "zero_shot", _target_rows(_first(120)), hellaswag=retained, bits=1.0)
    records.add("careless", "full", _target_rows(_first(200)), hellaswag=retained, bits=1.3)
    records.add("lora", "lora", _target_rows(_first(200)), hellaswag=retained, bits=1.001)
    results = records.results(margin=0.1)
    careless, lora = _arm(results, "careless").retention, _arm(results, "lora").retention
    assert careless is not None
    assert lora is not None
    assert careless.verdict == "harm"
    assert careless.bits_per_byte_delta == pytest.approx(0.3)
    assert lora.verdict != "harm"
    (recommendation,) = results.recommendations
    assert set(recommendation.dropped) == {"careless"}
    assert recommendation.method == "lora"
    assert recommendation.confidence == 0.9


@pytest.mark.parametrize(
    ("bits", "verdict", "seed", "out"),
    [((0.8, 0.8), "no_difference", 0, False), ((0.8, 1.0), "harm", 1, True)],
)
def test_a_seed_that_forgets_is_enough_to_drop_an_arm_and_each_has_to_rule_it_out(
    records: Records, bits: tuple[float, float], verdict: str, seed: int, out: bool
) -> None:
    records.add("constant", "constant", _target_rows(_first(40)))
    records.add("zero_shot", "zero_shot", _target_rows(_first(120)), bits=0.8)
    for place, value in enumerate(bits):
        records.add("lora", "lora", _target_rows(_first(200)), bits=value, seed=place)
    results = records.results(arms=["lora"], bits_per_byte_tolerance=0.02)
    retention = _arm(results, "lora").retention
    assert retention is not None
    assert (retention.verdict, retention.seed) == (verdict, seed)
    assert set(retention.seeds) == {"0", "1"}
    unsure = over_seeds({0: retention, 1: retention.model_copy(update={"verdict": "undecided"})})
    assert unsure is not None
    assert unsure.verdict == ("harm" if out else "undecided")
    dropped = results.recommendations[0].dropped
    assert ("lora" in dropped) is out
    assert not out or f"it forgets (seed {seed} of 2)" in dropped["lora"]


def test_forgetting_that_only_general_text_shows_stands_in_the_table(records: Records) -> None:
    records.add("constant", "constant", _target_rows(_first(40)))
    records.add("zero_shot", "zero_shot", _target_rows(_first(120)), bits=1.0)
    records.add("careless", "full", _target_rows(_first(200)), bits=1.3)
    records.add("lora", "lora", _target_rows(_first(200)), bits=1.001)
    results = records.results()
    shown = {arm.arm: dict(zip(COLUMNS, cells(arm), strict=True))["retention"] for arm in results.arms}
    assert shown == {"constant": "-", "zero_shot": "-", "careless": "- FORGETS", "lora": "-"}
    assert results.table().count("FORGETS") == 1
    study, plan = Study(models="m", tasks="gsm8k"), records.plan()
    records.store.save_plan(plan)
    page = write_page(results, study, records.store, sections(results, records.store)).read_text()
    assert f'<span class="dot tone-{TONES["harm"]}"></span>- FORGETS' in page


def test_retention_is_normalised_by_chance(records: Records) -> None:
    records.add("constant", "constant", _target_rows(_first(40)))
    records.add("zero_shot", "zero_shot", _target_rows(_first(120)), hellaswag=_first(100, 200), bits=1.0)
    records.add("lora", "lora", _target_rows(_first(120)), hellaswag=_first(80, 200), bits=1.0)
    retention = _arm(records.results(), "lora").retention
    assert retention is not None
    assert retention.mean == pytest.approx((0.4 - 0.25) / 0.75)
    assert retention.delta == pytest.approx(-0.1 / 0.75)
    assert not retention.tasks["hellaswag"].at_chance
    assert retention.tasks["hellaswag"].delta == pytest.approx(-0.1)


def test_a_general_task_at_chance_is_left_out_of_the_mean(records: Records) -> None:
    records.add("constant", "constant", _target_rows(_first(40)))
    records.add("zero_shot", "zero_shot", _target_rows(_first(120)), hellaswag=_first(50, 200), bits=1.0)
    records.add("lora", "lora", _target_rows(_first(120)), hellaswag=_first(20, 200), bits=1.0)
    retention = _arm(records.results(), "lora").retention
    assert retention is not None
    assert retention.mean is None
    assert retention.delta is None
    assert retention.tasks["hellaswag"].at_chance


def test_arms_that_only_prompt_keep_all_by_construction(records: Records) -> None:
    records.add("constant", "constant", _target_rows(_first(40)))
    records.add("zero_shot", "zero_shot", _target_rows(_first(120)), hellaswag=_first(100, 200), bits=1.0)
    records.add("few_shot", "few_shot", _target_rows(_first(130)))
    results = records.results()
    retention = _arm(results, "few_shot").retention
    assert retention is not None
    assert (retention.delta, retention.bits_per_byte_delta, retention.verdict) == (0, 0, "no_difference")
    assert _arm(results, "constant").retention is None


def test_more_arms_make_the_family_stricter(records: Records) -> None:
    _references(records)
    records.add("a", "lora", _target_rows(_first(128)))
    alone = _arm(records.results(), "a").vs_zero_shot
    for i in range(8):
        records.add(f"b{i}", "dora", _target_rows(_first(120)))
    among = _arm(records.results(), "a").vs_zero_shot
    assert alone is not None
    assert among is not None
    assert alone.artifact.p == among.artifact.p
    assert among.artifact.p_adjusted == pytest.approx(min(1, 9 * alone.artifact.p))
    assert among.artifact.ci95_adjusted[0] < alone.artifact.ci95_adjusted[0]


def test_accuracy_is_the_mean_over_seeds_and_the_verdict_the_first_seeds(records: Records) -> None:
    _references(records)
    records.add("lora", "lora", _target_rows(_first(200)), seed=0)
    records.add("lora", "lora", _target_rows(_first(120)), seed=1, diverged=True)
    results = records.results(seeds=2)
    arm = _arm(results, "lora")
    assert arm.seeds == (0, 1)
    assert arm.accuracy == pytest.approx(0.4)
    assert arm.n_test == 400
    assert arm.vs_zero_shot is not None
    assert arm.vs_zero_shot.artifact.delta == pytest.approx(0.2)
    assert arm.vs_zero_shot.recipe is None
    assert arm.diverged_seeds == (1,)
    assert any("diverged" in warning for warning in results.warnings)
    # What the table shows as its accuracy is not what its verdict is of.
    said = [warning for warning in results.warnings if "is the mean of" in warning]
    assert len(said) == 1
    assert said[0].startswith("lora on gsm8k: accuracy is the mean of 2 seeds and the verdict is of the first (50.0%)")


@pytest.mark.parametrize("full", [0, 4])
def test_where_the_verdict_is_of_the_accuracy_shown_nothing_is_said_of_seeds(records: Records, full: int) -> None:
    _references(records)
    # Two equal seeds; or seeds enough for a verdict on the recipe.
    for seed, right in enumerate([200, 200 + full]):
        records.add("lora", "lora", _target_rows(_first(right)), seed=seed)
    for seed in range(full):
        records.add("full", "full", _target_rows(_first(200 + seed)), seed=seed)
    assert not any("is the mean of" in warning for warning in records.results().warnings)


def test_with_seeds_enough_everything_is_about_the_recipe(records: Records) -> None:
    _references(records)
    for seed, (lora, full) in enumerate([(205, 122), (200, 120), (195, 124)]):
        records.add("lora", "lora", _target_rows(_first(lora)), seed=seed)
        records.add("full", "full", _target_rows(_first(full)), seed=seed)
    results = records.results(seeds=3)
    arm = _arm(results, "lora")
    assert arm.vs_zero_shot is not None
    assert arm.vs_zero_shot.recipe is not None
    assert arm.vs_zero_shot.recipe.delta == pytest.approx(0.2)
    assert arm.vs_zero_shot.verdict == "gain"
    low, high = arm.ci95
    plain = stats.wilson(arm.accuracy, 400)
    assert low < plain.low < plain.high < high
    (comparison,) = results.comparisons
    assert comparison.estimand == "recipe"
    (recommendation,) = results.recommendations
    assert (recommendation.estimand, recommendation.method) == ("recipe", "lora")
    assert "400 items" in recommendation.why[0] or "3 seeds" in recommendation.why[0]
    assert Results.model_validate_json(results.to_json()) == results


def test_a_task_out_of_distribution_is_compared_over_seeds_in_a_family_of_its_own(records: Records) -> None:
    def add(arm: str, method: str, target: int, away: int, *, seed: int = 0) -> None:
        rows = _target_rows(_first(away, of=300))
        records.add(arm, method, _target_rows(_first(target)), svamp=rows, seed=seed)

    add("constant", "constant", 40, 20)
    add("zero_shot", "zero_shot", 120, 150)
    for seed in range(3):
        add("lora", "lora", 200 + seed, 90 - 2 * seed, seed=seed)
        add("full", "full", 130 + seed, 148 + seed, seed=seed)
    results = records.results(seeds=3, out_of_distribution=["svamp"])
    (trivial,), (reference,), (lora,), (full,) = (arm.out_of_distribution for arm in results.arms)
    assert trivial.vs_zero_shot is reference.vs_zero_shot is None
    assert lora.vs_zero_shot is not None
    assert full.vs_zero_shot is not None
    assert lora.vs_zero_shot.recipe is not None
    assert (lora.n_test, lora.vs_zero_shot.recipe.seeds) == (300, 3)
    assert lora.accuracy == pytest.approx(88 / 300)
    assert lora.vs_zero_shot.recipe.delta == pytest.approx(-62 / 300)
    assert (lora.vs_zero_shot.verdict, full.vs_zero_shot.verdict) == ("harm", "no_difference")
    # Of two arms, the smaller p counts twice.
    assert lora.vs_zero_shot.recipe.p_adjusted == pytest.approx(2 * lora.vs_zero_shot.recipe.p)
    assert _verdict(results, "lora") == "gain"


@pytest.mark.parametrize(("asked", "verdict"), [(False, "gain"), (True, "format_only")])
def test_out_of_distribution_a_format_that_no_answer_has_is_not_missed(
    records: Records, asked: bool, verdict: str
) -> None:
    for arm, method, right in (("constant", "constant", 40), ("zero_shot", "zero_shot", 120), ("lora", "lora", 200)):
        formatted = _first(right - 80) if asked and arm == "zero_shot" else [False] * 400
        rows = _target_rows(_first(right), strict=formatted)
        records.add(arm, method, _target_rows(_first(right)), svamp=rows)
    (away,) = _arm(records.results(out_of_distribution=["svamp"]), "lora").out_of_distribution
    assert away.vs_zero_shot is not None
    assert away.vs_zero_shot.verdict == verdict


def test_an_arm_whose_seeds_are_far_apart_is_warned_of(records: Records) -> None:
    _references(records)
    for seed, (wild, calm) in enumerate([(40, 122), (160, 120), (300, 124)]):
        records.add("wild", "full", _target_rows(_first(wild)), seed=seed)
        for i in range(4):
            records.add(f"calm{i}", "lora", _target_rows(_first(calm)), seed=seed)
    warnings = [warning for warning in records.results(seeds=3).warnings if "between seeds" in warning]
    assert len(warnings) == 1
    assert warnings[0].startswith("wild on gsm8k")


@pytest.mark.parametrize("rung", [None, 0])
def test_records_of_several_environments_are_warned_of_those_of_tuning_too(records: Records, rung: int | None) -> None:
    _references(records)
    records.add("lora", "lora", _target_rows(_first(200)))
    assert not any("environment" in warning for warning in records.results().warnings)
    records.add("few_shot", "few_shot", _target_rows(_first(200)), environment="another", rung=rung)
    (warning,) = (warning for warning in records.results().warnings if "environment" in warning)
    assert warning.startswith("the records come from more than one environment")


def test_undecided_comes_with_prior_advice_that_says_it_is_no_evidence(records: Records) -> None:
    _references(records)
    records.add("lora", "lora", _target_rows([i % 3 == 0 and i < 366 for i in range(400)]))
    advice = records.results().recommendations[0].prior_advice
    assert advice is not None
    assert "not evidence of this study" in advice
    records.add("better", "lora", _target_rows(_first(390)))
    (decided,) = records.results().recommendations
    assert (decided.method, decided.prior_advice) == ("better", None)


def test_more_seeds_are_named_where_they_would_decide(records: Records) -> None:
    _references(records)
    for seed, (lora, full) in enumerate([(120, 185), (190, 130), (180, 160)]):
        records.add("lora", "lora", _target_rows(_first(lora)), seed=seed)
        records.add("full", "full", _target_rows(_first(full)), seed=seed)
    (recommendation,) = records.results(seeds=3, margin=0.08).recommendations
    assert recommendation.method == "undecided"
    assert "seeds would decide" in recommendation.next_step
    assert "--seeds" in recommendation.next_step


def test_what_does_not_fit_onto_the_device_is_out_but_still_compared(records: Records) -> None:
    _references(records)
    records.add("lora", "lora", _target_rows(_first(300)))
    # 1,000 weights of 4 bytes.
    assert _arm(records.results(), "lora").cost.shipped_bytes == 4000
    (recommendation,) = records.results(max_size="3.9kB").recommendations
    assert "limit" in recommendation.dropped["lora"]
    assert recommendation.method == "undecided"
    assert recommendation.regret_upper is not None
    assert recommendation.regret_upper > 0.4
    assert records.results(max_size="4kB").recommendations[0].method == "lora"


def test_over_many_queries_shots_cost_more_than_training(records: Records) -> None:
    _references(records, zero_shot=60)
    records.add("lora", "lora", _target_rows(_first(300)))
    records.add("few_shot", "few_shot", _target_rows(_first(300)))
    # Both take the same tokens a query here, and only one of them was trained.
    assert records.results(queries=0).recommendations[0].method == "few_shot"
    assert "over 7 queries" in records.results(queries=7).recommendations[0].why[0]


def test_a_truncated_share_is_warned_of(records: Records) -> None:
    _references(records)
    rows = [row.model_copy(update={"truncated": i < 30}) for i, row in enumerate(_target_rows(_first(120)))]
    records.add("lora", "lora", rows)
    assert any("cut off" in warning for warning in records.results().warnings)


def test_an_undecided_recommendation_says_what_would_decide(records: Records) -> None:
    _references(records)
    records.add("lora", "lora", _target_rows([i % 3 == 0 and i < 366 for i in range(400)]))
    (recommendation,) = records.results().recommendations
    assert recommendation.method == "undecided"
    assert recommendation.leader == "lora"
    assert "test items would decide" in recommendation.next_step
    assert recommendation.regret_upper is not None
    assert recommendation.regret_upper > 0.02


def test_the_table_names_the_quantisation_and_the_verdict(records: Records) -> None:
    _references(records)
    records.add("worse", "full", _target_rows(_first(60)))
    text = records.results().table()
    assert "GGUF Q4_1" in text
    assert "HARM" in text


def test_results_survive_json(records: Records) -> None:
    _references(records)
    records.add("lora", "lora", _target_rows(_first(200)))
    results = records.results()
    assert Results.model_validate_json(results.to_json()) == results
    frame = results.to_pandas()
    assert list(frame["arm"]) == ["constant", "zero_shot", "lora"]


def test_nothing_is_recommended_from_an_incomplete_study(records: Records) -> None:
    _references(records)
    records.add("lora", "lora", _target_rows(_first(200)))
    missing = Planned(trial=_trial("full", "full"), evaluations=(_evaluation("target", "gsm8k", "generate", 400),))
    records.planned.append(missing)
    (recommendation,) = records.results().recommendations
    assert recommendation.method == "undecided"
    assert recommendation.confidence is None
    assert "not complete: full" in recommendation.why[0]


def test_an_arm_whose_forgetting_was_not_measured_is_not_recommended(records: Records) -> None:
    records.add("constant", "constant", _target_rows(_first(40)))
    records.add("zero_shot", "zero_shot", _target_rows(_first(120)), hellaswag=_first(100, 200), bits=1.0)
    records.add("lora", "lora", _target_rows(_first(200)))
    lora = records.planned[-1]
    unmeasured = _evaluation("retention", "hellaswag", "choice", 200)
    records.planned[-1] = lora.model_copy(update={"evaluations": (*lora.evaluations, unmeasured)})
    (recommendation,) = records.results().recommendations
    assert recommendation.method == "undecided"
