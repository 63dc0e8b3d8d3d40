"""The database: connections, transactions, and the translation of its errors; the same on SQLite and PostgreSQL.

Reads run in autocommit on pooled connections; a write is one transaction, and all writers of all processes go one after
the other, so that a writer sees the newest committed state until its end. What differs between the two databases is in
`sqlite_database.py` and `postgres_database.py`, behind the protocol `Backend`.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Protocol

from sqlalchemy import Connection, Engine, exc

from noa.errors import IntegrityError, NoaError, StorageError
from noa_registry.database_url import DatabaseUrl, Dialect, parse_database_url
from noa_registry.foreign_cells import MISREAD, blame


class Backend(Protocol):
    """What a kind of database does in its own way."""

    @property
    def engine(self) -> Engine:
        """The pool of connections."""
        ...

    @property
    def readers(self) -> Engine:
        """The same pool; every statement is a transaction of its own."""
        ...

    @property
    def snapshots(self) -> Engine:
        """The same pool; all statements of a transaction see one state."""
        ...

    @property
    def writers(self) -> Engine:
        """The same pool; for transactions that begin with `take_turn`."""
        ...

    @property
    def refusal(self) -> NoaError | None:
        """Why nothing can be written here, None if it can."""
        ...

    def reading(self) -> AbstractContextManager[None]:
        """Give a block in which one connection reads; it may refuse at the end what was read."""
        ...

    def take_turn(self, connection: Connection, token: str | None) -> None:
        """Wait until no other writer is at work; leave `token` in the transaction, if there is one."""
        ...

    def was_committed(self, token: str) -> bool:
        """Find out whether a transaction took place whose commit was not answered.

        Raises:
            StorageError: that cannot be found out now.
        """
        ...

    def translate(self, error: exc.DBAPIError) -> NoaError:
        """Return what an error of the driver means to a user."""
        ...

    def is_missing_table(self, error: exc.DBAPIError) -> bool:
        """Tell whether a query failed because there is no such table."""
        ...


class Database:
    """One database, shared by the threads of a process. `path` is its place as it may be shown, without a password.

    Raises:
        DependencyMissingError: the driver of PostgreSQL is not installed.
    """

    def __init__(self, url: DatabaseUrl | str, *, lock_timeout_s: float) -> None:
        self.url = parse_database_url(url) if isinstance(url, str) else url
        self.lock_timeout_s = lock_timeout_s
        self._backend = _open_backend(self.url, lock_timeout_s)
        self._write_turn = threading.Lock()
        self._identity = _identity(self.url)

    @property
    def dialect(self) -> Dialect:
        """Which kind of database it is."""
        return self.url.dialect

    @property
    def engine(self) -> Engine:
        """The pool of connections, for what needs SQLAlchemy itself."""
        return self._backend.engine

    @property
    def is_read_only(self) -> bool:
        """Tell whether this process can only read the database."""
        return self._backend.refusal is not None

    def require_writable(self) -> None:
        """Raise if this process can only read the database.

        Raises:
            StorageError: it cannot be written; the message says what to do.
        """
        refusal = self._backend.refusal
        if refusal is not None:
            raise refusal

    @contextmanager
    def read(self) -> Generator[Connection, None, None]:
        """Give a connection on which every statement sees the newest committed state."""
        with self.translated_errors(), self._backend.reading(), self._backend.readers.connect() as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Generator[Connection, None, None]:
        """Give a connection whose statements all see the same committed state."""
        with self.translated_errors(), self._backend.reading(), self._backend.snapshots.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Generator[Connection, None, None]:
        """Give a connection inside the one write transaction; commits at the end, undoes everything on an error.

        Raises:
            StorageError: the database refused (full, read-only, gone), or another writer held the lock for
                `lock_timeout_s`. Nothing was written, unless the message says that this is unknown.
        """
        with self._write(uuid.uuid4().hex) as connection:
            yield connection

    @contextmanager
    def write_schema(self) -> Generator[Connection, None, None]:
        """As `write`, while the tables are made: a commit whose answer is lost is an error."""
        with self._write(None) as connection:
            yield connection

    @contextmanager
    def _write(self, token: str | None) -> Generator[Connection, None, None]:
        self.require_writable()
        # Threads of one process queue here: SQLite's own waiting polls and can starve one of many.
        if not self._write_turn.acquire(timeout=self.lock_timeout_s):
            raise locked_error(self.url)
        try:
            with self.translated_errors(), self._backend.writers.connect() as connection, connection.begin() as whole:
                self._backend.take_turn(connection, token)
                yield connection
                try:
                    whole.commit()
                except exc.DBAPIError as error:
                    # The answer was lost, not the commit perhaps: nobody may undo files of what is committed.
                    if token is None or not error.connection_invalidated or not self._backend.was_committed(token):
                        raise
        finally:
            self._write_turn.release()

    def is_missing_table(self, error: exc.DBAPIError) -> bool:
        """Tell whether a query failed because there is no such table."""
        return self._backend.is_missing_table(error)

    @contextmanager
    def translated_errors(self) -> Generator[None, None, None]:
        """Turn what the database refuses into an error that names the database and the remedy.

        Likewise what stops at a cell of another type, which SQLite keeps in any column: the error names the row.
        """
        try:
            yield
        except exc.DBAPIError as error:
            raise self._backend.translate(error) from error
        except exc.TimeoutError as error:  # of the pool
            raise locked_error(self.url) from error
        except MISREAD as error:
            found = self._foreign_cell()
            if found is None:
                raise
            raise found from error

    def _foreign_cell(self) -> IntegrityError | None:
        """Return the error about a cell of another type, None if there is none: then the mistake is another's."""
        try:
            with self._backend.readers.connect() as connection:
                return blame(connection)
        except (exc.SQLAlchemyError, NoaError):
            return None

    def close(self) -> None:
        """Close all connections."""
        self._backend.engine.dispose()

    @property
    def is_gone(self) -> bool:
        """Whether the file of a SQLite database is not there any more; what is open reads on in what was removed."""
        return self.dialect == "sqlite" and _identity(self.url) is None

    @property
    def was_replaced(self) -> bool:
        """Whether another file lies in the place of the one that was opened, e.g. a backup that was put back."""
        return self.dialect == "sqlite" and _identity(self.url) not in (None, self._identity)


def _identity(url: DatabaseUrl) -> tuple[int, int] | None:
    """Return which file a SQLite database is, None if there is none."""
    if url.dialect != "sqlite":
        return None
    try:
        found = url.file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def locked_error(url: DatabaseUrl) -> StorageError:
    """Return the error of somebody who waited too long for another writer."""
    return StorageError(
        "the database is locked by another writer",
        where=str(url),
        remedy="Try again, or raise `registry.lock_timeout_s`",
        path=str(url),
    )


def preparing_error(where: str) -> StorageError:
    """Return the error of somebody who waited too long for a process that prepares the database."""
    return StorageError(
        "another process has been preparing the database for too long",
        where=where,
        remedy="Try again, or raise `registry.lock_timeout_s`",
    )


def now() -> datetime:
    """Return the time in UTC."""
    return datetime.now(UTC)


def to_text(moment: datetime) -> str:
    """Return the time as it is stored: UTC, always with microseconds, so that texts sort like times."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _open_backend(url: DatabaseUrl, lock_timeout_s: float) -> Backend:
    if url.dialect == "postgresql":
        from noa_registry.postgres_database import PostgresBackend

        return PostgresBackend(url, lock_timeout_s)
    from noa_registry.sqlite_database import SqliteBackend

    return SqliteBackend(url, lock_timeout_s)
