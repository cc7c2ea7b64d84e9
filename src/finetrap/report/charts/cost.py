"""What accuracy costs."""

from collections.abc import Sequence
from math import ceil, floor, log10
from typing import TYPE_CHECKING, NamedTuple

from finetrap.recommend import cost_to_own
from finetrap.report.charts.canvas import GRID, REFERENCE, Canvas, colour_of, figure_of, laid_out, svg, wrapped
from finetrap.report.charts.labels import Point, label_points
from finetrap.results import ArmResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class _Axis(NamedTuple):
    name: str
    costs: list[float]
    """An arm each."""

    @property
    def nothing(self) -> float:
        """Where what costs nothing stands: left of all that does."""
        return min(cost for cost in self.costs if cost > 0) / 8

    def ticks(self) -> dict[float, str]:
        found = {self.nothing: "none"} if 0 in self.costs else {}
        costs = [cost for cost in self.costs if cost > 0]
        powers = range(floor(log10(min(costs))), ceil(log10(2 * max(costs))) + 1)
        steps = (1, 2, 5) if len(powers) < 4 else (1,)
        every = (step * 10.0**power for power in powers for step in steps)
        return found | {tick: f"{tick:,g}" for tick in every if min(costs) / 2 <= tick <= 2 * max(costs)}


def cost_chart(arms: Sequence[ArmResult], canvas: Canvas, *, queries: int, recommended: str | None) -> str | None:
    """Accuracy by what adapting takes, once, and by what owning it takes; None where nothing has a cost.

    The two differ: a prompt of solved examples takes nothing once, and is paid for at every query.
    """
    shown = [arm for arm in arms if arm.arm != "constant"]
    own = [cost_to_own(arm, queries=queries) for arm in shown]
    if not shown or not all(own):
        return None
    panels = [_Axis("cost to own, times the cheapest", [cost / min(own) for cost in own])]
    once = [seconds_once(arm) for arm in shown]
    if any(once):
        panels.insert(0, _Axis("training and tuning, seconds", once))
    figure, axes = figure_of(8, canvas, len(panels))
    trivial = next((arm for arm in arms if arm.arm == "constant"), None)
    named: list[tuple[Axes, list[Point]]] = []
    for axis, panel in zip(axes, panels, strict=True):
        points = []
        for arm, cost in zip(shown, panel.costs, strict=True):
            x, y, colour = cost or panel.nothing, 100 * arm.accuracy, colour_of(arm)
            axis.plot([x, x], [100 * end for end in arm.ci95], color=colour, linewidth=1.3)
            axis.plot(x, y, "o", color=colour, markersize=8)
            if arm.arm == recommended:
                axis.plot(x, y, "o", color=REFERENCE, markersize=15, fillstyle="none")
            points.append(Point(x, y, arm.arm))
        if trivial is not None:
            axis.axhline(100 * trivial.accuracy, color=REFERENCE, linestyle=":", linewidth=1)
        ticks = panel.ticks()
        axis.set_xscale("log")
        axis.set_xticks(list(ticks), list(ticks.values()))
        axis.minorticks_off()
        axis.set_xlim(min(point.x for point in points) / 1.6, 2.5 * max(point.x for point in points))
        axis.grid(axis="y", color=GRID, linewidth=0.8)
        axis.set_xlabel(wrapped(panel.name, canvas))
        axis.set_ylabel("accuracy, %")
        named.append((axis, points))
    laid_out(figure)
    for axis, points in named:
        label_points(axis, points, canvas)
    return svg(figure)


def seconds_once(arm: ArmResult) -> float:
    """What adapting takes before the first query."""
    return arm.cost.train_seconds + (arm.cost.tune_seconds or 0.0)
