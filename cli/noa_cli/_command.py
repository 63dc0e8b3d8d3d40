"""The class of all commands: adds the options that every command takes, so that they may stand before or after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from typer.core import TyperCommand, TyperGroup, TyperOption

from noa_cli._invocation import current

_PANEL = "Everywhere"


class NoaCommand(TyperCommand):
    """A command with the common options; it may claim a short name such as `-o` for itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        taken = {name for parameter in self.params for name in parameter.opts}
        self.params.extend(_common_options(taken))


class NoaGroup(TyperGroup):
    """A group whose own command line takes the common options too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        taken = {name for parameter in self.params for name in parameter.opts}
        self.params.extend(_common_options(taken))


def _common_options(taken: set[str]) -> list[TyperOption]:
    def option(names: list[str], store: Callable[[Any], None], **kwargs: Any) -> TyperOption:
        def keep(_context: object, _parameter: object, value: Any) -> Any:
            if value not in (None, False, ()):
                store(value)
            return value

        free = [name for name in names if name not in taken]
        callback = cast("Any", keep)
        return TyperOption(
            param_decls=free, callback=callback, expose_value=False, rich_help_panel=_PANEL, required=False, **kwargs
        )

    def set_debug(_: bool) -> None:
        current().debug = True

    def set_directory(value: str) -> None:
        current().directory = Path(value)

    def set_profile(value: str) -> None:
        current().profile = value

    def add_config(values: tuple[str, ...]) -> None:
        current().config_files += tuple(Path(value) for value in values)

    def add_overrides(values: tuple[str, ...]) -> None:
        current().overrides += tuple(values)

    return [
        option(
            ["--override", "-o"],
            add_overrides,
            multiple=True,
            metavar="KEY=VALUE",
            help="Set one setting, e.g. serving.port=0.",
        ),
        option(
            ["--directory", "-C"],
            set_directory,
            metavar="DIR",
            help="The project's folder (default: this one or above).",
        ),
        option(["--profile"], set_profile, metavar="NAME", help="A [profiles.NAME] table of the settings."),
        option(["--config"], add_config, multiple=True, metavar="FILE", help="One more settings file."),
        option(["--debug"], set_debug, is_flag=True, help="Show the traceback of an error."),
    ]
