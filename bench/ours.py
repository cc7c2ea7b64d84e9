"""finetrap's side: its public functions, called as a study calls them."""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from measure import Run
from work import Job, encoder, loaded, shots, task_of, test_examples, training_examples

from finetrap.config import Study
from finetrap.engine.attention import packed_attention_on
from finetrap.engine.loss import TrainingRow
from finetrap.engine.train import train as train_rows
from finetrap.evaluate import Asked, evaluate
from finetrap.method import build, complete_settings
from finetrap.quiet import quiet_libraries
from finetrap.records import ItemRow


def train(job: Job) -> Run:
    """Rows to tokens, the method prepared, one epoch."""
    made, examples = encoder(job), training_examples(job)
    return _trained(job, lambda: [TrainingRow(*made.training_row(example)) for example in examples])


def train_length(job: Job, length: int) -> Run:
    """One step on as many rows as the job has, all of one length, cut out of the task's rows on end."""
    made, rows = encoder(job), job.items
    ids = [token for e in training_examples(job._replace(items=ROWS_ON_END)) for token in made.training_row(e)[0]]
    cut = [TrainingRow(ids[i * length : (i + 1) * length], length // 2) for i in range(rows)]
    if len(cut[-1].ids) < length:
        raise ValueError(f"{len(ids)} tokens are too few for {rows} rows of {length}")
    return _trained(job, lambda: cut)


ROWS_ON_END = 200


def _trained(job: Job, made: Callable[[], list[TrainingRow]]) -> Run:
    base = loaded(job.model)
    method = build(job.method, complete_settings(job.method, {"batch_size": job.batch}))
    assert method.training is not None
    assert method.prepare is not None
    model = base.copy()
    with quiet_libraries(), packed_attention_on(model):
        started = time.perf_counter()
        rows = made()
        method.prepare(model)
        trained = train_rows(model, rows, [], training=method.training, seed=0, keep_float32=method.adapter)
        seconds = time.perf_counter() - started
    return Run(seconds, tokens=trained.tokens, loss=sum(entry.loss for entry in trained.log) / len(trained.log))


def generate(job: Job) -> Run:
    """Prompts, greedy answers, scores."""
    seconds, rows = _evaluated(job)
    return Run(
        seconds,
        tokens=sum(row.prompt_tokens for row in rows),
        answers=tuple(row.output for row in rows),
        written=tuple(row.output_tokens for row in rows),
    )


def choose(job: Job) -> Run:
    """Prompts, the log-likelihood of each choice, scores."""
    seconds, rows = _evaluated(job)
    return Run(seconds, answers=tuple(row.loglikelihoods for row in rows))


def _evaluated(job: Job) -> tuple[float, list[ItemRow]]:
    base, task, examples, asked = loaded(job.model), task_of(job), test_examples(job), Asked(shots(job))
    started = time.perf_counter()
    rows = evaluate(base, task, examples, asked, progress=lambda done: None)
    return time.perf_counter() - started, rows


def extracted(job: Job, texts: tuple[str, ...]) -> list[str | None]:
    """What the task's score reads out of each answer."""
    score = task_of(job).score
    assert score is not None
    return [score(text, example.gold).extracted for text, example in zip(texts, test_examples(job), strict=True)]


def study(job: Job, trials: int) -> Run:
    """A study with so many seeds of LoRA on `items` rows and items, and the two arms that every study has.

    `answers` is one number: the seconds of it that were neither training nor evaluation.
    """
    limits = {"limit_train": job.items, "limit_test": job.items, "limit_retention": max(10, job.items // 2)}
    with tempfile.TemporaryDirectory() as folder:
        asked = Study(
            models=job.model,
            tasks=job.task,
            arms="lora",
            seeds=trials,
            keep="none",
            # As the demo's: what is answered at length would hide what a trial costs besides.
            retention=("hellaswag", "wikitext2", "divergence"),
            **limits,
        )
        started = time.perf_counter()
        results = asked.run(Path(folder) / "study", progress=False)
        seconds = time.perf_counter() - started
        if results.failures:
            raise RuntimeError(f"trials failed: {results.failures[0]}")
        records = [json.loads(path.read_text()) for path in Path(folder).glob("study/trials/**/*.json")]
    spent = sum(record.get("train_seconds", 0.0) + record.get("eval_seconds", 0.0) for record in records)
    return Run(seconds, answers=(seconds - spent,))


class Share(NamedTuple):
    """A part of the time, and how an operation's name begins that belongs to it."""

    of: str
    names: tuple[str, ...]


SHARES = (
    Share("matrix products", ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn", "aten::mkldnn")),
    Share("attention", ("aten::_scaled_dot_product", "aten::_flash", "aten::scaled_dot")),
    Share("optimiser", ("aten::_fused_adam", "aten::_foreach", "Optimizer", "aten::lerp", "aten::linalg_vector_norm")),
    Share("copies and casts", ("aten::copy_", "aten::cat", "aten::_to_copy", "aten::clone", "aten::index")),
)


def profile(kind: str, job: Job) -> dict[str, float]:
    """Shares of the time by torch's profiler; `elementwise and other` is what no entry of SHARES names."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    work = {"train": train, "generate": generate, "choose": choose}[kind]
    with profiled(activities=[ProfilerActivity.CPU]) as trace:
        seconds = work(job).seconds
    shares = {share.of: 0.0 for share in SHARES}
    shares["elementwise and other"] = 0.0
    for event in trace.key_averages():
        name = next((share.of for share in SHARES if event.key.startswith(share.names)), "elementwise and other")
        shares[name] += event.self_cpu_time_total / 1e6 / seconds
    # What torch does not see: Python between operations, tokenisation, scoring.
    shares["outside of torch"] = max(0.0, 1 - sum(shares.values()))
    return {name: round(share, 4) for name, share in shares.items()}
