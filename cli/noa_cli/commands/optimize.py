"""`noa optimize`: the formats of a version that no other beats in speed, size and the task, added with their proof."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._invocation import actor, current
from noa_cli._options import DryRunOption, JsonOption
from noa_cli._quiet_stdout import stdout_to_stderr
from noa_cli._registry import open_registry

if TYPE_CHECKING:
    from noa.settings import Settings
    from noa_conversion.optimise.pareto import Measured
    from noa_flows.optimisation import Optimisation


def optimize(
    reference: Annotated[str, typer.Argument(help="A version: `name@alias` or `name/number`.")],
    metric: Annotated[
        str | None, typer.Option("--metric", help="The task metric (default: the recipe's first).")
    ] = None,
    max_drop: Annotated[
        float, typer.Option("--max-drop", min=0, help="By how much the metric may be worse than that of `onnx`.")
    ] = 0.005,
    formats: Annotated[
        str | None, typer.Option("--formats", help="Which to try, with commas (default: all that are reduced).")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Where to draw it: FILE.png or FILE.svg.", dir_okay=False)
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.01, max=60, help="How long each batch size is timed, seconds.")
    ] = 0.3,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make smaller and faster formats of a version, measure each, and add those on the Pareto front with the evidence.

    Latency is the median at batch 1 and 16 on this machine, the metric that of the version's own test split. A format
    whose metric drops too far, or that leaves its stated tolerance, is shown with the reason and not added.
    """
    from noa_flows.optimisation import OPTIMISED, OptimisationPlan, keep_chosen, optimise

    settings = current().settings()
    plan = OptimisationPlan(
        formats=_formats(formats) if formats else OPTIMISED,
        metric=metric,
        max_drop=max_drop,
        seconds_per_batch=seconds,
        threads=settings.training.threads or None,
    )
    with (
        open_registry(settings, about=[reference]) as registry,
        tempfile.TemporaryDirectory(prefix="noa-optimize-") as scratch,
    ):
        version = registry.resolve(reference)
        with console.step(f"Optimising {version.reference}") as tell, stdout_to_stderr():
            found = optimise(registry, version, settings, plan, Path(scratch), tell=tell)
        added = [] if dry_run else keep_chosen(registry, version, found, actor=actor())
    picture = _draw(found, plot, settings)
    if as_json:
        console.print_json({**found.to_dict(), "added": added, "plot": None if picture is None else str(picture)})
    else:
        _print(found, added, dry_run=dry_run)


def _formats(text: str) -> tuple[str, ...]:
    from noa.formats import find_adapter

    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        find_adapter(name)  # an unknown one is refused before any work
    return names


def _draw(found: Optimisation, plot: Path | None, settings: Settings) -> Path | None:
    from noa.errors import DependencyMissingError
    from noa_conversion.optimise.pareto_plot import PlotTitle, save_plot

    path = plot or settings.state_dir / "reports" / f"optimize-{found.reference.replace('/', '-')}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    title = PlotTitle(
        reference=found.reference,
        metric=found.metric,
        larger_is_better=found.larger_is_better,
        hardware=found.hardware,
        least=found.least,
    )
    try:
        save_plot(found.measured, path, title)
    except DependencyMissingError:
        if plot is not None:
            raise
        return None  # nobody asked for a picture
    console.note(f"The picture is in {path}")
    return path


def _print(found: Optimisation, added: list[str], *, dry_run: bool) -> None:
    from noa_conversion.optimise.pareto import describe_rule

    batches = sorted({batch for one in found.measured for batch in one.latency_ms})
    console.print_table(
        ["format", "size", *(f"p50 of {batch}" for batch in batches), found.metric, "max error", "verdict"],
        [_row(one, batches, added, dry_run) for one in found.measured],
        title=f"{found.reference}: {found.metric} on {found.rows} test rows "
        f"{console.short_digest(found.dataset_digest)}",
    )
    console.print_line(f"measured on {found.hardware}")
    console.print_line(describe_rule(found.metric))
    if added:
        console.print_line(f"added to {found.reference}: {', '.join(added)}", "green")
    else:
        console.print_line(f"nothing was added to {found.reference}" + (" (dry run)" if dry_run else ""))


def _row(one: Measured, batches: list[int], added: list[str], dry_run: bool) -> list[object]:
    speeds = [f"{one.latency_ms[batch]:.3g} ms" if batch in one.latency_ms else None for batch in batches]
    if one.problem is not None:
        verdict = one.problem
    elif one.format in added:
        verdict = "on the front, added"
    elif one.on_front:
        verdict = "on the front" + (", would be added" if one.is_chosen and dry_run else "")
    else:
        verdict = f"beaten by {one.beaten_by}: {', '.join(one.beaten_in)}"
    metric = None if one.metric is None else f"{one.metric:.4f}"
    error = None if one.max_abs_error is None else f"{one.max_abs_error:.3g}"
    return [one.format, f"{one.size_bytes:,}" if one.size_bytes else None, *speeds, metric, error, verdict]
