"""A folder to work in for a while: what a killed process left there is removed by the next one that looks."""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from noa.atomic_write import translate_disk_errors
from noa_registry.artifacts import make_folder

WORKSPACES: Final = "_imports"
"""The folder of all of them, beside the models."""
_LOCK: Final = ".lock"


@contextmanager
def workspace(folder: Path) -> Generator[Path, None, None]:
    """Give an empty folder below `folder` that is removed when the block ends, or by the next one if the process dies.

    Raises:
        StorageError: the disk refused.
    """
    make_folder(folder)
    remove_dead(folder)
    with translate_disk_errors(folder):
        handle, lock = _claim(folder)
    mine = lock.with_suffix("")
    try:
        with translate_disk_errors(mine):
            mine.mkdir(mode=0o700)
        yield mine
    finally:
        with suppress(OSError):
            _remove(mine, lock)
        os.close(handle)


def _claim(folder: Path) -> tuple[int, Path]:
    """Take a name. Its lock is dropped by the kernel when the process dies, however it dies."""
    while True:
        lock = folder / f"{uuid.uuid4().hex}{_LOCK}"
        handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if _is_there(handle, lock):  # else somebody took it for that of a dead one before we had it locked
            return handle, lock
        os.close(handle)


def remove_dead(folder: Path) -> None:
    """Remove what killed processes left below `folder`, if it is there at all."""
    for lock in sorted(folder.glob(f"*{_LOCK}")):
        with suppress(OSError):  # a living one holds it, or another removes the same
            handle = os.open(lock, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_there(handle, lock):
                    _remove(lock.with_suffix(""), lock)
            finally:
                os.close(handle)


def _remove(mine: Path, lock: Path) -> None:
    if mine.exists():
        shutil.rmtree(mine)
    lock.unlink()  # last: a folder without its lock would stay for good


def _is_there(handle: int, path: Path) -> bool:
    try:
        ours, there = os.fstat(handle), path.stat()
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)
