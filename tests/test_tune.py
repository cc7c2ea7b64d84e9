"""Tuning is fair, decided by validation alone, and goes on where it was stopped."""

import gzip
import json
import math
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import called, study_file, written_at
from test_process import finish, start

from finetrap import trial as trial_module
from finetrap.config import Study, load_study
from finetrap.data import load_splits
from finetrap.engine.train import validation_loss
from finetrap.errors import StudyError
from finetrap.method import Method, Training, learning_rate_prior, method, parse_arm, trains, tunable
from finetrap.plan import missing
from finetrap.prepare import prepare
from finetrap.records import TUNING_SEED, Planned, Trial, items_digest
from finetrap.results import ArmResult, Results
from finetrap.store import Store
from finetrap.study import run
from finetrap.task import get_task
from finetrap.tune import RUNGS, Rung, Search, Tried, ranked, search_of, with_tuning

pytestmark = pytest.mark.usefixtures("undrawn")

ARMS = ["few_shot", "prompted", "lora:rank=2", "full", "stated=full:learning_rate=1e-3"]
TUNED = ("few_shot", "prompted", "lora", "full")


def search_for(best: float, rungs: Sequence[Rung], *, prior: float = 1e-3) -> tuple[Search, list[Tried]]:
    """A whole search where the loss has its least at the rate `best`."""
    search = Search("learning_rate", tuple(prior * 10 ** (i - 1) for i in range(rungs[0].start)), tuple(rungs))
    tried: list[Tried] = []
    while (step := search.following(tried)) is not None:
        assert len(tried) < 50
        tried.append(Tried(*step, accuracy=0.5, loss=abs(math.log(float(step[0]) / best)), items=100))
    return search, tried


# --- which one is best -----------------------------------------------------------------------------------------------


def test_the_higher_accuracy_is_better_where_it_is_more_than_a_standard_error() -> None:
    clear = [Tried("a", 0, accuracy=0.5, loss=0.1, items=100), Tried("b", 0, accuracy=0.56, loss=0.9, items=100)]
    assert [t.value for t in ranked(clear)] == ["b", "a"]


def test_a_tie_within_one_standard_error_is_broken_by_the_validation_loss() -> None:
    # sqrt(55/102 * 47/102 / 100) is 0.0498
    tie = [Tried("a", 0, accuracy=0.5, loss=0.1, items=100), Tried("b", 0, accuracy=0.54, loss=0.9, items=100)]
    assert [t.value for t in ranked(tie)] == ["a", "b"]


def test_one_right_answer_at_the_floor_does_not_outweigh_the_loss() -> None:
    # sqrt(2/66 * 64/66 / 64) is 0.0214, more than one answer in 64 and less than two
    for right, best in ((1, "low"), (2, "lucky")):
        tried = [Tried("lucky", 0, right / 64, 9.0, items=64), Tried("low", 0, 0.0, 0.5, items=64)]
        assert ranked(tried)[0].value == best


def test_what_diverged_is_behind_and_what_failed_is_out() -> None:
    tried = [Tried("a", 0, accuracy=0.9, loss=0.1, items=100, diverged=True), Tried("b", 0, 0.1, 9, 100)]
    assert [t.value for t in ranked([*tried, Tried("c", 0, failed=True)])] == ["b", "a"]


# --- what is tried next ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, -1], ids=["above", "below"])
def test_a_best_rate_on_the_edge_widens_the_grid(side: int) -> None:
    _, tried = search_for(1e-3 * 10.0 ** (side * 4), [Rung(1, 3, 2)])
    grid, added = [float(t.value) for t in tried[:3]], [float(t.value) for t in tried[3:]]
    edge = max(grid) if side > 0 else min(grid)
    assert added == pytest.approx([edge * 10 ** (side / 2), edge * 10**side], rel=0.01)


def test_the_grid_is_widened_at_every_rung_and_not_without_end() -> None:
    search, tried = search_for(1e9, RUNGS["thorough"])
    assert Counter(t.rung for t in tried) == {i: r.start + r.follow for i, r in enumerate(RUNGS["thorough"])}
    assert search.chosen(tried) == max(float(t.value) for t in tried)


def test_a_best_rate_within_the_grid_is_refined() -> None:
    search, tried = search_for(1.3e-3, [Rung(1, 3, 2)])
    assert [float(t.value) for t in tried[3:]] == pytest.approx([10**-2.5, 10**-2.75], rel=0.01)
    assert search.chosen(tried) == pytest.approx(1e-3)


@pytest.mark.parametrize("tune", ["quick", "standard", "thorough"])
@pytest.mark.parametrize("best", [1e-9, 1e-3, 2e-3, 1e3])
def test_wherever_the_best_lies_the_budget_is_the_same(tune: str, best: float) -> None:
    rungs = RUNGS[tune]  # type: ignore[index]
    _, tried = search_for(best, rungs)
    assert Counter(t.rung for t in tried) == {i: rung.start + rung.follow for i, rung in enumerate(rungs)}


