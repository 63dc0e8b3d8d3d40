"""Files that somebody named: opened only where they are regular ones.

A named pipe in the place of a file would hold up its reader for ever, and a device may have no end.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from noa.errors import InvalidInputError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, without waiting for whoever may be at its other end.

    Raises:
        InvalidInputError: it is there and no regular file; says what it is.
        OSError: it cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    kind = _kind_of(os.fstat(handle).st_mode)
    if kind is not None:
        os.close(handle)
        raise InvalidInputError(f"`{path.name}` is {kind}", where=str(path), expected="a regular file", received=kind)
    return os.fdopen(handle, "rb")


def special_kind(path: Path) -> str | None:
    """Return what a path leads to in words, such as `a pipe`; None if to a regular file, or to nothing."""
    try:
        return _kind_of(path.stat().st_mode)
    except OSError:  # whoever opens it tells
        return None


def _kind_of(mode: int) -> str | None:
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "a special file")
