"""What every chart is drawn on and with: sizes, colours, axes."""

from collections.abc import Sequence
from io import StringIO
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


WIDE = Canvas(9.6, font=11)
NARROW = Canvas(4.8, font=11, narrow=True)
"""For a phone: 346 units wide, panels below each other."""


def figure_of(rows: float, canvas: Canvas, panels: int = 1) -> "tuple[Figure, Any]":
    """A figure of so many rows in height, and its axes: panels side by side, or below each other on a phone."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    height = 1.1 + 0.42 * rows
    down, across = (panels, 1) if canvas.narrow else (1, panels)
    figure = Figure(
        figsize=(canvas.inches, down * height), dpi=72, layout=ConstrainedLayoutEngine(hspace=0.06, wspace=0.04)
    )
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


def laid_out(figure: "Figure") -> None:
    """Say where everything stands, once and for all: every later drawing would do it again."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


def svg(figure: "Figure") -> str:
    """The figure as text, without a ground."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    laid_out(figure)
    figure.patch.set_visible(False)
    for axis in figure.axes:
        axis.patch.set_visible(False)
    text = StringIO()
    # savefig would draw all of it twice.
    FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": "finetrap"})
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
