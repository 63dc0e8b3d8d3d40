"""Runs: pages of a list, one run, a comparison and a curve, over very many runs.

Lists read the last values, of which each run has one a metric; the history of each run is read by plots alone, through
its index. So the history is filled in for some runs only (`HISTORY_RUNS`): enough that its index is deep.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, create_engine, insert

from benchmarks.rows import Row, median_seconds
from noa.settings import RegistrySettings
from noa_registry import Registry
from noa_registry.runs import RunBook, open_runs
from noa_registry.tables import mlflow_latest_metrics, mlflow_metrics, mlflow_params, mlflow_run_tags, mlflow_runs

RUNS, VALUES, HISTORY_RUNS = 10_000, 10_000, 20
KEYS = ("train.loss", "learning_rate", "samples_per_s", "validation.loss", "validation.accuracy", "best.loss",
        "best.accuracy", "system/cpu_utilization_percentage", "system/process_memory_megabytes")  # fmt: skip
QUERIES = (
    "",
    "sort:started:asc",
    "model:digits",
    "backend:torch status:failed",
    "backend:nobody",
    "metric.accuracy>=0.99",
    "metric.accuracy>=2",
    "sort:metric.accuracy",
    "param.param3:7",
    "-tag.tag3:x",
    "run-77",
    "dataset:sha256:d",
    "started>=2026-06-01 started<2026-06-02",
    "version:*",
    "status:interrupted",
)
"""A query of every kind; those that find nothing have looked at most."""
PAGE = 50
_BATCH = 2000
_T0 = 1_780_000_000_000


def measure(root: Path, *, quick: bool) -> list[Row]:
    """Return the median time of each question; the slowest page is the one to quote."""
    runs, history = (1_000, 2) if quick else (RUNS, HISTORY_RUNS)
    settings = RegistrySettings(database_url=f"sqlite:///{root / 'noa.db'}", artifact_dir=root / "artifacts")
    Registry.open(settings).close()
    fill_runs(settings, runs=runs, history=history, values=VALUES)
    with open_runs(settings) as book:
        pages = {query: _median(book, query) for query in QUERIES}
        first = book.page("", limit=PAGE).runs[0].run_id
        others = {
            "one run": median_seconds(lambda: book.get(first), repeats=9),
            "two runs compared": median_seconds(lambda: book.compare([first, run_id(0)]), repeats=9),
            f"a curve of {VALUES:,} values": median_seconds(lambda: book.curves([run_id(0)], "train.loss"), repeats=5),
        }
    slowest = max(pages, key=lambda query: pages[query])
    rows = [
        Row(what=f"a page of {runs:,} runs: {query[:34]}", figure=seconds * 1e3, unit="ms")
        for query, seconds in pages.items()
    ]
    rows += [Row(what=f"{what}, of {runs:,}", figure=seconds * 1e3, unit="ms") for what, seconds in others.items()]
    worst = f"a page of {runs:,} runs, the slowest kind: {slowest[:24]}"
    return [*rows, Row(what=worst, figure=pages[slowest] * 1e3, unit="ms")]


def fill_runs(settings: RegistrySettings, *, runs: int, history: int, values: int) -> None:
    """Write runs as jobs do: 12 params, 22 tags, 9 metrics each; `history` of them have `values` values of each."""
    engine = create_engine(settings.database_url)
    with engine.begin() as connection:
        for table, rows in (
            (mlflow_runs, _runs(runs)),
            (mlflow_params, _texts(runs, "param", 12)),
            (mlflow_run_tags, _tags(runs)),
            (mlflow_latest_metrics, _latest(runs, values)),
        ):
            _insert(connection, table, rows)
        _insert(connection, mlflow_metrics, _history(history, values))
    engine.dispose()


@functools.cache
def run_id(number: int) -> str:
    """Return the id of a run."""
    return f"{random.Random(number).getrandbits(128):032x}"


def _median(book: RunBook, query: str) -> float:
    return median_seconds(lambda: book.page(query, limit=PAGE), repeats=9)


def _insert(connection: Connection, table: Table, rows: Iterator[dict[str, Any]]) -> None:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH:
            connection.execute(insert(table), batch)
            batch = []
    if batch:
        connection.execute(insert(table), batch)


def _runs(count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        status = ("FINISHED", "FINISHED", "FAILED", "KILLED")[number % 4] if number < count - 5 else "RUNNING"
        yield {
            "run_uuid": run_id(number),
            "name": f"run-{number}",
            "source_type": "UNKNOWN",
            "source_name": "",
            "entry_point_name": "",
            "user_id": "unknown",
            "status": status,
            "start_time": _T0 + number * 60_000,
            "end_time": None if status == "RUNNING" else _T0 + number * 60_000 + 30_000,
            "source_version": "",
            "lifecycle_stage": "active",
            "artifact_uri": f"file:///bench/{run_id(number)}/artifacts",
            "experiment_id": 0,
        }


def _texts(count: int, kind: str, each: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        for key in range(each):
            yield {"run_uuid": run_id(number), "key": f"{kind}{key}", "value": str(number * (key + 1) % 101)}


def _tags(count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        for key, value in (
            ("noa.backend", ("torch", "jax")[number % 2]),
            ("noa.model", ("digits", "flights", "ranker")[number % 3]),
            ("noa.recipe", "recipe.py"),
            ("noa.best_by", "accuracy"),
            ("noa.dataset_digest", f"sha256:{number % 7:064x}"),
            ("noa.job_id", f"job-{number}"),
            ("noa.attempt", "1"),
            ("mlflow.user", "bench"),
            ("noa.env.packages", '{"numpy": "2.1"}' * 60),
        ):
            yield {"run_uuid": run_id(number), "key": key, "value": value}
    yield from _texts(count, "tag", 13)


def _latest(count: int, values: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield from (_value(number, key, values - 1) for key in KEYS)


def _history(count: int, values: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        for step in range(values):
            yield from (_value(number, key, step) for key in KEYS)


def _value(number: int, key: str, step: int) -> dict[str, Any]:
    return {
        "run_uuid": run_id(number),
        "key": key,
        "value": (number * 31 + step) % 1000 / 1000,
        "timestamp": _T0 + number * 60_000 + step,
        "step": step,
        "is_nan": False,
    }
