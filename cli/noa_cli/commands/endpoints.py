"""`noa endpoints`: what the endpoints of this project's running servers do now."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from noa.stop_signals import stop_on_signals
from noa_cli import _console as console
from noa_cli._command import add_command, new_group
from noa_cli._invocation import current
from noa_cli._options import JsonOption

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

    from noa.settings import Settings
    from noa_serving.live import LiveEndpoint, Look

SecondsOption = Annotated[
    float, typer.Option("--seconds", "-s", min=0.2, max=3600.0, help="Time between the two looks that rates are from.")
]
EndpointOption = Annotated[str | None, typer.Argument(help="Only this endpoint.")]

_COLUMNS = (
    *("endpoint", "model", "version", "digest", "state", "workers"),
    *("requests/s", "errors/s", "p50 ms", "p99 ms", "address"),
)
_NOBODY = "No server of this project runs. Start one: noa serve, or noa up"


def build() -> typer.Typer:
    """Return the group with its commands."""
    group = new_group("See what the endpoints of running servers do: versions, rates, latencies, refusals.")
    add_command(group, list_endpoints, name="list")
    for function in (show, watch):
        add_command(group, function)
    return group


def list_endpoints(seconds: SecondsOption = 2.0, as_json: JsonOption = False) -> None:
    """List the endpoints of running servers with their version, rate and latencies of now."""
    rows = _measure(current().settings(), None, seconds=seconds)
    if as_json:
        console.print_json([asdict(row) for row in rows])
    elif not rows:
        console.note(_NOBODY)
    else:
        console.print_table(_COLUMNS, [_cells(row) for row in rows])
        _tell_problems(rows)


def show(
    endpoint: Annotated[str, typer.Argument(help="An endpoint by name.")],
    seconds: SecondsOption = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Show one endpoint, of every server that has it: which versions answer, and where the time of a request goes."""
    rows = _measure(current().settings(), endpoint, seconds=seconds)
    if as_json:
        console.print_json([asdict(row) for row in rows])
        return
    for row in rows:
        _print_one(row)


