"""Atomic writes: a file or folder appears whole or not at all, also after `kill -9` or a power cut.

The bytes go to a temporary name in the same folder, are fsynced, and the name is changed last. What a killed writer
left under such a name goes with the next write into that folder.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from noa.abandoned_files import own, remove_if_abandoned
from noa.errors import StorageError
from noa.regular_files import special_kind

_SUFFIX: Final = ".noa-tmp"
"""Ours alone: in a folder of a user, names of other programs that write like this are not touched."""
_TEMPORARY: Final = re.compile(rf"\..+\.[a-z0-9_]{{8}}{re.escape(_SUFFIX)}")
_DISK_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.EFBIG,
    errno.ENOTDIR,
}


def write_file(path: Path, data: bytes | str, *, private: bool = False) -> None:
    """Replace the content of `path` atomically, creating parent folders; `private`: only the owner may read it.

    Raises:
        StorageError: what is there is no regular file, or the disk refused (full, read-only, no permission); the old
            content is still there.
    """
    payload = data.encode() if isinstance(data, str) else data
    if kind := special_kind(path):  # a device or pipe would be gone, and no folder can be replaced
        raise StorageError(
            f"cannot write `{path.name}`: it is {kind}",
            where=str(path),
            expected="a regular file, or none",
            remedy="Choose another name",
            path=str(path),
        )
    with translate_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_SUFFIX, dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                own(handle)
                file.write(payload)
                file.flush()
                if not private:
                    os.fchmod(file.fileno(), 0o666 & ~_umask())
                os.fsync(file.fileno())
                Path(temporary).replace(path)  # while it is still ours: nobody takes it for abandoned
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def set_usual_mode(path: Path) -> None:
    """Let those read a file that may read any new one of this process: safetensors writes for the owner alone."""
    path.chmod(0o666 & ~_umask())


def publish_folder(temporary: Path, final: Path) -> None:
    """Fsync every file below `temporary`, then rename it to `final`, which must not exist.

    Raises:
        StorageError: the disk refused; `temporary` is left for the caller to remove.
    """
    with translate_disk_errors(final):
        for path in sorted(temporary.rglob("*")):
            _sync_path(path)
        sync_folder(temporary)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary.rename(final)
        sync_folder(final.parent)


def sync_folder(folder: Path) -> None:
    """Fsync a folder, which makes renames inside it durable."""
    _sync_path(folder)


@contextmanager
def translate_disk_errors(path: Path) -> Generator[None]:
    """Turn an `OSError` of the disk into a `StorageError` that names `path`."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in _DISK_ERRORS:
            raise
        remedies = {
            errno.ENOSPC: "Free some space and run the same command again; nothing was lost",
            errno.EFBIG: "Raise the limit on file sizes and run the same command again; nothing was lost",
            errno.ENOTDIR: "A file is in the place of a folder: move it away",
            errno.EDQUOT: "Raise the quota or free some space and run the same command again; nothing was lost",
        }
        raise StorageError(
            f"cannot write `{path.name}`: {os.strerror(exc.errno or 0).lower()}",
            where=str(path),
            remedy=remedies.get(exc.errno or 0, "Check the permissions of this folder"),
            path=str(path),
            errno=exc.errno,
        ) from exc


def _remove_abandoned(folder: Path) -> None:
    names: list[str] = []
    with suppress(OSError), os.scandir(folder) as entries:  # a folder that may be written and not read
        names = [entry.name for entry in entries if entry.name.endswith(_SUFFIX)]
    for name in names:
        if _TEMPORARY.fullmatch(name):
            remove_if_abandoned(folder / name)


def _umask() -> int:
    # The system has no call that only reads it; the file of this process says it without changing it for other threads.
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("Umask:", 1)[1].split()[0], 8)
    except (OSError, IndexError, ValueError):
        return 0o022


def _sync_path(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
