"""The event log: read what happened, in order, and remember how far each consumer has come.

At least once: `read` gives the same events again until `commit` says that they are done with. The order is that of the
transactions, so also that of each model. Consumers know nothing of each other; one that falls behind holds back nobody,
but the events that it has not read yet are kept for it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from noa.errors import IntegrityError, InvalidInputError, NotFoundError
from noa.references import check_name
from noa_registry.database import Database, now, to_text
from noa_registry.events.outbox import WHOLE_REGISTRY
from noa_registry.json_columns import parse_table, parse_time, unreadable
from noa_registry.tables import consumers, dead_letters, outbox, webhook_cursors
from noa_registry.triggers import lifted_removal

if TYPE_CHECKING:
    from noa.settings import WebhookSettings
    from noa_registry.events.delivery_state import DeadLetters

_CONSUMER = re.compile(r"[a-z][a-z0-9._:-]{0,127}")
_MOST = 10_000
DEFAULT_KEEP = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. `id` grows with time; `name` is the model, or `*` for the whole registry."""

    id: int
    name: str
    kind: str
    payload: Mapping[str, object]
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    """Events, oldest first, and an error for each that cannot be read. `last_id` is where the next page goes on."""

    events: tuple[Event, ...]
    problems: tuple[IntegrityError, ...]
    last_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """How far a consumer has come: up to and with event `last_id`. `lag` is how many events are newer."""

    consumer: str
    last_id: int
    lag: int
    updated_at: datetime


