"""What was hashed on this machine: a file is read once, and again only when anything about it has changed.

    <cache_dir>/verified/<2 hex>/<digest>.<device>.<inode>     "<size> <mtime_ns> <ctime_ns> <recorded_ns> <check>"

A file that was found to have a digest is remembered with its identity and times. While all of them are the same the
file was not written to; with any other value it is hashed again. One small file per entry, written under a temporary
name and renamed: any number of processes share the folder, the last writer wins, and an entry that cannot be read, or
whose check does not fit, is as good as none. An entry is made only if the file's change time is older than the hashing
by more than the tick of the kernel's clock; else a write in the same tick would leave no trace.

Times tell only where the file system keeps them for writes through a mapping as well (see `change_times.py`):
elsewhere, as in memory (tmpfs), nothing is remembered and every opening hashes. And a page that is dirty through a
mapping takes further writes without a new time until it is written out, so a file is synced before it is hashed.

This saves time, not trust: whoever may write here as this user may also write the models. A folder that others may
write to is not used.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

from noa.digests import FileDigest, sha256_handle
from noa_registry.artifacts.change_times import ChangeTimes

_FOLDER = "verified"
_TICK_NS = 20_000_000
"""Longer than the tick of any kernel's file clock (1 to 10 ms)."""
_MAX_ENTRIES_PER_SHARD = 400


class VerifiedFiles:
    """The memory of hashed files below `cache_dir`; it works, without a memory, where that cannot be written."""

    def __init__(self, cache_dir: Path) -> None:
        self._root = cache_dir / _FOLDER
        self._times = ChangeTimes(self._root)

    def has_digest(self, path: Path, file: FileDigest) -> bool:
        """Tell whether `path` holds the bytes of `file`; hashes it unless that was done before. False if it is gone."""
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            before = os.fstat(handle)
            if before.st_size != file.size_bytes:
                return False
            if not self._prepare() or not self._times.are_kept(handle, before.st_dev):
                return sha256_handle(handle) == file.digest
            if self._is_known(before, file.digest):
                return True
            is_clean = _write_out(handle)
            before = os.fstat(handle)
            started_ns = time.time_ns()
            if sha256_handle(handle) != file.digest:
                return False
            # Changed while it was read: what was hashed is not what is there now.
            if is_clean and _identity(os.fstat(handle)) == _identity(before):
                self._remember(before, file.digest, started_ns)
            return True
        finally:
            os.close(handle)

    def remember(self, files: dict[Path, FileDigest]) -> None:
        """Record files that the caller has just made, written with bytes that it hashed, and synced."""
        stats: list[tuple[os.stat_result, str]] = []
        for path, file in files.items() if self._prepare() else ():
            with suppress(OSError), path.open("rb") as opened:
                status = os.fstat(opened.fileno())
                if self._times.are_kept(opened.fileno(), status.st_dev):
                    stats.append((status, file.digest))
        if not stats:
            return
        newest = max(status.st_ctime_ns for status, _ in stats)
        wait_ns = newest + _TICK_NS - time.time_ns()
        if 0 < wait_ns <= 2 * _TICK_NS:
            time.sleep((wait_ns + 1_000_000) / 1e9)  # one tick, so that the entries count: see the module's docstring
        now_ns = time.time_ns()
        for status, digest in stats:
            self._remember(status, digest, now_ns)

    def _is_known(self, status: os.stat_result, digest: str) -> bool:
        try:
            text = self._entry(status, digest).read_bytes()
        except OSError:
            return False
        fields = text.split(b" ")
        if len(fields) != 5:
            return False
        expected = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} ".encode()
        return text.startswith(expected) and fields[4] == _check(status, digest, fields[3])

    def _remember(self, status: os.stat_result, digest: str, now_ns: int) -> None:
        if now_ns - status.st_ctime_ns <= _TICK_NS:
            return
        recorded = str(now_ns).encode()
        line = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} ".encode() + recorded + b" "
        entry = self._entry(status, digest)
        temporary = entry.with_name(f".{entry.name}.{secrets.token_hex(6)}")
        # Nobody needs the memory: a full or read-only disk costs the next caller a hash, no more.
        with suppress(OSError):
            entry.parent.mkdir(exist_ok=True, mode=0o700)
            _limit(entry.parent)
            try:
                temporary.write_bytes(line + _check(status, digest, recorded))
                temporary.rename(entry)
            except OSError:
                temporary.unlink(missing_ok=True)

    def _prepare(self) -> bool:
        """Make the folder if it is missing; tell whether only this user may write to it."""
        try:
            try:
                status = self._root.stat()
            except FileNotFoundError:
                self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
                status = self._root.stat()
        except OSError:
            return False
        return status.st_uid == os.geteuid() and not status.st_mode & 0o022

    def _entry(self, status: os.stat_result, digest: str) -> Path:
        digits = digest.removeprefix("sha256:")
        return self._root / digits[:2] / f"{digits}.{status.st_dev}.{status.st_ino}"


def _write_out(handle: int) -> bool:
    """Write out what is dirty of a file, and tell whether nothing is."""
    try:
        os.fsync(handle)
    except OSError as exc:
        return exc.errno == errno.EROFS  # nothing is dirty where nothing can be written
    return True


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _check(status: os.stat_result, digest: str, recorded: bytes) -> bytes:
    """Return what tells a whole entry from one that a power cut or a bad disk has changed."""
    return hashlib.sha256(f"{digest} {_identity(status)} ".encode() + recorded).hexdigest().encode()


def _limit(shard: Path) -> None:
    """Remove the oldest half of the entries of a folder that has grown too large: files come and go."""
    names = os.listdir(shard)  # noqa: PTH208  # names only: the common case must not build a path for each
    if len(names) <= _MAX_ENTRIES_PER_SHARD:
        return
    by_age: list[tuple[int, Path]] = []
    for name in names:
        with suppress(OSError):
            by_age.append(((shard / name).stat().st_mtime_ns, shard / name))
    for _, path in sorted(by_age)[: len(by_age) // 2]:
        path.unlink(missing_ok=True)
