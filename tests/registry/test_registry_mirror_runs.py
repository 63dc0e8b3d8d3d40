"""What MLflow's clients do to the experiment and the runs of noa's jobs, and inside its models: found and undone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pytest

from noa.errors import InvalidInputError
from noa.settings import RegistrySettings
from noa_registry import MetricRow, Registry, Tracker, open_tracker

pytestmark = pytest.mark.local_files
PROJECT = "flowers"


@dataclass(frozen=True)
class Trained:
    """Two runs of jobs, of which the first has a version, and stock MLflow's client."""

    run_id: str
    other_run_id: str
    tracker: Tracker
    client: Any

    def stages(self) -> tuple[str, str, str]:
        return (
            self.client.get_experiment(self.tracker.experiment_id).lifecycle_stage,
            self.client.get_run(self.run_id).info.lifecycle_stage,
            self.client.get_run(self.other_run_id).info.lifecycle_stage,
        )


@pytest.fixture
def trained(settings: RegistrySettings, registry: Registry, formats: Any) -> Trained:
    tracker = open_tracker(settings, PROJECT)
    from mlflow import MlflowClient

    def run(name: str) -> str:
        run_id = tracker.start_run(name, {}, {"noa.job_id": name})
        moment = time.time_ns() // 1_000_000
        values = [
            MetricRow(key="validation.accuracy", value=v, step=i, timestamp_ms=moment) for i, v in enumerate((0.5, 0.9))
        ]
        tracker.log_metrics(run_id, values)
        tracker.finish(run_id, "FINISHED")
        return run_id

    run_id, other = run("job-1"), run("job-2")
    evidence = [
        formats.equivalence(),
        formats.metrics(split="validation", accuracy=0.91),
        formats.metrics(split="test", accuracy=0.88),
    ]
    registry.register(formats.draft(run_id=run_id, evidence=evidence), actor="ada")
    assert registry.mirror_discrepancies() == []
    time.sleep(0.002)  # MLflow's times are whole milliseconds: what follows is later
    return Trained(run_id, other, tracker, MlflowClient(settings.database_url, settings.database_url))


def told(registry: Registry) -> list[tuple[str, str]]:
    return [(one.field, one.subject) for one in registry.mirror_discrepancies()]


def test_a_deleted_experiment_comes_back_with_the_runs_that_went_along(
    registry: Registry, settings: RegistrySettings, trained: Trained
) -> None:
    trained.client.delete_run(trained.other_run_id)
    assert registry.mirror_discrepancies() == []  # no version names it: its owner's to delete
    trained.client.delete_experiment(trained.tracker.experiment_id)
    with pytest.raises(InvalidInputError, match=r"noa models verify --repair"):
        open_tracker(settings, PROJECT)
    run = ("run", f"run {trained.run_id} of version 1")
    assert told(registry) == [("experiment", f"experiment {PROJECT}"), run]
    assert str(registry.mirror_discrepancies()[0]) == (
        f"experiment {PROJECT}: expected active; received deleted, and 2 runs with it"
    )
    assert len(registry.repair_mirror()) == 2
    assert registry.mirror_discrepancies() == []
    assert trained.stages() == ("active", "active", "active")
    assert open_tracker(settings, PROJECT).experiment_id == trained.tracker.experiment_id


def test_an_experiment_that_is_not_noas_stays_deleted(registry: Registry, trained: Trained) -> None:
    theirs = trained.client.create_experiment("theirs")
    trained.client.delete_experiment(theirs)
    assert registry.mirror_discrepancies() == []
    assert registry.repair_mirror() == []


def test_a_versions_run_that_was_deleted_or_set_to_failed_is_put_right(registry: Registry, trained: Trained) -> None:
    trained.client.set_terminated(trained.run_id, "FAILED")
    found = registry.mirror_discrepancies()
    assert [(one.field, one.expected, one.received) for one in found] == [("run", "active, FINISHED", "active, FAILED")]
    trained.client.delete_run(trained.run_id)
    assert told(registry) == [("run", f"run {trained.run_id} of version 1")]
    registry.repair_mirror()
    assert registry.mirror_discrepancies() == []
    info = trained.client.get_run(trained.run_id).info
    assert (info.lifecycle_stage, info.status) == ("active", "FINISHED")


def test_a_run_that_is_no_jobs_may_have_failed(registry: Registry, trained: Trained, formats: Any) -> None:
    theirs = trained.client.create_run(trained.tracker.experiment_id).info.run_id
    registry.register(formats.draft(run_id=theirs), actor="ada")
    trained.client.log_metric(theirs, "accuracy", 1.0)
    trained.client.set_terminated(theirs, "FAILED")
    assert registry.mirror_discrepancies() == []


def test_a_metric_that_was_logged_over_a_versions_run_is_found_and_taken_out(
    registry: Registry, trained: Trained
) -> None:
    trained.client.log_metric(trained.run_id, "accuracy", 1.0)
    trained.client.log_metric(trained.run_id, "validation.accuracy", 1.0, step=7)
    trained.client.log_metric(trained.run_id, "test.accuracy", 0.88)  # as its evidence says
    trained.client.log_metric(trained.run_id, "production.clicks", 12)  # what noa knows nothing of
    trained.client.log_metric(trained.other_run_id, "accuracy", 1.0)  # no version's
    found = registry.mirror_discrepancies()
    assert [(one.field, one.expected, one.received) for one in found] == [
        ("metric", "accuracy 0.88, 0.91, as in its evidence", "1, logged after the registration"),
        ("metric", "validation.accuracy 0.91, as in its evidence", "1, logged after the registration"),
    ]
    registry.repair_mirror()
    assert registry.mirror_discrepancies() == []
    metrics = trained.client.get_run(trained.run_id).data.metrics
    assert metrics == {"validation.accuracy": 0.9, "test.accuracy": 0.88, "production.clicks": 12.0}
    history = trained.client.get_metric_history(trained.run_id, "validation.accuracy")
    assert [(one.step, one.value) for one in history] == [(0, 0.5), (1, 0.9)]


def test_a_version_that_somebody_else_made_inside_a_model_is_named_and_left_to_them(
    registry: Registry, trained: Trained
) -> None:
    trained.client.create_registered_model("theirs")
    trained.client.create_model_version("theirs", "file:///tmp/x")
    assert registry.mirror_discrepancies() == []
    trained.client.create_model_version("digits", "file:///tmp/x")
    found = registry.mirror_discrepancies()
    assert [(one.field, one.subject, one.received) for one in found] == [("foreign", "version 2", "file:///tmp/x")]
    assert registry.repair_mirror() == []
    assert trained.client.get_model_version("digits", "2").source == "file:///tmp/x"
    trained.client.delete_model_version("digits", "2")
    assert registry.mirror_discrepancies() == []
