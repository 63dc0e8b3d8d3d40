"""The picture of an optimisation: task metric against latency per batch size, area for size, the front as a line."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from noa.atomic_write import write_file
from noa.errors import DependencyMissingError, InvalidInputError
from noa_conversion.optimise.pareto import Measured, describe_rule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS: Final = ("png", "svg")
_LOWER_ROW, _UPPER_ROW = 1.02, 1.13  # heights of the names, as shares of the axes
_FRONT, _BEHIND = "#d9822b", "#5b6f8f"  # told apart also by those who do not see red or green


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotTitle:
    """What stands above and beside the picture."""

    reference: str
    metric: str
    larger_is_better: bool
    hardware: str
    least: float | None
    """Worst value of the metric that is allowed."""


def save_plot(measured: Sequence[Measured], path: Path, title: PlotTitle) -> None:
    """Write the picture as PNG or SVG, by the file's ending.

    Raises:
        InvalidInputError: the ending is another, or nothing was measured.
        DependencyMissingError: matplotlib is not installed.
        StorageError: the disk refused.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise InvalidInputError("a plot is written as a picture", expected="a name in .png or .svg", received=path)
    try:
        import matplotlib as mpl
    except ImportError as exc:
        raise DependencyMissingError("matplotlib", extra="plots", purpose="drawing an optimisation") from exc
    figure = draw_figure(measured, title)
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "noa"}):
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    write_file(path, buffer.getvalue())


def draw_figure(measured: Sequence[Measured], title: PlotTitle) -> Figure:
    """Draw what was measured, one picture per batch size.

    Raises:
        InvalidInputError: nothing was measured.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    shown = [one for one in measured if one.metric is not None and one.latency_ms]
    if not shown:
        raise InvalidInputError("nothing was measured that could be drawn")
    batches = sorted({batch for one in shown for batch in one.latency_ms})
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(6.2 * len(batches), 5.2), layout="constrained")
        for index, batch in enumerate(batches):
            _draw(figure.add_subplot(1, len(batches), index + 1), shown, batch, title)
        heading = f"{title.reference}: {title.metric}, latency and size of its formats\n{title.hardware}"
        figure.suptitle(heading, fontsize=10)
        figure.supxlabel(describe_rule(title.metric), fontsize=8, color="#444444")
    return figure


def _draw(axes: Axes, shown: Sequence[Measured], batch: int, title: PlotTitle) -> None:
    points = sorted((one for one in shown if batch in one.latency_ms), key=lambda one: one.latency_ms[batch])
    largest = max(one.size_bytes for one in points)
    for one in points:
        color = _FRONT if one.on_front else _BEHIND
        area = 40 + 260 * one.size_bytes / largest
        filled = color if one.problem is None else "none"
        place = (one.latency_ms[batch], one.metric or 0.0)
        axes.scatter(*place, s=area, facecolors=filled, edgecolors=color, alpha=0.85, zorder=3)
    _label(axes, points, batch)
    line = [one for one in points if one.on_front]
    axes.plot([one.latency_ms[batch] for one in line], [one.metric or 0.0 for one in line], color=_FRONT, alpha=0.4)
    if title.least is not None:
        axes.axhline(title.least, color="#b03a3a", linestyle="--", linewidth=1)
        place = ("axes fraction", "data")
        axes.annotate("allowed", (1, title.least), xycoords=place, ha="right", va="bottom", color="#b03a3a")
    axes.margins(x=0.1, y=0.6)
    axes.set_title(f"batch {batch}", fontsize=9, pad=58)
    axes.set_xlabel("median latency, ms  (← faster)")
    axes.set_ylabel(f"{title.metric}  ({'↑' if title.larger_is_better else '↓'} better)")


def _label(axes: Axes, points: Sequence[Measured], batch: int) -> None:
    """Write the names in two rows above the picture, evenly spaced in the order of their latency.

    So no two cover each other, however close their points are, and no two lines of a row cross.
    """
    for index, one in enumerate(points):
        height = _LOWER_ROW if index % 2 == 0 else _UPPER_ROW
        color = _FRONT if one.on_front else "#444444"
        axes.annotate(
            f"{one.format}\n{_size(one.size_bytes)}",
            (one.latency_ms[batch], one.metric or 0.0),
            xytext=((index + 0.5) / len(points), height),
            textcoords="axes fraction",
            ha="center",
            va="bottom",
            fontsize=7.5,
            color=color,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},  # a line from the row above passes behind
            zorder=5 if height == _LOWER_ROW else 4,
            arrowprops={"arrowstyle": "-", "color": color, "alpha": 0.5, "linewidth": 0.6},
        )


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1024:.0f} KiB" if size_bytes < 1 << 20 else f"{size_bytes / (1 << 20):.1f} MiB"
