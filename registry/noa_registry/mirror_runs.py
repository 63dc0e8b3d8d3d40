"""Experiments and runs: what MLflow's clients did to those that noa's jobs wrote and versions came from.

An experiment of noa's is known by its place, `_runs/<its name>` below the store; a job's run by its tag. Runs that no
version names are their owner's to delete, except together with the whole experiment. A version may name a run of
another tracking server, so one that is not there at all is no finding; neither is the status of a run that is no job's.

Numbers are compared where a version's evidence speaks of them, and if they were logged after it was registered: its job
had ended by then. The last value of each is looked at, as MLflow keeps it in `latest_metrics`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, delete, exists, insert, or_, select, update

from noa_registry.artifacts import RUNS_FOLDER
from noa_registry.events.outbox import WHOLE_REGISTRY
from noa_registry.mirror_findings import Discrepancy
from noa_registry.mirror_moves import Places
from noa_registry.mlflow_rows import DELETED_STAGE, WORKSPACE
from noa_registry.tables import (
    mlflow_experiments,
    mlflow_latest_metrics,
    mlflow_metrics,
    mlflow_run_tags,
    mlflow_runs,
    mlflow_versions,
    version_metrics,
    versions,
)

JOB_TAG: Final = "noa.job_id"
_ACTIVE = "active"
_DELETED = "deleted"
_FINISHED = "FINISHED"
_SAME = 1e-9


def run_discrepancies(connection: Connection, places: Places) -> Iterator[Discrepancy]:
    """Compare experiments and runs with what noa's versions say of them."""
    for row in _lost_experiments(connection, places):
        runs = len(connection.execute(_deleted_runs(row.experiment_id)).all())
        also = f", and {runs} run{'' if runs == 1 else 's'} with it" if runs else ""
        yield Discrepancy(
            name=WHOLE_REGISTRY,
            subject=f"experiment {row.name}",
            field="experiment",
            expected=_ACTIVE,
            received=f"{_DELETED}{also}",
            key=str(row.experiment_id),
        )
    for row in connection.execute(_differing_runs()):
        yield Discrepancy(
            name=row.name,
            subject=f"run {row.run_uuid} of version {row.number}",
            field="run",
            expected=f"{_ACTIVE}, {_FINISHED}" if row.is_job else _ACTIVE,
            received=f"{row.lifecycle_stage}, {row.status}" if row.is_job else str(row.lifecycle_stage),
            key=row.run_uuid,
        )
    yield from _differing_metrics(connection)


