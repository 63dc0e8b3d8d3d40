"""The picture of curves, drawn by matplotlib: a colour for each run, a line style for each metric."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from noa.atomic_write import write_file
from noa.errors import DependencyMissingError, InvalidInputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from noa_registry.runs.curves import Curve

FORMATS: Final = ("png", "svg")
# Okabe and Ito's, told apart also by those who do not see red or green; "Color Universal Design", 2008.
_COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES: Final = ("-", "--", ":", "-.")
_DPI: Final = 150
_FEW_POINTS: Final = 40  # up to here each point is marked
_MOST_IN_LEGEND: Final = 20


def check_picture(path: Path) -> None:
    """Check the name of a picture.

    Raises:
        InvalidInputError: its ending is another than `.png` or `.svg`.
    """
    if path.suffix.lower().removeprefix(".") not in FORMATS:
        raise InvalidInputError(
            "a plot is written as a picture", where=str(path), expected="a name ending in .png or .svg", received=path
        )


def save_curves(curves: Sequence[Curve], path: Path, *, metric: str) -> None:
    """Write the picture as PNG or SVG, by the file's ending; the same curves give the same bytes.

    Raises:
        InvalidInputError: the ending is another.
        DependencyMissingError: matplotlib is not installed.
        StorageError: the disk refused.
    """
    check_picture(path)
    kind = path.suffix.lower().removeprefix(".")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise DependencyMissingError("matplotlib", extra="plots", purpose="drawing curves") from exc
    with mpl.rc_context({"svg.hashsalt": "noa", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8.0, 4.8), layout="constrained", dpi=_DPI)
        _draw(figure.subplots(), curves, metric)
        buffer = io.BytesIO()
        # Without the date the same curves give the same file.
        figure.savefig(buffer, format=kind, dpi=_DPI, metadata={"Date": None} if kind == "svg" else {"Software": None})
    write_file(path, buffer.getvalue())


def curve_labels(curves: Sequence[Curve]) -> list[str]:
    """Return what tells each curve from the others: its run by name and first digits, the metric where there are
    several."""
    runs = {curve.run_id for curve in curves}
    keys = {curve.key for curve in curves}
    found: list[str] = []
    for curve in curves:
        run = f"{curve.run_name} ({curve.run_id[:8]})" if curve.run_name else curve.run_id[:8]
        found.append(run if len(keys) == 1 else curve.key if len(runs) == 1 else f"{run} {curve.key}")
    return found


def _draw(axes: Axes, curves: Sequence[Curve], metric: str) -> None:
    runs = list(dict.fromkeys(curve.run_id for curve in curves))
    keys = list(dict.fromkeys(curve.key for curve in curves))
    for curve, label in zip(curves, curve_labels(curves), strict=True):
        values = [value if math.isfinite(value) else math.nan for value in curve.values]
        if len(runs) == 1:
            color, style = _COLORS[keys.index(curve.key) % len(_COLORS)], "-"
        else:
            color = _COLORS[runs.index(curve.run_id) % len(_COLORS)]
            style = _STYLES[keys.index(curve.key) % len(_STYLES)]
        marker = "." if len(curve.x) <= _FEW_POINTS else ""
        axes.plot(
            list(curve.x), values, linestyle=style, color=color, marker=marker, linewidth=1.2, label=_plain(label)
        )
    axes.set_xlabel(curves[0].axis)
    axes.set_ylabel(_plain(metric))
    axes.grid(color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)
    if len(curves) > 1:
        hidden = len(curves) - _MOST_IN_LEGEND
        title = f"{hidden} more are not named" if hidden > 0 else None
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[:_MOST_IN_LEGEND], labels[:_MOST_IN_LEGEND], fontsize=8, frameon=False, title=title)
    else:
        axes.set_title(_plain(f"{curves[0].run_name} ({curves[0].run_id[:8]}), {curves[0].key}"), fontsize=10)


def _plain(text: str) -> str:
    """Return text that is not taken for a formula: names of runs and metrics are the user's."""
    return text.replace("$", r"\$")
