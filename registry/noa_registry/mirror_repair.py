"""Repair of the mirror: MLflow's rows are written anew from noa's and dropped triggers put back, in one transaction."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, insert, select, update

from noa.errors import IntegrityError
from noa_registry import mlflow_rows
from noa_registry.artifacts import ArtifactStore
from noa_registry.events.outbox import append_event
from noa_registry.mirror import (
    base_uri,
    expected_tags,
    find_discrepancies,
    mirrored_run_id,
    record_problem,
    sealed_formats,
)
from noa_registry.mirror_findings import Discrepancy
from noa_registry.mirror_moves import Places, Relocation, rewrite_moved_runs, rewrite_moved_versions, root_of
from noa_registry.mirror_runs import restore_experiment, restore_metric, restore_run
from noa_registry.mlflow_rows import DELETED_STAGE, NO_STAGE, WORKSPACE
from noa_registry.search.index_check import repair_index
from noa_registry.search.label_check import repair_labels
from noa_registry.tables import (
    aliases,
    mlflow_aliases,
    mlflow_models,
    mlflow_version_tags,
    mlflow_versions,
    trash,
    versions,
)
from noa_registry.triggers import create_guards, create_triggers, drop_guards

if TYPE_CHECKING:
    from noa.settings import GateSettings

_NO_GATES: Mapping[str, GateSettings] = MappingProxyType({})


def repair_mirror(
    connection: Connection, store: ArtifactStore, gates: Mapping[str, GateSettings] = _NO_GATES
) -> list[Discrepancy]:
    """Make MLflow's rows and the index of search say what noa's records say, and return what differed and does not."""
    found = [one for one in find_discrepancies(connection, store, gates) if one.is_repairable]
    if not found:
        return []
    drop_guards(connection)
    _follow_moves(connection, store, [one for one in found if one.field == "moved"])
    for name in [one.name for one in found if one.field == "model" and one.number is None]:
        _restore_model(connection, store, name)
    for name, number in sorted({(one.name, one.number) for one in found if one.field == "model" and one.number}):
        _remove_stranger(connection, name, number)
    for name, number in _damaged_versions(found):
        rewrite_version(connection, store, name, number)
    for one in found:
        if one.field == "alias":
            _rewrite_alias(connection, one.name, one.key)
    _restore_runs(connection, found)
    _repair_search(connection, [one for one in found if one.field == "index"], gates)
    create_guards(connection)
    if any(one.field == "guard" for one in found):
        create_triggers(connection)
    by_model: dict[str, list[Discrepancy]] = {}
    for one in found:
        by_model.setdefault(one.name, []).append(one)
    for name, ones in by_model.items():
        append_event(connection, "mirror.repaired", name=name, payload=_payload(ones))
    return found


def show_version(connection: Connection, store: ArtifactStore, name: str, number: int) -> None:
    """Make a version that came back from the trash visible to MLflow's clients again."""
    row = connection.execute(select(mlflow_versions.c.source).where(_at(name, number))).one_or_none()
    uid = connection.execute(
        select(versions.c.uid).where(versions.c.name == name, versions.c.number == number)
    ).scalar_one()
    root = None if row is None else root_of(row.source, name, uid)
    if root is not None and Places(base_uri(store)).is_here(root):
        values = {"current_stage": NO_STAGE, "last_updated_time": _now_ms()}
        connection.execute(update(mlflow_versions).where(_at(name, number)).values(**values))
        return
    drop_guards(connection)  # somebody deleted it in MLflow too, which wipes its source
    rewrite_version(connection, store, name, number)
    create_guards(connection)


def rewrite_version(connection: Connection, store: ArtifactStore, name: str, number: int) -> None:
    """Write MLflow's rows of one version anew; the guards must be lifted.

    Raises:
        IntegrityError: the version's own record was changed: nothing of it is copied.
    """
    problem = record_problem(connection, name, number)
    if problem is not None:
        raise problem
    query = select(versions, mirrored_run_id().label("mirrored_run_id")).where(
        versions.c.name == name, versions.c.number == number
    )
    row = connection.execute(query).one()
    is_trashed = trash.c.name == name, trash.c.number == number
    in_trash = connection.execute(select(trash.c.number).where(*is_trashed)).first() is not None
    source = f"{base_uri(store)}{name}/{row.uid}"
    values = {
        "source": source,
        "storage_location": source,
        "current_stage": DELETED_STAGE if in_trash else NO_STAGE,
        "user_id": row.created_by,
        "run_id": row.mirrored_run_id,
        "description": row.description or None,
        "status": "READY",
        "last_updated_time": _now_ms(),
    }
    _ensure_model(connection, name)
    if connection.execute(update(mlflow_versions).where(_at(name, number)).values(**values)).rowcount == 0:
        key = {"workspace": WORKSPACE, "name": name, "version": number, "creation_time": _now_ms()}
        connection.execute(insert(mlflow_versions).values(**key, **values))
    tags = expected_tags(row, sealed_formats(connection, name, number))
    here = and_(
        mlflow_version_tags.c.workspace == WORKSPACE,
        mlflow_version_tags.c.name == name,
        mlflow_version_tags.c.version == number,
    )
    connection.execute(delete(mlflow_version_tags).where(here, mlflow_version_tags.c.key.in_(list(tags))))
    place = {"workspace": WORKSPACE, "name": name, "version": number}
    connection.execute(
        insert(mlflow_version_tags), [{**place, "key": key, "value": allowed[0]} for key, allowed in tags.items()]
    )


