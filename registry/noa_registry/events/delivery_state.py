"""How far a webhook is, in the database: what survives `kill -9` of the deliverer.

One number per webhook says up to where everything is done; models that have gone on beyond it, because another one is
waiting for its next attempt, have a row of their own until the number has caught up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, insert, select, update

from noa.errors import NotFoundError
from noa_registry.database import Database, now, to_text
from noa_registry.events.log import Event, load_event, set_offset
from noa_registry.json_columns import parse_time
from noa_registry.tables import consumers, dead_letters, webhook_cursors


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """Where one model is: done up to `last_id`; its next event has failed `attempts` times."""

    last_id: int
    attempts: int = 0
    next_attempt_at: datetime | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An event that was given up. `next_attempt_at` is set when somebody has asked to send it again."""

    consumer: str
    event_id: int
    attempts: int
    error: str
    created_at: datetime
    next_attempt_at: datetime | None

    def is_due(self, moment: datetime) -> bool:
        """Tell whether it is to be sent again by now."""
        return self.next_attempt_at is not None and self.next_attempt_at <= moment


def load_offset(connection: Connection, consumer: str) -> int | None:
    """Return up to where a webhook is done, None if it has never been delivered to."""
    return connection.execute(select(consumers.c.last_id).where(consumers.c.consumer == consumer)).scalar()


def load_cursors(connection: Connection, consumer: str) -> dict[str, Cursor]:
    """Return the models that are not simply where the webhook is."""
    rows = connection.execute(select(webhook_cursors).where(webhook_cursors.c.consumer == consumer))
    return {
        row.name: Cursor(
            last_id=row.last_id,
            attempts=row.attempts,
            next_attempt_at=None if row.next_attempt_at is None else cursor_time(row, "next_attempt_at"),
            error=row.error,
        )
        for row in rows
    }


def store_progress(connection: Connection, consumer: str, *, done: int, changed: dict[str, Cursor]) -> None:
    """Write what has changed; rows that say no more than `done` does are removed."""
    set_offset(connection, consumer, done)
    for name, cursor in changed.items():
        here = (webhook_cursors.c.consumer == consumer) & (webhook_cursors.c.name == name)
        values = {
            "last_id": cursor.last_id,
            "attempts": cursor.attempts,
            "next_attempt_at": None if cursor.next_attempt_at is None else to_text(cursor.next_attempt_at),
            "error": cursor.error,
        }
        if connection.execute(update(webhook_cursors).where(here).values(**values)).rowcount == 0:
            connection.execute(insert(webhook_cursors).values(consumer=consumer, name=name, **values))
    useless = (webhook_cursors.c.last_id <= done) & (webhook_cursors.c.attempts == 0)
    connection.execute(delete(webhook_cursors).where(webhook_cursors.c.consumer == consumer, useless))


def put_dead_letter(
    connection: Connection,
    consumer: str,
    event: int,
    *,
    attempts: int,
    error: str,
    next_attempt_at: datetime | None = None,
) -> None:
    """Put an event on the dead-letter list, or change its entry there."""
    here = (dead_letters.c.consumer == consumer) & (dead_letters.c.event_id == event)
    again = None if next_attempt_at is None else to_text(next_attempt_at)
    values = {"attempts": attempts, "error": error, "next_attempt_at": again}
    if connection.execute(update(dead_letters).where(here).values(**values)).rowcount == 0:
        connection.execute(
            insert(dead_letters).values(consumer=consumer, event_id=event, created_at=to_text(now()), **values)
        )


def remove_dead_letter(connection: Connection, consumer: str, event: int) -> None:
    """Take an event off the list: it was delivered after all."""
    here = (dead_letters.c.consumer == consumer) & (dead_letters.c.event_id == event)
    connection.execute(delete(dead_letters).where(here))


def load_redeliveries(connection: Connection, consumer: str, *, limit: int) -> list[tuple[DeadLetter, Event]]:
    """Return what is to be sent again, oldest event first."""
    query = (
        select(dead_letters)
        .where(dead_letters.c.consumer == consumer, dead_letters.c.next_attempt_at.is_not(None))
        .order_by(dead_letters.c.event_id)
        .limit(limit)
    )
    letters = [_to_letter(row) for row in connection.execute(query).all()]
    found = [(letter, load_event(connection, letter.event_id)) for letter in letters]
    return [(letter, event) for letter, event in found if event is not None]


class DeadLetters:
    """The dead-letter list of all webhooks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list(self, *, consumer: str | None = None) -> Sequence[tuple[DeadLetter, Event | None]]:
        """Return what was given up, oldest event first, each with its event."""
        query = select(dead_letters).order_by(dead_letters.c.event_id, dead_letters.c.consumer)
        if consumer is not None:
            query = query.where(dead_letters.c.consumer == consumer)
        with self._database.snapshot() as connection:
            letters = [_to_letter(row) for row in connection.execute(query).all()]
            return [(letter, load_event(connection, letter.event_id)) for letter in letters]

    def redeliver(self, *, consumer: str | None = None, event: int | None = None) -> int:
        """Ask the deliverer to send given-up events again (all, of one webhook, or one event); returns how many.

        Raises:
            NotFoundError: there is nothing of that kind on the list.
        """
        conditions: list[ColumnElement[bool]] = [dead_letters.c.next_attempt_at.is_(None)]
        if consumer is not None:
            conditions.append(dead_letters.c.consumer == consumer)
        if event is not None:
            conditions.append(dead_letters.c.event_id == event)
        with self._database.write() as connection:
            change = update(dead_letters).where(*conditions).values(attempts=0, next_attempt_at=to_text(now()))
            count = connection.execute(change).rowcount
        if count == 0 and (consumer is not None or event is not None):
            raise NotFoundError(
                "there is no such dead letter",
                received=", ".join(str(part) for part in (consumer, event) if part is not None),
                remedy="List them with: noa events dead-letters",
            )
        return count


def _to_letter(row: Row[Any]) -> DeadLetter:
    return DeadLetter(
        consumer=row.consumer,
        event_id=row.event_id,
        attempts=row.attempts,
        error=row.error,
        created_at=letter_time(row, "created_at"),
        next_attempt_at=None if row.next_attempt_at is None else letter_time(row, "next_attempt_at"),
    )


def letter_time(row: Row[Any], column: str) -> datetime:
    """Return a time of a row of `noa_dead_letters`.

    Raises:
        IntegrityError: it cannot be read.
    """
    return parse_time(
        getattr(row, column),
        of=f"the dead letter of event {row.event_id} for `{row.consumer}`",
        column=f"noa_dead_letters.{column}",
        remedy=f"Send it again with `noa events dead-letters --redeliver --event {row.event_id}`",
    )


def cursor_time(row: Row[Any], column: str) -> datetime:
    """Return a time of a row of `noa_webhook_cursors`.

    Raises:
        IntegrityError: it cannot be read.
    """
    return parse_time(
        getattr(row, column),
        of=f"`{row.consumer}` at model `{row.name}`",
        column=f"noa_webhook_cursors.{column}",
        remedy=f"Set its place anew: noa events seek {row.consumer} {row.last_id}",
    )
