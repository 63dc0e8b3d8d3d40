"""Tracking: runs with their params, metrics and artifacts, as MLflow keeps them.

Rows are written in SQL (`mlflow_runs.py`): importing MLflow costs seconds, which every small job would pay. MLflow's
client does what only it can: it puts files where a run has its artifacts. No other module imports it.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import select

from noa.errors import InvalidInputError, NotFoundError, StorageError
from noa.references import check_name
from noa_registry.artifacts import check_artifact_settings, runs_uri, s3_environment
from noa_registry.bootstrap import open_database
from noa_registry.database import Database
from noa_registry.mlflow_runs import (
    ACTIVE,
    MetricRow,
    RunStatus,
    deleted_experiment_error,
    end_run,
    find_experiment,
    insert_experiment,
    insert_metrics,
    insert_run,
    require_active_run,
)
from noa_registry.mlflow_schema import import_mlflow
from noa_registry.runs.datasets import DatasetInput
from noa_registry.runs.files import RunFiles
from noa_registry.runs.writing import holds_metric, insert_inputs, reopen_run
from noa_registry.tables import mlflow_runs

if TYPE_CHECKING:
    from noa.settings import RegistrySettings

_MAX_METRICS = 1000  # in one transaction: others wait for its end


class Tracker:
    """Writes runs of one project's MLflow experiment. Several processes may track at once."""

    def __init__(
        self, database: Database, experiment_id: str, *, artifact_environment: Mapping[str, str], files: RunFiles
    ) -> None:
        self._database = database
        self._files = files
        self._close = weakref.finalize(self, database.close)  # a server's connections are not left to the collector
        self._artifact_environment = artifact_environment
        self.experiment_id = experiment_id

    def start_run(self, name: str, params: Mapping[str, object], tags: Mapping[str, str]) -> str:
        """Start a run and return its id. It is there with all its params and tags, or not at all.

        Raises:
            InvalidInputError: a key cannot be one, or the experiment was deleted.
            StorageError: the database refused.
        """
        with self._database.write() as connection:
            return insert_run(connection, experiment_id=int(self.experiment_id), name=name, params=params, tags=tags)

    def log_metrics(self, run_id: str, rows: Sequence[MetricRow]) -> None:
        """Append values of metrics, in batches. After an error, repeat all of them: what is there is left alone.

        Raises:
            NotFoundError: there is no such run.
            InvalidInputError: the run was deleted, or a key or time cannot be one.
            StorageError: the database refused.
        """
        for start in range(0, len(rows), _MAX_METRICS):
            with self._database.write() as connection:
                insert_metrics(connection, run_id, rows[start : start + _MAX_METRICS])

    def resume_run(self, run_id: str) -> None:
        """Note that a run goes on.

        Raises:
            NotFoundError: there is no such run.
            InvalidInputError: the run was deleted.
            StorageError: the database refused.
        """
        with self._database.write() as connection:
            reopen_run(connection, run_id)

    def log_datasets(self, run_id: str, datasets: Sequence[DatasetInput]) -> None:
        """Note which data a run uses; what is noted already is left alone.

        Raises:
            NotFoundError: there is no such run.
            InvalidInputError: the run was deleted, or a text is longer than MLflow takes it.
            StorageError: the database refused.
        """
        with self._database.write() as connection:
            insert_inputs(connection, run_id, datasets)

    def has_metric(self, run_id: str, row: MetricRow) -> bool:
        """Tell whether a run has a value of this metric at this step and time.

        Raises:
            StorageError: the database refused.
        """
        with self._database.read() as connection:
            return holds_metric(connection, run_id, row)

    def log_file(self, run_id: str, path: str, data: bytes, *, replace: bool = True) -> None:
        """Write a file of a run, whole or not at all; `replace` False: one that is there already stays.

        Needs no MLflow, and so reaches local folders and the registry's own S3 only.

        Raises:
            NotFoundError: there is no such run.
            InvalidInputError: the run has its files elsewhere, or was deleted; or `path` leads out of its place.
            StorageError: the disk, S3 or the database refused.
        """
        with self._database.read() as connection:
            require_active_run(connection, run_id)
            location = connection.execute(
                select(mlflow_runs.c.artifact_uri).where(mlflow_runs.c.run_uuid == run_id)
            ).scalar_one()
        self._files.put(str(location), path, data, replace=replace)

    def log_artifact(self, run_id: str, path: Path, *, folder: str | None = None) -> None:
        """Copy a file into the run's artifacts, below `folder` if given. Imports MLflow.

        Raises:
            NotFoundError: there is no such run or file.
        """
        if not path.is_file():
            raise NotFoundError(f"no file `{path.name}` to track", where=str(path))
        os.environ.update(self._artifact_environment)  # MLflow's client of S3 has no other switch
        import_mlflow()
        from mlflow.tracking import MlflowClient

        uri = self._database.url.render()  # not for `mlflow.set_tracking_uri`: it would reach all processes begun here
        with _translate_mlflow_errors():
            MlflowClient(tracking_uri=uri, registry_uri=uri).log_artifact(run_id, str(path), artifact_path=folder)

    def finish(self, run_id: str, status: RunStatus) -> None:
        """End a run.

        Raises:
            NotFoundError: there is no such run.
            InvalidInputError: the run was deleted.
            StorageError: the database refused.
        """
        with self._database.write() as connection:
            end_run(connection, run_id, status)

    def close(self) -> None:
        """Close the connections to the database, which is also done for a tracker that nobody holds any longer."""
        self._close()
        self._files.close()


def open_tracker(settings: RegistrySettings, project: str) -> Tracker:
    """Open the experiment of `project`, creating database and experiment if they are missing.

    Raises:
        DependencyMissingError: files are kept in S3, and boto3 is not installed; nothing was made.
        InvalidInputError: the experiment was deleted.
        StorageError: the database refused.
    """
    check_artifact_settings(settings)
    # For a recipe that imports MLflow itself: what a job trains is told to nobody.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    runs = runs_uri(settings)
    database = open_database(settings.database_url, artifact_root=runs, lock_timeout_s=settings.lock_timeout_s)
    try:
        experiment_id = _experiment_id(database, check_name(project), f"{runs}/{project}")
    except BaseException:
        database.close()
        raise
    return Tracker(database, experiment_id, artifact_environment=s3_environment(settings), files=RunFiles(settings))


def _experiment_id(database: Database, project: str, location: str) -> str:
    with database.read() as connection:
        found = find_experiment(connection, project)
    if found is None:
        with database.write() as connection:
            insert_experiment(connection, name=project, location=location)
            found = find_experiment(connection, project)  # ours, or that of another process that was first
    if found is None or found.lifecycle_stage != ACTIVE:
        raise deleted_experiment_error(project)
    return str(found.experiment_id)


@contextmanager
def _translate_mlflow_errors() -> Generator[None, None, None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as exc:
        text = str(exc.message).splitlines()[0]
        if exc.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise NotFoundError("MLflow knows no such run", received=text) from exc
        if exc.error_code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST") and "OperationalError" not in text:
            raise InvalidInputError("MLflow refused a value", received=text) from exc
        raise StorageError("MLflow's store refused", received=text) from exc
