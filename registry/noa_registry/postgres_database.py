"""PostgreSQL 14 or newer, through psycopg 3.

A write takes a transaction-level advisory lock first, so writers go one after the other in the order in which they
came; `triggers.py` makes writers of MLflow's registry rows take the same lock. Every statement sees the newest
committed state (READ COMMITTED), which under the lock is that of this writer. A snapshot is REPEATABLE READ, READ ONLY.

A server may be restarted at any time. A connection that it has closed is noticed when it is taken from the pool, which
costs a system call and no round trip, and replaced. A transaction leaves a random token in a table; if the connection
goes away while it commits, the token tells afterwards whether it did. (Its number would not: after a crash, PostgreSQL
may give the number of a lost transaction to another one.)
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from importlib import import_module
from select import POLLIN, poll
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, create_engine, event, exc, select, text
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from noa.errors import DependencyMissingError, InvalidInputError, NoaError, StorageError
from noa_registry.database import Database, locked_error, now, preparing_error, to_text
from noa_registry.database_url import DatabaseUrl
from noa_registry.postgres_keys import SCHEMA_LOCK, WRITE_LOCK
from noa_registry.tables import commits

_OLDEST_SERVER = (14,)  # the first that replaces triggers
_CONNECT_TIMEOUT_S = 10
# A machine that is switched off says no goodbye: the other side notices within a minute, and lets go of its locks.
_CLIENT_KEEPALIVE = {"keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}
_SERVER_KEEPALIVE = "SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3"
_POOL_SIZE = 4  # of the server's connections, by default 100 for everybody
_MAX_OVERFLOW = 12
_RETRY_S = 0.2
_TOKENS_KEPT = timedelta(hours=1)
# The lock's time-out is set in the inner subquery, so before the lock is waited for.
_LOCK = (
    "(SELECT pg_advisory_xact_lock(:key) "
    "FROM (SELECT set_config('lock_timeout', :timeout, true) OFFSET 0) AS configured OFFSET 0) AS locked"
)
_TAKE_TURN = text(f"SELECT 1 FROM {_LOCK}")
_TAKE_TURN_WITH_TOKEN = text(
    "WITH forgotten AS (DELETE FROM noa_commits WHERE created_at < :oldest) "
    f"INSERT INTO noa_commits (token, created_at) SELECT :token, :moment FROM {_LOCK}"
)
_TRY_LOCK = text("SELECT pg_try_advisory_lock(:key)")
_UNLOCK = text("SELECT pg_advisory_unlock(:key)")
_HAS_TOKEN = select(commits.c.token).where(commits.c.token == bindparam("token"))
_LOST = "57P01", "57P02"  # the administrator's command, a crash of another process
_BUSY = "53300", "57P03"  # too many connections, starting up or shutting down
# libpq gives no code for a connection that was refused, only the server's words.
_CONNECTION_CODES = {
    "authentication failed": "28P01",
    "no password supplied": "28P01",
    "no pg_hba.conf entry": "28000",
    "too many c": "53300",  # clients, or connections for a role or database
    "remaining connection slots": "53300",
    "is starting up": "57P03",
    "is shutting down": "57P03",
    "in recovery mode": "57P03",
    "permission denied for database": "42501",
}
_SAME_AGAIN = "run the same command again; nothing was lost"
_REMEDIES = {
    "08": f"Check that PostgreSQL runs and can be reached, and {_SAME_AGAIN}",
    "28": "Check the user and password in `registry.database_url`, or in ~/.pgpass",
    "3D000": "Create the database first: createdb NAME",
    "25006": "The server takes no writes: name the primary in `registry.database_url`, not a standby",
    "42501": "Grant the user of `registry.database_url` the right to create and write tables",
    "53100": f"Free some space on the server and {_SAME_AGAIN}",
    "53200": f"The server is out of memory; {_SAME_AGAIN}",
    "53300": "Raise the server's `max_connections`, or start fewer processes",
    "57014": "The server cancelled a statement that took too long: raise its `statement_timeout`",
    "57P": f"Wait until PostgreSQL is up again and {_SAME_AGAIN}",
    "40": f"Another program wrote the same rows; {_SAME_AGAIN}",
    "58": "The server could not read or write its files: look into its log",
    "XX": "The server's files are damaged: restore the database from a backup",
}


class PostgresBackend:
    """How a PostgreSQL database is opened, and what its errors mean. Implements `noa_registry.database.Backend`.

    Raises:
        DependencyMissingError: psycopg is not installed.
    """

    def __init__(self, url: DatabaseUrl, lock_timeout_s: float) -> None:
        self._url = url
        self._lock_timeout_s = lock_timeout_s
        self.engine = create_postgres_engine(url, lock_timeout_s)
        self.readers = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self.writers = self.engine.execution_options(isolation_level="READ COMMITTED")
        self.snapshots = self.engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    @property
    def refusal(self) -> NoaError | None:
        """Say that this can be written; a server that refuses says so itself."""
        return None

    def reading(self) -> AbstractContextManager[None]:
        """Do nothing: the server keeps readers and writers apart."""
        return nullcontext()

    def take_turn(self, connection: Connection, token: str | None) -> None:
        """Wait for the lock of all writers, and leave the token in the transaction."""
        lock = {"key": WRITE_LOCK, "timeout": f"{max(1, round(self._lock_timeout_s * 1000))}ms"}
        if token is None:
            connection.execute(_TAKE_TURN, lock)
            return
        moment = now()
        times = {"moment": to_text(moment), "oldest": to_text(moment - _TOKENS_KEPT)}
        connection.execute(_TAKE_TURN_WITH_TOKEN, {**lock, **times, "token": token})

    def was_committed(self, token: str) -> bool:
        """Look for the token as the next writer, so after the end of the transaction that may have left it.

        Raises:
            StorageError: the server stayed away for `lock_timeout_s`, or still works on it, so it is unknown.
        """
        deadline = time.monotonic() + self._lock_timeout_s
        while True:
            try:
                with self.writers.connect() as connection:
                    self.take_turn(connection, None)
                    return connection.execute(_HAS_TOKEN, {"token": token}).first() is not None
            except exc.DBAPIError as error:
                if time.monotonic() > deadline:
                    raise StorageError(
                        "the connection was lost while PostgreSQL committed; whether it did is unknown",
                        where=str(self._url),
                        remedy="When it is up again, look before you repeat: noa models list",
                        path=str(self._url),
                    ) from error
            time.sleep(_RETRY_S)

    def translate(self, error: exc.DBAPIError) -> NoaError:
        """Return what an error of psycopg means to a user."""
        state = sqlstate(error)
        if state == "55P03":
            return locked_error(self._url)
        said = str(error.orig).strip().splitlines()
        what = said[0] if said else type(error.orig).__name__
        if isinstance(error, exc.DataError):
            return InvalidInputError(
                f"the database cannot hold a value: {what}",
                where=str(self._url),
                remedy="Give a shorter text, without NUL characters",
            )
        happened = "the database refused"
        if state in _LOST or error.connection_invalidated:
            happened, state = "the connection to the database was lost", "08"
        elif not state:
            happened, state = "the database cannot be reached", _connection_code(error.orig) or "08"
        remedy = next((remedy for prefix, remedy in _REMEDIES.items() if state.startswith(prefix)), None)
        where = str(self._url)
        return StorageError(f"{happened}: {what}", where=where, remedy=remedy, path=where)

    def is_missing_table(self, error: exc.DBAPIError) -> bool:
        """Tell whether a query failed because there is no such table."""
        return sqlstate(error) == "42P01"


def create_postgres_engine(url: DatabaseUrl, lock_timeout_s: float) -> Engine:
    """Return a pool of connections that notices what the server has closed.

    Raises:
        DependencyMissingError: psycopg is not installed.
    """
    try:
        import_module("psycopg")
    except ImportError as error:  # also: psycopg is there, but no libpq
        raise DependencyMissingError("psycopg", extra="postgres", purpose="A PostgreSQL database") from error
    defaults = {"connect_timeout": str(_CONNECT_TIMEOUT_S), "application_name": "noa", **_CLIENT_KEEPALIVE}
    engine = create_engine(
        url.address,
        connect_args={key: value for key, value in defaults.items() if key not in url.address.query},
        pool_size=_POOL_SIZE,
        max_overflow=_MAX_OVERFLOW,
        pool_timeout=lock_timeout_s,
    )
    event.listen(engine, "do_connect", _Patience(lock_timeout_s).connect)
    event.listen(engine, "connect", _watch_client)
    event.listen(engine, "checkout", _refuse_closed)
    return engine


@contextmanager
def hold_schema_lock(database: Database) -> Generator[None, None, None]:
    """Hold the lock of whoever prepares the database, for as long as this process and the server live.

    Raises:
        StorageError: another process held it for longer than the lock's time-out, or the server is too old.
    """
    with database.read() as connection:
        found = tuple(connection.dialect.server_version_info or ())
        if found < _OLDEST_SERVER:
            raise StorageError(
                "the PostgreSQL server is too old",
                where=str(database.url),
                expected=f"PostgreSQL {_OLDEST_SERVER[0]} or newer",
                received=".".join(map(str, found)),
            )
        deadline = time.monotonic() + database.lock_timeout_s
        # Asked for again and again: MLflow's migrations must not wait for a snapshot that a waiting statement holds.
        while not connection.execute(_TRY_LOCK, {"key": SCHEMA_LOCK}).scalar():
            if time.monotonic() > deadline:
                raise preparing_error(str(database.url))
            time.sleep(_RETRY_S)
        try:
            yield
        finally:
            connection.execute(_UNLOCK, {"key": SCHEMA_LOCK})


def sqlstate(error: exc.DBAPIError) -> str:
    """Return PostgreSQL's code of an error, empty if it does not come from the server."""
    return getattr(error.orig, "sqlstate", None) or ""


