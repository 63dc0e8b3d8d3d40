"""A private copy of what is imported: scanned again and read from there, so that nobody changes it in between."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from noa.atomic_write import translate_disk_errors
from noa.digests import FileDigest, Manifest
from noa.errors import InvalidInputError

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """The copy. `digest` names the source's bytes: of the one file, or of the folder's manifest."""

    path: Path
    digest: str
    size_bytes: int


def staged_copy(source: Path, folder: Path) -> Staged:
    """Copy a file or folder into a private folder, under its own name.

    Raises:
        InvalidInputError: a link or special file is in it.
        StorageError: the disk refused.
    """
    with translate_disk_errors(source):
        target = folder / source.name
        if source.is_dir() and not source.is_symlink():
            files = [_copy(path, target / path.relative_to(source), source) for path in _files(source)]
            manifest = Manifest.of(files)
            return Staged(path=target, digest=manifest.digest, size_bytes=manifest.size_bytes)
        file = _copy(source, target, source.parent)
        return Staged(path=target, digest=file.digest, size_bytes=file.size_bytes)


def _files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for parent, _, names in os.walk(folder, followlinks=False):
        found += [Path(parent) / name for name in names]
    return sorted(found)


def _copy(source: Path, target: Path, root: Path) -> FileDigest:
    target.parent.mkdir(parents=True, exist_ok=True)
    hasher, size = hashlib.sha256(), 0
    handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb", buffering=0) as reader, target.open("xb", buffering=0) as writer:
        if not stat.S_ISREG(os.fstat(reader.fileno()).st_mode):
            raise InvalidInputError(f"`{source.name}` is no regular file", where=str(source))
        while block := reader.read(_BLOCK_BYTES):
            hasher.update(block)
            writer.write(block)
            size += len(block)
    path = source.relative_to(root).as_posix()
    return FileDigest(path=path, size_bytes=size, digest=f"sha256:{hasher.hexdigest()}")
