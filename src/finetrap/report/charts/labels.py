"""Names beside the points of a chart, where they cover nothing."""

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from finetrap.report.charts.canvas import Canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox, BboxBase


class Point(NamedTuple):
    """A place in an axis's data, and what is written beside it."""

    x: float
    y: float
    text: str


def label_points(axis: "Axes", points: Sequence[Point], canvas: Canvas) -> None:
    """Write each point's name beside it, where it covers no point and no other name, if there is such a place.

    To be called when the figure is laid out: a pixel is a point there. The width of a name is estimated, since the
    font is the reader's.
    """
    from matplotlib.transforms import Bbox

    frame = axis.bbox
    places = [axis.transData.transform((point.x, point.y)) for point in points]
    taken = [Bbox.from_extents(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    height = 1.15 * canvas.font
    # Nearest first, above before below, right before left.
    offsets = sorted(product((1, -1), range(-5, 5)), key=lambda offset: (abs(offset[1] + 0.4), -offset[0]))
    for point, (x, y) in zip(points, places, strict=True):
        width = 0.6 * canvas.font * len(point.text)
        boxes = {
            (side, step): Bbox.from_bounds(x + 7 if side > 0 else x - 7 - width, y + 2 + step * height, width, height)
            for side, step in offsets
        }
        free = (offset for offset, box in boxes.items() if _within(box, frame) and not box.count_overlaps(taken))
        side, step = next(free, (1, 0))
        taken.append(boxes[side, step])
        axis.annotate(
            point.text,
            (point.x, point.y),
            (7 * side, 2 + step * height),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="bottom",
        )


def _within(box: "Bbox", frame: "BboxBase") -> bool:
    return bool(frame.x0 <= box.x0 and frame.y0 <= box.y0 and box.x1 <= frame.x1 and box.y1 <= frame.y1)
