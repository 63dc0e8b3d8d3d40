"""Runs are written in noa's own SQL: row by row what stock MLflow writes, whole or not at all, and without MLflow."""

from __future__ import annotations

import math
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import NullPool, create_engine, inspect, text

from noa.errors import InvalidInputError, StorageError
from noa.settings import RegistrySettings
from noa_registry import MetricRow, Tracker, open_tracker
from noa_registry.artifacts import runs_uri
from noa_registry.database import Database
from noa_registry.mlflow_runs import insert_experiment, insert_run, run_location

PARAMS: dict[str, object] = {"lr": 0.1, "layers": [8, 8], "optimizer.name/a b:c-d": "adamw", "none": None, "empty": ""}
TAGS = {"noa.job_id": "tiny-1", "note": "ä\n'quoted' \"twice\"", "empty": ""}
TIMES = {"start_time", "end_time", "creation_time", "last_update_time"}
RUN_TABLES = ("runs", "params", "tags", "metrics", "latest_metrics")

# Kills itself right after the statement that begins with its last argument, so inside the transaction.
KILLED = """
import os, signal, sys
from sqlalchemy import Engine, event
from noa.settings import RegistrySettings
from noa_registry import MetricRow, open_tracker
tracker = open_tracker(RegistrySettings.model_validate_json(sys.argv[1]), "project")
left = int(sys.argv[3])

@event.listens_for(Engine, "after_cursor_execute")
def kill(connection, cursor, statement, *rest):
    global left
    left -= statement.startswith(sys.argv[2])
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

run = tracker.start_run("killed", {"seed": 1}, {"kind": "test"})
print(run, flush=True)
tracker.log_metrics(run, [MetricRow(key="loss", value=1.0, step=step, timestamp_ms=1) for step in range(1500)])
"""

WITHOUT_MLFLOW = """
import sys
from noa.settings import RegistrySettings
from noa_registry import MetricRow, open_tracker
tracker = open_tracker(RegistrySettings.model_validate_json(sys.argv[1]), "project")
run = tracker.start_run("run", {"seed": 1}, {"kind": "test"})
tracker.log_metrics(run, [MetricRow(key="loss", value=1.0, step=1, timestamp_ms=1)])
tracker.finish(run, "FINISHED")
tracker.close()
print(sorted({"mlflow", "pandas", "alembic", "fastapi"} & set(sys.modules)))
"""


@pytest.fixture
def tracker(settings: RegistrySettings) -> Iterator[Tracker]:
    opened = open_tracker(settings, "project")
    yield opened
    opened.close()


@pytest.fixture
def client(settings: RegistrySettings) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(settings.database_url, settings.database_url)


@pytest.fixture
def query(settings: RegistrySettings) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """Rows as dictionaries, all columns of them: also of those that noa does not know."""
    engine = create_engine(settings.database_url, poolclass=NullPool)

    def query(statement: str, **values: object) -> list[dict[str, Any]]:
        with engine.connect() as connection:
            return [dict(row) for row in connection.execute(text(statement), values).mappings()]

    yield query
    engine.dispose()


def odd_metrics() -> list[MetricRow]:
    """Values that are not finite, steps that go back, values twice, and two at the same step and time."""
    values = [3.0, math.nan, math.inf, -math.inf, 1e-320, -0.5, 2.0]
    rows = [MetricRow(key="loss", value=v, step=step, timestamp_ms=1000 + step) for step, v in enumerate(values)]
    rows += [MetricRow(key="loss", value=9.0, step=2, timestamp_ms=5000), *rows[:3]]
    rows += [MetricRow(key="a b/c:d-e", value=v, step=-4, timestamp_ms=7) for v in (1.0, 4.0, 4.0, math.nan, 3.0)]
    return [*rows, MetricRow(key="only nan", value=math.nan, step=0, timestamp_ms=0)]


def log_with_stock(client: Any, run_id: str, rows: list[MetricRow]) -> None:
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(row.key, row.value, row.timestamp_ms, row.step) for row in rows])


