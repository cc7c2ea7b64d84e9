"""Answers that are given after one was read are counted, and the level lasts for all of them."""

import json
from pathlib import Path

import pytest
from test_answer import Records, _first, _target_rows

from finetrap.config import Study
from finetrap.looks import LookAt, log_answers, look_at
from finetrap.records import Plan
from finetrap.results import Results
from finetrap.store import Store

pytestmark = pytest.mark.usefixtures("undrawn")


def _answer(store: Store, n: int, *, seeds: int = 1, looks: str = "one", arms: tuple[str, ...] = ("lora",)) -> Results:
    """The answer of a study of so many test items and seeds, in this folder."""
    records = Records(store.folder)
    records.add("constant", "constant", _target_rows(_first(n // 10, n)))
    records.add("zero_shot", "zero_shot", _target_rows(_first(n // 3, n)))
    for arm in arms:
        for seed in range(seeds):
            records.add(arm, "lora", _target_rows(_first(n // 2, n)), seed=seed)
    log_answers(_study(looks), records.plan(), store)
    return records.results(looks=looks)


def _study(looks: str) -> Study:
    return Study.model_validate({"models": "m", "tasks": "gsm8k", "looks": looks})


def _look(results: Results) -> tuple[int, float]:
    (recommendation,) = results.recommendations
    return recommendation.look, recommendation.alpha


@pytest.fixture
def store(tmp_path: Path) -> Store:
    folder = tmp_path / "study"
    folder.mkdir()
    return Store(folder)


def test_one_look_has_the_whole_level_and_answering_again_is_the_same_look(store: Store) -> None:
    for _ in range(2):
        results = _answer(store, 100)
        assert _look(results) == (1, 0.05)
        assert not any("look" in warning for warning in results.warnings)
    assert len(store.answers()) == 1


def test_an_arm_that_is_added_is_no_further_look(store: Store) -> None:
    _answer(store, 100)
    assert _look(_answer(store, 100, arms=("lora", "dora"))) == (1, 0.05)


def test_an_arm_that_is_left_out_after_an_answer_is_named(store: Store) -> None:
    both = _answer(store, 100, arms=("lora", "dora"))
    assert not any("dora" in warning for warning in both.warnings)
    alone = _answer(store, 100)
    assert _look(alone) == (1, 0.05)
    assert any("an earlier answer was about dora too" in warning for warning in alone.warnings)


@pytest.mark.parametrize("change", [{"n": 120}, {"n": 100, "seeds": 2}])
def test_more_items_or_seeds_after_the_one_look_are_exploratory(store: Store, change: dict[str, int]) -> None:
    _answer(store, 100)
    results = _answer(store, **change)
    assert _look(results) == (2, 0.05)
    assert any("exploratory" in warning and "gsm8k" in warning for warning in results.warnings)


def test_many_looks_share_the_level(store: Store) -> None:
    found = [_answer(store, n, looks="many") for n in (100, 120, 140)]
    assert [_look(results) for results in found] == [(1, 0.04), (2, pytest.approx(0.008)), (3, pytest.approx(0.0016))]
    assert not any("exploratory" in warning for results in found for warning in results.warnings)
    assert any("look 3, tested at 0.16%" in warning for warning in found[2].warnings)
    # The first question again is answered at the level that it had.
    assert _look(_answer(store, 100, looks="many")) == (1, 0.04)


def test_the_level_decides_the_verdict(store: Store, tmp_path: Path) -> None:
    def verdict(folder: Path, looks: str) -> str:
        records = Records(folder)
        records.add("constant", "constant", _target_rows(_first(20)))
        records.add("zero_shot", "zero_shot", _target_rows(_first(120)))
        # 20 won and 8 lost: p is 0.024, below 5% and above the 0.8% of a second look.
        right = [8 <= i < 140 for i in range(400)]
        records.add("lora", "lora", _target_rows(right))
        log_answers(_study(looks), records.plan(), records.store)
        arm = next(arm for arm in records.results(looks=looks).arms if arm.arm == "lora")
        assert arm.vs_zero_shot is not None
        return arm.vs_zero_shot.verdict

    _answer(store, 100, looks="many")
    assert verdict(store.folder, "many") == "undecided"
    other = tmp_path / "other"
    other.mkdir()
    assert verdict(other, "many") == "gain"


def test_the_level_decides_about_forgetting_and_claims_too(tmp_path: Path) -> None:
    def said(looks: str, folder: str) -> tuple[str, str]:
        store = Store(tmp_path / folder)
        store.folder.mkdir()
        _answer(store, 100, looks=looks)
        records = Records(store.folder)
        records.add("constant", "constant", _target_rows(_first(20)))
        # Of general questions 20 won and 45 lost, a one-sided p of about 0.017 against a loss of 2 points; of the
        # task's 20 won and 8 lost.
        before = [i < 300 for i in range(400)]
        kept = [i < 255 or 300 <= i < 320 for i in range(400)]
        records.add("zero_shot", "zero_shot", _target_rows(_first(120)), hellaswag=before)
        records.add("lora", "lora", _target_rows([8 <= i < 140 for i in range(400)]), hellaswag=kept)
        claim = {"id": 1, "says": "It helps.", "type": "ordering", "a": "lora", "b": "zero_shot", "for": "all"}
        results = records.results(looks=looks, arms=["lora"], claims=[claim])
        arm = next(arm for arm in results.arms if arm.arm == "lora")
        assert arm.retention is not None
        return arm.retention.verdict, results.claims[0].verdict

    assert said("one", "whole") == ("harm", "supported")
    assert said("many", "second") == ("undecided", "undetermined")


def test_a_study_that_spent_everything_at_once_cannot_have_many_looks_afterwards(store: Store) -> None:
    _answer(store, 100, looks="one")
    assert any("exploratory" in warning for warning in _answer(store, 120, looks="many").warnings)


def test_an_answer_without_all_its_evaluations_is_no_look(store: Store) -> None:
    records = Records(store.folder)
    records.add("zero_shot", "zero_shot", _target_rows(_first(40, 100)))
    missing = Records(store.folder.with_name("elsewhere"))
    missing.add("lora", "lora", _target_rows(_first(40, 100)))
    plan: Plan = records.plan().model_copy(update={"planned": (*records.planned, *missing.planned)})
    log_answers(_study("one"), plan, store)
    assert store.answers() == []
    assert look_at(_study("many"), plan, store, "m (from GGUF Q4_1)", "gsm8k") == LookAt(1, 0.04, False)


def _retained(
    store: Store, tasks: dict[str, int], *, looks: str = "one", arms: tuple[str, ...] = ("lora",)
) -> tuple[Results, str]:
    """The answer with so many items of each retention task, and the verdict on the first arm's."""
    records = Records(store.folder)
    records.add("constant", "constant", _target_rows(_first(20)))
    bits = 1.0 if "wikitext2" in tasks else None
    # A one-sided p of about 0.017 against a loss of 2 points: of 400 items 20 won and 45 lost.
    n = tasks["hellaswag"]
    before, after = [i < 300 for i in range(n)], [i < 255 or 300 <= i < 320 for i in range(n)]
    records.add("zero_shot", "zero_shot", _target_rows(_first(120)), hellaswag=before, bits=bits)
    for arm in arms:
        records.add(arm, "lora", _target_rows([8 <= i < 140 for i in range(400)]), hellaswag=after, bits=bits)
    log_answers(_study(looks), records.plan(), store)
    results = records.results(looks=looks)
    arm_result = next(arm for arm in results.arms if arm.arm == arms[0])
    assert arm_result.retention is not None
    return results, arm_result.retention.verdict


def test_more_items_of_a_retention_task_are_a_further_look_at_retention_alone(store: Store) -> None:
    for _ in range(2):
        assert _retained(store, {"hellaswag": 380})[0].warnings == ()
    for _ in range(2):
        results, _ = _retained(store, {"hellaswag": 400})
        assert _look(results) == (1, 0.05)
        (warning,) = results.warnings
        assert "what is said of retention is answer 2: its items were changed" in warning
        assert "exploratory" in warning
    assert _retained(store, {"hellaswag": 380})[0].warnings == ()


def test_a_further_look_at_retention_is_tested_at_its_own_level(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    other.folder.mkdir()
    assert _retained(other, {"hellaswag": 400}, looks="many")[1] == "harm"
    _retained(store, {"hellaswag": 380}, looks="many")
    results, verdict = _retained(store, {"hellaswag": 400}, looks="many")
    assert (_look(results), verdict) == ((1, 0.04), "undecided")
    assert any("what is said of retention is look 2, tested at 0.8%" in warning for warning in results.warnings)


def test_another_retention_task_is_no_further_look_and_is_kept_for_the_next_answer(store: Store) -> None:
    _retained(store, {"hellaswag": 400})
    assert _retained(store, {"hellaswag": 400, "wikitext2": 50}, arms=("lora", "dora"))[0].warnings == ()
    first, second = store.answers()
    assert (first.retention.keys(), second.retention.keys()) == ({"hellaswag"}, {"hellaswag", "wikitext2"})
    assert second.retention.items() > first.retention.items()


def test_an_arm_that_was_added_and_is_evaluated_anew_is_a_further_look(store: Store) -> None:
    _answer(store, 100)
    _answer(store, 100, arms=("lora", "dora"))
    records = Records(store.folder)
    records.add("zero_shot", "zero_shot", _target_rows(_first(33, 100)))
    records.add("dora", "lora", _target_rows(_first(50, 100)), seed=1)
    assert look_at(_study("one"), records.plan(), store, "m (from GGUF Q4_1)", "gsm8k").number == 2


def test_answers_from_before_retention_was_kept_are_read_and_completed(store: Store) -> None:
    _retained(store, {"hellaswag": 380})
    path = store.folder / "answers.jsonl"
    old = json.loads(path.read_text())
    del old["retention"], old["claims"]
    path.write_text(json.dumps(old) + "\n")
    assert _retained(store, {"hellaswag": 380})[0].warnings == ()
    assert "retention is answer 2" in _retained(store, {"hellaswag": 400})[0].warnings[0]


CLAIM = {"id": "one", "says": "It helps.", "type": "ordering", "a": "lora", "b": "zero_shot"}
HARD = {**CLAIM, "id": "two", "says": "It harms.", "a": "zero_shot", "b": "lora"}
LATE = "Stated, of these models and tasks, after an answer was read: exploratory."


def _claimed(store: Store, claims: list[dict[str, str]], models: tuple[str, ...] = ("m",)) -> dict[str, bool]:
    """By claim: whether the answer says that it came late; of an answer that is given of all models."""
    records = Records(store.folder)
    for name in models:
        records.add("zero_shot", "zero_shot", _target_rows(_first(33, 100)), model=name)
        records.add("lora", "lora", _target_rows(_first(50, 100)), model=name)
    settings = {"models": list(models), "arms": ["lora"], "claims": claims}
    log_answers(Study.model_validate({"tasks": "gsm8k", **settings}), records.plan(), store)
    return {claim.id: claim.evidence[-1] == LATE for claim in records.results(**settings).claims}


def test_a_claim_that_was_there_at_the_first_answer_is_no_exploration(store: Store) -> None:
    for says in ("It helps.", "It helps.", "It helps a lot."):
        assert _claimed(store, [{**CLAIM, "says": says}]) == {"one": False}
    assert len(store.answers()) == 1


def test_a_claim_that_is_stated_or_changed_after_an_answer_is_exploratory(store: Store) -> None:
    _claimed(store, [CLAIM])
    for _ in range(2):
        assert _claimed(store, [CLAIM, HARD]) == {"one": False, "two": True}
    assert _claimed(store, [{**HARD, "id": "one"}]) == {"one": True}


def test_a_claim_whose_models_grew_after_an_answer_is_exploratory_and_one_about_new_models_is_not(store: Store) -> None:
    _claimed(store, [CLAIM])
    new = {**CLAIM, "id": "new", "models": "n"}
    assert _claimed(store, [CLAIM, new], ("m", "n")) == {"one": True, "new": False}


def test_answers_from_before_claims_were_kept_say_nothing_of_them(store: Store) -> None:
    _claimed(store, [CLAIM])
    path = store.folder / "answers.jsonl"
    old = json.loads(path.read_text())
    del old["retention"], old["claims"]
    path.write_text(json.dumps(old) + "\n")
    assert _claimed(store, [CLAIM]) == {"one": False}
    assert _claimed(store, [CLAIM, HARD]) == {"one": False, "two": True}
