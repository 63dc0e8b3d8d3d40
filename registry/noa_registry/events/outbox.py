"""The outbox: events are rows of the transaction that they tell of, so none is lost and none tells of what never was.

Writers go one after the other, so the numbers of events are in the order of their commits: who has read up to number n
has missed nothing before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final, Literal, TypeAlias

from sqlalchemy import Connection, exc, insert

from noa_registry.database import now, to_text
from noa_registry.events.event_ids import used_up_error
from noa_registry.records import to_json
from noa_registry.tables import outbox

EventKind: TypeAlias = Literal[
    "version.registered",
    "version.signed",
    "format.added",
    "evidence.attached",
    "alias.promoted",
    "alias.rolled_back",
    "approval.granted",
    "approval.revoked",
    "version.trashed",
    "version.restored",
    "version.purged",
    "attachments.removed",
    "mirror.repaired",
    "files.repaired",
    "store.adopted",
    "generation.announced",
    "generation.refused",
]
WHOLE_REGISTRY: Final = "*"
"""The model name of events that concern no single model."""


def append_event(
    connection: Connection, kind: EventKind, *, name: str, payload: Mapping[str, object], at: datetime | None = None
) -> None:
    """Append an event about model `name` in the caller's write transaction.

    `at` is the time of the row that it tells of, now if there is none.

    Raises:
        IntegrityError: no number is left for it, as somebody gave the largest one to an event.
    """
    values = {"name": name, "kind": kind, "payload": to_json(payload), "created_at": to_text(at or now())}
    try:
        connection.execute(insert(outbox).values(values))
    except exc.DBAPIError as error:
        used_up = used_up_error(connection, error)
        if used_up is None:
            raise
        raise used_up from error
