"""Whether full fine-tuning fits into little memory. Writes bench/results/fits.json.

    python bench/fits.py [--models FOLDER] [--model NAME] [--gigabytes 16]

Two steps of 16 GSM8K rows with float32 masters and AdamW, the untouched model beside them as in a study, in a process
of a Linux control group that has no more memory than that: it would be killed beyond. To make one takes root.
"""

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from command import arguments, quiet, say_of, spec_of
from engine import GEMMA, QWEN
from measure import RESULTS, Results, Worker, WorkerError
from work import Job, loaded

GIGABYTES = {GEMMA: 10.0, QWEN: 16.0}
GROUPS = Path("/sys/fs/cgroup")
PEAKS = ("memory.max_usage_in_bytes", "memory.peak")
"""What a group calls the most that it ever took, files that it mapped included."""


class ControlGroupError(Exception):
    """None can be made here."""


@contextmanager
def control_group(limit: int) -> Iterator[Path]:
    """A new group of so many bytes, without swap; of version 1 where memory has one."""
    version_1 = (GROUPS / "memory").is_dir()
    group = GROUPS / ("memory" if version_1 else "") / f"finetrap-{os.getpid()}"
    swap = group / ("memory.memsw.limit_in_bytes" if version_1 else "memory.swap.max")
    try:
        # Files that stay in memory count for the group that first read them.
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("1")
        group.mkdir()
        (group / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(limit))
        if swap.exists():
            swap.write_text(str(limit if version_1 else 0))
    except OSError as error:
        _remove(group)
        raise ControlGroupError(f"no control group can be made here: {error}") from error
    try:
        if not swap.exists() and psutil.swap_memory().total:
            raise ControlGroupError("a control group is not kept from swapping here")
        yield group
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    """A process that ended may stay in its group for a moment."""
    for _ in range(50):
        if not group.is_dir():
            return
        with suppress(OSError):
            group.rmdir()
        time.sleep(0.1)


def parameters(model: str) -> int:
    """How many weights are trained."""
    return loaded(model).model.num_parameters()


def measured(job: Job, limit: int) -> dict[str, Any]:
    """Whether a process did its work. One that was killed did not fit; other errors are raised."""
    with control_group(limit) as group, Worker() as worker:
        # At once: all that it loads is to count.
        try:
            (group / "cgroup.procs").write_text(str(worker.pid))
        except OSError as error:
            raise ControlGroupError(f"no process can be put into a control group here: {error}") from error
        try:
            worker.call("ours.train", job)
        except WorkerError as error:
            if not str(error).startswith("killed"):
                raise
            return {"fits": False}
        peaks = [int((group / name).read_text()) for name in PEAKS if (group / name).exists()]
        return {"fits": True, **({"peak": peaks[0]} if peaks else {})}


def main() -> None:
    """Measure, and write a row for each model."""
    parser = argparse.ArgumentParser(description="Measure whether full fine-tuning fits into little memory.")
    parser.add_argument("--model", action="append", help=f"instead of {' and '.join(GIGABYTES)}: a name, or a path")
    parser.add_argument("--gigabytes", type=float, help="instead of the model's own")
    parser.add_argument("--out", type=Path, default=RESULTS / "fits.json")
    given = arguments(parser)
    quiet()
    results = Results(given.out, "model", "limit")
    failed = False
    for named in given.model or GIGABYTES:
        model = Path(named).stem if Path(named).exists() else named
        spec, say = spec_of(named, given.models), say_of(model)
        if spec is None:
            say("left out: the model is not here; see --models, and `finetrap models get`")
            continue
        limit = int(1e9 * (given.gigabytes or GIGABYTES.get(model, 16.0)))
        job = Job(spec, "gsm8k", 4 if given.quick else 32, method="full", batch=2 if given.quick else 16)
        try:
            row = measured(job, limit)
            with Worker() as worker:
                row |= {"precision": worker.call("work.precision_name")}
                row |= {"parameters": worker.call("fits.parameters", spec)}
        except ControlGroupError as error:
            say(f"left out: {error}")
            continue
        except WorkerError as error:
            failed = True
            say(f"failed: {error}")
            continue
        results.put({"model": model, "method": "full", "limit": limit, "unit": "bytes", **row})
        say(f"{limit / 1e9:.1f} GB are {'enough' if row['fits'] else 'not enough'}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
