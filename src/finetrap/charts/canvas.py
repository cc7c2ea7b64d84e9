"""What every chart is drawn on and with: sizes, colours, axes, and labels that keep out of each other's way."""

from collections.abc import Sequence
from io import StringIO
from itertools import product
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

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

REFERENCE = PALETTE["reference"].light
GRID = PALETTE["grid"].light
LINES = ("blue", "vermillion", "green", "purple", "orange", "sky", "reference")


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


def figure_of(rows: float, canvas: Canvas, panels: int = 1) -> "tuple[Figure, Any]":
    """A figure of so many rows in height, and its axes: panels side by side, or below each other on a phone."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    height = 1.1 + 0.42 * rows
    down, across = (panels, 1) if canvas.narrow else (1, panels)
    figure = Figure(figsize=(canvas.inches, down * height), layout=ConstrainedLayoutEngine(hspace=0.06, wspace=0.04))
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for axis in axes:
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", color=GRID, linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def settings(canvas: Canvas) -> dict[str, Any]:
    """What matplotlib is to keep to while it draws and writes: text stays text, and the same chart is the same file."""
    return {"svg.fonttype": "none", "svg.hashsalt": "finetrap", "font.size": canvas.font}


def svg(figure: "Figure", canvas: Canvas) -> str:
    """The figure as a file."""
    text = StringIO()
    ground = {"facecolor": "white"} if canvas.opaque else {"transparent": True}
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": "finetrap"}, **ground)
    return text.getvalue()


def wrapped(text: str, canvas: Canvas) -> str:
    """The name of an axis, in lines that a phone shows whole."""
    return fill(text, 40) if canvas.narrow else text


def forgets(arm: ArmResult) -> bool:
    """Whether forgetting beyond the tolerance is shown."""
    return arm.retention is not None and arm.retention.verdict == "harm"


def colour_of(arm: ArmResult) -> str:
    """The colour of what is known of an arm."""
    if forgets(arm):
        return PALETTE[TONES["harm"]].light
    return PALETTE[TONES[arm.vs_zero_shot.verdict]].light if arm.vs_zero_shot else REFERENCE


def label_rows(axis: "Axes", arms: Sequence[ArmResult]) -> None:
    """An arm a row, the first on top."""
    axis.set_yticks(range(len(arms)), [arm.arm for arm in arms])
    axis.set_ylim(len(arms) - 0.4, -0.6)


class Point(NamedTuple):
    """A place in an axis's data, and what is written beside it."""

    x: float
    y: float
    text: str


def label_points(axis: "Axes", points: Sequence[Point], canvas: Canvas) -> None:
    """Write each point's name beside it, where it covers no point and no other name, if there is such a place."""
    figure = axis.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    scale = 72 / figure.dpi
    frame = (axis.bbox.x0 * scale, axis.bbox.y0 * scale, axis.bbox.x1 * scale, axis.bbox.y1 * scale)
    places = [scale * axis.transData.transform((point.x, point.y)) for point in points]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    height = 1.15 * canvas.font
    # Nearest first; above before below, and the right before the left.
    offsets = sorted(product((1, -1), range(-5, 5)), key=lambda o: (abs(o[1] + 0.4), -o[1], -o[0]))
    for point, (x, y) in zip(points, places, strict=True):
        width = 0.6 * canvas.font * len(point.text)

        def box(offset: tuple[int, int]) -> tuple[float, float, float, float]:
            side, step = offset
            left = x + 7 if side > 0 else x - 7 - width  # noqa: B023 - called in the same turn of the loop
            low = y + 2 + step * height  # noqa: B023
            return left, low, left + width, low + height  # noqa: B023

        fits = [o for o in offsets if _inside(box(o), frame) and not any(_overlap(box(o), other) for other in taken)]
        side, step = fits[0] if fits else (1, 0)
        taken.append(box((side, step)))
        note = axis.annotate(
            point.text,
            (point.x, point.y),
            (7 * side, 2 + step * height),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="bottom",
        )
        note.set_in_layout(False)


def _inside(box: tuple[float, float, float, float], frame: tuple[float, float, float, float]) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
