"""`noa up`, `noa down`, `noa status`: the processes of a project."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._invocation import current
from noa_cli._options import DryRunOption, JsonOption
from noa_cli._termination import ended_by_sigterm

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from noa.errors import SettingsError
    from noa.settings import Settings
    from noa_flows import ServerStatus, ServiceEvent, ServiceName, ServiceStatus

_FOREGROUND = "noa serve"
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

    What runs goes on as it was started; where the settings have changed since, a note says so. A service that fails is
    stopped and named, the others go on, and another call starts what is missing.
    """
    from noa_flows import up as start

    settings = current().settings()
    phases: set[str] = set()

    def on_progress(event: ServiceEvent) -> None:
        phases.add(event.phase)
        _tell(event, tell, _say_of_start)

    with console.step("Starting services") as tell:
        try:
            with ended_by_sigterm():
                statuses = start(settings, services=_names(only), restart=restart, on_progress=on_progress)
        except KeyboardInterrupt:
            console.note(
                "interrupted: what this call had started is stopped again; what ran before goes on or is started again"
            )
            raise
    _show(statuses, as_json)
    if restart and "starting" not in phases:
        console.note(
            "nothing was started anew: what runs was started with these settings (noa down, noa up do it all the same)"
        )
    _tell_changes(statuses)


def down(only: OnlyOption = None, dry_run: DryRunOption = False, as_json: JsonOption = False) -> None:
    """Stop exactly the processes that `noa up` started, and prove that they are gone.

    Works from the records of what was started, also while noa.toml is invalid.
    """
    from noa_flows import down as stop
    from noa_flows import status as look

    settings, error = current().settings_or_place()
    _tell_invalid(settings, error)
    if dry_run:
        there = [found for found in look(settings) if found.state != "stopped" and (only is None or found.name in only)]
        if as_json:
            console.print_json([{"name": found.name, "pid": found.pid} for found in there])
        for found in [] if as_json else there:
            console.print_line(f"would stop {found.name} (pid {found.pid})")
        return
    with console.step("Stopping services") as tell:
        stopped = stop(settings, services=_names(only), on_progress=lambda event: _tell(event, tell, _say))
    if as_json:
        console.print_json({"stopped": stopped})
    else:
        console.print_line(f"stopped and gone: {', '.join(stopped)}" if stopped else "nothing was running")


def status(as_json: JsonOption = False) -> None:
    """Show what runs, where, where its log is, and which version answers, also of `noa serve` in another terminal."""
    from noa_flows import serving_status
    from noa_flows import status as look

    settings, error = current().settings_or_place()
    statuses = look(settings)
    if error is not None:  # nobody knows what they would be
        statuses = [replace(found, has_old_settings=False, is_wanted=True) for found in statuses]
    _show(statuses, as_json, servers=serving_status(settings))
    _tell_invalid(settings, error)
    _tell_changes(statuses)


def _tell_invalid(settings: Settings, error: SettingsError | None) -> None:
    """Say on standard error that the settings are invalid, and where what was started is looked for all the same."""
    if error is not None:
        reason = " ".join(str(error).split())
        console.note(f"the settings are invalid: {reason}", style="yellow")
        console.note(f"what was started is taken from its records in {settings.state_dir / 'services'}")


def _tell_changes(statuses: list[ServiceStatus]) -> None:
    """Say on standard error what runs otherwise than the settings say now, and how that is changed."""
    for found in statuses:
        if found.has_old_settings and found.is_wanted:
            command = current().command_line("up", "--restart", "--only", found.name)
            console.note(f"{found.name} runs with older settings, which have changed since. Restart it: {command}")
        elif found.has_old_settings:
            command = current().command_line("down", "--only", found.name)
            console.note(f"{found.name} runs, and these settings have no such service any more. Stop it: {command}")