def rows_of(query: Callable[..., list[dict[str, Any]]], run_id: str) -> dict[str, list[str]]:
    """Return all rows of a run, without what two runs never have in common."""
    found: dict[str, list[str]] = {}
    for table in RUN_TABLES:
        rows = query(f"SELECT * FROM {table} WHERE run_uuid = :run", run=run_id)
        assert rows, table
        for row in rows:
            assert row.pop("run_uuid") == run_id
            row |= {name: type(row[name]) for name in TIMES & row.keys()}
            if table == "runs":
                row["artifact_uri"] = row["artifact_uri"].replace(run_id, "<run>")
                del row["experiment_id"]
        found[table] = sorted(repr(sorted(row.items())) for row in rows)
    return found


def test_every_row_is_that_of_stock_mlflow(
    tracker: Tracker, client: Any, settings: RegistrySettings, query: Callable[..., list[dict[str, Any]]]
) -> None:
    from mlflow.entities import Param, RunTag

    engine = create_engine(settings.database_url, poolclass=NullPool)
    tables = inspect(engine).get_table_names()
    engine.dispose()

    def sizes() -> dict[str, int]:
        found = {name: query(f"SELECT count(*) AS n FROM {name}")[0]["n"] for name in tables}
        return {name: size for name, size in found.items() if name != "noa_commits"}

    before = sizes()
    own = tracker.start_run("a run", PARAMS, TAGS)
    tracker.log_metrics(own, odd_metrics())
    tracker.finish(own, "FAILED")
    between = sizes()
    stock = client.create_run(tracker.experiment_id, run_name="a run", tags={"mlflow.runName": "a run"}).info.run_id
    client.log_batch(stock, params=[Param(key, str(value)) for key, value in PARAMS.items()])
    client.log_batch(stock, tags=[RunTag(key, value) for key, value in TAGS.items()])
    log_with_stock(client, stock, odd_metrics())
    client.set_terminated(stock, "FAILED")
    assert rows_of(query, own) == rows_of(query, stock)
    grown = {name: between[name] - before[name] for name in tables if name in before}
    assert grown == {name: size - between[name] for name, size in sizes().items()}
    assert {name for name, rows in grown.items() if rows} == set(RUN_TABLES)
    times = query("SELECT start_time, end_time FROM runs WHERE run_uuid IN (:own, :stock) ORDER BY start_time",
                  own=own, stock=stock)  # fmt: skip
    assert times[0]["start_time"] <= times[0]["end_time"] <= times[1]["start_time"]


def test_an_experiment_is_made_as_stock_mlflow_makes_it(
    tracker: Tracker, client: Any, settings: RegistrySettings, query: Callable[..., list[dict[str, Any]]]
) -> None:
    client.create_experiment("stock", artifact_location=f"{runs_uri(settings)}/stock")
    own, stock = (query("SELECT * FROM experiments WHERE name = :name", name=name)[0] for name in ("project", "stock"))
    assert stock.pop("experiment_id") == own.pop("experiment_id") + 1
    for name in TIMES & own.keys():
        assert 0 <= stock.pop(name) - own.pop(name) < 3_600_000
    assert {name: str(value).replace("project", "stock") for name, value in own.items()} == {
        name: str(value) for name, value in stock.items()
    }


@pytest.mark.parametrize("seed", range(3))
def test_the_latest_value_is_the_one_that_stock_mlflow_takes(
    seed: int, tracker: Tracker, client: Any, query: Callable[..., list[dict[str, Any]]]
) -> None:
    """Batches of few keys, steps, times and values: ties, repetitions and steps that go back, in every mixture."""
    draw = random.Random(seed)
    own = tracker.start_run("same", {"p": 1}, {})
    stock = client.create_run(tracker.experiment_id, run_name="same").info.run_id
    client.log_param(stock, "p", "1")
    for _ in range(25):
        batch = [
            MetricRow(
                key=draw.choice("abc"),
                value=draw.choice([0.0, 1.0, -1.0, 2.5, math.nan, math.inf]),
                step=draw.randrange(4),
                timestamp_ms=draw.randrange(3),
            )
            for _ in range(draw.randrange(1, 9))
        ]
        tracker.log_metrics(own, batch)
        log_with_stock(client, stock, batch)
    assert rows_of(query, own) == rows_of(query, stock)


