"""JSON and times in columns: parsed where they are read, so that what somebody spoilt is an error with its place."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, cast

from noa.errors import IntegrityError


def parse_table(text: str, *, of: str, column: str, remedy: str | None = None) -> dict[str, Any]:
    """Return the table that a cell holds. `of` says whose it is, e.g. "`digits/3`"; `column` is `table.column`.

    `remedy` is what helps, if there is something better than a backup.

    Raises:
        IntegrityError: it holds no JSON, or something else.
    """
    try:
        value: object = json.loads(text)
    except (ValueError, TypeError, RecursionError) as exc:
        raise unreadable(of, column, received=str(exc), remedy=remedy) from exc
    if not isinstance(value, dict):
        raise unreadable(of, column, received=str(text)[:80], remedy=remedy)
    return cast("dict[str, Any]", value)


def parse_time(text: object, *, of: str, column: str, remedy: str | None = None) -> datetime:
    """Return the time that a cell holds; `of` and `column` as in `parse_table`, `remedy` too.

    Raises:
        IntegrityError: it holds no time with its zone.
    """
    try:
        moment = datetime.fromisoformat(cast("str", text))
    except (ValueError, TypeError) as exc:
        raise unreadable(of, column, received=str(text)[:80], remedy=remedy) from exc
    if moment.tzinfo is None:
        raise unreadable(of, column, received=str(text)[:80], remedy=remedy)
    return moment


def unreadable(of: str, column: str, *, received: str, remedy: str | None = None) -> IntegrityError:
    """Return the error about a cell that cannot be read."""
    table, _, name = column.partition(".")
    return IntegrityError(
        f"the record of {of} was changed: `{name}` of {table} cannot be read",
        received=received,
        remedy=remedy or "It is refused wherever it would be used; restore a backup of the database",
        file=table,
    )
