"""The numbers of events: who gives them, which can never have been given, and what it means that none is left.

The database counts them: SQLite for AUTOINCREMENT, PostgreSQL in a sequence. SQLite also never goes below the largest
number in the table, so one event with the largest number that there can be stops all writing.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, exc, func, select, text

from noa.errors import IntegrityError
from noa_registry.tables import outbox

LARGEST_ID: Final = 2**31 - 1
"""What the column holds on every kind of database; no registry has as many events."""
_LARGEST_OF_SQLITE: Final = 2**63 - 1
_GIVEN: Final = {
    "sqlite": text("SELECT seq FROM sqlite_sequence WHERE name = 'noa_outbox'"),
    "postgresql": text(
        "SELECT CASE WHEN has_sequence_privilege(counter, 'SELECT, USAGE') THEN pg_sequence_last_value(counter) END "
        "FROM (SELECT pg_get_serial_sequence('noa_outbox', 'id')::regclass AS counter) AS counters"
    ),
}
_REMEDY: Final = (
    "No disk is full: somebody wrote into the database directly. `noa ledger verify` names such events; "
    "restore a backup of the database"
)


def last_given_id(connection: Connection) -> int | None:
    """Return the number that the database gave last, None if it does not tell."""
    found: object = connection.execute(_GIVEN[connection.dialect.name]).scalar()
    return found if type(found) is int else None


def used_up_error(connection: Connection, error: exc.DBAPIError) -> IntegrityError | None:
    """Return what it means that an event could not be written, None if that is not for want of a number."""
    if connection.dialect.name == "postgresql":  # its transaction is over: nothing more can be asked
        state = getattr(error.orig, "sqlstate", None)
        is_taken = state == "23505" and "noa_outbox_pkey" in str(error.orig)
        if state != "2200H" and not is_taken:
            return None
        received = "one that an event has already" if is_taken else "none: the sequence of `noa_outbox` is at its end"
    else:
        if "full" not in str(error.orig):
            return None
        try:
            largest: object = connection.execute(select(func.max(outbox.c.id))).scalar()
            given = last_given_id(connection)
        except exc.DBAPIError:  # the disk is full indeed
            return None
        if largest == _LARGEST_OF_SQLITE:
            received = f"none: event {largest} has the largest number that there can be"
        elif given is not None and given >= _LARGEST_OF_SQLITE:
            received = f"none: the count of events in `sqlite_sequence` is {given}"
        else:
            return None
    return IntegrityError(
        "the next event has no number that it could have, so nothing was written",
        where="noa_outbox",
        expected="a number after that of the newest event",
        received=received,
        remedy=_REMEDY,
        file="noa_outbox",
    )