def test_one_run_is_written_by_both_in_turn(
    tracker: Tracker, client: Any, query: Callable[..., list[dict[str, Any]]]
) -> None:
    run_id = tracker.start_run("both", {"p": 1}, {"t": "1"})
    log_with_stock(client, run_id, [MetricRow(key="loss", value=2.0, step=1, timestamp_ms=1)])
    tracker.log_metrics(run_id, [MetricRow(key="loss", value=1.0, step=2, timestamp_ms=2)])
    client.set_tag(run_id, "t", "2")
    client.log_param(run_id, "q", "x")
    log_with_stock(client, run_id, [MetricRow(key="loss", value=0.5, step=3, timestamp_ms=3)])
    tracker.log_metrics(run_id, [MetricRow(key="loss", value=7.0, step=0, timestamp_ms=9)])
    tracker.finish(run_id, "KILLED")
    run = client.get_run(run_id)
    assert (run.info.status, run.info.lifecycle_stage, run.data.metrics) == ("KILLED", "active", {"loss": 0.5})
    assert (run.data.params, run.data.tags["t"]) == ({"p": "1", "q": "x"}, "2")
    history = client.get_metric_history(run_id, "loss")  # in the order in which the database likes to give it
    assert sorted((metric.step, metric.value) for metric in history) == [(0, 7.0), (1, 2.0), (2, 1.0), (3, 0.5)]
    assert [found.info.run_id for found in client.search_runs([tracker.experiment_id], "metrics.loss < 1")] == [run_id]


def test_a_key_is_refused_where_stock_mlflow_refuses_it(tracker: Tracker, client: Any) -> None:
    from mlflow.exceptions import MlflowException

    run_id = tracker.start_run("keys", {}, {})
    keys = ["ok", "a/b", "a b.c-d:e_f", "ünï", "9", " ", ".hidden", "a" * 250]
    keys += ["", ".", "..", "../a", "a/../b", "/a", "a/", "a//b", "./a", "a*b", "a\nb", "a,b", "a" * 251]
    for key in keys:
        rows = [MetricRow(key=key, value=1.0, step=0, timestamp_ms=1)]
        refusals: list[type[Exception]] = []
        with suppress(MlflowException):
            log_with_stock(client, run_id, rows)
            refusals.append(MlflowException)
        for write in (
            lambda rows=rows: tracker.log_metrics(run_id, rows),
            lambda key=key: tracker.start_run("param", {key: 1}, {}),
            lambda key=key: tracker.start_run("tag", {}, {key: "1"}),
        ):
            if refusals:
                write()
            else:
                with pytest.raises(InvalidInputError, match="cannot be the key"):
                    write()
    runs = client.search_runs([tracker.experiment_id], max_results=1000)
    assert {run.info.run_name for run in runs if not run.data.params} == {"keys", "tag"}
    with pytest.raises(InvalidInputError, match="1970"):
        tracker.log_metrics(run_id, [MetricRow(key="ok", value=1.0, step=0, timestamp_ms=-1)])


@pytest.mark.parametrize(
    "location",
    ["file:///a/b%20c", "s3://bucket/_runs/p", "s3://bucket", "s3://bucket/", "/a/b", "/a/#b?c", "mlflow-artifacts:/1",
     "wasbs://c@a.example/x?sig=a/b", "relative"],
)  # fmt: skip
def test_a_run_has_its_files_where_stock_mlflow_puts_them(location: str) -> None:
    from mlflow.utils.uri import append_to_uri_path

    assert run_location(location, "0" * 32) == append_to_uri_path(location, "0" * 32, "artifacts")


def test_of_many_that_open_a_new_project_at_once_all_have_one_experiment(
    settings: RegistrySettings, client: Any
) -> None:
    start = threading.Barrier(8)

    def own() -> str:
        start.wait()
        opened = open_tracker(settings, "raced")
        opened.close()
        return opened.experiment_id

    def stock() -> str:
        from mlflow.exceptions import MlflowException

        start.wait()
        with suppress(MlflowException):
            return str(client.create_experiment("raced"))
        return str(client.get_experiment_by_name("raced").experiment_id)

    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(work) for work in [own] * 6 + [stock] * 2]
        assert len({one.result() for one in found}) == 1


def test_an_experiment_that_somebody_else_just_made_is_left_as_it_is(
    settings: RegistrySettings, tracker: Tracker, client: Any
) -> None:
    known = dict(client.get_experiment(tracker.experiment_id))
    database = Database(settings.database_url, lock_timeout_s=30)
    with database.write() as connection:
        insert_experiment(connection, name="project", location="file:///elsewhere")
    database.close()
    assert dict(client.get_experiment_by_name("project")) == known


