"""Copying that seals: the very bytes that are written are hashed while they are written, in one pass.

Where the file system shares blocks between files (Btrfs, XFS) the copy is a clone, and the clone is hashed. Else one
thread reads and writes while another hashes, with a handful of buffers between them, so the copy takes about as long as
the slower of the two and memory stays the same for any size.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from noa.atomic_write import translate_disk_errors
from noa.digests import FileDigest, sha256_file, sha256_handle
from noa.errors import InvalidInputError, StorageError

READ_ONLY = 0o444
_BLOCK_BYTES = 1 << 20
_BUFFERS = 4
_OVERLAP_FROM_BYTES = 8 << 20
_WRITE_BACK_BYTES = 32 << 20
_FICLONE = 0x40049409  # from linux/fs.h
_NO_CLONE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}


def regular_files(folder: Path) -> list[Path]:
    """Return all files below `folder`, sorted.

    Raises:
        InvalidInputError: there is a link or special file.
    """
    paths = sorted(folder.rglob("*"))
    for path in paths:
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InvalidInputError(
                f"`{path.name}` is a link or special file", where=str(path), expected="regular files only"
            )
    return [path for path in paths if path.is_file()]


def make_folder(folder: Path) -> None:
    """Make a folder and its parents if they are missing.

    Raises:
        StorageError: the disk refused, or a file is where the folder should be.
    """
    try:
        with translate_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as exc:
        raise StorageError(
            "a file is where a folder should be", where=str(folder), remedy="Move it away, or set another folder"
        ) from exc


def copy_and_hash(source: Path, target: Path, *, name: str) -> FileDigest:
    """Copy `source` to the new, read-only file `target` and return its digest under the path `name`.

    Times and permissions are no part of what is sealed. The caller makes it durable.

    Raises:
        StorageError: the disk refused.
    """
    with translate_copy_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb", buffering=0) as reader:
            writer = os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, READ_ONLY)
            try:
                os.fchmod(writer, READ_ONLY)
                digest = _copy(reader.fileno(), writer)
                size = os.fstat(writer).st_size
            finally:
                os.close(writer)
    return FileDigest(path=name, size_bytes=size, digest=digest)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; where the file system has no hard links, copy it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError as exc:
        if exc.errno in (errno.EEXIST, errno.ENOENT):
            raise
        copy_and_hash(source, target, name=target.name)


def file_digest(path: Path, *, name: str) -> FileDigest:
    """Return what a file is, under the path `name`; it is hashed."""
    return FileDigest(path=name, size_bytes=path.stat().st_size, digest=sha256_file(path))


def is_copy_of(path: Path, file: FileDigest) -> bool:
    """Tell whether `path` holds exactly the bytes of `file`; it is hashed."""
    try:
        return path.stat().st_size == file.size_bytes and sha256_file(path) == file.digest
    except FileNotFoundError:
        return False


@contextmanager
def translate_copy_errors(path: Path) -> Generator[None, None, None]:
    """Turn what the disk refuses into a `StorageError` that names `path`."""
    with translate_disk_errors(path):
        yield


def _copy(reader: int, writer: int) -> str:
    if _clone(reader, writer):
        return sha256_handle(writer)
    size = os.fstat(reader).st_size
    os.posix_fadvise(reader, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return _copy_overlapped(reader, writer) if size >= _OVERLAP_FROM_BYTES else _copy_plain(reader, writer)


def _clone(reader: int, writer: int) -> bool:
    try:
        fcntl.ioctl(writer, _FICLONE, reader)
    except OSError as exc:
        if exc.errno not in _NO_CLONE:
            raise
        return False
    return True


def _copy_plain(reader: int, writer: int) -> str:
    hasher = hashlib.sha256()
    while block := os.read(reader, _BLOCK_BYTES):
        hasher.update(block)
        _write(writer, memoryview(block))
    return "sha256:" + hasher.hexdigest()


def _copy_overlapped(reader: int, writer: int) -> str:
    hasher = hashlib.sha256()
    spare = [bytearray(_BLOCK_BYTES) for _ in range(_BUFFERS)]
    busy: deque[tuple[Future[None], bytearray]] = deque()
    position = flushed = 0
    with ThreadPoolExecutor(1, thread_name_prefix="noa-hash") as pool:  # one thread: blocks are hashed in order
        while True:
            buffer = spare.pop() if spare else _wait_for(busy)
            count = os.readv(reader, [buffer])
            if count == 0:
                break
            block = memoryview(buffer)[:count]
            busy.append((pool.submit(hasher.update, block), buffer))
            _write(writer, block)
            position += count
            if position - flushed >= _WRITE_BACK_BYTES:
                _start_write_back(writer, flushed, position - flushed)
                flushed = position
        while busy:
            _wait_for(busy)
    return "sha256:" + hasher.hexdigest()


def _wait_for(busy: deque[tuple[Future[None], bytearray]]) -> bytearray:
    future, buffer = busy.popleft()
    future.result()
    return buffer


def _write(writer: int, block: memoryview) -> None:
    while block:
        block = block[os.write(writer, block) :]


def _start_write_back(writer: int, offset: int, count: int) -> None:
    """Let the disk begin to write while we go on: the fsync at the end has less left to wait for.

    Dirty pages are written and stay in memory; only clean ones would be dropped.
    """
    os.posix_fadvise(writer, offset, count, os.POSIX_FADV_DONTNEED)
