"""Time that does not run backwards: what the database knows of the time, against the clock of this process.

An approval ends at a time and the ledger tells when aliases moved. A clock that was set back would let an expired
approval count again; so what is recorded already is a time that has passed, whatever the clock says. A clock that runs
ahead cannot be told from days in which nothing happened.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import Connection, func, select

from noa.errors import ConflictError
from noa_registry.database import now
from noa_registry.tables import ledger, outbox

CLOCK_TOLERANCE: Final = timedelta(seconds=2)
"""By how much the clocks of several machines may differ."""


def passed_moment(connection: Connection) -> datetime:
    """Return a time that has passed for sure: now, or that of the newest move or event if this is later."""
    event = select(outbox.c.created_at).where(outbox.c.id == select(func.max(outbox.c.id)).scalar_subquery())
    known = newest_move(connection), _parsed(connection.execute(event).scalar())
    return max(now(), *filter(None, known))


def newest_move(connection: Connection) -> datetime | None:
    """Return the time of the ledger's newest row, None if there is none or nobody can read it."""
    query = select(ledger.c.created_at).order_by(ledger.c.sequence.desc()).limit(1)
    return _parsed(connection.execute(query).scalar())


def refuse_clock_behind(connection: Connection, tolerance: timedelta) -> None:
    """Raise if the clock is behind the newest move of an alias.

    Raises:
        ConflictError: it is, by more than `tolerance`.
    """
    newest, moment = newest_move(connection), now()
    if newest is not None and moment + tolerance < newest:
        raise ConflictError(
            "the clock went back: by it the ledger's newest row is still to come",
            expected=f"a time after {newest.isoformat(timespec='seconds')}",
            received=moment.isoformat(timespec="seconds"),
            remedy="Set the clock right (NTP). Machines whose clocks differ by more: `registry.clock_tolerance_s`",
        )


def _parsed(text: object) -> datetime | None:
    with suppress(ValueError, TypeError):
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
        return None if found is None else found.astimezone(UTC)
    return None  # whoever needs the row is told