class EventLog:
    """The events of one registry. `keep` is how long those are kept that every consumer is done with."""

    def __init__(self, database: Database, *, keep: timedelta = DEFAULT_KEEP) -> None:
        self._database = database
        self._keep = keep

    @property
    def dead_letters(self) -> DeadLetters:
        """What webhooks gave up, and asking for another try."""
        from noa_registry.events.delivery_state import DeadLetters  # it stands on this module

        return DeadLetters(self._database)

    def deliver(
        self,
        webhooks: Mapping[str, WebhookSettings],
        *,
        state_dir: Path,
        stop: threading.Event,
        tell: Callable[[str], None],
    ) -> None:
        """Send events to webhooks until `stop` is set; one process per project. `tell` takes lines for a log.

        Raises:
            ConflictError: another process delivers for this project.
            InvalidInputError: no webhook is configured, or one asks for unknown kinds of events.
            ServiceError: the delivery to a webhook ended by itself; the cause is chained.
        """
        from noa_registry.events.deliverer import build_webhooks, deliver_events  # they stand on this module

        chosen = build_webhooks(webhooks)
        deliver_events(self._database, chosen, state_dir=state_dir, keep=self._keep, stop=stop, tell=tell)

    def read(self, consumer: str, *, name: str | None = None, limit: int = 100) -> list[Event]:
        """Return the oldest events that `consumer` has not committed, of one model or of all.

        A consumer that never committed starts at the oldest event that is kept.
        """
        _check_consumer(consumer)
        with self._database.snapshot() as connection:
            return load_events(connection, after=last_committed(connection, consumer), name=name, limit=limit)

    def since(self, after: int, *, name: str | None = None, limit: int = 100) -> list[Event]:
        """Return the oldest events after number `after`, without being a consumer."""
        with self._database.read() as connection:
            return load_events(connection, after=after, name=name, limit=limit)

    def newest(self, *, name: str | None = None, limit: int = 20) -> list[Event]:
        """Return the newest events, oldest of them first."""
        _check_limit(limit)
        query = select(outbox).order_by(outbox.c.id.desc()).limit(limit)
        if name is not None:
            query = query.where(outbox.c.name == _check_model(name))
        with self._database.read() as connection:
            return [_to_event(row) for row in reversed(connection.execute(query).all())]

    def page(self, *, after: int | None = None, name: str | None = None, limit: int = 20) -> EventPage:
        """Return the oldest events after number `after`, or the newest; what cannot be read hinders no other one."""
        _check_limit(limit)
        order = outbox.c.id.desc() if after is None else outbox.c.id
        query = select(outbox).order_by(order).limit(limit)
        if after is not None:
            query = query.where(outbox.c.id > after)
        if name is not None:
            query = query.where(outbox.c.name == _check_model(name))
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        if after is None:
            rows = rows[::-1]
        events: list[Event] = []
        problems: list[IntegrityError] = []
        for row in rows:
            try:
                events.append(_to_event(row))
            except IntegrityError as exc:
                problems.append(exc)
        last = rows[-1].id if rows else after or 0
        return EventPage(events=tuple(events), problems=tuple(problems), last_id=last)

    def commit(self, consumer: str, up_to: int) -> None:
        """Say that `consumer` is done with all events up to and with `up_to`.

        An older number than was committed before changes nothing; going back is what `seek` is for.

        Raises:
            InvalidInputError: there is no such event yet.
        """
        _check_consumer(consumer)
        with self._database.write() as connection:
            newest = newest_id(connection)
            if not 0 <= up_to <= newest:
                raise InvalidInputError(
                    f"`{consumer}` cannot be done with an event that was not yet",
                    expected=f"0 to {newest}",
                    received=str(up_to),
                )
            set_offset(connection, consumer, max(up_to, last_committed(connection, consumer)))

    def seek(self, consumer: str, to: int, *, dry_run: bool = False) -> int:
        """Let `consumer` go on after event `to`: an older one to read again, 0 for all, a newer one to skip.

        Returns after which event it would have gone on. `dry_run`: only that, and the same refusals.

        Raises:
            NotFoundError: events after `to` were removed already; the message names the oldest that is kept.
            InvalidInputError: there is no such event yet.
        """
        _check_consumer(consumer)
        with self._database.write() as connection:
            oldest, newest = _oldest_id(connection), newest_id(connection)
            if not 0 <= to <= newest:
                raise InvalidInputError("there is no such event", expected=f"0 to {newest}", received=str(to))
            if to and to < oldest - 1:
                raise NotFoundError(
                    f"the events after {to} are no longer kept",
                    expected=f"{oldest - 1} or newer; 0 for all that is kept",
                    received=str(to),
                )
            before = last_committed(connection, consumer)
            if not dry_run:
                set_offset(connection, consumer, to)
                connection.execute(delete(webhook_cursors).where(webhook_cursors.c.consumer == consumer))
        return before

    def forget(self, consumer: str) -> None:
        """Remove a consumer that will not come back, so that its unread events are not kept for it.

        Raises:
            NotFoundError: there is no such consumer.
        """
        with self._database.write() as connection:
            here = consumers.c.consumer == consumer
            if connection.execute(delete(consumers).where(here)).rowcount == 0:
                raise NotFoundError(f"no consumer `{consumer}`", remedy="List them with: noa events consumers")
            for table in (webhook_cursors, dead_letters):
                connection.execute(delete(table).where(table.c.consumer == consumer))

    def consumers(self) -> list[Consumer]:
        """Return all consumers by name."""
        newer = select(func.count()).where(outbox.c.id > consumers.c.last_id).scalar_subquery()
        with self._database.read() as connection:
            rows = connection.execute(select(consumers, newer.label("lag")).order_by(consumers.c.consumer)).all()
        return [
            Consumer(
                consumer=row.consumer,
                last_id=row.last_id,
                lag=row.lag,
                updated_at=consumer_time(row, "updated_at"),
            )
            for row in rows
        ]

    def trim(self, *, keep: timedelta | None = None, dry_run: bool = False) -> int:
        """Remove events that are older than `keep` and that every consumer is done with; returns how many.

        `keep` is that of the settings if it is not given. Events in a dead-letter list stay, and so does the newest.
        The trigger that refuses removals is lifted inside the transaction only.
        """
        keep = self._keep if keep is None else keep
        if keep < timedelta():
            raise InvalidInputError("events cannot be kept for less than no time", received=str(keep))
        if dry_run:
            with self._database.read() as connection:
                return int(connection.execute(select(func.count()).where(*_removable(connection, keep))).scalar_one())
        with self._database.write() as connection:
            conditions = _removable(connection, keep)
            if not connection.execute(select(outbox.c.id).where(*conditions).limit(1)).first():
                return 0
            with lifted_removal(connection, outbox):
                return connection.execute(delete(outbox).where(*conditions)).rowcount


