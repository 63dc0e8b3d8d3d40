"""SQLite: one file, in WAL mode with `synchronous=FULL`.

What was committed survives a power cut, and readers never wait for a writer. A write begins with `BEGIN IMMEDIATE`,
which takes the file's one write lock. A file that this user cannot write is only read (`sqlite_reading.py`).
"""

from __future__ import annotations

import sqlite3
from contextlib import AbstractContextManager, nullcontext

from sqlalchemy import Connection, Engine, create_engine, event, exc
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from noa.errors import NoaError, StorageError
from noa_registry.database import locked_error
from noa_registry.database_url import DatabaseUrl
from noa_registry.sqlite_reading import (
    connect_read_only,
    has_log,
    is_read_only,
    read_only_error,
    undisturbed,
    unread_log_error,
)

_BEGIN = "noa_begin"
_REMEDIES = {
    "full": "Free some space and run the same command again; nothing was lost",
    # A full disk says this where the file that SQLite shares between processes cannot grow.
    "disk I/O": "Check that the disk works and has some space, and run the same command again; nothing was lost",
    "readonly": "Check the permissions of the file and its folder",
    "unable to open": "Check that the folder exists and may be written",
    "malformed": "Restore the file from a backup",
    "not a database": "Restore the file from a backup",
}


class SqliteBackend:
    """How a SQLite file is opened, and what its errors mean. Implements `noa_registry.database.Backend`."""

    def __init__(self, url: DatabaseUrl, lock_timeout_s: float) -> None:
        self._url = url
        self._is_read_only = is_read_only(url.file)
        self.engine = (_read_only_engine if self._is_read_only else _engine)(url, lock_timeout_s)
        event.listen(self.engine, "begin", _begin)
        self.readers = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self.snapshots = self.engine.execution_options(**{_BEGIN: "BEGIN"})
        self.writers = self.engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})

    @property
    def refusal(self) -> NoaError | None:
        """Why nothing can be written here, None if it can."""
        return read_only_error(self._url) if self._is_read_only else None

    def reading(self) -> AbstractContextManager[None]:
        """Refuse what is read of a file that changes, where no lock keeps it from changing."""
        return undisturbed(self._url) if self._is_read_only else nullcontext()

    def take_turn(self, connection: Connection, token: str | None) -> None:
        """Do nothing: `BEGIN IMMEDIATE` has waited for the other writers already."""

    def was_committed(self, token: str) -> bool:
        """Say no: a commit that SQLite refuses is undone."""
        return False

    def translate(self, error: exc.DBAPIError) -> NoaError:
        """Return what an error of SQLite means to a user."""
        text = str(error.orig)
        if self._is_read_only and "unable to open" in text and has_log(self._url.file):
            return unread_log_error(self._url)
        return sqlite_error(self._url, text)

    def is_missing_table(self, error: exc.DBAPIError) -> bool:
        """Tell whether a query failed because there is no such table."""
        return "no such table" in str(error.orig)


def sqlite_error(url: DatabaseUrl, text: str) -> StorageError:
    """Return the error for a message of SQLite."""
    if "locked" in text or "busy" in text:
        return locked_error(url)
    remedy = next((remedy for part, remedy in _REMEDIES.items() if part in text), None)
    return StorageError(f"the database refused: {text}", where=str(url), remedy=remedy, path=str(url))


def _engine(url: DatabaseUrl, lock_timeout_s: float) -> Engine:
    engine = create_engine(
        url.address,
        connect_args={"timeout": lock_timeout_s, "check_same_thread": False},
        pool_size=8,
        max_overflow=64,
        pool_timeout=lock_timeout_s,
    )
    event.listen(engine, "connect", _configure)
    event.listen(engine, "connect", _configure_for_writing)
    return engine


def _read_only_engine(url: DatabaseUrl, lock_timeout_s: float) -> Engine:
    def connect() -> sqlite3.Connection:
        return connect_read_only(url.file, timeout_s=lock_timeout_s)

    engine = create_engine(url.address, creator=connect, poolclass=NullPool)
    event.listen(engine, "connect", _configure)
    return engine


def _configure(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    # The driver must not open transactions by itself: `_begin` says when, and of which kind.
    connection.isolation_level = None
    # A text that somebody spoilt must be refused by the record of its row, and not stop the reading of all others.
    connection.text_factory = _to_text


def _configure_for_writing(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _to_text(stored: bytes) -> str:
    return stored.decode("utf-8", "backslashreplace")


def _begin(connection: Connection) -> None:
    statement = connection.get_execution_options().get(_BEGIN)
    if statement is not None:
        connection.exec_driver_sql(statement)