def test_a_rung_begins_with_the_best_of_the_one_before() -> None:
    _, tried = search_for(1e-3, [Rung(1 / 2, 3, 0), Rung(1, 2, 0)])
    first = sorted(tried[:3], key=lambda t: t.loss or 0)
    assert [t.value for t in tried[3:]] == [t.value for t in first[:2]]


def test_what_failed_has_used_its_part_of_the_budget() -> None:
    search = Search("learning_rate", (1e-4, 1e-3), (Rung(1, 2, 1),))
    tried = [Tried(1e-4, 0, failed=True), Tried(1e-3, 0, 0.5, 1.0, 10)]
    assert search.following(tried) == (pytest.approx(3.16e-3), 0)
    assert search.following([*tried, Tried(3.16e-3, 0, failed=True)]) is None


def test_where_all_fails_nothing_is_chosen() -> None:
    search = Search("learning_rate", (1e-4, 1e-3), (Rung(1 / 2, 2, 1), Rung(1, 2, 1)))
    tried = [Tried(rate, 0, failed=True) for rate in (1e-4, 1e-3)]
    assert search.following(tried) is None
    assert search.chosen(tried) is None


# --- which arms, and where they begin --------------------------------------------------------------------------------


def test_adapters_begin_at_ten_times_the_rate_of_full_fine_tuning_and_wide_models_lower() -> None:
    full, lora, dora = (learning_rate_prior(name, 576) for name in ("full", "lora", "dora"))
    assert lora == dora == pytest.approx(10 * full)
    assert learning_rate_prior("lora", 4 * 576) == pytest.approx(lora / 2)


def test_a_grid_lies_around_the_prior() -> None:
    search = search_of(parse_arm("lora"), "quick", width=2000)
    assert search is not None
    assert search.grid == pytest.approx((5e-4 / 10**0.5, 5e-4, 5e-4 * 10**0.5), rel=0.01)


def test_shots_that_do_not_fit_are_not_tried() -> None:
    search = search_of(parse_arm("few_shot"), "quick", width=2000, fits=lambda shots: shots <= 3)
    assert search is not None
    assert search.grid == (1, 3)


@pytest.mark.parametrize(
    "text", ["lora:learning_rate=1e-3", "few_shot:shots=2", "prompted:template=plain", "zero_shot"]
)
def test_what_is_given_is_not_tuned(text: str) -> None:
    assert search_of(parse_arm(text), "thorough", width=64) is None


def test_one_rate_for_all_tunes_no_trained_arm() -> None:
    study = Study.model_validate({"models": "m", "tasks": "arc_easy", "tune": "quick", "learning_rate": 1e-4})
    assert [arm.name for arm in study.parsed_arms() if arm.tunes] == ["few_shot"]


def test_nothing_is_tuned_unless_it_is_asked_for() -> None:
    study = Study.model_validate({"models": "m", "tasks": "arc_easy"})
    assert not any(arm.tunes for arm in study.parsed_arms())


def test_a_method_of_ones_own_is_tuned_around_its_default() -> None:
    def own(*, training: object) -> object:
        """One of a plugin."""

    try:
        trains(learning_rate=2e-3)(own)  # type: ignore[arg-type]
        assert tunable("own") == "learning_rate"
        assert learning_rate_prior("own", 2000) == 2e-3
    finally:
        del method._entries["own"]


def test_the_seed_of_tuning_is_no_final_seed() -> None:
    with pytest.raises(StudyError, match="is that of tuning"):
        Study.model_validate({"models": "m", "tasks": "arc_easy", "seeds": [0, TUNING_SEED]})


# --- a study that tunes ----------------------------------------------------------------------------------------------


class Tuned:
    """What a study that tunes wrote."""

    def __init__(self, folder: Path, results: Results) -> None:
        self.folder, self.results, self.store = folder, results, Store(folder)
        self.plan = self.store.plan()

    def arm(self, name: str) -> ArmResult:
        return next(arm for arm in self.results.arms if arm.arm == name)

    def candidates(self, name: str) -> list[Planned]:
        return [planned for planned in self.plan.candidates if planned.trial.arm == name]

    def finals(self, name: str) -> list[Trial]:
        return [planned.trial for planned in self.plan.planned if planned.trial.arm == name]


@pytest.fixture(scope="module")
def broken() -> Iterator[set[str]]:
    """The method `brittle` cannot prepare a model while its name is in this set."""
    names = {"brittle"}

    def brittle(*, training: Training) -> Method:
        """Fails while it is broken."""

        def prepare(model):  # type: ignore[no-untyped-def]
            if "brittle" in names:
                raise RuntimeError("it broke")
            return model.requires_grad_(True)

        return Method(training=training, prepare=prepare)

    trains(learning_rate=1e-3)(brittle)
    yield names
    del method._entries["brittle"]


