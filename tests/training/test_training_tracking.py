"""Runs in a real MLflow store, written by a real job."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from noa.errors import TrainingError
from noa.settings import RegistrySettings, Settings
from noa_training import Epoch, JobCancelledError, Step, Warned, WorkerRequest, parse_event, run_writer, tracking
from noa_training.reporting import Reporter
from noa_training.schedules import Plan
from samples import mostly

if TYPE_CHECKING:
    from tests.training.conftest import Jobs

PLAN = Plan(rows=64, batch_size=32, epochs=10**6, seed=0)
KILLED = """
import sys, time
from pathlib import Path
from noa.settings import RegistrySettings
from noa_training.reporting import Reporter
from noa_training.schedules import Plan
from noa_training.tracking import RunInfo, RunTracking

settings, folder = RegistrySettings.model_validate_json(sys.argv[1]), Path(sys.argv[2])
reporter = Reporter("job", folder, lambda event: None)
reporter.tracking = RunTracking(
    settings, project="demo", on_run=(folder / "run").write_text, on_warning=print, log=folder / "events.jsonl"
)
reporter.tracking.begin(RunInfo(name="job-1", params={}, tags={}))
plan = Plan(rows=64, batch_size=32, epochs=10**6, seed=0)
reporter.started(folder, backend="torch", attempt=1, dataset_digest="d", plan=plan)
for step in range(1, 10**6):
    reporter.epoch(step, step, {f"m{number}": step / (1 + number) for number in range(10)}, is_best=True)
    print(step, flush=True)
    time.sleep(0.002)
