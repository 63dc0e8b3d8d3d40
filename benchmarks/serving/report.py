"""A run as tables, as JSON and as plots."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.serving.bursts import Figure
from benchmarks.serving.goals import Goal, best, judge
from benchmarks.serving.roster import ECHO, LIMIT, NOA

if TYPE_CHECKING:
    from benchmarks.serving.stress import HalfLoad, Memory, Overload

_COLOURS = {"binary": "#3b6fb6", "JSON": "#d98032", "gRPC": "#5a9e5a"}
_INK, _QUIET = "#222222", "#9a9a9a"


@dataclass(slots=True, kw_only=True)
class Record:
    """Everything that a run found. `absent` tells by case and peer why a server is not in it."""

    quick: bool
    figures: list[Figure] = field(default_factory=list[Figure])
    absent: dict[str, str] = field(default_factory=dict[str, str])
    starts: dict[str, float] = field(default_factory=dict[str, float])
    half: list[HalfLoad] = field(default_factory=list["HalfLoad"])
    overloads: list[Overload] = field(default_factory=list["Overload"])
    memory: Memory | None = None
    swaps: Memory | None = None
    package_start_s: float | None = None

    def goals(self) -> list[Goal]:
        """Return every goal with what this run found."""
        return judge(self.figures, self.half, self.overloads, self.memory, self.package_start_s, self.swaps)


def write_json(record: Record, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {
        "at": datetime.now(UTC).isoformat(),
        "quick": record.quick,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "goals": [{**asdict(one), "is_met": one.is_met} for one in record.goals()],
        "figures": [asdict(one) for one in record.figures],
        "half_load": [asdict(one) for one in record.half],
        "overload": [asdict(one) for one in record.overloads],
        "memory": asdict(record.memory) if record.memory else None,
        "swaps": asdict(record.swaps) if record.swaps else None,
        "start_s": record.starts,
        "package_start_s": record.package_start_s,
        "absent": record.absent,
    }
    half = path.with_suffix(".tmp")
    half.write_text(json.dumps(table, indent=1) + "\n")
    half.replace(path)


def show(record: Record) -> None:
    """Print the goals, then the servers side by side, then who is missing and why."""
    from rich.console import Console

    console = Console(width=170)
    console.print(goal_table(record.goals()))
    for model in dict.fromkeys(one.model for one in record.figures):
        console.print(server_table(record, model))
    if record.half or record.overloads:
        console.print(stress_table(record))
    for what, reason in record.absent.items():
        console.print(f"not in the run: {what}: {reason[:300]}", markup=False, highlight=False)


def goal_table(goals: Iterable[Goal]) -> Any:
    table = _table("goal", "against", "noa", "theirs", "unit", "ratio", "by the clock", "must be", "")
    for one in goals:
        sign = "at least" if one.at_least else "at most"
        verdict = {True: "met", False: "NOT MET", None: "not measured"}[one.is_met]
        table.add_row(
            one.case,
            one.against,
            number(one.ours),
            number(one.theirs),
            one.unit,
            number(one.ratio),
            number(one.by_clock),
            f"{sign} {one.bound:g}",
            verdict,
        )
    return table


def server_table(record: Record, model: str) -> Any:
    table = _table(f"{model}: server", "protocol", "rows/CPU s", "rows/s", "at", "p50 ms at 1", "start s", "core", "")
    rows = [one for one in record.figures if one.model == model]
    keys = dict.fromkeys((one.peer, one.encoding, one.way) for one in rows)
    lines: list[tuple[float, list[str]]] = []
    for peer, encoding, way in keys:
        mine = [one for one in rows if (one.peer, one.encoding, one.way) == (peer, encoding, way)]
        fault = next((one.fault for one in mine if one.fault), None)
        right = [one for one in mine if not one.fault]
        top = max(right, key=lambda one: one.rate, default=None)
        by_cpu = max((one.rate_per_cpu for one in right), default=0.0)
        single = next((one.p50_s * 1e3 for one in right if one.connections == 1), None)
        start = record.starts.get(f"{model}: {peer}")
        cells = [peer, way, number(by_cpu), number(top.rate if top else None), str(top.connections) if top else ""]
        cells += [number(single), number(start), f"{top.core_share:.2f}" if top else "", fault or ""]
        lines.append((by_cpu, cells))
    for _, cells in sorted(lines, reverse=True):
        table.add_row(*cells)
    return table


def stress_table(record: Record) -> Any:
    table = _table(
        "case", "server", "rows/s", "of", "p50 ms", "p99 ms", "refused", "slowest refusal ms", "recovery s", ""
    )
    for half in record.half:
        cells = [f"{half.model}, half of saturation", half.peer, number(half.answered), number(half.offered)]
        cells += [number(half.p50_s * 1e3), number(half.p99_s * 1e3), "", "", ""]
        table.add_row(*cells, f"{half.late_share:.1%} sent late" if half.late_share > 0.01 else "")
    for one in record.overloads:
        who = "patient" if one.is_patient else "impatient"
        cells = [f"{one.model}, {one.connections} {who}", one.peer, number(one.goodput), number(one.saturation)]
        cells += ["", "", number(one.refused), number(one.refusal_max_s * 1e3), number(one.recovery_s), one.fault or ""]
        table.add_row(*cells)
    return table


def number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _table(*columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        is_text = index < 2 or column in ("unit", "must be", "")
        table.add_column(column, justify="left" if is_text else "right", overflow="fold")
    return table


def plot(record: Record, folder: Path) -> list[Path]:
    """Draw the run; returns the files (each as PNG and SVG)."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 130})
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[Path] = []
    for name, draw in (
        ("throughput", _draw_throughput),
        ("latency", _draw_latency),
        ("overload", _draw_overload),
        ("memory", _draw_memory),
    ):
        figure = draw(record)
        if figure is not None:
            for suffix in ("png", "svg"):
                drawn.append(folder / f"{name}.{suffix}")
                figure.savefig(drawn[-1], bbox_inches="tight")
            _pyplot().close(figure)
    return drawn


