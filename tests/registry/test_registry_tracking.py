from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from noa.errors import InvalidInputError, NotFoundError
from noa.settings import RegistrySettings
from noa_registry import MetricRow, Tracker, open_tracker
from noa_registry.artifacts import runs_uri

TWO_AT_ONCE = """
import sys
from noa.settings import RegistrySettings
from noa_registry import MetricRow, open_tracker
tracker = open_tracker(RegistrySettings.model_validate_json(sys.argv[1]), "project")
run = tracker.start_run(sys.argv[2], {"seed": 1}, {})
for batch in range(5):
    steps = range(batch * 300, batch * 300 + 300)
    tracker.log_metrics(run, [MetricRow(key="loss", value=1 / (1 + i), step=i, timestamp_ms=1) for i in steps])
tracker.finish(run, "FINISHED")
print(run)
"""


@pytest.fixture
def tracker(settings: RegistrySettings) -> Tracker:
    return open_tracker(settings, "project")


@pytest.fixture
def client(settings: RegistrySettings, tracker: Tracker) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(settings.database_url, settings.database_url)


def rows(key: str, values: list[float]) -> list[MetricRow]:
    return [MetricRow(key=key, value=value, step=step, timestamp_ms=1000 + step) for step, value in enumerate(values)]


def test_a_run_keeps_params_tags_metrics_and_its_end(tracker: Tracker, client: Any) -> None:
    run_id = tracker.start_run("digits torch", {"lr": 0.1, "layers": [8, 8]}, {"backend": "torch"})
    tracker.log_metrics(run_id, rows("loss", [3.0, 2.0, 1.0]))
    tracker.finish(run_id, "FINISHED")
    run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("digits torch", "FINISHED")
    assert run.data.params == {"lr": "0.1", "layers": "[8, 8]"}
    assert run.data.tags["backend"] == "torch"
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "loss")] == [(0, 3.0), (1, 2.0), (2, 1.0)]


def test_more_metrics_and_params_than_one_batch_takes_are_split(tracker: Tracker, client: Any) -> None:
    run_id = tracker.start_run("big", {f"p{i}": i for i in range(250)}, {f"t{i}": "x" for i in range(150)})
    tracker.log_metrics(run_id, rows("loss", [float(i) for i in range(2500)]))
    assert len(client.get_metric_history(run_id, "loss")) == 2500
    run = client.get_run(run_id)
    assert len(run.data.params) == 250
    assert sum(key.startswith("t") for key in run.data.tags) == 150


def test_values_that_are_not_finite_or_too_long_do_not_end_a_run(tracker: Tracker, client: Any) -> None:
    run_id = tracker.start_run("odd", {"long": "x" * 20_000}, {"note": "y" * 20_000})
    tracker.log_metrics(run_id, rows("loss", [math.nan, math.inf, -math.inf]))
    history = client.get_metric_history(run_id, "loss")
    assert len(history) == 3
    assert math.isnan(history[0].value)
    assert history[1].value > 1e300


@pytest.mark.local_files
def test_the_files_of_runs_are_in_the_registrys_folder_wherever_we_are(
    tracker: Tracker, client: Any, settings: RegistrySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (tmp_path / "plot.txt").write_text("hello")
    run_id = tracker.start_run("files", {}, {})
    tracker.log_artifact(run_id, tmp_path / "plot.txt", folder="plots")
    found = settings.artifact_dir / "_runs" / "project" / run_id / "artifacts" / "plots" / "plot.txt"
    assert found.read_text() == "hello"
    assert list(elsewhere.iterdir()) == []
    assert client.get_experiment_by_name("Default").artifact_location.startswith("file:///")


def test_an_experiment_is_made_once(settings: RegistrySettings, tracker: Tracker) -> None:
    assert open_tracker(settings, "project").experiment_id == tracker.experiment_id
    assert open_tracker(settings, "other").experiment_id != tracker.experiment_id


def test_what_does_not_exist_is_a_noa_error(tracker: Tracker, client: Any, settings: RegistrySettings) -> None:
    with pytest.raises(NotFoundError):
        tracker.log_metrics("0" * 32, rows("loss", [1.0]))
    with pytest.raises(NotFoundError):
        tracker.finish("0" * 32, "FAILED")
    run_id = tracker.start_run("r", {}, {})
    with pytest.raises(NotFoundError, match="no file"):
        tracker.log_artifact(run_id, Path("/nowhere.txt"))
    with pytest.raises(InvalidInputError):
        tracker.log_metrics(run_id, [MetricRow(key="bad\nkey*", value=1.0, step=0, timestamp_ms=1)])
    client.delete_experiment(tracker.experiment_id)
    with pytest.raises(InvalidInputError, match="was deleted"):
        open_tracker(settings, "project")


def test_two_processes_track_at_once_on_a_fresh_folder(fresh_settings: RegistrySettings) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_AT_ONCE, fresh_settings.model_dump_json(), name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("torch", "jax")
    ]
    outputs = [(child.communicate(timeout=200), child.returncode) for child in children]
    assert [code for _, code in outputs] == [0, 0], outputs
    from mlflow import MlflowClient

    client: Any = MlflowClient(fresh_settings.database_url, fresh_settings.database_url)
    for (out, _), _ in outputs:
        assert len(client.get_metric_history(out.split()[-1], "loss")) == 1500
    assert client.get_experiment_by_name("project").artifact_location == f"{runs_uri(fresh_settings)}/project"


def test_a_tracker_leaves_the_address_of_other_users_of_mlflow_alone(
    settings: RegistrySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `mlflow.set_registry_uri` writes into the environment would send every process started later to our own."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    open_tracker(settings, "project")
    assert not {"MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"} & set(os.environ)
