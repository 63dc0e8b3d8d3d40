from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from flows_helpers import ESCAPE_ARTIST, read_pid, wait_until

from noa_flows._process_tree import MARKER_VARIABLE, ProcessId, is_alive
from noa_flows.child import run_child

Script = Callable[[str, str], Path]
_PARENT = """
    import os, sys
    from pathlib import Path
    from noa_flows.child import run_child
    folder = Path(sys.argv[1])
    run_child([sys.executable, str(folder / "escape.py"), str(folder)],
              on_line=print, environment=dict(os.environ), folder=folder, grace_s=0.3)
"""


def test_lines_arrive_in_order_and_the_exit_code_is_the_commands(tmp_path: Path) -> None:
    lines: list[str] = []
    result = run_child(
        [sys.executable, "-c", "import sys; [print(i) for i in range(500)]; print('oh', file=sys.stderr); sys.exit(7)"],
        on_line=lines.append,
        environment=dict(os.environ),
        folder=tmp_path,
    )
    assert lines == [str(i) for i in range(500)]
    assert (result.exit_code, result.was_cancelled, result.error_tail) == (7, False, "oh")


def test_a_command_that_dies_of_a_signal_shows_it(tmp_path: Path) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    result = run_child([sys.executable, "-c", code], on_line=print, environment=dict(os.environ), folder=tmp_path)
    assert result.exit_code == -signal.SIGKILL


def test_a_command_that_closes_its_output_is_still_waited_for(tmp_path: Path) -> None:
    code = "import os, time; os.close(1); os.close(2); time.sleep(0.5); open('done', 'w').close()"
    result = run_child([sys.executable, "-c", code], on_line=print, environment=dict(os.environ), folder=tmp_path)
    assert (result.exit_code, result.was_cancelled) == (0, False)
    assert (tmp_path / "done").exists()


def test_cancel_ends_a_tree_that_ignores_term(tmp_path: Path, script: Script, doomed: list[ProcessId]) -> None:
    escape = script("escape.py", ESCAPE_ARTIST)
    cancel = threading.Event()
    found: list[ProcessId] = []

    def watch() -> None:
        found.extend([read_pid(tmp_path / "inner.pid"), read_pid(tmp_path / "escaped.pid")])
        cancel.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = run_child(
        [sys.executable, str(escape), str(tmp_path)],
        on_line=print,
        environment=dict(os.environ),
        folder=tmp_path,
        cancel=cancel,
        grace_s=0.3,
    )
    watcher.join()
    doomed += found
    assert result.was_cancelled
    assert [is_alive(process) for process in found] == [False, False]


def test_an_exception_while_lines_are_read_ends_the_tree(
    tmp_path: Path, script: Script, doomed: list[ProcessId]
) -> None:
    escape = script("escape.py", ESCAPE_ARTIST)
    found: list[ProcessId] = []

    def refuse(line: str) -> None:
        found.extend([read_pid(tmp_path / "inner.pid"), read_pid(tmp_path / "escaped.pid")])
        raise KeyboardInterrupt(line)

    with pytest.raises(KeyboardInterrupt):
        run_child(
            [sys.executable, str(escape), str(tmp_path)],
            on_line=refuse,
            environment=dict(os.environ),
            folder=tmp_path,
            grace_s=0.3,
        )
    doomed += found
    assert [is_alive(process) for process in found] == [False, False]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_the_tree_dies_with_the_process_that_runs_it(
    number: signal.Signals, tmp_path: Path, script: Script, doomed: list[ProcessId]
) -> None:
    script("escape.py", ESCAPE_ARTIST)
    with subprocess.Popen(
        [sys.executable, str(script("parent.py", _PARENT)), str(tmp_path)], stderr=subprocess.DEVNULL
    ) as parent:
        found = [read_pid(tmp_path / "inner.pid"), read_pid(tmp_path / "escaped.pid")]
        doomed += found
        parent.send_signal(number)
        parent.wait(timeout=20)
    wait_until(lambda: not any(is_alive(process) for process in found))


def test_a_job_of_a_service_carries_the_services_marker(tmp_path: Path) -> None:
    lines: list[str] = []
    code = f"import os; print(os.environ[{MARKER_VARIABLE!r}])"
    environment = {**os.environ, MARKER_VARIABLE: "outer"}
    run_child([sys.executable, "-c", code], on_line=lines.append, environment=environment, folder=tmp_path)
    assert lines[0].startswith("outer/")
