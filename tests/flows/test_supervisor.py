from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from flows_helpers import ESCAPE_ARTIST, read_pid, wait_until

from noa.errors import ServiceError, StorageError
from noa_flows._process_tree import ProcessId, identify, is_alive, send_signal, signal
from noa_flows.supervisor import Command, Supervisor

Script = Callable[[str, str], Path]
Build = Callable[..., Command]


def test_a_stopped_service_leaves_no_process_even_if_it_escapes_and_ignores_term(
    supervisor: Supervisor, command: Build, script: Script, tmp_path: Path, doomed: list[ProcessId]
) -> None:
    escape = script("escape.py", ESCAPE_ARTIST)
    record = supervisor.start(command(sys.executable, str(escape), str(tmp_path)))
    inner, escaped = read_pid(tmp_path / "inner.pid"), read_pid(tmp_path / "escaped.pid")
    doomed += [inner, escaped]

    assert supervisor.stop("service", timeout_s=0.5)

    assert not is_alive(inner)
    assert not is_alive(escaped)
    assert supervisor.members(record) == []
    assert supervisor.names() == []


def test_killing_the_warden_ends_the_command_and_stop_finds_the_orphans(
    supervisor: Supervisor, command: Build, script: Script, tmp_path: Path, doomed: list[ProcessId]
) -> None:
    escape = script("escape.py", ESCAPE_ARTIST)
    record = supervisor.start(command(sys.executable, str(escape), str(tmp_path)))
    inner, escaped = read_pid(tmp_path / "inner.pid"), read_pid(tmp_path / "escaped.pid")
    doomed += [inner, escaped]
    assert record.process is not None

    send_signal(record.process, signal.SIGKILL)
    wait_until(lambda: not is_alive(inner))
    assert is_alive(escaped)
    assert not supervisor.is_running(record)

    supervisor.stop("service", timeout_s=0.2)
    assert not is_alive(escaped)


def test_a_service_whose_starter_died_before_it_noted_the_pid_is_found_by_its_marker(
    supervisor: Supervisor, command: Build, script: Script, tmp_path: Path, doomed: list[ProcessId]
) -> None:
    escape = script("escape.py", ESCAPE_ARTIST)
    supervisor.start(command(sys.executable, str(escape), str(tmp_path)))
    escaped = read_pid(tmp_path / "escaped.pid")
    doomed.append(escaped)
    path = tmp_path / "state" / "services" / "service.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "process": None}))

    assert Supervisor(tmp_path / "state").stop("service", timeout_s=0.5)
    assert not is_alive(escaped)


def test_stop_never_touches_a_process_that_reused_the_pid(
    supervisor: Supervisor, command: Build, tmp_path: Path
) -> None:
    record = supervisor.start(command(sys.executable, "-c", "pass"))
    wait_until(lambda: not supervisor.is_running(record))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as stranger:
        now = identify(stranger.pid)
        assert now is not None
        path = tmp_path / "state" / "services" / "service.json"
        stale = {"pid": now.pid, "start_ticks": now.start_ticks - 1}
        path.write_text(json.dumps({**json.loads(path.read_text()), "process": stale}))

        assert supervisor.stop("service", timeout_s=0.1)
        assert stranger.poll() is None
        stranger.communicate(b"\n")
    assert stranger.returncode == 0


def test_a_record_of_an_earlier_boot_names_no_process(supervisor: Supervisor, command: Build, tmp_path: Path) -> None:
    record = supervisor.start(command(sys.executable, "-c", "import time; time.sleep(60)"))
    before_boot = replace(record, boot="00000000-0000-0000-0000-000000000000")
    assert supervisor.is_running(record)
    assert not supervisor.is_running(before_boot)
    assert supervisor.members(before_boot) == []


def test_a_command_that_ends_leaves_its_reason_in_the_log(supervisor: Supervisor, command: Build) -> None:
    record = supervisor.start(command(sys.executable, "-c", "import sys; print('no luck'); sys.exit(3)"))
    wait_until(lambda: not supervisor.is_running(record))
    assert "no luck" in supervisor.log_tail(record)
    assert "exit code 3" in supervisor.log_tail(record)
    assert supervisor.exit_code(record) == 3


def test_a_command_that_does_not_exist_is_named_in_the_log(supervisor: Supervisor, command: Build) -> None:
    record = supervisor.start(command("/nowhere/to/be/found"))
    wait_until(lambda: not supervisor.is_running(record))
    assert "cannot start `/nowhere/to/be/found`" in supervisor.log_tail(record)


def test_helpers_left_behind_by_a_command_that_ended_are_ended(
    supervisor: Supervisor, command: Build, script: Script, tmp_path: Path, doomed: list[ProcessId]
) -> None:
    escape = script("escape.py", ESCAPE_ARTIST)
    record = supervisor.start(command(sys.executable, str(escape), str(tmp_path), "leave", grace_s=0.2))
    escaped = read_pid(tmp_path / "escaped.pid")
    doomed.append(escaped)
    assert is_alive(escaped)
    assert escaped in supervisor.members(record)
    (tmp_path / "go").touch()
    wait_until(lambda: not is_alive(escaped))
    wait_until(lambda: not supervisor.members(record))


def test_stop_of_a_service_that_never_ran_says_so(supervisor: Supervisor) -> None:
    assert supervisor.stop("service", timeout_s=0.1) is False


def test_an_unreadable_record_is_named(supervisor: Supervisor, tmp_path: Path) -> None:
    path = tmp_path / "state" / "services" / "service.json"
    path.parent.mkdir(parents=True)
    path.write_text("{half a rec")
    with pytest.raises(ServiceError, match="not readable") as caught:
        supervisor.find("service")
    assert caught.value.where == str(path)
    path.unlink()


def test_nothing_starts_when_the_state_cannot_be_written(command: Build, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "services").symlink_to("/proc/nothing")
    with pytest.raises((StorageError, OSError)):
        Supervisor(tmp_path / "state").start(command(sys.executable, "-c", f"open({str(tmp_path / 'ran')!r}, 'w')"))
    time.sleep(0)
    assert not (tmp_path / "ran").exists()


def test_a_stopped_process_is_ended_too(supervisor: Supervisor, command: Build) -> None:
    record = supervisor.start(command(sys.executable, "-c", "import time; time.sleep(60)", grace_s=5.0))
    wait_until(lambda: len(supervisor.members(record)) == 2)
    for member in supervisor.members(record):
        os.kill(member.pid, signal.SIGSTOP)
    assert supervisor.stop("service", timeout_s=5.0)
    assert supervisor.members(record) == []
