"""`noa models reproduce`: train a version again from its record, and compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._invocation import current
from noa_cli._options import JsonOption

if TYPE_CHECKING:
    from noa_flows import Reproduction

_STYLES = {"equal": "green", "within tolerance": "green", "different": "red"}


def reproduce(
    reference: Annotated[str, typer.Argument(help="`name`, `name@alias` or `name/number`.")],
    present_files: Annotated[
        bool, typer.Option("--present-files", help="Train from the files that are here, not from the recorded commit.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse if a package has another version than was recorded.")
    ] = False,
    weights: Annotated[
        float | None, typer.Option("--weights-tolerance", min=0.0, help="Largest absolute difference of a weight.")
    ] = None,
    outputs: Annotated[
        float | None, typer.Option("--outputs-tolerance", min=0.0, help="Largest absolute difference of an output.")
    ] = None,
    metrics: Annotated[
        float | None, typer.Option("--metrics-tolerance", min=0.0, help="Largest absolute difference of a metric.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a version again from its commit, data and seed and compare; exit code 1 if it comes out different."""
    from noa_flows import ReproduceOptions, Tolerance, reproduce_version

    given = {"weights": weights, "outputs": outputs, "metrics": metrics}
    tolerance = Tolerance(**{name: value for name, value in given.items() if value is not None})
    options = ReproduceOptions(present_files=present_files, strict=strict, tolerance=tolerance)
    with console.step(f"Reproducing {reference}") as step:
        result = reproduce_version(current().settings(), reference, options=options, tell=step)
        step.end(result.verdict)
    if as_json:
        console.print_json(result.to_dict())
    else:
        _print(result)
    if result.verdict == "different":
        raise typer.Exit(1)


def _print(result: Reproduction) -> None:
    tolerance = result.tolerance
    rows: list[list[object]] = [
        [
            f"{label}, largest difference",
            f"{part.largest:.3g} ({part.worst})" if part.largest else "0",
            f"mean {part.mean:.3g} of {part.count:,} numbers",
            limit,
        ]
        for label, part, limit in (
            ("weights", result.weights, tolerance.weights),
            ("outputs on the input example", result.outputs, tolerance.outputs),
        )
    ]
    for name, (recorded, received) in result.metrics.items():
        was = "not recorded" if recorded is None else f"was {recorded:.6g}"
        gap = "-" if recorded is None else f"{abs(recorded - received):.3g}"
        rows.append([f"{name}, difference", gap, f"{was}, is {received:.6g}", tolerance.metrics])
    console.print_table(["compared", "difference", "", "tolerance"], rows)
    if result.environment:
        console.print_table(
            ["package", "recorded", "here"],
            [[entry.name, entry.recorded, entry.present] for entry in result.environment],
            title="The environment differs",
        )
    for note in result.notes:
        console.print_line(f"note: {note}", "yellow")
    if result.linked:
        console.print_line(f"used as they are now, for they are in no commit: {', '.join(result.linked)}")
    if result.left_out:
        console.print_line(f"not there for the recipe, for they are keys: {', '.join(result.left_out)}")
    console.print_line(
        f"{result.reference} trained again from {result.source} in {result.seconds:.1f} s: {result.verdict}",
        _STYLES[result.verdict],
    )