def test_a_locked_database_is_an_error_and_the_repeated_batch_is_there_once(
    settings: RegistrySettings, tracker: Tracker, client: Any
) -> None:
    run_id = tracker.start_run("locked", {}, {})
    impatient = open_tracker(settings.model_copy(update={"lock_timeout_s": 0.3}), "project")
    rows = [MetricRow(key="loss", value=1.0 / (1 + step), step=step, timestamp_ms=1) for step in range(1200)]
    impatient.log_metrics(run_id, rows[:700])
    other = Database(settings.database_url, lock_timeout_s=30)
    with other.write():
        for write in (
            lambda: impatient.log_metrics(run_id, rows),
            lambda: impatient.finish(run_id, "FINISHED"),
            lambda: impatient.start_run("no", {}, {}),
        ):
            with pytest.raises(StorageError, match="locked by another writer"):
                write()
    other.close()
    impatient.log_metrics(run_id, rows)
    impatient.finish(run_id, "FINISHED")
    impatient.close()
    history = client.get_metric_history(run_id, "loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(row.step, row.value) for row in rows]
    run = client.get_run(run_id)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"loss": rows[-1].value})
    assert len(client.search_runs([tracker.experiment_id])) == 1


@pytest.mark.parametrize(
    ("statement", "times", "written"),
    [("INSERT INTO runs", 1, None), ("INSERT INTO tags", 1, None), ("INSERT INTO metrics", 1, 0),
     ("INSERT INTO latest_metrics", 1, 0), ("INSERT INTO latest_metrics", 2, 1000)],
)  # fmt: skip
def test_who_is_killed_leaves_whole_batches_and_the_same_rows_can_follow(
    statement: str, times: int, written: int | None, settings: RegistrySettings, tracker: Tracker, client: Any
) -> None:
    arguments = [settings.model_dump_json(), statement, str(times)]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if written is None:
        assert client.search_runs([tracker.experiment_id]) == []
        return
    run_id = killed.stdout.strip()
    assert len(client.get_metric_history(run_id, "loss")) == written
    assert client.get_run(run_id).data.metrics == ({"loss": 1.0} if written else {})
    tracker.log_metrics(run_id, [MetricRow(key="loss", value=1.0, step=i, timestamp_ms=1) for i in range(1500)])
    tracker.finish(run_id, "FINISHED")
    assert sorted(metric.step for metric in client.get_metric_history(run_id, "loss")) == list(range(1500))
    run = client.get_run(run_id)
    assert (run.data.params, run.data.tags["kind"], run.info.status) == ({"seed": "1"}, "test", "FINISHED")


def test_a_run_or_experiment_that_was_deleted_takes_nothing(tracker: Tracker, client: Any) -> None:
    run_id = tracker.start_run("deleted", {}, {})
    client.delete_run(run_id)
    for write in (
        lambda: tracker.log_metrics(run_id, odd_metrics()),
        lambda: tracker.finish(run_id, "FINISHED"),
    ):
        with pytest.raises(InvalidInputError, match="the MLflow run was deleted"):
            write()
    client.restore_run(run_id)
    tracker.log_metrics(run_id, odd_metrics())
    client.delete_experiment(tracker.experiment_id)
    with pytest.raises(InvalidInputError, match="the MLflow experiment `project` was deleted"):
        tracker.start_run("late", {}, {})


def test_a_run_that_is_refused_leaves_nothing(settings: RegistrySettings, tracker: Tracker, client: Any) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    with pytest.raises(RuntimeError, match="no text"):
        tracker.start_run("broken", {"ok": 1, "broken": Broken()}, {})
    database = Database(settings.database_url, lock_timeout_s=30)
    with pytest.raises(InvalidInputError), database.write() as connection:
        insert_run(connection, experiment_id=10**6, name="nowhere", params={}, tags={})
    database.close()
    assert client.search_runs([tracker.experiment_id]) == []


def test_tracking_imports_no_mlflow(settings: RegistrySettings) -> None:
    command = [sys.executable, "-c", WITHOUT_MLFLOW, settings.model_dump_json()]
    assert subprocess.check_output(command, text=True).strip() == "[]"