def load_events(connection: Connection, *, after: int, name: str | None = None, limit: int) -> list[Event]:
    """Return the oldest events after number `after`."""
    _check_limit(limit)
    query = select(outbox).where(outbox.c.id > after).order_by(outbox.c.id).limit(limit)
    if name is not None:
        query = query.where(outbox.c.name == _check_model(name))
    return [_to_event(row) for row in connection.execute(query)]


def load_event(connection: Connection, event: int) -> Event | None:
    """Return one event, or None if it is no longer kept."""
    row = connection.execute(select(outbox).where(outbox.c.id == event)).one_or_none()
    return None if row is None else _to_event(row)


def last_committed(connection: Connection, consumer: str) -> int:
    """Return the number up to which a consumer is done; 0 for a new one."""
    return connection.execute(select(consumers.c.last_id).where(consumers.c.consumer == consumer)).scalar() or 0


def set_offset(connection: Connection, consumer: str, last_id: int) -> None:
    """Store how far a consumer is, in the caller's write transaction."""
    values = {"last_id": last_id, "updated_at": to_text(now())}
    here = consumers.c.consumer == consumer
    if connection.execute(update(consumers).where(here).values(**values)).rowcount == 0:
        connection.execute(insert(consumers).values(consumer=consumer, **values))


def newest_id(connection: Connection) -> int:
    """Return the number of the newest event, 0 if there is none."""
    return connection.execute(select(func.max(outbox.c.id))).scalar() or 0


def _oldest_id(connection: Connection) -> int:
    return connection.execute(select(func.min(outbox.c.id))).scalar() or 0


def _removable(connection: Connection, keep: timedelta) -> tuple[Any, ...]:
    slowest = connection.execute(select(func.min(consumers.c.last_id))).scalar()
    conditions = [
        outbox.c.created_at < to_text(now() - keep),
        outbox.c.id < newest_id(connection),  # the newest stays: numbers must not begin anew
        outbox.c.id.not_in(select(dead_letters.c.event_id)),
    ]
    return (*conditions, outbox.c.id <= slowest) if slowest is not None else tuple(conditions)


def _check_consumer(consumer: str) -> None:
    if not _CONSUMER.fullmatch(consumer):
        raise InvalidInputError(
            f"`{consumer}` cannot be a consumer's name", expected=_CONSUMER.pattern, received=repr(consumer)
        )


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= _MOST:
        raise InvalidInputError("a page has a size", expected=f"1 to {_MOST}", received=str(limit))


def _check_model(name: str) -> str:
    return name if name == WHOLE_REGISTRY else check_name(name)


def _to_event(row: Row[Any]) -> Event:
    for column in ("name", "kind"):
        if not isinstance(value := getattr(row, column), str):  # SQLite keeps bytes in any column
            raise unreadable(_of(row), f"noa_outbox.{column}", received=repr(value)[:80], remedy=_remedy(row))
    return Event(
        id=row.id,
        name=row.name,
        kind=row.kind,
        payload=parse_table(row.payload, of=_of(row), column="noa_outbox.payload", remedy=_remedy(row)),
        created_at=event_time(row, "created_at"),
    )


def event_time(row: Row[Any], column: str) -> datetime:
    """Return a time of a row of `noa_outbox`.

    Raises:
        IntegrityError: it cannot be read.
    """
    return parse_time(getattr(row, column), of=_of(row), column=f"noa_outbox.{column}", remedy=_remedy(row))


def _of(row: Row[Any]) -> str:
    return f"event {row.id} of `{row.name}`"


def _remedy(row: Row[Any]) -> str:
    return f"Skip it with `noa events seek CONSUMER {row.id}`, or restore a backup of the database"


def consumer_time(row: Row[Any], column: str) -> datetime:
    """Return a time of a row of `noa_consumers`.

    Raises:
        IntegrityError: it cannot be read.
    """
    return parse_time(
        getattr(row, column),
        of=f"consumer `{row.consumer}`",
        column=f"noa_consumers.{column}",
        remedy=f"Set its place anew: noa events seek {row.consumer} {row.last_id}",
    )