"""


@pytest.fixture
def registry(tmp_path: Path, add_empty_registry: Callable[[Path], None]) -> RegistrySettings:
    add_empty_registry(tmp_path / "tracked")
    return Settings().resolved(tmp_path / "tracked").registry


def rows(registry: RegistrySettings, query: str, *values: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(registry.database_url.removeprefix("sqlite:///")) as connection:
        return connection.execute(query, values).fetchall()


def test_a_run_holds_metrics_params_tags_and_the_truth_about_its_end(jobs: Jobs, registry: RegistrySettings) -> None:
    job = jobs.run(registry=registry, settings={"log_every_steps": 2}, overrides={"epochs": 3}, project="demo")
    assert job.run_id is not None
    run = job.run_id
    assert rows(registry, "select status, name from runs where run_uuid = ?", run) == [("FINISHED", f"{job.job_id}-1")]
    losses = rows(
        registry, "select step, value from metrics where run_uuid = ? and key = 'train.loss' order by step", run
    )
    assert losses == [(event.step, event.loss) for event in jobs.of(Step)]
    query = "select value from metrics where run_uuid = ? and key = 'validation.accuracy' order by step"
    assert [value for (value,) in rows(registry, query, run)] == [e.metrics["accuracy"] for e in jobs.of(Epoch)]
    params = dict(rows(registry, "select key, value from params where run_uuid = ?", run))
    assert params["epochs"] == "3" and params["backend"] == "torch" and params["optimizer.weight_decay"] == "0.01"
    tags = dict(rows(registry, "select key, value from tags where run_uuid = ?", run))
    assert tags["noa.dataset_digest"] == job.dataset_digest
    assert json.loads(str(tags["noa.overrides"])) == {"epochs": 3}
    assert rows(registry, "select name from experiments where name = 'demo'") == [("demo",)]


def test_a_continued_job_continues_its_run(jobs: Jobs, registry: RegistrySettings) -> None:
    with pytest.raises(JobCancelledError):
        jobs.run(registry=registry, should_stop=jobs.stop_after(8))
    assert rows(registry, "select status from runs") == [("KILLED",)]
    job = jobs.run(registry=registry)
    assert rows(registry, "select status, run_uuid from runs") == [("FINISHED", job.run_id)]


def test_a_failed_job_is_a_failed_run(jobs: Jobs, registry: RegistrySettings) -> None:
    overrides = {"optimizer.learning_rate": 1e30, "gradient_clip": 1e30}
    with pytest.raises(TrainingError):
        jobs.run(registry=registry, overrides=overrides)
    assert rows(registry, "select status from runs") == [("FAILED",)]


def test_a_tracker_that_fails_is_reported_and_the_job_ends_well(jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "not-a-folder").write_text("")
    broken = RegistrySettings(
        database_url=f"sqlite:///{tmp_path / 'not-a-folder' / 'noa.db'}", artifact_dir=tmp_path / "artifacts"
    )
    job = jobs.run(registry=broken)
    assert job.run_id is None
    warned: list[Warned] = jobs.of(Warned)
    assert {event.subject for event in warned} == {"tracking"}
    assert "metrics are not recorded" in warned[0].message


def test_a_run_that_was_deleted_is_replaced(jobs: Jobs, registry: RegistrySettings) -> None:
    with pytest.raises(JobCancelledError):
        jobs.run(registry=registry, should_stop=jobs.stop_after(8))
    database = registry.database_url.removeprefix("sqlite:///")
    with sqlite3.connect(database) as connection:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            connection.execute(f"delete from {table}")
    job = jobs.run(registry=registry)
    assert rows(registry, "select status, run_uuid from runs") == [("FINISHED", job.run_id)]
    assert any("the run is gone" in event.message for event in jobs.of(Warned))


def test_a_run_is_there_from_the_moment_in_which_its_job_begins(
    registry: RegistrySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_FLUSH_EVERY_S", 3600.0)
    started = threading.Event()
    run = tracking.RunTracking(registry, project="demo", on_run=lambda _: started.set(), on_warning=pytest.fail)
    database = registry.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(database)) as connection:  # open by now, and at rest until it is told of the run
        while not connection.execute("select 1 from experiments where name = 'demo'").fetchall():
            assert not started.wait(0.02)
    run.begin(tracking.RunInfo(name="early", params={"p": 1}, tags={"t": "1"}))
    assert started.wait(60)
    assert rows(registry, "select name, status from runs") == [("early", "RUNNING")]
    run.log({"loss": 0.5}, step=1, now=1.0)
    assert run.finish("FINISHED") is not None
    assert rows(registry, "select status, value from runs join metrics using (run_uuid)") == [("FINISHED", 0.5)]


def test_a_run_that_is_gone_when_the_job_ends_is_replaced_at_once(
    registry: RegistrySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_FLUSH_EVERY_S", 3600.0)
    begun: list[str] = []
    warned: list[str] = []
    run = tracking.RunTracking(registry, project="demo", on_run=begun.append, on_warning=warned.append)
    run.log({"loss": 0.5}, step=1, now=1.0)
    run.begin(tracking.RunInfo(name="again", params={}, tags={}, run_id="0" * 32))
    assert run.finish("KILLED") == begun[-1] != "0" * 32
    assert "the run is gone" in warned[0]
    assert rows(registry, "select status, value from runs join metrics using (run_uuid)") == [("KILLED", 0.5)]


def test_a_continued_job_runs_again_until_it_ends(jobs: Jobs, registry: RegistrySettings) -> None:
    with pytest.raises(JobCancelledError):
        jobs.run(registry=registry, should_stop=jobs.stop_after(8))
    seen: set[tuple[object, ...]] = set()

    def look() -> bool:
        seen.update(rows(registry, "select status, end_time is null from runs"))
        return False

    jobs.run(registry=registry, settings={"log_every_steps": 1}, should_stop=look)
    assert ("RUNNING", 1) in seen
    assert rows(registry, "select status, end_time is null from runs") == [("FINISHED", 0)]


def test_a_store_that_is_locked_for_a_while_loses_nothing(
    registry: RegistrySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_FLUSH_EVERY_S", 0.02)
    monkeypatch.setattr(tracking, "_RETRY_EVERY_S", 0.02)
    monkeypatch.setattr(run_writer, "_MOST_WAITING", 50)  # the log has them too
    impatient = registry.model_copy(update={"lock_timeout_s": 0.1})
    warned: list[str] = []
    started = threading.Event()
    reporter = Reporter("job", tmp_path, lambda _: None)
    run = tracking.RunTracking(
        impatient,
        project="demo",
        on_run=lambda _: started.set(),
        on_warning=warned.append,
        log=tmp_path / "events.jsonl",
    )
    reporter.tracking = run
    run.begin(tracking.RunInfo(name="locked", params={}, tags={}))
    assert started.wait(60)
    reporter.started(tmp_path, backend="torch", attempt=1, dataset_digest="d", plan=PLAN)
    with closing(sqlite3.connect(registry.database_url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for step in range(200):
            reporter.epoch(step, step, {"loss": step / 7}, is_best=False)
        deadline = time.monotonic() + 60
        while not warned and time.monotonic() < deadline:
            time.sleep(0.01)
        other.execute("ROLLBACK")
    assert run.finish("FINISHED") is not None
    assert any("locked by another writer" in text for text in warned)
    found = rows(registry, "select step, value from metrics where key = 'validation.loss' order by step")
    assert found == [(step, step / 7) for step in range(200)]
    samples = rows(registry, "select distinct key from metrics where key like 'system/%'")
    assert ("system/cpu_utilization_percentage",) in samples and ("system/process_memory_megabytes",) in samples


def test_what_a_killed_job_did_not_write_comes_back_when_it_goes_on(registry: RegistrySettings, tmp_path: Path) -> None:
    """A real kill: the log has every step that was reported, the database all but the last moment of it."""
    command = [sys.executable, "-c", KILLED, registry.model_dump_json(), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = 0
            for line in process.stdout:
                told = int(line)
                if told >= 300 and (tmp_path / "run").exists():
                    break
            process.send_signal(signal.SIGKILL)
            killed_at = time.time()
        finally:
            process.kill()
    events = [parse_event(line) for line in (tmp_path / "events.jsonl").read_bytes().splitlines()]
    logged = {event.step: event for event in events if isinstance(event, Epoch)}
    assert set(range(1, told + 1)) <= set(logged)
    written = {int(str(step)) for (step,) in rows(registry, "select step from metrics where key = 'validation.m3'")}
    lost = sorted(set(logged) - written)
    assert lost == sorted(logged)[len(written) :], "the database has the beginning of the log"
    # Twice a second; a machine that others use may let the thread wait.
    assert all(logged[step].at > killed_at - 5 for step in lost)
    run_id = (tmp_path / "run").read_text()
    assert rows(registry, "select status from runs") == [("RUNNING",)]
    run = tracking.RunTracking(
        registry,
        project="demo",
        on_run=lambda _: None,
        on_warning=pytest.fail,
        log=tmp_path / "events.jsonl",
    )
    run.begin(tracking.RunInfo(name="again", params={}, tags={}, run_id=run_id))
    assert run.finish("KILLED") == run_id
    for key in ("validation.m0", "best.m9"):
        name = key.partition(".")[2]
        found = rows(registry, "select step, value, timestamp from metrics where key = ? order by step", key)
        expected = [(step, event.metrics[name], int(event.at * 1000)) for step, event in sorted(logged.items())]
        assert found == expected


@pytest.mark.chaos
def test_a_job_that_is_killed_again_and_again_has_every_number_in_its_run(
    jobs: Jobs, registry: RegistrySettings
) -> None:
    request = WorkerRequest(
        request=jobs.request(overrides={"epochs": 60, "data.rows": 320}),
        settings=jobs.settings(log_every_steps=1, checkpoint_every_s=0.05),
        registry=registry,
        parent_pid=os.getpid(),
    )
    path = jobs.root / "request.json"
    path.write_text(request.to_json())
    chance = random.Random("kills")
    for wanted in [*(chance.randint(20, 150) for _ in range(5)), 10**9]:
        command = [sys.executable, "-m", "noa_training.worker", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            try:
                assert process.stdout is not None
                steps = (line for line in process.stdout if '"kind": "step"' in line)
                for _, _line in zip(range(wanted), steps, strict=False):
                    pass
                process.send_signal(signal.SIGKILL if wanted < 10**9 else 0)
                code = process.wait(120)
            finally:
                process.kill()
    assert code == 0
    (log,) = jobs.root.glob("jobs/*/attempt-1/events.jsonl")
    events = [parse_event(line) for line in log.read_bytes().splitlines()]
    for key, kind in (("train.loss", Step), ("validation.accuracy", Epoch)):
        logged = {
            (event.step, int(event.at * 1000), event.loss if isinstance(event, Step) else event.metrics["accuracy"])
            for event in events
            if isinstance(event, kind)
        }
        found = rows(registry, "select step, timestamp, value from metrics where key = ?", key)
        assert set(found) == logged
    assert rows(registry, "select status from runs") == [("FINISHED",)]


@pytest.mark.parametrize("limit_s", mostly("chaos", [1e-4, 1e-3], sample=[1e-3]))
def test_ten_metrics_a_step_cost_the_training_thread_little(
    registry: RegistrySettings, tmp_path: Path, limit_s: float
) -> None:
    """The processor time of the training thread; the benchmark measures by the clock."""
    reporter = Reporter("job", tmp_path, lambda _: None)
    run = tracking.RunTracking(
        registry, project="demo", on_run=lambda _: None, on_warning=pytest.fail, log=tmp_path / "events.jsonl"
    )
    reporter.tracking = run
    run.begin(tracking.RunInfo(name="fast", params={}, tags={}))
    reporter.started(tmp_path, backend="torch", attempt=1, dataset_digest="d", plan=PLAN)
    metrics = {f"m{number}": number / 7 for number in range(10)}
    steps, costs = 0, list[float]()
    for _ in range(10):
        begun = time.thread_time()
        for _ in range(100):
            steps += 1
            reporter.epoch(steps, steps, metrics, is_best=False)
        costs.append((time.thread_time() - begun) / 100)
    assert min(costs) < limit_s
    assert run.finish("FINISHED") is not None
    assert rows(registry, "select count(*) from metrics where key like 'validation.%'") == [(10 * steps,)]
