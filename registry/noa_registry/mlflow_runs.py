"""MLflow's rows of experiments and runs: the same that its own clients write, in SQL, so that nobody imports MLflow.

A run appears with its params and tags or not at all. Values of metrics that are there already are left alone, so a
batch whose answer was lost, or of which a part was written, is simply written again.
"""

from __future__ import annotations

import math
import posixpath
import re
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from sqlalchemy import Connection, Row, Table, insert, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from noa.errors import InvalidInputError, NotFoundError
from noa_registry.mlflow_rows import WORKSPACE
from noa_registry.tables import (
    mlflow_experiments,
    mlflow_latest_metrics,
    mlflow_metrics,
    mlflow_params,
    mlflow_run_tags,
    mlflow_runs,
)

RunStatus: TypeAlias = Literal["FINISHED", "FAILED", "KILLED"]
ACTIVE: Final = "active"
RUN_NAME_TAG: Final = "mlflow.runName"
_KEY = re.compile(r"[/\w.\- :]+")
_MAX_KEY_CHARS = 250
_MAX_VALUE_CHARS = 6000
_MAX_FLOAT = 1.7976931348623157e308  # MLflow's stand-in for an infinity, which SQL has not
_HAS_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRow:
    """One value of a metric. NaN and infinities are allowed. `timestamp_ms` counts from the Unix epoch."""

    key: str
    value: float
    step: int
    timestamp_ms: int


def find_experiment(connection: Connection, name: str) -> Row[Any, Any] | None:
    """Return the id and stage of an experiment, None if there is none of that name."""
    c = mlflow_experiments.c
    query = select(c.experiment_id, c.lifecycle_stage).where(c.workspace == WORKSPACE, c.name == name)
    return connection.execute(query).first()


def insert_experiment(connection: Connection, *, name: str, location: str) -> None:
    """Make an experiment, unless a client of MLflow's made it in this very moment."""
    now_ms = _now_ms()
    connection.execute(
        _upsert(connection, mlflow_experiments)
        .values(
            workspace=WORKSPACE,
            name=name,
            artifact_location=location,
            lifecycle_stage=ACTIVE,
            creation_time=now_ms,
            last_update_time=now_ms,
        )
        .on_conflict_do_nothing()
    )


def insert_run(
    connection: Connection, *, experiment_id: int, name: str, params: Mapping[str, object], tags: Mapping[str, str]
) -> str:
    """Make a run that is at work, and return its id.

    Raises:
        InvalidInputError: a key of a param or tag cannot be one, or the experiment was deleted.
    """
    _check_keys([*params, *tags])
    run_id = uuid.uuid4().hex
    connection.execute(
        insert(mlflow_runs).values(
            run_uuid=run_id,
            name=name,
            source_type="UNKNOWN",
            source_name="",
            entry_point_name="",
            user_id="unknown",
            status="RUNNING",
            start_time=_now_ms(),
            source_version="",
            lifecycle_stage=ACTIVE,
            artifact_uri=run_location(_active_location(connection, experiment_id), run_id),
            experiment_id=experiment_id,
        )
    )
    labels = {RUN_NAME_TAG: name} | {key: _shorten(value) for key, value in tags.items()}
    for table, values in (
        (mlflow_params, {key: _shorten(value) for key, value in params.items()}),
        (mlflow_run_tags, labels),
    ):
        if values:
            rows = [{"run_uuid": run_id, "key": key, "value": value} for key, value in values.items()]
            connection.execute(insert(table), rows)
    return run_id


def insert_metrics(connection: Connection, run_id: str, rows: Sequence[MetricRow]) -> None:
    """Append values of metrics to a run; the latest of each, by step, time and value, is kept apart, as MLflow does.

    Raises:
        NotFoundError: there is no such run.
        InvalidInputError: the run was deleted, or a key or time cannot be one.
    """
    _check_keys({row.key for row in rows})
    if any(row.timestamp_ms < 0 for row in rows):
        raise InvalidInputError("a metric has a time before 1970, which MLflow does not take", expected="0 or later")
    require_active_run(connection, run_id)
    values = [_metric_values(run_id, row) for row in rows]
    if not values:
        return
    connection.execute(_upsert(connection, mlflow_metrics).on_conflict_do_nothing(), values)
    latest: dict[str, dict[str, Any]] = {}
    for value in values:
        known = latest.get(value["key"])
        if known is None or _age(value) > _age(known):
            latest[value["key"]] = value
    statement = _upsert(connection, mlflow_latest_metrics)
    new, old = statement.excluded, mlflow_latest_metrics.c
    statement = statement.on_conflict_do_update(
        index_elements=["key", "run_uuid"],
        set_={name: new[name] for name in ("value", "timestamp", "step", "is_nan")},
        where=tuple_(new.step, new.timestamp, new.value) > tuple_(old.step, old.timestamp, old.value),
    )
    # In MLflow's order of keys: of two that write to one run, neither waits for a row that the other one holds.
    connection.execute(statement, [latest[key] for key in sorted(latest)])


