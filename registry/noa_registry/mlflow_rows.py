"""MLflow's registry rows: written in the same transaction as noa's, so that stock clients agree with noa."""

from __future__ import annotations

import time
from collections.abc import Mapping

from sqlalchemy import Connection, and_, func, insert, select, update

from noa_registry.tables import mlflow_aliases, mlflow_models, mlflow_version_tags, mlflow_versions

WORKSPACE = "default"
DELETED_STAGE = "Deleted_Internal"
NO_STAGE = "None"
_MAX_RUN_ID = 32


def highest_number(connection: Connection, name: str) -> int:
    """Return the highest version number that MLflow's rows know, 0 if there is none."""
    query = select(func.max(mlflow_versions.c.version)).where(
        mlflow_versions.c.workspace == WORKSPACE, mlflow_versions.c.name == name
    )
    return connection.execute(query).scalar() or 0


def insert_version(
    connection: Connection,
    *,
    name: str,
    number: int,
    source: str,
    run_id: str | None,
    actor: str,
    description: str,
    tags: Mapping[str, str],
) -> None:
    """Write the rows by which stock clients find a version; the model's row is made if it is missing."""
    now_ms = _now_ms()
    _touch_model(connection, name, now_ms)
    connection.execute(
        insert(mlflow_versions).values(
            workspace=WORKSPACE,
            name=name,
            version=number,
            creation_time=now_ms,
            last_updated_time=now_ms,
            description=description or None,
            user_id=actor,
            current_stage=NO_STAGE,
            source=source,
            storage_location=source,
            run_id=run_id if run_id is None or len(run_id) <= _MAX_RUN_ID else None,
            status="READY",
        )
    )
    if tags:
        rows = [
            {"workspace": WORKSPACE, "name": name, "version": number, "key": key, "value": value}
            for key, value in tags.items()
        ]
        connection.execute(insert(mlflow_version_tags), rows)


def hide_version(connection: Connection, *, name: str, number: int) -> None:
    """Mark a version as deleted, as MLflow's own clients do: they no longer see it, and its number stays taken."""
    here = and_(
        mlflow_versions.c.workspace == WORKSPACE, mlflow_versions.c.name == name, mlflow_versions.c.version == number
    )
    moment = _now_ms()
    connection.execute(
        update(mlflow_versions).where(here).values(current_stage=DELETED_STAGE, last_updated_time=moment)
    )
    _touch_model(connection, name, moment)


def set_alias(connection: Connection, *, name: str, alias: str, number: int) -> None:
    """Point MLflow's alias row at a version."""
    _touch_model(connection, name, _now_ms())
    here = and_(mlflow_aliases.c.workspace == WORKSPACE, mlflow_aliases.c.name == name, mlflow_aliases.c.alias == alias)
    if connection.execute(update(mlflow_aliases).where(here).values(version=number)).rowcount == 0:
        connection.execute(insert(mlflow_aliases).values(workspace=WORKSPACE, name=name, alias=alias, version=number))


def alias_number(connection: Connection, name: str, alias: str) -> int | None:
    """Return the version that MLflow's row of an alias names."""
    query = select(mlflow_aliases.c.version).where(
        mlflow_aliases.c.workspace == WORKSPACE, mlflow_aliases.c.name == name, mlflow_aliases.c.alias == alias
    )
    return connection.execute(query).scalar()


def _touch_model(connection: Connection, name: str, now_ms: int) -> None:
    here = and_(mlflow_models.c.workspace == WORKSPACE, mlflow_models.c.name == name)
    if connection.execute(update(mlflow_models).where(here).values(last_updated_time=now_ms)).rowcount == 0:
        connection.execute(
            insert(mlflow_models).values(workspace=WORKSPACE, name=name, creation_time=now_ms, last_updated_time=now_ms)
        )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