def _connection_code(error: BaseException | None) -> str | None:
    words = str(error)
    if 'database "' in words and "does not exist" in words:
        return "3D000"
    return getattr(error, "sqlstate", None) or next(
        (code for part, code in _CONNECTION_CODES.items() if part in words), None
    )


class _Patience:
    """Connects again for a while if the server is busy: it starts up, or others hold all its connections."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def connect(self, dialect: Any, _record: object, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        deadline = time.monotonic() + self._seconds
        while True:
            try:
                return dialect.connect(*arguments, **keywords)
            except dialect.loaded_dbapi.OperationalError as error:
                if _connection_code(error) not in _BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_S)


def _watch_client(connection: Any, _record: ConnectionPoolEntry) -> None:
    connection.autocommit = True
    connection.execute(_SERVER_KEEPALIVE)
    connection.autocommit = False


def _refuse_closed(connection: Any, _record: ConnectionPoolEntry, _proxy: PoolProxiedConnection) -> None:
    """Replace a pooled connection that the server has closed.

    An idle connection has nothing to read. If there is something, it is the end, or news that a query would read first.
    """
    try:
        waiting = poll()
        waiting.register(connection.pgconn.socket, POLLIN)
        if waiting.poll(0):
            connection.execute("SELECT 1")
            if not connection.autocommit:
                connection.rollback()
    except import_module("psycopg").OperationalError as error:
        raise exc.InvalidatePoolError from error
