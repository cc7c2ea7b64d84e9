"""How learning rates were chosen."""

from collections.abc import Sequence

from finetrap.charts.canvas import GRID, LINES, PALETTE, REFERENCE, Canvas, figure_of, svg
from finetrap.results import ArmResult, TuningCandidate


def tuning_chart(arms: Sequence[ArmResult], canvas: Canvas) -> str | None:
    """Learning rate against validation loss and accuracy, a line an arm; None where none was tuned.

    Each candidate stands at the highest rung that it reached; rungs are joined apart, for their losses do not compare.
    """
    tuned = [(arm, curve) for arm in arms if (curve := curve_of(arm))]
    if not tuned:
        return None
    figure, axes = figure_of(7, canvas, 2)
    for colour, (arm, curve) in zip(LINES * 3, tuned, strict=False):
        line = PALETTE[colour].light
        for axis, name in zip(axes, ("validation_loss", "validation_accuracy"), strict=True):
            scale = 100 if name == "validation_accuracy" else 1
            for rung in sorted({candidate.rung for candidate in curve}):
                points = [
                    (candidate.learning_rate, scale * value)
                    for candidate in curve
                    if candidate.rung == rung and (value := getattr(candidate, name)) is not None
                ]
                last = rung == max(candidate.rung for candidate in curve)
                if points:
                    style = "o-" if last else "o:"
                    axis.plot(*zip(*points, strict=True), style, color=line, alpha=1 if last else 0.6, markersize=5)
            for candidate in curve:
                value = getattr(candidate, name)
                if candidate.chosen and value is not None:
                    x, y = candidate.learning_rate, scale * value
                    axis.plot(x, y, "o", color=line, markersize=8)
                    axis.plot(x, y, "o", color=REFERENCE, markersize=13, fillstyle="none")
        axes[0].plot([], [], "o-", color=line, label=arm.arm)
    for axis, name in zip(axes, ("validation loss, nats a token", "validation accuracy, %"), strict=True):
        axis.set_xscale("log")
        axis.set_xlabel("learning rate")
        axis.set_ylabel(name)
        axis.grid(axis="y", color=GRID, linewidth=0.8)
    figure.legend(loc="outside upper center", ncols=3 if canvas.narrow else 6, frameon=False)
    return svg(figure, canvas)


def curve_of(arm: ArmResult) -> list[TuningCandidate]:
    """The candidates that have a learning rate, each at its highest rung, by learning rate."""
    highest: dict[float, TuningCandidate] = {}
    for candidate in sorted(arm.tuning, key=lambda candidate: (candidate.rung, candidate.chosen)):
        if candidate.learning_rate is not None:
            highest[candidate.learning_rate] = candidate
    return [highest[rate] for rate in sorted(highest)]
