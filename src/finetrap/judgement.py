"""What `finetrap judge` says: a record for programs, a table for people."""

from pydantic import Field
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from finetrap.records import Record
from finetrap.report.table import STYLES
from finetrap.report.words import WORDS, ends, percent, points
from finetrap.results import VersusZeroShot

SCHEMA = "finetrap/judge/1"
COLUMNS = (
    "arm",
    "accuracy (95% CI)",
    "vs baseline",
    "p (Holm)",
    "verdict",
    "detectable",
    "items to decide",
    "behind the best",
)


class JudgedArm(Record):
    """One arm: a run, or one run a seed."""

    arm: str
    files: tuple[str, ...]
    """One a seed."""
    accuracy: float
    """Mean over seeds."""
    ci95: tuple[float, float]
    """Wilson's, over items; with several seeds over both."""
    vs_baseline: VersusZeroShot | None
    """The difference to the baseline, as a study's to zero-shot; null for the baseline and for the trivial arm."""
    items_needed: int | None
    """About so many would show this difference if the scores stay as they are; null: it is shown, or no number does."""
    regret_upper: float | None
    """What the arm loses at most against the best, for all arms at once, with 90% confidence; null for the trivial."""


class Judgement(Record):
    """The verdicts on one task, which are a family of their own."""

    task: str | None
    """Out of the files' names; null where they say none."""
    metric: str
    filter: str
    n_test: int
    """Items, not items x seeds."""
    baseline: str
    margin: float
    """Differences below it would not change the choice."""
    arms: tuple[JudgedArm, ...]


class Judged(Record):
    """What `finetrap judge --json` prints."""

    schema_: str = Field(default=SCHEMA, alias="schema")
    """Raised when a key changes its meaning or goes."""
    tasks: tuple[Judgement, ...]
    warnings: tuple[str, ...]
    """What a reader has to know before trusting a number."""

    def to_json(self) -> str:
        """The record as JSON."""
        return self.model_dump_json(by_alias=True, indent=1)

    def render(self) -> RenderableType:
        """For a terminal: a table a task."""
        parts: list[RenderableType] = []
        for judgement in self.tasks:
            parts += [_table(judgement), Text(_legend(judgement), style="dim"), Text()]
        return Group(*parts, *(Text(f"warning: {warning}", style="yellow") for warning in self.warnings))


def _table(judgement: Judgement) -> Table:
    title = f"{judgement.task or 'the task'}, {judgement.n_test} items, {judgement.metric}"
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("arm", "verdict") else "right", overflow="fold")
    for arm in judgement.arms:
        table.add_row(*_cells(arm, judgement))
    return table


def _cells(arm: JudgedArm, judgement: Judgement) -> list[Text]:
    low, high = arm.ci95
    seeds = f" ({len(arm.files)} seeds)" if len(arm.files) > 1 else ""
    versus = arm.vs_baseline
    row = [arm.arm + seeds, f"{percent(arm.accuracy)} ({100 * low:.1f} to {100 * high:.1f})"]
    behind = "-" if arm.regret_upper is None else f"at most {100 * arm.regret_upper:.1f}"
    if versus is None:
        word = "baseline" if arm.arm == judgement.baseline else "trivial"
        return [Text(cell) for cell in (*row, "-", "-", word, "-", "-", behind)]
    effect = versus.decisive
    cells = [
        Text(cell)
        for cell in (
            *row,
            f"{points(effect.delta)} [{ends(effect.ci95_adjusted)}]",
            f"{effect.p_adjusted:.3g}",
            WORDS[versus.verdict],
            f"{100 * effect.mde:.1f}",
            "-" if arm.items_needed is None else f"{arm.items_needed:,}",
            behind,
        )
    ]
    cells[4].stylize(STYLES.get(versus.verdict, ""))
    return cells


def _legend(judgement: Judgement) -> str:
    rule = "" if judgement.filter == "none" else f" of the answer that the filter {judgement.filter} takes"
    return (
        f"Accuracy: {judgement.metric}{rule}. Differences are in points, their intervals hold for all arms at once, "
        f"and p is Holm's. Detectable: found four times in five. Behind the best: with 90% confidence. Margin: "
        f"{100 * judgement.margin:.1f} points."
    )
