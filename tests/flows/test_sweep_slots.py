"""Searches that run at once share the cores of a project, and nobody who dies keeps one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from flows_helpers import wait_until

from noa_flows.sweep.slots import hold_slots

HOLDER = """
import sys, time
from pathlib import Path
from noa_flows.sweep.slots import hold_slots

with hold_slots(Path(sys.argv[1]), count=3, cores=4, should_stop=lambda: False, on_wait=lambda: None) as has:
    print(has, flush=True)
    time.sleep(600)
"""


def take(stack: ExitStack, folder: Path, count: int, *, cores: int = 4, stop: threading.Event | None = None) -> bool:
    should_stop = (stop or threading.Event()).is_set
    return stack.enter_context(
        hold_slots(folder, count=count, cores=cores, should_stop=should_stop, on_wait=lambda: None)
    )


def test_no_more_cores_are_held_than_there_are(tmp_path: Path) -> None:
    most, now, lock = [0], [0], threading.Lock()

    def work(count: int) -> None:
        with ExitStack() as stack:
            assert take(stack, tmp_path, count)
            with lock:
                now[0] += count
                most[0] = max(most[0], now[0])
            threading.Event().wait(0.01)
            with lock:
                now[0] -= count

    threads = [threading.Thread(target=work, args=(1 + number % 3,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert now[0] == 0 and 3 <= most[0] <= 4


def test_who_needs_many_is_not_passed_by_who_needs_few(tmp_path: Path) -> None:
    order: list[str] = []
    with ExitStack() as outer, ExitStack() as first:
        assert take(first, tmp_path, 1)

        def work(name: str, count: int, waits: threading.Event) -> None:
            with hold_slots(tmp_path, count=count, cores=4, should_stop=lambda: False, on_wait=waits.set) as has:
                assert has
                order.append(name)

        for name, count in (("many", 4), ("few", 1)):
            waits = threading.Event()
            thread = threading.Thread(target=work, args=(name, count, waits))
            thread.start()
            outer.callback(thread.join, 60)
            assert waits.wait(20), "three cores are free, and yet it has to wait for its turn"
        assert order == []
    assert order == ["many", "few"]


def test_more_than_there_are_means_all_and_who_is_stopped_gets_none(tmp_path: Path) -> None:
    with ExitStack() as stack:
        assert take(stack, tmp_path, 9)
        stop = threading.Event()
        stop.set()
        assert not take(stack, tmp_path, 1, stop=stop)
    with ExitStack() as stack:
        assert take(stack, tmp_path, 4)


def test_a_killed_process_gives_its_cores_back(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "True\n"
        waits = threading.Event()
        with ExitStack() as stack:
            got: list[bool] = []

            def work() -> None:
                with hold_slots(tmp_path, count=2, cores=4, should_stop=lambda: False, on_wait=waits.set) as has:
                    got.append(has)

            thread = threading.Thread(target=work)
            thread.start()
            stack.callback(thread.join, 60)
            assert waits.wait(20) and not got
            os.kill(process.pid, signal.SIGKILL)
            wait_until(lambda: got)
        assert got == [True]
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
