"""What other programs write with stock SQLite: cells of another type and replaced rows, refused by the file itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from noa.settings import RegistrySettings
from noa_registry import ModelVersion, Registry
from noa_registry.cell_guards import KEPT, cell_guards
from noa_registry.foreign_cells import find_foreign_cells
from noa_registry.storage_classes import is_row_number
from noa_registry.tables import APPEND_ONLY, metadata

APPROVAL_OF_BYTES = (
    "INSERT INTO noa_approvals SELECT 900, name, number, alias, digest, cast(principal AS blob), reason, signature, "
    "created_at, expires_at, NULL, NULL FROM noa_approvals LIMIT 1"
)


def file_of(settings: RegistrySettings) -> Path:
    return Path(settings.database_url.removeprefix("sqlite:///"))


@pytest.fixture
def filled(sqlite_settings: RegistrySettings, make_formats: Callable[[int], Any]) -> RegistrySettings:
    """A registry with versions, approvals, promotions, a rollback and something in the trash."""
    formats = make_formats(0)
    with Registry.open(sqlite_settings) as registry:
        for _ in range(4):
            registry.register(formats.draft(evidence=[formats.equivalence(), formats.metrics(loss=0.5)]), actor="ada")
        for number in (1, 2):
            registry.approvals.grant("digits", number, principal="bob", reason="r")
            registry.promote("digits", number, reason="r", actor="ada")
        registry.approvals.grant("digits", 3, principal="bob", reason="r")
        registry.retention.delete("digits", 4, reason="r", actor="ada")
    return sqlite_settings


@pytest.fixture
def stock(filled: RegistrySettings) -> Iterator[sqlite3.Connection]:
    """A connection of Python's own driver, as its documentation opens one."""
    with closing(sqlite3.connect(file_of(filled))) as connection:
        yield connection


def refused(stock: sqlite3.Connection, statement: str) -> str:
    with pytest.raises(sqlite3.IntegrityError) as caught:
        stock.execute(statement)
    stock.rollback()
    return str(caught.value)


def copied(table: sa.Table, **changes: str) -> str:
    """Return SQL that replaces each row by itself, with expressions in place of some columns."""
    columns = [changes.get(column.name, column.name) for column in table.columns]
    names = ", ".join(column.name for column in table.columns)
    return f"INSERT OR REPLACE INTO {table.name} ({names}) SELECT {', '.join(columns)} FROM {table.name}"


def test_a_cell_of_another_type_is_refused_with_its_name(stock: sqlite3.Connection) -> None:
    tried = 0
    for table in metadata.sorted_tables:
        names = [column.name for column in table.columns]
        for column in table.columns:
            if is_row_number(table, column):
                continue
            spoilt = "'text'" if column.type.python_type is bytes else "x'00ff'"
            values = [
                spoilt if one is column else "x'07'" if one.type.python_type is bytes else "777"
                for one in table.columns
            ]
            said = refused(stock, f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({', '.join(values)})")
            assert said.startswith(f"noa: {table.name}.{column.name} holds ")
            if table not in APPEND_ONLY and stock.execute(f"SELECT 1 FROM {table.name}").fetchone():
                said = refused(stock, f"UPDATE {table.name} SET {column.name} = {spoilt}")
                others = ("noa: an approval is used once", "noa: the set of the evidence")
                assert said.startswith((f"noa: {table.name}.{column.name} holds ", *others))
            tried += 1
    assert tried > 100


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE noa_approvals SET used_by = 'x2' WHERE id = 3",
        "UPDATE noa_alias_stack SET depth = 'x2' WHERE depth = 2",
        "UPDATE noa_alias_stack SET depth = 7.5 WHERE depth = 2",
        "UPDATE noa_aliases SET number = 'x2'",
        "UPDATE noa_aliases SET alias = cast(alias AS blob)",
        "UPDATE noa_version_metrics SET value = 'abc'",
        "UPDATE noa_models SET next_number = 'x5'",
        "UPDATE noa_trash SET state = NULL",
        APPROVAL_OF_BYTES,
    ],
)
def test_what_a_hostile_program_wrote_is_refused(stock: sqlite3.Connection, statement: str) -> None:
    assert refused(stock, statement).startswith(("noa: ", "NOT NULL constraint failed"))


@pytest.mark.parametrize("table", KEPT, ids=lambda table: table.name)
def test_no_row_that_is_kept_is_replaced(stock: sqlite3.Connection, table: sa.Table) -> None:
    rows = stock.execute(f"SELECT * FROM {table.name} ORDER BY rowid").fetchall()
    if rows:
        said = refused(stock, copied(table))
        assert said in (
            f"noa: rows of {table.name} are never replaced",
            "noa: an approval is used once, and never changed, copied or deleted",
        )
    assert stock.execute(f"SELECT * FROM {table.name} ORDER BY rowid").fetchall() == rows


