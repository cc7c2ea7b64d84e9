"""How learning rates were chosen."""

from collections.abc import Sequence

from finetrap.report.charts.canvas import GRID, LINES, PALETTE, REFERENCE, Canvas, figure_of, svg
from finetrap.results import ArmResult, TuningCandidate


def tuning_chart(arms: Sequence[ArmResult], canvas: Canvas) -> str | None:
    """Learning rate against validation loss and accuracy, a line an arm; None where no learning rate was tuned.

    Each round of the search is a line of its own, dotted but for the last: a longer training has another loss.
    """
    tuned = [(arm, curve) for arm in arms if (curve := curve_of(arm))]
    if not tuned:
        return None
    figure, axes = figure_of(7, canvas, 2)
    for colour, (arm, curve) in zip(LINES * 3, tuned, strict=False):
        line = PALETTE[colour].light
        axes[0].plot([], [], "o-", color=line, label=arm.arm)
        for axis, value_of in zip(axes, (_loss, _accuracy), strict=True):
            for rung in sorted({candidate.rung for candidate in curve}):
                measured = [(rate_of(c), y) for c in curve if c.rung == rung and (y := value_of(c)) is not None]
                style, size = ("o-", 6) if rung == curve[-1].rung else ("o:", 4)
                axis.plot([x for x, _ in measured], [y for _, y in measured], style, color=line, markersize=size)
            for candidate in curve:
                y = value_of(candidate)
                if candidate.chosen and y is not None:
                    axis.plot(rate_of(candidate), y, "o", color=REFERENCE, markersize=13, fillstyle="none")
    for axis, name in zip(axes, ("validation loss, nats a token", "validation accuracy, %"), strict=True):
        axis.set_xscale("log")
        axis.set_xlabel("learning rate")
        axis.set_ylabel(name)
        axis.grid(axis="y", color=GRID, linewidth=0.8)
    figure.legend(loc="outside upper center", ncols=3 if canvas.narrow else 6, frameon=False)
    return svg(figure)


def curve_of(arm: ArmResult) -> list[TuningCandidate]:
    """The learning rates that were tried, by round and rate."""
    tried = [candidate for candidate in arm.tuning if candidate.setting == "learning_rate"]
    return sorted(tried, key=lambda candidate: (candidate.rung, rate_of(candidate)))


def rate_of(candidate: TuningCandidate) -> float:
    """The learning rate of a candidate that has one."""
    return float(candidate.value)


def _loss(candidate: TuningCandidate) -> float | None:
    return candidate.validation_loss


def _accuracy(candidate: TuningCandidate) -> float | None:
    return None if candidate.accuracy is None else 100 * candidate.accuracy
