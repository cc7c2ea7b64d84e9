"""A part of the matrix of bench/same_answers, and that it tells what is not the same."""

import json
import math

import pytest
import torch
from same_answers import __main__ as program
from same_answers.cells import TIE, Outcome, of_numbers
from same_answers.generation import Answer, compare, same_tokens
from same_answers.matrix import matrix, sample
from same_answers.subjects import SMOLLM2, TINY, Pair, adapted, base, models, questions, trainable
from same_answers.training import (
    ROWS,
    by_float64,
    loop_gradient,
    of_gradients,
    plain_gradient,
    plain_losses,
    to_the_nearer,
)

from finetrap.engine.generate import Generated

EVERYTHING = matrix(TINY)
REAL = (
    pytest.param("generated tokens / smollm2-135m-instruct / none / 7 rows / 5 shots", marks=pytest.mark.thorough),
    pytest.param(
        "generated tokens / smollm2-135m-instruct / lora / 7 rows / 1 shots / merged", marks=pytest.mark.thorough
    ),
    "generated tokens / smollm2-135m-instruct / none / 1 rows / 1 shots",
    "log-likelihoods of choices / smollm2-135m-instruct / none / 1 shots",
    "loss and gradient of TRL / smollm2-135m-instruct / lora",
)


SAMPLE = [
    # A whole run takes seconds.
    pytest.param(cell, id=cell.key, marks=[pytest.mark.thorough] if "a run of" in cell.what else [])
    for cell in sample(EVERYTHING)
]


@pytest.mark.parametrize("cell", SAMPLE)
def test_a_sample_of_the_matrix_holds(cell):
    outcome = cell.compute()
    assert outcome.passed, outcome.says
    assert outcome.items


@pytest.mark.slow
@pytest.mark.skipif(SMOLLM2 not in models(), reason="run: finetrap models get smollm2-135m-instruct-q4")
@pytest.mark.parametrize("key", REAL)
def test_smollm2_s_answers_are_the_same(key):
    (cell,) = (cell for cell in matrix([SMOLLM2]) if cell.key == key)
    outcome = cell.compute()
    assert outcome.passed, outcome.says


def test_every_cell_has_a_key_of_its_own():
    keys = [cell.key for cell in matrix([*TINY, SMOLLM2])]
    assert len(set(keys)) == len(keys)


def test_the_sample_has_every_kind_of_cell_every_model_and_every_way_of_adapting():
    chosen = sample(EVERYTHING)
    for part in ("what", "model", "method", "rows", "shots", "adapter"):
        assert {getattr(cell, part) for cell in chosen} == {getattr(cell, part) for cell in EVERYTHING}


# --- what is not the same is told ------------------------------------------------------------------------------------


def compared(ids, truncated, *, gap, second, reference=(5, 6, 7)):
    answer = Answer(list(reference), [(gap, second)] * 4, stopped=False)
    outcome, _ = compare([Generated(ids, "", truncated)], [answer], stops={9}, new=3)
    return outcome.passed


def test_a_token_may_differ_at_a_tie_and_is_then_the_second_best():
    assert compared([5, 6, 7], True, gap=1.0, second=0)
    assert compared([5, 8, 1], True, gap=TIE / 2, second=8)
    assert not compared([5, 8, 1], True, gap=TIE * 2, second=8)
    assert not compared([5, 8, 1], True, gap=TIE / 2, second=4)


def test_an_answer_that_ends_elsewhere_differs():
    assert not compared([5, 6], True, gap=1.0, second=0)
    assert not compared([5, 6], False, gap=1.0, second=0)
    assert compared([5, 6], False, gap=TIE / 2, second=9)
    assert not compared([5, 6, 7], False, gap=1.0, second=0)


