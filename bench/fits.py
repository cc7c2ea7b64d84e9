"""Whether full fine-tuning fits into little memory. Writes bench/results/fits.json.

    python bench/fits.py [--models FOLDER] [--model NAME] [--gigabytes 16]

Two steps of 16 GSM8K rows with float32 masters and AdamW, the untouched model beside them as in a study, in a process
of a Linux control group that has no more memory than that: it would be killed beyond. To make one takes root.
"""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from engine import GEMMA, QWEN, arguments, model_here, quiet, say_of
from measure import RESULTS, Results, Worker, WorkerError
from work import Job, loaded

GIGABYTES = {GEMMA: 10.0, QWEN: 16.0}
GROUPS = Path("/sys/fs/cgroup")
PEAKS = ("memory.max_usage_in_bytes", "memory.peak")
"""What a group calls the most that it ever took, files that it mapped included."""


@contextmanager
def control_group(limit: int) -> Iterator[Path]:
    """A new group of so many bytes, without swap; of version 1 where memory has one."""
    version_1 = (GROUPS / "memory").is_dir()
    group = GROUPS / ("memory" if version_1 else "") / f"finetrap-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(limit))
        # Not every kernel counts swap; where it does not, there is none to turn off.
        with suppress(OSError):
            swap, least = ("memory.memsw.limit_in_bytes", limit) if version_1 else ("memory.swap.max", 0)
            (group / swap).write_text(str(least))
        yield group
    finally:
        group.rmdir()


def parameters(model: str) -> int:
    """How many weights are trained."""
    return loaded(model).model.num_parameters()


def measured(job: Job, limit: int) -> dict[str, Any]:
    """What one process needed."""
    with Worker() as worker:
        weights: int = worker.call("fits.parameters", job.model)
    found: dict[str, Any] = {"parameters": weights, "limit": limit, "unit": "bytes"}
    # Files that stay in memory count for the group that first read them.
    Path("/proc/sys/vm/drop_caches").write_text("1")
    with control_group(limit) as group:
        worker = Worker()
        # At once: all that it loads is to count.
        (group / "cgroup.procs").write_text(str(worker.pid))
        try:
            worker.call("ours.train", job)
            peak = next(group / name for name in PEAKS if (group / name).exists()).read_text()
        except WorkerError as error:
            return found | {"fits": False, "says": str(error).splitlines()[0]}
        finally:
            worker.close()
    return found | {"fits": True, "peak": int(peak)}


def main() -> None:
    """Measure, and write a row for each model."""
    parser = argparse.ArgumentParser(description="Measure whether full fine-tuning fits into little memory.")
    parser.add_argument("--model", action="append", help=f"instead of {' and '.join(GIGABYTES)}: a name, or a path")
    parser.add_argument("--gigabytes", type=float, help="instead of the model's own")
    parser.add_argument("--out", type=Path, default=RESULTS / "fits.json")
    given = arguments(parser)
    quiet()
    results = Results(given.out, "model", "limit")
    with Worker() as worker:
        precision = worker.call("work.precision_name")
    for named in given.model or GIGABYTES:
        _, spec = model_here(argparse.Namespace(model=named, models=given.models))
        model = Path(named).stem if Path(named).exists() else named
        limit = int(1e9 * (given.gigabytes or GIGABYTES.get(model, 16.0)))
        job = Job(spec, "gsm8k", 4 if given.quick else 32, method="full", batch=2 if given.quick else 16)
        say = say_of(model)
        try:
            row = measured(job, limit)
        except OSError as error:
            say(f"left out: no control group can be made here ({error})")
            continue
        results.put({"model": model, "method": "full", "precision": precision, **row})
        say(f"{row['peak'] / 1e9:.1f} of {limit / 1e9:.0f} GB" if row["fits"] else f"failed: {row['says']}")


if __name__ == "__main__":
    main()
