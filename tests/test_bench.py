"""The harness of the bench runs both sides to the end on a tiny model, and what it writes makes the page's tables."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
BENCH = ROOT / "bench"
WORKS = ("train_lora", "choice_5shot")
FIELDS = {"work", "variant", "model", "peer", "ours", "theirs", "unit", "ratio", "runs"}


def _run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / script), "--quick", "--runs", "1", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def measured(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that the harness wrote."""
    pytest.importorskip("trl")
    pytest.importorskip("lm_eval")
    out = tmp_path_factory.mktemp("bench") / "engine.json"
    works = [argument for work in WORKS for argument in ("--work", work)]
    done = _run("engine.py", *works, "--model", tiny_folder, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
@pytest.mark.thorough
def test_each_row_says_who_did_what_how_fast(measured: Path) -> None:
    file = json.loads(measured.read_text())
    assert {"date", "machine", "versions", "rows"} <= file.keys()
    assert {"finetrap", "torch", "trl", "lm-eval"} <= file["versions"].keys()
    assert [(row["work"], row["variant"], row["model"]) for row in file["rows"]] == [
        ("train_lora", "gsm8k", "tiny"),
        ("choice_5shot", "arc_easy", "tiny"),
    ]
    for row in file["rows"]:
        assert row.keys() >= FIELDS
        assert [len(row["runs"][side]) for side in ("ours", "theirs")] == [1, 1]
        better = row["ours"] / row["theirs"]
        assert row["ratio"] == pytest.approx(better if row["unit"] == "real tokens/s" else 1 / better)
        assert row["share_of_floor"] > 0
    assert str(measured.parent) not in measured.read_text()


@pytest.mark.slow
@pytest.mark.thorough
def test_both_sides_did_the_same_work(measured: Path) -> None:
    training, choices = json.loads(measured.read_text())["rows"]
    assert training["loss"]["ours"] == pytest.approx(training["loss"]["theirs"], rel=0.05)
    assert choices["agreement"]["same_choice"] >= 0.75


def test_a_row_replaces_the_one_of_the_same_work(tmp_path: Path, bench: Any) -> None:
    results = bench.Results(tmp_path / "x.json", "work", "variant", "model")
    for ours in (1.0, 2.0):
        results.put({"work": "a", "variant": "b", "model": "c", "ours": ours})
    results.put({"work": "a", "variant": "other", "model": "c", "ours": 3.0})
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert [(row["variant"], row["ours"]) for row in rows] == [("b", 2.0), ("other", 3.0)]


def test_a_peer_is_tried_in_the_precision_of_the_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from engine import ADAPTER_GRID

    narrow, wide = ([s for step in ADAPTER_GRID.steps_in(p) for s in step] for p in ("bfloat16", "float32"))
    assert [settings for settings in narrow if settings not in wide] == [{"weights": "bfloat16"}]
    assert len(wide) == len(narrow) - 1 > 5


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module bench/measure.py."""
    monkeypatch.syspath_prepend(str(BENCH))
    import measure

    return measure


@pytest.mark.slow
@pytest.mark.thorough
def test_the_page_shows_every_row(measured: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from generator.performance import performance_blocks

    blocks = performance_blocks(measured.parent)
    for name in ("engine", "floor", "agreement", "settings"):
        assert [f"`{work}`" in blocks[name] for work in WORKS] == [True, True], name
    assert blocks["scaling"] == ""
    assert set(performance_blocks(tmp_path).values()) == {""}


def test_the_exponent_of_what_grows_is_that_of_its_power_law(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from scaling import exponent

    sizes = (0, 1, 2, 4, 8, 16)
    assert exponent(sizes, [5.0, *(3 * n**1.5 for n in sizes[1:])]) == pytest.approx(1.5)


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with a compiler of C++")
def test_what_compiling_costs_is_measured_and_shown(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from generator.performance import performance_blocks

    done = _run("compiled.py", "--method", "full", "--model", tiny_folder, "--out", tmp_path / "compiled.json")
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "compiled.json").read_text())["rows"]
    losses = row["loss"]
    assert [losses["norms"], losses["norms and feed-forward"]] == pytest.approx([losses["nothing"]] * 2, rel=1e-4)
    assert row["first_step_seconds"]["norms"] > row["first_step_seconds"]["nothing"]
    assert performance_blocks(tmp_path)["compiled"].count("| full |") == 3


@pytest.mark.slow
@pytest.mark.thorough
def test_what_fits_is_trained_and_what_does_not_is_killed_and_said(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from generator.performance import performance_blocks

    out = tmp_path / "fits.json"
    for gigabytes in (4, 0.1):
        done = _run("fits.py", "--model", tiny_folder, "--gigabytes", gigabytes, "--out", out)
        assert done.returncode == 0, done.stdout + done.stderr
        if gigabytes == 4 and "control group" in done.stdout:
            pytest.skip("to make a control group takes root")
    ample, scarce = json.loads(out.read_text())["rows"]
    assert ample["fits"]
    assert not scarce["fits"]
    assert performance_blocks(tmp_path)["fits"].count("| full |") == 2