def _restore_runs(connection: Connection, found: Iterable[Discrepancy]) -> None:
    for one in found:
        if one.field == "experiment":
            restore_experiment(connection, int(one.key))
        elif one.field == "run":
            restore_run(connection, one.key)
        elif one.field == "metric":
            restore_metric(connection, one.key)


def _repair_search(connection: Connection, found: list[Discrepancy], gates: Mapping[str, GateSettings]) -> None:
    if found:
        repair_index(connection, [one for one in found if one.number is None], gates)
        repair_labels(connection, dict.fromkeys((one.name, one.number) for one in found if one.number is not None))


def _follow_moves(connection: Connection, store: ArtifactStore, found: list[Discrepancy]) -> None:
    moves = [Relocation(old=one.received, new=one.expected, count=0) for one in found if one.key == "version"]
    rewrite_moved_versions(connection, moves)
    if found:
        rewrite_moved_runs(connection, Places(base_uri(store)))


def _damaged_versions(found: Iterable[Discrepancy]) -> list[tuple[str, int]]:
    return sorted(
        {(one.name, one.number) for one in found if one.number is not None and one.field not in ("model", "index")}
    )


def _restore_model(connection: Connection, store: ArtifactStore, name: str) -> None:
    _ensure_model(connection, name)
    numbers = select(versions.c.number).where(versions.c.name == name).order_by(versions.c.number)
    for number in [row[0] for row in connection.execute(numbers) if type(row[0]) is int]:
        with suppress(IntegrityError):  # of a record that was changed nothing is copied; the next comparison names it
            rewrite_version(connection, store, name, number)


def _remove_stranger(connection: Connection, name: str, number: int) -> None:
    tables = (mlflow_version_tags, mlflow_versions)
    for table in tables:
        connection.execute(
            delete(table).where(table.c.workspace == WORKSPACE, table.c.name == name, table.c.version == number)
        )
    connection.execute(
        delete(mlflow_aliases).where(
            mlflow_aliases.c.workspace == WORKSPACE, mlflow_aliases.c.name == name, mlflow_aliases.c.version == number
        )
    )
    others = select(mlflow_versions.c.version).where(
        mlflow_versions.c.workspace == WORKSPACE, mlflow_versions.c.name == name
    )
    connection.execute(
        delete(mlflow_models).where(
            mlflow_models.c.workspace == WORKSPACE, mlflow_models.c.name == name, ~exists(others)
        )
    )


def _rewrite_alias(connection: Connection, name: str, alias: str) -> None:
    query = select(aliases.c.number).where(aliases.c.name == name, aliases.c.alias == alias)
    number = connection.execute(query).scalar()
    if number is not None:
        mlflow_rows.set_alias(connection, name=name, alias=alias, number=number)
        return
    connection.execute(
        delete(mlflow_aliases).where(
            mlflow_aliases.c.workspace == WORKSPACE, mlflow_aliases.c.name == name, mlflow_aliases.c.alias == alias
        )
    )


def _ensure_model(connection: Connection, name: str) -> None:
    here = and_(mlflow_models.c.workspace == WORKSPACE, mlflow_models.c.name == name)
    if connection.execute(select(mlflow_models.c.name).where(here)).first() is None:
        moment = _now_ms()
        connection.execute(
            insert(mlflow_models).values(workspace=WORKSPACE, name=name, creation_time=moment, last_updated_time=moment)
        )


def _at(name: str, number: int) -> ColumnElement[bool]:
    return and_(
        mlflow_versions.c.workspace == WORKSPACE, mlflow_versions.c.name == name, mlflow_versions.c.version == number
    )


def _payload(ones: list[Discrepancy]) -> dict[str, object]:
    return {
        "repaired": [
            {"subject": one.subject, "field": one.field, "expected": one.expected, "received": one.received}
            for one in ones[:100]
        ],
        "count": len(ones),
    }


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