def _pyplot() -> Any:
    from matplotlib import pyplot

    return pyplot


def _draw_throughput(record: Record) -> Any:
    """One panel per model: the best rate of every server and encoding, on a logarithmic axis."""
    from matplotlib import ticker

    titles = {
        "mlp": "MLP, one row a request",
        "cnn": "CNN, one image a request",
        "minilm": "MiniLM, 32 tokens",
        "tensor": "256 KiB tensor",
    }
    models = [model for model in titles if any(one.model == model for one in record.figures)]
    if not models:
        return None
    bars = {model: _bars(record.figures, model) for model in models}
    heights = [max(len(bars[model]), 2) for model in models]
    figure, axes = _pyplot().subplots(
        len(models), 1, figsize=(7.5, 0.9 * len(models) + 0.21 * sum(heights)), height_ratios=heights, squeeze=False
    )
    for axis, model in zip(axes[:, 0], models, strict=True):
        rows = bars[model]
        lowest, highest = min(rate for _, _, rate in rows), max(rate for _, _, rate in rows)
        is_log = highest > 30 * lowest
        # Points where the axis is logarithmic: it has no zero for a bar to stand on.
        for place, (label, encoding, rate) in enumerate(rows):
            colour = _COLOURS.get(encoding, _QUIET)
            if is_log:
                axis.plot([rate], [place], marker="o", ms=6, color=colour)
            else:
                axis.barh(place, rate, color=colour, height=0.65)
            weight = "bold" if label.startswith(NOA + ",") else "normal"
            axis.annotate(f"{rate:,.0f}", (rate, place), xytext=(6, 0), textcoords="offset points", va="center",
                          fontsize=8, color=_INK, weight=weight)  # fmt: skip
        axis.grid(axis="x", color="#e4e4e4", lw=0.6)
        axis.set_axisbelow(True)
        axis.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        if is_log:
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.set_xlim(lowest / 1.5 if is_log else 0, highest * (3 if is_log else 1.15))
        axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_title(titles[model], loc="left", fontsize=9.5, weight="bold")
    axes[-1, 0].set_xlabel("rows per second of the server's CPU time, best of all connection counts")
    figure.tight_layout()
    return figure


