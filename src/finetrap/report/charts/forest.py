"""Differences to the untouched model, with the intervals that decide the verdicts."""

from collections.abc import Sequence

from finetrap.report.charts.canvas import GRID, PALETTE, REFERENCE, TONES, Canvas, figure_of, label_rows, svg, wrapped
from finetrap.report.words import WORDS, estimand, points
from finetrap.results import ArmResult

MARKERS = {"recipe": "o", "artifact": "s"}


def forest_chart(arms: Sequence[ArmResult], canvas: Canvas) -> str | None:
    """The difference of each arm to zero-shot with its adjusted interval, and the margin; None where there is none."""
    shown = [(arm, arm.vs_zero_shot) for arm in arms if arm.vs_zero_shot is not None]
    if not shown:
        return None
    figure, (axis,) = figure_of(len(shown), canvas)
    margin = 100 * shown[0][1].margin
    axis.axvspan(-margin, margin, color=GRID, alpha=0.6, linewidth=0)
    axis.axvline(0, color=REFERENCE, linewidth=1)
    for row, (_, versus) in enumerate(shown):
        name, decides = estimand(versus)
        low, high = (100 * end for end in decides.ci95_adjusted)
        colour = PALETTE[TONES[versus.verdict]].light
        axis.plot([low, high], [row, row], color=colour, linewidth=2.5, solid_capstyle="butt")
        axis.plot([low, high], [row, row], "|", color=colour, markersize=9, markeredgewidth=2)
        axis.plot(100 * decides.delta, row, MARKERS[name], color=colour, markersize=8)
        interval = "" if canvas.narrow else f" ({low:+.1f} to {high:+.1f})"
        said = f"{points(decides.delta)}{interval}  {WORDS[versus.verdict]}"
        # Beside the axis, so that no interval runs into it.
        axis.annotate(
            said, (1, row), (8, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center"
        )
    label_rows(axis, [arm for arm, _ in shown])
    left, right = axis.get_xlim()
    axis.set_xlim(min(left, -2 * margin), max(right, 2 * margin))
    kinds = {estimand(versus)[0] for _, versus in shown}
    marks = "; ".join(
        text
        for kind, text in (("recipe", "round: recipe, over seeds"), ("artifact", "square: this checkpoint"))
        if kind in kinds
    )
    axis.set_xlabel(f"difference to zero-shot, points (adjusted interval)\n{wrapped(marks, canvas)}")
    return svg(figure)
