"""The files by which a job's process learns what to train: `<jobs_dir>/.request-*/request.json`.

Who starts a job holds a lock on the file, which the kernel drops with the process. So whoever comes later can tell what
a killed process left from what is in use.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_PREFIX: Final = ".request-"
_FILE: Final = "request.json"
_BEGINNING_S: Final = 60.0
"""So long a folder without a lock may belong to somebody who is just making it."""


@contextmanager
def request_file(jobs_dir: Path, text: str) -> Generator[Path, None, None]:
    """Give a file with this text; it is gone afterwards, and what earlier, killed processes left is gone too."""
    clear_dead_requests(jobs_dir)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=jobs_dir, ignore_cleanup_errors=True) as folder:
        path = Path(folder, _FILE)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            fcntl.flock(handle, fcntl.LOCK_EX)
            file.write(text)
            file.flush()
            yield path


def dead_requests(jobs_dir: Path) -> list[Path]:
    """Return the folders of requests whose process is gone."""
    moment = time.time()
    return [folder for folder in sorted(jobs_dir.glob(f"{_PREFIX}*")) if _is_dead(folder, moment)]


def clear_dead_requests(jobs_dir: Path) -> int:
    """Remove the requests whose process is gone, and return how many there were."""
    return sum(1 for _ in _remove(dead_requests(jobs_dir)))


def _remove(folders: list[Path]) -> Iterator[Path]:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            yield folder


def _is_dead(folder: Path, moment: float) -> bool:
    try:
        handle = os.open(folder / _FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return _is_old(folder, moment)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        is_written = os.fstat(handle).st_size > 0  # only its owner, who holds the lock, has written anything
    except OSError:
        return False
    finally:
        os.close(handle)
    return is_written or _is_old(folder, moment)


def _is_old(folder: Path, moment: float) -> bool:
    try:
        status = folder.lstat()
    except OSError:
        return False
    return moment - status.st_mtime > _BEGINNING_S
