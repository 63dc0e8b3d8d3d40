"""`noa models compare`: two versions side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._options import JsonOption
from noa_cli._registry import open_registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from noa_registry import CalibrationEvidence
    from noa_registry.comparison import Comparison, MetricComparison, RowSetComparison, Side, ValueDifference


def compare(
    reference: Annotated[str, typer.Argument(metavar="A", help="The older one: `name@alias` or `name/number`.")],
    other: Annotated[str, typer.Argument(metavar="B", help="The newer one: `name@alias` or `name/number`.")],
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Write a picture, FILE.png or FILE.svg.", dir_okay=False)
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option("--confidence", min=0.5, max=0.9999, help="Confidence of the intervals (default: the gate's)."),
    ] = None,
    resamples: Annotated[
        int | None,
        typer.Option("--resamples", min=100, max=100_000, help="Draws of the bootstrap (default: the gate's)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show two versions side by side; a difference is B minus A, with its interval from a paired bootstrap."""
    given = {"confidence": confidence, "resamples": resamples}
    with open_registry(about=[reference, other]) as registry:
        plan = replace(registry.comparison_plan(other), **{key: value for key, value in given.items() if value})
        comparison = registry.compare(reference, other, plan=plan)
    if plot is not None:
        from noa_registry.comparison_plot import save_plot

        save_plot(comparison, plot)
        console.note(f"The picture is in {plot}")
    if as_json:
        console.print_json(comparison.to_dict())
    else:
        _print(comparison)


def _print(comparison: Comparison) -> None:
    for part in comparison.row_sets:
        _print_values(comparison, part.metrics, part.slices, where=_where(part))
    if not comparison.row_sets:
        _print_values(comparison, comparison.metrics, comparison.slices, where="different test rows")
    a, b = comparison.a, comparison.b
    console.print_line(_plan(comparison))
    console.print_table(
        ["", a.reference, b.reference],
        [
            *_calibration_rows(comparison),
            *_latency_rows(a, b),
            ["measured on", _hardware(a), _hardware(b)],
            [f"size of {b.served}", f"{a.size_bytes} bytes", f"{b.size_bytes} bytes"],
            ["signature", None, "; ".join((comparison.signature.level, *comparison.signature.differences))],
        ],
    )
    for title, rows in (
        ("params", comparison.params),
        ("data", comparison.data),
        ("environment", comparison.environment),
    ):
        _print_differences(title, rows, a, b)
    for note in comparison.notes:
        console.print_line(f"note: {note}")


def _where(part: RowSetComparison) -> str:
    remarks = [console.short_digest(part.dataset_digest)]
    if part.rows is not None:
        remarks.append(f"{part.rows} rows")
    if not part.is_judged:
        remarks.append("which the gate does not name")
    return f"the same test rows, {', '.join(remarks)}"


def _print_values(
    comparison: Comparison, metrics: Sequence[MetricComparison], slices: Sequence[MetricComparison], *, where: str
) -> None:
    a, b = comparison.a.reference, comparison.b.reference
    columns = [a, b, "difference", _interval_name(comparison), "verdict"]
    rows = [_metric_row(entry) for entry in metrics]
    console.print_table(["metric", *columns], rows, title=f"{a} and {b} on {where}")
    if slices:
        rows = [[entry.slice, entry.rows, *_metric_row(entry)] for entry in slices]
        console.print_table(["slice", "rows", "metric", *columns], rows)


def _plan(comparison: Comparison) -> str:
    plan = comparison.plan
    whose = "as the gate judges" if comparison.is_gates_plan else "by which no gate judges"
    return f"intervals of {plan.confidence * 100:g} % from {plan.resamples:,} draws with seed {plan.seed}, {whose}"


def _interval_name(comparison: Comparison) -> str:
    return f"{comparison.plan.confidence * 100:g}% interval"


def _metric_row(entry: MetricComparison) -> list[object]:
    interval = (
        None if entry.lower is None or entry.upper is None else f"{_signed(entry.lower)} .. {_signed(entry.upper)}"
    )
    if entry.why_no_width is not None:
        interval = f"no width: {entry.why_no_width}"
    difference = None if entry.difference is None else _signed(entry.difference)
    return [entry.metric, _number(entry.a), _number(entry.b), difference, interval, _verdict(entry)]


def _verdict(entry: MetricComparison) -> str | None:
    return None if entry.lower is None else entry.verdict


def _print_differences(title: str, rows: Sequence[ValueDifference], a: Side, b: Side) -> None:
    if rows:
        console.print_table(
            [title, a.reference, b.reference], [[row.key, _shown(row.a), _shown(row.b)] for row in rows]
        )
    else:
        console.print_line(f"{title}: the same")


def _latency_rows(a: Side, b: Side) -> list[list[object]]:
    sizes = sorted({row.batch for side in (a, b) if side.latency for row in side.latency.batches})
    return [
        [f"latency of {size} row{'' if size == 1 else 's'} (p50, p99)", _latency(a, size), _latency(b, size)]
        for size in sizes
    ]


def _latency(side: Side, batch: int) -> str | None:
    if side.latency is None:
        return None
    values = [side.latency.value(name, batch) for name in ("p50", "p99")]
    return None if None in values else ", ".join(f"{value:.3g}" for value in values if value is not None) + " ms"


def _hardware(side: Side) -> str | None:
    return None if side.latency is None else side.latency.hardware.describe()


def _calibration_rows(comparison: Comparison) -> list[list[object]]:
    """Return ECE and Brier score on each set of test rows; one row without a name where there is one set."""
    name, sets = "calibration (ECE, Brier)", comparison.row_sets
    if len(sets) < 2:
        return [[name, _calibration(comparison.a.calibration), _calibration(comparison.b.calibration)]]
    return [
        [
            f"{name} on {console.short_digest(one.dataset_digest)}",
            *map(_calibration, (one.a_calibration, one.b_calibration)),
        ]
        for one in sets
        if one.a_calibration is not None or one.b_calibration is not None
    ]


def _calibration(found: CalibrationEvidence | None) -> str | None:
    return None if found is None else f"{found.ece:.4f}, {found.brier:.4f}"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}" if value else "0"


def _shown(value: object) -> object:
    return console.short_digest(value) if isinstance(value, str) and value.startswith("sha256:") else value
