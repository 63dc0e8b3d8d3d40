"""`noa endpoints traffic`: how the requests of an endpoint are split, and what its shadows have shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._invocation import current
from noa_cli._options import JsonOption

if TYPE_CHECKING:
    from noa_serving.traffic_report import ArmTraffic

_COLUMNS = (
    *("arm", "model", "version", "digest", "share", "requests", "errors"),
    *("agreement", "latency ratio", "verdict", "address"),
)


def traffic(
    endpoint: Annotated[str, typer.Argument(help="An endpoint by name.")],
    as_json: JsonOption = False,
) -> None:
    """Show how an endpoint's requests are split between versions, and what shadows have shown so far."""
    from noa.errors import NotFoundError
    from noa_serving import running_servers
    from noa_serving.live import look
    from noa_serving.traffic_report import report

    servers = running_servers(current().settings().state_dir)
    rows = [row for server in servers for row in report(look(server), endpoint)]
    if not rows:
        names = sorted({f"`{name}`" for server in servers for name in server.settings.endpoints})
        raise NotFoundError(
            f"no running server of this project has an endpoint `{endpoint}`",
            expected=", ".join(names) or "a running server",
            remedy="List what runs with `noa endpoints list`, or start a server with `noa serve`",
        )
    if as_json:
        console.print_json([asdict(row) for row in rows])
        return
    console.print_table(_COLUMNS, [_cells(row) for row in rows])
    _tell(rows)


def _cells(row: ArmTraffic) -> list[object]:
    return [
        *(row.name if row.mode != "shadow" else f"{row.name} (shadow)", row.model, row.version),
        row.digest and console.short_digest(row.digest),
        None if row.share is None else f"{row.share * 100:.3g}%",
        *(f"{row.requests:,}", f"{row.errors:,}"),
        _with_interval(row),
        None if row.latency_ratio is None else f"{row.latency_ratio:.2f}",
        row.verdict or (row.state if row.mode == "shadow" else None),
        row.address,
    ]


def _with_interval(row: ArmTraffic) -> str | None:
    """Return the agreement and within which bounds it is, however often one looks."""
    interval = row.interval("agreement")
    if row.agreement is None or interval is None:
        return None
    return f"{row.agreement:.4f} ({interval[0]:.4f} to {interval[1]:.4f})"


def _tell(rows: Sequence[ArmTraffic]) -> None:
    """Say in words what the table has no room for."""
    for row in rows:
        if row.mode != "shadow":
            continue
        if row.waits_for is not None:
            console.print_line(f"{row.name}: waits for {row.waits_for}")
        elif row.verdict is not None:
            console.print_line(f"{row.name}: {row.verdict}: {row.reason}; {row.done or 'not carried out yet'}")
        if row.dropped:
            console.note(f"{row.name}: {row.dropped:,} requests were not compared: there was no room for them")
        for name, output in (row.outputs or {}).items():
            agreement, mean, most = output["agreement"], output["mean_difference"], output["max_difference"]
            text = f"{row.name}: output {name}: agreement {agreement:.4f}" if agreement is not None else ""
            if text and mean is not None:
                text += f", difference {mean:.3g} in the mean and {most:.3g} at most"
            if text and output["stability_index"] is not None:
                text += f", stability index {output['stability_index']:.3g}"
            if text:
                console.print_line(text)
