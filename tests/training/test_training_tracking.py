"""Runs in a real MLflow store, written by a real job."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from noa.errors import TrainingError
from noa.settings import RegistrySettings, Settings
from noa_training import Epoch, JobCancelledError, Step, Warned, tracking

if TYPE_CHECKING:
    from tests.training.conftest import Jobs


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
