from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from noa.errors import ConflictError, NotFoundError
from noa_training.job_folder import JobLock, attempt_folder, current_attempt, job_id_of, read_state, write_state

HOLD = """
import sys
from pathlib import Path
from noa_training.job_folder import JobLock
with JobLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_by_pid_and_the_lock_ends_with_its_holder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "job")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConflictError, match=f"process {holder.pid}") as caught:
            JobLock(tmp_path / "job")
        assert caught.value.facts["pid"] == holder.pid
        holder.kill()
        holder.wait(10)
    with JobLock(tmp_path / "job"):
        pass


def test_a_running_job_whose_process_is_gone_is_interrupted(tmp_path: Path) -> None:
    write_state(tmp_path, "running", now=1.0)
    assert read_state(tmp_path).state == "running"
    values = json.loads((tmp_path / "state.json").read_text())
    assert values["pid"] == os.getpid()
    (tmp_path / "state.json").write_text(json.dumps(values | {"process_started": values["process_started"] - 100}))
    assert read_state(tmp_path).state == "interrupted", "the pid belongs to another process now"
    unused = max(psutil.pids()) + 100_000
    (tmp_path / "state.json").write_text(json.dumps(values | {"pid": unused}))
    assert read_state(tmp_path).message == f"process {unused} is gone"


@pytest.mark.parametrize("state", ["finished", "failed", "cancelled"])
def test_an_ended_job_stays_what_it_is(tmp_path: Path, state: str) -> None:
    write_state(tmp_path, state, now=1.0, message="why")  # type: ignore[arg-type]
    assert (read_state(tmp_path).state, read_state(tmp_path).message) == (state, "why")


@pytest.mark.parametrize("content", [None, "", "{}", "[1]"])
def test_no_state_is_no_job(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "state.json").write_text(content)
    with pytest.raises(NotFoundError):
        read_state(tmp_path)


def test_attempts_count_up_only_after_a_finished_one(tmp_path: Path) -> None:
    assert current_attempt(tmp_path) == 1
    for state, expected in (("running", 1), ("failed", 1), ("cancelled", 1), ("finished", 2)):
        write_state(attempt_folder(tmp_path, 1), state, now=1.0)  # type: ignore[arg-type]
        assert current_attempt(tmp_path) == expected
    write_state(attempt_folder(tmp_path, 2), "failed", now=1.0)
    write_state(attempt_folder(tmp_path, 10), "finished", now=1.0)
    assert current_attempt(tmp_path) == 11


def test_the_job_id_depends_on_everything_that_decides_the_result() -> None:
    base = {"name": "m", "backend": "torch", "source_digest": "a", "description": {"epochs": 1}, "seed": 0}
    identity = job_id_of(**base)  # type: ignore[arg-type]
    assert identity == job_id_of(**base)  # type: ignore[arg-type]
    changes = [{"backend": "jax"}, {"source_digest": "b"}, {"description": {"epochs": 2}}, {"seed": 1}, {"name": "n"}]
    assert len({job_id_of(**(base | change)) for change in changes} | {identity}) == 6  # type: ignore[arg-type]
