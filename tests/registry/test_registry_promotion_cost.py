"""What a move costs does not grow: not with the versions of the model, not with the moves of the alias."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from benchmarks.bulk_versions import fill_versions
from sqlalchemy import event

from noa.settings import RegistrySettings
from noa_registry import Registry

MANY = 1500
# Small whatever happens: one row per registry or per model, or read whole on purpose.
SMALL_TABLES = {"noa_identity", "noa_schema"}


@contextmanager
def counted_steps(registry: Registry) -> Iterator[list[int]]:
    """Count the instructions that SQLite's machine runs, those of triggers and foreign keys included."""
    steps = [0]
    engine = registry._database.engine

    def step() -> int:
        steps[0] += 1
        return 0

    def count(connection: sqlite3.Connection, *_: object) -> None:
        connection.set_progress_handler(step, 1)

    event.listen(engine, "checkout", count)
    try:
        yield steps
    finally:
        event.remove(engine, "checkout", count)
        with registry._database.engine.connect() as connection:
            connection.connection.driver_connection.set_progress_handler(None, 1)  # type: ignore[union-attr]


def steps_of(registry: Registry, action: Callable[[], object]) -> int:
    action()  # once before, so that caches are as full as they get
    with counted_steps(registry) as steps:
        action()
    return steps[0]


@pytest.fixture
def costly(sqlite_settings: RegistrySettings, formats: Any) -> Iterator[Registry]:
    with Registry.open(sqlite_settings) as registry:
        for _ in range(2):
            registry.register(formats.draft(), actor="ada")
        for number in (1, 2, 1):
            registry.promote("digits", number, reason="r", actor="ada")
        yield registry


def actions(registry: Registry) -> dict[str, Callable[[], object]]:
    """What is measured; each is done twice, and then the alias is where it was."""
    turn = iter(range(10**6))
    return {
        "promote": lambda: registry.promote("digits", 2 - next(turn) % 2, reason="r", actor="ada"),
        "rollback": lambda: registry.rollback("digits", reason="r", actor="ada"),
        "resolve": lambda: registry.resolve("digits@champion"),
        "previous": lambda: registry.previous("digits"),
    }


def test_the_work_of_a_move_is_the_same_with_many_versions(costly: Registry) -> None:
    few = {name: steps_of(costly, action) for name, action in actions(costly).items()}
    fill_versions(costly, "digits", MANY)
    many = {name: steps_of(costly, action) for name, action in actions(costly).items()}
    for name, steps in few.items():
        assert steps > 0
        assert many[name] < 1.1 * steps + 50, (name, steps, many[name])


def test_the_work_of_a_move_is_the_same_after_many_moves(costly: Registry) -> None:
    few = {name: steps_of(costly, action) for name, action in actions(costly).items()}
    for turn in range(100):
        costly.promote("digits", 2 - turn % 2, reason="r", actor="ada")
    many = {name: steps_of(costly, action) for name, action in actions(costly).items()}
    for name, steps in few.items():
        assert many[name] < 1.1 * steps + 50, (name, steps, many[name])


def test_no_statement_of_a_move_reads_a_whole_table(costly: Registry, tmp_path: Path) -> None:
    statements: list[tuple[str, Any]] = []
    engine = costly._database.engine

    def keep(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        statements.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", keep)
    for action in actions(costly).values():
        action()
        action()
    event.remove(engine, "before_cursor_execute", keep)
    assert len(statements) > 40
    scans: set[str] = set()
    with engine.connect() as connection:
        raw: Any = connection.connection.driver_connection
        for statement, parameters in statements:
            if statement.split()[0] not in ("SELECT", "INSERT", "UPDATE", "DELETE"):
                continue
            for row in raw.execute(f"EXPLAIN QUERY PLAN {statement}", parameters):
                plan = str(row[3])
                # With LIMIT 1 in the order of the key, a scan ends at the first row.
                is_newest = "LIMIT" in statement and "ORDER BY noa_ledger.sequence DESC" in statement
                if plan.startswith("SCAN") and not is_newest and plan.split()[1] not in SMALL_TABLES:
                    scans.add(f"{plan}: {statement}")
    assert scans == set()
