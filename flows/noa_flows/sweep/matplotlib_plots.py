"""The pictures of a search: how it went, which keys mattered, and the metric over the values of each key."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from noa.atomic_write import write_file
from noa.errors import DependencyMissingError
from noa_flows.sweep.plan import BACKEND_KEY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from noa_flows.sweep.values import SweepReport, TrialView

_FINISHED, _PRUNED, _BEST, _FAILED = "#5b6f8f", "#b9b9b9", "#d9822b", "#b03a3a"  # told apart by their forms too
_DPI: Final = 150
_COLUMNS: Final = 3
_MOST_LABELS: Final = 12
_LONGEST_LABEL: Final = 18


def save_plots(report: SweepReport) -> tuple[Path, ...]:
    """Write the pictures of a search into its folder and return their paths; the same search gives the same bytes.

    There is none of what is not known: no trial with a value, no importance.

    Raises:
        DependencyMissingError: matplotlib is not installed.
        StorageError: the disk refused.
    """
    try:
        import matplotlib as mpl
    except ImportError as exc:
        raise DependencyMissingError("matplotlib", extra="plots", purpose="drawing a search") from exc
    drawn: dict[str, Callable[[SweepReport], Figure]] = {}
    if any(trial.value is not None for trial in report.trials):
        drawn |= {"history": draw_history, "parameters": draw_parameters}
    if report.importance:
        drawn["importance"] = draw_importance
    paths: list[Path] = []
    for name, draw in drawn.items():
        path = report.folder / f"{name}.png"
        buffer = io.BytesIO()
        with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
            draw(report).savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
        write_file(path, buffer.getvalue())
        paths.append(path)
    return tuple(paths)


def draw_history(report: SweepReport) -> Figure:
    """Draw the metric of each trial by number, and the best so far."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for state, color, marker, label in (
        ("finished", _FINISHED, "o", "finished"),
        ("pruned", _PRUNED, "x", "pruned, at its last epoch"),
    ):
        shown = [trial for trial in report.trials if trial.state == state and trial.value is not None]
        places = [trial.number for trial in shown], [trial.value or 0.0 for trial in shown]
        axes.plot(*places, marker, color=color, label=f"{label} ({len(shown)})" if shown else None)
    failed = [trial.number for trial in report.trials if trial.state == "failed"]
    if failed:
        bottom = axes.get_xaxis_transform()
        label = f"failed ({len(failed)})"
        axes.plot(failed, [0.02] * len(failed), "v", color=_FAILED, transform=bottom, label=label)
    numbers, values = _best_so_far(report)
    axes.step(numbers, values, where="post", color=_BEST, label="best so far")
    if report.best is not None:
        axes.plot([report.best.number], [report.best.value or 0.0], "*", color=_BEST, markersize=13)
    axes.set_xlabel("trial")
    axes.set_ylabel(_axis_of(report))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8)
    counts = report.counts
    figure.suptitle(
        f"{_plain(report.name)}: {counts.ended} of {counts.planned} trials, {counts.pruned} pruned\n"
        "The best of many flatters itself: the test split chose nothing",
        fontsize=10,
    )
    return figure


def draw_importance(report: SweepReport) -> Figure:
    """Draw the share of each key in what makes trials differ."""
    from matplotlib.figure import Figure

    rows = list(report.importance.items())[::-1]
    figure = Figure(figsize=(6.4, 1.6 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.barh([_plain(key) for key, _ in rows], [share for _, share in rows], color=_FINISHED, height=0.6)
    for place, (_, share) in enumerate(rows):
        axes.text(share, place, f" {share:.2f}", va="center")
    axes.margins(x=0.15)
    axes.set_xlabel("share of the difference between trials (PED-ANOVA)")
    of = f"{report.counts.finished} finished trials"
    figure.suptitle(f"{_plain(report.name)}: what matters for {_plain(report.metric)}, of {of}", fontsize=10)
    return figure


def draw_parameters(report: SweepReport) -> Figure:
    """Draw the metric over the values of each key, the later trials darker."""
    from matplotlib.figure import Figure

    keys = [BACKEND_KEY] if len(report.backends) > 1 else []
    keys += list(report.space)
    columns = min(_COLUMNS, len(keys))
    rows = math.ceil(len(keys) / columns)
    figure = Figure(figsize=(3.6 * columns + 0.6, 3.2 * rows + 0.5), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    shown = [trial for trial in report.trials if trial.value is not None]
    for key, axes in zip(keys, places, strict=False):
        _draw_parameter(axes, key, shown, report)
    for axes in places[len(keys) :]:
        axes.set_axis_off()
    for row in range(rows):
        places[row * columns].set_ylabel(_axis_of(report))
    figure.suptitle(
        f"{_plain(report.name)}: {_plain(report.metric)} by value (crosses: pruned; star: best)", fontsize=10
    )
    return figure


def _draw_parameter(axes: Axes, key: str, shown: Sequence[TrialView], report: SweepReport) -> None:
    entry = report.space.get(key, {})
    given = report.backends if key == BACKEND_KEY else entry.get("choices")
    labels = [_text(choice) for choice in given] if isinstance(given, list | tuple) else None

    def place(trial: TrialView) -> float:
        value = trial.backend if key == BACKEND_KEY else trial.overrides.get(key)
        if labels is not None:
            return float(labels.index(_text(value)))
        return float(value) if isinstance(value, int | float) else math.nan

    last = max((trial.number for trial in shown), default=0) or 1
    for trial in shown:
        is_pruned = trial.state == "pruned"
        axes.plot(
            [place(trial)],
            [trial.value or 0.0],
            "x" if is_pruned else "o",
            color=_PRUNED if is_pruned else _FINISHED,
            alpha=0.35 + 0.65 * trial.number / last,
            markersize=5,
        )
    if report.best is not None:
        axes.plot([place(report.best)], [report.best.value or 0.0], "*", color=_BEST, markersize=13, zorder=5)
    if labels is not None:
        axes.set_xlim(-0.5, len(labels) - 0.5)
        every = max(1, math.ceil(len(labels) / _MOST_LABELS))
        axes.set_xticks(range(0, len(labels), every), [_short(label) for label in labels[::every]], rotation=20)
    elif entry.get("log"):
        axes.set_xscale("log")
    axes.set_xlabel(_plain(key))


def _best_so_far(report: SweepReport) -> tuple[list[int], list[float]]:
    numbers: list[int] = []
    values: list[float] = []
    choose = max if report.larger_is_better else min
    for trial in report.trials:
        if trial.state == "finished" and trial.value is not None:
            numbers.append(trial.number)
            values.append(choose([trial.value, *values[-1:]]))
    return numbers, values


def _axis_of(report: SweepReport) -> str:
    return f"{_plain(report.metric)} on the validation split  ({'↑' if report.larger_is_better else '↓'} better)"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _short(text: str) -> str:
    return _plain(text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…")


def _plain(text: str) -> str:
    """Return text that is not taken for a formula: names and values are the user's."""
    return text.replace("$", r"\$")
