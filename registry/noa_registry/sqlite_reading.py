"""A SQLite file that this user may read and not write, as a project on a read-only disk or of somebody else.

SQLite keeps a write-ahead log and an index of it beside a file in WAL mode, and makes them for readers too. Where they
cannot be made, the file alone is read as one that does not change (`immutable`), which takes no lock: there is no log,
so nobody writes now. Somebody who may write can begin at any time, so each connection is opened for one use, and a file
that was changed meanwhile is an error instead of an answer. With a log beside it the file is read as usual, read-only.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from noa.errors import StorageError
from noa_registry.database_url import DatabaseUrl

_REMEDY = (
    "Do this as a user who may write to the file and to its folder, or in a copy of the project that you may write to"
)


def is_read_only(file: Path) -> bool:
    """Tell whether a SQLite file is there that this process cannot write: the file itself or what goes beside it."""
    return file.exists() and not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK))


def connect_read_only(file: Path, *, timeout_s: float) -> sqlite3.Connection:
    """Open a file that this process cannot write."""
    mode = "mode=ro" if has_log(file) else "mode=ro&immutable=1"
    return sqlite3.connect(f"{file.as_uri()}?{mode}", uri=True, timeout=timeout_s, check_same_thread=False)


def has_log(file: Path) -> bool:
    """Tell whether something beside the file must be read with it: the log of a writer, or what undoes its work."""
    for suffix in ("-wal", "-journal"):
        try:
            if Path(f"{file}{suffix}").stat().st_size:
                return True
        except FileNotFoundError:
            continue
    return False


@contextmanager
def undisturbed(url: DatabaseUrl) -> Generator[None]:
    """Refuse what was read in the block if the file was changed meanwhile; nothing was read of it before.

    Raises:
        StorageError: somebody else wrote to the file.
    """
    if has_log(url.file):  # SQLite itself keeps readers and writers apart
        yield
        return
    before = _state(url.file)
    try:
        yield
    except Exception as exc:
        if _state(url.file) != before:  # half old and half new: what was read may look damaged
            raise _changed(url) from exc
        raise
    if _state(url.file) != before:
        raise _changed(url)


def read_only_error(url: DatabaseUrl) -> StorageError:
    """Return the error of somebody who wants to write."""
    return StorageError(
        "this registry can only be read: its database cannot be written by this user",
        where=str(url),
        remedy=_REMEDY,
        path=str(url),
    )


def unread_log_error(url: DatabaseUrl) -> StorageError:
    """Return the error where the index of a write-ahead log is missing and cannot be made."""
    return StorageError(
        "the database was not closed by its last writer, and this user cannot make what is needed to read it",
        where=str(url),
        remedy="Let somebody who may write to it run `noa models list` once, or copy the project to a folder of yours",
        path=str(url),
    )


def older_error(url: DatabaseUrl, *, expected: str, received: str) -> StorageError:
    """Return the error where a database would have to be upgraded first."""
    return StorageError(
        "the database is of an older noa, and this user cannot upgrade it: it can only be read",
        where=str(url),
        expected=expected,
        received=received,
        remedy="Let somebody who may write to it run `noa models list` with this noa once; in a copy of the project "
        "that you may write to, you can do so yourself",
        path=str(url),
    )


def _state(file: Path) -> tuple[int, ...] | None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _changed(url: DatabaseUrl) -> StorageError:
    return StorageError(
        "the database was changed by somebody else while it was read",
        where=str(url),
        remedy="Run the same command again",
        path=str(url),
    )
