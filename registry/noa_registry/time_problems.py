"""Times that somebody spoilt in rows that no version's record covers: the trash, approvals, events and their consumers.

Whoever uses such a row gets the same errors; here they are looked for in all rows, for `noa models verify`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, Row, Table, select

from noa.errors import IntegrityError
from noa_registry.approvals.desk import approval_time
from noa_registry.events.delivery_state import cursor_time, letter_time
from noa_registry.events.log import consumer_time, event_time
from noa_registry.retention.trash import trash_time
from noa_registry.tables import approvals, consumers, dead_letters, outbox, trash, webhook_cursors

_ReadTime: TypeAlias = Callable[[Row[Any], str], datetime]
_TIMES: Final[tuple[tuple[Table, _ReadTime, tuple[str, ...]], ...]] = (
    (trash, trash_time, ("deleted_at", "purge_after", "purged_at")),
    (approvals, approval_time, ("created_at", "expires_at", "revoked_at")),
    (outbox, event_time, ("created_at",)),
    (consumers, consumer_time, ("updated_at",)),
    (dead_letters, letter_time, ("created_at", "next_attempt_at")),
    (webhook_cursors, cursor_time, ("next_attempt_at",)),
)


def find_time_problems(connection: Connection) -> list[IntegrityError]:
    """Return an error for each time that cannot be read, with the row that holds it and what helps."""
    return [problem for table, read, columns in _TIMES for problem in _problems(connection, table, read, columns)]


def _problems(
    connection: Connection, table: Table, read: _ReadTime, columns: tuple[str, ...]
) -> Iterator[IntegrityError]:
    shown = [column for column in table.columns if column.name not in ("payload", "error", "signature")]
    for row in connection.execute(select(*shown).order_by(*table.primary_key.columns)):
        for column in columns:
            if getattr(row, column) is None and table.columns[column].nullable:
                continue
            try:
                read(row, column)
            except IntegrityError as exc:
                yield exc
