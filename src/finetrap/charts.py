"""Charts of a study as SVG: files for report.md, and parts of report.html that follow the page's colours."""

import re
from collections.abc import Mapping, Sequence
from io import StringIO
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

from finetrap.records import TrainingLogEntry
from finetrap.results import ArmResult, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Colour(NamedTuple):
    """A colour on a light and on a dark ground."""

    light: str
    dark: str


PALETTE = {
    # Okabe and Ito's colours, told apart by people who see colours differently; lighter on dark.
    "green": Colour("#009e73", "#2fc79c"),
    "vermillion": Colour("#d55e00", "#ff8b45"),
    "blue": Colour("#0072b2", "#4ea8e6"),
    "purple": Colour("#cc79a7", "#e59ac4"),
    "orange": Colour("#e69f00", "#f2b632"),
    "sky": Colour("#56b4e9", "#a9dcfa"),
    "grey": Colour("#666666", "#9ba1a8"),
    "pale": Colour("#999999", "#7c838b"),
    "reference": Colour("#333333", "#d5d9de"),
    "grid": Colour("#dddddd", "#363b42"),
}
TONES: dict[Verdict, str] = {
    "gain": "green",
    "harm": "vermillion",
    "no_difference": "grey",
    "undecided": "blue",
    "format_only": "purple",
    "floor": "pale",
    "ceiling": "pale",
}
"""The colour of each verdict, wherever it is shown."""

_REFERENCE = PALETTE["reference"].light
_GRID = PALETTE["grid"].light
_LINES = ("blue", "vermillion", "green", "purple", "orange", "sky", "reference")


class Canvas(NamedTuple):
    """What a chart is drawn on."""

    inches: float
    font: float = 10
    narrow: bool = False
    opaque: bool = False


FILE = Canvas(8.0, opaque=True)
WIDE = Canvas(9.6, font=11)
NARROW = Canvas(4.8, font=11, narrow=True)
"""For a phone: 346 units wide, panels below each other."""


def _figure(rows: int, canvas: Canvas, panels: int = 1) -> "tuple[Figure, Any]":
    import matplotlib

    matplotlib.use("svg", force=False)
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "finetrap", "font.size": canvas.font})
    height = 1.1 + 0.42 * rows
    down, across = (panels, 1) if canvas.narrow else (1, panels)
    figure = Figure(figsize=(canvas.inches, down * height), layout="constrained")
    axes = figure.subplots(down, across, sharey=True, squeeze=False).flatten()
    for axis in axes:
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", color=_GRID, linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def _svg(figure: "Figure", canvas: Canvas) -> str:
    text = StringIO()
    ground = {"facecolor": "white"} if canvas.opaque else {"transparent": True}
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": "finetrap"}, **ground)
    return text.getvalue()


def _label(text: str, canvas: Canvas) -> str:
    return fill(text, 40) if canvas.narrow else text


def _forgets(arm: ArmResult) -> bool:
    return arm.retention is not None and arm.retention.verdict == "harm"


def _colour(arm: ArmResult) -> str:
    if _forgets(arm):
        return PALETTE[TONES["harm"]].light
    return PALETTE[TONES[arm.vs_zero_shot.verdict]].light if arm.vs_zero_shot else _REFERENCE


def _label_rows(axis: "Axes", arms: Sequence[ArmResult]) -> None:
    axis.set_yticks(range(len(arms)), [arm.arm for arm in arms])
    axis.set_ylim(len(arms) - 0.4, -0.6)


def accuracy_chart(arms: Sequence[ArmResult], canvas: Canvas) -> str:
    """Accuracy of every arm with its interval, and lines for the untouched model and the trivial answer."""
    figure, (axis,) = _figure(len(arms), canvas)
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
    label = f"accuracy on {arms[0].n_test} test items, % (95% interval; dashed: untouched, dotted: trivial)"
    axis.set_xlabel(_label(label, canvas))
    return _svg(figure, canvas)


def retention_chart(arms: Sequence[ArmResult], canvas: Canvas) -> str | None:
    """What every arm forgot: change of general tasks, and of bits per byte; None if no arm has any."""
    shown = [arm for arm in arms if arm.retention is not None and arm.arm != "zero_shot"]
    if not shown:
        return None
    figure, (left, right) = _figure(len(shown), canvas, 2)
    for row, arm in enumerate(shown):
        retention = arm.retention
        assert retention is not None
        colour = PALETTE[TONES[retention.verdict]].light
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
    left.set_xlabel(_label("general tasks, change in points (95% interval)", canvas))
    right.set_xlabel(_label("general text, change in bits per byte (worse is right)", canvas))
    right.margins(x=0.25)
    right.locator_params(axis="x", nbins=5)
    return _svg(figure, canvas)


def learning_chart(logs: Mapping[str, Sequence[TrainingLogEntry]], canvas: Canvas) -> str | None:
    """Validation loss by step, one line a trained arm (first seed); None if nothing trained so far."""
    validated = {
        name: [(entry.step, entry.validation_loss) for entry in log if entry.validation_loss is not None]
        for name, log in logs.items()
    }
    if not any(validated.values()):
        return None
    from matplotlib.ticker import MaxNLocator

    figure, (axis,) = _figure(6, canvas)
    for colour, (name, points) in zip(_LINES * 3, validated.items(), strict=False):
        if points:
            axis.plot(*zip(*points, strict=True), "o-", color=PALETTE[colour].light, label=name)
    axis.grid(axis="y", color=_GRID, linewidth=0.8)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("optimiser step")
    axis.set_ylabel("validation loss, nats a token")
    axis.legend(frameon=False)
    return _svg(figure, canvas)


def inline(svg: str, *, name: str, label: str) -> str:
    """A chart as a part of an HTML page that has `palette_css`: `name` is unique in the page, `label` says what it is.

    Colours become the page's variables and text the page's font. No `style` is left, so that a page may forbid it.
    """
    root = ElementTree.fromstring(svg)
    referenced = set(re.findall(r"(?:url\(|href=\")#([\w.-]+)", svg))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        kept = dict(pair for key, value in element.attrib.items() for pair in _attributes(key, value, name, referenced))
        element.attrib.clear()
        element.attrib.update(kept)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib.update({"class": "chart", "role": "img", "aria-label": label})
    return ElementTree.tostring(root, encoding="unicode")


def _attributes(key: str, value: str, name: str, referenced: set[str]) -> list[tuple[str, str]]:
    """An attribute as it stands in a page that holds other charts too: presentation attributes instead of `style`."""
    key = key.rpartition("}")[2]
    if key == "style":
        pairs = [(k.strip(), v.strip()) for k, _, v in (part.partition(":") for part in value.split(";")) if v]
        return [(k, _COLOUR_NAMES.get(v.lower(), v)) for k, v in pairs if k not in ("font", "font-family")]
    if key == "id":
        return [(key, f"{name}-{value}")] if value in referenced else []
    if key == "href":
        return [(key, f"#{name}-{value.removeprefix('#')}")]
    return [(key, value.replace("url(#", f"url(#{name}-"))]


_COLOUR_NAMES = {colour.light: f"var(--{name})" for name, colour in PALETTE.items()} | {"#000000": "currentColor"}


def palette_css() -> str:
    """The palette as CSS variables, and a class `tone-NAME` for each colour."""
    light, dark = (
        "".join(f"--{name}:{getattr(colour, ground)};" for name, colour in PALETTE.items())
        for ground in ("light", "dark")
    )
    tones = "".join(f".tone-{name}{{--tone:var(--{name})}}" for name in PALETTE)
    return f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}{tones}"
