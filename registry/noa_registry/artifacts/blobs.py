"""Equal bytes are stored once: a folder of files by their digest, to which every equal file is a hard link.

    <folder>/<2 hex>/<64 hex>      one more name of a file that is in use elsewhere

The folder owns nothing: a blob that has no other name left is removed with the last of its users. Small files stay
apart: sharing them saves less than a disk block. Before a file is linked its bytes are hashed again, so damage that the
disk has done to one version never reaches another through here.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections import Counter
from contextlib import suppress
from pathlib import Path

from noa.digests import FileDigest
from noa_registry.artifacts.copying import is_copy_of

SHARED_FROM_BYTES = 4096
_NO_LINK = {errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.ENOSYS, errno.EACCES}


class BlobFolder:
    """The blobs below `root`; safe for any number of processes at once."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, digest: str) -> Path:
        """Return where the blob of a digest is, if there is one."""
        digits = digest.removeprefix("sha256:")
        return self._root / digits[:2] / digits

    def share(self, path: Path, file: FileDigest) -> bool:
        """Make `path`, whose bytes are those of `file`, one with the equal stored file; tell whether so.

        If there is none, or it is damaged, `path` becomes the one that later files are linked to.
        """
        if file.size_bytes < SHARED_FROM_BYTES:
            return False
        blob = self.path(file.digest)
        if is_copy_of(blob, file) and _replace_by_link(path, blob, beside=path):
            return True
        with suppress(OSError):  # no hard links here, or a full disk: the file is stored, only not shared
            blob.parent.mkdir(parents=True, exist_ok=True)
            _replace_by_link(blob, path, beside=path)
        return False

    def link_to(self, target: Path, file: FileDigest) -> bool:
        """Make `target` a name of the blob of `file`, if there is a whole one; tell whether so."""
        blob = self.path(file.digest)
        if not is_copy_of(blob, file):
            return False
        try:
            os.link(blob, target)
        except FileNotFoundError:
            return False
        except OSError as exc:
            if exc.errno not in _NO_LINK:
                raise
            return False
        return True

    def add(self, path: Path, file: FileDigest) -> None:
        """Give `path` a name here; what was here under this name is replaced."""
        if file.size_bytes < SHARED_FROM_BYTES:
            return
        blob = self.path(file.digest)
        with suppress(OSError):
            blob.parent.mkdir(parents=True, exist_ok=True)
            _replace_by_link(blob, path, beside=path)

    def drop_unused(self, digest: str) -> None:
        """Remove the blob of a digest if nothing else has its bytes any more."""
        blob = self.path(digest)
        # Between the two calls somebody may link to it: then its bytes live on there, and only this name is lost.
        with suppress(FileNotFoundError):
            if blob.stat().st_nlink == 1:
                blob.unlink()

    def identities(self) -> set[tuple[int, int]]:
        """Return device and inode of every blob."""
        found = (file_identity(path) for path in self.all())
        return {identity for identity in found if identity is not None}

    def all(self) -> list[Path]:
        """Return every blob."""
        return [path for path in self._root.glob("??/*") if not path.name.startswith(".")]


def file_identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of a file, None if it is gone."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def freed_bytes(folder: Path, blobs: set[tuple[int, int]]) -> int:
    """Return how many bytes removing a folder gives back: a file with a name elsewhere gives none.

    The name of a file among `blobs` does not count: it goes with its last user.
    """
    names: Counter[tuple[int, int]] = Counter()
    facts: dict[tuple[int, int], tuple[int, int]] = {}
    for current, _, files in os.walk(folder, followlinks=False):
        for name in files:
            with suppress(FileNotFoundError):
                found = (Path(current) / name).lstat()
                key = (found.st_dev, found.st_ino)
                names[key] += 1
                facts[key] = (found.st_nlink, found.st_size)
    return sum(size for key, (links, size) in facts.items() if names[key] + (key in blobs) >= links)


def _replace_by_link(path: Path, existing: Path, *, beside: Path) -> bool:
    """Make `path` another name of `existing`, at once; False where the file system cannot.

    The temporary name is `beside` the file of a unit: what a killed process left there goes with the unit, while among
    the blobs nobody would ever look for it.
    """
    temporary = beside.with_name(f".{beside.name}.{secrets.token_hex(6)}")
    try:
        os.link(existing, temporary)
    except FileNotFoundError:
        return False
    except OSError as exc:
        if exc.errno not in _NO_LINK:
            raise
        return False
    try:
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # a rename onto another name of the same file leaves both
    return True
