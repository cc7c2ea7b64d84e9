"""Whether `torch.compile` pays in a run of training. Writes bench/results/compiled.json.

    python bench/compiled.py [--method lora] [--runs 3]

A step of 16 GSM8K rows, as finetrap takes it, beside the same with the norms, or the feed-forward too, compiled for
any length. `pays_after_steps` is how many steps save what the first one took longer than uncompiled, null where a step
is no faster. A study's quick size trains 16 steps, and 8 a candidate of tuning.
"""

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

from command import arguments, model_here, quiet, say_of
from engine import SMOLLM2
from measure import RESULTS, Results, Run, Worker, WorkerError
from work import Job, encoder, loaded, training_examples

WHAT = {"nothing": (), "norms": ("RMSNorm",), "norms and feed-forward": ("RMSNorm", "MLP")}
"""How the names of the modules end that are compiled."""


def steps(job: Job, endings: tuple[str, ...], count: int) -> Run:
    """`answers` are the seconds of each step, the first with what is compiled in it; all on the same rows."""
    import torch

    from finetrap.engine.attention import packed_attention_on
    from finetrap.engine.loss import TrainingRow
    from finetrap.engine.train import train
    from finetrap.method import build, complete_settings

    # Each layer below an adapter is compiled by itself; what ran uncompiled beyond a limit would not be told.
    torch._dynamo.config.recompile_limit = 256
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    rows = [TrainingRow(*encoder(job).training_row(example)) for example in training_examples(job)]
    method = build(job.method, complete_settings(job.method, {"batch_size": len(rows), "epochs": count}))
    assert method.training is not None
    assert method.prepare is not None
    model = loaded(job.model).copy()
    ended: list[float] = []
    with packed_attention_on(model):
        torch.manual_seed(0)
        method.prepare(model)
        for module in model.modules():
            if endings and type(module).__name__.endswith(endings):
                # The family's own: the engine's norms, which take their place, are written for what is not compiled.
                own = partial(type(module).forward, module)
                module.forward = torch.compile(own, dynamic=True)  # type: ignore[method-assign]
        started = time.perf_counter()
        trained = train(
            model,
            rows,
            [],
            training=method.training,
            seed=0,
            keep_float32=method.adapter,
            progress=lambda *_: ended.append(time.perf_counter()),
        )
    seconds = [end - start for start, end in zip([started, *ended], ended, strict=False)]
    return Run(sum(seconds), tokens=trained.tokens, loss=trained.log[-1].loss, answers=tuple(seconds))


def measured(spec: str, method: str, *, runs: int, quick: bool) -> dict[str, Any]:
    """Steps of each kind in a process of its own: the first, and the median of `runs` after it."""
    job = Job(spec, "gsm8k", 2 if quick else 16, method=method)
    done: dict[str, Run] = {}
    for what, endings in WHAT.items():
        with Worker() as worker:
            # What a process does only once counts for neither.
            worker.call("compiled.steps", job._replace(items=2), (), 1)
            done[what] = worker.call("compiled.steps", job, endings, 1 + runs)
    first = {what: run.answers[0] for what, run in done.items()}
    later = {what: statistics.median(run.answers[1:]) for what, run in done.items()}
    longer = {what: max(0.0, first[what] - first["nothing"]) for what in WHAT}
    saved = {what: later["nothing"] - later[what] for what in WHAT}
    return {
        "first_step_seconds": first,
        "step_seconds": later,
        "pays_after_steps": {w: 1 + longer[w] / saved[w] if saved[w] > 0 else None for w in WHAT if w != "nothing"},
        "loss": {what: run.loss for what, run in done.items()},
        "runs": {what: list(run.answers) for what, run in done.items()},
    }


def main() -> None:
    """Measure, and write a row for each method."""
    parser = argparse.ArgumentParser(description="Measure whether compiling pays.")
    parser.add_argument("--method", action="append", choices=["full", "lora"])
    parser.add_argument("--model", default=SMOLLM2, help="a name, or a path")
    parser.add_argument("--out", type=Path, default=RESULTS / "compiled.json")
    given = arguments(parser)
    quiet()
    model, spec = model_here(given)
    results = Results(given.out, "method", "model")
    for method in given.method or ("full", "lora"):
        say = say_of(f"{method}, {model}")
        try:
            row = measured(spec, method, runs=given.runs, quick=given.quick)
        except WorkerError as error:  # a machine without a compiler, above all
            say(f"failed: {error}")
            continue
        results.put({"method": method, "model": model, **row})
        say(f"pays after steps: {row['pays_after_steps']}")


if __name__ == "__main__":
    main()
