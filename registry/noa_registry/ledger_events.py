"""Moves of aliases as events: what an event says of its row, and whether the outbox still says it.

Every move writes its row and its event in one transaction, so each is a witness of the other: an event that differs was
changed, or its row was; an event of a row that is not there was made up, or the ledger was cut; and a row without its
event had one, unless it was written before there were events or the event was removed by its age. Both have one time
and one order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any, Final, cast

from sqlalchemy import Connection, Row, or_, select

from noa.digests import canonical_json
from noa.errors import IntegrityError
from noa_registry.database import now, to_text
from noa_registry.events.event_ids import LARGEST_ID, last_given_id
from noa_registry.events.outbox import EventKind
from noa_registry.json_columns import parse_table, parse_time
from noa_registry.ledger import Action, LedgerEntry, LedgerProblem
from noa_registry.ledger_rows import StoredEntry
from noa_registry.records import load_entry
from noa_registry.tables import dead_letters, outbox

EVENT_KINDS: Final[Mapping[Action, EventKind]] = {"promote": "alias.promoted", "rollback": "alias.rolled_back"}
_PAGE: Final = 2000
_SHOWN: Final = 80
_READABLE_IN: Final = 100
_LONGEST_MOVE: Final = timedelta(minutes=1)


def event_payload(entry: LedgerEntry) -> dict[str, object]:
    """Return what the event of a move says of its row, beside the model's name and the kind."""
    return {
        "alias": entry.alias,
        "from": entry.from_number,
        "to": entry.to_number,
        "from_digest": entry.from_digest,
        "to_digest": entry.to_digest,
        "actor": entry.actor,
        "reason": entry.reason,
        "sequence": entry.sequence,
        "hash": entry.hash,
    }


class EventCheck:
    """Compares the rows of the ledger, given one after the other, with the events of moves, read once."""

    def __init__(self) -> None:
        self._rows: dict[int, bytes] = {}
        self._times: dict[int, datetime] = {}

    def note(self, stored: StoredEntry) -> None:
        """Remember a row, as briefly as can be: ledgers are long."""
        entry = stored.entry
        self._rows[entry.sequence] = _mark(*_expected(entry)) if stored.is_readable else b""
        if stored.is_readable:
            self._times[entry.sequence] = entry.created_at

    def problems(self, connection: Connection, *, keep: timedelta, tolerance: timedelta) -> Iterator[LedgerProblem]:
        """Give every event that differs from its row or has none, and every row whose event is not there (any more).

        `keep` is how old events are at most that nobody removes; `tolerance` by how much clocks may differ.
        """
        told: dict[int, int] = {}  # in the order of the events
        for row in _events(connection):
            sequence = _sequence_of(row)
            if sequence not in self._rows:
                yield _of_no_row(row, sequence)
                continue
            first = told.setdefault(sequence, row.id)
            if first != row.id:
                yield _problem(sequence, "two events tell of this row", f"event {first} alone", f"event {row.id}, too")
            elif self._rows[sequence] not in (b"", _mark(row.name, row.kind, row.payload)):
                yield _difference(row, load_entry(connection, sequence))
            if sequence in self._times:
                yield from _time_problems(row, sequence, self._times[sequence], tolerance)
        for sequence, expected in zip(told, sorted(told), strict=True):
            if sequence != expected:
                what = f"event {told[sequence]} is out of order: events come in the order of their rows"
                yield _problem(sequence, what, f"the event of row {expected} in its place", f"that of row {sequence}")
        yield from _impossible_ids(connection)
        since = _kept_since(connection, keep)
        for sequence, moment in self._times.items():
            if sequence not in told and since is not None and moment > since:
                what = "no event tells of this row, and older events are kept"
                yield _problem(sequence, what, "an event of its move", "none")


def _expected(entry: LedgerEntry) -> tuple[str, str, str]:
    return entry.name, EVENT_KINDS[entry.action], canonical_json(event_payload(entry)).decode()


def _mark(name: object, kind: object, payload: object) -> bytes:
    return blake2b(repr((name, kind, payload)).encode(), digest_size=16).digest()


def _events(connection: Connection) -> Iterator[Row[Any]]:
    query = select(outbox).where(outbox.c.kind.in_(EVENT_KINDS.values())).order_by(outbox.c.id).limit(_PAGE)
    rows = connection.execute(query).all()
    while rows:
        yield from rows
        rows = connection.execute(query.where(outbox.c.id > rows[-1].id)).all()


