"""How the comparison of two models is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from noa_cli import _console as console

if TYPE_CHECKING:
    from pathlib import Path

    from noa_conversion.comparison import OutputDifference
    from noa_conversion.equivalence import EquivalenceReport


def print_report(report: EquivalenceReport) -> None:
    """Print one row per output and run, then what else is worth knowing, then the verdict."""
    console.print_table(
        ["output", "shape of the run", "max error", "mean error", "allowed", "worst row", "argmax agrees", "verdict"],
        [_row(difference) for difference in report.differences],
        title=f"{report.source.label} ({report.source.format}) and {report.target.label} ({report.target.format})",
    )
    reasons = dict.fromkeys(difference.tolerance.reason for difference in report.differences)
    if reasons:
        console.print_line(f"tolerance: {'; '.join(reasons)}")
    console.print_line(f"inputs: {report.inputs}")
    console.print_line(f"tried: {report.tried}")
    for note in report.notes:
        console.print_line(f"note: {note}")
    if report.first_difference is not None:
        console.print_line(f"first difference: {report.first_difference}")
    if report.passed:
        console.print_line("equal: both compute the same within the tolerance", "green")
    else:
        console.print_line(f"different: {problem_of(report)}", "red")


def refuse_vacuous(report: EquivalenceReport, inputs: Path | None) -> None:
    """Raise where no number of an output was compared, and name the file of the inputs.

    Raises:
        InvalidInputError: nothing was compared.
    """
    if not report.is_vacuous:
        return
    from noa.errors import InvalidInputError

    raise InvalidInputError(
        report.problem or "nothing was compared",
        where=None if inputs is None else str(inputs),
        expected="inputs for which every output holds a finite number",
        received=report.inputs,
        remedy="Give other inputs with `--input FILE`",
    )


def problem_of(report: EquivalenceReport) -> str:
    """Return in one line why the models are not equal."""
    failed = next((difference for difference in report.differences if not difference.passed), None)
    if report.problem is not None or failed is None:
        return report.problem or "nothing could be compared"
    text = f"output `{failed.output}`: {failed.problem}"
    return text + (f", by {failed.max_abs_error:.3g} at most" if failed.max_abs_error == failed.max_abs_error else "")


def _row(difference: OutputDifference) -> list[object]:
    tolerance = difference.tolerance
    parts = [f"{tolerance.absolute:.3g}"] if tolerance.absolute or not tolerance.of_largest else []
    parts += [f"{tolerance.relative:g}·|x|"] if tolerance.relative else []
    parts += [f"{tolerance.of_largest:g}·max|x|"] if tolerance.of_largest else []
    agreement = difference.argmax_agreement
    not_finite = difference.native_not_finite or difference.other_not_finite
    return [
        difference.output,
        ", ".join(f"{axis}={size}" for axis, size in difference.sizes.items()) or "fixed",
        f"{difference.max_abs_error:.3g}",
        f"{difference.mean_abs_error:.3g}",
        " + ".join(parts),
        difference.worst_sample,
        None if agreement is None else f"{agreement * 100:.4g}%",
        ("equal" if difference.passed else "different") + (f", {not_finite} not finite" if not_finite else ""),
    ]
