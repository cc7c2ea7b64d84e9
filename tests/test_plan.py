"""Which trials a study has, what names them, and what of them is still to be done."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import own_rows
import pytest
from support import evaluation_record

from finetrap.config import ModelSpec, Study
from finetrap.models import find
from finetrap.plan import (
    Estimate,
    TaskItems,
    estimate,
    examples_of,
    load_tasks,
    measured_flops,
    missing,
    most_disk_bytes,
    plan,
    task_record,
    test_items,
)
from finetrap.records import Evaluation, ItemRow, Planned, TaskRecord, Trial
from finetrap.store import Store
from finetrap.task import Example

Planner = Callable[..., list[Planned]]


@pytest.fixture(scope="module")
def planned(tiny_folder: Path) -> Planner:
    """The plan of a study of the tiny model on ARC-Easy; the same settings are planned once."""
    tasks: dict[tuple[object, ...], dict[str, TaskItems]] = {}

    def make(*, dtype: str = "float32", chat: bool | None = None, **settings: object) -> list[Planned]:
        values = {"tasks": "arc_easy", "arms": ["few_shot", "lora"], "limit_train": 16, "limit_test": 10, **settings}
        study = Study.model_validate({"models": str(tiny_folder), **values})
        key = (study.tasks, study.limit_train, study.limit_validation)
        if key not in tasks:
            tasks[key] = load_tasks(study)
        return plan(study, [find(ModelSpec(name=str(tiny_folder), chat=chat))], tasks[key], dtype=dtype)

    return make


def trial_of(planned: list[Planned], arm: str) -> Trial:
    return next(p.trial for p in planned if p.trial.arm == arm)


def asked_of(planned: list[Planned], arm: str, purpose: str = "target") -> list[Evaluation]:
    return [e for p in planned if p.trial.arm == arm for e in p.evaluations if e.purpose == purpose]


# --- which trials ----------------------------------------------------------------------------------------------------


def test_the_reference_arms_come_first(planned: Planner) -> None:
    assert [p.trial.arm for p in planned()] == ["constant", "zero_shot", "few_shot", "lora"]


def test_a_method_without_randomness_is_one_trial_whatever_the_seeds(planned: Planner) -> None:
    seeds = [(p.trial.arm, p.trial.seed) for p in planned(seeds=[3, 5])]
    draws = [("few_shot", draw) for draw in (3, 5, 0, 1, 2)]  # cheaper than trainings, and so more of them
    assert seeds == [("constant", 0), ("zero_shot", 0), *draws, ("lora", 3), ("lora", 5)]


def test_every_task_has_every_arm(planned: Planner) -> None:
    cells = {(p.trial.task, p.trial.arm) for p in planned(tasks=["arc_easy", "gsm8k"])}
    assert cells == {(t, a) for t in ("arc_easy", "gsm8k") for a in ("constant", "zero_shot", "few_shot", "lora")}


def test_an_arm_reads_of_train_and_validation_only_what_it_uses(planned: Planner) -> None:
    trials = planned()
    nothing = trial_of(trials, "zero_shot").train_items
    lora, few_shot, constant = (trial_of(trials, arm) for arm in ("lora", "few_shot", "constant"))
    assert lora.train_items == few_shot.train_items != nothing
    assert constant.train_items not in (nothing, lora.train_items)
    assert few_shot.validation_items == constant.validation_items == nothing != lora.validation_items


def test_the_trivial_arm_counts_all_of_train_whatever_the_limit(planned: Planner) -> None:
    keys = {trial_of(planned(limit_train=n), "constant").training_key for n in (16, 24)}
    assert len(keys) == 1


# --- what they are asked ---------------------------------------------------------------------------------------------


def test_what_the_model_is_trained_for_is_not_a_measure_of_retention(planned: Planner) -> None:
    asked = asked_of(planned(), "lora", "retention")
    assert [e.task for e in asked] == ["hellaswag", "wikitext2", "divergence", "ifeval"]


def test_siblings_of_the_target_are_no_measure_of_retention(planned: Planner) -> None:
    asked = asked_of(planned(tasks="gsm8k", retention=["svamp", "arc_easy"]), "lora", "retention")
    assert [e.task for e in asked] == ["arc_easy"]


def test_arms_that_only_prompt_are_not_asked_for_retention_but_for_the_reference(planned: Planner) -> None:
    trials = planned()
    assert [bool(asked_of(trials, arm, "retention")) for arm in ("constant", "zero_shot", "few_shot")] == [
        False,
        True,
        False,
    ]


def test_the_number_of_items_is_that_of_the_limits(planned: Planner) -> None:
    trials = planned(limit_test=12, limit_retention=11)
    assert {e.n for e in asked_of(trials, "lora")} == {12}
    assert {e.n for e in asked_of(trials, "lora", "retention")} == {11}
    asked = {e.task: e.n for e in asked_of(planned(limit_retention=11, limit_instructions=3), "lora", "retention")}
    assert asked == {"hellaswag": 11, "wikitext2": 11, "divergence": 11, "ifeval": 3}


def test_instructions_are_for_models_that_are_prompted_through_their_chat_template(planned: Planner) -> None:
    asked = asked_of(planned(chat=False), "lora", "retention")
    assert [e.task for e in asked] == ["hellaswag", "wikitext2", "divergence"]
    assert not any(e.chat for e in asked)


def test_another_task_is_asked_of_every_arm(planned: Planner) -> None:
    trials = planned(tasks="gsm8k", out_of_distribution=["svamp"])
    assert all([e.task for e in asked_of(trials, p.trial.arm, "out_of_distribution")] == ["svamp"] for p in trials)


def test_shots_are_written_down_and_follow_the_seed(planned: Planner) -> None:
    first, second = (asked_of(planned(seeds=[seed]), "few_shot")[0] for seed in (1, 2))
    assert len(set(first.shots)) == len(set(second.shots)) == 5
    assert first.shots != second.shots
    assert first.shots == asked_of(planned(seeds=[1, 2]), "few_shot")[0].shots


def test_chat_is_for_generation_and_conversations_only(planned: Planner) -> None:
    chat = {e.task for p in planned(chat=True) for e in p.evaluations if e.chat}
    assert chat == {"divergence", "ifeval"}
    generated = [e for p in planned(tasks="gsm8k", chat=True) for e in p.evaluations if e.kind == "generate"]
    assert generated
    assert all(e.chat for e in generated)


# --- what names an artifact ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"arms": ["few_shot", "other=few_shot", "lora"]},
        {"limit_test": 20},
        {"limit_retention": 30},
        {"retention": []},
        {"out_of_distribution": ["hellaswag"]},
        {"seeds": [0, 1]},
        {"margin": 0.1},
        {"keep": "all"},
        {"name": "another"},
        {"learning_rate": 1e-3},
        {"arms": ["few_shot", "lora:rank=16,alpha=32"]},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_what_does_not_decide_the_weights_keeps_the_training_key(planned: Planner, settings: dict[str, object]) -> None:
    before, after = planned(), planned(**settings)
    for arm in ("constant", "zero_shot", "few_shot", "lora"):
        assert trial_of(after, arm).training_key == trial_of(before, arm).training_key


@pytest.mark.parametrize(
    "settings",
    [
        {"arms": ["few_shot", "lora:rank=8"]},
        {"learning_rate": 2e-3},
        {"epochs": 2},
        {"batch_size": 8},
        {"seeds": [1]},
        {"dtype": "bfloat16"},
        {"limit_train": 24},
        {"limit_train": 200, "limit_validation": 10},
        {"chat": False},
        {"tasks": "gsm8k"},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_what_decides_the_weights_changes_the_training_key(planned: Planner, settings: dict[str, object]) -> None:
    before, after = trial_of(planned(), "lora"), trial_of(planned(**settings), "lora")
    assert after.training_key != before.training_key


def test_the_name_of_an_arm_is_not_part_of_the_training_key(planned: Planner) -> None:
    trials = planned(arms=["lora", "mine=lora"])
    assert trial_of(trials, "mine").training_key == trial_of(trials, "lora").training_key


def test_where_a_model_lies_is_not_part_of_the_training_key(planned: Planner) -> None:
    trial = trial_of(planned(), "lora")
    moved = trial.model_copy(update={"model": trial.model.model_copy(update={"name": "/elsewhere"})})
    assert moved.training_key == trial.training_key


@pytest.mark.parametrize("field", ["task_version", "protocol"])
def test_another_version_changes_the_training_key(planned: Planner, field: str) -> None:
    trial = trial_of(planned(), "lora")
    assert trial.model_copy(update={field: 99}).training_key != trial.training_key


def test_another_model_changes_the_training_key(planned: Planner) -> None:
    trial = trial_of(planned(), "lora")
    other = trial.model.model_copy(update={"fingerprint": "f" * 64})
    assert trial.model_copy(update={"model": other}).training_key != trial.training_key


def test_a_checkpoint_is_named_by_its_content(planned: Planner, tiny_folder: Path, tmp_path: Path) -> None:
    from support import model_copy

    same, other = tmp_path / "same", tmp_path / "other"
    model_copy(tiny_folder, same)
    model_copy(tiny_folder, other, rms_norm_eps=0.1)
    first = trial_of(planned(arms=[f"mine={same}"]), "mine").training_key
    same.rename(tmp_path / "moved")
    assert trial_of(planned(arms=[f"mine={tmp_path / 'moved'}"]), "mine").training_key == first
    assert trial_of(planned(arms=[f"mine={other}"]), "mine").training_key != first


# --- what names predictions ------------------------------------------------------------------------------------------


def test_more_test_items_are_another_evaluation(planned: Planner) -> None:
    (few,), (more,) = asked_of(planned(), "lora"), asked_of(planned(limit_test=20), "lora")
    assert few.key("artifact") != more.key("artifact")


def test_another_artifact_is_another_evaluation(planned: Planner) -> None:
    (asked,) = asked_of(planned(), "lora")
    assert asked.key("one") != asked.key("other")


def test_what_an_evaluation_is_for_does_not_change_its_predictions(planned: Planner) -> None:
    (asked,) = asked_of(planned(), "lora")
    assert asked.model_copy(update={"purpose": "retention"}).key("artifact") == asked.key("artifact")


@pytest.mark.parametrize(
    "change", [{"shots": ("a",)}, {"chat": True}, {"max_new_tokens": 7}, {"items": "x"}, {"task_version": 2}]
)
def test_another_prompt_decoding_or_item_is_another_evaluation(planned: Planner, change: dict[str, object]) -> None:
    (asked,) = asked_of(planned(), "lora")
    assert asked.model_copy(update=change).key("artifact") != asked.key("artifact")


# --- what is left ----------------------------------------------------------------------------------------------------


def _save(store: Store, trial: Trial, evaluation: Evaluation) -> None:
    store.save_evaluation(trial, evaluation_record(evaluation), [ItemRow(id="a", prompt="p")])


def test_what_is_done_is_not_planned_again(planned: Planner, tmp_path: Path) -> None:
    store = Store(tmp_path)
    lora = next(p for p in planned() if p.trial.arm == "lora")
    assert missing(lora, store) == list(lora.evaluations)
    _save(store, lora.trial, lora.evaluations[0])
    assert missing(lora, store) == list(lora.evaluations[1:])


def test_an_arm_under_another_name_is_done_when_the_first_is(planned: Planner, tmp_path: Path) -> None:
    store = Store(tmp_path)
    one, same = (p for p in planned(arms=["lora", "mine=lora"]) if p.trial.method == "lora")
    for evaluation in one.evaluations:
        _save(store, one.trial, evaluation)
    assert not missing(same, store)


def test_what_is_done_is_estimated_to_take_nothing(planned: Planner, tmp_path: Path, tiny_folder: Path) -> None:
    store = Store(tmp_path)
    study = Study.model_validate({"models": str(tiny_folder), "tasks": "arc_easy", "limit_train": 16, "limit_test": 10})
    lora = next(p for p in planned() if p.trial.arm == "lora")
    items = load_tasks(study)["arc_easy"]
    left = estimate(study, lora, items, store, flops=1e9)
    assert left.seconds > 0
    assert left.disk_bytes > 0
    for evaluation in lora.evaluations:
        _save(store, lora.trial, evaluation)
    assert estimate(study, lora, items, store, flops=1e9) == (0.0, 0)


Left = Callable[..., Estimate]


@pytest.fixture
def left(planned: Planner, tmp_path: Path, tiny_folder: Path) -> Left:
    """What an arm takes of a machine that is so slow that no trial ends within a second."""

    def of(
        arm: str, *, task: str = "arc_easy", flops: float = 1.0, dtype: str = "float32", retention: Sequence[str] = ()
    ) -> Estimate:
        values = {"tasks": task, "limit_train": 16, "limit_test": 10, "retention": list(retention)}
        study = Study.model_validate({"models": str(tiny_folder), "arms": [arm], **values})
        trial = next(p for p in planned(arms=[arm], dtype=dtype, **values) if p.trial.arm == arm.partition(":")[0])
        return estimate(study, trial, load_tasks(study)[task], Store(tmp_path), flops=flops)

    return of


def _tokens(examples: Sequence[Example]) -> float:
    """Four characters are a token, and every example has five more."""
    return sum(5 + len(e.question + "".join(e.choices or (e.reference,))) / 4 for e in examples)


def test_questions_take_two_operations_a_weight_and_token_at_half_of_the_peak(
    left: Left, tiny_folder: Path, planned: Planner
) -> None:
    study = Study.model_validate({"models": str(tiny_folder), "tasks": "arc_easy", "limit_train": 16, "limit_test": 10})
    items = load_tasks(study)["arc_easy"]
    (target,) = asked_of(planned(), "few_shot")
    weights = planned()[0].trial.model.parameters
    asked = left("few_shot", flops=10.0)
    assert asked.seconds == pytest.approx(2 * weights * _tokens(examples_of(study, items, target)) / 5)
    assert asked.disk_bytes == 0
    # Training reads forwards and backwards, which is three times as much, once an epoch; validation four times.
    trained = left("lora:epochs=2", flops=10.0)
    further = 6 * _tokens(items.splits.train) + 4 * _tokens(items.splits.validation)
    assert trained.seconds - asked.seconds == pytest.approx(2 * weights * further / 5)


def test_a_full_model_takes_all_its_weights_on_disk_and_an_adapter_a_tenth(left: Left, planned: Planner) -> None:
    weights = planned()[0].trial.model.parameters
    assert left("full").disk_bytes == 4 * weights
    assert left("full", dtype="bfloat16").disk_bytes == 2 * weights
    assert left("lora").disk_bytes == 4 * weights // 10


@pytest.mark.parametrize(("keep", "models"), [("best", 4.1), ("none", 2)])
def test_weights_that_are_not_kept_take_no_disk_together(
    planned: Planner, tmp_path: Path, tiny_folder: Path, keep: str, models: float
) -> None:
    """Three full models, one half-way and an adapter; with `keep` none the one that is gone on from, and another."""
    arms = ["full", "a=full:learning_rate=1e-3", "b=full:learning_rate=1e-4", "h=interpolated:of=a", "lora"]
    values = {"arms": arms, "retention": [], "limit_train": 16, "limit_test": 10, "tasks": "arc_easy"}
    study = Study.model_validate({"models": str(tiny_folder), **values, "keep": keep})
    items = load_tasks(study)["arc_easy"]
    left = [(p, estimate(study, p, items, Store(tmp_path), flops=1e9)) for p in planned(**values, keep=keep)]
    weights = 4 * left[0][0].trial.model.parameters
    assert most_disk_bytes(study, left) == pytest.approx(models * weights, rel=1e-3)


def test_how_far_a_model_moved_is_read_twice_and_not_generated(left: Left, tiny_folder: Path, planned: Planner) -> None:
    study = Study.model_validate({"models": str(tiny_folder), "tasks": "arc_easy"})
    texts = test_items(study, study.task("divergence"), "retention").examples
    weights = planned()[0].trial.model.parameters
    more = left("lora", retention=["divergence"]).seconds - left("lora").seconds
    assert more == pytest.approx(4 * weights * 2 * _tokens(texts))
    # The untouched model did not.
    assert left("zero_shot", retention=["divergence"]) == left("zero_shot")
    both, one = (left("lora", retention=[*first, "wikitext2"]).seconds for first in (["divergence"], []))
    assert both - one == pytest.approx(more)


def test_answers_that_are_generated_and_shots_in_front_of_them_take_time(
    left: Left, tiny_folder: Path, planned: Planner
) -> None:
    study = Study.model_validate({"models": str(tiny_folder), "tasks": "gsm8k", "limit_train": 16, "limit_test": 10})
    items = load_tasks(study)["gsm8k"]
    target = asked_of(planned(tasks="gsm8k"), "few_shot")[0]
    weights = planned()[0].trial.model.parameters
    # A token that is written costs one and a half that are read.
    # Shots are read once for all questions.
    shown = 5 * _tokens(items.splits.train) / len(items.splits.train)
    tokens = _tokens(examples_of(study, items, target)) + 10 * 1.5 * target.max_new_tokens + shown
    assert left("few_shot:shots=5", task="gsm8k").seconds == pytest.approx(4 * weights * tokens)
    # The trivial answer is not generated.
    assert left("constant", task="gsm8k").seconds == 1


def test_a_tuning_candidate_takes_the_training_rows_that_it_reads(
    planned: Planner, tmp_path: Path, tiny_folder: Path
) -> None:
    study = Study.model_validate({"models": str(tiny_folder), "tasks": "arc_easy", "limit_train": 16, "limit_test": 10})
    items = load_tasks(study)["arc_easy"]
    whole = next(p for p in planned() if p.trial.arm == "lora")
    half = whole.model_copy(update={"train_rows": 8})
    seconds = [estimate(study, p, items, Store(tmp_path), flops=1.0).seconds for p in (whole, half)]
    weights = whole.trial.model.parameters
    unread = _tokens(items.splits.train) - _tokens(items.splits.train[:8])
    assert seconds[0] - seconds[1] == pytest.approx(4 * weights * 3 * unread)


def test_drawn_answers_take_the_time_of_each(planned: Planner, tmp_path: Path, tiny_folder: Path) -> None:
    values = {"tasks": "gsm8k", "limit_train": 16, "limit_test": 10, "retention": []}
    seconds = []
    for samples in (1, 4):
        study = Study.model_validate({"models": str(tiny_folder), **values, "samples": samples})
        asked = next(p for p in planned(**values, samples=samples) if p.trial.arm == "zero_shot")
        assert [e.sampled.samples for e in asked.evaluations if e.sampled] == [samples]
        items = load_tasks(study)["gsm8k"]
        seconds.append(estimate(study, asked, items, Store(tmp_path), flops=1.0).seconds)
    weights, (target,) = asked.trial.model.parameters, asked.evaluations
    assert seconds[1] - seconds[0] == pytest.approx(4 * weights * 3 * 10 * 1.5 * target.max_new_tokens)


def test_what_goes_on_from_weights_keeps_none_of_its_own_where_none_are_kept(
    planned: Planner, tmp_path: Path, tiny_folder: Path
) -> None:
    values = {"arms": ["full", "h=interpolated:of=full"], "limit_train": 16, "limit_test": 10, "tasks": "arc_easy"}
    for keep, models in (("none", 0), ("best", 4)):
        study = Study.model_validate({"models": str(tiny_folder), **values, "keep": keep})
        half = next(p for p in planned(**values, keep=keep) if p.trial.arm == "h")
        left = estimate(study, half, load_tasks(study)["arc_easy"], Store(tmp_path), flops=1e9)
        assert left.disk_bytes == models * half.trial.model.parameters


def test_a_report_knows_a_task_s_labels_and_whether_a_format_is_taught(tiny_folder: Path, tmp_path: Path) -> None:
    def record(**own: object) -> TaskRecord:
        study = Study.model_validate({"models": str(tiny_folder), "tasks": {"name": "mine", **own}})
        return task_record(study, load_tasks(study)["mine"])

    labels = record(train=own_rows.write(tmp_path / "labels.jsonl", own_rows.rows(80)), score="label")
    assert (labels.classes, labels.states_format) == (("blue", "red"), True)
    solved = [{**row, "solution": f"I count {row['answer']} of them."} for row in own_rows.rows(80, ["3", "4"])]
    written = own_rows.write(tmp_path / "solved.jsonl", solved)
    assert not record(train=written, score="number", completion_field="solution").states_format


def test_replayed_text_is_trained_on_too(left: Left) -> None:
    (none, half, most), asked = (left(f"lora:replay={r}").seconds for r in (0.0, 0.5, 0.75)), left("few_shot").seconds
    # Half of what is trained on is replayed: twice as much in all; and validation is not read more often.
    assert most - none == pytest.approx(3 * (half - none))
    assert half - none < none - asked


def test_what_a_report_says_of_a_task_is_written_down(tiny_folder: Path) -> None:
    study = Study.model_validate({"models": str(tiny_folder), "tasks": ["arc_easy", "gsm8k"], "limit_train": 16})
    tasks = load_tasks(study)
    choice, sums = (task_record(study, tasks[name]) for name in ("arc_easy", "gsm8k"))
    assert (choice.train, choice.validation, choice.test_available) == (16, 10, 2376)
    assert (sums.train, sums.validation, sums.test_available) == (16, 10, 1319)
    assert (sums.rule, sums.states_format) == (study.task("gsm8k").rule, True)
    for record in (choice, sums):
        assert (record.test_carved, record.near_overlap, record.classes) == (False, 0, ())


def test_rows_of_the_user_s_own_are_looked_at_for_near_duplicates(tiny_folder: Path, tmp_path: Path) -> None:
    def rows(name: str, texts: list[str]) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"prompt": text, "answer": "1"}) + "\n" for text in texts))
        return str(path)

    animals = ("cats", "dogs", "ants", "crabs", "hens", "snails")
    said = [f"How many legs do {n} {animal} have, if none of them is hurt?" for n in range(2, 9) for animal in animals]
    others = [
        f"A {animal[:-1]} sleeps twice as long as its sister, who sleeps 3 hours; how long?" for animal in animals
    ]
    further = [f"What is the price of {n} apples at {n} cents each, in cents?" for n in range(3, 8)]
    own = {"train": rows("train.jsonl", said), "test": rows("test.jsonl", [said[0].upper(), *others, *further])}
    study = Study.model_validate({"models": str(tiny_folder), "tasks": [{**own, "score": "number"}]})
    (items,) = load_tasks(study).values()
    record = task_record(study, items)
    assert (record.near_overlap, record.test_available, record.test_carved) == (1, 12, False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_machine_s_speed_is_a_number(dtype: str) -> None:
    assert 0 < measured_flops(dtype=dtype, device="cpu") < 1e18
