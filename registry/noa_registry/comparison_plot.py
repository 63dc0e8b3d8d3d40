"""The picture of a comparison: differences with their intervals, reliability, slices, latency. Drawn by matplotlib.

Only what was measured gets a place: a regression has no reliability and mostly no slices, and shows its latency.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, cast

from noa.atomic_write import write_file
from noa.errors import DependencyMissingError, InvalidInputError
from noa_registry.comparison_labels import add_label, spread_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from noa_registry.comparison import Comparison, MetricComparison, Side

FORMATS = ("png", "svg")
_A, _B = "#5b6f8f", "#d9822b"  # told apart also by those who do not see red or green
_VERDICTS = {
    "better": "#2b7a4b",
    "worse": "#b03a3a",
    "same": "#777777",
    "unclear": "#777777",
    "higher": "#777777",
    "lower": "#777777",
}
_ARROWS: dict[bool | None, str] = {True: "↑", False: "↓", None: ""}
_FEW_ROWS = 10
_DPI = 150
_MOST_SLICES = 24
_MOST_METRICS = 6
_MOST_SETS = 8
_SHORT_DIGEST = 12
_MOST_PANELS = 3


def save_plot(comparison: Comparison, path: Path) -> None:
    """Write the picture as PNG or SVG, by the file's ending; the same comparison gives the same bytes.

    Raises:
        InvalidInputError: the ending is another.
        DependencyMissingError: matplotlib is not installed.
        StorageError: the disk refused.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise InvalidInputError(
            "a plot is written as a picture", where=str(path), expected="a name ending in .png or .svg", received=path
        )
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise DependencyMissingError("matplotlib", extra="plots", purpose="drawing a comparison") from exc
    slices = _slices_shown(comparison)
    panels = _panels(comparison, slices)
    width = 1.6 + 3.6 * sum(panel.width for panel in panels)
    figure = Figure(figsize=(width, _height(comparison, slices)), layout="constrained", dpi=_DPI)
    with mpl.rc_context({"svg.hashsalt": "noa", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        _draw(figure, comparison, panels)
        spread_labels(figure)
        buffer = io.BytesIO()
        # Without the date the same comparison gives the same file.
        figure.savefig(buffer, format=kind, dpi=_DPI, metadata={"Date": None} if kind == "svg" else {"Software": None})
    write_file(path, buffer.getvalue())


def _height(comparison: Comparison, slices: Sequence[MetricComparison]) -> float:
    """Return the height in inches: the slices and the sets of test rows need their rows."""
    height = 5.2 + 0.12 * max(0, len(slices) - 8)
    if len(comparison.row_sets) < 2:
        return height
    rows = _difference_rows(comparison)
    return max(height, 1.4 + sum(0.55 + 0.34 * len(entries) for _, entries in rows))


@dataclass(frozen=True, slots=True)
class _Panel:
    """A part of the picture; `width` is relative to the others'."""

    width: float
    draw: Callable[[SubFigure], None]


def _panels(comparison: Comparison, slices: Sequence[MetricComparison]) -> list[_Panel]:
    """Return the parts for which something was measured; there is room for three."""
    sides = (comparison.a, comparison.b)
    panels = [_Panel(1.1, lambda part: _draw_differences(part, comparison))]
    if any(side.calibration for side in sides):
        panels.append(_Panel(1.0, lambda part: _draw_reliability(part.subplots(), comparison)))
    if slices:
        panels.append(_Panel(1.5, lambda part: _draw_slices(part.subplots(), comparison, slices)))
    if len(panels) < _MOST_PANELS and any(side.latency for side in sides):
        panels.append(_Panel(1.0, lambda part: _draw_latency(part.subplots(), comparison)))
    return panels


def _draw(figure: Figure, comparison: Comparison, panels: Sequence[_Panel]) -> None:
    places = figure.subfigures(1, len(panels), squeeze=False, width_ratios=[panel.width for panel in panels])
    for panel, place in zip(panels, cast("Sequence[SubFigure]", places[0]), strict=True):
        panel.draw(place)
    rows = comparison.b.dataset_digest
    where = f"test rows {rows[:19]}…" if comparison.same_rows and rows else "measured on different test rows"
    if len(comparison.row_sets) > 1 and rows:
        where = f"{len(comparison.row_sets)} sets of test rows; slices and reliability on {rows[:19]}…"
    figure.suptitle(f"{comparison.a.reference}  →  {comparison.b.reference}   ({where})", fontsize=11)


def _draw_differences(figure: SubFigure, comparison: Comparison) -> None:
    rows = _difference_rows(comparison)
    if not rows:
        _say(figure.subplots(), "no metric was measured\non the same rows for both")
        return
    # An axis of its own for each: a loss and an accuracy have no common scale.
    heights = [len(entries) for _, entries in rows]
    places = figure.subplots(len(rows), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (metric, entries) in zip(places, rows, strict=True):
        if len(comparison.row_sets) == 1:
            _draw_difference(axes, entries[0][1])
        else:
            _draw_differences_on_sets(axes, metric, entries)
    first, last = figure.axes[0], figure.axes[-1]
    hidden = len(comparison.row_sets) - _MOST_SETS
    title = f"Difference and its {comparison.plan.confidence * 100:g}% interval (paired bootstrap)"
    if len(comparison.row_sets) > 1:
        title += f"\nby test rows{f' ({hidden} more sets are not drawn)' if hidden > 0 else ''}\n\n{first.get_title()}"
    first.set_title(title, fontsize=9)
    last.set_xlabel(f"{comparison.b.reference} minus {comparison.a.reference}  (↑ larger is better, ↓ smaller is)")


def _difference_rows(comparison: Comparison) -> list[tuple[str, list[tuple[str, MetricComparison]]]]:
    """Return each metric with its differences by the name of the test rows, the gate's first."""
    found: dict[str, list[tuple[str, MetricComparison]]] = {}
    for part in comparison.row_sets[:_MOST_SETS]:
        name = part.dataset_digest.removeprefix("sha256:")[:_SHORT_DIGEST]
        name += "" if part.is_judged else "\nnot in the gate"
        for entry in part.metrics:
            if entry.difference is not None:
                found.setdefault(entry.metric, []).append((name, entry))
    return list(found.items())[:_MOST_METRICS]


def _draw_differences_on_sets(axes: Axes, metric: str, entries: Sequence[tuple[str, MetricComparison]]) -> None:
    """Draw a row for each set of test rows, and beside it the numbers."""
    axes.axvline(0, color="#999999", linewidth=1)
    axes.grid(axis="y", color="#eeeeee", linewidth=0.8)
    places = list(range(len(entries)))[::-1]
    ends = [0.0]
    for (_, entry), place in zip(entries, places, strict=True):
        color = _VERDICTS[entry.verdict]
        _draw_interval(axes, entry, place, color)
        text = _describe(entry, is_tall=True)
        axes.text(
            1.02,
            place,
            text,
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=7,
            color=color,
            linespacing=1.2,
        )
        ends += [number for number in (entry.lower, entry.upper, entry.difference) if number is not None]
    axes.set_yticks(places, [name for name, _ in entries])
    axes.set_ylim(-0.6, len(entries) - 0.4)
    _fit(axes, ends)
    axes.set_title(f"{_plain(metric)} {_ARROWS[entries[0][1].larger_is_better]}".rstrip(), fontsize=9)


def _draw_difference(axes: Axes, entry: MetricComparison) -> None:
    value, color = entry.difference or 0.0, _VERDICTS[entry.verdict]
    axes.axvline(0, color="#999999", linewidth=1)
    _draw_interval(axes, entry, 0, color)
    axes.text(0.5, 0.86, _describe(entry), transform=axes.transAxes, ha="center", color=color)
    name = f"{_plain(entry.metric)} {_ARROWS[entry.larger_is_better]}".rstrip()
    axes.set_yticks([0], [name])
    axes.set_ylim(-1, 1.4)
    _fit(axes, [number for number in (entry.lower, entry.upper, value, 0.0) if number is not None])


def _describe(entry: MetricComparison, *, is_tall: bool = False) -> str:
    """Return the difference, its interval and what they say, on one line or two."""
    value = entry.difference or 0.0
    text = f"{value:+.4g}" if value else "0"
    if (why := _why_no_interval(entry)) is not None:
        parts = [text, why if entry.lower is None else f"{entry.verdict}: {why}"]
    elif is_tall:
        parts = [f"{text}  {entry.verdict}", f"[{entry.lower:+.4g}, {entry.upper:+.4g}]"]
    else:
        parts = [text, f"[{entry.lower:+.4g}, {entry.upper:+.4g}]", entry.verdict]
    return ("\n" if is_tall else "  ").join(parts)


def _fit(axes: Axes, ends: Sequence[float]) -> None:
    margin = 0.12 * (max(ends) - min(ends)) or 0.01
    axes.set_xlim(min(ends) - margin, max(ends) + margin)
    axes.locator_params(axis="x", nbins=5)


def _draw_reliability(axes: Axes, comparison: Comparison) -> None:
    interval = f"{comparison.plan.confidence * 100:g}% interval"
    axes.set_title(
        "Reliability: how often is it right when it is this sure?\n"
        f"number: rows in the bin (hollow: under {_FEW_ROWS}); line: {interval}",
        fontsize=9,
    )
    sides = [(side, color) for side, color in ((comparison.a, _A), (comparison.b, _B)) if side.calibration]
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1, linestyle="--")
    for side, color in sides:
        _draw_curve(axes, side, color, confidence=comparison.plan.confidence, is_left=side is comparison.a)
    axes.set_xlim(0, 1.03)
    axes.set_ylim(-0.03, 1.04)
    axes.set_xlabel("probability of the predicted class (mean of a bin)")
    axes.set_ylabel("share that is right")
    _add_legend(axes)


def _add_legend(axes: Axes) -> None:
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False, fontsize=8)


def _draw_curve(axes: Axes, side: Side, color: str, *, confidence: float, is_left: bool) -> None:
    """Draw the bins of a side; their size, depth and interval say how much they are to be believed."""
    calibration = side.calibration
    if calibration is None:
        return
    label = f"{side.reference}: ECE {calibration.ece:.3f}\nBrier {calibration.brier:.3f}"
    large = [entry for entry in calibration.bins if entry.rows >= _FEW_ROWS]
    axes.plot([one.confidence for one in large], [one.accuracy for one in large], color=color, linewidth=1, alpha=0.4)
    for entry in calibration.bins:
        is_few, share = entry.rows < _FEW_ROWS, entry.rows / calibration.rows
        depth = 0.3 if is_few else 0.55 + 0.4 * share
        lower, upper = share_interval(entry.accuracy, entry.rows, confidence=confidence)
        axes.plot([entry.confidence] * 2, [lower, upper], color=color, linewidth=0.8, alpha=0.6 * depth)
        area = 14 + 220 * share
        axes.scatter(
            [entry.confidence],
            [entry.accuracy],
            s=area,
            facecolors="none" if is_few else color,
            edgecolors=color,
            linewidths=0.8,
            alpha=depth,
        )
        point = (entry.confidence, entry.accuracy)
        add_label(axes, f"{entry.rows:,}", point, radius=math.sqrt(area) / 2, is_left=is_left, color=color)
    axes.scatter([], [], color=color, s=40, label=label)


def share_interval(share: float, rows: int, *, confidence: float) -> tuple[float, float]:
    """Return the interval of a share that was seen in `rows` rows.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference"; right near 0 and 1 too.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return max(0.0, middle - half), min(1.0, middle + half)


def _draw_slices(axes: Axes, comparison: Comparison, slices: Sequence[MetricComparison]) -> None:
    """Draw a row per slice: the difference with its interval, and beside it the two values."""
    metric = slices[0].metric
    hidden = sum(entry.metric == metric for entry in comparison.slices) - len(slices)
    which = f"\nthe {len(slices)} that differ most ({hidden} more)" if hidden else ""
    places = list(range(len(slices)))[::-1]
    names = [entry.slice or "" for entry in slices]
    rows = [f"  ({entry.rows})" if entry.rows is not None else "" for entry in slices]
    axes.set_yticks(places, [_plain(name[:28]) + count for name, count in zip(names, rows, strict=True)])
    axes.set_ylim(-0.6, len(slices) - 0.4)
    axes.grid(axis="y", color="#eeeeee", linewidth=0.8)
    if any(entry.difference is not None for entry in slices):
        how = f"difference and its {comparison.plan.confidence * 100:g}% interval"
        ends = _draw_slice_differences(axes, slices, places)
        what = f"{comparison.b.reference} minus {comparison.a.reference}"
    else:
        how = "values, which cannot be subtracted"
        ends = _draw_slice_values(axes, comparison, slices, places)
        what = _plain(metric)
        _add_legend(axes)
    low, high = (min(ends), max(ends)) if ends else (0.0, 0.0)
    margin = 0.08 * (high - low) or 0.01
    axes.set_xlim(low - margin, high + margin)
    axes.locator_params(axis="x", nbins=5)
    axes.set_title(f"{_plain(metric)} {_ARROWS[slices[0].larger_is_better]} per slice: {how}{which}", fontsize=9)
    axes.set_xlabel(f"{what}  (axis from {low - margin:.3g} to {high + margin:.3g}; rows in brackets)")


def _draw_slice_differences(axes: Axes, slices: Sequence[MetricComparison], places: Sequence[int]) -> list[float]:
    """Draw dots with intervals, and return how far they reach."""
    axes.axvline(0, color="#999999", linewidth=1)
    ends = [0.0]
    for entry, place in zip(slices, places, strict=True):
        values = " → ".join("none" if value is None else f"{value:.3f}" for value in (entry.a, entry.b))
        why = _why_no_interval(entry)
        axes.text(
            1.02,
            place,
            values + (f"\n{why}" if why else ""),
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=7,
            linespacing=1.2,
        )
        if entry.difference is None:
            continue
        color = _VERDICTS[entry.verdict]
        _draw_interval(axes, entry, place, color)
        ends += [entry.difference, *(end for end in (entry.lower, entry.upper) if end is not None)]
    return ends


def _draw_interval(axes: Axes, entry: MetricComparison, place: float, color: str, *, size: float = 5) -> None:
    """Draw a dot and the line of its interval; hollow where there is no interval or it has no width."""
    value, is_hollow = entry.difference or 0.0, _why_no_interval(entry) is not None
    if entry.lower is not None and entry.upper is not None and not is_hollow:
        axes.plot([entry.lower, entry.upper], [place, place], color=color, linewidth=2, marker="|", markersize=8)
    fill = "white" if is_hollow else color
    axes.plot([value], [place], "o", color=color, markerfacecolor=fill, markersize=size, clip_on=False)


def _why_no_interval(entry: MetricComparison) -> str | None:
    if entry.difference is not None and entry.lower is None:
        return "no predictions, no interval"
    return entry.why_no_width


def _draw_slice_values(
    axes: Axes, comparison: Comparison, slices: Sequence[MetricComparison], places: Sequence[int]
) -> list[float]:
    """Draw the values of both where there is no difference, and return how far they reach."""
    ends: list[float] = []
    for side, color, values, shift in (
        (comparison.a, _A, [entry.a for entry in slices], 0.12),
        (comparison.b, _B, [entry.b for entry in slices], -0.12),
    ):
        known = [(value, place + shift) for value, place in zip(values, places, strict=True) if value is not None]
        axes.plot([x for x, _ in known], [y for _, y in known], "o", color=color, markersize=5, label=side.reference)
        ends += [x for x, _ in known]
    return ends


def _draw_latency(axes: Axes, comparison: Comparison) -> None:
    sides = ((comparison.a, _A, -0.2), (comparison.b, _B, 0.2))
    known = [side.latency for side, _, _ in sides if side.latency is not None]
    sizes = sorted({entry.batch for latency in known for entry in latency.batches})
    axes.set_title("Latency by rows in a request: p50 / p99 (bar, and line up to)", fontsize=9)
    for side, color, shift in sides:
        rows = [] if side.latency is None else side.latency.batches
        for index, entry in enumerate(rows):
            place = sizes.index(entry.batch) + shift
            label = side.reference if index == 0 else None
            axes.bar([place], [entry.p50_ms], width=0.38, color=color, label=label)
            axes.plot([place, place], [entry.p50_ms, entry.p99_ms], color=color, linewidth=2)
            axes.text(
                place, entry.p99_ms, f"{entry.p50_ms:.3g} / {entry.p99_ms:.3g}", ha="center", va="bottom", fontsize=8
            )
    axes.set_xticks(range(len(sizes)), [f"{size} row{'' if size == 1 else 's'}" for size in sizes])
    axes.set_ylabel("milliseconds")
    _add_legend(axes)


def _slices_shown(comparison: Comparison) -> list[MetricComparison]:
    """Return one metric of each slice: `accuracy` if there is one; of many slices those that differ most."""
    metrics = list(dict.fromkeys(entry.metric for entry in comparison.slices))
    if not metrics:
        return []
    chosen = next(name for name in ("accuracy", *metrics) if name in metrics)
    found = [entry for entry in comparison.slices if entry.metric == chosen]
    if len(found) <= _MOST_SLICES:
        return found
    largest = sorted(found, key=lambda entry: -abs(entry.difference or 0.0))[:_MOST_SLICES]
    return [entry for entry in found if entry in largest]


def _plain(text: str) -> str:
    """Return text that is not taken for a formula: names of slices and metrics are the user's."""
    return text.replace("$", r"\$")


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", color="#777777", transform=axes.transAxes)
    axes.set_axis_off()
