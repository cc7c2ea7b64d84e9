"""What the answers are."""

from collections.abc import Sequence

from finetrap.report.charts.canvas import PALETTE, Canvas, figure_of, label_rows, svg
from finetrap.results import ArmResult
from finetrap.scoring import Outcome

OUTCOME_TONES: dict[Outcome, str] = {
    "correct": "green",
    "wrong": "vermillion",
    "no_answer": "purple",
    "truncated": "orange",
    "degenerate": "grey",
}
"""The colour of each outcome, wherever it is shown."""

_WRITTEN_FROM = 0.07


def outcome_chart(arms: Sequence[ArmResult], canvas: Canvas) -> str | None:
    """The share of each outcome, an arm a bar; None where nothing was answered."""
    shown = [arm for arm in arms if sum(arm.outcomes.values())]
    if not shown:
        return None
    figure, (axis,) = figure_of(len(shown) + 1, canvas)
    left = [0.0] * len(shown)
    for outcome, tone in OUTCOME_TONES.items():
        shares = [100 * arm.outcomes.get(outcome, 0) / sum(arm.outcomes.values()) for arm in shown]
        if not any(shares):
            continue
        words = outcome.replace("_", " ")
        axis.barh(range(len(shown)), shares, left=left, height=0.62, color=PALETTE[tone].light, label=words)
        for row, share in enumerate(shares):
            if share > 100 * _WRITTEN_FROM:
                axis.annotate(f"{share:.0f}", (left[row] + share / 2, row), ha="center", va="center")
            left[row] += share
    label_rows(axis, shown)
    axis.set_xlim(0, 100)
    axis.set_xlabel("share of answers, %")
    figure.legend(loc="outside upper center", ncols=2 if canvas.narrow else len(OUTCOME_TONES), frameon=False)
    return svg(figure)
