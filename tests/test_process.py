"""finetrap as a process of its own: interrupted, killed, out of disk, piped, and quick to answer."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import called, rows_in, study_file, written_at

import finetrap

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(finetrap.__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
TRIALS = ["zero_shot", "lora:rank=2", "long=full:epochs=25"]
"""The last takes long enough to be stopped in the middle."""


def start(*arguments: object, python: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    command = [sys.executable, *python, "-m", "finetrap", *map(str, arguments)]
    # A shell's background job has its children ignore Ctrl-C, and so would the tests' own.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_until_the_long_trial_trains(process: "subprocess.Popen[str]", out: Path) -> None:
    for _ in range(1200):
        if list(out.glob("trials/*--long--*/spec.json")):
            time.sleep(0.3)
            assert process.poll() is None, process.communicate()
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("the study did not come that far in a minute")


@pytest.fixture(scope="module")
def uninterrupted(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, object]]]:
    """The rows of the study that is stopped below, where nothing stopped it."""
    from finetrap.config import load_study

    folder = tmp_path_factory.mktemp("uninterrupted")
    load_study(study_file(folder, tiny_folder, retention=["wikitext2"], arms=TRIALS)).run(folder / "out")
    return rows_in(folder / "out")


@pytest.mark.parametrize(
    "stop", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.thorough)], ids=["interrupted", "killed"]
)
def test_a_study_that_was_stopped_goes_on_and_ends_as_if_nothing_had_been(
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    uninterrupted: dict[str, list[dict[str, object]]],
    stop: signal.Signals,
) -> None:
    out = tmp_path / "out"
    path = study_file(tmp_path, tiny_folder, retention=["wikitext2"], arms=TRIALS)
    process = start("run", path, "--out", out)
    wait_until_the_long_trial_trains(process, out)
    process.send_signal(stop)
    code, printed, said = finish(process)
    if stop == signal.SIGINT:
        assert code == 130
        assert f"interrupted. What is finished is kept in {out}; the same command goes on from there." in said
        assert "Traceback" not in said
        assert printed == ""
    done = written_at(out)
    assert {key.split("--")[2] for key in done} == {"constant", "zero_shot", "lora"}

    assert called(capsys, "run", path, "--out", out).code == 0
    assert {key: value for key, value in written_at(out).items() if key in done} == done
    assert rows_in(out) == uninterrupted


def test_a_folder_is_held_by_one_process(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    path = study_file(tmp_path, tiny_folder, retention=[], arms=TRIALS)
    process = start("run", path, "--out", out)
    try:
        wait_until_the_long_trial_trains(process, out)
        second = called(capsys, "run", path, "--out", out)
        state = called(capsys, "status", out)
    finally:
        process.kill()
        process.communicate()
    assert (second.code, second.err) == (
        2,
        f"error: another finetrap is writing to {out}; wait for it, or name another.\n",
    )
    assert "running  long" in state.out
    assert "3 done, 1 running, 0 failed, 0 left" in state.out


# --- disk ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 160 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_with_more_room_the_study_goes_on(
    tiny_folder: Path, tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = study_file(tmp_path, tiny_folder, retention=[], arms=["zero_shot", "lora:rank=2", "full"])
    code, printed, said = finish(start("run", path, "--out", disk / "out"))
    assert (code, printed) == (2, "")
    assert said.splitlines()[-1] == (
        f"error: no space left on the disk of {disk / 'out'}; what is finished is kept. "
        f"Make room, then run the same again."
    )
    assert "Traceback" not in said
    done = written_at(disk / "out")
    assert done
    subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
    assert called(capsys, "run", path, "--out", disk / "out").code == 0
    assert {key: value for key, value in written_at(disk / "out").items() if key in done} == done


def test_a_disk_that_is_known_to_be_too_small_is_told_before_anything_is_written(
    tiny_folder: Path, tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = [f"{name}=full:epochs={i}" for i, name in enumerate("abcd", start=1)]
    path = study_file(tmp_path, tiny_folder, retention=[], arms=arms)
    done = called(capsys, "run", path, "--out", disk / "out")
    assert done.code == 2
    assert done.err.startswith("error: the study needs about 0 MiB")
    assert not list(disk.iterdir())


# --- quick and quiet -------------------------------------------------------------------------------------------------

HEAVY = ("torch", "transformers", "peft", "scipy", "matplotlib")


def imported(arguments: list[object]) -> tuple[int, set[str]]:
    """Exit code, and the packages that a command imported."""
    code, _, said = finish(start(*arguments, python=("-X", "importtime")))
    lines = [line.rpartition("|")[2].strip() for line in said.splitlines() if line.startswith("import time:")]
    return code, {line.partition(".")[0] for line in lines}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["compare", "--help"]], ids=" ".join)
def test_help_waits_for_no_heavy_library(arguments: list[object]) -> None:
    code, packages = imported(arguments)
    assert code == 0
    assert "typer" in packages
    assert not packages & set(HEAVY)


def test_names_settings_and_files_are_checked_before_torch_is_loaded(tmp_path: Path, tiny_folder: Path) -> None:
    wrong = study_file(tmp_path, tiny_folder, arms=["loar"])
    commands = (
        ["compare", "--model", tiny_folder, "--task", "gsm8"],
        ["compare", "--model", tmp_path / "none", "--task", "arc_easy"],
        ["compare", "--model", tiny_folder, "--task", "arc_easy", "--arm", "mine=./none"],
        ["run", wrong],
    )
    for command in commands:
        code, packages = imported(command)
        assert code == 2
        assert not packages & {"torch", "transformers", "peft"}


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    for command in ("methods", "models --json", "compare --help"):
        script = f"{sys.executable} -m finetrap {command} | head -n 1"
        done = subprocess.run(["bash", "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.stdout.count("\n") == 1
        assert done.stderr == ""


def test_a_reader_that_never_reads_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "finetrap", "tasks"]
    done = subprocess.run(command, env=ENVIRONMENT, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.stderr == ""
