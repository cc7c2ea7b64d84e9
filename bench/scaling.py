"""How finetrap's cost grows. Writes bench/results/scaling.json.

Each row holds the seconds at sizes over a range of 16 times, and the exponent of a power law fitted to them by least
squares on logarithms: 1 is proportional, 0 constant. A size of 0 has no logarithm, and counts in `growth` only: the
seconds at the largest size over those at the smallest. `floor_growth` is that of the least time that the products can
take: attending to more shots is more work, however it is done.

    python bench/scaling.py [--work shots] [--runs 3]
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from command import arguments, model_here, quiet, say_of
from engine import SMOLLM2
from measure import RESULTS, Results, Run, Worker, WorkerError
from work import Job

SHOTS, SIXTEEN = (0, 1, 2, 4, 8, 16), (1, 2, 4, 8, 16)
ITEMS, MORE = (8, 16, 32, 64, 128), (25, 50, 100, 200, 400)
ANSWERING, CHOOSING = "floor.generate", "floor.choose"
ANSWERS = Job("", "gsm8k", 32, new_tokens=64)
CHOICES = Job("", "arc_easy", 100)


class Growth(NamedTuple):
    """A size that is varied, and the work at each."""

    work: str
    variant: str
    sizes: tuple[int, ...]
    function: str
    """Of a worker."""
    given: Callable[[int], tuple[Any, ...]]
    """Its arguments at a size: a job first."""
    floor: str = ""
    """Of a worker: the least time for a job."""


GROWTHS = (
    Growth("shots", "gsm8k, 32 answers", SHOTS, "ours.generate", lambda n: (ANSWERS._replace(shots=n),), ANSWERING),
    Growth("shots", "arc_easy, 100 items", SHOTS, "ours.choose", lambda n: (CHOICES._replace(shots=n),), CHOOSING),
    Growth("test items", "gsm8k", ITEMS, "ours.generate", lambda n: (ANSWERS._replace(items=n),), ANSWERING),
    Growth("test items", "arc_easy", MORE, "ours.choose", lambda n: (CHOICES._replace(items=n),), CHOOSING),
    Growth(
        "sequence length",
        "lora, 4 rows",
        (128, 256, 512, 1024, 2048),
        "ours.train_length",
        lambda n: (Job("", "gsm8k", 4, method="lora"), n),
    ),
    Growth("trials", "lora on arc_easy", SIXTEEN, "ours.study", lambda n: (Job("", "arc_easy", 64), n)),
)


def exponent(sizes: tuple[int, ...], seconds: list[float]) -> float:
    """Of the power law through the points, by least squares on logarithms."""
    points = [(n, s) for n, s in zip(sizes, seconds, strict=True) if n > 0]
    slope, _ = np.polyfit(*np.log(np.array(points).T), deg=1)
    return float(slope)


def measured(growth: Growth, spec: str, *, runs: int, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Each size in turn, so many times; the first round, at the smallest size, is not counted."""
    sizes = growth.sizes[:3] if quick else growth.sizes
    done: dict[int, list[Run]] = {size: [] for size in sizes}
    with Worker() as worker:

        def given(size: int) -> tuple[Any, ...]:
            job, *rest = growth.given(size)
            return job._replace(model=spec, items=max(1, job.items // 4) if quick else job.items), *rest

        def once(size: int) -> Run:
            run: Run = worker.call(growth.function, *given(size))
            return run

        def floor(size: int) -> float:
            written = [done[size][-1].written] if growth.floor == ANSWERING else []
            seconds: float = worker.call(growth.floor, *given(size), *written).seconds
            return seconds

        once(sizes[0])
        for _ in range(runs):
            for size in sizes:
                done[size].append(once(size))
                say(f"{size}: {done[size][-1].seconds:.2f} s")
        floor_growth = floor(sizes[-1]) / floor(sizes[0]) if growth.floor else None
    seconds = [statistics.median(run.seconds for run in done[size]) for size in sizes]
    row = {
        "sizes": list(sizes),
        "seconds": seconds,
        "unit": "seconds",
        "exponent": exponent(sizes, seconds),
        "growth": seconds[-1] / seconds[0],
        "runs": [[run.seconds for run in done[size]] for size in sizes],
    }
    if floor_growth is not None:
        row["floor_growth"] = floor_growth
    if growth.work == "trials":
        apart = [statistics.median(run.answers[0] for run in done[size]) for size in sizes]
        trials = sizes[-1] - sizes[0]
        overhead = (apart[-1] - apart[0]) / trials
        row |= {"overhead_seconds": apart, "overhead_per_trial": overhead / ((seconds[-1] - seconds[0]) / trials)}
    return row


def main() -> None:
    """Measure, and write each row as it is done."""
    parser = argparse.ArgumentParser(description="Measure how finetrap's cost grows.")
    parser.add_argument("--work", action="append", choices=sorted({growth.work for growth in GROWTHS}))
    parser.add_argument("--model", default=SMOLLM2, help="a name, or a path")
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.json")
    given = arguments(parser)
    quiet()
    model, spec = model_here(given)
    results = Results(given.out, "work", "variant", "model")
    failed = False
    for growth in GROWTHS:
        if given.work and growth.work not in given.work:
            continue
        say = say_of(f"{growth.work} ({growth.variant}), {model}")
        try:
            row = measured(growth, spec, runs=given.runs, quick=given.quick, say=say)
        except WorkerError as error:
            failed = True
            say(f"failed: {error}")
            continue
        results.put({"work": growth.work, "variant": growth.variant, "model": model, **row})
        say(f"exponent {row['exponent']:.2f}, {row['growth']:.2f}x over the range")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
