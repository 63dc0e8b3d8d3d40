"""`noa sweep`: search for the best settings of a recipe, and register the best trial with what chose it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from noa_cli import _console as console
from noa_cli._invocation import actor, current
from noa_cli._options import DryRunOption, JsonOption
from noa_cli._termination import ended_by_sigterm

if TYPE_CHECKING:
    from noa.settings import Settings
    from noa_flows.sweep import SweepPlan, SweepReport

_SHOW = "show"
_MOST_PREVIEWED = 10


def sweep(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="WHAT",
            help="A sweep or recipe of noa.toml, a file `recipe.py[:name]`, or `show`.",
            show_default=False,
        ),
    ] = None,
    shown: Annotated[
        str | None, typer.Argument(metavar="NAME", help="With `show`: which search.", show_default=False)
    ] = None,
    space: Annotated[
        list[str] | None,
        typer.Option("--space", metavar="KEY=VALUES", help="Try KEY=1e-4..0.1:log, KEY=2..8:step=2, KEY=a,b."),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change the recipe for all trials: epochs=3."),
    ] = None,
    backend: Annotated[
        str | None, typer.Option("--backend", "-b", help="torch, jax, or both as `torch,jax`: it is searched then too.")
    ] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="What to be best in (default: `best_by`).")] = None,
    trials: Annotated[int | None, typer.Option("--trials", "-n", min=1, help="How many in all (default: 20).")] = None,
    parallel: Annotated[int | None, typer.Option("--parallel", "-j", min=1, help="How many at once.")] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0, help="How long to search, seconds; 0: no limit.")
    ] = None,
    pruner: Annotated[str | None, typer.Option("--pruner", help="asha, median or none.")] = None,
    sampler: Annotated[str | None, typer.Option("--sampler", help="tpe or random.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the search.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the search (default: that of noa.toml).")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew; set earlier trials aside.")] = False,
    register: Annotated[
        bool, typer.Option("--register/--no-register", help="Whether the best trial becomes a version.")
    ] = True,
    listed: Annotated[bool, typer.Option("--list", help="List the searches of this project.")] = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search a recipe's settings; each trial is an ordinary job, a killed search continues with the same command."""
    settings = current().settings()
    if listed or recipe is None or recipe == _SHOW:
        _look(settings, shown if recipe == _SHOW else None, listed=listed, wants_one=recipe == _SHOW, as_json=as_json)
        return
    if shown is not None:
        raise typer.BadParameter(f"`{shown}` follows only `show`", param_hint="NAME")
    given: dict[str, object] = {
        "backends": None if backend is None else [part.strip() for part in backend.split(",") if part.strip()],
        "metric": metric,
        "trials": trials,
        "parallel": parallel,
        "timeout_s": timeout,
        "pruner": pruner,
        "sampler": sampler,
        "seed": seed,
    }
    asked = _Asked(
        what=recipe,
        name=name,
        space=space or [],
        change=change or [],
        changes={field: value for field, value in given.items() if value is not None},
    )
    if dry_run:
        _preview(settings, asked, as_json=as_json)
    else:
        _search(settings, asked, register=register, restart=restart, as_json=as_json)


class _Asked:
    """What the command line says of a search."""

    def __init__(
        self, *, what: str, name: str | None, space: list[str], change: list[str], changes: dict[str, object]
    ) -> None:
        self._what = what
        self._name = name
        self._space = space
        self._change = change
        self._changes = changes

    def plan(self, settings: Settings) -> SweepPlan:
        """Check it; what the recipe prints must not spoil our standard output."""
        from noa_cli._quiet_stdout import stdout_to_stderr
        from noa_cli.commands.train import find_recipe_file, read_changes
        from noa_flows.sweep import parse_space, plan_sweep

        is_named = self._what in settings.sweeps or self._what in settings.recipes
        with stdout_to_stderr():
            return plan_sweep(
                settings,
                self._what if is_named else find_recipe_file(self._what, settings.root),
                name=self._name,
                space=dict(parse_space(text) for text in self._space),
                overrides=read_changes(self._change),
                changes=self._changes,
            )


def _search(settings: Settings, asked: _Asked, *, register: bool, restart: bool, as_json: bool) -> None:
    from noa_cli._sweep_progress import follow_sweep
    from noa_cli._sweep_report import print_report
    from noa_flows.recipe_process import keep_recipe_processes
    from noa_flows.sweep import run_sweep

    with ended_by_sigterm(), keep_recipe_processes(settings.root):
        plan = asked.plan(settings)
        with follow_sweep(plan.name, plan.metric) as narrator:
            try:
                report = run_sweep(settings, plan, on_event=narrator, actor=actor(), register=register, restart=restart)
            except KeyboardInterrupt:
                console.note(f"stopped {narrator.stopped_at()}; the same command continues")
                raise
    if as_json:
        console.print_json(report.to_dict())
        return
    print_report(report, is_whole=False)
    if report.registered is not None:
        _print_verdict(settings, report)


def _print_verdict(settings: Settings, report: SweepReport) -> None:
    """Say what the gate says of the version, as `noa train` does."""
    from noa_cli._registry import open_registry
    from noa_cli.commands.train import next_step

    assert report.registered is not None
    recipe = settings.recipes.get(report.model)
    alias = "champion" if recipe is None else recipe.promote_to
    with open_registry(settings) as registry:
        version = registry.resolve(report.registered.reference)
        verdict = registry.check(version.name, version.number, alias=alias, actor=actor(), record=False)
    console.print_line(next_step(version.reference, verdict))


def _preview(settings: Settings, asked: _Asked, *, as_json: bool) -> None:
    from noa_cli._sweep_report import print_plan
    from noa_flows.sweep import preview_trials

    plan = asked.plan(settings)
    trials = preview_trials(plan, most=_MOST_PREVIEWED)
    if as_json:
        document: dict[str, Any] = {
            "name": plan.name,
            **plan.definition(),
            "points": None if plan.points == float("inf") else int(plan.points),
            "larger_is_better": plan.larger_is_better,
            "trials": plan.search.trials,
            "parallel": plan.search.parallel,
            "threads": plan.threads,
            "pruner": plan.search.pruner,
            "first": [{"backend": trial.backend, "overrides": dict(trial.overrides)} for trial in trials],
        }
        console.print_json(document)
    else:
        print_plan(plan, trials)


def _look(settings: Settings, name: str | None, *, listed: bool, wants_one: bool, as_json: bool) -> None:
    """List searches, or show one."""
    from noa.errors import InvalidInputError
    from noa_cli._sweep_report import print_list, print_report, print_space
    from noa_flows.sweep import read_sweep, sweep_names

    if not listed and name is None:
        raise InvalidInputError(
            "no search is named" if wants_one else "nothing to search is named",
            expected="noa sweep show NAME"
            if wants_one
            else "a sweep or recipe of `noa.toml`, or a file such as `recipe.py`",
            remedy="List them with `noa sweep --list`",
        )
    if name is None:
        reports = [read_sweep(settings, one) for one in sweep_names(settings)]
        if as_json:
            console.print_json([{**report.to_dict(), "trials": len(report.trials)} for report in reports])
        elif reports:
            print_list(reports)
        else:
            console.print_line("no search has begun here; see `noa sweep --help`")
        return
    report = read_sweep(settings, name)
    if as_json:
        console.print_json(report.to_dict())
        return
    print_space(report.space, report.backends, title=report.name)
    print_report(report, is_whole=True)