@pytest.fixture(scope="module")
def tuned(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory, broken: set[str]) -> Tuned:
    folder = tmp_path_factory.mktemp("tuned")
    path = study_file(folder, tiny_folder, arms=[*ARMS, "brittle"], retention=[], tune="quick", limit_train=24)
    return Tuned(folder / "out", load_study(path).run(folder / "out", progress=False))


def test_every_trained_method_gets_the_same_budget(tuned: Tuned) -> None:
    spent = {
        name: sorted(
            (p.rung, p.train_rows, t.train_tokens)
            for p in tuned.candidates(name)
            if (t := tuned.store.training(p.trial))
        )
        for name in ("lora", "full")
    }
    assert len(spent["lora"]) == 4
    assert spent["lora"] == spent["full"]
    assert (
        tuned.arm("lora").cost.tune_tokens == tuned.arm("full").cost.tune_tokens == sum(t for _, _, t in spent["full"])
    )


def test_every_rung_is_a_whole_schedule_from_the_untouched_model(tuned: Tuned) -> None:
    untouched = {c.validation_loss for c in tuned.arm("prompted").tuning if c.value == "plain"}
    for planned in (*tuned.candidates("lora"), *tuned.candidates("full")):
        log, record = tuned.store.training_log(planned.trial), tuned.store.training(planned.trial)
        assert record is not None
        assert [record.validation_loss_before] == [pytest.approx(loss, rel=1e-4) for loss in untouched]
        assert max(entry.learning_rate for entry in log) == pytest.approx(planned.trial.settings["learning_rate"])


def test_a_rung_reads_its_share_of_the_training_rows_in_order(tuned: Tuned, tiny_folder: Path, tmp_path: Path) -> None:
    study = tuned.store.study().model_copy(update={"tune": "standard"})
    candidates = prepare(study, tmp_path / "none").plan.candidates
    lora = [planned for planned in candidates if planned.trial.arm == "lora"]
    assert [(p.rung, p.train_rows) for p in lora] == [(0, 6)] * 5 + [(1, 12)] * 3
    train = load_splits(get_task("arc_easy"), limit_train=24).train
    assert {p.trial.train_items for p in lora} == {items_digest(train[:6]), items_digest(train[:12])}


def test_the_final_trial_has_the_best_value_of_the_last_rung(tuned: Tuned) -> None:
    for name in TUNED:
        tried = tuned.arm(name).tuning
        last = [c for c in tried if c.rung == max(c.rung for c in tried)]
        top = max(c.accuracy or 0 for c in last)
        share = (top * last[0].n + 1) / (last[0].n + 2)
        tie = top - math.sqrt(share * (1 - share) / last[0].n)
        best = min((c for c in last if (c.accuracy or 0) >= tie), key=lambda c: c.validation_loss or 0)
        assert [c.value for c in tried if c.chosen] == [best.value]
        assert tuned.arm(name).hyperparameters[best.setting] == best.value
        assert [trial.settings[best.setting] for trial in tuned.finals(name)] == [best.value]


def test_prompts_are_tuned_on_the_same_items_with_a_loss_of_their_own(tuned: Tuned) -> None:
    shots, templates = tuned.arm("few_shot").tuning, tuned.arm("prompted").tuning
    assert [c.value for c in shots] == [1, 3, 5, 8]
    assert [c.value for c in templates] == ["plain", "careful", "stepwise", "breath"]
    items = {e.items for name in TUNED for p in tuned.candidates(name) for e in p.evaluations}
    assert len(items) == 1
    assert len({c.validation_loss for c in (*shots, *templates)}) == 8


def test_tuning_reads_validation_items_and_never_test(tuned: Tuned) -> None:
    splits = load_splits(get_task("arc_easy"), limit_train=24, limit_validation=10)
    validation = {example.id for example in splits.validation}
    for planned in (planned for name in TUNED for planned in tuned.candidates(name)):
        (asked,) = planned.evaluations
        assert asked.purpose == "validation"
        assert {row.id for row in tuned.store.rows(planned.trial, asked)} == validation
    looked = {json.loads(line)["trial"] for line in (tuned.folder / "looks.jsonl").read_text().splitlines()}
    assert not looked & {planned.trial.folder for planned in tuned.plan.candidates}


def test_tuning_seeds_are_not_final_seeds_and_candidates_leave_no_weights(tuned: Tuned) -> None:
    assert {planned.trial.seed for planned in tuned.plan.candidates} == {TUNING_SEED}
    kept = {path.parent.name for path in tuned.folder.glob("trials/*/artifact")}
    assert kept
    assert not any(f"seed{TUNING_SEED}" in name for name in kept)


