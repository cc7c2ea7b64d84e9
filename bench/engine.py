"""finetrap's engine against the peers, side by side on real weights. Writes bench/results/engine.json.

    python bench/engine.py                                          everything, three runs each
    python bench/engine.py --work train_lora --model gemma-3-270m-q4 --runs 5
    python bench/engine.py --missing                                only what the file does not have yet

A peer is measured first with a few settings (`grid` in the file), then with the best of them. Models that are no
preset are GGUF files whose names begin with the model's, in --models or $FINETRAP_BENCH_MODELS.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from command import arguments, quiet, say_of, spec_of
from measure import RESULTS, Results, Run, Worker, WorkerError, alternate, compared, seconds_of
from work import Job, warm_up

from finetrap.errors import StudyError

SMOLLM2, GEMMA, QWEN = "smollm2-135m-instruct-q4", "gemma-3-270m-q4", "qwen2.5-coder-0.5b"
TRAINING_ROWS = {SMOLLM2: 48, GEMMA: 16, QWEN: 16}
"""A run of the slowest side is to take about a minute."""
ALL = (SMOLLM2, GEMMA, QWEN)
TRL = "TRL SFTTrainer + peft"
LM_EVAL = "lm-evaluation-harness hf"
Settings = dict[str, Any]


class Grid(NamedTuple):
    """Settings of a peer that are tried one kind after another, each on the best so far."""

    start: Settings
    steps: tuple[tuple[Settings, ...], ...]

    def steps_in(self, precision: str) -> list[list[Settings]]:
        """Without weights in another precision than is computed in: a processor without bfloat16 is lost in it."""
        steps = [[each for each in step if each.get("weights", precision) == precision] for step in self.steps]
        return [step for step in steps if step]


def _batches(*sizes: int) -> tuple[Settings, ...]:
    return tuple({"batch": size} for size in sizes)


ADAPTER_GRID = Grid(
    {"batch": 4},
    (
        _batches(1, 2, 8, 16),
        ({"weights": "bfloat16"},),
        ({"order": "random"},),
        ({"attention": "eager"},),
        (
            {"layout": "padding_free"},
            {"layout": "padding_free", "batch": 16},
            {"layout": "packed-1024", "batch": 1},
            {"layout": "packed-2048", "batch": 1},
        ),
    ),
)
FULL_GRID = ADAPTER_GRID._replace(steps=(ADAPTER_GRID.steps[0], *ADAPTER_GRID.steps[2:]))
"""Weights stay in float32, as ours have float32 masters."""
BATCH_GRID = Grid({"batch": 16}, (_batches(1, 8, 32, 64),))
LOOKUP: Settings = {"batch": 1, "cache": "dynamic", "lookup": 3}
GENERATE_GRID = Grid({"batch": 16}, (_batches(1, 8, 32, 64), ({"cache": "static"}, LOOKUP)))


@dataclass(frozen=True)
class Work:
    """A row of the table for each of its models."""

    name: str
    variant: str
    peer: str
    kind: str
    """Of `ours`: train, generate, choose; or memory, study."""
    theirs: str
    """A function of `peers`."""
    grid: Grid
    task: str = "gsm8k"
    models: tuple[str, ...] = (SMOLLM2,)
    method: str = ""
    items: int = 32
    shots: int = 0

    def job(self, model: str, spec: str, quick: bool) -> Job:
        items = TRAINING_ROWS.get(model, 48) if self.method else self.items
        job = Job(spec, self.task, items, self.shots, 128 if self.kind == "generate" else 0, self.method)
        return (
            job._replace(items=4, batch=2, shots=min(job.shots, 1), new_tokens=job.new_tokens // 32) if quick else job
        )


def _training(method: str, *models: str) -> Work:
    grid = FULL_GRID if method == "full" else ADAPTER_GRID
    return Work(f"train_{method}", "gsm8k", TRL, "train", "train", grid, models=models, method=method)


def _memory(method: str, variant: str) -> Work:
    grid = FULL_GRID if method == "full" else ADAPTER_GRID
    return Work(f"memory_{method}", variant, TRL, "memory", "train", grid, models=ALL, method=method)


AT_ITS_FASTEST, ROW_BY_ROW = "peer at its fastest", "peer row by row"

WORKS = (
    _training("lora", *ALL),
    _training("full", *ALL),
    _training("dora", SMOLLM2),
    Work("generate_5shot", "gsm8k", LM_EVAL, "generate", "lm_eval_generate", BATCH_GRID, models=ALL, items=64, shots=5),
    Work(
        "generate_5shot_hf",
        "gsm8k",
        "transformers generate",
        "generate",
        "transformers_generate",
        GENERATE_GRID,
        items=32,
        shots=5,
    ),
    Work(
        "generate_5shot_hf",
        "gsm8k, generate_batch",
        "transformers generate_batch",
        "generate",
        "transformers_generate_batch",
        Grid({"batch": 1}, ()),
        items=16,
        shots=5,
    ),
    Work("generate_0shot", "gsm8k", LM_EVAL, "generate", "lm_eval_generate", BATCH_GRID, items=64),
    *(
        Work("choice_0shot", task, LM_EVAL, "choose", "lm_eval_choose", BATCH_GRID, task=task, items=items)
        for task, items in (("hellaswag", 100), ("arc_easy", 200))
    ),
    Work("choice_5shot", "arc_easy", LM_EVAL, "choose", "lm_eval_choose", BATCH_GRID, "arc_easy", items=60, shots=5),
    Work("study", "demo", "TRL SFTTrainer + peft, lm-evaluation-harness hf", "study", "", BATCH_GRID),
    *(_memory(method, variant) for method in ("lora", "full") for variant in (AT_ITS_FASTEST, ROW_BY_ROW)),
)


STUDY_GRID = ADAPTER_GRID._replace(steps=(*ADAPTER_GRID.steps[:-1], ADAPTER_GRID.steps[-1][:2]))
"""Without packing: with rows so short, fewer optimiser steps would be taken."""
STUDY_TRAINING = Work("study", "training", TRL, "train", "train", STUDY_GRID, "arc_easy", method="lora")


@dataclass(frozen=True)
class Bench:
    """What one call of this script measures, and where it goes."""

    results: Results
    precision: str
    """What both sides compute in on this machine."""
    runs: int
    quick: bool
    grid_again: bool

    def has(self, work: Work, model: str) -> bool:
        """Whether the file has a row, and all of it: of what is timed the profile is measured last."""
        row = self.results.find(**self._key(work, model))
        return row is not None and (work.kind in ("memory", "study") or "profile" in row)

    def _key(self, work: Work, model: str) -> dict[str, str]:
        return {"work": work.name, "variant": work.variant, "model": model, "precision": self.precision}

    def row(self, work: Work, model: str, spec: str) -> None:
        """Measure and write one row."""
        key = self._key(work, model)
        say = say_of(f"{work.name} ({work.variant}), {model}")

        def put(found: dict[str, Any]) -> None:
            self.results.put({**key, "peer": work.peer, **found})

        job = work.job(model, spec, self.quick)
        if work.kind == "study":
            found = self._study(model, spec, say)
        elif work.kind == "memory":
            lean = {"batch": 1, "weights": "float32" if work.method == "full" else self.precision, "order": "random"}
            best = lean if work.variant == ROW_BY_ROW else self.best(work, model, job, say)
            found = _memory_row(job._replace(items=2 * job.batch), best, self.runs, say)
        else:
            found = _timed(work, job, self.best(work, model, job, say), self.runs, say, put)
        put(found)
        row = self.results.find(**key)
        assert row is not None
        say(f"ours {row['ours']:.4g}, theirs {row['theirs']:.4g} {row['unit']}: {row['ratio']:.2f}x")

    def best(self, work: Work, model: str, job: Job, say: Callable[[str], None]) -> Settings:
        """The fastest of the peer's settings on fewer rows or tokens; kept in the file."""
        name = work.name.replace("memory", "train")
        variant = "gsm8k" if work.kind == "memory" else work.variant
        key = {"work": name, "variant": variant, "model": model, "precision": self.precision}
        known = None if self.grid_again else self.results.find(part="grid", **key)
        if known is None:
            points: list[Settings] = []
            moves = () if self.quick else work.grid.steps_in(self.precision)
            best = _search(work, job, moves, points, say)
            known = {**key, "peer": work.peer, "best": best, "points": points}
            self.results.put(known, part="grid")
        found: Settings = known["best"]
        return found

    def _study(self, model: str, spec: str, say: Callable[[str], None]) -> dict[str, Any]:
        """Whole processes: start, imports and loading count. The peer's settings are measured on the study's rows."""
        (harness,) = (work for work in WORKS if (work.name, work.variant) == ("choice_0shot", "arc_easy"))
        training = self.best(STUDY_TRAINING, model, STUDY_TRAINING.job(model, spec, self.quick), say)
        evaluation = self.best(harness, model, harness.job(model, spec, self.quick), say)
        script = Path(__file__).parent / "peer_study.py"
        given = ["--training", json.dumps(training), "--eval-batch", str(evaluation["batch"])]

        def finetrap() -> Run:
            with tempfile.TemporaryDirectory() as folder:
                return _process("-m", "finetrap", "demo", "--out", f"{folder}/study")

        ours, theirs = alternate(finetrap, lambda: _process(str(script), *given), runs=self.runs, say=say)
        seconds = [[run.seconds for run in side] for side in (ours, theirs)]
        settings = {"training": training, "evaluation": evaluation}
        return {**compared(*seconds, unit="seconds", more_is_better=False), "settings": settings}


