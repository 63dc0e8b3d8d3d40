"""The tree of commands. Importing it loads typer and our command modules, and no room and no framework."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any

import typer

from noa_cli._command import (
    ConfigOption,
    DebugOption,
    DirectoryOption,
    OverrideOption,
    ProfileOption,
    add_command,
    keep_common,
)
from noa_cli.commands import (
    api_keys,
    bench,
    convert,
    demo,
    doctor,
    endpoints,
    events,
    flows,
    formats,
    gc,
    keys,
    ledger,
    models,
    optimize,
    package,
    predict,
    project,
    runs,
    serve,
    services,
    sweep,
    train,
    verify_formats,
)
from noa_cli.commands import config as config_commands


def _version(value: bool) -> None:
    if value:
        from noa import __version__

        typer.echo(f"noa {__version__}")
        raise typer.Exit


@functools.cache
def command() -> Callable[..., Any]:
    """Return the tree of commands, made once in a process: it takes longer than many a command."""
    return typer.main.get_command(build())


def build() -> typer.Typer:
    """Return the application with all commands."""
    app = typer.Typer(
        name="noa",
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="noa: one platform for the life of a model. Start with [bold]noa demo[/bold] or [bold]noa init[/bold].",
    )

    @app.callback()
    def root(  # pyright: ignore[reportUnusedFunction]  # typer keeps it
        override: OverrideOption = None,
        directory: DirectoryOption = None,
        profile: ProfileOption = None,
        config: ConfigOption = None,
        debug: DebugOption = False,
        version: Annotated[
            bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
        ] = False,
    ) -> None:
        keep_common(override, directory, profile, config, debug)

    def add(function: Callable[..., Any], panel: str) -> None:
        add_command(app, function, panel=panel)

    add(demo.demo, "Start here")
    add(project.init, "Start here")
    add(doctor.doctor, "Start here")
    add(train.train, "Models")
    add(sweep.sweep, "Models")
    app.add_typer(runs.build(), name="runs", rich_help_panel="Models")
    app.add_typer(models.build(), name="models", rich_help_panel="Models")
    app.add_typer(ledger.build(), name="ledger", rich_help_panel="Models")
    app.add_typer(keys.build(), name="keys", rich_help_panel="Models")
    add(convert.convert, "Models")
    add(verify_formats.verify, "Models")
    add(optimize.optimize, "Models")
    add(formats.formats, "Models")
    add(gc.gc, "Models")
    add(serve.serve, "Serving")
    add(predict.predict, "Serving")
    add(bench.bench, "Serving")
    app.add_typer(endpoints.build(), name="endpoints", rich_help_panel="Serving")
    add(package.package, "Serving")
    app.add_typer(api_keys.build(), name="api-keys", rich_help_panel="Serving")
    add(services.up, "Operation")
    add(services.down, "Operation")
    add(services.status, "Operation")
    app.add_typer(events.build(), name="events", rich_help_panel="Operation")
    app.add_typer(flows.build(), name="flows", rich_help_panel="Operation")
    app.add_typer(config_commands.build(), name="config", rich_help_panel="Operation")
    return app
