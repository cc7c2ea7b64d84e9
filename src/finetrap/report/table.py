"""Results as tables, for a terminal, report.md and report.html: every cell is written here, once for all three."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from io import StringIO
from typing import NamedTuple, get_args

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from finetrap.report.text_forest import text_forest
from finetrap.report.words import WORDS, claimed, ends, estimand, in_words, number, percent, points, rescued, what_next
from finetrap.results import ArmResult, OutOfDistribution, Recommendation, Results, Retention, RetentionTask
from finetrap.scoring import Outcome

COLUMNS = ("arm", "accuracy (95% CI)", "vs zero-shot", "verdict", "retention", "bits/byte", "trained", "tokens/query")

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

STYLES = {"gain": "green", "harm": "bold red", "no_difference": "dim", "floor": "yellow"}


FOREST_LEGEND = (
    "Difference to zero-shot with its adjusted interval; ░ the margin, │ no difference, ● recipe, ■ checkpoint."
)


class Grid(NamedTuple):
    """A table's cells, as plain text."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def groups(results: Results) -> list[tuple[str, str, list[ArmResult], Recommendation]]:
    """Arms and recommendation by model and task."""
    return [
        (r.model, r.task, [a for a in results.arms if (a.model, a.task) == (r.model, r.task)], r)
        for r in results.recommendations
    ]


def cells(arm: ArmResult) -> tuple[str, ...]:
    """One row, in the order of `COLUMNS`."""
    retention, cost = arm.retention, arm.cost
    forgotten = retention is not None and retention.verdict == "harm"
    kept = "-" if retention is None or retention.delta is None else points(retention.delta)
    bits = "-"
    if retention is not None and retention.bits_per_byte is not None:
        bits = f"{retention.bits_per_byte:.3f} ({retention.bits_per_byte_delta:+.3f})"
    return (
        arm.arm,
        *_compared(arm.arm, arm),
        f"{kept} FORGETS" if forgotten else kept,
        bits,
        f"{cost.train_seconds:.0f} s, {_count(cost.trainable_params)}" if cost.trainable_params else "-",
        f"{cost.prompt_tokens_per_query + cost.output_tokens_per_query:.0f}",
    )


def _compared(name: str, on: ArmResult | OutOfDistribution) -> tuple[str, str, str]:
    """What the arm called `name` comes to on a task: accuracy, difference to the untouched model, verdict."""
    versus = on.vs_zero_shot
    found = None if versus is None else estimand(versus)[1]
    return (
        f"{percent(on.accuracy)} ({100 * on.ci95[0]:.0f} to {100 * on.ci95[1]:.0f})",
        "-" if found is None else f"{points(found.delta)} [{', '.join(map(points, found.ci95_adjusted))}]",
        {"constant": "trivial", "zero_shot": "reference"}.get(name, "-") if versus is None else WORDS[versus.verdict],
    )


def _count(number: int) -> str:
    return f"{number / 1e6:.1f}M" if number >= 1e6 else f"{number / 1e3:.0f}k"


def rule_of(arms: Sequence[ArmResult]) -> str:
    """How the accuracy of these arms was decided."""
    arm = arms[0]
    sampled = next((f"; {arm.sampled}" for arm in arms if arm.sampled is not None), "")
    if arm.rule:
        return f"{arm.rule}{sampled}"
    if arm.accuracy_strict is None:
        return "choice with the highest log-likelihood per byte"
    return f"stated answer, else last number{sampled}"


def legend(arms: Sequence[ArmResult]) -> str:
    """What the columns mean."""
    return (
        f"Accuracy: {rule_of(arms)}, on {_items_of(arms[0])}. vs zero-shot: points, with the interval that "
        f"holds for all arms at once. retention: change of general tasks in points, chance at 0. bits/byte: general "
        f"text, lower is better, with its change. {_about(arms)}"
    )


def _items_of(arm: ArmResult) -> str:
    if arm.n_questions is None:
        return f"{arm.n_test} test items"
    return f"{arm.n_test} test items, which are groups of {arm.n_questions} questions in all and count alike"


def _about(arms: Sequence[ArmResult]) -> str:
    """What the verdicts are about."""
    kinds = {estimand(arm.vs_zero_shot)[0] for arm in arms if arm.vs_zero_shot is not None}
    checkpoints = f"these checkpoints (seed {arms[-1].seeds[0]})"
    if kinds <= {"artifact"}:
        return f"Verdicts are about {checkpoints}."
    if kinds == {"recipe"}:
        return "Verdicts are about these ways of adapting, over seeds."
    return f"Verdicts are about ways of adapting where an arm has seeds enough, else about {checkpoints}."


