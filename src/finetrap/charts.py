"""Charts of a study as SVG, for report.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetrap.records import TrainingLogEntry
from finetrap.results import ArmResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by people who see colours differently.
_COLOURS = {
    "gain": "#009E73",
    "harm": "#D55E00",
    "no_difference": "#666666",
    "undecided": "#0072B2",
    "format_only": "#CC79A7",
    "floor": "#999999",
    "ceiling": "#999999",
}
_REFERENCE = "#333333"
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")


def _figure(rows: int, columns: int = 1) -> "tuple[Figure, Any]":
    import matplotlib

    matplotlib.use("svg", force=False)
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "finetrap", "font.size": 10})
    figure = Figure(figsize=(8.0, 1.1 + 0.42 * rows), layout="constrained")
    axes = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", color="#dddddd", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def _save(figure: "Figure", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None, "Creator": "finetrap"})


def _forgets(arm: ArmResult) -> bool:
    return arm.retention is not None and arm.retention.verdict == "harm"


def _colour(arm: ArmResult) -> str:
    if _forgets(arm):
        return _COLOURS["harm"]
    return _COLOURS[arm.vs_zero_shot.verdict] if arm.vs_zero_shot else _REFERENCE


def _label_rows(axis: "Axes", arms: Sequence[ArmResult]) -> None:
    axis.set_yticks(range(len(arms)), [arm.arm for arm in arms])
    axis.set_ylim(len(arms) - 0.4, -0.6)


def accuracy_chart(arms: Sequence[ArmResult], path: Path) -> None:
    """Accuracy of every arm with its interval, and lines for the untouched model and the trivial answer."""
    figure, (axis,) = _figure(len(arms))
    for row, arm in enumerate(arms):
        low, high = (100 * end for end in arm.ci95)
        colour = _colour(arm)
        axis.plot([low, high], [row, row], color=colour, linewidth=2.5, solid_capstyle="round")
        axis.plot(100 * arm.accuracy, row, "o", color=colour, markersize=8)
        verdict = arm.vs_zero_shot.verdict.replace("_", " ") if arm.vs_zero_shot else ""
        verdict += ", but forgets" if _forgets(arm) else ""
        axis.annotate(
            f"{100 * arm.accuracy:.1f}%  {verdict}", (high, row), (8, 0), textcoords="offset points", va="center"
        )
    for name, style in (("zero_shot", "--"), ("constant", ":")):
        reference = next((arm for arm in arms if arm.arm == name), None)
        if reference is not None:
            axis.axvline(100 * reference.accuracy, color=_REFERENCE, linestyle=style, linewidth=1)
    _label_rows(axis, arms)
    axis.margins(x=0.22)
    axis.set_xlim(left=max(0.0, axis.get_xlim()[0]))
    axis.set_xlabel(f"accuracy on {arms[0].n_test} test items, % (95% interval; dashed: untouched, dotted: trivial)")
    _save(figure, path)


def retention_chart(arms: Sequence[ArmResult], path: Path) -> bool:
    """What every arm forgot: change of general tasks, and of bits per byte; False if no arm has any."""
    shown = [arm for arm in arms if arm.retention is not None and arm.arm != "zero_shot"]
    if not shown:
        return False
    figure, (left, right) = _figure(len(shown), 2)
    for row, arm in enumerate(shown):
        retention = arm.retention
        assert retention is not None
        colour = _COLOURS["harm"] if retention.verdict == "harm" else _COLOURS["undecided"]
        if retention.delta is not None and retention.ci95 is not None:
            left.plot([100 * end for end in retention.ci95], [row, row], color=colour, linewidth=2.5)
            left.plot(100 * retention.delta, row, "o", color=colour, markersize=8)
        if retention.bits_per_byte_delta is not None:
            right.barh(row, retention.bits_per_byte_delta, height=0.5, color=colour)
            right.annotate(
                f"{retention.bits_per_byte_delta:+.3f}",
                (max(0.0, retention.bits_per_byte_delta), row),
                (5, 0),
                textcoords="offset points",
                va="center",
            )
    for axis in (left, right):
        axis.axvline(0, color=_REFERENCE, linewidth=1)
    _label_rows(left, shown)
    left.set_xlabel("general tasks, change in points (95% interval)")
    right.set_xlabel("general text, change in bits per byte (worse is right)")
    right.margins(x=0.25)
    _save(figure, path)
    return True


def learning_chart(logs: Mapping[str, Sequence[TrainingLogEntry]], path: Path) -> bool:
    """Validation loss by step, one line a trained arm (first seed); False if nothing trained so far."""
    validated = {
        name: [(entry.step, entry.validation_loss) for entry in log if entry.validation_loss is not None]
        for name, log in logs.items()
    }
    if not any(validated.values()):
        return False
    from matplotlib.ticker import MaxNLocator

    figure, (axis,) = _figure(6)
    for colour, (name, points) in zip(_LINES * 3, validated.items(), strict=False):
        if points:
            axis.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
    axis.grid(axis="y", color="#dddddd", linewidth=0.8)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("optimiser step")
    axis.set_ylabel("validation loss, nats a token")
    axis.legend(frameon=False)
    _save(figure, path)
    return True
