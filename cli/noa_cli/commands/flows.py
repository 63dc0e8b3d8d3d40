"""`noa flows`: schedule retraining, run it now, and see how it went."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer

from noa_cli import _console as console
from noa_cli._command import add_command, new_group
from noa_cli._invocation import current
from noa_cli._options import DryRunOption, JsonOption
from noa_cli.commands.train import read_changes

if TYPE_CHECKING:
    from noa.errors import ServiceError
    from noa_flows import FlowDeployment, FlowRun

_NO_REASON = "Finished in state"  # Prefect's words where a flow gave none
_ASKING = "waiting for the project's Prefect server"
RecipeArgument = Annotated[str, typer.Argument(help="A recipe of noa.toml.")]


def build() -> typer.Typer:
    """Return the group with its commands."""
    group = new_group("Retrain on a schedule or now, through Prefect.")
    add_command(group, list_flows, name="list")
    for function in (run, schedule, unschedule, cancel):
        add_command(group, function)
    return group


def list_flows(
    limit: Annotated[int, typer.Option("--limit", min=1, max=200, help="Most runs shown.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """List the schedules and the newest runs."""
    settings = current().settings()
    with console.patience("Listing schedules and runs") as tell:
        tell("loading")
        from noa_flows import list_deployments, list_runs

        tell(_ASKING)
        deployments, runs = list_deployments(settings), list_runs(settings, limit=limit)
    if as_json:
        console.print_json({"deployments": [_plain(d) for d in deployments], "runs": [_plain(r) for r in runs]})
        return
    show_deployments(deployments)
    show_runs(runs)


def run(
    recipe: RecipeArgument,
    change: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change the recipe for this run.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the run to its end.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Retrain now: train, evaluate, convert, verify, register, gate, promote, deploy. Exit code 1 if the run fails."""
    from noa_cli._quiet_stdout import stdout_to_stderr
    from noa_flows import follow
    from noa_flows import run as start

    settings = current().settings()
    title = f"Retraining {recipe}" if wait else f"Starting a run of {recipe}"
    with console.step(title) as tell, stdout_to_stderr():  # the recipe is read here, and it may print
        changes = read_changes(change or [])
        found = start(settings, recipe, wait=False, overrides=changes)
        if wait:
            try:
                found = follow(settings, found.id, on_log=lambda line: tell(shorten_log(line)))
            except KeyboardInterrupt:
                console.note(f"the run goes on; end it with: {current().command_line('flows', 'cancel', found.id)}")
                raise
            tell.end(f"ended as {found.state.lower()}")
    if as_json:
        console.print_json(_plain(found))
    else:
        show_runs([found])
    if wait and not found.is_success:
        raise failure_of(found)


def failure_of(found: FlowRun) -> ServiceError:
    """Return the error that tells why a run failed. What became of the champion is told by the step that failed."""
    from noa.errors import ServiceError

    return ServiceError(
        f"the run `{found.name}` of {found.recipe} ended as {found.state.lower()}",
        where=found.address,
        received=shorten_log(found.message, most=500) or None,
        remedy="The whole log is in the Prefect UI",
    )


def shorten_log(text: str, *, most: int = 100) -> str:
    """Return the first line of a log message; the rest, e.g. a traceback, is in the Prefect UI."""
    line = text.strip().splitlines()[0] if text.strip() else ""
    line = "" if line.startswith(_NO_REASON) else line
    return line if len(line) <= most else line[: most - 1] + "…"


