"""The cores of a project as slots: searches that run at once do not take more of them than there are.

A slot is a file that is locked while a trial uses its core; the kernel gives it back when the process dies. Only who
holds the queue's lock gathers slots, so that one that needs many is not passed by those that need few, and two that
need many never wait for each other.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from noa.atomic_write import translate_disk_errors

_POLL_S = 0.1


def available_cores() -> int:
    """Return how many cores this process may use."""
    return max(1, len(os.sched_getaffinity(0)))


@contextmanager
def hold_slots(
    folder: Path,
    *,
    count: int,
    cores: int,
    should_stop: Callable[[], bool],
    on_wait: Callable[[], None],
) -> Generator[bool]:
    """Hold `count` of the `cores` slots in `folder`, all of them if that is more; gives False if asked to stop first.

    `on_wait` is called once if others hold too many.

    Raises:
        StorageError: the folder cannot be written.
    """
    handles: list[int] = []
    try:
        yield _gather(handles, folder, min(count, cores), cores, should_stop, on_wait)
    finally:
        for handle in handles:
            os.close(handle)


def _gather(
    handles: list[int],
    folder: Path,
    wanted: int,
    cores: int,
    should_stop: Callable[[], bool],
    on_wait: Callable[[], None],
) -> bool:
    has_told = False

    def wait() -> bool:
        nonlocal has_told
        if not has_told:
            on_wait()
            has_told = True
        time.sleep(_POLL_S)
        return not should_stop()

    with translate_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        while (queue := _try_lock(folder / "queue.lock")) is None:
            if not wait():
                return False
        try:
            free = [folder / f"core-{index}.lock" for index in range(cores)]
            while True:
                for path in list(free):
                    handle = _try_lock(path) if len(handles) < wanted else None
                    if handle is not None:
                        handles.append(handle)
                        free.remove(path)
                if len(handles) == wanted:
                    return True
                if not wait():
                    return False
        finally:
            os.close(queue)


def _try_lock(path: Path) -> int | None:
    """Return the handle that holds a lock, None if another has it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle
