"""Memory that is free, in containers above all."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from finetrap import cost
from finetrap.cost import free_in_control_groups, free_memory_bytes, is_out_of_memory

GIB = 2**30
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = ("memory.max", "memory.current", "inactive_file")
UNLIMITED = 9223372036854771712
"""What version 1 says where there is no limit."""


def group(folder: Path, names: tuple[str, str, str], *, limit: object, usage: int, unused: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip((*names[:2], "memory.stat"), (limit, usage, f"{names[2]} {unused}"), strict=True):
        (folder / name).write_text(f"{content}\n")


def test_a_limit_leaves_what_is_not_used_or_only_cached(tmp_path: Path) -> None:
    group(tmp_path / "pod", VERSION_2, limit=16 * GIB, usage=6 * GIB, unused=GIB)
    assert list(free_in_control_groups("0::/pod\n", tmp_path)) == [11 * GIB]


def test_limits_of_the_groups_around_it_hold_too(tmp_path: Path) -> None:
    group(tmp_path / "pod", VERSION_2, limit=4 * GIB, usage=3 * GIB)
    group(tmp_path / "pod" / "container", VERSION_2, limit="max", usage=2 * GIB)
    group(tmp_path / "pod" / "container" / "mine", VERSION_2, limit=16 * GIB, usage=2 * GIB)
    assert min(free_in_control_groups("0::/pod/container/mine\n", tmp_path)) == GIB


def test_a_container_sees_its_own_group_as_the_top(tmp_path: Path) -> None:
    group(tmp_path / "memory", VERSION_1, limit=8 * GIB, usage=2 * GIB, unused=GIB)
    groups = "12:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/docker/abc\n"
    assert list(free_in_control_groups(groups, tmp_path)) == [7 * GIB]


def test_a_container_sees_groups_below_its_own_too(tmp_path: Path) -> None:
    group(tmp_path / "memory", VERSION_1, limit=8 * GIB, usage=2 * GIB)
    group(tmp_path / "memory" / "job", VERSION_1, limit=3 * GIB, usage=2 * GIB)
    assert sorted(free_in_control_groups("4:memory:/docker/abc/job\n", tmp_path)) == [GIB, 6 * GIB]


def test_what_is_throttled_is_a_limit_too(tmp_path: Path) -> None:
    group(tmp_path, VERSION_2, limit=16 * GIB, usage=2 * GIB)
    (tmp_path / "memory.high").write_text(f"{5 * GIB}\n")
    assert min(free_in_control_groups("0::/\n", tmp_path)) == 3 * GIB


def test_a_limit_counts_where_nothing_says_what_is_cached(tmp_path: Path) -> None:
    group(tmp_path, VERSION_2, limit=4 * GIB, usage=GIB)
    for content in ("", "anon 4096\n", "unreadable\n"):
        (tmp_path / "memory.stat").write_text(content)
        assert list(free_in_control_groups("0::/\n", tmp_path)) == [3 * GIB]
    (tmp_path / "memory.stat").unlink()
    assert list(free_in_control_groups("0::/\n", tmp_path)) == [3 * GIB]


@pytest.mark.parametrize("limit", ["max", None])
def test_a_desktop_has_no_limit(tmp_path: Path, limit: str | None) -> None:
    if limit:
        group(tmp_path / "user.slice", VERSION_2, limit=limit, usage=GIB)
    assert list(free_in_control_groups("0::/user.slice/session-1.scope\n", tmp_path)) == []


@pytest.mark.parametrize("groups", ["0::/\n", ""])
def test_without_limits_what_the_machine_has_is_free(
    groups: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "free_in_control_groups", lambda _: free_in_control_groups(groups, tmp_path))
    assert 0 < free_memory_bytes("cpu") <= psutil.virtual_memory().total


def test_a_machine_without_control_groups_has_no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda _: False)
    assert 0 < free_memory_bytes("cpu") <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    "text",
    [
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.",
        "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
        "MPS backend out of memory (MPS allocated: 8 GB)",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_a_lack_of_memory_is_told_by_its_text(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_what_is_full_leaves_nothing(tmp_path: Path) -> None:
    group(tmp_path, VERSION_2, limit=GIB, usage=GIB + 4096)
    assert list(free_in_control_groups("0::/\n", tmp_path)) == [0]


def test_without_a_limit_the_machine_decides(tmp_path: Path) -> None:
    group(tmp_path / "memory", VERSION_1, limit=UNLIMITED, usage=2 * GIB)
    (free,) = free_in_control_groups("4:memory:/\n", tmp_path)
    assert free > psutil.virtual_memory().total
    assert 0 < free_memory_bytes("cpu") <= psutil.virtual_memory().total


@pytest.fixture
def limited_group() -> Iterator[Path]:
    """A new control group of 3 GiB, of whichever version there is."""
    if psutil.virtual_memory().available < 4 * GIB:
        pytest.skip("the machine has less than the group")
    top = Path("/sys/fs/cgroup/memory" if Path("/sys/fs/cgroup/memory").is_dir() else "/sys/fs/cgroup")
    folder = top / f"finetrap-test-{os.getpid()}"
    try:
        folder.mkdir()
        name = VERSION_1[0] if (folder / VERSION_1[0]).exists() else VERSION_2[0]
        (folder / name).write_text(str(3 * GIB))
    except OSError as error:
        if folder.is_dir():
            folder.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    yield folder
    folder.rmdir()


def test_a_real_limit_is_seen(limited_group: Path) -> None:
    code = (
        "import sys\n"
        "try:\n"
        f"    open({str(limited_group / 'cgroup.procs')!r}, 'w').write('0')\n"
        "except OSError as error:\n"
        "    sys.exit(f'REFUSED: {error}')\n"
        "from finetrap.cost import free_memory_bytes\n"
        "print(free_memory_bytes('cpu'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.stderr.startswith("REFUSED"):
        pytest.skip(f"no process may join a control group here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert 2 * GIB < int(done.stdout) < 3 * GIB
