"""Tracking: runs with their params, metrics and artifacts, in MLflow. The only module that imports MLflow's client.

Metrics are written in batches: one at a time MLflow takes 30 a second, in batches thousands. MLflow's client makes a
second, global client inside, so the global tracking URI is set to the same database.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from noa.errors import InvalidInputError, NotFoundError, StorageError
from noa.references import check_name
from noa_registry.artifacts import check_artifact_settings, runs_uri, s3_environment
from noa_registry.bootstrap import open_database
from noa_registry.mlflow_schema import import_mlflow

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

    from noa.settings import RegistrySettings

RunStatus: TypeAlias = Literal["FINISHED", "FAILED", "KILLED"]
_RowT = TypeVar("_RowT")
_MAX_METRICS = 1000
_MAX_PARAMS = 100
_MAX_TAGS = 100
_MAX_VALUE_CHARS = 6000
_RUN_NAME_TAG = "mlflow.runName"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRow:
    """One value of a metric. NaN and infinities are allowed. `timestamp_ms` counts from the Unix epoch."""

    key: str
    value: float
    step: int
    timestamp_ms: int


class Tracker:
    """Writes runs of one project's MLflow experiment. Several processes may track at once."""

    def __init__(self, client: MlflowClient, experiment_id: str) -> None:
        self._client = client
        self.experiment_id = experiment_id

    def start_run(self, name: str, params: Mapping[str, object], tags: Mapping[str, str]) -> str:
        """Start a run and return its id.

        Raises:
            StorageError: the database refused.
        """
        from mlflow.entities import Param, RunTag

        with _translate_mlflow_errors():
            run = self._client.create_run(self.experiment_id, run_name=name, tags={_RUN_NAME_TAG: name})
            run_id = str(run.info.run_id)
            entries = [Param(key, _shorten(value)) for key, value in params.items()]
            for page in _pages(entries, _MAX_PARAMS):
                self._client.log_batch(run_id, params=page)
            labels = [RunTag(key, _shorten(value)) for key, value in tags.items()]
            for page in _pages(labels, _MAX_TAGS):
                self._client.log_batch(run_id, tags=page)
        return run_id

    def log_metrics(self, run_id: str, rows: Sequence[MetricRow]) -> None:
        """Append values of metrics, in batches that MLflow accepts.

        Raises:
            NotFoundError: there is no such run.
            StorageError: the database refused.
        """
        from mlflow.entities import Metric

        metrics: list[Metric] = [Metric(row.key, float(row.value), row.timestamp_ms, row.step) for row in rows]
        with _translate_mlflow_errors():
            for page in _pages(metrics, _MAX_METRICS):
                self._client.log_batch(run_id, metrics=page)

    def log_artifact(self, run_id: str, path: Path, *, folder: str | None = None) -> None:
        """Copy a file into the run's artifacts, below `folder` if given.

        Raises:
            NotFoundError: there is no such run or file.
        """
        if not path.is_file():
            raise NotFoundError(f"no file `{path.name}` to track", where=str(path))
        with _translate_mlflow_errors():
            self._client.log_artifact(run_id, str(path), artifact_path=folder)

    def finish(self, run_id: str, status: RunStatus) -> None:
        """End a run.

        Raises:
            NotFoundError: there is no such run.
        """
        with _translate_mlflow_errors():
            self._client.set_terminated(run_id, status=status, end_time=time.time_ns() // 1_000_000)


def open_tracker(settings: RegistrySettings, project: str) -> Tracker:
    """Open the experiment of `project`, creating database and experiment if they are missing.

    Raises:
        DependencyMissingError: files are kept in S3, and boto3 is not installed; nothing was made.
        StorageError: the database refused.
    """
    check_artifact_settings(settings)
    runs = runs_uri(settings)
    database = open_database(settings.database_url, artifact_root=runs, lock_timeout_s=settings.lock_timeout_s)
    database.close()
    os.environ.update(s3_environment(settings))  # MLflow's client of S3 has no other switch
    import_mlflow()
    from mlflow.tracking import MlflowClient

    uri = database.url.render()  # not for `mlflow.set_tracking_uri`: that would reach every process started from here
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    with _translate_mlflow_errors():
        return Tracker(client, _experiment_id(client, check_name(project), f"{runs}/{project}"))


def _experiment_id(client: MlflowClient, project: str, location: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(project)
    if found is None:
        try:
            return str(client.create_experiment(project, artifact_location=location))
        except MlflowException as exc:
            if exc.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(project)  # another process was first
    if found is None or found.lifecycle_stage != "active":
        raise InvalidInputError(
            f"the MLflow experiment `{project}` was deleted",
            remedy="Bring it back with: noa models verify --repair; or set another `project.name`",
        )
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


def _pages(rows: Sequence[_RowT], size: int) -> Iterator[Sequence[_RowT]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= _MAX_VALUE_CHARS else text[: _MAX_VALUE_CHARS - 1] + "…"
