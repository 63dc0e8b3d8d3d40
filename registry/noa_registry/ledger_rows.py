"""Rows of `noa_ledger` to entries: each cell must hold what noa writes there, of that type and in that very text.

SQLite keeps any type in any column, and a time or a JSON text has many spellings: one that noa does not write is a row
that somebody changed, also where it means the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, cast

from sqlalchemy import Row

from noa.digests import canonical_json
from noa.errors import IntegrityError
from noa_registry.database import to_text
from noa_registry.ledger import LedgerEntry
from noa_registry.tables import ledger

_SHOWN: Final = 60
_UNKNOWN: Final = datetime.fromtimestamp(0, UTC)
_WHERE_IT_LEADS: Final = frozenset({"name", "alias", "action", "to_number", "to_digest"})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEntry:
    """A row as it is stored. `entry` holds what can be read of it; `fault` says which cell is not as noa writes it.

    `is_readable`: every cell has its meaning, if perhaps in another spelling. `leads_somewhere`: the cells can be read
    that say which alias moved where.
    """

    entry: LedgerEntry
    fault: IntegrityError | None
    is_readable: bool
    leads_somewhere: bool


def to_entry(row: Row[Any]) -> LedgerEntry:
    """Return the entry of a row.

    Raises:
        IntegrityError: a cell cannot be read or is of another type; it names row and column.
    """
    stored = to_stored(row)
    if stored.fault is not None and not stored.is_readable:
        raise stored.fault
    return stored.entry


def to_stored(row: Row[Any]) -> StoredEntry:
    """Return what can be read of a row, and what is wrong with it."""
    names = [column.name for column in ledger.columns]
    foreign = {name: wanted for name in names if (wanted := _foreign_type(row, name)) is not None}
    verdict, verdict_fault = (None, None) if "verdict" in foreign else _verdict(row)
    moment, time_fault = (None, None) if "created_at" in foreign else _moment(row)
    fault = next((_changed(row, f"{wanted} in `{name}`", getattr(row, name)) for name, wanted in foreign.items()), None)

    def text(name: str) -> str:
        value = getattr(row, name)
        return value if isinstance(value, str) else _shown(value)

    def number(name: str) -> int:
        value = getattr(row, name)
        return value if type(value) is int else 0

    entry = LedgerEntry(
        sequence=row.sequence,
        name=text("name"),
        alias=text("alias"),
        action="rollback" if row.action == "rollback" else "promote",
        from_number=None if row.from_number is None else number("from_number"),
        to_number=number("to_number"),
        from_digest=None if row.from_digest is None else text("from_digest"),
        to_digest=text("to_digest"),
        actor=text("actor"),
        reason=text("reason"),
        verdict={} if verdict is None else verdict,
        created_at=_UNKNOWN if moment is None else moment,
        previous_hash=text("previous_hash"),
        hash=text("hash"),
    )
    return StoredEntry(
        entry=entry,
        fault=fault or verdict_fault or time_fault,
        is_readable=not foreign and verdict is not None and moment is not None,
        leads_somewhere=not foreign.keys() & _WHERE_IT_LEADS,
    )


def _foreign_type(row: Row[Any], name: str) -> str | None:
    """Return what a cell should hold if it holds another type, or an action that is none."""
    column, value = ledger.columns[name], getattr(row, name)
    if value is None and column.nullable:
        return None
    if name == "action":
        return None if value in ("promote", "rollback") else "`promote` or `rollback`"
    if column.type.python_type is int:
        return None if type(value) is int else "a whole number"
    return None if type(value) is str else "a text"


def _verdict(row: Row[Any]) -> tuple[Mapping[str, object] | None, IntegrityError | None]:
    try:
        value: object = json.loads(row.verdict)
        written = canonical_json(value).decode()
    except (ValueError, RecursionError) as exc:
        return None, _unreadable(row, "`verdict` in JSON", str(exc))
    if not isinstance(value, dict):
        return None, _unreadable(row, "`verdict` as a table", _shown(row.verdict))
    other = None if written == row.verdict else _changed(row, "the JSON of `verdict` as noa writes it", row.verdict)
    return cast("dict[str, object]", value), other


def _moment(row: Row[Any]) -> tuple[datetime | None, IntegrityError | None]:
    try:
        moment = datetime.fromisoformat(row.created_at)
        written = to_text(moment)
    except (ValueError, OverflowError) as exc:
        return None, _unreadable(row, "a time in `created_at`", str(exc))
    if written == row.created_at:
        return moment, None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)  # else it could be compared with no other row's
    return moment, _changed(row, f"`created_at` {written}", row.created_at)


def _changed(row: Row[Any], expected: str, value: object) -> IntegrityError:
    return _fault(row, "a row of the ledger was changed", expected, _shown(value))


def _unreadable(row: Row[Any], expected: str, received: str) -> IntegrityError:
    return _fault(row, "a row of the ledger is not readable", expected, received)


def _fault(row: Row[Any], what: str, expected: str, received: str) -> IntegrityError:
    return IntegrityError(
        what,
        where=f"row {row.sequence}",
        expected=expected,
        received=received,
        remedy="Somebody wrote into the database directly; restore it from a backup and compare",
        sequence=row.sequence,
        file="noa_ledger",
    )


def _shown(value: object) -> str:
    """Return the beginning of a cell; of another type than text, which."""
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) else f"{'bytes' if isinstance(value, bytes) else 'the number'} {value!r}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
