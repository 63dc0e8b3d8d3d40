"""Cells of another type than noa writes, in all of noa's tables: found whatever became of the guards against them.

SQLite keeps any type in any column. What reads such a row may stop anywhere, so the row is looked for when something
did (`blame`), and a verification looks before it reads anything else. PostgreSQL has no such cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Row, Table, text

from noa.errors import IntegrityError
from noa_registry.storage_classes import class_in_words, in_words, is_foreign
from noa_registry.tables import metadata, version_metrics

MISREAD: Final = (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, AssertionError)
"""What Python raises where a value of another type turns up."""
_REMEDY: Final = "Somebody wrote into the database directly; restore it from a backup and compare"
_OF_THE_INDEX: Final = "Nothing is decided by it; write the index of search anew with: noa models verify --repair"
_MOST_ROWS: Final = 100
_SHOWN: Final = 60
_PYTHON_CLASSES: Final[dict[type, str]] = {int: "integer", float: "real", str: "text", bytes: "blob"}
_T = TypeVar("_T")


def find_foreign_cells(connection: Connection) -> list[IntegrityError]:
    """Return an error for each cell of another type, with its row; of one table those of the first hundred rows."""
    return [problem for table in metadata.sorted_tables for problem in _of_table(connection, table)]


def blame(connection: Connection) -> IntegrityError | None:
    """Return the error about the first such cell, None if there is none."""
    found = find_foreign_cells(connection)
    return found[0] if found else None


def refuse_foreign(connection: Connection, table: Table) -> None:
    """Raise `IntegrityError` about the first such cell of one table, if it has one."""
    for problem in _of_table(connection, table):
        raise problem


def require_own_types(row: Row[Any], table: Table) -> None:
    """Check the cells of a row before they are used.

    Raises:
        IntegrityError: one is of another type; it names the row and the column.
    """
    for name, types in _types_of(table):
        value = getattr(row, name)
        if type(value) not in types:
            keys = ", ".join(f"{key.name} {_shown(getattr(row, key.name))}" for key in table.primary_key.columns)
            held = class_in_words(_PYTHON_CLASSES.get(type(value), "null"))
            raise _error(table.name, keys, name, in_words(table.columns[name]), held, _shown(value))


def tried(
    look: Callable[[], Iterable[_T]], spoilt: Iterable[IntegrityError], say: Callable[[IntegrityError], _T]
) -> list[_T]:
    """Return what a check finds; where it stops at one of the `spoilt` cells, that it was not done.

    Without such cells nothing is caught: that would be a mistake of noa's.
    """
    first = next(iter(spoilt), None)
    if first is None:
        return list(look())
    found: list[_T] = []
    try:
        found.extend(look())
    except (*MISREAD, IntegrityError) as exc:
        at = exc if isinstance(exc, IntegrityError) else first
        found.append(say(at))
    return found


@lru_cache
def _types_of(table: Table) -> tuple[tuple[str, frozenset[type]], ...]:
    """Return the columns with the types that Python may see in them."""
    found: list[tuple[str, frozenset[type]]] = []
    for column in table.columns:
        wanted = column.type.python_type
        also = {int} if wanted is float else set[type]()
        found.append((column.name, frozenset({wanted, *also, *((type(None),) if column.nullable else ())})))
    return tuple(found)


def _of_table(connection: Connection, table: Table) -> Iterator[IntegrityError]:
    if connection.dialect.name != "sqlite":
        return
    there = {str(row[1]) for row in connection.execute(text(f"PRAGMA table_info({table.name})"))}
    columns = [column for column in table.columns if column.name in there]  # an older noa's has fewer
    if not columns:
        return
    wrong = " OR ".join(is_foreign(column, column.name) for column in columns)
    keys = [column.name for column in table.primary_key.columns]
    shown = [
        part
        for column in columns
        for part in (
            f"typeof({column.name})",
            f"{is_foreign(column, column.name)}",
            f"quote(substr({column.name}, 1, {_SHOWN}))",
        )
    ]
    key = [f"quote({name})" for name in keys]
    query = f"SELECT {', '.join((*key, *shown))} FROM {table.name} WHERE {wrong} LIMIT {_MOST_ROWS}"
    for row in connection.execute(text(query)).all():
        place = ", ".join(f"{name} {value}" for name, value in zip(keys, row[: len(keys)], strict=True))
        cells = row[len(keys) :]
        for number, column in enumerate(columns):
            held, is_wrong, value = cells[3 * number : 3 * number + 3]
            if is_wrong:
                yield _error(table.name, place, column.name, in_words(column), class_in_words(held), value)


def _error(table: str, row: str, column: str, expected: str, held: str, shown: str) -> IntegrityError:
    return IntegrityError(
        f"a cell was changed: `{column}` of {table} is of another type than noa writes",
        where=f"the row with {row}",
        expected=expected,
        received=held if held == "nothing" else f"{held}: {shown}",
        remedy=_OF_THE_INDEX if table == version_metrics.name else _REMEDY,
        file=table,
    )


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return f"X'{value[: _SHOWN // 2].hex().upper()}'"
    return f"'{value[:_SHOWN]}'" if isinstance(value, str) else str(value)
