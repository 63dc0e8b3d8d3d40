"""Put the labels of points where they do not cover each other; matplotlib writes them all at the same side.

It needs the final size of everything, so it comes after the layout: `spread_labels` tries places around each point,
nearest first, and takes the first one that is free. A label that had to go further gets a thin line to its point.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_GROUP = "label of a point"
_ANGLES = (0, 40, -40, 80, -80, 120, -120, 160, -160)
_STEPS = 30
_STEP_POINTS = 5.0
_LINE_FROM_POINTS = 12.0
_GAP_POINTS = 3.0
_MARGIN_POINTS = 14.0


def add_label(axes: Axes, text: str, point: tuple[float, float], *, radius: float, is_left: bool, color: str) -> None:
    """Write a label beside a point that is drawn as a mark of this radius, in points (1/72 inch)."""
    beside = radius + _GAP_POINTS
    label = axes.annotate(
        text,
        point,
        xytext=(-beside if is_left else beside, 0),
        textcoords="offset points",
        ha="right" if is_left else "left",
        va="center",
        fontsize=6.5,
        color=color,
        gid=_GROUP,
    )
    label.set_in_layout(False)  # or else the axes would move when it does


def spread_labels(figure: Figure) -> None:
    """Move the labels of a figure to where none covers another, a point or what is around the axes."""
    figure.draw_without_rendering()
    labels = labels_of(figure)
    taken = [_spot(label) for label in labels]
    for label in labels:
        x, _ = label.xyann
        room = _room(label)
        for distance, angle in _places(abs(x), is_left=x < 0):
            _put(label, distance, angle)
            box = label.get_window_extent()
            is_inside = room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1
            if is_inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(label.get_window_extent())
        if (moved := math.hypot(*label.xyann)) > abs(x) + _LINE_FROM_POINTS:
            _tie(label, moved)


def labels_of(figure: Figure) -> list[Annotation]:
    """Return the labels of points in a figure."""
    found = figure.findobj(lambda artist: artist.get_gid() == _GROUP)
    return [cast("Annotation", artist) for artist in found]


def _spot(label: Annotation) -> Bbox:
    """Return the square within the mark that a label belongs to."""
    from matplotlib.transforms import Bbox

    x, y = _axes_of(label).transData.transform(label.xy)
    half = (abs(label.xyann[0]) - _GAP_POINTS) * _pixels_per_point(label) / math.sqrt(2)
    return Bbox.from_extents(x - half, y - half, x + half, y + half)


def _room(label: Annotation) -> Bbox:
    """Return where a label may be: over its axes, and in the margin to their right."""
    from matplotlib.transforms import Bbox

    box = _axes_of(label).get_window_extent()
    return Bbox.from_extents(box.x0, box.y0, box.x1 + _MARGIN_POINTS * _pixels_per_point(label), box.y1)


def _axes_of(label: Annotation) -> Axes:
    return cast("Axes", label.axes)


def _pixels_per_point(label: Annotation) -> float:
    return float(_axes_of(label).figure.dpi) / 72


def _places(nearest: float, *, is_left: bool) -> Iterator[tuple[float, float]]:
    for step in range(_STEPS):
        for angle in _ANGLES:
            yield nearest + step * _STEP_POINTS, 180 - angle if is_left else angle


def _put(label: Annotation, distance: float, angle: float) -> None:
    across, up = distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle))
    label.xyann = (across, up)
    label.set_horizontalalignment("left" if across > 0 else "right")


def _tie(label: Annotation, distance: float) -> None:
    """Draw a thin line from a label to its point."""
    x, y = label.xyann
    line = _axes_of(label).annotate(
        "",
        label.xy,
        xytext=(x * (1 - 2 / distance), y * (1 - 2 / distance)),
        textcoords="offset points",
        arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": label.get_color(), "shrinkA": 0, "shrinkB": 2},
    )
    line.set_in_layout(False)