def render(results: Results) -> RenderableType:
    """For a terminal."""
    parts: list[RenderableType] = []
    for model, task, arms, recommendation in groups(results):
        table = Table(title=f"{task} with {model}", title_justify="left", title_style="bold", header_style="bold")
        for column in COLUMNS:
            table.add_column(column, justify="left" if column in ("arm", "verdict") else "right", overflow="fold")
        for arm in arms:
            row = [Text(cell) for cell in cells(arm)]
            if arm.vs_zero_shot is not None:
                row[3].stylize(STYLES.get(arm.vs_zero_shot.verdict, ""))
            if arm.retention is not None and arm.retention.verdict == "harm":
                row[4].stylize("bold red")
                row[5].stylize("bold red")
            table.add_row(*row)
        parts += [table, Text(legend(arms), style="dim"), Text(), *_forest(arms)]
        parts += [Text(headline(recommendation), style="bold"), *(Text(f"  {why}") for why in recommendation.why)]
        parts += [Text(f"  {rescued(rescue)}") for rescue in recommendation.rescues]
        parts += [*(Text(f"  {line}") for line in what_next(recommendation)), Text()]
    for claim in results.claims:
        parts += [Text(claimed(claim), style="bold"), *(Text(f"  {line}") for line in claim.evidence), Text()]
    parts += [Text(f"warning: {warning}", style="yellow") for warning in results.warnings]
    parts += [Text(f"failed: {failure.trial}: {failure.error}", style="red") for failure in results.failures]
    return Group(*parts)


def _forest(arms: Sequence[ArmResult]) -> list[RenderableType]:
    """Each difference as a picture, and each verdict in words."""
    lines = text_forest(arms)
    if not lines:
        return []
    table = Table.grid(padding=(0, 1))
    for arm in arms:
        if arm.arm in lines and arm.vs_zero_shot is not None:
            style = STYLES.get(arm.vs_zero_shot.verdict, "")
            table.add_row(Text(arm.arm), Text(lines[arm.arm], style=style), Text(in_words(arm) or ""))
    return [table, Text(FOREST_LEGEND, style="dim"), Text()]


def headline(recommendation: Recommendation) -> str:
    """The answer in one line."""
    if recommendation.method == "floor":
        return "Floor: this model cannot do this task in any of these ways."
    if recommendation.method == "undecided":
        leader = f" ('{recommendation.leader}' leads)" if recommendation.leader else ""
        return f"Undecided{leader}."
    return f"Take '{recommendation.method}'."


def plain_table(results: Results) -> str:
    """The same without colour, 150 characters wide."""
    console = Console(width=150, no_color=True, file=StringIO())
    with console.capture() as captured:
        console.print(render(results))
    return captured.get()


def arms_grid(arms: Sequence[ArmResult]) -> Grid:
    """The main table: an arm a row."""
    return Grid(COLUMNS, [cells(arm) for arm in arms])


def retention_grid(arms: Sequence[ArmResult]) -> Grid:
    """General tasks after adapting, with their change and its interval."""
    shown = [(arm.arm, arm.retention) for arm in arms if arm.retention is not None]
    more = _more_retention([retention for _, retention in shown])
    names = tuple(dict.fromkeys(name for _, retention in shown for name in retention.tasks))
    rows = []
    for arm, retention in shown:
        tasks = [retention.tasks[name] for name in names]
        scores = [f"{percent(t.score)} ({points(t.delta)}; {ends(t.ci95)}{_at_chance(t)})" for t in tasks]
        bits = "-"
        if retention.bits_per_byte is not None and retention.bits_per_byte_delta is not None:
            bits = f"{retention.bits_per_byte:.3f} ({retention.bits_per_byte_delta:+.3f})"
        rows.append(
            (arm, retention.verdict.replace("_", " "), *scores, bits, *(cell(retention) for cell in more.values()))
        )
    return Grid(("arm", "verdict", *names, "bits/byte", *more), rows)


def _at_chance(task: RetentionTask) -> str:
    return "; at chance, not in the mean" if task.at_chance else ""


def _more_retention(shown: Sequence[Retention]) -> dict[str, Callable[[Retention], str]]:
    """Columns for what a study may not have measured: KL from the untouched model, and the chat format."""
    columns: dict[str, Callable[[Retention], str]] = {}
    if any(retention.kl is not None for retention in shown):
        columns["KL, nats/token"] = _kl
    for kind in dict.fromkeys(kind for retention in shown for kind in retention.kl_texts):
        columns[f"KL, {kind}"] = partial(_kl_of, kind)
    if any(retention.chat_format is not None for retention in shown):
        columns["whole answers in chat"] = _chat_format
    return columns


