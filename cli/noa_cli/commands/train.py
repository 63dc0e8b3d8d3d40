"""`noa train`: from a recipe to a registered version with its evidence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._invocation import actor, current
from noa_cli._options import JsonOption
from noa_cli._termination import ended_by_sigterm

if TYPE_CHECKING:
    from noa.settings import Settings
    from noa_cli._loss_comparison import LossComparison
    from noa_flows import PipelineResult
    from noa_registry import GateReport

_USUAL_ALIAS = "champion"


def train(
    recipe: Annotated[
        str, typer.Argument(help="A name in noa.toml, a file `recipe.py[:name]` or `package.module:name`.")
    ],
    backend: Annotated[
        str | None,
        typer.Option("--backend", "-b", help="torch, jax, or both as `torch,jax` (default: the recipe's first)."),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change the recipe: epochs=3, data.rows=200."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed (default: the recipe's).")] = None,
    promote: Annotated[
        bool, typer.Option("--promote", help="Put the best version live if the gate allows it.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show the losses of two backends side by side, and draw them.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Where --compare draws, FILE.png or FILE.svg (default: in the folder of the first job).",
            dir_okay=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train, evaluate, convert, verify and register; a killed job continues with the same command."""
    from noa_cli._loss_comparison import check_comparison, compare_losses
    from noa_cli._quiet_stdout import stdout_to_stderr
    from noa_cli._training_progress import follow

    settings = current().settings()
    known = settings.recipes[recipe].backends if recipe in settings.recipes else ("torch",)
    names = _backends(known if compare else known[:1], backend)
    check_comparison(compare=compare, plot=plot, backends=names)
    # The user's recipe runs in this process too; what it writes must not spoil our standard output.
    with ended_by_sigterm(), follow() as narrator, stdout_to_stderr():
        from noa_flows import check_backends, run_pipeline

        try:
            result = run_pipeline(
                settings,
                find_recipe_file(recipe, settings.root),
                backends=check_backends(names),
                overrides=read_changes(change or []),
                seed=seed,
                promote=promote,
                on_event=narrator,
                actor=actor(),
            )
        except KeyboardInterrupt:
            console.note(f"stopped {narrator.stopped_at()}; the same command continues from the last checkpoint")
            raise
    verdict = None if as_json or promote else _verdict(settings, recipe, result)
    show_result(result, as_json=as_json, verdict=verdict, comparison=compare_losses(result, plot) if compare else None)


def find_recipe_file(recipe: str, root: Path) -> str:
    """Return a recipe's file as seen from the project's root: on the command line it is meant from where we stand."""
    path, mark, name = recipe.partition(":")
    here = current().directory / path
    if not path.endswith(".py") or not here.is_file():
        return recipe
    found = here.resolve()
    inside = found.relative_to(root.resolve()) if found.is_relative_to(root.resolve()) else found
    return f"{inside}{mark}{name}"


def read_changes(pairs: list[str]) -> dict[str, object]:
    """Return `KEY=VALUE` pairs as a table; values are text, the recipe's fields say what they mean.

    Raises:
        InvalidInputError: a pair has no `=`.
    """
    from noa.errors import InvalidInputError

    changes: dict[str, object] = {}
    for pair in pairs:
        key, mark, value = pair.partition("=")
        if not mark or not key.strip():
            raise InvalidInputError(
                "a change of the recipe is not readable", where=f"--set {pair}", expected="KEY=VALUE"
            )
        changes[key.strip()] = value
    return changes


def show_result(
    result: PipelineResult,
    *,
    as_json: bool,
    verdict: GateReport | None = None,
    comparison: LossComparison | None = None,
) -> None:
    """Print what a pipeline did, what the gate says of the best version, and how two backends compare, if asked."""
    if as_json:
        console.print_json(result.to_dict() | ({} if comparison is None else {"comparison": comparison.to_dict()}))
        return
    names = list(dict.fromkeys(name for candidate in result.candidates for name in candidate.metrics))
    console.print_table(
        ["version", "backend", *names, "steps", "trained in", "digest"],
        [
            [
                c.version.reference,
                c.backend,
                *[f"{c.metrics[name]:.4f}" if name in c.metrics else None for name in names],
                c.job.steps,
                f"{c.job.seconds:.1f} s",
                console.short_digest(c.version.digest),
            ]
            for c in result.candidates
        ],
        title="Measured on the test split",
    )
    if comparison is not None:
        from noa_cli._loss_comparison import show_comparison

        show_comparison(comparison)
    if len(result.candidates) > 1:
        best = result.best
        tie = f"; of equals {result.tie_break}" if result.tie_break else ""
        console.print_line(f"best on the validation split: {best.version.reference} ({best.backend}){tie}")
    if result.promotion is not None:
        console.print_line(
            f"promoted {result.promotion.reference} to {result.promotion.alias}, ledger row {result.promotion.sequence}"
        )
    else:
        console.print_line(next_step(result.best.version.reference, verdict))


def _verdict(settings: Settings, recipe: str, result: PipelineResult) -> GateReport:
    """Ask the gate as `noa models promote` will; it measures nothing and keeps nothing."""
    from noa_cli._registry import open_registry

    version = result.best.version
    alias = settings.recipes[recipe].promote_to if recipe in settings.recipes else _USUAL_ALIAS
    with open_registry(settings) as registry:
        return registry.check(version.name, version.number, alias=alias, actor=actor(), record=False)


def next_step(reference: str, verdict: GateReport | None) -> str:
    """Return what to do with a version that was registered, by what the gate says of it."""
    alias = "" if verdict is None or verdict.alias == _USUAL_ALIAS else f" --alias {verdict.alias}"
    promote = f"noa models promote {reference}{alias} --reason ..."
    if verdict is None:
        return f"Next: {promote}"
    if verdict.passed:
        return f"the gate lets it pass as {verdict.alias}. Next: {promote}"
    rules = [refused.rule for refused in verdict.refusals]
    more = f" and {len(rules) - 1} more" if len(rules) > 1 else ""
    return f"the gate refuses it as {verdict.alias}: {rules[0]}{more}. See: noa models check {reference}{alias}"


def _backends(defaults: tuple[str, ...], text: str | None) -> list[str]:
    return list(defaults) if text is None else [part.strip() for part in text.split(",") if part.strip()] or [text]
