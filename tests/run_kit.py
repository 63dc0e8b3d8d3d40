"""Runs by the dozen, written as rows: what a list must find is known from the values they were made of."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, NullPool, create_engine, insert

from noa.settings import RegistrySettings
from noa_registry.tables import mlflow_latest_metrics, mlflow_metrics, mlflow_params, mlflow_run_tags, mlflow_runs

T0 = 1_780_000_000_000  # milliseconds; 2026-05-28


@dataclass(frozen=True)
class Made:
    """A run as a brute force sees it. `metrics` are the last values by key."""

    run_id: str
    name: str
    status: str
    start_ms: int | None
    end_ms: int | None
    params: dict[str, str] = field(default_factory=dict[str, str])
    tags: dict[str, str] = field(default_factory=dict[str, str])
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    is_deleted: bool = False


def draw_runs(count: int, seed: int) -> list[Made]:
    """Return runs with few different values: ties, gaps and everything in between."""
    chance = random.Random(seed)
    found: list[Made] = []
    for number in range(count):
        status = chance.choice(["RUNNING", "FINISHED", "FINISHED", "FAILED", "KILLED"])
        start = T0 + chance.randrange(5) * 3_600_000
        tags = {"noa.backend": chance.choice(["torch", "jax"]), "team": chance.choice(["vision", "speech", "vi*"])}
        tags |= {"noa.model": chance.choice(["digits", "flights"])} if chance.random() < 0.8 else {}
        tags |= {"noa.job_id": f"job-{number}", "noa.attempt": "1"} if chance.random() < 0.7 else {}
        metrics = {
            key: chance.choice([0.0, 0.25, 0.5, -1.0, 1e308 * 10 if chance.random() < 0.1 else 2.0])
            for key in ("best.accuracy", "validation.accuracy", "train.loss")
            if chance.random() < 0.6
        }
        found.append(
            Made(
                run_id=f"{chance.getrandbits(128):032x}",
                name=chance.choice(["digits-torch-1", "Flights 100%", "x_y"]),
                status=status,
                start_ms=start,
                end_ms=None if status == "RUNNING" else start + chance.randrange(100_000),
                params={"lr": chance.choice(["0.01", "0.1", "1e-05"]), "epochs": chance.choice(["3", "10"])},
                tags=tags,
                metrics=metrics,
                is_deleted=chance.random() < 0.1,
            )
        )
    return found


def write_runs(settings: RegistrySettings, runs: list[Made], *, rows_per_metric: int = 0) -> None:
    """Write runs into MLflow's tables; `rows_per_metric` values of each metric in its history."""
    with connected(settings) as connection:
        for start in range(0, len(runs), 500):
            _write(connection, runs[start : start + 500], rows_per_metric)


@contextmanager
def connected(settings: RegistrySettings) -> Iterator[Connection]:
    """Give a connection in a transaction, as any other program has it."""
    engine = create_engine(settings.database_url, poolclass=NullPool)
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def write_points(
    settings: RegistrySettings, run_id: str, key: str, points: list[tuple[int, int, float | None]]
) -> None:
    """Write values of a metric: (step, milliseconds, value), None for NaN; the last one is the latest."""
    rows = [
        {"run_uuid": run_id, "key": key, "step": step, "timestamp": at, "value": value or 0.0, "is_nan": value is None}
        for step, at, value in points
    ]
    with connected(settings) as connection:
        connection.execute(insert(mlflow_metrics), rows)
        connection.execute(insert(mlflow_latest_metrics), [rows[-1]])


def _write(connection: Connection, runs: list[Made], rows_per_metric: int) -> None:
    connection.execute(
        insert(mlflow_runs),
        [
            {
                "run_uuid": run.run_id,
                "name": run.name,
                "source_type": "UNKNOWN",
                "source_name": "",
                "entry_point_name": "",
                "user_id": "unknown",
                "status": run.status,
                "start_time": run.start_ms,
                "end_time": run.end_ms,
                "source_version": "",
                "lifecycle_stage": "deleted" if run.is_deleted else "active",
                "artifact_uri": f"file:///nowhere/{run.run_id}/artifacts",
                "experiment_id": 0,
            }
            for run in runs
        ],
    )
    for table, values in ((mlflow_params, "params"), (mlflow_run_tags, "tags")):
        rows = [
            {"run_uuid": run.run_id, "key": key, "value": value}
            for run in runs
            for key, value in getattr(run, values).items()
        ]
        if rows:
            connection.execute(insert(table), rows)
    latest = [_metric_row(run, key, value, rows_per_metric) for run in runs for key, value in run.metrics.items()]
    if latest:
        connection.execute(insert(mlflow_latest_metrics), latest)
        history = [{**row, "step": step, "value": row["value"]} for row in latest for step in range(rows_per_metric)]
        if history:
            connection.execute(insert(mlflow_metrics), history)


def _metric_row(run: Made, key: str, value: float, last_step: int) -> dict[str, Any]:
    stored = max(-1.7976931348623157e308, min(1.7976931348623157e308, value))
    return {
        "run_uuid": run.run_id,
        "key": key,
        "value": stored,
        "timestamp": run.start_ms or 0,
        "step": last_step,
        "is_nan": False,
    }


def as_json(value: object) -> Any:
    """Return what `--json` would print, read back."""
    return json.loads(json.dumps(value, default=str, allow_nan=False))