def test_a_row_is_not_replaced_by_its_place_in_the_file_or_another_key(stock: sqlite3.Connection) -> None:
    names = [column.name for column in metadata.tables["noa_versions"].columns]
    others = ", ".join({"number": "number + 90", "uid": "uid || 'x'"}.get(name, name) for name in names)
    by_place = (
        f"INSERT OR REPLACE INTO noa_versions (rowid, {', '.join(names)}) SELECT rowid, {others} FROM noa_versions"
    )
    assert refused(stock, by_place) == "noa: rows of noa_versions are never replaced"
    by_uid = copied(metadata.tables["noa_versions"], number="number + 90")
    assert refused(stock, by_uid) == "noa: rows of noa_versions are never replaced"
    by_hash = copied(metadata.tables["noa_ledger"], sequence="sequence + 90")
    assert refused(stock, by_hash) == "noa: rows of noa_ledger are never replaced"
    later = copied(metadata.tables["noa_approvals"], created_at="created_at || 'x'")
    assert refused(stock, later) == "noa: rows of noa_approvals are never replaced"


def test_a_row_with_a_negative_number_stops_no_writer(filled: RegistrySettings, stock: sqlite3.Connection) -> None:
    """SQLite says a negative number in a trigger where it has not chosen one yet."""
    stock.execute("INSERT INTO noa_outbox VALUES (-1, 'digits', 'x', '{}', '2026')")
    stock.commit()
    with Registry.open(filled) as registry:
        registry.promote("digits", 3, reason="r", actor="ada")
        assert registry.resolve("digits@champion").number == 3


def test_a_cell_that_was_spoilt_before_hinders_no_other_change(
    filled: RegistrySettings, stock: sqlite3.Connection
) -> None:
    triggers = stock.execute("SELECT name, sql FROM sqlite_master WHERE name = 'noa_models_types_on_update'").fetchall()
    assert len(triggers) == 1
    stock.execute("DROP TRIGGER noa_models_types_on_update")
    stock.execute("UPDATE noa_models SET next_number = 'x5'")
    stock.execute(triggers[0][1])
    stock.commit()
    with Registry.open(filled) as registry:
        registry.promote("digits", 3, reason="r", actor="ada")
        assert registry.resolve("digits@champion").number == 3


def test_a_database_with_a_spoilt_cell_is_upgraded_and_gets_the_guards(filled: RegistrySettings) -> None:
    with closing(sqlite3.connect(file_of(filled))) as connection:
        for guard in cell_guards():
            connection.execute(f"DROP TRIGGER {guard.name}")
        connection.execute("UPDATE noa_aliases SET number = 'x2'")
        connection.execute("DROP TRIGGER noa_versions_no_update")
        connection.execute("UPDATE noa_versions SET native = cast(native AS blob) WHERE number = 3")
        connection.execute("UPDATE noa_schema SET version = 6")
        connection.execute("UPDATE noa_alembic_version SET version_num = '0006'")
        connection.commit()
    with Registry.open(filled) as registry:
        assert [exc.what for exc in registry.find_foreign_cells()] == [
            f"a cell was changed: `{column}` of {table} is of another type than noa writes"
            for table, column in (("noa_versions", "native"), ("noa_aliases", "number"))
        ]
        assert [one for one in registry.mirror_discrepancies() if one.field == "guard"] == []
    with closing(sqlite3.connect(file_of(filled))) as connection:
        assert refused(connection, "UPDATE noa_models SET next_number = 'x5'").startswith("noa: noa_models.next_number")


def test_a_dropped_guard_is_named_and_put_back(filled: RegistrySettings, stock: sqlite3.Connection) -> None:
    names = [guard.name for guard in cell_guards()]
    for name in names:
        stock.execute(f"DROP TRIGGER {name}")
    stock.commit()
    with Registry.open(filled) as registry:
        assert len([one for one in registry.mirror_discrepancies() if one.field == "guard"]) == len(names)
        registry.repair_mirror()
        assert registry.mirror_discrepancies() == []
    assert refused(stock, "UPDATE noa_models SET next_number = 'x5'").startswith("noa: ")


def test_postgresql_keeps_its_types_and_has_no_such_guard(
    registry: Registry, version: ModelVersion, settings: RegistrySettings
) -> None:
    engine = sa.create_engine(settings.database_url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        assert find_foreign_cells(connection) == []
    with pytest.raises(DBAPIError), engine.begin() as connection:
        connection.exec_driver_sql("UPDATE noa_models SET next_number = 'x5'")
