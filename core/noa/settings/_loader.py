"""Lay the sources over each other, check the result, and remember where each value came from.

The environment and the user's own file are read here and nowhere else, so that a program that calls `load_settings`
sees what the command line sees.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

from pydantic import BaseModel, ValidationError

from noa.errors import SettingsError
from noa.settings._named_files import refuse_special_files
from noa.settings._sources import (
    KeyPath,
    Source,
    Table,
    leaves,
    merge,
    read_environment,
    read_overrides,
    read_toml,
    without,
)
from noa.settings.models import Settings

PROJECT_FILE = "noa.toml"
_PROFILES = "profiles"
_GATES = "gates"
_PLACE = ("project.state_dir", "flows.start_timeout_s", "flows.stop_timeout_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSettings:
    """The settings in force, and for each key that is not a default the source that set it."""

    settings: Settings
    origins: Mapping[str, str]
    project_file: Path | None


def find_project(start: Path) -> Path | None:
    """Return the nearest `noa.toml` in `start` or above it."""
    for folder in (start, *start.parents):
        candidate = folder / PROJECT_FILE
        if candidate.is_file():
            return candidate
        if candidate.exists() or candidate.is_symlink():  # a parent's file must not take its place in silence
            raise SettingsError(f"`{PROJECT_FILE}` is no regular file", where=str(candidate), remedy="Move it away")
    return None


def user_settings_file(environ: Mapping[str, str]) -> Path:
    """Return where the user's own settings are, by the XDG rule."""
    base = environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "noa" / PROJECT_FILE


def load_settings(
    start: Path,
    *,
    environ: Mapping[str, str] | None = None,
    user_file: Path | None = None,
    profile: str | None = None,
    config_files: Sequence[Path] = (),
    overrides: Sequence[str] = (),
    outside: Collection[str] | None = None,
) -> LoadedSettings:
    """Read all layers, low to high: defaults, user file, project file, profile, `config_files`, environment, overrides.

    `environ` is by default the environment of this process, `user_file` the user's own. `outside` names the only keys
    that these two may set, `None` meaning all: a project that must not write where the user's others are gives what it
    allows. With `()` neither of the two is read.

    Raises:
        SettingsError: a file is malformed, a key unknown, a value invalid or the profile missing; names the place.
    """
    project_file = find_project(start.absolute())
    variables = os.environ if environ is None else environ
    own_file = _own_file() if user_file is None else user_file
    if outside is not None and not outside:
        variables, own_file = {}, None
    sources = list(_file_sources(own_file, project_file, profile))
    sources += [read_toml(path) for path in config_files]
    sources += [read_environment(variables), read_overrides(overrides)]
    for source in sources:
        _refuse_unknown(source)
        _refuse_gates_outside_of_files(source)
    if outside is not None:
        limited = ("environment", str(own_file))
        sources = [_only(source, outside) if source.origin in limited else source for source in sources]
    return _lay(sources, project_file=project_file, start=start)


def load_place(
    start: Path, *, profile: str | None = None, config_files: Sequence[Path] = (), overrides: Sequence[str] = ()
) -> Settings:
    """Return settings that say only where a project's state is, and how long its processes get, of what is readable.

    For what must work while the settings are not valid, such as stopping what runs: what is malformed is passed over.

    Raises:
        SettingsError: a `noa.toml` is no regular file.
    """
    project_file = find_project(start.absolute())
    root = project_file.parent if project_file else start.absolute()
    table: Table = {}
    for source in _readable_sources(project_file, profile, config_files, overrides):
        merged = merge(table, _only(source, _PLACE).table)
        with suppress(ValidationError):
            Settings.model_validate(merged)
            table = merged
    return Settings.model_validate(table).resolved(root)


def load_carried_settings(start: Path, carried: Mapping[str, object], *, replaced: Collection[str]) -> LoadedSettings:
    """Lay what another process rendered over the project's file, of which the keys in `replaced` are not read.

    Neither the environment nor the user's file is read: what they said is in `carried`, which may hold gates, for it
    comes from a process that has read them in files.

    Raises:
        SettingsError: the project's file is no longer valid.
    """
    project_file = find_project(start.absolute())
    sources = [
        replace(source, table=without(source.table, replaced)) for source in _file_sources(None, project_file, None)
    ]
    sources.append(Source(origin="the settings at the start", table=dict(carried)))
    for source in sources:
        _refuse_unknown(source)
    return _lay(sources, project_file=project_file, start=start)