def restore_experiment(connection: Connection, experiment_id: int) -> None:
    """Bring an experiment back, with all its runs, as MLflow's own client does."""
    for row in connection.execute(_deleted_runs(experiment_id)).all():
        _undelete(connection, row.run_uuid)
    values = {"lifecycle_stage": _ACTIVE, "last_update_time": time.time_ns() // 1_000_000}
    connection.execute(
        update(mlflow_experiments).where(mlflow_experiments.c.experiment_id == experiment_id).values(**values)
    )


def restore_run(connection: Connection, run_id: str) -> None:
    """Bring a version's run back; that of a job, which registered a version, has finished."""
    _undelete(connection, run_id)
    job = exists(select(mlflow_run_tags.c.key).where(_is_job_tag(), mlflow_run_tags.c.run_uuid == run_id))
    connection.execute(update(mlflow_runs).where(mlflow_runs.c.run_uuid == run_id, job).values(status=_FINISHED))


def restore_metric(connection: Connection, key: str) -> None:
    """Take out the values of a metric that were logged after the version of its run was registered.

    `key` is that of the finding: the run, a space and the name of the metric.
    """
    run_id, _, metric = key.partition(" ")
    registered = (
        select(mlflow_versions.c.creation_time)
        .select_from(versions.join(mlflow_versions, _same_version()))
        .where(versions.c.run_id == run_id)
        .order_by(mlflow_versions.c.creation_time)
        .limit(1)
    )
    since = connection.execute(registered).scalar_one()
    for table in (mlflow_metrics, mlflow_latest_metrics):
        later = () if table is mlflow_latest_metrics else (table.c.timestamp > since,)
        connection.execute(delete(table).where(table.c.run_uuid == run_id, table.c.key == metric, *later))
    c = mlflow_metrics.c
    last = select(c.run_uuid, c.key, c.value, c.timestamp, c.step, c.is_nan).where(
        c.run_uuid == run_id, c.key == metric
    )
    rows = connection.execute(last.order_by(c.step.desc(), c.timestamp.desc(), c.value.desc()).limit(1))
    for values in rows.mappings().all():
        connection.execute(insert(mlflow_latest_metrics).values(**values))


def _lost_experiments(connection: Connection, places: Places) -> Iterator[Row[Any]]:
    c = mlflow_experiments.c
    query = select(mlflow_experiments).where(c.workspace == WORKSPACE, c.lifecycle_stage != _ACTIVE)
    for row in connection.execute(query.order_by(c.experiment_id)).all():
        root, mark, name = str(row.artifact_location or "").rpartition(f"/{RUNS_FOLDER}/")
        # Those that MLflow's clients make without a place get one by their number, and are not noa's.
        if mark and unquote(name) == row.name and places.is_here(f"{root}/"):
            yield row


def _deleted_runs(experiment_id: int) -> Select[*tuple[Any, ...]]:
    # Which of them were deleted before, nobody knows: MLflow writes the time of all anew.
    c = mlflow_runs.c
    return select(c.run_uuid).where(c.experiment_id == experiment_id, c.lifecycle_stage != _ACTIVE)


def _undelete(connection: Connection, run_id: str) -> None:
    here = mlflow_runs.c.run_uuid == run_id
    connection.execute(update(mlflow_runs).where(here).values(lifecycle_stage=_ACTIVE, deleted_time=None))


def _differing_runs() -> Select[*tuple[Any, ...]]:
    c = mlflow_runs.c
    is_job = exists(select(mlflow_run_tags.c.key).where(_is_job_tag(), mlflow_run_tags.c.run_uuid == c.run_uuid))
    return (
        select(versions.c.name, versions.c.number, c.run_uuid, c.lifecycle_stage, c.status, is_job.label("is_job"))
        .select_from(versions.join(mlflow_runs, c.run_uuid == versions.c.run_id))
        .where(or_(c.lifecycle_stage != _ACTIVE, and_(is_job, c.status.in_(("FAILED", "KILLED")))))
        .order_by(versions.c.name, versions.c.number)
    )


def _differing_metrics(connection: Connection) -> Iterator[Discrepancy]:
    for row in connection.execute(_metrics_after_registration()).all():
        split, _, metric = row.key.rpartition(".")
        c = version_metrics.c
        query = select(c.value).where(c.name == row.name, c.number == row.number, c.metric == metric)
        known = [
            float(value) for value in connection.execute(query.where(c.split == split) if split else query).scalars()
        ]
        is_right = not row.is_nan and any(abs(row.value - value) <= _SAME * max(abs(value), 1.0) for value in known)
        if known and not is_right:
            yield Discrepancy(
                name=row.name,
                subject=f"run {row.run_uuid} of version {row.number}",
                field="metric",
                expected=f"{row.key} {', '.join(f'{value:.6g}' for value in sorted(set(known)))}, as in its evidence",
                received=f"{'nan' if row.is_nan else f'{row.value:.6g}'}, logged after the registration",
                key=f"{row.run_uuid} {row.key}",
            )


def _metrics_after_registration() -> Select[*tuple[Any, ...]]:
    m = mlflow_latest_metrics.c
    return (
        select(versions.c.name, versions.c.number, m.run_uuid, m.key, m.value, m.is_nan)
        .select_from(
            versions.join(mlflow_versions, _same_version())
            .join(mlflow_run_tags, and_(mlflow_run_tags.c.run_uuid == versions.c.run_id, _is_job_tag()))
            .join(mlflow_latest_metrics, m.run_uuid == versions.c.run_id)
        )
        .where(m.timestamp > mlflow_versions.c.creation_time, mlflow_versions.c.current_stage != DELETED_STAGE)
        .order_by(versions.c.name, versions.c.number, m.key)
    )


def _is_job_tag() -> ColumnElement[bool]:
    return mlflow_run_tags.c.key == JOB_TAG


def _same_version() -> ColumnElement[bool]:
    return and_(
        mlflow_versions.c.workspace == WORKSPACE,
        mlflow_versions.c.name == versions.c.name,
        mlflow_versions.c.version == versions.c.number,
    )
