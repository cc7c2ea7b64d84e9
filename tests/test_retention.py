"""What an arm can still do: how far it moved, whether it follows instructions, and what the verdict makes of it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from finetrap import stats
from finetrap.config import Study
from finetrap.engine.generate import Generated
from finetrap.evaluate import keeps_chat_format
from finetrap.records import ItemRow
from finetrap.results import Retention
from finetrap.retention import RowsOfTasks, retention_of
from finetrap.store import Store
from finetrap.task import get_task, task

pytestmark = pytest.mark.usefixtures("undrawn")

STUDY = Study(models="tiny", tasks="arc_easy")
YES_NO = (True, False)


def answers(right: Sequence[bool], *, choices: int = 0, whole: Sequence[bool] | None = None) -> list[ItemRow]:
    """Rows of a task of general questions, or of `choices`; `whole`: which answers keep the chat format."""
    likelihoods = tuple(float(-i) for i in range(choices))
    turns = [None] * len(right) if whole is None else whole
    return [
        ItemRow(id=str(i), prompt="", correct=done, loglikelihoods=likelihoods, chat_format=turn)
        for i, (done, turn) in enumerate(zip(right, turns, strict=True))
    ]


def texts(bits: Sequence[float]) -> list[ItemRow]:
    return [ItemRow(id=str(i), prompt="", bits=value, bytes=100) for i, value in enumerate(bits)]


def moved(nats: Sequence[float], tokens: Sequence[int], kinds: Sequence[str]) -> list[ItemRow]:
    return [
        ItemRow(id=f"{kind}-{i}", prompt="", kl=value, kl_tokens=n)
        for i, (value, n, kind) in enumerate(zip(nats, tokens, kinds, strict=True))
    ]


def kept(before: RowsOfTasks, after: RowsOfTasks, arms: int = 1) -> Retention:
    found = retention_of(STUDY, before, after, arms=arms, prompts_only=False)
    assert found is not None
    return found


def some(right: int, n: int) -> list[bool]:
    return [i < right for i in range(n)]


# --- how far it moved ------------------------------------------------------------------------------------------------


def test_divergence_is_nats_a_token_over_all_texts_and_by_kind() -> None:
    kinds = ["general", "general", "chat"]
    before = {"divergence": moved([0, 0, 0], [100, 50, 10], kinds)}
    found = kept(before, {"divergence": moved([20.0, 5.0, 15.0], [100, 50, 10], kinds)})
    assert found.kl == pytest.approx(40 / 160)
    assert found.kl_texts == pytest.approx({"general": 25 / 150, "chat": 1.5})
    expected = stats.ratio_interval(np.array([20.0, 5.0, 15.0]), np.array([100.0, 50.0, 10.0]))
    assert found.kl_ci95 == pytest.approx(expected)
    assert (found.mean, found.tasks) == (None, {})


def test_one_text_has_no_interval() -> None:
    rows = moved([1.0], [10], ["chat"])
    found = kept({"divergence": rows}, {"divergence": rows})
    assert (found.kl, found.kl_ci95) == (0.1, None)


def test_how_far_a_model_moved_is_no_verdict() -> None:
    before = {"hellaswag": answers(some(400, 400), choices=4), "divergence": moved([0] * 9, [9] * 9, ["chat"] * 9)}
    found = kept(before, {**before, "divergence": moved([90.0] * 9, [9] * 9, ["chat"] * 9)})
    assert (found.kl, found.verdict) == (10, "no_difference")


def test_an_arm_that_only_prompts_did_not_move() -> None:
    before = {"divergence": moved([0, 0], [5, 6], ["general", "chat"]), "ifeval": answers(YES_NO, whole=YES_NO)}
    found = retention_of(STUDY, before, before, arms=3, prompts_only=True)
    assert found is not None
    assert (found.kl, found.kl_ci95, found.kl_texts) == (0, (0, 0), {"general": 0, "chat": 0})
    assert (found.chat_format, found.chat_format_delta, found.verdict) == (0.5, 0, "no_difference")


def test_rows_without_either_leave_both_null() -> None:
    rows = {"hellaswag": answers(some(9, 20), choices=4)}
    found = kept(rows, rows)
    assert (found.kl, found.kl_ci95, found.kl_texts, found.chat_format, found.chat_format_delta) == (
        None,
        None,
        {},
        None,
        None,
    )


# --- instructions and the chat format --------------------------------------------------------------------------------


def test_instructions_count_where_the_untouched_model_follows_any() -> None:
    before = {"hellaswag": answers(some(30, 40), choices=4), "ifeval": answers(some(8, 40))}
    after = {**before, "ifeval": answers(some(4, 40))}
    found = kept(before, after)
    assert found.delta == pytest.approx(-0.1 / 2)
    assert found.tasks["ifeval"].delta == pytest.approx(-0.1)
    none = kept({**before, "ifeval": answers(some(0, 40))}, after)
    assert none.delta == 0
    assert none.tasks["ifeval"].delta == pytest.approx(0.1)


def test_chat_format_is_the_share_of_whole_turns_and_paired() -> None:
    right = some(4, 8)
    whole = [True, True, True, False, True, False, True, True]
    fewer = [True, False, True, False, False, True, True, False]
    found = kept({"ifeval": answers(right, whole=whole)}, {"ifeval": answers(right, whole=fewer)})
    assert found.chat_format == pytest.approx(4 / 8)
    assert found.chat_format_delta == pytest.approx(-2 / 8)
    assert found.chat_format_ci95 == pytest.approx(stats.tango(1, 3, 8))


def test_a_chat_format_that_collapsed_is_harm_though_no_answer_is_lost() -> None:
    before = {"ifeval": answers(some(200, 400), whole=[True] * 400)}
    assert kept(before, {"ifeval": answers(some(200, 400), whole=some(370, 400))}).verdict == "harm"
    # A loss that is not shown does not keep the other from being ruled out.
    assert kept(before, {"ifeval": answers(some(200, 400), whole=some(391, 400))}).verdict == "no_difference"


@pytest.mark.parametrize(
    ("text", "ids", "truncated", "whole"),
    [
        ("Yes, of course.", [65, 66], False, True),
        ("Yes, of course.", [65, 66], True, False),
        (" \n", [65], False, False),
        ("Yes.", [65, 7], False, False),
        ("Yes.<|im_end|>\n", [65], False, False),
        ("The mark <|pad|> is not the template's.", [65], False, True),
        ("no " * 40, [65], False, False),
    ],
    ids=["whole", "cut off", "empty", "holds a special token", "writes a mark out", "another mark", "loops"],
)
def test_what_a_whole_turn_is(text: str, ids: list[int], truncated: bool, whole: bool) -> None:
    special = {7: "<|im_end|>", 8: "<|pad|>"}
    assert keeps_chat_format(Generated(ids, text, truncated), "<|im_start|>user\nHi<|im_end|>\n", special) is whole


# --- the verdict -----------------------------------------------------------------------------------------------------


def test_forgetting_is_ruled_out_one_sidedly() -> None:
    """Where as many answers came back as were lost, the bound is that of a one-sided test."""
    n = 1000
    before = answers(some(800, n))
    after = answers([40 <= i < 840 for i in range(n)])
    differences = np.array(
        [float(bool(a.correct)) - float(bool(b.correct)) for a, b in zip(after, before, strict=True)]
    )
    one_sided, two_sided = (stats.mean_interval([differences], [1.0], alpha=a).low for a in (0.10, 0.05))
    assert two_sided < one_sided < 0
    for tolerance, verdict in ((-one_sided * 1.01, "no_difference"), (-one_sided * 0.99, "undecided")):
        study = Study(models="tiny", tasks="arc_easy", forgetting_tolerance=tolerance)
        found = retention_of(study, {"ifeval": before}, {"ifeval": after}, arms=1, prompts_only=False)
        assert found is not None
        assert found.verdict == verdict


def test_more_arms_and_more_measures_make_harm_harder_to_show() -> None:
    before, after = answers(some(100, 100)), answers(some(93, 100))
    assert kept({"ifeval": before}, {"ifeval": after}).verdict == "harm"
    assert kept({"ifeval": before}, {"ifeval": after}, arms=6).verdict == "undecided"
    text = {"wikitext2": texts([100.0, 110.0, 105.0] * 5)}
    shown = answers(some(95, 100))
    assert kept({"ifeval": before}, {"ifeval": shown}, arms=1).verdict == "undecided"
    assert kept({"ifeval": before, **text}, {"ifeval": shown, **text}).verdict == "undecided"


def test_nothing_measured_rules_nothing_out() -> None:
    rows = {"hellaswag": answers(some(5, 20), choices=4)}
    assert kept(rows, rows).verdict == "undecided"


# --- a study ---------------------------------------------------------------------------------------------------------


def test_a_study_measures_instructions_chat_format_and_divergence(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A random model says nothing of more worth in the other 248.
    monkeypatch.setitem(task._entries, "ifeval", partial(replace, get_task("ifeval"), max_new_tokens=8))
    study = Study(
        models=str(tiny_folder),
        tasks="arc_easy",
        arms=["full:learning_rate=1e-2"],
        limit_train=16,
        limit_test=10,
        retention=["divergence", "ifeval"],
        limit_retention=10,
        limit_instructions=2,
        dtype="float32",
        device="cpu",
    )
    results = study.run(tmp_path / "study", progress=False)
    assert not results.failures
    zero_shot, full = (next(arm.retention for arm in results.arms if arm.arm == name) for name in ("zero_shot", "full"))
    assert zero_shot is not None
    assert full is not None
    assert zero_shot.kl == 0
    assert full.kl is not None
    assert full.kl_ci95 is not None
    assert 0 < full.kl_ci95[0] < full.kl < full.kl_ci95[1]
    assert set(full.kl_texts) == {"general", "chat"}
    assert full.chat_format is not None
    store = Store(tmp_path / "study")
    asked = {e.task: e for p in store.plan().planned if p.trial.arm == "full" for e in p.evaluations}
    assert (asked["ifeval"].n, asked["ifeval"].chat, asked["divergence"].chat) == (2, True, True)
    trial = next(p.trial for p in store.plan().planned if p.trial.arm == "full")
    rows = store.rows(trial, asked["divergence"])
    assert sum(row.kl or 0 for row in rows) / sum(row.kl_tokens or 0 for row in rows) == full.kl
