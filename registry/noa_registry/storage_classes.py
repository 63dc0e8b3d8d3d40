"""How SQLite stores each cell of noa's tables: it keeps any type in any column, so what belongs there is said here.

Guards that are made of it refuse another type (`cell_guards.py`); whoever lifted them is found (`foreign_cells.py`).
PostgreSQL keeps to the types of its columns by itself.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Column, Table

_CLASSES: Final[dict[type, tuple[str, ...]]] = {
    int: ("integer",),
    bool: ("integer",),
    float: ("real", "integer"),
    str: ("text",),
    bytes: ("blob",),
}
_IN_WORDS: Final = {
    "integer": "a whole number",
    "real": "a number",
    "text": "a text",
    "blob": "bytes",
    "null": "nothing",
}


def allowed_classes(column: Column[Any]) -> tuple[str, ...]:
    """Return what `typeof` may say of a cell of this column."""
    classes = _CLASSES[column.type.python_type]
    return (*classes, "null") if column.nullable else classes


def in_words(column: Column[Any]) -> str:
    """Return what belongs into a cell of this column, e.g. `a whole number or nothing`."""
    wanted = _IN_WORDS[_CLASSES[column.type.python_type][0]]
    return f"{wanted} or nothing" if column.nullable else wanted


def class_in_words(name: str) -> str:
    """Return what a class is that `typeof` gave."""
    return _IN_WORDS[name]


def is_foreign(column: Column[Any], expression: str) -> str:
    """Return the condition in SQL that `expression`, a cell of this column, is of another class."""
    first, *others = (f"'{name}'" for name in allowed_classes(column))
    if not others:
        return f"typeof({expression}) <> {first}"
    return f"typeof({expression}) NOT IN ({', '.join((first, *others))})"


def is_row_number(table: Table, column: Column[Any]) -> bool:
    """Tell whether the column is the number of the row itself, into which SQLite lets nothing but a whole number."""
    return list(table.primary_key.columns) == [column] and column.type.python_type is int
