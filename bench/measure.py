"""Workers, alternation and the file of results. Torch is not imported here: a parent's memory would be its workers'."""

import gc
import importlib
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from finetrap import __version__
from finetrap.provenance import processor

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "lm-eval", "datasets")


class Run(NamedTuple):
    """What a side did, and how long it took."""

    seconds: float
    tokens: int = 0
    """Real ones: without padding."""
    loss: float | None = None
    """Mean of the optimiser steps'."""
    answers: tuple[Any, ...] = ()
    """One an item: what was written, or the choices' log-likelihoods."""
    written: tuple[int, ...] = ()
    """Tokens of each answer."""
    peak_memory_bytes: int = 0
    """The highest resident memory that the worker ever had."""


class WorkerError(Exception):
    """A side could not do its work: it raised, or it was killed, which is how a lack of memory shows."""


class Worker:
    """A process for one side. The model stays loaded in it, so that loading is not timed."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other,), daemon=True)
        self._process.start()
        other.close()

    @property
    def pid(self) -> int | None:
        """The process's."""
        return self._process.pid

    def call(self, function: str, *arguments: Any, **settings: Any) -> Any:
        """The value of `MODULE.FUNCTION` in the worker."""
        try:
            self._pipe.send((function, arguments, settings))
            value = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise WorkerError("killed, as for want of memory") from error
        if isinstance(value, WorkerError):
            raise value
        return value

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(5)
        self._process.terminate()
        self._process.join()


def _serve(pipe: Connection) -> None:
    with suppress(OSError):
        # Where memory runs out, the worker is to go, and no other process.
        Path("/proc/self/oom_score_adj").write_text("1000")
    while True:
        try:
            name, arguments, settings = pipe.recv()
        except EOFError:
            return
        module, _, function = name.rpartition(".")
        # A wrapped model holds itself; two of them at once may be more than there is memory.
        gc.collect()
        try:
            value = getattr(importlib.import_module(module), function)(*arguments, **settings)
        except Exception as error:
            value = WorkerError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        if isinstance(value, Run):
            kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            value = value._replace(peak_memory_bytes=kilobytes * 1024)
        pipe.send(value)


def alternate(
    ours: Callable[[], Run], theirs: Callable[[], Run], *, runs: int, say: Callable[[str], None]
) -> tuple[list[Run], list[Run]]:
    """Ours, theirs, ours, theirs, ..."""
    pairs = []
    for index in range(runs):
        pairs.append((ours(), theirs()))
        say(f"run {index + 1} of {runs}: ours {pairs[-1][0].seconds:.1f} s, theirs {pairs[-1][1].seconds:.1f} s")
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def seconds_of(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compared(ours: Sequence[float], theirs: Sequence[float], *, unit: str, more_is_better: bool) -> dict[str, Any]:
    """The part of a row that says who is ahead, by medians."""
    a, b = statistics.median(ours), statistics.median(theirs)
    return {
        "ours": a,
        "theirs": b,
        "unit": unit,
        "ratio": a / b if more_is_better else b / a,
        "runs": {"ours": list(ours), "theirs": list(theirs)},
    }


class Results:
    """A file of results. Each row is written as soon as it is there."""

    def __init__(self, path: Path, *keys: str) -> None:
        self.path = path
        self._keys = keys
        """The fields that tell rows apart."""

    def find(self, *, part: str = "rows", **key: object) -> dict[str, Any] | None:
        """The row, or the grid, with this key."""
        return next((row for row in self._read().get(part, []) if self._key(row) == self._key(key)), None)

    def put(self, row: dict[str, Any], *, part: str = "rows") -> None:
        """Write a row in place of the one with its key."""
        dated = {**row, "date": now(), "machine": machine()}
        file = self._read()
        rows = file.setdefault(part, [])
        place = next((i for i, old in enumerate(rows) if self._key(old) == self._key(row)), len(rows))
        rows[place : place + 1] = [dated]
        head = {"date": now(), "machine": machine(), "versions": versions()}
        file = {**head, **{key: value for key, value in file.items() if key not in head}}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(file, indent=1) + "\n")
        partial.replace(self.path)

    def _read(self) -> dict[str, Any]:
        """The file as it is now: another bench may have written to it since."""
        found: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {"rows": []}
        return found

    def _key(self, row: dict[str, Any]) -> tuple[object, ...]:
        return tuple(row.get(key) for key in self._keys)


def now() -> str:
    """The time, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine() -> str:
    """The processor, its cores and the memory."""
    return f"{processor()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def versions() -> dict[str, str]:
    """Of finetrap, of Python and of what either side uses."""
    packages = {name: version(name) for name in PACKAGES}
    return {"finetrap": __version__, "python": platform.python_version(), **packages}