def _names(only: list[str] | None) -> list[ServiceName] | None:
    from noa.errors import InvalidInputError
    from noa_flows import SERVICE_NAMES

    if only is None:
        return None
    unknown = [name for name in only if name not in SERVICE_NAMES]
    if unknown:
        raise InvalidInputError(f"no service `{unknown[0]}`", expected=", ".join(SERVICE_NAMES), received=unknown[0])
    return [name for name in SERVICE_NAMES if name in only]


def _tell(event: ServiceEvent, tell: Callable[[str], None], say: Callable[[ServiceEvent], str]) -> None:
    """Show a step of a start or stop; that it waits for another one also where steps are shown now and then only."""
    if event.phase == "waiting":
        console.note("waiting for another `noa up` or `noa down` of this project, which is under way")
    elif event.phase in ("failed", "running again as before"):
        console.note(say(event))
    else:
        tell(say(event))


def _say(event: ServiceEvent) -> str:
    return f"{event.service} {event.phase}{f' at {event.address}' if event.address else ''}"


def _say_of_start(event: ServiceEvent) -> str:
    """Return the step of a start; what an interrupt stops may take a while, so it says how that is cut short."""
    is_ending = event.is_interrupted and event.phase == "stopping"
    return f"{_say(event)}; Ctrl-C once more kills it" if is_ending else _say(event)


def _show(statuses: list[ServiceStatus], as_json: bool, *, servers: Sequence[ServerStatus] = ()) -> None:
    foreground = [server for server in servers if not server.is_service]
    logs = statuses[0].log_file.parent if statuses else None
    if as_json:
        ours = [asdict(endpoint) for server in servers if server.is_service for endpoint in server.endpoints]
        rows = [_row_of(found, ours if found.name == "serving" else []) for found in statuses]
        console.print_json(rows + [_row_of_foreground(server, logs) for server in foreground])
        return
    console.print_table(
        ["service", "state", "address", "pid", "memory", "since"],
        [
            *(
                [
                    found.name,
                    f"{found.state} ({found.detail})" if found.detail else found.state,
                    *_place(found.address, found.pid, found.memory_bytes, found.started_at),
                ]
                for found in statuses
            ),
            *(
                [_FOREGROUND, "running", *_place(server.address, server.pid, server.memory_bytes, server.started_at)]
                for server in foreground
            ),
        ],
    )
    if servers:
        console.print_table(
            ["endpoint", "model", "format", "version", "digest", "state", "address"],
            [
                [
                    *(found.name, found.model, found.format, found.version),
                    found.digest and console.short_digest(found.digest),
                    f"{found.state} ({found.detail})" if found.detail else found.state,
                    server.address,
                ]
                for server in servers
                for found in server.endpoints
            ],
        )
    if logs is not None:
        console.print_line(f"Logs: {logs}", "dim")


def _place(address: str | None, pid: int | None, memory_bytes: int, since: datetime | None) -> list[object]:
    memory = f"{memory_bytes / 1e6:.0f} MB" if memory_bytes else None
    return [address, pid, memory, console.short_time(since) if since else None]


def _row_of(found: ServiceStatus, endpoints: list[dict[str, object]]) -> dict[str, object]:
    return {
        "name": found.name,
        "state": found.state,
        "pid": found.pid,
        "address": found.address,
        "started_at": found.started_at,
        "memory_bytes": found.memory_bytes,
        "log_file": str(found.log_file),
        "detail": found.detail,
        "has_old_settings": found.has_old_settings,
        "is_wanted": found.is_wanted,
        "endpoints": endpoints,
    }


def _row_of_foreground(server: ServerStatus, logs: Path | None) -> dict[str, object]:
    return {
        "name": _FOREGROUND,
        "state": "running",
        "pid": server.pid,
        "address": server.address,
        "started_at": server.started_at,
        "memory_bytes": server.memory_bytes,
        "log_file": None if logs is None else str(logs / "serve.log"),
        "detail": "",
        "has_old_settings": False,
        "is_wanted": True,
        "endpoints": [asdict(endpoint) for endpoint in server.endpoints],
    }
