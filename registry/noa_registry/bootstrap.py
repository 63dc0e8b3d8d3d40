"""Bootstrap: any number of processes may start at once on an empty folder or an empty PostgreSQL database.

A complete database is recognised by one row, without a lock and without importing MLflow or Alembic; the row names the
MLflow revision that was checked, so another MLflow leads to one more check. Everything else is done by one process at a
time, under a file lock (SQLite) or an advisory lock of a session (PostgreSQL); both end with the process.

A new SQLite file is built at a temporary name and renamed into place when it is complete. Anything else is upgraded in
place: MLflow's tables first, by MLflow's own migrations, then noa's in one transaction that ends with the row. Whoever
is killed in between leaves a database without the row, and the next start goes on. A database that this user cannot
write is left as it is: with this noa's tables it can be read, else the error says who may upgrade it.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout
from sqlalchemy import exc, insert, inspect, select

from noa.atomic_write import sync_folder, translate_disk_errors
from noa.errors import StorageError
from noa_registry.artifacts import make_folder
from noa_registry.database import Database, now, preparing_error, to_text
from noa_registry.database_url import DatabaseUrl, parse_database_url
from noa_registry.mlflow_schema import mlflow_needs_upgrade, prepare_mlflow_tables
from noa_registry.tables import SCHEMA_VERSION, alembic_version, schema

_SQLITE_FILES = ("", "-wal", "-shm", "-journal")
_PREPARING = threading.Lock()  # Alembic keeps the migration that runs in globals of its module
_REVISION = select(alembic_version.c.version_num).limit(1).scalar_subquery()
_MARK = select(schema.c.version, schema.c.mlflow_revision == _REVISION, schema.c.mlflow_version).order_by(
    schema.c.version.desc()
)


def open_database(url: str, *, artifact_root: str, lock_timeout_s: float) -> Database:
    """Open a database that is complete, creating or upgrading it if it is not.

    `artifact_root` is the URI below which MLflow's own runs put their files.

    Raises:
        SettingsError: the URL names no database that this registry can use.
        DependencyMissingError: the driver of PostgreSQL is not installed.
        StorageError: the disk or server refused, the lock was held too long, or the database belongs to a newer noa or
            MLflow.
        IntegrityError: an older database was changed by hand so that it cannot be upgraded; names the row.
    """
    parsed = parse_database_url(url)
    if parsed.dialect == "sqlite" and _is_empty(parsed.file):
        _prepare_file(parsed, artifact_root, lock_timeout_s)
    database = Database(parsed, lock_timeout_s=lock_timeout_s)
    try:
        if database.is_read_only:
            _require_readable(database)
        elif not _is_ready(database):
            with _alone(database):
                if not _is_ready(database):
                    _upgrade(database, artifact_root)
    except BaseException:
        database.close()
        raise
    return database


def _is_empty(file: Path) -> bool:
    with translate_disk_errors(file):
        return not file.exists() or file.stat().st_size == 0


def _is_ready(database: Database) -> bool:
    mark = _read_mark(database)
    if mark is None:
        return False
    found, same_revision, mlflow = mark
    return bool(found == SCHEMA_VERSION and same_revision and mlflow == version("mlflow"))


def _require_readable(database: Database) -> None:
    """Raise unless a database that cannot be upgraded has this noa's tables; MLflow's may be of another MLflow."""
    from noa_registry.sqlite_reading import older_error

    mark = _read_mark(database)
    if mark is None or mark[0] != SCHEMA_VERSION:
        received = "no finished schema" if mark is None else f"schema {mark[0]}"
        raise older_error(database.url, expected=f"schema {SCHEMA_VERSION}", received=received)


def _read_mark(database: Database) -> tuple[int, bool, str] | None:
    """Return noa's schema, whether MLflow's is the one that was checked, and by which MLflow; None if unfinished.

    Raises:
        StorageError: the database belongs to a newer noa.
    """
    with database.read() as connection:
        try:
            row = connection.execute(_MARK).first()
        except exc.DBAPIError as error:
            if not database.is_missing_table(error):
                raise
            return None
    if row is None:
        return None
    found, same_revision, mlflow = row
    if found > SCHEMA_VERSION:
        raise StorageError(
            "the database was written by a newer noa",
            where=str(database.url),
            expected=f"schema {SCHEMA_VERSION} or older",
            received=f"schema {found}",
            remedy="Install the newer noa: pip install --upgrade noa",
        )
    return int(found), bool(same_revision), str(mlflow)


def _prepare_file(url: DatabaseUrl, artifact_root: str, lock_timeout_s: float) -> None:
    """Make a new SQLite file."""
    path = url.file
    make_folder(path.parent)
    with _file_lock(path, lock_timeout_s):
        if not _is_empty(path):
            return
        building = path.with_name(f".{path.name}.building")
        try:
            _remove(building)  # of a process that was killed here; the lock says that nobody is at it now
            database = Database(f"sqlite:///{building}", lock_timeout_s=lock_timeout_s)
            try:
                _upgrade(database, artifact_root)
            finally:
                database.close()
            # The file alone must be complete: the last connection to close folds the write-ahead log back into it.
            if building.with_name(building.name + "-wal").exists():
                raise StorageError("the new database is still open elsewhere", where=str(building))
            with translate_disk_errors(path):
                building.replace(path)
                sync_folder(path.parent)
        finally:
            _remove(building)


def _upgrade(database: Database, artifact_root: str) -> None:
    from noa_registry.schema_upgrade import lift_for_upgrade, upgrade_tables
    from noa_registry.upgrade_refusal import named_hindrance

    with database.translated_errors():
        if mlflow_needs_upgrade(database) and inspect(database.engine).has_table(schema.name):
            # A trigger that names a table which MLflow rebuilds would stop it.
            with database.write_schema() as connection:
                lift_for_upgrade(connection)
        revision = prepare_mlflow_tables(database, artifact_root=artifact_root)
        with database.write_schema() as connection:
            with named_hindrance(connection):
                upgrade_tables(connection)
            connection.execute(schema.delete())
            connection.execute(
                insert(schema).values(
                    version=SCHEMA_VERSION,
                    mlflow_revision=revision,
                    mlflow_version=version("mlflow"),
                    applied_at=to_text(now()),
                )
            )


@contextmanager
def _alone(database: Database) -> Generator[None, None, None]:
    """Wait until no other process prepares this database, and keep them waiting."""
    if database.dialect == "postgresql":
        from noa_registry.postgres_database import hold_schema_lock

        with _PREPARING, hold_schema_lock(database):
            yield
        return
    with _file_lock(database.url.file, database.lock_timeout_s):
        yield


@contextmanager
def _file_lock(path: Path, lock_timeout_s: float) -> Generator[None, None, None]:
    lock = FileLock(f"{path}.lock", timeout=lock_timeout_s)
    with translate_disk_errors(path):
        try:
            lock.acquire()
        except Timeout as error:
            raise preparing_error(f"{path}.lock") from error
    try:
        with _PREPARING:
            yield
    finally:
        lock.release()


def _remove(path: Path) -> None:
    for suffix in _SQLITE_FILES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
