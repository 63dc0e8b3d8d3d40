"""Where settings come from: each source gives a nested table, and says where each of its keys stands."""

from __future__ import annotations

import codecs
import json
import os
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, cast

from noa.errors import InvalidInputError, SettingsError
from noa.regular_files import open_regular

Table = dict[str, object]
KeyPath = tuple[str, ...]
ENV_PREFIX = "NOA__"
MAX_FILE_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32
"""Of tables and lists within each other."""
_SHOWN: Final = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One layer. `origin` names it for people; `text` is the file's text, to find lines."""

    origin: str
    table: Table
    text: str | None = None
    is_file: bool = True

    def locate(self, path: KeyPath) -> str:
        """Return the origin of a key, with its line and column where the source is a file."""
        place = None if self.text is None else _find_place(self.text, ".".join(path))
        return self.origin if place is None else f"{self.origin}:{place[0]}:{place[1]}"


def read_toml(path: Path) -> Source:
    """Read one TOML file.

    Raises:
        SettingsError: not readable, no regular file, too large, or malformed; the message has line and column.
    """
    try:
        with open_regular(path) as file:
            data = file.read(MAX_FILE_BYTES + 1)
        text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except InvalidInputError as exc:
        raise SettingsError(
            f"the settings cannot be read: {exc.what}",
            where=str(path),
            expected=exc.expected,
            remedy="Name a file in it"
            if exc.received == "a folder"
            else "Write it to a file first, and name that file",
        ) from exc
    except FileNotFoundError as exc:
        raise SettingsError("no such settings file", where=str(path)) from exc
    except UnicodeDecodeError as exc:
        raise SettingsError("a settings file is not UTF-8 text", where=str(path), received=f"byte {exc.start}") from exc
    except OSError as exc:
        reason = os.strerror(exc.errno or 0).lower()
        raise SettingsError(f"cannot read the settings: {reason}", where=str(path)) from exc
    if len(data) > MAX_FILE_BYTES:
        raise SettingsError(
            "a settings file is too large", where=str(path), expected=f"at most {MAX_FILE_BYTES} bytes", received="more"
        )
    try:
        table = tomllib.loads(text)
    except RecursionError as exc:
        raise _too_deep(str(path)) from exc
    except tomllib.TOMLDecodeError as exc:
        message = str(exc)
        position = re.search(r"\(at line (\d+), column (\d+)\)", message)
        where = f"{path}:{position[1]}:{position[2]}" if position else f"{path}:{text.count(chr(10)) + 1}"
        what = re.sub(r"\s*\(at .*\)$", "", message)
        place = f"line {position[1]}, column {position[2]}" if position else "the end of the file"
        raise SettingsError(f"malformed TOML at {place}: {what}", where=where, remedy="Correct the file") from exc
    except ValueError as exc:  # Python reads no whole number of thousands of digits
        raise SettingsError(
            "malformed TOML: a value cannot be held, such as a number of thousands of digits",
            where=str(path),
            remedy="Correct the file",
        ) from exc
    _check_depth(table, str(path))
    return Source(origin=str(path), table=table, text=text)


def read_environment(environ: Mapping[str, str]) -> Source:
    """Read all `NOA__SECTION__KEY` variables. Values are JSON where they parse as JSON, else text."""
    table: Table = {}
    for name in sorted(environ):
        if name.upper().startswith(ENV_PREFIX):
            path = [part.lower() for part in name[len(ENV_PREFIX) :].split("__")]
            origin = f"environment variable {name}"
            _insert(table, path, _parse_value(environ[name], origin=origin), origin=origin)
    return Source(origin="environment", table=table, is_file=False)


def read_overrides(pairs: Sequence[str]) -> Source:
    """Read `-o section.key=value` pairs.

    Raises:
        SettingsError: a pair has no `=`.
    """
    table: Table = {}
    for pair in pairs:
        key, mark, value = pair.partition("=")
        if not mark or not key.strip():
            raise SettingsError("an override is not readable", where=f"-o {pair}", expected="-o section.key=value")
        _insert(table, key.strip().split("."), _parse_value(value, origin=f"-o {pair}"), origin=f"-o {pair}")
    return Source(origin="-o", table=table, is_file=False)


