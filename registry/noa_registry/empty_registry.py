"""A registry with nothing in it: what a project that has registered nothing yet looks like to whoever only looks.

It is in a temporary folder, and gone with it. Of MLflow's tables it has the columns that noa reads, so that nobody pays
for MLflow's own migrations, which take seconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from sqlalchemy import insert

from noa.settings import Settings
from noa_registry.database import Database, now, to_text
from noa_registry.registry import Registry
from noa_registry.schema_upgrade import upgrade_tables
from noa_registry.tables import SCHEMA_VERSION, alembic_version, mlflow_metadata, schema

_REVISION = "empty"


@contextmanager
def open_empty_registry(settings: Settings) -> Generator[Registry]:
    """Open an empty registry in the place of a project's own, whose gates and principals it has."""
    with tempfile.TemporaryDirectory(prefix="noa-empty-") as folder:
        root = Path(folder)
        url = f"sqlite:///{root / 'noa.db'}"
        _make_tables(url, settings.registry.lock_timeout_s)
        places = {
            "database_url": url,
            "artifact_dir": root / "artifacts",
            "cache_dir": root / "cache",
            "ledger_anchor": None,
        }
        replaced = settings.model_copy(update={"registry": settings.registry.model_copy(update=places)})
        registry = Registry.open(replaced)
        try:
            yield registry
        finally:
            registry.close()


def _make_tables(url: str, lock_timeout_s: float) -> None:
    database = Database(url, lock_timeout_s=lock_timeout_s)
    try:
        with database.write_schema() as connection:
            mlflow_metadata.create_all(connection)
            upgrade_tables(connection)
            connection.execute(insert(alembic_version).values(version_num=_REVISION))
            mark = {"version": SCHEMA_VERSION, "mlflow_revision": _REVISION, "mlflow_version": version("mlflow")}
            connection.execute(insert(schema).values(**mark, applied_at=to_text(now())))
    finally:
        database.close()
