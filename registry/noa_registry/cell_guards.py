"""Guards of SQLite against what its own rules let through: cells of another type, and rows that REPLACE takes away.

SQLite keeps any type in any column, so a text in the place of a number would be found by whoever reads the row, not by
whoever wrote it. And `INSERT OR REPLACE` removes the row in its way without running the triggers that refuse to delete
it. PostgreSQL has neither, so these triggers are made on SQLite alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import DDL, Connection, Table, UniqueConstraint, inspect

from noa_registry.storage_classes import in_words, is_foreign, is_row_number
from noa_registry.tables import APPEND_ONLY, approvals, evidence_sets, metadata

# Rows of these cannot be deleted, or not changed at will; of all others REPLACE does what UPDATE may do, too.
KEPT = (*APPEND_ONLY, approvals, evidence_sets)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellGuard:
    """One trigger: before `event` on a row of `table`, `body` refuses what it finds wrong."""

    name: str
    event: str
    table: str
    body: str

    @property
    def statement(self) -> str:
        """Return the SQL that makes it."""
        return f"CREATE TRIGGER IF NOT EXISTS {self.name} BEFORE {self.event} ON {self.table} BEGIN {self.body}; END"


def cell_guards() -> Iterator[CellGuard]:
    """Give all guards, in one order."""
    for table in metadata.sorted_tables:
        # Where no row is ever changed, another trigger refuses all changes.
        for event in ("INSERT",) if table in APPEND_ONLY else ("INSERT", "UPDATE"):
            name = f"{table.name}_types_on_{event.lower()}"
            yield CellGuard(name=name, event=event, table=table.name, body=_refuse_types(table, event))
    for table in KEPT:
        yield CellGuard(
            name=f"{table.name}_no_replace", event="INSERT", table=table.name, body=_refuse_replacement(table)
        )


def create_cell_guards(connection: Connection) -> None:
    """Put the guards on a SQLite database; do nothing on another."""
    if connection.dialect.name == "sqlite":
        for guard in cell_guards():
            connection.execute(DDL(guard.statement.replace("%", "%%")))


def drop_cell_guards(connection: Connection) -> None:
    """Lift the guards for the rest of the transaction."""
    if connection.dialect.name == "sqlite":
        tables = set(inspect(connection).get_table_names())
        for guard in cell_guards():
            if guard.table in tables:
                connection.execute(DDL(f"DROP TRIGGER IF EXISTS {guard.name}"))


def _refuse_types(table: Table, event: str) -> str:
    """Return a statement that refuses the first cell of another type; one that was so before hinders nothing."""
    cases = [
        f"WHEN {is_foreign(column, f'NEW.{column.name}')} "
        f"{f'AND NEW.{column.name} IS NOT OLD.{column.name} ' if event == 'UPDATE' else ''}"
        f"THEN RAISE(ABORT, 'noa: {table.name}.{column.name} holds {in_words(column)}')"
        for column in table.columns
        if not is_row_number(table, column)
    ]
    return f"SELECT CASE {' '.join(cases)} END" if cases else "SELECT 1"


def _refuse_replacement(table: Table) -> str:
    """Return a statement that refuses a row with the key of one that is there, or with its place in the file."""
    keys = [list(table.primary_key.columns)]
    keys += [list(one.columns) for one in table.constraints if isinstance(one, UniqueConstraint)]
    # A row that is not given its number has a negative one here. noa's rows have positive ones.
    same = ["NEW.rowid > 0 AND EXISTS (SELECT 1 FROM {0} WHERE rowid = NEW.rowid)"]
    same += [
        "EXISTS (SELECT 1 FROM {0} WHERE " + " AND ".join(f"{one.name} = NEW.{one.name}" for one in key) + ")"
        for key in keys
        if not (len(key) == 1 and is_row_number(table, key[0]))
    ]
    condition = " OR ".join(same).format(table.name)
    message = f"noa: rows of {table.name} are never replaced"
    return f"SELECT RAISE(ABORT, '{message}') WHERE {condition}"
