"""What it costs: seconds, memory, bytes."""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from finetrap.engine.allocator import give_back_freed_memory
from finetrap.errors import StudyError


@dataclass
class Measured:
    """Filled in when the block ends."""

    seconds: float = 0.0
    peak_memory_bytes: int = 0
    """Of the GPU where there is one, else resident memory of this process."""


@contextmanager
def measure(device: str = "cpu") -> Iterator[Measured]:
    """Measure time and peak memory of a block."""
    measured = Measured()
    started = time.perf_counter()
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        try:
            yield measured
        finally:
            torch.cuda.synchronize(device)
            measured.peak_memory_bytes = torch.cuda.max_memory_allocated(device)
            measured.seconds = time.perf_counter() - started
        return
    give_back_freed_memory()
    process = psutil.Process()
    done = threading.Event()

    def watch() -> None:
        while True:
            measured.peak_memory_bytes = max(measured.peak_memory_bytes, process.memory_info().rss)
            if done.wait(0.05):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield measured
    finally:
        done.set()
        watcher.join()
        measured.seconds = time.perf_counter() - started


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def full_training_bytes(parameters: int, *, dtype: str) -> int:
    """Memory that full fine-tuning needs at the least: weights, gradients and AdamW's two moments.

    In bfloat16 a weight takes 2 bytes and its float32 master 4, its gradient 4, its moments 8; in float32 it is its
    own master. The untouched model stays in memory beside it. The best weights of a run are kept on disk.
    """
    bytes_each = 2 + 4 + 4 + 8 + 2 if dtype == "bfloat16" else 4 + 4 + 8 + 4
    return parameters * bytes_each


def check_memory(parameters: int, *, dtype: str, device: str, name: str) -> None:
    """Check that full fine-tuning fits before it starts.

    Raises:
        StudyError: it does not.
    """
    needed = full_training_bytes(parameters, dtype=dtype)
    free = free_memory_bytes(device)
    if needed > free:
        raise StudyError(
            f"full fine-tuning of {name} needs {needed / 2**30:.1f} GiB for weights, gradients and optimiser, and "
            f"{free / 2**30:.1f} GiB are free; leave the full arms out (--arm lora --arm dora), or use a smaller model."
        )


def free_memory_bytes(device: str) -> int:
    """Memory that is free on a device; in a container, within its limit."""
    if device.startswith("cuda"):
        import torch

        free: int = torch.cuda.mem_get_info(device)[0]
        # What torch keeps for itself and does not use is free to torch.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    give_back_freed_memory()
    groups = Path("/proc/self/cgroup")
    limits: Iterable[int] = free_in_control_groups(groups.read_text()) if groups.is_file() else ()
    return min([int(psutil.virtual_memory().available), *limits])


def free_in_control_groups(groups: str, root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Bytes that are left to a process by each of its Linux control groups that has a limit, of version 1 or 2.

    `groups` are the lines of its /proc/PID/cgroup. What is kept of files counts as free: it makes room.
    """
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, limits, usage, kept = root, ["memory.max", "memory.high"], "memory.current", ""
        elif "memory" in controllers.split(","):
            top, limits, usage, kept = root / "memory", ["memory.limit_in_bytes"], "memory.usage_in_bytes", "total_"
        else:
            continue
        parts = Path(path).parts[1:]
        ends = range(len(parts) + 1)
        # A container often sees its own group as the top: what its path begins with is not there.
        for folder in {top.joinpath(*parts[start:end]) for end in ends for start in range(end + 1)}:
            for limit in limits:
                # "max" is no limit.
                with suppress(OSError, ValueError):
                    free = int((folder / limit).read_text()) - int((folder / usage).read_text())
                    yield max(0, free + _kept_of_files(folder / "memory.stat", kept))


def _kept_of_files(statistics: Path, prefix: str) -> int:
    with suppress(OSError, ValueError):
        fields = dict(line.split() for line in statistics.read_text().splitlines())
        return sum(int(fields.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    return 0


_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
"""Of Linux, of Windows, of MPS and CUDA, of cuBLAS."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch raised an error for want of memory: mostly only its text tells."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)