def watch(
    endpoint: EndpointOption = None,
    seconds: SecondsOption = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Go on showing the endpoints until Ctrl-C. Without a terminal a line for each; --json prints one object a line."""
    settings = current().settings()
    with stop_on_signals() as stop:
        if as_json or not sys.stdout.isatty():
            show_rows = _print_json_lines if as_json else _print_lines
            _keep_looking(settings, endpoint, seconds, wait=stop.wait, show=show_rows)
            return
        from rich.live import Live

        with Live(console=console.out(), auto_refresh=False) as live:
            _keep_looking(
                settings,
                endpoint,
                seconds,
                wait=stop.wait,
                show=lambda rows: live.update(_drawing(rows), refresh=True),
            )


def _keep_looking(
    settings: Settings,
    endpoint: str | None,
    seconds: float,
    *,
    wait: Callable[[float], bool],
    show: Callable[[Sequence[LiveEndpoint]], None],
) -> None:
    """Look again and again until `wait` says that it is to end. The first rows come without rates, at once."""
    before = _look(settings)
    show(_rows(before, before, endpoint))
    while not wait(seconds):
        after = _look(settings)
        show(_rows(before, after, endpoint))
        before = after


def _measure(settings: Settings, endpoint: str | None, *, seconds: float) -> list[LiveEndpoint]:
    """Return the endpoints of running servers, or the one with that name.

    Raises:
        NotFoundError: no server has it.
    """
    from noa.errors import NotFoundError

    before = _look(settings)
    if endpoint is not None and not _rows(before, before, endpoint):
        names = sorted({row.name for row in _rows(before, before, None)})
        raise NotFoundError(
            f"no running server of this project has an endpoint `{endpoint}`",
            expected=", ".join(f"`{name}`" for name in names) or "a running server",
            remedy="List what runs with `noa endpoints list`, or start a server with `noa serve`",
        )
    if not before:
        return []
    time.sleep(seconds)
    return _rows(before, _look(settings), endpoint)


def _look(settings: Settings) -> dict[int, Look]:
    """Return a look at every running server, by the process id of its arbiter."""
    from noa_serving import running_servers
    from noa_serving.live import look

    return {server.address.pid: look(server) for server in running_servers(settings.state_dir)}


def _rows(before: dict[int, Look], after: dict[int, Look], endpoint: str | None) -> list[LiveEndpoint]:
    from noa_serving.live import compare

    rows = [row for pid, one in after.items() for row in compare(before.get(pid, one), one)]
    return [row for row in rows if endpoint in (None, row.name)]


def _cells(row: LiveEndpoint) -> list[object]:
    return [
        *(row.name, row.model, row.version, row.digest and console.short_digest(row.digest), row.state),
        f"{row.workers_ready}/{row.workers}",
        *(_number(row.requests_per_s), _number(row.errors_per_s), _number(row.p50_ms), _number(row.p99_ms)),
        row.address,
    ]


def _number(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def problems_of(rows: Sequence[LiveEndpoint]) -> list[str]:
    """Return what is wrong with endpoints, a line each."""
    texts: list[str] = []
    for row in rows:
        if row.refused is not None:
            texts.append(f"{row.name}: version {row.refused['version']} is refused: {row.refused['reason']}")
        if row.rolled_back is not None:
            unknown = "" if row.rolled_back["registry_knows"] else "; the alias still points to it"
            left = row.rolled_back["version"]
            texts.append(f"{row.name}: went back from version {left} by itself: {row.rolled_back['reason']}{unknown}")
        if row.waiting_for is not None and row.version is None:
            texts.append(f"{row.name}: {row.waiting_for}")
        if row.degraded is not None:
            texts.append(f"{row.name}: {row.degraded}")
    return texts


def _tell_problems(rows: Sequence[LiveEndpoint]) -> None:
    for text in problems_of(rows):
        console.note(text, style="yellow")


def _print_one(row: LiveEndpoint) -> None:
    console.print_table(_COLUMNS, [_cells(row)])
    console.print_line(f"digest  {row.digest or '-'}  format {row.format or '-'}  swaps {row.swaps}")
    if row.golden_requests is not None:
        console.print_line(_golden_text(row.golden_requests))
    if row.versions:
        console.print_table(
            ["version", "digest", "share", "requests"],
            [
                [f"{one.model}/{one.version}", console.short_digest(one.digest), f"{one.share:.1%}", one.requests]
                for one in row.versions
            ],
        )
    if row.stages_ms is not None:
        total_ms = sum(row.stages_ms.values())
        console.print_table(
            ["stage", "mean ms", "share"],
            [[stage, f"{ms:.4g}", f"{ms / total_ms:.0%}" if total_ms else "-"] for stage, ms in row.stages_ms.items()],
        )
    else:
        console.note("nothing was answered meanwhile")
    _tell_problems([row])


def _golden_text(count: int) -> str:
    if not count:
        return "golden requests  none: its evidence has no answers of another format to compare with"
    return f"golden requests  {count}, answered as in its evidence before it was served"


def _print_lines(rows: Sequence[LiveEndpoint]) -> None:
    now = datetime.now().astimezone().strftime("%H:%M:%S")
    if not rows:
        console.print_line(f"{now}  no server runs")
    for row in rows:
        p50, p99 = _number(row.p50_ms) or "-", _number(row.p99_ms) or "-"
        version = "-" if row.version is None else f"{row.version} {console.short_digest(row.digest or '')}"
        console.print_line(
            f"{now}  {row.name}  {row.state}  {version}  workers {row.workers_ready}/{row.workers}  "
            f"{_number(row.requests_per_s)} requests/s  {_number(row.errors_per_s)} errors/s  "
            f"p50 {p50} ms  p99 {p99} ms"
        )
    for text in problems_of(rows):
        console.print_line(f"{now}  {text}")


def _print_json_lines(rows: Sequence[LiveEndpoint]) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    console.print_json_line({"time": now, "endpoints": [asdict(row) for row in rows]})


def _drawing(rows: Sequence[LiveEndpoint]) -> RenderableType:
    """Return what a terminal shows: the table, what is wrong, and how to end."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, overflow="fold", justify="right" if column.endswith(("/s", "ms")) else "left")
    for row in rows:
        table.add_row(*[Text("-" if cell is None else console.visible(str(cell))) for cell in _cells(row)])
    problems = [Text(console.visible(text), style="yellow") for text in problems_of(rows)]
    return Group(table if rows else Text(_NOBODY), *problems, Text("Ctrl-C ends this", style="dim"))
