"""`noa models measure`: latency and size of a version that is registered, on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._invocation import actor, current
from noa_cli._options import JsonOption
from noa_cli._registry import open_registry

if TYPE_CHECKING:
    from noa_registry import LatencyEvidence


def measure(
    reference: Annotated[str, typer.Argument(help="`name`, `name@alias` or `name/number`.")],
    batch: Annotated[
        list[int] | None,
        typer.Option("--batch", min=1, help="Rows in a call; repeatable (default: 1, 32 and those of the gate)."),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds", min=0.1, max=3600, help="Longest time for the runs of a batch size, if the gate needs no more."
        ),
    ] = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Measure latency and size of a version on this machine with its input example, and keep both as evidence.

    Of several measurements on one machine the gate takes the slowest of those that were made well enough.
    """
    from noa_flows import measure_version

    settings = current().settings()
    with open_registry(settings, about=[reference]) as registry:
        version = registry.resolve(reference)
        with console.step(f"Measuring {version.reference}"):
            found = measure_version(registry, settings, version, batches=batch or (), seconds=seconds, actor=actor())
    if as_json:
        console.print_json({"version": version.reference, "digest": found.digest, **found.to_evidence().values})
    else:
        _print(version.reference, found)


def _print(reference: str, found: LatencyEvidence) -> None:
    rows: list[list[object]] = [
        [
            entry.batch,
            f"{entry.p50_ms:.3g} ms",
            f"{entry.p99_ms:.3g} ms",
            None if entry.max_ms is None else f"{entry.max_ms:.3g} ms",
            entry.runs,
            None if entry.cpu_share is None else f"{entry.cpu_share:.0%}",
        ]
        for entry in found.batches
    ]
    title = f"{found.subject} of {reference} on {found.hardware.describe()}, load {found.hardware.load:.1f}"
    console.print_table(["rows", "p50", "p99", "slowest", "runs", "processor time"], rows, title=title)
    for entry in found.batches:
        if entry.judged_ms("p99") is None:
            needed = entry.seconds_needed("p99")
            how = "the model is too slow for that" if needed is None else f"--batch {entry.batch} --seconds {needed}"
            console.print_line(f"note: {entry.runs} runs with {entry.batch} are too few to say p99: {how}", "yellow")
        elif entry.was_busy:
            console.print_line(f"note: others had the processor while {entry.batch} was measured", "yellow")
