"""What was asked for on this command line: the options that every command takes, and the settings they lead to."""

from __future__ import annotations

import shlex
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from noa.current_user import current_user
from noa.errors import InvalidInputError, NotFoundError, SettingsError

if TYPE_CHECKING:
    from noa.settings import LoadedSettings, Settings

# Errors land in logs: what may hold a password or a key is not repeated in them.
_MAY_HOLD_SECRETS = ("serving.api_keys", "serving.client_key", "registry.database_url")


@dataclass(slots=True)
class Invocation:
    """The options of one call of `noa`; filled while the command line is parsed."""

    debug: bool = False
    as_json: bool = False
    directory: Path = field(default_factory=Path.cwd)
    profile: str | None = None
    config_files: tuple[Path, ...] = ()
    overrides: tuple[str, ...] = ()
    missing_folder: Path | None = None  # where this project's state goes, if nothing was there when the command began
    typed_before: str = ""  # the part of a word that the shell holds for a word of its own while it is completed

    def load(self) -> LoadedSettings:
        """Read the settings in force.

        Raises:
            SettingsError: a layer is malformed or invalid.
        """
        from noa.settings import load_settings

        if not self.directory.is_dir():
            raise InvalidInputError("no such project folder", where=str(self.directory))
        return load_settings(
            self.directory,
            profile=self.profile,
            config_files=self.config_files,
            overrides=self.overrides,
        )

    def settings(self) -> Settings:
        """Return the settings of the project we stand in.

        Raises:
            NotFoundError: there is no `noa.toml` here or above.
        """
        loaded = self.load()
        if loaded.project_file is None:
            raise NotFoundError(
                "no `noa.toml` here or in a folder above",
                where=str(self.directory.absolute()),
                remedy="Make a project with `noa init`, or name its folder with `--directory`",
            )
        state_dir = loaded.settings.state_dir
        if not state_dir.exists():
            self.missing_folder = state_dir
        return loaded.settings

    def settings_or_place(self) -> tuple[Settings, SettingsError | None]:
        """Return the settings of the project we stand in; where these are invalid, those that say where its state is,
        and the error.

        Raises:
            NotFoundError: there is no `noa.toml` here or above.
            SettingsError: what is wrong was said on the command line, which may have meant another place.
        """
        from noa.settings import load_place, load_settings

        try:
            return self.settings(), None
        except SettingsError as exc:
            try:
                load_settings(self.directory)
            except SettingsError:
                pass
            else:
                raise
            place = load_place(
                self.directory, profile=self.profile, config_files=self.config_files, overrides=self.overrides
            )
            return place, exc

    def command_line(self, *arguments: str) -> str:
        """Return a command of noa to copy, with those options of this call that decide what it works on."""
        common: list[str] = [] if self.directory.resolve() == Path.cwd() else ["--directory", str(self.directory)]
        common += [] if self.profile is None else ["--profile", self.profile]
        common += [word for file in self.config_files for word in ("--config", str(file))]
        shown = [override for override in self.overrides if not override.startswith(_MAY_HOLD_SECRETS)]
        common += [word for override in shown for word in ("--override", override)]
        return shlex.join(["noa", *arguments, *common])


_CURRENT: ContextVar[Invocation] = ContextVar("invocation")


def begin() -> Invocation:
    """Start a new invocation and make it the current one."""
    invocation = Invocation()
    _CURRENT.set(invocation)
    return invocation


def current() -> Invocation:
    """Return the invocation of the command that runs."""
    try:
        return _CURRENT.get()
    except LookupError:
        return begin()


def actor() -> str:
    """Return who acts, for the ledger."""
    return current_user()
