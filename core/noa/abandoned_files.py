"""Temporary files whose writer was killed: known by the lock that the kernel drops with a process, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

_EMPTY_FOR_S: Final = 3600.0


def own(handle: int) -> None:
    """Mark a temporary file as that of a living process, until its handle is closed. Done before it is written to."""
    with suppress(OSError):  # a file system without locks: then nobody removes what is abandoned
        fcntl.flock(handle, fcntl.LOCK_EX)


def remove_if_abandoned(path: Path) -> None:
    """Remove a temporary file unless a living process owns it, or it is no file at all.

    An empty one may have a writer that is about to mark it, and goes only when it is old.
    """
    with suppress(OSError):  # somebody owns it, or another process removes the same
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            status = os.fstat(handle)
            if status.st_size > 0 or time.time() - status.st_mtime > _EMPTY_FOR_S:
                path.unlink()
        finally:
            os.close(handle)
