"""What a registry holds, in a form that two runs of the same operation have in common.

`database_state` is every row of noa's and of MLflow's tables about models, without what differs between two runs:
times, random names, and the digests of what holds one of these. `unexplained_files` are the files that no row explains.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fault_backing import s3_objects
from sqlalchemy import Connection, NullPool, Table, create_engine

from noa.settings import RegistrySettings
from noa_registry import Registry
from noa_registry.artifacts import OWNER_MARK
from noa_registry.store_head import LEDGER_MARK
from noa_registry.tables import commits, metadata, mlflow_metadata, schema

STORE_MARKS = {OWNER_MARK, LEDGER_MARK}
ADDED_FILE = "added-by-somebody.txt"
State = dict[str, list[list[Any]]]

_CHANGING = {commits.name, schema.name, "alembic_version"}
_TABLES = [table for table in (*metadata.sorted_tables, *mlflow_metadata.sorted_tables) if table.name not in _CHANGING]
_NUMBERS = {"id"}  # PostgreSQL leaves gaps where a transaction was undone
_VOLATILE = (
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(\+\d\d:\d\d|Z)?"), "<time>"),
    (re.compile(r"[0-9a-f]{64}"), "<digest>"),
    (re.compile(r"[0-9a-f]{32}"), "<uid>"),
    (re.compile(r"_set_aside/[0-9a-f]{8}"), "_set_aside/<random>"),
)
_FIRST_MS = 10**11


def database_state(settings: RegistrySettings) -> State:
    """Read all tables in one transaction."""
    with _connect(settings) as connection:
        return {table.name: _rows(connection, table) for table in _TABLES}


def differences(expected: State, found: State) -> list[str]:
    """Return what differs, a line per table."""
    lines: list[str] = []
    for table in expected.keys() | found.keys():
        mine, theirs = expected.get(table, []), found.get(table, [])
        if mine != theirs:
            lost = [row for row in mine if row not in theirs]
            extra = [row for row in theirs if row not in mine]
            lines.append(f"{table}: {len(mine)} rows expected, {len(theirs)} found; lost {lost[:2]}, extra {extra[:2]}")
    return sorted(lines)


def unexplained_files(settings: RegistrySettings, state_folder: Path) -> set[str]:
    """Return every file and folder below `state_folder` that nothing in the database explains.

    What lies inside a unit is compared by `Registry.verify`. The memory of verified files is a cache of bounded size.
    """
    units, purged = _units(settings)
    if settings.artifact_url:
        keys = s3_objects(settings)
        keys = {key for key in keys if key not in STORE_MARKS}
        return {key for key in keys if key.split("/")[1:2] == [] or key.split("/")[1] not in units - purged}
    root = settings.artifact_dir
    found: set[str] = set()
    for path in _below(state_folder):
        inner = path.relative_to(root) if path.is_relative_to(root) else None
        parts = () if inner is None else inner.parts
        match parts:
            case () | ("_cache", *_) | ("_staging" | "_imports" | "_blobs" | "_runs",) | ("_blobs", _):
                known = inner is not None or _is_expected(path.relative_to(state_folder))
            case ("_blobs", "units"):
                known = True
            case ("_set_aside", *_):  # nothing is thrown away that somebody put there; what noa wrote is another matter
                known = path.is_dir() or path.name == ADDED_FILE
            case ("_blobs", "units", _):
                known = path.is_dir()
            case ("_blobs", "units", _, uid):
                known = uid in units - purged
            case ("_blobs", _, name):
                known = not name.startswith(".") and path.stat().st_nlink > 1
            case (name,):
                known = not name.startswith("_") or name in STORE_MARKS
            case (_, uid, *_):
                known = uid in units - purged
            case _:
                known = False
        if not known:
            found.add(path.relative_to(state_folder).as_posix())
    return found


def standing_problems(registry: Registry, *, hashed_from: int = 1) -> list[str]:
    """Return what is wrong with a registry that somebody has just opened: nothing, whatever happened before.

    The files of versions from number `hashed_from` on are hashed.
    """
    problems = [f"ledger: {problem}" for problem in registry.ledger.verify().problems]
    problems += [f"mirror: {discrepancy}" for discrepancy in registry.mirror_discrepancies()]
    for model in registry.models():
        for number in registry.numbers(model.name):
            version = registry.resolve(f"{model.name}/{number}")
            if number >= hashed_from:
                problems += [f"{version.reference}: {problem}" for problem in registry.find_problems(version)]
            registry.evidence(model.name, number)
        for alias in model.aliases:
            registry.resolve(f"{model.name}@{alias}")
    return problems


def _connect(settings: RegistrySettings) -> Connection:
    return create_engine(settings.database_url, poolclass=NullPool).connect()


def _rows(connection: Connection, table: Table) -> list[list[Any]]:
    names = [column.name for column in table.columns]
    keys = ", ".join(column.name for column in table.primary_key.columns)
    # Text, not constructs: those are compiled anew for each engine, which takes longer than all the rest.
    rows = connection.exec_driver_sql(f"SELECT {', '.join(names)} FROM {table.name} ORDER BY {keys}").all()
    kept = [index for index, name in enumerate(names) if name not in _NUMBERS]
    found = [[_plain(row[index]) for index in kept] for row in rows]
    # Where the key is random, so is the order of the rows.
    return found if "id" in names or "sequence" in names else sorted(found, key=repr)


def _plain(value: Any) -> Any:
    if isinstance(value, int) and value > _FIRST_MS:
        return "<ms>"
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()[:64]
    if isinstance(value, str):
        for pattern, word in _VOLATILE:
            value = pattern.sub(word, value)
    return value


def _units(settings: RegistrySettings) -> tuple[set[str], set[str]]:
    """Return the uids that rows name, and those of versions whose files were purged."""
    named = "SELECT uid, name, number FROM noa_versions UNION SELECT uid, name, number FROM noa_formats"
    with _connect(settings) as connection:
        rows = connection.exec_driver_sql(named).all()
        purged = connection.exec_driver_sql("SELECT name, number FROM noa_trash WHERE state = 'purged'").all()
    gone = {(name, number) for name, number in purged}
    return {uid for uid, _, _ in rows}, {uid for uid, name, number in rows if (name, number) in gone}


def _below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def _is_expected(path: Path) -> bool:
    first = path.parts[0]
    return first.startswith("noa.db") or first in ("artifacts", "exports", "anchor.jsonl")
