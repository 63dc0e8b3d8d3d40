"""The local copies of model files that are kept elsewhere, shared by all processes of a machine.

    <cache_dir>/units/<model name>/<uid>/<path>     whole, verified, read-only files
    <cache_dir>/blobs/<2 hex>/<64 hex>              the same files by digest: equal bytes are fetched and kept once
    <cache_dir>/partial/<random>                    what is being fetched; locked (flock) by who fetches it
    <cache_dir>/locks/<uid>.lock                    shared by who uses a unit, taken alone by who removes it
    <cache_dir>/locks/<uid>.fetch                   taken by who fetches, so that others wait and do not fetch too

A file gets its name when its bytes are right. A process keeps the units that it opened last locked, so they stay while
it loads from them; the kernel drops the lock when it dies. When the whole is larger than `max_bytes`, the units that
were not opened for the longest time go, but for those in use.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, TypeAlias

from noa.atomic_write import translate_disk_errors
from noa.digests import FileDigest, FileProblem, compare_folder
from noa.errors import IntegrityError, StorageError
from noa.references import check_name
from noa_registry.artifacts.blobs import BlobFolder, freed_bytes
from noa_registry.artifacts.copying import READ_ONLY, is_copy_of, make_folder
from noa_registry.artifacts.local_artifacts import is_same_file
from noa_registry.artifacts.store import CachedUnit, Part, UnitKey, integrity_error
from noa_registry.artifacts.verified_files import VerifiedFiles

Download: TypeAlias = Callable[[str, FileDigest, BinaryIO], None]
"""Writes the object at a path of the unit into a file, and raises `IntegrityError` if it is not that file."""

_HELD_UNITS = 64


class UnitCache:
    """Local copies below `folder`. Close it to let go of the units that this process uses."""

    def __init__(self, folder: Path, *, max_bytes: int, verified: VerifiedFiles) -> None:
        self.root = folder / "units"
        self._partial = folder / "partial"
        self._locks = folder / "locks"
        self._blobs = BlobFolder(folder / "blobs")
        self._max_bytes = max_bytes
        self._verified = verified
        self._held: OrderedDict[str, int] = OrderedDict()
        self._turn = threading.Lock()

    def open_part(self, part: Part, download: Download) -> Path:
        """Return the folder of a part whose files are all here and verified, fetching those that are not.

        Raises:
            IntegrityError: names every file that the store has lost or changed.
            StorageError: the store does not answer, or the disk refused; what was fetched whole stays.
        """
        folder = self._folder(part.unit) / part.prefix
        self._use(part.unit)
        if not self._compare(part, folder):
            return folder
        with self._fetching(part.unit):
            found = self._compare(part, folder)
            problems = {problem.path for problem in found}
            missing = [file for file in part.manifest.files if file.path in problems]
            extra = problems - {file.path for file in missing}
            _refuse_closed(folder, [problem for problem in found if problem.path in extra])
            self._remove_extra(folder, extra)
            self._make_room(sum(file.size_bytes for file in missing))
            self._fetch(part, folder, missing, download)
        return folder

    def open_file(self, unit: UnitKey, file: FileDigest, download: Download) -> Path:
        """Return one verified file of a unit, whose path in the unit `file` names."""
        path = self._folder(unit) / file.path
        self._use(unit)
        if not self._verified.has_digest(path, file):
            with self._fetching(unit):
                if not self._verified.has_digest(path, file):
                    self._make_room(file.size_bytes)
                    self._fetch_file(file.path, path, file, download)
        return path

    def find_equal(self, file: FileDigest) -> Path | None:
        """Return a whole copy of a file by its digest alone, if there is one."""
        blob = self._blobs.path(file.digest)
        return blob if is_copy_of(blob, file) else None

    def cached(self) -> Iterator[CachedUnit]:
        """Give every unit that has files here."""
        blobs = self._blobs.identities()
        for folder in sorted(self.root.glob("*/*")):
            yield CachedUnit(
                key=UnitKey(name=folder.parent.name, uid=folder.name),
                used_at=datetime.fromtimestamp(self._used_at(folder.name), UTC),
                size_bytes=freed_bytes(folder, blobs),
            )

    def remove(self, key: UnitKey) -> bool:
        """Remove a unit's copies unless somebody uses them; tell whether they are gone."""
        folder = self._folder(key)
        lock = self._locks / f"{key.uid}.lock"
        make_folder(self._locks)
        with translate_disk_errors(lock):
            handle = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if folder.is_symlink():
                    folder.unlink()  # never what it leads to
                elif folder.exists():
                    shutil.rmtree(folder)
                for blob in self._blobs.all():
                    self._blobs.drop_unused(blob.name)
                lock.unlink(missing_ok=True)
                (self._locks / f"{key.uid}.fetch").unlink(missing_ok=True)
            except BlockingIOError:
                return False
            finally:
                os.close(handle)
        with suppress(OSError):
            folder.parent.rmdir()
        return True

    def close(self) -> None:
        """Let go of all units that this process uses."""
        with self._turn:
            while self._held:
                os.close(self._held.popitem()[1])

    def _folder(self, unit: UnitKey) -> Path:
        return self.root / check_name(unit.name) / unit.uid

    def _compare(self, part: Part, folder: Path) -> list[FileProblem]:
        return compare_folder(folder, part.manifest, has_digest=self._verified.has_digest, ignore=part.ignores)

    def _remove_extra(self, folder: Path, paths: set[str]) -> None:
        """Remove what somebody put among the copies: it was never sealed, and a loader might read it."""
        with translate_disk_errors(folder):
            for path in paths:
                (folder / path).unlink(missing_ok=True)

    def _fetch(self, part: Part, folder: Path, files: list[FileDigest], download: Download) -> None:
        problems: list[FileProblem] = []
        fetched: dict[Path, FileDigest] = {}
        for file in files:
            inner = part.path_in_unit(file.path)
            try:
                if self._fetch_file(inner, folder / file.path, file, download):
                    fetched[folder / file.path] = file
            except IntegrityError as exc:
                change = "missing" if exc.facts.get("change") == "missing" else "changed"
                problems.append(FileProblem(path=inner, change=change))
        self._verified.remember(fetched)
        if problems:
            raise integrity_error(part, problems, where=f"{part.unit.name}/{part.unit.uid}")

    def _fetch_file(self, inner: str, path: Path, file: FileDigest, download: Download) -> bool:
        """Put a file in its place; tell whether it is new. One that was here must be hashed to be remembered."""
        make_folder(path.parent)
        with translate_disk_errors(path):
            path.unlink(missing_ok=True)  # what is there is not what was sealed
            if self._blobs.link_to(path, file):
                return False
        with self._new_partial() as (partial, sink):
            download(inner, file, sink)
            with translate_disk_errors(path):
                sink.flush()
                os.fchmod(sink.fileno(), READ_ONLY)
                os.fsync(sink.fileno())  # before it is remembered as verified: a power cut must not leave zeros
                os.link(partial, path)
        self._blobs.add(path, file)
        return True

    @contextmanager
    def _new_partial(self) -> Generator[tuple[Path, BinaryIO], None, None]:
        make_folder(self._partial)
        self._remove_dead_partials()
        path = self._partial / secrets.token_hex(12)
        with translate_disk_errors(path):
            sink = path.open("xb")
        try:
            with sink:
                fcntl.flock(sink, fcntl.LOCK_EX)
                yield path, sink
        finally:
            path.unlink(missing_ok=True)

    def _remove_dead_partials(self) -> None:
        for path in self._partial.iterdir():
            with suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()

    @contextmanager
    def _fetching(self, unit: UnitKey) -> Generator[None, None, None]:
        """Wait until nobody else fetches this unit."""
        path = self._locks / f"{unit.uid}.fetch"
        with translate_disk_errors(path), path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _use(self, unit: UnitKey) -> None:
        """Keep a unit from being removed by other processes, and note when it was used."""
        make_folder(self._locks)
        path = self._locks / f"{unit.uid}.lock"
        with self._turn, translate_disk_errors(path):
            if unit.uid not in self._held or not is_same_file(self._held[unit.uid], path):
                self._drop_handle(unit.uid)
                self._held[unit.uid] = _lock_shared(path)
            self._held.move_to_end(unit.uid)
            while len(self._held) > _HELD_UNITS:
                os.close(self._held.popitem(last=False)[1])
            with suppress(FileNotFoundError):
                os.utime(path)

    def _drop_handle(self, uid: str) -> None:
        if uid in self._held:
            os.close(self._held.pop(uid))

    def _make_room(self, needed: int) -> None:
        """Remove the longest unused units until `needed` bytes fit; those in use stay, also if it then does not fit."""
        if needed > self._max_bytes:
            raise StorageError(
                "a model is larger than the local cache may be",
                where=str(self.root.parent),
                expected=f"at most {self._max_bytes} bytes",
                received=f"{needed} bytes",
                remedy="Raise `registry.cache_max_bytes`",
            )
        total = self._total_bytes()
        for unit in sorted(self.cached(), key=lambda unit: unit.used_at):
            if total + needed <= self._max_bytes:
                return
            if self.remove(unit.key):
                total -= unit.size_bytes

    def _total_bytes(self) -> int:
        """Return the size of everything here; a file with several names is counted once."""
        sizes: dict[tuple[int, int], int] = {}
        for path in [*self._blobs.all(), *self.root.rglob("*")]:
            with suppress(FileNotFoundError):
                found = path.lstat()
                if stat.S_ISREG(found.st_mode):
                    sizes[found.st_dev, found.st_ino] = found.st_size
        return sum(sizes.values())

    def _used_at(self, uid: str) -> float:
        try:
            return (self._locks / f"{uid}.lock").stat().st_mtime
        except FileNotFoundError:
            return 0.0


def _refuse_closed(folder: Path, extra: list[FileProblem]) -> None:
    """Raise if a folder among the copies cannot be read: nothing can be fetched into it."""
    for problem in extra:
        if problem.change == "unreadable":
            raise StorageError(
                f"the local copies of model files cannot be read: {problem.why}",
                where=str(folder / problem.path),
                remedy="Give this user the permission to read them, or remove the folder: they are fetched again",
            )


def _lock_shared(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        fcntl.flock(handle, fcntl.LOCK_SH)
        if is_same_file(handle, path):  # else it was removed before we had it
            return handle
        os.close(handle)