def _sequence_of(row: Row[Any]) -> int:
    """Return the number of the row that an event tells of, 0 if it tells of none."""
    try:
        found: object = parse_table(row.payload, of="an event", column="noa_outbox.payload").get("sequence")
    except IntegrityError:
        return 0
    return found if type(found) is int else 0


def _of_no_row(row: Row[Any], sequence: int) -> LedgerProblem:
    if sequence == 0:
        return _problem(0, f"event {row.id} tells of no row", "a move in JSON, with `sequence`", _shown(row.payload))
    what = f"event {row.id} tells of this row, which does not exist: the ledger was cut, or the event was made up"
    return _problem(sequence, what, f"row {sequence}", "none")


def _difference(row: Row[Any], entry: LedgerEntry) -> LedgerProblem:
    name, kind, payload = _expected(entry)
    expected = {"model": name, "kind": kind, **json.loads(payload)}
    received = {"model": row.name, "kind": row.kind, **cast("dict[str, object]", json.loads(row.payload))}
    what = f"event {row.id} does not say of this row what the row says"
    keys = [*expected, *(received.keys() - expected.keys())]
    differing = [key for key in keys if key not in received or key not in expected or expected[key] != received[key]]
    if not differing:
        return _problem(entry.sequence, what, payload, f"another spelling of it: {row.payload!r}")
    shown = [
        ", ".join(f"{key} {_shown(side[key])}" if key in side else f"no {key}" for key in differing)
        for side in (expected, received)
    ]
    return _problem(entry.sequence, what, shown[0], shown[1])


def _time_problems(row: Row[Any], sequence: int, expected: datetime, tolerance: timedelta) -> Iterator[LedgerProblem]:
    """Give an event whose time is not that of its row.

    Earlier versions looked at the clock once more for the event, in the same transaction.
    """
    text: object = row.created_at
    try:
        moment = parse_time(text, of="an event", column="noa_outbox.created_at")
        is_spelt = to_text(moment) == text
    except (IntegrityError, OverflowError):
        yield _problem(sequence, f"the time of event {row.id} cannot be read", to_text(expected), _shown(text))
        return
    if not is_spelt or not -tolerance <= moment - expected <= tolerance + _LONGEST_MOVE:
        what = f"event {row.id} has another time than its row, with which it was written"
        yield _problem(sequence, what, to_text(expected), _shown(text))


def _impossible_ids(connection: Connection) -> Iterator[LedgerProblem]:
    """Give the events whose numbers noa cannot have given, and a count of them that leaves no number."""
    given = last_given_id(connection)
    bound = LARGEST_ID if given is None else min(given, LARGEST_ID)
    query = select(outbox).where(or_(outbox.c.id > bound, outbox.c.id < 1)).order_by(outbox.c.id)
    is_named = False
    for row in connection.execute(query):
        is_named = True
        sequence = _sequence_of(row) if row.kind in EVENT_KINDS.values() else 0
        yield _problem(sequence, f"event {row.id} has a number that no event was given", f"1 to {bound}", str(row.id))
    if given is not None and given > LARGEST_ID and not is_named:
        what = "the database's count of events was changed: soon no event can be written"
        yield _problem(0, what, f"at most {LARGEST_ID}", str(given))


def _kept_since(connection: Connection, keep: timedelta) -> datetime | None:
    """Return the time of the oldest event after which none was removed, None if there is none such.

    Events go by their age. One that a webhook gave up outlives those after it, so such events and all that are older
    than `keep` prove nothing.
    """
    query = (
        select(outbox.c.created_at)
        .where(
            outbox.c.created_at >= to_text(now() - keep),
            outbox.c.id.not_in(select(dead_letters.c.event_id)),
        )
        .order_by(outbox.c.id)
        .limit(_READABLE_IN)
    )
    for text in connection.execute(query).scalars():
        try:
            return parse_time(text, of="an event", column="noa_outbox.created_at")
        except IntegrityError:  # `find_time_problems` names it
            continue
    return None


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _problem(sequence: int, what: str, expected: str, received: str) -> LedgerProblem:
    return LedgerProblem(sequence=sequence, what=what, expected=expected, received=received)