def test_a_rate_that_was_given_is_used_as_it_is_and_its_last_checkpoint(tuned: Tuned) -> None:
    stated = tuned.arm("stated")
    assert (stated.tuning, stated.cost.tune_seconds, stated.cost.tune_tokens) == ((), None, None)
    assert stated.hyperparameters["learning_rate"] == 1e-3
    assert [trial.best_checkpoint for name in ("stated", "lora") for trial in tuned.finals(name)] == [False, True]


def test_what_tuning_cost_is_the_sum_of_its_candidates(tuned: Tuned) -> None:
    for name in TUNED:
        assert tuned.arm(name).cost.tune_seconds == pytest.approx(sum(c.seconds for c in tuned.arm(name).tuning))
        assert all(c.seconds > 0 for c in tuned.arm(name).tuning)


@pytest.mark.parametrize("of", [{"rescue_of": "lora"}, {"hyperparameters": {"of": "lora", "weight": 0.5}}])
def test_what_goes_on_from_a_tuned_arm_cost_its_search_too(tuned: Tuned, of: dict[str, object]) -> None:
    lora = tuned.arm("lora")
    untuned = lora.cost.model_copy(update={"tune_seconds": None, "tune_tokens": None, "tune_answer_tokens": None})
    after = lora.model_copy(update={"arm": "lora+half", "tuning": (), "cost": untuned, **of})
    found = with_tuning(after, tuned.plan, tuned.store)
    assert (found.cost, found.tuning) == (lora.cost, ())
    assert (lora.cost.tune_answer_tokens or 0) > 0


def test_an_arm_whose_candidates_all_fail_is_a_failure_and_has_no_result(tuned: Tuned) -> None:
    assert "brittle" not in {arm.arm for arm in tuned.results.arms}
    assert {failure.error for failure in tuned.results.failures} == {"RuntimeError: it broke"}
    assert not tuned.finals("brittle")
    # It may be the best, or the one that forgets.
    (recommendation,) = tuned.results.recommendations
    assert (recommendation.method, recommendation.why[0]) == ("undecided", "The study is not complete: brittle.")


def test_a_second_run_tries_again_what_failed_and_nothing_else(tuned: Tuned, broken: set[str]) -> None:
    before = written_at(tuned.folder)
    assert not any(missing(p, tuned.store) for p in prepare(tuned.store.study(), tuned.folder).plan.planned)
    broken.clear()
    again = run(tuned.store.study(), tuned.folder, retry_failed=True)
    after = written_at(tuned.folder)
    assert {name: time for name, time in after.items() if name in before} == before
    assert {name.split("--")[2] for name in after.keys() - before.keys()} == {"brittle"}
    assert not again.failures
    assert len(next(arm for arm in again.arms if arm.arm == "brittle").tuning) == 4
    for name in TUNED:
        assert next(arm for arm in again.arms if arm.arm == name).tuning == tuned.arm(name).tuning


# --- in the middle ---------------------------------------------------------------------------------------------------


def outputs(folder: Path) -> dict[str, list[object]]:
    """What every trial answered, by its folder."""
    return {
        str(path.relative_to(folder)): [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        for path in sorted(folder.glob("trials/*/*/rows.jsonl.gz"))
    }


@pytest.mark.thorough
def test_tuning_that_is_interrupted_goes_on_and_ends_as_if_nothing_had_been(
    tuned: Tuned, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    path = study_file(tmp_path, tiny_folder, retention=[], tune="quick", limit_train=24)
    process = start("run", path, "--out", out)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("tried   lora"):
            break
    process.send_signal(signal.SIGINT)
    code, _, said = finish(process)
    assert (code, "Traceback" in said) == (130, False)
    done = written_at(out)
    assert 0 < len(done) < 4
    assert not (out / "looks.jsonl").exists()

    assert called(capsys, "status", out).out.splitlines()[-1].endswith(f"left in {out}")
    assert called(capsys, "run", path, "--out", out).code == 0
    assert {key: value for key, value in written_at(out).items() if key in done} == done
    ended = outputs(out)
    assert len(ended) == 3 + 4
    assert ended == {name: rows for name, rows in outputs(tuned.folder).items() if name in ended}


def test_where_every_training_begins_is_measured_once(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def counted(*given: Any) -> float | None:
        measured.append(validation_loss(*given))
        return measured[-1]

    monkeypatch.setattr(trial_module, "validation_loss", counted)
    path = study_file(tmp_path, tiny_folder, arms=["lora", "full"], retention=[], tune="quick", limit_train=24)
    load_study(path).run(tmp_path / "out", progress=False)
    records = [json.loads(record.read_text()) for record in tmp_path.glob("out/trials/*/training.json")]
    assert len(records) == 10
    assert {record["validation_loss_before"] for record in records} == {*measured}
    assert len(measured) == 1