def model_at(dotted: str) -> tuple[type[BaseModel], str] | None:
    """Return the section and field that a dotted key names, or None."""
    return _model_at(tuple(dotted.split(".")))


def table_around(dotted: str) -> str | None:
    """Return the setting whose value is a plain table that holds this key, e.g. `registry.principals`, or None."""
    parts = tuple(dotted.split("."))
    depths = range(1, len(parts))
    return next((".".join(parts[:depth]) for depth in depths if _is_plain_table(parts[:depth])), None)


def closest_key(dotted: str) -> str | None:
    """Return the setting that was meant perhaps by a key that is none, or None."""
    return _closest(tuple(dotted.split(".")))


def is_for_files_only(dotted: str) -> bool:
    """Tell whether neither the environment nor `-o` may set this key."""
    return dotted.partition(".")[0] == _GATES


def _own_file() -> Path | None:
    try:
        return user_settings_file(os.environ)
    except RuntimeError:  # a user without a home, as in some containers, has no file there
        return None


def _readable_sources(
    project_file: Path | None, profile: str | None, config_files: Sequence[Path], overrides: Sequence[str]
) -> Iterator[Source]:
    for path in (_own_file(), project_file):
        if path is not None and path.exists():
            with suppress(SettingsError):
                source = read_toml(path)
                profiles = source.table.pop(_PROFILES, {})
                yield source
                if profile is not None and isinstance(profiles, dict) and isinstance(profiles.get(profile), dict):
                    yield Source(origin=profile, table=cast("Table", profiles[profile]))
    for read in (*(partial(read_toml, path) for path in config_files), partial(read_environment, os.environ)):
        with suppress(SettingsError):
            yield read()
    for pair in overrides:
        with suppress(SettingsError):
            yield read_overrides([pair])


def _lay(sources: Sequence[Source], *, project_file: Path | None, start: Path) -> LoadedSettings:
    table: Table = {}
    origins: dict[str, str] = {}
    below: dict[str, set[str]] = {}  # the keys at and below each key
    for source in sources:
        table = merge(table, source.table)
        for key in leaves(source.table):
            dotted = ".".join(key)
            for shadowed in below.pop(dotted, ()):
                origins.pop(shadowed, None)
            origins[dotted] = _origin_of(source, key)
            for end in (*(index for index, char in enumerate(dotted) if char == "."), len(dotted)):
                below.setdefault(dotted[:end], set()).add(dotted)
    root = project_file.parent if project_file else start.absolute()
    try:
        settings = Settings.model_validate(table)
    except ValidationError as exc:
        raise _explain(exc, sources) from exc
    settings = settings.resolved(root)
    refuse_special_files(settings, origins)
    return LoadedSettings(settings=settings, origins=origins, project_file=project_file)


def _only(source: Source, keys: Collection[str]) -> Source:
    """Return a source with no other keys than these."""
    table: Table = {}
    for path, value in leaves(source.table).items():
        if ".".join(path) in keys:
            inner: Table = {path[-1]: value}
            for part in reversed(path[:-1]):
                inner = {part: inner}
            table = merge(table, inner)
    return replace(source, table=table)


def _model_at(parts: KeyPath) -> tuple[type[BaseModel], str] | None:
    section: type[BaseModel] = Settings
    index = 0
    while index < len(parts):
        part = parts[index]
        field = section.model_fields.get(part)
        if field is None or (section is Settings and part == "root"):
            return None
        if index == len(parts) - 1:
            return section, part
        inner = _inner_section(field.annotation)
        if inner is None:
            return None
        owner, (section, is_table) = section, inner
        index += 1
        if is_table:  # the next part is a name chosen by the user
            index += 1
            if index == len(parts):
                return owner, part
    return None


def _inner_section(annotation: object) -> tuple[type[BaseModel], bool] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    for argument in cast("tuple[object, ...]", getattr(annotation, "__args__", ())):
        if isinstance(argument, type) and issubclass(argument, BaseModel):
            return argument, True
    return None