def _search(
    work: Work, job: Job, moves: Sequence[Sequence[Settings]], points: list[Settings], say: Callable[[str], None]
) -> Settings:
    """The best settings of a grid. What fails, most often for want of memory, is noted and cannot win."""
    if work.method:
        small = job._replace(items=job.batch)
    elif work.kind == "choose":
        small = job._replace(items=job.items // 2)
    else:
        small = job._replace(new_tokens=job.new_tokens // 4)
    best, least = work.grid.start, float("inf")
    worker = _warm(work, job, work.grid.start)
    for move in (({},), *moves):
        for change in [{**best, **change} for change in move]:
            try:
                run = worker.call(f"peers.{work.theirs}", small, **change)
                points.append({**change, "seconds": run.seconds, "loss": run.loss})
                say(f"{change}: {run.seconds:.1f} s")
            except WorkerError as error:
                points.append({**change, "failed": str(error).splitlines()[0].replace(job.model, "the model")})
                say(f"{change}: {error}")
                worker.close()
                worker = _warm(work, job, work.grid.start)
        done = [point for point in points if "seconds" in point]
        fastest = min(done, key=lambda point: point["seconds"], default=None)
        if fastest is not None and fastest["seconds"] < least:
            least = fastest["seconds"]
            best = {name: value for name, value in fastest.items() if name not in ("seconds", "loss")}
    worker.close()
    if least == float("inf"):
        raise WorkerError(f"{work.peer} did none of the work of {work.name}")
    return best


def _warm(work: Work, job: Job, settings: Settings) -> Worker:
    worker = Worker()
    worker.call(f"peers.{work.theirs}", warm_up(job), **{**settings, "batch": 1})
    return worker


@contextmanager
def _pair(work: Work, job: Job, settings: Settings) -> Iterator[tuple[Worker, Worker]]:
    """A worker for each side, warmed up."""
    with Worker() as ours, _warm(work, job, settings) as theirs:
        ours.call(f"ours.{work.kind}", warm_up(job))
        yield ours, theirs


def _timed(
    work: Work,
    job: Job,
    settings: Settings,
    runs: int,
    say: Callable[[str], None],
    put: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """A row. What was timed is `put` before the floor and the profile are measured, which might fail."""
    with _pair(work, job, settings) as (ours, theirs):
        done, peers = alternate(
            lambda: ours.call(f"ours.{work.kind}", job),
            lambda: theirs.call(f"peers.{work.theirs}", job, **settings),
            runs=runs,
            say=say,
        )
        training = work.kind == "train"
        amounts = [run.tokens / run.seconds if training else run.seconds for run in done]
        amounts_of_peer = [run.tokens / run.seconds if training else run.seconds for run in peers]
        unit = "real tokens/s" if training else "seconds"
        row = compared(amounts, amounts_of_peer, unit=unit, more_is_better=training)
        put(row | {"items": job.items, "settings": settings})
        floor = ours.call(f"floor.{work.kind}", job, *([done[-1].written] if work.kind == "generate" else []))
        seconds = statistics.median(run.seconds for run in done)
        row |= {
            "items": job.items,
            "settings": settings,
            "loss": {"ours": done[-1].loss, "theirs": peers[-1].loss} if training else None,
            "agreement": None if training else _agreement(work, job, ours, done[-1], peers[-1]),
            "floor": done[-1].tokens / floor.seconds if training else floor.seconds,
            "share_of_floor": floor.seconds / seconds,
            "machine_operations": floor.machine.operations,
            "machine_bytes": floor.machine.bytes,
            "profile": ours.call("ours.profile", work.kind, job),
        }
    return {name: value for name, value in row.items() if value is not None}


def _agreement(work: Work, job: Job, worker: Worker, ours: Run, theirs: Run) -> dict[str, float]:
    """How far the two sides say the same."""
    pairs = list(zip(ours.answers, theirs.answers, strict=True))
    if work.kind == "choose":
        differences = [abs(a - b) for pair in pairs for a, b in zip(*pair, strict=True)]
        same = sum(a.index(max(a)) == b.index(max(b)) for a, b in pairs)
        return {"largest_difference_nats": max(differences), "same_choice": same / len(pairs)}
    read = [worker.call("ours.extracted", job, run.answers) for run in (ours, theirs)]
    return {
        "same_text": sum(a == b for a, b in pairs) / len(pairs),
        "same_answer": sum(a == b for a, b in zip(*read, strict=True)) / len(pairs),
    }


def _memory_row(job: Job, settings: Settings, runs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The highest resident memory of processes that load the model and train two steps, and do nothing else."""

    def fresh(function: str, **arguments: Any) -> Run:
        with Worker() as worker:
            run: Run = worker.call(function, job, **arguments)
            return run

    pairs = alternate(lambda: fresh("ours.train"), lambda: fresh("peers.train", **settings), runs=runs, say=say)
    ours, theirs = ([float(run.peak_memory_bytes) for run in side] for side in pairs)
    return {**compared(ours, theirs, unit="bytes", more_is_better=False), "items": job.items, "settings": settings}


def _process(*command: str) -> Run:
    """A Python process from its start to its end."""
    whole = [sys.executable, *command]
    return Run(seconds_of(lambda: subprocess.run(whole, check=True, stdout=subprocess.DEVNULL)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure finetrap's engine against its peers.")
    names = sorted({work.name for work in WORKS})
    parser.add_argument("--work", action="append", choices=names, help="may be given several times")
    parser.add_argument("--variant", help="only this one")
    parser.add_argument("--model", action="append", help="instead of the work's own: a name, or a path")
    parser.add_argument("--out", type=Path, default=RESULTS / "engine.json")
    parser.add_argument("--missing", action="store_true", help="leave out what the file has")
    parser.add_argument("--grid-again", action="store_true", help="measure the peers' settings again")
    given = arguments(parser)
    quiet()
    results = Results(given.out, "work", "variant", "model", "precision")
    with Worker() as worker:
        precision = worker.call("work.precision_name")
    bench = Bench(results, precision, given.runs, given.quick, given.grid_again)
    failed = False
    for work in WORKS:
        if (given.work and work.name not in given.work) or (given.variant or work.variant) != work.variant:
            continue
        for named in given.model or work.models:
            model = Path(named).stem if Path(named).exists() else named
            spec = spec_of(named, given.models)
            say = say_of(f"{work.name} ({work.variant}), {model}")
            if given.missing and bench.has(work, model):
                continue
            if spec is None:
                say("left out: the model is not here; see --models, and `finetrap models get`")
                continue
            try:
                bench.row(work, model, spec)
            except (WorkerError, StudyError, subprocess.CalledProcessError) as error:
                failed = True
                say(f"failed: {error}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
