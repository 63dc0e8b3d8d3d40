"""Model files: staged under a temporary name, renamed into place whole, and removed again when nobody sealed them.

    <artifact_dir>/<model name>/<uid>/           one unit: MLmodel and friends, formats/<format>/...
    <artifact_dir>/_staging/<uid>/               a unit that is being written
    <artifact_dir>/_staging/<uid>.lock           held (flock) by the process that writes it, until its transaction ended

The kernel drops the lock when its process dies, however it dies. So a lock that can be taken belongs to a dead writer,
and what it left is removed unless the database says that the unit was sealed. Model names begin with a letter, so
`_staging` is never one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from noa.atomic_write import publish_folder, translate_disk_errors
from noa.errors import InvalidInputError, NoaError, StorageError
from noa.references import check_name
from noa_registry.faults import Checkpoint

FORMATS_FOLDER = "formats"
RUNS_FOLDER = "_runs"
_STAGING = "_staging"


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedUnit:
    """A unit that is being written: put files below `folder`, then `publish`."""

    uid: str
    folder: Path
    final: Path

    def publish(self) -> None:
        """Make the files read-only and durable, and rename the unit into place."""
        for path in self.folder.rglob("*"):
            if path.is_file():
                path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        publish_folder(self.folder, self.final)


class ArtifactStore:
    """The folder of all units. `is_sealed(uid)` asks the database whether a unit became part of a version."""

    def __init__(self, root: Path, *, is_sealed: Callable[[str], bool]) -> None:
        self.root = root
        self._staging = root / _STAGING
        self._is_sealed = is_sealed

    def unit_folder(self, name: str, uid: str) -> Path:
        """Return where a published unit is."""
        return self.root / check_name(name) / uid

    @contextmanager
    def stage(self, name: str, *, checkpoint: Checkpoint) -> Generator[StagedUnit, None, None]:
        """Give a folder to write one unit into. What was not sealed when the block ends is removed.

        Raises:
            StorageError: the disk refused; nothing is left.
        """
        make_folder(self._staging)
        with translate_disk_errors(self._staging):
            uid, handle, lock = self._claim(name)
        unit = StagedUnit(uid=uid, folder=self._staging / uid, final=self.unit_folder(name, uid))
        try:
            checkpoint("claimed")
            with translate_disk_errors(unit.folder):
                unit.folder.mkdir()
            yield unit
        finally:
            # Not only after an error of ours: a commit that failed late happened or did not; the database knows. What
            # cannot be removed now keeps its marker and is removed at a later start.
            with suppress(OSError, NoaError):
                self._discard(unit)
                lock.unlink()
            os.close(handle)

    def remove_leftovers(self) -> int:
        """Remove what writers left that were killed, and return how many there were. Live writers are not touched."""
        removed = 0
        if not self._staging.is_dir():
            return removed
        for lock in sorted(self._staging.glob("*.lock")):
            with suppress(OSError):  # somebody else removes the same leftover, or the folder is read-only
                removed += self._remove_leftover(lock)
        return removed

    def _claim(self, name: str) -> tuple[str, int, Path]:
        while True:
            uid = uuid.uuid4().hex
            lock = self._staging / f"{uid}.lock"
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                os.write(handle, json.dumps({"name": name}).encode())
                if _is_same_file(handle, lock):  # else it was taken for a leftover before we had it locked
                    return uid, handle, lock
            except BaseException:
                lock.unlink(missing_ok=True)
                os.close(handle)
                raise
            os.close(handle)

    def _remove_leftover(self, lock: Path) -> int:
        handle = os.open(lock, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_same_file(handle, lock):
                return 0
            uid = lock.stem
            unit = StagedUnit(uid=uid, folder=self._staging / uid, final=self._final_of(uid, lock))
            self._discard(unit)
            lock.unlink(missing_ok=True)
            return 1
        finally:
            os.close(handle)

    def _final_of(self, uid: str, lock: Path) -> Path:
        try:
            return self.unit_folder(str(json.loads(lock.read_text())["name"]), uid)
        except (ValueError, KeyError, TypeError, InvalidInputError):
            # Killed before it wrote its name: then it published nothing either.
            return self._staging / uid

    def _discard(self, unit: StagedUnit) -> None:
        _remove_tree(unit.folder)
        if unit.final.exists() and not self._is_sealed(unit.uid):
            _remove_tree(unit.final)


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


def copy_folder(source: Path, target: Path) -> None:
    """Copy all regular files; times and permissions are not part of what is sealed.

    Raises:
        InvalidInputError: there is a link or special file: its content could change or come from elsewhere.
        StorageError: the disk refused.
    """
    for path in regular_files(source):
        copy = target / path.relative_to(source)
        with _translate_copy_errors(copy):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


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


@contextmanager
def _translate_copy_errors(path: Path) -> Generator[None, None, None]:
    try:
        with translate_disk_errors(path):
            yield
    except OSError as exc:
        if exc.errno != errno.EFBIG:  # a limit on file sizes (ulimit -f)
            raise
        raise StorageError(
            f"cannot write `{path.name}`: it is larger than this process may write",
            where=str(path),
            remedy="Raise the limit (ulimit -f) and run the same command again; nothing was lost",
        ) from exc


def _remove_tree(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _is_same_file(handle: int, path: Path) -> bool:
    try:
        ours, there = os.fstat(handle), path.stat()
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)
