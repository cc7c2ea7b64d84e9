"""What an arm learned against what it forgot."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from finetrap.report.charts.canvas import GRID, REFERENCE, Canvas, colour_of, figure_of, laid_out, svg, wrapped
from finetrap.report.charts.labels import Point, label_points
from finetrap.report.words import estimand
from finetrap.results import ArmResult, Retention

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_Interval = tuple[float, float] | None


class _Measure(NamedTuple):
    name: str
    of: Callable[[Retention], tuple[float | None, _Interval]]
    """The change, and its interval."""
    tolerated: float
    worse: int
    """1 where more is worse, else -1."""


def learn_forget_chart(
    arms: Sequence[ArmResult], canvas: Canvas, *, tolerance: float, bits_tolerance: float
) -> str | None:
    """Change on the task against change of general tasks and of general text; None where retention is unknown.

    Down is forgotten in both panels. `tolerance` is a fraction, `bits_tolerance` is in bits per byte.
    """
    measures = (
        _Measure("general tasks, change in points", _tasks, 100 * tolerance, -1),
        _Measure("general text, change in bits/byte", _text, bits_tolerance, 1),
    )
    adapted = [arm for arm in arms if arm.vs_zero_shot is not None and arm.retention is not None]
    known = [m for m in measures if any(a.retention is not None and m.of(a.retention)[0] is not None for a in adapted)]
    if not known:
        return None
    figure, axes = figure_of(8, canvas, len(known))
    named: list[tuple[Axes, list[Point]]] = []
    for axis, measure in zip(axes, known, strict=True):
        points = [Point(0.0, 0.0, "zero_shot")]
        axis.plot(0, 0, "D", color=REFERENCE, markersize=7)
        for arm in adapted:
            assert arm.vs_zero_shot is not None
            assert arm.retention is not None
            change, interval = measure.of(arm.retention)
            if change is None:
                continue
            learned = estimand(arm.vs_zero_shot)[1]
            x, colour = 100 * learned.delta, colour_of(arm)
            axis.plot([100 * end for end in learned.ci95_adjusted], [change, change], color=colour, linewidth=1.3)
            if interval is not None:
                axis.plot([x, x], interval, color=colour, linewidth=1.3)
            axis.plot(x, change, "o", color=colour, markersize=8)
            points.append(Point(x, change, arm.arm))
        axis.axvline(0, color=REFERENCE, linewidth=1)
        axis.axhline(0, color=REFERENCE, linewidth=1)
        axis.axhline(measure.worse * measure.tolerated, color=REFERENCE, linewidth=1, linestyle="--")
        axis.grid(axis="y", color=GRID, linewidth=0.8)
        axis.margins(0.12)
        if measure.worse > 0:
            axis.invert_yaxis()
        axis.set_ylabel(measure.name)
        axis.set_xlabel(wrapped("difference on the task, points", canvas))
        named.append((axis, points))
    laid_out(figure)
    for axis, points in named:
        label_points(axis, points, canvas)
    return svg(figure)


def _tasks(retention: Retention) -> tuple[float | None, _Interval]:
    if retention.delta is None or retention.ci95 is None:
        return None, None
    return 100 * retention.delta, (100 * retention.ci95[0], 100 * retention.ci95[1])


def _text(retention: Retention) -> tuple[float | None, _Interval]:
    return retention.bits_per_byte_delta, retention.bits_per_byte_ci95