def test_tokens_of_other_weights_differ():
    pair = adapted("llama-untied", "none", merged=False)
    other = base("llama-untied").copy()
    with torch.no_grad():
        other.get_parameter("model.layers.1.self_attn.v_proj.weight").mul_(1.1)
    loaded = base("llama-untied")
    outcome = same_tokens(
        Pair(other, pair.reference), loaded.tokenizer, questions(loaded, 20, 0), rows=7, new=16, stops={0}
    )
    assert not outcome.passed
    assert outcome.differing > 3


def test_a_gradient_that_is_wrong_in_one_parameter_is_told():
    pair, rows = trainable("llama-tied", "dora"), ROWS["one row"].make("llama-tied")
    expected = plain_gradient(pair.reference, plain_losses(pair.reference, rows).mean())
    _, got = loop_gradient(pair, rows)
    assert of_numbers(of_gradients(got, expected), tokens=1).passed
    name = next(name for name in got if "magnitude" in name)
    wrong = of_numbers(of_gradients({**got, name: got[name] * 1.0001}, expected), tokens=1)
    assert (wrong.passed, wrong.differing) == (False, 1)
    assert name in wrong.says


def test_of_two_references_the_nearer_counts():
    reference = {"a": torch.ones(4), "b": torch.ones(4)}
    other = {"a": reference["a"] * (1 + 1e-4), "b": reference["b"]}
    wrong = {**other, "b": other["b"] * (1 + 1e-4)}
    between = {**other, "a": reference["a"] * (1 + 5e-5)}
    for ours, passed in ((other, True), (reference, True), (between, False), (wrong, False)):
        assert of_numbers(to_the_nearer({"": ours}, reference, other), tokens=1).passed is passed


def test_where_float32_is_coarse_a_gradient_may_be_as_coarse_as_others_and_no_more():
    exact = {"a": torch.ones(4), "b": torch.ones(4)}
    one, other = ({"a": exact["a"] * (1 + off), "b": exact["b"]} for off in (1e-4, -2e-4))
    far = Outcome(2, 1, 1, worst_relative=3e-4)
    for off, of_b, passed in (
        (7e-4, 0, True),
        (9e-4, 0, False),
        (0, 9e-6, True),
        (0, 2e-5, False),
        (math.nan, 0, False),
    ):
        ours = {"": {"a": exact["a"] * (1 + off), "b": exact["b"] * (1 + of_b)}}
        outcome = by_float64(far, ours, (one, other), exact)
        assert (outcome.passed, outcome.differing, outcome.worst_relative) == (passed, int(not passed), 3e-4)


def test_a_number_that_is_none_and_a_parameter_that_is_missing_differ():
    assert not of_numbers({"a": 0.0, "b": float("nan")}, tokens=1).passed
    assert not of_numbers(of_gradients({}, {"a": torch.ones(1)}), tokens=1).passed


# --- the file --------------------------------------------------------------------------------------------------------


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["same_answers", *arguments])
    code = program.main()
    return code, capsys.readouterr().out


def test_what_is_in_the_file_is_not_computed_again_and_a_failed_cell_fails(tmp_path, monkeypatch, capsys):
    path = tmp_path / "same_answers.json"
    monkeypatch.setattr(program, "PATH", path)
    only = ("--only", "log-likelihoods of texts / llama-tied")
    code, out = run(monkeypatch, capsys, *only)
    written = json.loads(path.read_text())
    assert (code, "0 of 4 cells are there" in out) == (0, True)
    assert [cell["passed"] for cell in written["cells"]] == [True] * 4
    assert (written["passed"], written["failed"]) == (4, 0)

    written["cells"][0]["passed"] = False
    path.write_text(json.dumps(written))
    code, out = run(monkeypatch, capsys, *only)
    assert (code, "4 of 4 cells are there" in out) == (1, True)

    written["modules"].remove("finetrap.engine.likelihood")
    path.write_text(json.dumps(written))
    code, out = run(monkeypatch, capsys, *only, "--seconds", "-1")
    assert (code, "0 of 4 cells are there\n4 cells are left\n" in out) == (0, True)
