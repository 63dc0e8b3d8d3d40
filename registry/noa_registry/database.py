"""The database: connections, transactions, and the translation of its errors.

Reads run in autocommit on pooled connections; a write is one `BEGIN IMMEDIATE` transaction, so that all writers of all
processes go one after the other. SQLite runs in WAL mode with `synchronous=FULL`: what was committed survives a power
cut, and readers never wait for a writer.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, exc
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import ConnectionPoolEntry

from noa.errors import SettingsError, StorageError

_BEGIN = "noa_begin"


class Database:
    """One SQLite database, shared by the threads of a process."""

    def __init__(self, path: Path, *, lock_timeout_s: float) -> None:
        self.path = path
        self.lock_timeout_s = lock_timeout_s
        self.engine = _create_engine(path, lock_timeout_s)
        self._readers = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._writers = self.engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})
        self._snapshots = self.engine.execution_options(**{_BEGIN: "BEGIN"})
        self._write_turn = threading.Lock()

    @contextmanager
    def read(self) -> Generator[Connection, None, None]:
        """Give a connection on which every statement sees the newest committed state."""
        with translate_database_errors(self.path), self._readers.connect() as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Generator[Connection, None, None]:
        """Give a connection whose statements all see the same committed state."""
        with translate_database_errors(self.path), self._snapshots.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Generator[Connection, None, None]:
        """Give a connection inside the one write transaction; commits at the end, undoes everything on an error.

        Raises:
            StorageError: the disk is full or read-only, or another writer held the lock for `lock_timeout_s`.
        """
        # Threads of one process queue here: SQLite's own waiting polls and can starve one of many.
        if not self._write_turn.acquire(timeout=self.lock_timeout_s):
            raise _locked(self.path)
        try:
            with translate_database_errors(self.path), self._writers.begin() as connection:
                yield connection
        finally:
            self._write_turn.release()

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def sqlite_path(url: str) -> Path:
    """Return the file of a SQLite URL.

    Raises:
        SettingsError: the URL is malformed, names another database, or a database in memory.
    """
    try:
        parsed: URL = make_url(url)
    except exc.ArgumentError as error:
        raise SettingsError(
            "`registry.database_url` is not a database URL", expected="e.g. sqlite:////path/noa.db", received=url
        ) from error
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:" or parsed.query:
        raise SettingsError(
            "`registry.database_url` names a database that this registry cannot use",
            expected="a SQLite file, e.g. sqlite:////path/noa.db",
            received=parsed.render_as_string(hide_password=True),
        )
    return Path(parsed.database).expanduser().absolute()


def sqlite_url(path: Path) -> str:
    """Return the URL by which stock MLflow opens the same database."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def now() -> datetime:
    """Return the time in UTC."""
    return datetime.now(UTC)


def to_text(moment: datetime) -> str:
    """Return the time as it is stored: UTC, always with microseconds, so that texts sort like times."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


@contextmanager
def translate_database_errors(path: Path) -> Generator[None, None, None]:
    """Turn what the database refuses into a `StorageError` that names the file and the remedy."""
    try:
        yield
    except exc.DBAPIError as error:
        raise _storage_error(path, str(error.orig)) from error
    except exc.TimeoutError as error:
        raise _locked(path) from error
    except sqlite3.Error as error:
        raise _storage_error(path, str(error)) from error


def _storage_error(path: Path, text: str) -> StorageError:
    if "locked" in text or "busy" in text:
        return _locked(path)
    remedies = {
        "full": "Free some space and run the same command again; nothing was lost",
        "readonly": "Check the permissions of the file and its folder",
        "unable to open": "Check that the folder exists and may be written",
        "malformed": "Restore the file from a backup",
        "not a database": "Restore the file from a backup",
    }
    remedy = next((remedy for part, remedy in remedies.items() if part in text), None)
    return StorageError(f"the database refused: {text}", where=str(path), remedy=remedy, path=str(path))


def _locked(path: Path) -> StorageError:
    return StorageError(
        "the database is locked by another writer",
        where=str(path),
        remedy="Try again, or raise `registry.lock_timeout_s`",
        path=str(path),
    )


def _create_engine(path: Path, lock_timeout_s: float) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": lock_timeout_s, "check_same_thread": False},
        pool_size=8,
        max_overflow=64,
        pool_timeout=lock_timeout_s,
    )
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def _configure(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    # The driver must not open transactions by itself: `_begin` says when, and of which kind.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    statement = connection.get_execution_options().get(_BEGIN)
    if statement is not None:
        connection.exec_driver_sql(statement)
