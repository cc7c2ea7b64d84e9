"""Accuracy of every arm with its interval."""

from collections.abc import Sequence

from finetrap.report.charts.canvas import REFERENCE, Canvas, colour_of, figure_of, forgets, label_rows, svg, wrapped
from finetrap.results import ArmResult


def accuracy_chart(arms: Sequence[ArmResult], canvas: Canvas) -> str:
    """Accuracy of every arm with its interval, and lines for the untouched model and the trivial answer."""
    figure, (axis,) = figure_of(len(arms), canvas)
    for row, arm in enumerate(arms):
        low, high = (100 * end for end in arm.ci95)
        colour = colour_of(arm)
        axis.plot([low, high], [row, row], color=colour, linewidth=2.5, solid_capstyle="round")
        axis.plot(100 * arm.accuracy, row, "o", color=colour, markersize=8)
        verdict = arm.vs_zero_shot.verdict.replace("_", " ") if arm.vs_zero_shot else ""
        verdict += ", but forgets" if forgets(arm) else ""
        axis.annotate(
            f"{100 * arm.accuracy:.1f}%  {verdict}", (high, row), (8, 0), textcoords="offset points", va="center"
        )
    for name, style in (("zero_shot", "--"), ("constant", ":")):
        reference = next((arm for arm in arms if arm.arm == name), None)
        if reference is not None:
            axis.axvline(100 * reference.accuracy, color=REFERENCE, linestyle=style, linewidth=1)
    label_rows(axis, arms)
    axis.margins(x=0.22)
    axis.set_xlim(left=max(0.0, axis.get_xlim()[0]))
    text = f"accuracy on {arms[0].n_test} test items, % (95% interval; dashed: untouched, dotted: trivial)"
    axis.set_xlabel(wrapped(text, canvas))
    return svg(figure)
