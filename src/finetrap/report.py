"""report.md with its charts: the answer first, then the evidence, then everything needed to repeat it."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from finetrap.charts import accuracy_chart, learning_chart, retention_chart
from finetrap.config import Study
from finetrap.records import Environment, TrainingLogEntry, slug
from finetrap.results import ArmResult, Recommendation, Results
from finetrap.scoring import Outcome
from finetrap.store import Store
from finetrap.table import escape, groups, headline, legend, markdown_table, percent, points

OUTCOMES = get_args(Outcome)


def write_report(results: Results, study: Study, store: Store) -> Path:
    """Write report.md and charts/ into the study's folder; returns the report's path."""
    logs = {
        (p.trial.model.label, p.trial.task, p.trial.arm): store.training_log(p.trial)
        for p in reversed(store.plan().planned)
    }
    parts = [f"# {escape(study.name)}", ""]
    for model, task, arms, recommendation in groups(results):
        mine = {arm.arm: logs[(model, task, arm.arm)] for arm in arms if logs.get((model, task, arm.arm))}
        parts += _section(model, task, arms, recommendation, mine, store.folder)
    parts += _warnings(results)
    parts += _repeat(results, store)
    return store.write("report.md", "\n".join(parts).rstrip() + "\n")


def _section(
    model: str,
    task: str,
    arms: Sequence[ArmResult],
    recommendation: Recommendation,
    logs: dict[str, list[TrainingLogEntry]],
    folder: Path,
) -> list[str]:
    stem = slug(f"{task}-{model}")
    accuracy, retention, learning = (
        Path("charts") / f"{stem}-{kind}.svg" for kind in ("accuracy", "retention", "learning")
    )
    accuracy_chart(arms, folder / accuracy)
    parts = [
        f"## {escape(task)} with {escape(model)}",
        "",
        f"**{escape(headline(recommendation))}**",
        "",
        *(f"- {escape(line)}" for line in recommendation.why),
        f"- Next: {escape(recommendation.next_step)}",
        "",
        markdown_table(arms),
        "",
        escape(legend(arms)),
        "",
        f"![accuracy of every arm]({accuracy})",
        "",
    ]
    if retention_chart(arms, folder / retention):
        parts += ["### What is forgotten", "", f"![change of general abilities]({retention})", ""]
        parts += [_retention_table(arms), ""]
    parts += ["### What the answers are", "", _outcome_table(arms), ""]
    if any(arm.out_of_distribution for arm in arms):
        parts += ["### On other problems", "", _out_of_distribution_table(arms), ""]
    parts += ["### What it costs", "", _cost_table(arms), ""]
    if learning_chart(logs, folder / learning):
        parts += ["### Learning", "", f"![validation loss by step]({learning})", ""]
    parts += ["### Settings", "", *(_settings(arm) for arm in arms), ""]
    return parts


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(escape(cell) for cell in row)} |" for row in rows)])


def _retention_table(arms: Sequence[ArmResult]) -> str:
    shown = [arm for arm in arms if arm.retention is not None]
    names = list(dict.fromkeys(name for arm in shown if arm.retention for name in arm.retention.tasks))
    rows = []
    for arm in shown:
        retention = arm.retention
        assert retention is not None
        row = [arm.arm, retention.verdict.replace("_", " ")]
        for name in names:
            task = retention.tasks[name]
            row.append(
                f"{percent(task.score)} ({points(task.delta)}; {points(task.ci95[0])} to {points(task.ci95[1])})"
            )
        if retention.bits_per_byte is not None and retention.bits_per_byte_delta is not None:
            row.append(f"{retention.bits_per_byte:.3f} ({retention.bits_per_byte_delta:+.3f})")
        else:
            row.append("-")
        rows.append(row)
    return _table(["arm", "verdict", *names, "bits/byte"], rows)


def _outcome_table(arms: Sequence[ArmResult]) -> str:
    rows = []
    for arm in arms:
        other = arm.accuracy_strict if arm.accuracy_strict is not None else arm.accuracy_raw
        row = [arm.arm, *(str(arm.outcomes.get(outcome, 0)) for outcome in OUTCOMES)]
        row.append("-" if other is None else percent(other))
        row.append("-" if arm.format_rate is None else percent(arm.format_rate))
        rows.append(row)
    second = "in the stated format, right" if arms[0].accuracy_strict is not None else "accuracy by raw likelihood"
    header = ["arm", *(outcome.replace("_", " ") for outcome in OUTCOMES), second, "format rate"]
    return _table(header, rows)


def _out_of_distribution_table(arms: Sequence[ArmResult]) -> str:
    rows = [
        [
            arm.arm,
            other.task,
            f"{percent(other.accuracy)} ({100 * other.ci95[0]:.0f} to {100 * other.ci95[1]:.0f})",
            "-" if other.vs_zero_shot is None else points(other.vs_zero_shot.delta),
        ]
        for arm in arms
        for other in arm.out_of_distribution
    ]
    return _table(["arm", "task", "accuracy (95% CI)", "vs zero-shot"], rows)


def _cost_table(arms: Sequence[ArmResult]) -> str:
    rows = []
    for arm in arms:
        cost = arm.cost
        speed = "-" if cost.tokens_per_second is None else f"{cost.tokens_per_second:.0f}"
        rows.append(
            [
                arm.arm,
                f"{cost.trainable_params:,}",
                f"{cost.train_seconds:.0f}",
                speed,
                f"{cost.eval_seconds:.0f}",
                f"{cost.peak_memory_bytes / 2**30:.1f}",
                f"{cost.artifact_bytes / 2**20:.1f}",
                f"{cost.prompt_tokens_per_query:.0f}",
                f"{cost.output_tokens_per_query:.0f}",
            ]
        )
    header = ["arm", "trained weights", "training s", "tokens/s", "evaluation s", "peak GiB", "artifact MiB"]
    return _table([*header, "prompt tokens/query", "output tokens/query"], rows)


def _settings(arm: ArmResult) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in arm.hyperparameters.items()) or "none"
    shots = "".join(f"; shots of seed {seed}: {', '.join(ids)}" for seed, ids in arm.shots.items())
    return f"- {escape(arm.arm)} ({escape(arm.method)}; seeds {list(arm.seeds)}): {escape(settings + shots)}"


def _warnings(results: Results) -> list[str]:
    lines = [f"- {escape(warning)}" for warning in results.warnings]
    lines += [f"- failed: {escape(failure.trial)}: {escape(failure.error)}" for failure in results.failures]
    return ["## Before you trust this", "", *lines, ""] if lines else []


def _repeat(results: Results, store: Store) -> list[str]:
    environment = results.environment
    return [
        "## To repeat it",
        "",
        "```",
        str(results.study["command"] or f"finetrap run {store.folder.name}/study.yaml").replace("`", "'"),
        "```",
        "",
        f"Finished {results.study['finished']}, protocol {results.study['protocol']}. {escape(machine(environment))}",
        "",
    ]


def machine(environment: Environment) -> str:
    """The machine and the versions in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in environment.packages.items())
    return (
        f"{environment.processor}, {environment.cores} cores, {environment.memory_bytes / 2**30:.0f} GiB, "
        f"{environment.system}, {environment.device} in {environment.dtype}; finetrap {environment.finetrap}"
        f"{f' ({environment.commit})' if environment.commit else ''}, Python {environment.python}, {versions}."
    )