def schedule(
    recipe: RecipeArgument,
    cron: Annotated[str, typer.Option("--cron", help='When, e.g. "0 3 * * *" for every day at three.')],
    timezone: Annotated[str, typer.Option("--timezone", help="In which time zone.")] = "UTC",
    change: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change the recipe for these runs.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Retrain on a schedule: makes a Prefect deployment that the worker of `noa up` executes."""
    from noa_cli._quiet_stdout import stdout_to_stderr

    settings = current().settings()
    with console.patience(f"Scheduling {recipe}") as tell:
        tell("loading")
        from noa_flows import list_deployments
        from noa_flows import schedule as make

        changes = read_changes(change or [])
        with stdout_to_stderr():  # the recipe is read here, and it may print
            identity = make(settings, recipe, cron, timezone=timezone, overrides=changes, on_step=tell)
        tell(_ASKING)
        made = [found for found in list_deployments(settings) if found.id == identity]
    if as_json:
        console.print_json(_plain(made[0]))
    else:
        show_deployments(made)


def unschedule(recipe: RecipeArgument, dry_run: DryRunOption = False, as_json: JsonOption = False) -> None:
    """Remove a recipe's schedule. Runs that are under way go on."""
    from noa.errors import NotFoundError

    settings = current().settings()
    with console.patience(f"Removing the schedule of {recipe}") as tell:
        tell("loading")
        from noa_flows import list_deployments
        from noa_flows import unschedule as remove

        tell(_ASKING)
        there = [found for found in list_deployments(settings) if found.recipe == recipe]
        if not there:
            raise NotFoundError(f"recipe `{recipe}` has no schedule", remedy="See `noa flows list`")
        if not dry_run:
            remove(settings, recipe)
    if as_json:
        console.print_json({**_plain(there[0]), "dry_run": dry_run})
    else:
        console.print_line(f"{'would remove' if dry_run else 'removed'} the schedule `{there[0].cron}` of {recipe}")


def cancel(
    run_id: Annotated[str, typer.Argument(help="The run's id, as `noa flows list` shows it.")],
    as_json: JsonOption = False,
) -> None:
    """Cancel a run and wait until its processes are gone."""
    from noa_flows import cancel as stop

    with console.step("Cancelling"):
        found = stop(current().settings(), run_id)
    if as_json:
        console.print_json(_plain(found))
    else:
        show_runs([found])


def show_deployments(deployments: list[FlowDeployment]) -> None:
    """Print schedules."""
    console.print_table(
        ["recipe", "schedule", "time zone", "next run", "active"],
        [
            [
                found.recipe,
                found.cron,
                found.timezone,
                console.short_time(found.next_run, _zone(found.timezone)) if found.next_run else None,
                "yes" if found.is_active else "no",
            ]
            for found in deployments
        ],
    )


def _zone(name: str | None) -> ZoneInfo:
    """Return the zone that a schedule is written in, UTC where this machine does not know it."""
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError):
        return ZoneInfo("UTC")


def show_runs(runs: list[FlowRun]) -> None:
    """Print flow runs, newest first, each with its whole message: in its row if that fits, else below the table."""
    columns = ["run", "recipe", "state", "started", "took", "message", "id"]
    rows: list[list[str | None]] = [
        [
            found.name,
            found.recipe,
            found.state,
            console.short_time(found.started_at) if found.started_at else None,
            _took(found),
            _reason(found) or None,
            found.id,
        ]
        for found in runs
    ]
    if console.fits(columns, rows):
        console.print_table(columns, rows)
        return
    has_ids = console.fits([*columns[:-2], columns[-1]], [[*row[:-2], row[-1]] for row in rows])
    kept = [*range(len(columns) - 2), *([len(columns) - 1] if has_ids else [])]
    console.print_table([columns[index] for index in kept], [[row[index] for index in kept] for row in rows])
    for found in runs:
        if not has_ids:
            console.print_line(f"{found.name} has the id {found.id}")
        if reason := _reason(found):
            console.print_line(f"{found.name}: {reason}")


def _reason(found: FlowRun) -> str:
    """Return what a run says of its state on one line, whole: it may be all that is known of a failure."""
    text = " ".join(found.message.split())
    return "" if text.startswith(_NO_REASON) else text


def _took(found: FlowRun) -> str | None:
    if found.started_at is None or found.ended_at is None:
        return None
    return f"{(found.ended_at - found.started_at).total_seconds():.0f} s"


def _plain(value: FlowDeployment | FlowRun) -> dict[str, object]:
    return {
        key: item.isoformat() if isinstance(item, datetime) else item for key, item in dataclasses.asdict(value).items()
    }