def end_run(connection: Connection, run_id: str, status: RunStatus) -> None:
    """Note how a run ended, and when.

    Raises:
        NotFoundError: there is no such run.
        InvalidInputError: the run was deleted.
    """
    require_active_run(connection, run_id)
    here = mlflow_runs.c.run_uuid == run_id
    connection.execute(update(mlflow_runs).where(here).values(status=status, end_time=_now_ms()))


def require_active_run(connection: Connection, run_id: str) -> None:
    """Raise unless there is such a run, and nobody deleted it.

    Raises:
        NotFoundError: there is no such run.
        InvalidInputError: the run was deleted.
    """
    query = select(mlflow_runs.c.lifecycle_stage).where(mlflow_runs.c.run_uuid == run_id)
    found = connection.execute(query).first()
    if found is None:
        raise NotFoundError("MLflow knows no such run", received=run_id)
    if found.lifecycle_stage != ACTIVE:
        raise InvalidInputError(
            "the MLflow run was deleted",
            received=run_id,
            remedy="Restore it in MLflow (MlflowClient().restore_run), or train again",
        )


def run_location(experiment_location: str, run_id: str) -> str:
    """Return where a run of an experiment has its files: below that one's place, before what a URL asks for."""
    place, rest = experiment_location, ""
    if _HAS_SCHEME.match(place):
        at = min((place.find(mark) for mark in "?#" if mark in place), default=len(place))
        place, rest = place[:at], place[at:]
    return f"{place}{'' if place.endswith('/') else '/'}{run_id}/artifacts{rest}"


def deleted_experiment_error(name: str) -> InvalidInputError:
    """Return the error of somebody who tracks in an experiment that was deleted."""
    return InvalidInputError(
        f"the MLflow experiment `{name}` was deleted",
        remedy="Bring it back with: noa models verify --repair; or set another `project.name`",
    )


def _active_location(connection: Connection, experiment_id: int) -> str:
    c = mlflow_experiments.c
    found = connection.execute(
        select(c.name, c.artifact_location, c.lifecycle_stage).where(c.experiment_id == experiment_id)
    ).first()
    if found is None or found.lifecycle_stage != ACTIVE:
        raise deleted_experiment_error(str(experiment_id) if found is None else found.name)
    return str(found.artifact_location)


def _metric_values(run_id: str, row: MetricRow) -> dict[str, Any]:
    value = float(row.value)
    is_nan = math.isnan(value)
    stored = 0.0 if is_nan else max(-_MAX_FLOAT, min(_MAX_FLOAT, value))
    return {
        "run_uuid": run_id,
        "key": row.key,
        "value": stored,
        "timestamp": row.timestamp_ms,
        "step": row.step,
        "is_nan": is_nan,
    }


def _age(values: Mapping[str, Any]) -> tuple[int, int, float]:
    return values["step"], values["timestamp"], values["value"]


def _check_keys(keys: Iterable[str]) -> None:
    for key in keys:
        path = posixpath.normpath(key)
        is_plain = path == key and path != "." and not path.startswith(("..", "/"))
        if not _KEY.fullmatch(key) or not is_plain or len(key) > _MAX_KEY_CHARS:
            raise InvalidInputError(
                "this cannot be the key of a metric, param or tag of an MLflow run",
                expected=f"up to {_MAX_KEY_CHARS} letters, digits, spaces and `_`, `-`, `.`, `:`, `/`, and no `..`",
                received=repr(key[: _MAX_KEY_CHARS + 1]),
            )


def _upsert(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= _MAX_VALUE_CHARS else text[: _MAX_VALUE_CHARS - 1] + "…"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
