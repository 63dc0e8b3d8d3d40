"""MLflow's tables: created and migrated by MLflow's own code. The only module that imports MLflow's store.

Importing MLflow costs seconds, so `bootstrap.py` comes here only when a database is new or another MLflow is installed.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from sqlalchemy import inspect

from noa.errors import StorageError
from noa_registry.database import Database
from noa_registry.tables import mlflow_metadata


def import_mlflow() -> None:
    """Import MLflow's client and store with telemetry off, and without the warnings about its own use of libraries."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow reads it at import and has no other switch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in ("mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store"):
            import_module(module)
        import_module("sqlalchemy.orm").configure_mappers()


def mlflow_needs_upgrade(database: Database) -> bool:
    """Tell whether MLflow's tables are missing or older than the installed MLflow.

    Raises:
        StorageError: they were written by a newer MLflow.
    """
    import_mlflow()
    current, head = _revisions(database)
    return current != head


def prepare_mlflow_tables(database: Database, *, artifact_root: str) -> str:
    """Bring MLflow's tables to the revision of the installed MLflow, creating them if need be, and return it.

    Raises:
        StorageError: the database was written by a newer MLflow, or its tables lack a column that noa writes.
    """
    import_mlflow()
    from mlflow.store.db import utils
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    migrations: Any = utils  # MLflow has no public function for this; these are what `mlflow db upgrade` calls
    with _quiet():
        current, head = _revisions(database)
        if current is None:
            migrations._initialize_tables(database.engine)
        elif current != head:
            migrations._upgrade_db(database.engine)
        if _has_no_experiment(database):
            store: Any = SqlAlchemyStore(database.url.render(), artifact_root)  # makes the default one
            store.engine.dispose()
    _check_columns(database)
    return head


def _revisions(database: Database) -> tuple[str | None, str]:
    """Return the revision of the database and the newest that the installed MLflow knows."""
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils

    migrations: Any = utils
    head = str(migrations._get_latest_schema_revision())
    current = migrations._get_schema_version(database.engine)
    scripts = ScriptDirectory.from_config(migrations._get_alembic_config(""))
    if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        raise StorageError(
            "the database was written by a newer MLflow",
            where=str(database.url),
            expected=f"revision {head} or older",
            received=f"revision {current}",
            remedy="Install the newer MLflow: pip install --upgrade mlflow",
        )
    return current, head


def _has_no_experiment(database: Database) -> bool:
    with database.read() as connection:
        return connection.exec_driver_sql("SELECT count(*) FROM experiments").scalar() == 0


def _check_columns(database: Database) -> None:
    inspector = inspect(database.engine)
    for table in mlflow_metadata.sorted_tables:
        found = {str(column["name"]) for column in inspector.get_columns(table.name)}
        missing = {column.name for column in table.columns} - found
        if missing:
            raise StorageError(
                f"MLflow's table `{table.name}` has another shape",
                where=str(database.url),
                expected=f"columns {', '.join(sorted(missing))}",
                received=", ".join(sorted(found)),
                remedy='Install a supported MLflow: pip install "mlflow>=3.17,<4"',
            )


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Keep MLflow's and Alembic's progress messages out of the user's terminal."""
    loggers = [logging.getLogger(name) for name in ("mlflow.store.db.utils", "alembic.runtime.migration")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
