"""What every command gets: the common options, before or after its name, and completion of its parameters by name.

typer reads a command's options from its signature; `with_common_options` lengthens that signature and keeps the values
in the current invocation before the command runs. `_completion.py` says what completes which parameter.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand
from typer.models import ArgumentInfo, OptionInfo

from noa_cli._completion import ARGUMENTS, OPTIONS
from noa_cli._invocation import current

_PANEL = "Everywhere"
_ReturnT = TypeVar("_ReturnT")

OverrideOption = Annotated[
    list[str] | None,
    typer.Option(
        "--override",
        "-o",
        metavar="KEY=VALUE",
        help="Set one setting, e.g. serving.port=0.",
        rich_help_panel=_PANEL,
        autocompletion=OPTIONS["override"],
    ),
]
DirectoryOption = Annotated[
    Path | None,
    typer.Option(
        "--directory",
        "-C",
        metavar="DIR",
        help="The project's folder.",
        rich_help_panel=_PANEL,
        autocompletion=OPTIONS["directory"],
    ),
]
ProfileOption = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME", help="A profile of the settings.", rich_help_panel=_PANEL),
]
ConfigOption = Annotated[
    list[Path] | None,
    typer.Option("--config", metavar="FILE", help="One more settings file.", rich_help_panel=_PANEL),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=_PANEL)]


def keep_common(
    override: list[str] | None, directory: Path | None, profile: str | None, config: list[Path] | None, debug: bool
) -> None:
    """Add options to the current invocation; what stands later on the command line wins."""
    invocation = current()
    invocation.overrides += tuple(override or ())
    invocation.config_files += tuple(config or ())
    # One name for one folder, however it was spelled: paths below it are recorded and compared.
    invocation.directory = invocation.directory if directory is None else directory.resolve()
    invocation.profile = profile or invocation.profile
    invocation.debug = invocation.debug or debug


_COMMON: dict[str, tuple[Any, object]] = {
    "override": (OverrideOption, None),
    "directory": (DirectoryOption, None),
    "profile": (ProfileOption, None),
    "config": (ConfigOption, None),
    "debug": (DebugOption, False),
}


def with_common_options(function: Callable[..., _ReturnT]) -> Callable[..., _ReturnT]:
    """Return `function` with the common options added to its signature."""

    @functools.wraps(function)
    def command(**arguments: Any) -> _ReturnT:
        keep_common(*(arguments.pop(name) for name in _COMMON))
        return function(**arguments)

    hints = get_type_hints(function, include_extras=True)
    own = [
        parameter.replace(
            annotation=_completed(parameter.name, hints[parameter.name]), kind=inspect.Parameter.KEYWORD_ONLY
        )
        for parameter in inspect.signature(function).parameters.values()
    ]
    taken = {flag for parameter in own for flag in _flags(parameter.annotation)}
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=_without(annotation, taken))
        for name, (annotation, default) in _COMMON.items()
    ]
    lengthened: Any = command
    lengthened.__signature__ = inspect.Signature([*own, *added])
    lengthened.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *added]}
    return command


def _flags(hint: Any) -> tuple[str, ...]:
    """Return the ways in which an option is written; none for an argument."""
    marks = get_args(hint) if get_origin(hint) is Annotated else ()
    return tuple(flag for mark in marks if isinstance(mark, OptionInfo) for flag in mark.param_decls or ())


def _without(hint: Any, taken: set[str]) -> Any:
    """Return a common option without the flags that the command has for itself, as `-o` of an output."""
    if not taken & set(_flags(hint)):
        return hint
    kind, mark = get_args(hint)
    shortened = copy.copy(mark)
    shortened.param_decls = tuple(flag for flag in mark.param_decls if flag not in taken)
    return Annotated[kind, shortened]


def _completed(name: str, hint: Any) -> Any:
    """Return a parameter's annotation with what completes it."""
    if get_origin(hint) is not Annotated:
        return hint
    kind, *marks = get_args(hint)
    for index, mark in enumerate(marks):
        completers = ARGUMENTS if isinstance(mark, ArgumentInfo) else OPTIONS if isinstance(mark, OptionInfo) else {}
        if name in completers:
            marks[index] = copy.copy(mark)
            marks[index].autocompletion = completers[name]
    return Annotated[kind, *marks]


def new_group(summary: str) -> typer.Typer:
    """Return an empty group of commands."""
    return typer.Typer(no_args_is_help=True, help=summary)


def add_command(
    group: typer.Typer,
    function: Callable[..., Any],
    *,
    name: str | None = None,
    panel: str | None = None,
    kind: type[TyperCommand] | None = None,
) -> None:
    """Add a command with the common options to a group; `kind` is how its command line is read, if not as usual."""
    group.command(name=name, cls=kind, rich_help_panel=panel)(with_common_options(function))