def merge(base: Table, over: Table) -> Table:
    """Return `base` with the keys of `over` laid on top; tables are merged, everything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        present = result.get(key)
        if isinstance(present, dict) and isinstance(value, dict):
            result[key] = merge(cast("Table", present), cast("Table", value))
        else:
            result[key] = value
    return result


def without(table: Table, keys: Collection[str], prefix: str = "") -> Table:
    """Return `table` less the dotted keys, each with all that is below it."""
    return {
        key: without(cast("Table", value), keys, f"{prefix}{key}.") if isinstance(value, dict) else value
        for key, value in table.items()
        if f"{prefix}{key}" not in keys
    }


def leaves(table: Table, prefix: KeyPath = ()) -> dict[KeyPath, object]:
    """Return all leaf values by path. Names chosen by users may hold dots, so paths are not joined."""
    result: dict[KeyPath, object] = {}
    for key, value in table.items():
        path = (*prefix, key)
        if isinstance(value, dict) and value:
            result.update(leaves(cast("Table", value), path))
        else:
            result[path] = value
    return result


def _insert(table: Table, path: Sequence[str], value: object, *, origin: str) -> None:
    if len(path) > MAX_DEPTH:
        raise _too_deep(origin)
    here = table
    for part in path[:-1]:
        below = here.setdefault(part, {})
        if not isinstance(below, dict):
            raise SettingsError(f"`{'.'.join(path)}` is set both as a value and as a table", where=origin)
        here = cast("Table", below)
    here[path[-1]] = value


def _parse_value(text: str, *, origin: str) -> object:
    try:
        value = cast("object", json.loads(text))
    except RecursionError as exc:
        raise _too_deep(origin) from exc
    except ValueError:
        return text
    _check_depth(value, origin)
    return value


def _check_depth(value: object, where: str) -> None:
    """Refuse what is nested so deeply that reading on would end in Python's own limit."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            entry
            for table in level
            for entry in (
                cast("Table", table).values()
                if isinstance(table, dict)
                else cast("list[object]", table)
                if isinstance(table, list)
                else ()
            )
        ]
        if not level:
            return
    raise _too_deep(where)


def _too_deep(where: str) -> SettingsError:
    shown = where if len(where) <= _SHOWN else f"{where[:_SHOWN]}..."
    return SettingsError("the settings are nested too deeply", where=shown, expected=f"at most {MAX_DEPTH} levels")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """Where keys stand in a text: the first line of each, and the last pair whose value may hold keys below."""

    first: Mapping[str, tuple[int, int]]
    pairs: Mapping[str, tuple[int, int, str]]


@lru_cache(maxsize=8)
def _places(text: str) -> _Places:
    """Read a text once: `[section]` headers give the prefix, `key =` pairs the rest."""
    section = ""
    first: dict[str, tuple[int, int]] = {}
    pairs: dict[str, tuple[int, int, str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        column = len(line) - len(line.lstrip()) + 1
        if header := re.match(r"\s*\[\[?\s*([^\]]+?)\s*\]", line):
            section = re.sub(r"[\"'\s]", "", header[1])
            key = section
        elif pair := re.match(r"\s*([A-Za-z0-9_\-.\"' ]+?)\s*=", line):
            key = re.sub(r"[\"'\s]", "", pair[1])
            key = f"{section}.{key}" if section else key
            pairs[key] = number, column, line
        else:
            continue
        first.setdefault(key, (number, column))
    return _Places(first=first, pairs=pairs)


def _find_place(text: str, dotted: str) -> tuple[int, int] | None:
    """Find line and column of a dotted key, or of the pair whose value holds it."""
    places = _places(text)
    if dotted in places.first:
        return places.first[dotted]
    ends = [index for index, char in enumerate(dotted) if char == "."]
    above = [(places.pairs[dotted[:end]], end) for end in ends if dotted[:end] in places.pairs]
    if not above:
        return None
    (number, column, line), end = max(above)
    inner = re.search(rf"[{{,]\s*([\"']?{re.escape(dotted[end + 1 :])}[\"']?)\s*=", line)
    return number, inner.start(1) + 1 if inner else column
