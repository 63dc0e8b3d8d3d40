"""`noa serve`: answer requests in the foreground, until Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noa_cli import _console as console
from noa_cli._invocation import current
from noa_cli._options import JsonOption
from noa_cli._registry import open_registry

if TYPE_CHECKING:
    from types import FrameType

    from noa.settings import EndpointSettings, PipelineSettings, Settings
    from noa_serving import ServerProcess


def serve(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            help="`name@alias` or `name/number` (repeatable), or endpoints of noa.toml (default: all of them)."
        ),
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option("--port", "-p", min=0, max=65535, help="Port; 0: a free one.")] = None,
    grpc_port: Annotated[
        int | None, typer.Option("--grpc-port", min=0, max=65535, help="Port for gRPC as well; 0: a free one.")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option("--format", help="Which format computes; `auto`: the fastest that is proven (default: as set)."),
    ] = None,  # our word
    workers: Annotated[int | None, typer.Option("--workers", "-w", min=1, help="Worker processes.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve models over the Open Inference Protocol and POST /predict; follows an alias when it moves."""
    from noa_serving import check_endpoints, is_open, start_server

    settings = current().settings()
    endpoints = choose_endpoints(settings, what or [])
    if format is not None:
        endpoints = {name: rule.model_copy(update={"format": format}) for name, rule in endpoints.items()}
    with open_registry(settings, about=[rule.model for rule in endpoints.values()], makes=True):
        check_endpoints(settings, endpoints)
    log_file = settings.state_dir / "logs" / "serve.log"
    with console.step("Starting the server"), _own_service_named(settings):
        server = start_server(
            settings,
            endpoints=endpoints,
            host=host,
            port=port,
            workers=workers,
            grpc_port=grpc_port,
            log_file=log_file,
        )
        address = server.wait_ready(settings.flows.start_timeout_s)
    _forward_signals(server)
    if as_json:
        table: dict[str, object] = {"url": address.url, "pid": address.pid, "endpoints": list(endpoints)}
        table |= {"pipelines": list(server.command.request.settings.pipelines)}
        console.print_json(table if address.grpc_target is None else {**table, "grpc": address.grpc_target})
    else:
        is_unguarded = is_open(server.command.request.settings.serving)
        pipelines = server.command.request.settings.pipelines
        _tell(address.url, address.grpc_target, endpoints, pipelines, log_file, is_open=is_unguarded)
    raise typer.Exit(server.wait())


@contextmanager
def _own_service_named(settings: Settings) -> Generator[None]:
    """Let the error that a port is in use advise to stop the project's own service where that has it."""
    from noa.errors import ConflictError

    try:
        yield
    except ConflictError as exc:
        from noa_flows import service_at

        port = exc.facts.get("port")
        name = service_at(settings, port) if isinstance(port, int) else None
        if name is not None:
            stop = current().command_line("down", "--only", name)
            exc.remedy = (
                f"That is this project's own service `{name}`. Stop it with: {stop}; or choose another port "
                "with `--port` (0: a free one)"
            )
        raise


def choose_endpoints(settings: Settings, what: list[str]) -> dict[str, EndpointSettings]:
    """Return the endpoints to serve by name.

    Raises:
        NotFoundError: nothing is named and noa.toml has no endpoint, or a name is none.
    """
    from noa.errors import NotFoundError
    from noa.references import parse_reference
    from noa.settings import EndpointSettings

    if not what:
        if not settings.endpoints:
            raise NotFoundError(
                "there is nothing to serve",
                where=str(settings.root / "noa.toml"),
                expected="a table [endpoints.NAME] or an argument such as digits@champion",
            )
        return dict(settings.endpoints)
    chosen: dict[str, EndpointSettings] = {}
    for text in what:
        reference = parse_reference(text)
        if reference.alias is not None or reference.number is not None:
            chosen[reference.name] = EndpointSettings(model=text)
        elif text in settings.endpoints:
            chosen[text] = settings.endpoints[text]
        elif text in settings.pipelines:
            chosen |= {name: settings.endpoints[name] for name in sorted(settings.pipelines[text].endpoints)}
        else:
            raise NotFoundError(
                f"no endpoint `{text}`",
                where=str(settings.root / "noa.toml"),
                expected=", ".join(settings.endpoints) or "a reference such as digits@champion",
                received=text,
                remedy=f"Serve a version by `{text}@champion`, or add [endpoints.{text}] to noa.toml",
            )
    return chosen


def _tell(
    url: str,
    grpc: str | None,
    endpoints: dict[str, EndpointSettings],
    pipelines: dict[str, PipelineSettings],
    log_file: Path,
    *,
    is_open: bool,
) -> None:
    if is_open:
        console.note("Anybody who reaches this address is answered without a key", "bold red")
    console.print_line(f"Serving on {url}  (Ctrl-C ends it; log: {log_file})")
    rows = {name: f"{rule.model} as {rule.format}" for name, rule in endpoints.items()}
    for name, text in {**rows, **{name: one.shown for name, one in pipelines.items()}}.items():
        console.print_line(f"  {name}: {text}")
        console.print_line(f"    POST {url}/predict/{name}")
        console.print_line(f"    POST {url}/v2/models/{name}/infer")
    if grpc is not None:
        console.print_line(f"  gRPC: {grpc}")
    console.print_line(f"  docs: {url}/docs   metrics: {url}/metrics")


def _forward_signals(server: ServerProcess) -> None:
    """Let the server finish its requests when somebody ends us; one that has ended already is left alone."""

    def forward(number: int, _frame: FrameType | None) -> None:
        server.ask_to_end()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
