"""Marks: small files at the root of a store, e.g. whose it is. Anybody may have changed them: they are read with care.

A mark is a regular file of at most 4096 bytes. A link, a folder, a pipe or a larger file is no mark of ours: it is
refused unread, and nobody waits for it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from noa.atomic_write import sync_folder, translate_disk_errors
from noa.errors import IntegrityError, StorageError
from noa_registry.artifacts.copying import make_folder

if TYPE_CHECKING:
    from noa_registry.artifacts.s3_client import S3Client

MOST_BYTES: Final = 4096
_LOCK_TIMEOUT_S: Final = 5.0
_LOCK_PAUSE_S: Final = 0.01
_FLAGS: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # not blocking: or else opening a pipe waits for a writer
_NO_FILE: Final = {errno.ELOOP, errno.EISDIR, errno.ENXIO}


class Marks(Protocol):
    """Small files at the root of a store."""

    def where(self, name: str) -> str:
        """Return where a mark is, for people."""
        ...

    def read(self, name: str) -> bytes | None:
        """Return a mark, None if there is none.

        Raises:
            IntegrityError: something else is in its place, or it is too large.
            StorageError: the store does not answer.
        """
        ...

    def stamp(self, name: str) -> object:
        """Return what changes whenever a mark does, as far as no request is needed for it; None without a mark."""
        ...

    def create(self, name: str, data: bytes) -> None:
        """Write a mark durably, unless there is one; of many who do this at once one succeeds."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Write a mark durably, whether there is one or not."""
        ...


@dataclass(frozen=True, slots=True)
class FolderMarks:
    """The marks of a store in a folder. Written in place, under a lock: who is killed leaves an empty one, or none."""

    root: Path

    def where(self, name: str) -> str:
        """Return the path."""
        return str(self.root / name)

    def read(self, name: str) -> bytes | None:
        """Return a mark's first line."""
        path = self.root / name
        with _translated(path):
            try:
                handle = os.open(path, os.O_RDONLY | _FLAGS)
            except (FileNotFoundError, NotADirectoryError):
                return None
            try:
                _require_regular(handle, path)
                data = os.read(handle, MOST_BYTES + 1)
            finally:
                os.close(handle)
        return _first_line(_require_small(data, str(path))) or None

    def stamp(self, name: str) -> object:
        """Return identity, size and times of the file."""
        try:
            found = (self.root / name).lstat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def create(self, name: str, data: bytes) -> None:
        """Write a mark unless there is one."""
        with self._locked(name) as handle:
            if not _first_line(os.pread(handle, MOST_BYTES, 0)):
                self._write(handle, data)

    def replace(self, name: str, data: bytes) -> None:
        """Write a mark."""
        with self._locked(name) as handle:
            self._write(handle, data)

    def _write(self, handle: int, data: bytes) -> None:
        if os.pwrite(handle, data, 0) < len(data):
            os.ftruncate(handle, 0)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(handle, len(data))
        os.fsync(handle)
        sync_folder(self.root)

    @contextmanager
    def _locked(self, name: str) -> Generator[int, None, None]:
        make_folder(self.root)
        path = self.root / name
        with _translated(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o644)
            try:
                _require_regular(handle, path)
                _lock(handle, path)  # released when the handle is closed
                yield handle
            finally:
                os.close(handle)


@dataclass(frozen=True, slots=True)
class S3Marks:
    """The marks of a store in S3, below `prefix`, which is empty or ends with a slash."""

    client: S3Client
    prefix: str

    def where(self, name: str) -> str:
        """Return the URL."""
        return self.client.url(self.prefix + name)

    def read(self, name: str) -> bytes | None:
        """Return a mark."""
        from noa_registry.artifacts.s3_errors import is_missing

        try:
            data = self.client.read_bytes(self.prefix + name, most=MOST_BYTES + 1)
        except StorageError as exc:
            if is_missing(exc):
                return None
            raise
        return _require_small(data, self.where(name))

    def stamp(self, name: str) -> object:
        """Return the same always: S3 tells nothing without a request."""
        return name

    def create(self, name: str, data: bytes) -> None:
        """Write a mark unless there is one: S3 decides."""
        self.client.put_bytes_if_absent(self.prefix + name, data)

    def replace(self, name: str, data: bytes) -> None:
        """Write a mark."""
        self.client.put_bytes(self.prefix + name, data)


def _first_line(data: bytes) -> bytes:
    return data.split(b"\n", 1)[0].strip(b"\0")  # a machine that failed in the middle may leave zeros


@contextmanager
def _translated(path: Path) -> Generator[None]:
    try:
        with translate_disk_errors(path):
            yield
    except OSError as exc:
        if exc.errno in _NO_FILE:
            raise _no_file(path) from exc
        raise StorageError(
            f"cannot use the mark `{path.name}` of the store: {os.strerror(exc.errno or 0).lower()}",
            where=str(path),
            remedy="Look at the disk, and at what is in the place of the mark",
            path=str(path),
            errno=exc.errno,
        ) from exc


def _require_regular(handle: int, path: Path) -> None:
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        raise _no_file(path)


def _no_file(path: Path) -> IntegrityError:
    return IntegrityError(
        f"something else is in the place of the mark `{path.name}` of the store",
        where=str(path),
        expected="a regular file",
        received="a link, a folder, a pipe or a device",
        remedy="Move it away",
        file=path.name,
    )


def _require_small(data: bytes, where: str) -> bytes:
    if len(data) > MOST_BYTES:
        raise IntegrityError(
            "a mark of the store is too large to be one",
            where=where,
            expected=f"at most {MOST_BYTES} bytes",
            received="more",
            remedy="Move it away",
            file=where,
        )
    return data


def _lock(handle: int, path: Path) -> None:
    give_up_at = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            if time.monotonic() >= give_up_at:
                raise StorageError(
                    f"another process keeps the mark `{path.name}` of the store locked",
                    where=str(path),
                    expected=f"that it lets go within {_LOCK_TIMEOUT_S:g} s",
                    remedy="Find and end that process, then try again",
                    path=str(path),
                ) from exc
            time.sleep(_LOCK_PAUSE_S)
        else:
            return
