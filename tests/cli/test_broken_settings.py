"""What works while the settings are not valid: looking at what runs, and stopping it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from noa.settings import load_place
from noa_cli.__main__ import run
from noa_flows.supervisor import Command, ServiceRecord, Supervisor


@pytest.fixture(params=["", "[project]\nstate_dir = 'elsewhere'\n"], ids=["in .noa", "elsewhere"])
def started(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, Supervisor, ServiceRecord]]:
    """A project in which a service runs, whose settings became invalid afterwards; its state's folder."""
    text = str(request.param)
    (tmp_path / "noa.toml").write_text(f"{text}[serving]\nport = 'nowhere'\n[unheard]\nof = 1\n")
    state = tmp_path / ("elsewhere" if text else ".noa")
    supervisor = Supervisor(state)
    record = supervisor.start(
        Command(
            name="mlflow",
            arguments=("sleep", "60"),
            environment=dict(os.environ),
            folder=tmp_path,
            log_file=state / "logs" / "mlflow.log",
            address="http://127.0.0.1:9",
        )
    )
    monkeypatch.chdir(tmp_path)
    yield state, supervisor, record
    supervisor.stop("mlflow", timeout_s=0.1)


def test_down_stops_what_runs_while_the_settings_are_invalid(
    started: tuple[Path, Supervisor, ServiceRecord], capfd: pytest.CaptureFixture[str]
) -> None:
    state, supervisor, record = started
    assert run(["up"]) == 1
    capfd.readouterr()
    assert run(["down", "--dry-run"]) == 0
    assert capfd.readouterr().out.startswith("would stop mlflow (pid ")
    assert run(["down"]) == 0
    told = capfd.readouterr()
    assert told.out == "stopped and gone: mlflow\n"
    assert "the settings are invalid: unknown setting `unheard`" in told.err
    assert str(state / "services") in told.err
    assert supervisor.members(record) == []


def test_status_shows_what_runs_and_names_the_error_of_the_settings(
    started: tuple[Path, Supervisor, ServiceRecord], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", "--json"]) == 0
    told = capfd.readouterr()
    (row,) = (row for row in json.loads(told.out) if row["pid"] is not None)
    assert (row["name"], row["has_old_settings"], row["is_wanted"]) == ("mlflow", False, True)
    assert "the settings are invalid: unknown setting `unheard`" in told.err
    assert "no such service" not in told.err


def test_what_is_wrong_on_the_command_line_stops_nothing(
    started: tuple[Path, Supervisor, ServiceRecord], capfd: pytest.CaptureFixture[str]
) -> None:
    state, supervisor, record = started
    (state.parent / "noa.toml").write_text(f"[project]\nstate_dir = '{state.name}'\n")
    assert run(["down", "-o", "project.state_dri=there"]) == 1
    assert "Did you mean `project.state_dir`?" in capfd.readouterr().err
    assert supervisor.is_running(record)


def test_a_file_that_is_no_toml_leaves_the_usual_place_and_what_is_said_otherwise(tmp_path: Path) -> None:
    (tmp_path / "noa.toml").write_text("[project\n")
    (tmp_path / "more.toml").write_text("[flows]\nstop_timeout_s = 3\n[unheard]\nof = 1\n")
    place = load_place(tmp_path, config_files=[tmp_path / "more.toml", tmp_path / "none"], overrides=["x", "flows.y=1"])
    assert (place.state_dir, place.flows.stop_timeout_s) == (tmp_path / ".noa", 3)
    overrides = ["project.state_dir=there", "flows.stop_timeout_s=-1"]
    place = load_place(tmp_path, overrides=overrides)
    assert (place.state_dir, place.flows.stop_timeout_s > 0) == (tmp_path / "there", True)