def _bars(figures: Sequence[Figure], model: str) -> list[tuple[str, str, float]]:
    rows: list[tuple[str, str, float]] = []
    for peer in dict.fromkeys(one.peer for one in figures if one.model == model):
        for encoding in ("binary", "JSON", "gRPC", "none"):
            top = best(figures, peer, model, encoding)
            if top is not None:
                label = f"{peer}, {top.way if peer == LIMIT else encoding}" if peer != ECHO else peer
                rows.append((label, encoding, top.rate_per_cpu))
    return sorted(rows, key=lambda row: row[2])


def _draw_latency(record: Record) -> Any:
    """p50 (line) and p99 (dotted) over the number of connections, for the servers that answered the MLP quickest."""
    rows = [
        one for one in record.figures if one.model == "mlp" and not one.fault and one.encoding in ("binary", "JSON")
    ]
    if not rows:
        return None
    figure, axis = _pyplot().subplots(figsize=(7.0, 3.8))
    shades = _pyplot().get_cmap("tab10")
    for index, peer in enumerate(dict.fromkeys(one.peer for one in rows)):
        mine = [one for one in rows if one.peer == peer]
        quickest = min(mine, key=lambda one: one.p50_s)
        line = sorted((one for one in mine if one.way == quickest.way), key=lambda one: one.connections)
        places = [one.connections for one in line]
        width = 2.4 if peer == NOA else 1.2
        axis.plot(places, [one.p50_s * 1e3 for one in line], color=shades(index % 10), lw=width, marker="o", ms=3,
                  label=f"{peer}, {quickest.way}")  # fmt: skip
        axis.plot(places, [one.p99_s * 1e3 for one in line], color=shades(index % 10), lw=width * 0.6, ls=":")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(
        sorted({one.connections for one in rows}), [str(one) for one in sorted({one.connections for one in rows})]
    )
    axis.set_xlabel("connections")
    axis.set_ylabel("milliseconds: p50 (line), p99 (dotted)")
    axis.set_title("MLP: latency in the closed loop", loc="left", fontsize=9.5, weight="bold")
    axis.legend(frameon=False, fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _draw_overload(record: Record) -> Any:
    if not record.overloads:
        return None
    figure, axes = _pyplot().subplots(
        len(record.overloads), 1, figsize=(7.0, 1.8 * len(record.overloads)), squeeze=False
    )
    for axis, one in zip(axes[:, 0], record.overloads, strict=True):
        times = [tick / 10 for tick in range(len(one.timeline))]
        axis.plot(times, [count * 10 for count in one.timeline], color=_COLOURS["binary"], lw=1.2)
        axis.axhline(one.saturation, color=_QUIET, lw=1, ls="--")
        place = (1.01, one.saturation)
        axis.annotate("saturation", place, xycoords=("axes fraction", "data"), fontsize=7.5, color=_QUIET, va="center")
        axis.set_ylim(0, max([one.saturation, *(count * 10 for count in one.timeline)]) * 1.25)
        who = "wait as told" if one.is_patient else "come back at once"
        title = f"{one.peer}, {one.model}: {one.connections} connections that {who}; {one.refused:,} refused"
        axis.set_title(title, loc="left", fontsize=9)
        axis.set_ylabel("right answers/s")
    axes[-1, 0].set_xlabel("seconds")
    figure.tight_layout()
    return figure


def _draw_memory(record: Record) -> Any:
    if record.memory is None:
        return None
    figure, axis = _pyplot().subplots(figsize=(7.0, 2.6))
    samples = record.memory.samples
    axis.plot(
        [one.requests for one in samples], [one.pss_bytes / 1e6 for one in samples], color=_COLOURS["binary"], lw=1.6
    )
    axis.axhline(120, color=_QUIET, lw=1, ls="--")
    axis.text(samples[0].requests, 120, "goal", va="bottom", fontsize=7.5, color=_QUIET)
    axis.set_ylim(0, max(130.0, record.memory.highest_bytes / 1e6 * 1.1))
    axis.set_xlabel(f"requests (with {record.memory.swaps} swaps on the way)")
    axis.set_ylabel("PSS of the worker, MB")
    axis.set_title("Memory of one worker", loc="left", fontsize=9.5, weight="bold")
    return figure