def _kl(retention: Retention) -> str:
    interval = retention.kl_ci95
    return number(retention.kl, ".3f") + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def _kl_of(kind: str, retention: Retention) -> str:
    return number(retention.kl_texts.get(kind), ".3f")


def _chat_format(retention: Retention) -> str:
    if retention.chat_format is None:
        return "-"
    if retention.chat_format_delta is None or retention.chat_format_ci95 is None:
        return percent(retention.chat_format)
    return (
        f"{percent(retention.chat_format)} ({points(retention.chat_format_delta)}; {ends(retention.chat_format_ci95)})"
    )


def outcome_grid(arms: Sequence[ArmResult]) -> Grid:
    """What the answers are, and accuracy by the other rule; macro-F1 of labels, matches of a JSON answer's fields."""
    rates = {
        "in the stated format, right": [arm.accuracy_strict for arm in arms],
        "accuracy by raw likelihood": [arm.accuracy_raw for arm in arms],
        "format rate": [arm.format_rate for arm in arms],
        "macro-F1": [arm.macro_f1 for arm in arms],
        **{f"field {f}": [arm.fields.get(f) for arm in arms] for f in sorted({f for arm in arms for f in arm.fields})},
    }
    shown = {name: values for name, values in rates.items() if any(value is not None for value in values)}
    rows = []
    for index, arm in enumerate(arms):
        counts = (str(arm.outcomes.get(outcome, 0)) for outcome in OUTCOMES)
        others = (values[index] for values in shown.values())
        rows.append((arm.arm, *counts, *("-" if other is None else percent(other) for other in others)))
    return Grid(("arm", *(outcome.replace("_", " ") for outcome in OUTCOMES), *shown), rows)


def out_of_distribution_grid(arms: Sequence[ArmResult]) -> Grid:
    """Tasks that were not trained for: an arm and task a row."""
    rows = [(arm.arm, other.task, *_compared(arm.arm, other)) for arm in arms for other in arm.out_of_distribution]
    return Grid(("arm", "task", *COLUMNS[1:4]), rows)


def tuning_grid(arms: Sequence[ArmResult]) -> Grid:
    """What was tried before the settings were chosen: a candidate a row."""
    rows = [
        (
            arm.arm,
            candidate.setting.replace("_", " "),
            f"{candidate.value:g}" if isinstance(candidate.value, float) else str(candidate.value),
            str(candidate.rung + 1),
            "-" if candidate.train_rows is None else str(candidate.train_rows),
            "diverged" if candidate.diverged else number(candidate.validation_loss, ".3f"),
            "-" if candidate.accuracy is None else f"{percent(candidate.accuracy)} of {candidate.n}",
            "chosen" if candidate.chosen else "",
        )
        for arm in arms
        for candidate in arm.tuning
    ]
    return Grid(
        ("arm", "setting", "tried", "round", "train rows", "validation loss", "validation accuracy", "choice"), rows
    )


def cost_grid(arms: Sequence[ArmResult]) -> Grid:
    """What training and a query take."""
    tuned = any(arm.cost.tune_seconds is not None for arm in arms)
    rows = []
    for arm in arms:
        cost = arm.cost
        rows.append(
            (
                arm.arm,
                f"{cost.trainable_params:,}",
                f"{cost.train_seconds:.0f}",
                *([number(cost.tune_seconds, ".0f")] if tuned else []),
                "-" if cost.tokens_per_second is None else f"{cost.tokens_per_second:.0f}",
                f"{cost.eval_seconds:.0f}",
                f"{cost.peak_memory_bytes / 2**30:.1f}",
                f"{cost.artifact_bytes / 2**20:.1f}",
                f"{cost.prompt_tokens_per_query:.0f}",
                f"{cost.output_tokens_per_query:.0f}",
            )
        )
    header = ("arm", "trained weights", "training s", *(["tuning s"] if tuned else []), "tokens/s", "evaluation s")
    return Grid((*header, "peak GiB", "artifact MiB", "prompt tokens/query", "output tokens/query"), rows)


def markdown(grid: Grid) -> str:
    """A table for a page of Markdown."""
    lines = [f"| {' | '.join(grid.header)} |", f"|{'---|' * len(grid.header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(escape(cell) for cell in row)} |" for row in grid.rows)])


def escape(text: str) -> str:
    """Text that stands as it is in Markdown, whatever a model or a data set wrote."""
    text = " ".join(text.split()).replace("\\", "\\\\")
    # An underscore within a word is no emphasis, and most names here have one.
    return re.sub(r"[|`*<>\[$&~#]|(?<!\w)_|_(?!\w)", lambda found: f"\\{found[0]}", text)
