"""`noa up`, `noa down`, `noa status`: the processes of a project."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._invocation import current
from noa_cli._options import DryRunOption, JsonOption
from noa_cli._termination import ended_by_sigterm

if TYPE_CHECKING:
    from noa_flows import ServiceEvent, ServiceName, ServiceStatus

OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", help="Only this service (repeatable): prefect, mlflow, serving, worker, webhooks."),
]


def up(
    only: OnlyOption = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start anew what runs with other settings than these; the rest goes on.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Start the Prefect server, the worker, the MLflow UI, the endpoints and webhooks; wait until each is healthy.

    What runs goes on as it was started; where the settings have changed since, a note says so.
    """
    from noa_flows import up as start

    settings = current().settings()
    with console.step("Starting services") as tell:
        try:
            with ended_by_sigterm():
                statuses = start(
                    settings,
                    services=_names(only),
                    restart=restart,
                    on_progress=lambda event: tell(_say_of_start(event)),
                )
        except KeyboardInterrupt:
            console.note("interrupted: what this call had started is stopped again; what ran before goes on")
            raise
    _show(statuses, as_json)
    for found in statuses:
        if found.has_old_settings:
            command = current().command_line("up", "--restart", "--only", found.name)
            console.note(f"{found.name} runs with older settings, which have changed since. Restart it: {command}")


def down(only: OnlyOption = None, dry_run: DryRunOption = False, as_json: JsonOption = False) -> None:
    """Stop exactly the processes that `noa up` started, and prove that they are gone."""
    from noa_flows import down as stop
    from noa_flows import status as look

    settings = current().settings()
    if dry_run:
        there = [found for found in look(settings) if found.state != "stopped" and (only is None or found.name in only)]
        if as_json:
            console.print_json([{"name": found.name, "pid": found.pid} for found in there])
        for found in [] if as_json else there:
            console.print_line(f"would stop {found.name} (pid {found.pid})")
        return
    with console.step("Stopping services") as tell:
        stopped = stop(settings, services=_names(only), on_progress=lambda event: tell(_say(event)))
    if as_json:
        console.print_json({"stopped": stopped})
    else:
        console.print_line(f"stopped and gone: {', '.join(stopped)}" if stopped else "nothing was running")


def status(as_json: JsonOption = False) -> None:
    """Show what runs, where, and where its log is."""
    from noa_flows import status as look

    _show(look(current().settings()), as_json)


def _names(only: list[str] | None) -> list[ServiceName] | None:
    from noa.errors import InvalidInputError
    from noa_flows import SERVICE_NAMES

    if only is None:
        return None
    unknown = [name for name in only if name not in SERVICE_NAMES]
    if unknown:
        raise InvalidInputError(f"no service `{unknown[0]}`", expected=", ".join(SERVICE_NAMES), received=unknown[0])
    return [name for name in SERVICE_NAMES if name in only]


def _say(event: ServiceEvent) -> str:
    return f"{event.service} {event.phase}{f' at {event.address}' if event.address else ''}"


def _say_of_start(event: ServiceEvent) -> str:
    """Return the step of a start; what it stops again may take a while, so it says how that is cut short."""
    return f"{_say(event)}; Ctrl-C once more kills it" if event.phase == "stopping" else _say(event)


def _show(statuses: list[ServiceStatus], as_json: bool) -> None:
    if as_json:
        console.print_json(
            [
                {
                    "name": found.name,
                    "state": found.state,
                    "pid": found.pid,
                    "address": found.address,
                    "started_at": found.started_at,
                    "memory_bytes": found.memory_bytes,
                    "log_file": str(found.log_file),
                    "detail": found.detail,
                    "has_old_settings": found.has_old_settings,
                }
                for found in statuses
            ]
        )
        return
    console.print_table(
        ["service", "state", "address", "pid", "memory", "since"],
        [
            [
                found.name,
                f"{found.state} ({found.detail})" if found.detail else found.state,
                found.address,
                found.pid,
                f"{found.memory_bytes / 1e6:.0f} MB" if found.memory_bytes else None,
                console.short_time(found.started_at) if found.started_at else None,
            ]
            for found in statuses
        ],
    )
    if statuses:
        console.print_line(f"Logs: {statuses[0].log_file.parent}", "dim")
