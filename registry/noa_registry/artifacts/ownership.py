"""Whose store it is: the mark `_registry.json` at its root names the one registry that writes and removes there.

A unit says nothing about whose it is. Without the mark, two projects that name one place would each take the units of
the other for garbage, and so would the empty database that is made where one was lost. The first who writes into a
store leaves the mark; from then on whoever has another id is refused before anything is written or removed. Reading is
not refused: what is read is compared with digests that the reader's own database holds.

A store from before there were marks is marked by the first writer whose database names at least half of its units. The
mark is looked at once per open store, and not at all by those who only read.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from noa.atomic_write import sync_folder, translate_disk_errors
from noa.errors import ConflictError, IntegrityError, StorageError
from noa_registry.artifacts.copying import make_folder
from noa_registry.artifacts.store import Seals, UnitKey

if TYPE_CHECKING:
    from noa_registry.artifacts.s3_client import S3Client

OWNER_MARK: Final = "_registry.json"
_MAX_BYTES: Final = 4096
_REMEDY: Final = (
    "Give each project its own `registry.artifact_dir` or `registry.artifact_url`. If this place is the right one, its "
    "database was lost, emptied or replaced: restore a backup of it. If there is none, let the present database have "
    "the store: noa models verify --adopt-store"
)


class Marks(Protocol):
    """Small files at the root of a store."""

    def where(self, name: str) -> str:
        """Return where a mark is, for people."""
        ...

    def read(self, name: str) -> bytes | None:
        """Return a mark, None if there is none."""
        ...

    def create(self, name: str, data: bytes) -> None:
        """Write a mark durably, unless there is one; of many who do this at once one succeeds."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Write a mark durably, whether there is one or not."""
        ...


@dataclass(slots=True)
class Ownership:
    """Compares the mark of a store with the id of the registry that uses it. Safe to share between threads."""

    marks: Marks
    seals: Seals
    units: Callable[[], Iterator[UnitKey]]
    _is_ours: bool = field(default=False, init=False)

    def owner(self) -> str | None:
        """Return the id of the registry whose store this is, None if nobody has written there since there are marks.

        Raises:
            IntegrityError: the mark was changed.
            StorageError: the store does not answer.
        """
        data = self.marks.read(OWNER_MARK)
        if data is None:
            return None
        try:
            return str(json.loads(data)["registry"])
        except (ValueError, KeyError, TypeError) as exc:
            raise IntegrityError(
                "the mark that says whose store this is was changed",
                where=self.marks.where(OWNER_MARK),
                expected='{"registry": ...}',
                received=repr(data[:80]),
                remedy="Put it back, or write it anew: noa models verify --adopt-store",
                file=OWNER_MARK,
            ) from exc

    def refuse_foreign(self) -> bool:
        """Raise if the store is another registry's, and tell whether it bears our mark. Writes nothing.

        Raises:
            ConflictError: the store belongs to another registry.
        """
        if self._is_ours:
            return True
        owner = self.owner()
        if owner is None:
            return False
        mine = self.seals.registry_id()
        if owner != mine:
            raise ConflictError(
                "the model files here belong to another registry",
                where=self.marks.where(""),
                expected=f"registry {owner}, which the store is marked with",
                received=_text_of(mine),
                remedy=_REMEDY,
            )
        self._is_ours = True
        return True

    def claim(self) -> None:
        """Make sure, before anything is written or removed, that the store is ours; mark it if nobody has.

        Raises:
            ConflictError: it belongs to another registry, or bears no mark and holds mostly units of another.
            StorageError: the store or the database refused.
        """
        if self.refuse_foreign():
            return
        units = list(self.units())
        named = self.seals.sealed_uids() if units else set[str]()
        unknown = sum(unit.uid not in named for unit in units)
        if unknown > len(units) - unknown:
            raise ConflictError(
                "the model files here seem to belong to another registry",
                where=self.marks.where(""),
                expected="a store that is empty, or of whose units the database names at least half",
                received=f"{unknown} of {len(units)} units that it does not name",
                remedy=_REMEDY,
            )
        self.marks.create(OWNER_MARK, self._ours())
        self.refuse_foreign()  # somebody else may have been faster

    def may_write(self) -> bool:
        """Do as `claim` does, and tell whether it succeeded."""
        try:
            self.claim()
        except (ConflictError, IntegrityError, StorageError):
            return False
        return True

    def take_over(self) -> None:
        """Mark the store as ours, whoever's it was."""
        self.marks.replace(OWNER_MARK, self._ours())
        self._is_ours = True

    def _ours(self) -> bytes:
        return json.dumps({"registry": self.seals.make_registry_id()}).encode() + b"\n"


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
        with translate_disk_errors(path):
            try:
                data = path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return _first_line(data) or None

    def create(self, name: str, data: bytes) -> None:
        """Write a mark unless there is one."""
        with self._locked(name) as handle:
            if not _first_line(os.pread(handle, _MAX_BYTES, 0)):
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
        with translate_disk_errors(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)  # released when the handle is closed
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
            return self.client.read_bytes(self.prefix + name)
        except StorageError as exc:
            if is_missing(exc):
                return None
            raise

    def create(self, name: str, data: bytes) -> None:
        """Write a mark unless there is one: S3 decides."""
        self.client.put_bytes_if_absent(self.prefix + name, data)

    def replace(self, name: str, data: bytes) -> None:
        """Write a mark."""
        self.client.put_bytes(self.prefix + name, data)


def _first_line(data: bytes) -> bytes:
    return data.split(b"\n", 1)[0].strip(b"\0")  # a machine that failed in the middle may leave zeros


def _text_of(registry: str | None) -> str:
    return "a database that has no id yet: it is new" if registry is None else f"registry {registry}"