def _file_sources(user_file: Path | None, project_file: Path | None, profile: str | None) -> Iterator[Source]:
    profiles: dict[str, Source] = {}
    for path in (user_file, project_file):
        if path is None or not (path == project_file or path.exists()):
            continue
        source = read_toml(path)
        tables = source.table.pop(_PROFILES, {})
        if not isinstance(tables, dict):
            raise SettingsError(f"`{_PROFILES}` must be a table", where=source.locate((_PROFILES,)))
        for name, table in cast("dict[str, Table]", tables).items():
            profiles[name] = Source(origin=f"{source.origin} [{_PROFILES}.{name}]", table=table)
        yield source
    if profile is not None:
        if profile not in profiles:
            raise SettingsError(
                f"no profile `{profile}`",
                where=str(project_file or user_file),
                expected=", ".join(sorted(profiles)) or f"a table [{_PROFILES}.{profile}]",
                received=profile,
            )
        yield profiles[profile]


def _origin_of(source: Source, path: KeyPath) -> str:
    if source.origin == "environment":
        return f"environment NOA__{'__'.join(path).upper()}"
    return source.locate(path)


def _refuse_unknown(source: Source) -> None:
    for path in leaves(source.table):
        for depth in range(1, len(path) + 1):
            here = path[:depth]
            if _model_at(here) is not None:
                continue
            if _is_inside_value(here):
                break
            known = _siblings(here[:-1])
            close = _closest(here)
            raise SettingsError(
                f"unknown setting `{'.'.join(here)}`",
                where=_origin_of(source, path),
                expected=None if close or not known else ", ".join(sorted(known)),
                remedy=f"Did you mean `{close}`?" if close else "See `noa config schema`",
                key=".".join(here),
            )


def _refuse_gates_outside_of_files(source: Source) -> None:
    """A gate that one command or one shell may change guards nothing: it is written where others see it."""
    if not source.is_file and (
        path := next((path for path in leaves(source.table) if is_for_files_only(path[0])), None)
    ):
        raise SettingsError(
            "a gate cannot be changed for one command",
            where=_origin_of(source, path),
            expected=f"gates in a file: `{PROJECT_FILE}`, a profile of it, or `--config FILE`",
            received=".".join(path),
            remedy=f"Change `[{'.'.join(path[:2])}]` in `{PROJECT_FILE}`",
            key=".".join(path),
        )


def _is_inside_value(path: KeyPath) -> bool:
    """Tell whether some prefix names a field that is itself a plain table, such as `gates.digits.min_metrics`."""
    return any(_is_plain_table(path[:depth]) for depth in range(1, len(path)))


def _is_plain_table(path: KeyPath) -> bool:
    found = _model_at(path)
    if found is None:
        return False
    annotation = found[0].model_fields[found[1]].annotation
    return _inner_section(annotation) is None and str(annotation).startswith("dict")


def _closest(path: KeyPath) -> str | None:
    for depth in range(1, len(path) + 1):
        here = path[:depth]
        if _model_at(here) is None:
            close = difflib.get_close_matches(here[-1], _siblings(here[:-1]), n=1)
            if not close:
                return None
            meant = (*here[:-1], *close)
            return _closest((*meant, *path[depth:])) or ".".join(meant)
    return ".".join(path)


def _siblings(parent: KeyPath) -> list[str]:
    section: type[BaseModel] = Settings
    is_name = False
    for part in parent:
        if is_name:
            is_name = False
            continue
        field = section.model_fields.get(part)
        inner = _inner_section(field.annotation) if field else None
        if inner is None:
            return []
        section, is_name = inner
    return [name for name in section.model_fields if not (section is Settings and name == "root")]


def _explain(error: ValidationError, sources: Sequence[Source]) -> SettingsError:
    first = error.errors(include_url=False, include_input=True)[0]
    wanted = tuple(str(part) for part in first["loc"] if part != "[key]")
    dotted = ".".join(wanted)
    origin = next(
        (
            _origin_of(source, path)
            for source in reversed(sources)
            for path in leaves(source.table)
            if path[: len(wanted)] == wanted or wanted[: len(path)] == path
        ),
        "defaults",
    )
    message = re.sub(r"^Value error, ", "", first["msg"])
    received = first.get("input")
    hides_input = "key" in dotted or "secret" in dotted or wanted[:1] == ("webhooks",)
    hides_input = hides_input or isinstance(received, dict) or first["type"] == "value_error"
    return SettingsError(
        f"setting `{dotted}` is not valid: {message}" if dotted else f"the settings are not valid: {message}",
        where=origin,
        received=None if hides_input else repr(received),
        remedy=f"See `noa config explain {dotted}`" if _model_at(wanted) else None,
        key=dotted,
    )
