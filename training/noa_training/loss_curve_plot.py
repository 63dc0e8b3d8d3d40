"""The picture of two backends' losses: the curves above, their relative difference below. Drawn by matplotlib."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING, Final

from noa.atomic_write import write_file
from noa.errors import DependencyMissingError, InvalidInputError
from noa_training.loss_curves import EARLY_STEPS, CurveComparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS: Final = ("png", "svg")
_COLORS: Final = ("#5b6f8f", "#d9822b")  # told apart also by those who do not see red or green
_DPI: Final = 150
_LEAST: Final = 1e-9  # what is equal to the bit has its place at the lower edge
_FEW_POINTS: Final = 60


def check_plot(path: Path) -> None:
    """Check that a plot can be drawn to `path`, before what it will show has been computed.

    Raises:
        InvalidInputError: the ending is neither .png nor .svg.
        DependencyMissingError: matplotlib is not installed.
    """
    if path.suffix.lower().removeprefix(".") not in FORMATS:
        raise InvalidInputError(
            "a plot is written as a picture", where=str(path), expected="a name ending in .png or .svg", received=path
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise DependencyMissingError("matplotlib", extra="plots", purpose="drawing loss curves")


def save_plot(comparison: CurveComparison, path: Path, *, title: str) -> None:
    """Write the picture as PNG or SVG, by the file's ending; the same comparison gives the same bytes.

    Raises:
        InvalidInputError, DependencyMissingError: as `check_plot`.
        StorageError: the disk refused.
    """
    check_plot(path)
    import matplotlib as mpl

    kind = path.suffix.lower().removeprefix(".")
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "noa"}):
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        draw_figure(comparison, title=title).savefig(buffer, format=kind, dpi=_DPI, metadata=metadata)
    write_file(path, buffer.getvalue())


def draw_figure(comparison: CurveComparison, *, title: str) -> Figure:
    """Draw both curves and their relative difference over the same steps."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8, 6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [2, 1]})
        _draw_curves(upper, comparison)
        _draw_differences(lower, comparison)
        figure.suptitle(title.replace("$", r"\$"), fontsize=11)
    return figure


def _draw_curves(axes: Axes, comparison: CurveComparison) -> None:
    for index, curve in enumerate(comparison.curves[:2]):
        # The second is broken, so that the first is seen where both are the same.
        style = "-" if index == 0 else (0, (4, 3))
        axes.plot(
            curve.steps,
            curve.losses,
            color=_COLORS[index],
            linestyle=style,
            linewidth=2.5 - index,
            marker=_marker(curve.steps),
            markersize=3,
            label=f"{curve.name}: {curve.losses[-1]:.4g} at the end",
        )
    losses = [loss for curve in comparison.curves[:2] for loss in curve.losses]
    if min(losses) > 0 and max(losses) > 100 * min(losses):
        axes.set_yscale("log")
    axes.set_ylabel("training loss")
    axes.legend(frameon=False)
    axes.grid(axis="y", color="#eeeeee", linewidth=0.8)


def _draw_differences(axes: Axes, comparison: CurveComparison) -> None:
    shown = [max(value, _LEAST) for value in comparison.differences]
    axes.plot(comparison.steps, shown, color="#444444", linewidth=1.2, marker=_marker(comparison.steps), markersize=3)
    axes.set_yscale("log")
    axes.axvspan(0, EARLY_STEPS, color="#f2f2f2", zorder=0)
    step, value = comparison.largest
    axes.set_title(f"furthest apart at step {step}: {value:.2g}", fontsize=9)
    axes.set_ylabel("relative difference")
    axes.set_xlabel(f"step (grey: the first {EARLY_STEPS}, before rounding has grown)")
    axes.grid(axis="y", color="#eeeeee", linewidth=0.8)


def _marker(points: tuple[int, ...]) -> str:
    return "o" if len(points) <= _FEW_POINTS else ""
