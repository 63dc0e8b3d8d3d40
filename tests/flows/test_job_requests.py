from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from flows_helpers import wait_until

from noa.settings import Settings
from noa_flows.job_requests import clear_dead_requests, dead_requests, request_file

HOLD = """
import sys, time
from pathlib import Path
from noa_flows.job_requests import request_file
with request_file(Path(sys.argv[1]), "{}") as file:
    print(file, flush=True)
    time.sleep(600)
"""


def start_holder(jobs: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(jobs)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert Path(process.stdout.readline().strip()).is_file()
    return process


def test_the_request_of_a_killed_process_goes_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    killed, living = start_holder(tmp_path), start_holder(tmp_path)
    try:
        assert dead_requests(tmp_path) == []
        killed.kill()
        killed.wait()
        assert len(dead_requests(tmp_path)) == 1
        with request_file(tmp_path, "text") as file:
            assert file.read_text() == "text"
            assert len(list(tmp_path.iterdir())) == 2  # the living one's and this one
            assert clear_dead_requests(tmp_path) == 0
        assert not file.parent.exists()
    finally:
        for process in (killed, living):
            process.kill()
            process.communicate()
    assert clear_dead_requests(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_request_that_is_just_being_made_is_left_alone_until_it_is_old(tmp_path: Path) -> None:
    empty, begun = tmp_path / ".request-a", tmp_path / ".request-b"
    for folder in (empty, begun):
        folder.mkdir()
    (begun / "request.json").touch()
    assert clear_dead_requests(tmp_path) == 0
    for folder in (empty, begun):
        os.utime(folder, (0, 0))
    assert clear_dead_requests(tmp_path) == 2


@pytest.mark.torch
def test_a_training_that_is_ended_by_sigterm_leaves_no_request_and_says_how_to_go_on(tiny_project: Settings) -> None:
    root = tiny_project.root
    with subprocess.Popen(
        [sys.executable, "-m", "noa_cli", "train", "tiny", "--set", "epochs=1000000"],
        cwd=root,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            jobs = root / ".noa" / "jobs"
            wait_until(lambda: list(jobs.glob("*/attempt-1/checkpoints/*")), deadline_s=120)
            assert list(jobs.glob(".request-*"))
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "the same command continues from the last checkpoint" in errors
    assert list(jobs.glob(".request-*")) == []
