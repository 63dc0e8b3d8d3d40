"""`noa demo`, as a new user runs it: real training, real servers, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from noa.errors import ServiceError
from noa_cli.__main__ import run
from noa_cli._demo_run import Demo, DemoReport
from noa_cli.commands.demo import demo_settings
from noa_cli.commands.project import write_project


def processes_of(folder: Path) -> list[str]:
    """Return every process that works in a folder, names it, or was given it in its environment."""
    found: list[str] = []
    for process in psutil.process_iter():
        try:
            texts = [process.cwd(), *process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(folder) in text for text in texts):
            found.append(f"{process.pid} {' '.join(process.cmdline())[:100]}")
    return found


def command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "noa_cli", "demo", "--json", "--folder", str(folder)]


def test_the_demo_takes_time_limits_from_outside_and_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_project(tmp_path, template="digits", name="noa-demo")
    assert demo_settings(tmp_path).flows.start_timeout_s == 300
    monkeypatch.setenv("NOA__FLOWS__START_TIMEOUT_S", "7")
    monkeypatch.setenv("NOA__REGISTRY__DATABASE_URL", "sqlite:////of/the/user.db")
    monkeypatch.setenv("NOA__PROJECT__STATE_DIR", "/of/the/user")
    settings = demo_settings(tmp_path)
    assert settings.flows.start_timeout_s == 7
    assert settings.registry.database_url == f"sqlite:///{tmp_path / '.noa' / 'noa.db'}"
    assert settings.registry.artifact_dir.is_relative_to(tmp_path)


@pytest.mark.parametrize("fails", ["with an error", "with a problem", "not at all"])
def test_the_temporary_folder_of_a_demo_stays_if_it_failed(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def play(self: Demo) -> DemoReport:
        del self
        if fails == "with an error":
            raise ServiceError("service `prefect` did not answer")
        return DemoReport(values={"seconds": 1.0}, problems=("a request failed",) if fails == "with a problem" else ())

    monkeypatch.setattr(Demo, "run", play)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run(["demo"]) == (0 if fails == "not at all" else 1)
    kept = list(tmp_path.iterdir())
    output = capfd.readouterr()
    if fails == "not at all":
        assert kept == []
    else:
        assert (kept[0] / "noa.toml").is_file()
        assert f"{kept[0] / '.noa' / 'logs'}" in output.out + output.err


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.prefect
@pytest.mark.bentoml
def test_the_demo_holds_its_promises_and_leaves_no_process(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    result = subprocess.run(command(folder), capture_output=True, text=True, check=False, timeout=800)
    assert result.returncode == 0, result.stderr[-3000:] + result.stdout[-2000:]
    report = json.loads(result.stdout)
    assert report["problems"] == []
    assert {row["backend"] for row in report["first"]["candidates"]} == {"torch", "jax"}
    for key in ("served", "retrained"):
        assert report[key]["accuracy"] >= 0.98
        assert report[key]["agreement"] >= 0.99
    assert report["swap"]["failed"] == 0
    assert len(report["swap"]["versions"]) == 2
    assert report["rollback"]["to"] == int(report["served"]["reference"].split("/")[1])
    assert processes_of(folder) == []


@pytest.mark.chaos  # an end in the middle of a start of services, as below, is the suite's
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.prefect
@pytest.mark.bentoml
def test_ctrl_c_in_the_middle_stops_everything(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    process = subprocess.Popen(command(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(folder.glob(".noa/jobs/*/*/events.jsonl")):  # training and the services are under way
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert processes_of(folder) == []


def test_sigterm_ends_a_start_of_services_and_what_it_has_started(tmp_path: Path) -> None:
    write_project(tmp_path, template="digits", name="ended")
    up = [sys.executable, "-m", "noa_cli", "-C", str(tmp_path), "up", "--only", "mlflow"]
    process = subprocess.Popen(up, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while len(processes_of(tmp_path)) < 2:  # itself, and the service
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "interrupted: what this call had started is stopped again" in output
    assert processes_of(tmp_path) == []
