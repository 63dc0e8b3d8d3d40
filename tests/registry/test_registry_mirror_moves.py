"""A project by another name of its folder is the same project; one that was moved is told apart from a changed one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noa.settings import RegistrySettings
from noa_registry import Registry, open_tracker
from noa_registry.mlflow_schema import import_mlflow
from sql_access import execute_on

pytestmark = pytest.mark.local_files
STOCK = """
import json, sys
from pathlib import Path
import mlflow, numpy
mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_registry_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/digits/1")
(run,) = mlflow.search_runs(experiment_names=["mine"], output_format="list")
note = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="note.txt")
logits = model.predict(numpy.array(json.loads(sys.argv[2]), numpy.float32))["logits"]
print(json.dumps({"logits": logits.tolist(), "note": Path(note).read_text()}))
"""
INPUT = np.arange(8, dtype=np.float32).reshape(2, 4)


def settings_at(state: Path) -> RegistrySettings:
    return RegistrySettings(database_url=f"sqlite:///{state / 'noa.db'}", artifact_dir=state / "artifacts")


def client_at(state: Path) -> Any:
    import_mlflow()
    from mlflow import MlflowClient

    url = settings_at(state).database_url
    return MlflowClient(url, url)


def tamper(state: Path, statement: str) -> None:
    settings = settings_at(state)
    triggers = execute_on(settings, "SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'noa%'")
    execute_on(settings, *(f"DROP TRIGGER {name}" for (name,) in triggers), statement)


def facts(registry: Registry) -> list[tuple[str, str]]:
    return [(found.subject, found.field) for found in registry.mirror_discrepancies() if found.field != "guard"]


@pytest.fixture
def state(tmp_path: Path, formats: Any, add_empty_database: Callable[[Path], None]) -> Path:
    """A project's state with two versions, and one run with an artifact."""
    folder = tmp_path / "project" / "state"
    add_empty_database(folder)
    with Registry.open(settings_at(folder)) as registry:
        registry.register(formats.draft(), actor="ada")
        registry.register(formats.draft(), actor="ada")
    tracker = open_tracker(settings_at(folder), "mine")
    run_id = tracker.start_run("r", {}, {})
    note = tmp_path / "note.txt"
    note.write_text("kept")
    tracker.log_artifact(run_id, note)
    tracker.finish(run_id, "FINISHED")
    return folder


@pytest.fixture(params=["dots", "link"])
def other_name(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Another name of the state's folder."""
    if request.param == "dots":
        (tmp_path / "beside").mkdir()
        yield tmp_path / "beside" / ".." / "project" / "state"
        return
    (tmp_path / "link").symlink_to(tmp_path / "project")
    yield tmp_path / "link" / "state"


def test_another_name_of_the_folder_is_no_difference(state: Path, other_name: Path, formats: Any) -> None:
    with Registry.open(settings_at(other_name)) as registry:
        assert facts(registry) == []
        assert registry.repair_mirror() == []
        made = registry.register(formats.draft(), actor="ada")
        assert registry.location(made) == f"file://{state}/artifacts/digits/{made.uid}"
        assert registry.load("digits/1").run({"x": INPUT})
    with Registry.open(settings_at(state)) as registry:
        assert facts(registry) == []
    recorded = [found.source for found in client_at(state).search_model_versions("name='digits'")]
    assert all(source.startswith(f"file://{state}/artifacts/") for source in recorded)


def test_rows_that_an_older_noa_wrote_with_another_name_are_no_difference(state: Path, other_name: Path) -> None:
    renamed = f"replace(source, 'file://{state}/', 'file://{other_name}/')"
    tamper(state, f"UPDATE model_versions SET source = {renamed}, storage_location = {renamed}")
    with Registry.open(settings_at(state)) as registry:
        assert facts(registry) == []


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_moved_project_is_told_apart_serves_and_is_put_right_for_mlflow(state: Path, how: str) -> None:
    target = state.parent.parent / "elsewhere now"
    if how == "moved":
        state.parent.rename(target)
    else:
        shutil.copytree(state.parent, target)
    moved = target / "state"
    with Registry.open(settings_at(moved)) as registry:
        assert facts(registry) == [("files of 2 versions", "moved"), ("files of 1 experiment", "moved")]
        first = registry.mirror_discrepancies()[0]
        assert first.received == f"file://{state}/artifacts/"
        assert first.expected == (moved / "artifacts").as_uri() + "/"
        answer = registry.load("digits/1").run({"x": INPUT})["logits"]
        registry.verify("digits", 1)
        assert len(registry.repair_mirror()) == 2
        assert facts(registry) == []
    if how == "copied":
        shutil.rmtree(state.parent)
    _assert_stock_mlflow_works(moved, answer)


def _assert_stock_mlflow_works(state: Path, answer: np.ndarray) -> None:
    url = settings_at(state).database_url
    done = subprocess.run(
        [sys.executable, "-c", STOCK, url, json.dumps(INPUT.tolist())], capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(told["logits"], answer, rtol=1e-5)
    assert told["note"] == "kept"
    tracker = open_tracker(settings_at(state), "mine")
    tracker.log_artifact(tracker.start_run("after", {}, {}), state.parent.parent / "note.txt")
    assert not (state.parent.parent / "project").exists()


def test_what_was_registered_after_the_move_does_not_hide_it(state: Path, formats: Any) -> None:
    state.parent.rename(state.parent.parent / "new")
    with Registry.open(settings_at(state.parent.parent / "new" / "state")) as registry:
        registry.register(formats.draft(), actor="ada")
        registry.retention.delete("digits", 1, reason="r", actor="ada")
        assert ("files of 1 version", "moved") in facts(registry)
        registry.repair_mirror()
        assert facts(registry) == []
        registry.retention.restore("digits", 1, actor="ada")
        assert facts(registry) == []


def test_one_version_that_points_elsewhere_was_changed_and_not_moved(state: Path) -> None:
    evil = "replace(source, 'project/state', 'evil')"
    statement = f"UPDATE model_versions SET source = {evil}, storage_location = {evil} WHERE version = 2"
    tamper(state, statement)
    with Registry.open(settings_at(state)) as registry:
        assert facts(registry) == [("version 2", "source")]
        registry.repair_mirror()
        assert facts(registry) == []


def test_rows_that_name_a_place_while_the_files_are_not_here_were_not_moved(state: Path) -> None:
    target = state.parent.parent / "new"
    state.parent.rename(target)
    next((target / "state" / "artifacts" / "digits").iterdir()).rename(target / "hidden")
    with Registry.open(settings_at(target / "state")) as registry:
        assert facts(registry)[:2] == [("version 1", "source"), ("version 2", "source")]
