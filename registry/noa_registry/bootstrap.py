"""Bootstrap: any number of processes may start at once on an empty folder.

A new database is built under a file lock at a temporary name and renamed into place when it is complete, so a process
that is killed while it builds leaves nothing behind. A complete database is recognised by one row, without the lock and
without importing MLflow; the row names the MLflow revision that was checked, so another MLflow leads to one more check.
"""

from __future__ import annotations

import sqlite3
from importlib.metadata import version
from pathlib import Path
from typing import cast

from filelock import FileLock, Timeout
from sqlalchemy import insert

from noa.atomic_write import sync_folder, translate_disk_errors
from noa.errors import StorageError
from noa_registry.artifacts import make_folder
from noa_registry.database import Database, now, to_text, translate_database_errors
from noa_registry.mlflow_schema import create_mlflow_tables, upgrade_mlflow_tables
from noa_registry.tables import SCHEMA_VERSION, create_tables, schema

_SQLITE_FILES = ("", "-wal", "-shm", "-journal")


def prepare_database(path: Path, *, artifact_root: Path, lock_timeout_s: float) -> None:
    """Make sure that a complete database is at `path`. `artifact_root` is where MLflow's own runs put their files.

    Raises:
        StorageError: the disk refused, the lock was held too long, or the file belongs to a newer noa or MLflow.
    """
    if _is_ready(path):
        return
    make_folder(path.parent)
    with translate_disk_errors(path):
        lock = FileLock(f"{path}.lock", timeout=lock_timeout_s)
        try:
            lock.acquire()
        except Timeout as exc:
            raise StorageError(
                "another process has been preparing the database for too long",
                where=f"{path}.lock",
                remedy="Try again, or raise `registry.lock_timeout_s`",
            ) from exc
        try:
            if not _is_ready(path):
                with translate_database_errors(path):
                    _build(path, artifact_root, lock_timeout_s)
        finally:
            lock.release()


def _is_ready(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with translate_database_errors(path):
        connection = sqlite3.connect(path, timeout=5.0)
        try:
            row = connection.execute(
                "SELECT s.version, s.mlflow_revision = a.version_num, s.mlflow_version "
                "FROM noa_schema s, alembic_version a ORDER BY s.version DESC, s.rowid DESC LIMIT 1"
            ).fetchone()
        except sqlite3.OperationalError as exc:
            if "no such table" not in str(exc):
                raise
            return False
        finally:
            connection.close()
    if row is None:
        return False
    found, same_revision, mlflow = cast("tuple[int, int, str]", row)
    if found > SCHEMA_VERSION:
        raise StorageError(
            "the database was written by a newer noa",
            where=str(path),
            expected=f"schema {SCHEMA_VERSION} or older",
            received=f"schema {found}",
            remedy="Install the newer noa: pip install --upgrade noa",
        )
    return found == SCHEMA_VERSION and bool(same_revision) and mlflow == version("mlflow")


def _build(path: Path, artifact_root: Path, lock_timeout_s: float) -> None:
    if path.exists() and path.stat().st_size > 0:
        _add_tables(path, upgrade_mlflow_tables(path), lock_timeout_s)
        return
    building = path.with_name(f".{path.name}.building")
    try:
        _remove(building)  # of a process that was killed here; the lock says that nobody is at it now
        revision = create_mlflow_tables(building, artifact_root=artifact_root)
        _add_tables(building, revision, lock_timeout_s)
        # The file alone must be complete: the last connection to close folds the write-ahead log back into it.
        if building.with_name(building.name + "-wal").exists():
            raise StorageError("the new database is still open elsewhere", where=str(building))
        building.replace(path)
        sync_folder(path.parent)
    finally:
        _remove(building)


def _add_tables(path: Path, revision: str, lock_timeout_s: float) -> None:
    database = Database(path, lock_timeout_s=lock_timeout_s)
    try:
        with database.write() as connection:
            create_tables(connection)
            connection.execute(schema.delete())
            connection.execute(
                insert(schema).values(
                    version=SCHEMA_VERSION,
                    mlflow_revision=revision,
                    mlflow_version=version("mlflow"),
                    applied_at=to_text(now()),
                )
            )
    finally:
        database.close()


def _remove(path: Path) -> None:
    for suffix in _SQLITE_FILES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
