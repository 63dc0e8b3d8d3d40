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
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, inspect
from sqlalchemy.engine import URL

from noa.errors import StorageError
from noa_registry.tables import mlflow_metadata


def import_mlflow() -> None:
    """Import MLflow's client and store with telemetry off, and without the warnings about its own use of libraries."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow reads it at import and has no other switch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in ("mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store"):
            import_module(module)
        import_module("sqlalchemy.orm").configure_mappers()


def create_mlflow_tables(path: Path, *, artifact_root: Path) -> str:
    """Create all of MLflow's tables in a new SQLite file and return the schema's revision."""
    import_mlflow()
    with _quiet():
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        store: Any = SqlAlchemyStore(
            URL.create("sqlite", database=str(path)).render_as_string(), artifact_root.as_uri()
        )
        store.engine.dispose()
    return upgrade_mlflow_tables(path)


def upgrade_mlflow_tables(path: Path) -> str:
    """Bring MLflow's tables to the revision of the installed MLflow and return it.

    Raises:
        StorageError: the database was written by a newer MLflow, or its tables lack a column that noa writes.
    """
    import_mlflow()
    engine = create_engine(URL.create("sqlite", database=str(path)))
    try:
        with _quiet():
            revision = _upgrade(engine, path)
        _check_columns(engine, path)
    finally:
        engine.dispose()
    return revision


def _upgrade(engine: Engine, path: Path) -> str:
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils

    store: Any = utils  # MLflow has no public function for this; these are what `mlflow db upgrade` calls
    head = str(store._get_latest_schema_revision())
    current = store._get_schema_version(engine)
    if current == head:
        return head
    scripts = ScriptDirectory.from_config(store._get_alembic_config(""))
    known = {script.revision for script in scripts.walk_revisions()}
    if current is not None and current not in known:
        raise StorageError(
            "the database was written by a newer MLflow",
            where=str(path),
            expected=f"revision {head} or older",
            received=f"revision {current}",
            remedy="Install the newer MLflow: pip install --upgrade mlflow",
        )
    if current is None:
        store._initialize_tables(engine)
    else:
        store._upgrade_db(engine)
    return head


def _check_columns(engine: Engine, path: Path) -> None:
    inspector = inspect(engine)
    for table in mlflow_metadata.sorted_tables:
        found = {str(column["name"]) for column in inspector.get_columns(table.name)}
        missing = {column.name for column in table.columns} - found
        if missing:
            raise StorageError(
                f"MLflow's table `{table.name}` has another shape",
                where=str(path),
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
