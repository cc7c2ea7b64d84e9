"""How training went: validation loss by step."""

from collections.abc import Mapping, Sequence

from finetrap.records import TrainingLogEntry
from finetrap.report.charts.canvas import GRID, LINES, PALETTE, Canvas, figure_of, svg


def learning_chart(logs: Mapping[str, Sequence[TrainingLogEntry]], canvas: Canvas) -> str | None:
    """Validation loss by step, one line a trained arm (first seed); None if nothing trained so far."""
    validated = {
        name: [(entry.step, entry.validation_loss) for entry in log if entry.validation_loss is not None]
        for name, log in logs.items()
    }
    if not any(validated.values()):
        return None
    from matplotlib.ticker import MaxNLocator

    figure, (axis,) = figure_of(6, canvas)
    for colour, (name, points) in zip(LINES * 3, validated.items(), strict=False):
        if points:
            axis.plot(*zip(*points, strict=True), "o-", color=PALETTE[colour].light, label=name)
    axis.grid(axis="y", color=GRID, linewidth=0.8)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("optimiser step")
    axis.set_ylabel("validation loss, nats a token")
    axis.legend(frameon=False)
    return svg(figure)
