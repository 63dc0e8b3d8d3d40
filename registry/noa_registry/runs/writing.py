"""What jobs write of a run beside its parameters, tags and metrics: the data it used, and that it goes on.

The rows are those that MLflow's own clients write, so that its pages show them where people look for them.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, Table, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from noa.errors import InvalidInputError
from noa_registry.mlflow_runs import MetricRow, require_active_run
from noa_registry.runs import tags
from noa_registry.runs.datasets import DatasetInput
from noa_registry.runs.tables import DATASET, RUN, mlflow_datasets, mlflow_input_tags, mlflow_inputs
from noa_registry.tables import mlflow_metrics, mlflow_runs

_MAX_NAME_CHARS: Final = 500
_DIGEST_CHARS: Final = 36
_MAX_SOURCE_CHARS: Final = 65_535
_MAX_SCHEMA_CHARS: Final = 1_048_575


def insert_inputs(connection: Connection, run_id: str, datasets: Sequence[DatasetInput]) -> None:
    """Note which data a run uses; what is noted already is left alone.

    Raises:
        NotFoundError: there is no such run.
        InvalidInputError: the run was deleted, or a text is longer than MLflow takes it.
    """
    require_active_run(connection, run_id)
    for dataset in datasets:
        _check(dataset)
    experiment = select(mlflow_runs.c.experiment_id).where(mlflow_runs.c.run_uuid == run_id)
    experiment_id = connection.execute(experiment).scalar_one()
    for dataset in datasets:
        _insert_input(connection, run_id, dataset, _dataset_uuid(connection, experiment_id, dataset))


def reopen_run(connection: Connection, run_id: str) -> None:
    """Note that a run goes on, as MLflow's client does that takes a run up again.

    Raises:
        NotFoundError: there is no such run.
        InvalidInputError: the run was deleted.
    """
    require_active_run(connection, run_id)
    here = mlflow_runs.c.run_uuid == run_id
    connection.execute(update(mlflow_runs).where(here).values(status="RUNNING", end_time=None))


def holds_metric(connection: Connection, run_id: str, row: MetricRow) -> bool:
    """Tell whether a run has a value of this metric at this step and time."""
    m = mlflow_metrics.c
    here = (m.key == row.key, m.timestamp == row.timestamp_ms, m.step == row.step, m.run_uuid == run_id)
    return connection.execute(select(m.step).where(*here).limit(1)).first() is not None


def _dataset_uuid(connection: Connection, experiment_id: int, dataset: DatasetInput) -> str:
    d = mlflow_datasets.c
    here = (d.experiment_id == experiment_id, d.name == dataset.name, d.digest == dataset.digest)
    query = select(d.dataset_uuid).where(*here)
    known = connection.execute(query).scalar()
    if known is not None:
        return str(known)
    values = {
        "experiment_id": experiment_id,
        "name": dataset.name,
        "digest": dataset.digest,
        "dataset_uuid": uuid.uuid4().hex,
        "dataset_source_type": dataset.source_type,
        "dataset_source": dataset.source,
        "dataset_schema": dataset.schema,
        "dataset_profile": dataset.profile,
    }
    # A client of MLflow's may write it in this very moment.
    connection.execute(_insert(connection, mlflow_datasets).values(values).on_conflict_do_nothing())
    return str(connection.execute(query).scalar_one())


def _insert_input(connection: Connection, run_id: str, dataset: DatasetInput, dataset_uuid: str) -> None:
    i = mlflow_inputs.c
    edge = {"source_type": DATASET, "source_id": dataset_uuid, "destination_type": RUN, "destination_id": run_id}
    here = tuple(i[name] == value for name, value in edge.items())
    if connection.execute(select(i.input_uuid).where(*here)).first() is not None:
        return
    input_uuid = uuid.uuid4().hex
    connection.execute(insert(mlflow_inputs).values(**edge, input_uuid=input_uuid, step=0))
    connection.execute(
        insert(mlflow_input_tags).values(input_uuid=input_uuid, name=tags.DATA_CONTEXT, value=dataset.context)
    )


def _check(dataset: DatasetInput) -> None:
    for what, text, most in (
        ("name", dataset.name, _MAX_NAME_CHARS),
        ("digest", dataset.digest, _DIGEST_CHARS),
        ("context", dataset.context, _MAX_NAME_CHARS),
        ("source", dataset.source, _MAX_SOURCE_CHARS),
        ("schema", dataset.schema, _MAX_SCHEMA_CHARS),
        ("profile", dataset.profile, _MAX_SCHEMA_CHARS),
    ):
        if len(text) > most:
            raise InvalidInputError(
                f"the {what} of a dataset is longer than MLflow takes it",
                where=dataset.name[:80],
                expected=f"up to {most} characters",
                received=f"{len(text)} characters",
            )


def _insert(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)
