"""Model files in a local folder: staged under a temporary name, renamed into place whole.

    <artifact_dir>/<model name>/<uid>/           one unit: MLmodel and friends, formats/<format>/...
    <artifact_dir>/_staging/<uid>/               a unit that is being written
    <artifact_dir>/_staging/<uid>.lock           held (flock) by the process that writes it, until its transaction ended
    <artifact_dir>/_blobs/<2 hex>/<64 hex>       one more name of each file, by its digest: equal bytes are stored once
    <artifact_dir>/_registry.json                whose store it is (`ownership.py`)
    <artifact_dir>/_blobs/units/<2 hex>/<uid>    the digests of a unit's shared files, to let them go with the last user

The kernel drops the lock when its process dies, however it dies. So a lock that can be taken belongs to a dead writer,
and what it left is removed unless the database says that the unit was sealed.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from noa.atomic_write import publish_folder, sync_folder, translate_disk_errors
from noa.digests import FileDigest, FileProblem, Manifest, compare_folder, reason_of
from noa.errors import IntegrityError, InvalidInputError, NoaError
from noa.references import check_name
from noa_registry.artifacts.blobs import SHARED_FROM_BYTES, BlobFolder, file_identity, freed_bytes
from noa_registry.artifacts.copying import copy_and_hash, is_copy_of, link_or_copy, make_folder, regular_files
from noa_registry.artifacts.marks import FolderMarks
from noa_registry.artifacts.ownership import Ownership
from noa_registry.artifacts.store import (
    RUNS_FOLDER,
    CachedUnit,
    Part,
    Seals,
    UnitFacts,
    UnitKey,
    UnitLeftover,
    in_unit,
    integrity_error,
    require_same,
)
from noa_registry.artifacts.verified_files import VerifiedFiles
from noa_registry.faults import Checkpoint, no_checkpoint

_STAGING = "_staging"
_LOCK = ".lock"
_BLOBS = "_blobs"
_SET_ASIDE = "_set_aside"
_UNITS = "units"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalStagedUnit:
    """A unit in `folder`, to be renamed to `final`."""

    uid: str
    folder: Path
    final: Path
    blobs: BlobFolder
    digests_file: Path

    @property
    def uri(self) -> str:
        """Where MLflow's clients will find it."""
        return self.final.as_uri()

    def add_folder(self, source: Path, prefix: str) -> Manifest:
        """Copy all files of a folder below `prefix`, hashing what is written. See `StagedUnit`."""
        files: list[FileDigest] = []
        for path in regular_files(source):
            relative = path.relative_to(source)
            target = self.folder / prefix / relative
            file = copy_and_hash(path, target, name=relative.as_posix())
            if file.size_bytes >= SHARED_FROM_BYTES:
                self._remember(file.digest)
                with translate_disk_errors(target):
                    self.blobs.share(target, file)
            files.append(file)
        return Manifest.of(files)

    def add_link(self, existing: FileDigest, prefix: str, name: str) -> FileDigest:
        """Give a stored file a second name in the unit. See `StagedUnit`."""
        with translate_disk_errors(self.folder):
            link_or_copy(self.folder / prefix / existing.path, self.folder / name)
        return FileDigest(path=name, size_bytes=existing.size_bytes, digest=existing.digest)

    def publish(self) -> None:
        """Make the files durable and rename the unit into place."""
        publish_folder(self.folder, self.final)

    def confirm(self) -> None:
        """Do nothing: the kernel holds this writer's lock as long as it lives."""

    def _remember(self, digest: str) -> None:
        # Before the blob exists: a writer that is killed leaves no blob that nobody knows of.
        with translate_disk_errors(self.digests_file):
            self.digests_file.parent.mkdir(parents=True, exist_ok=True)
            with self.digests_file.open("a") as file:
                file.write(f"{digest}\n")


class LocalArtifacts:
    """The folder of all units below `root`."""

    def __init__(self, root: Path, *, seals: Seals, verified: VerifiedFiles) -> None:
        self._root = root
        self._staging = root / _STAGING
        self._blobs = BlobFolder(root / _BLOBS)
        self._seals = seals
        self._verified = verified
        self._ownership = Ownership(FolderMarks(root), seals, self.units)

    @property
    def root(self) -> Path:
        """The folder of all units."""
        return self._root

    @property
    def ownership(self) -> Ownership:
        """Whose store it is."""
        return self._ownership

    @property
    def runs_uri(self) -> str:
        """Where MLflow's runs put their artifacts."""
        return (self._root / RUNS_FOLDER).as_uri()

    def unit_uri(self, key: UnitKey) -> str:
        """Return MLflow's source of a unit."""
        return self._folder(key).as_uri()

    @contextmanager
    def stage(self, name: str, *, checkpoint: Checkpoint) -> Generator[LocalStagedUnit, None, None]:
        """Give a folder to write one unit into. What was not sealed when the block ends is removed.

        Raises:
            ConflictError: the store belongs to another registry.
            StorageError: the disk refused; nothing is left.
        """
        self._ownership.claim()
        self._refuse_links(self._root / check_name(name))
        self._refuse_links(self._staging)
        make_folder(self._staging)
        with translate_disk_errors(self._staging):
            uid, handle, lock = self._claim(name)
        unit = self._unit(uid, self._folder(UnitKey(name=name, uid=uid)))
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

    def open_part(self, part: Part) -> Path:
        """Return a part's folder after verifying it; a file is hashed once per machine. See `ArtifactStore`."""
        problems = self._compare(part, self._verified)
        if problems:
            raise integrity_error(part, problems, where=str(self._folder(part.unit)))
        return self._folder(part.unit) / part.prefix

    def open_file(self, unit: UnitKey, file: FileDigest) -> Path:
        """Return one verified file. See `ArtifactStore`."""
        path = self._folder(unit) / file.path
        self._refuse_links(path.parent)
        if not self._verified.has_digest(path, file):
            change = "was changed" if path.is_file() else "is missing"
            raise IntegrityError(
                f"sealed files are not what was sealed: `{file.path}` {change}",
                where=str(self._folder(unit)),
                expected=file.digest,
                file=file.path,
            )
        return path

    def find_problems(self, *parts: Part) -> list[FileProblem]:
        """Hash parts anew. See `ArtifactStore`."""
        return [problem for part in parts for problem in self._compare(part, None)]

    def find_equal(self, file: FileDigest) -> Path | None:
        """Return the blob of a file, if it is whole. See `ArtifactStore`."""
        blob = self._blobs.path(file.digest)
        return blob if is_copy_of(blob, file) else None

    def put_back(self, key: UnitKey, file: FileDigest, source: Path) -> None:
        """Replace a damaged or missing file. See `ArtifactStore`."""
        target = self._folder(key) / file.path
        self._refuse_links(target.parent)
        # Staged as a new unit is, so that what a killed process leaves is found and removed.
        with self.stage(key.name, checkpoint=no_checkpoint) as staged:
            temporary = staged.folder / "file"
            copied = copy_and_hash(source, temporary, name=file.path)
            require_same(copied, file, where=str(source))
            with translate_disk_errors(target):
                with temporary.open("rb") as file_on_disk:
                    os.fsync(file_on_disk.fileno())
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary.replace(target)
                sync_folder(target.parent)

    def set_aside(self, key: UnitKey, path: str) -> str:
        """Move an added file to the folder `_set_aside`. See `ArtifactStore`."""
        unit = self._folder(key)
        source = unit / path
        self._refuse_links(source.parent)
        target = self._root / _SET_ASIDE / secrets.token_hex(4) / key.uid / path
        with translate_disk_errors(source):
            target.parent.mkdir(parents=True)
            source.replace(target)
        emptied = source.parent
        with suppress(OSError):  # something is left in it
            while emptied != unit:
                emptied.rmdir()
                emptied = emptied.parent
        return str(target)

    def remove_unit(self, key: UnitKey) -> None:
        """Remove a unit's files, or what is left of them; what it shared with others stays theirs.

        Raises:
            ConflictError: the store belongs to another registry.
            StorageError: the disk refused.
            IntegrityError: the model's folder is a link to elsewhere.
        """
        self._ownership.claim()
        self._refuse_links(self._folder(key).parent)
        with translate_disk_errors(self._folder(key)):
            _remove_tree(self._folder(key))
            self._drop_blobs(self._digests_file(key.uid))
        with suppress(OSError):  # other versions of the model are there, or come just now
            self._folder(key).parent.rmdir()

    def units(self) -> Iterator[UnitKey]:
        """Give all units that are in place."""
        for model in _folders_in(self._root):
            if not model.name.startswith(("_", ".")):
                for folder in _folders_in(model):
                    yield UnitKey(name=model.name, uid=folder.name)

    def unit_facts(self, key: UnitKey) -> UnitFacts | None:
        """Return how large and how old a unit is, None if there is none."""
        folder = self._folder(key)
        try:
            modified_at = datetime.fromtimestamp(folder.lstat().st_mtime, UTC)
        except FileNotFoundError:
            return None
        is_elsewhere = folder.is_symlink() or folder.parent.is_symlink()
        return UnitFacts(
            size_bytes=0 if is_elsewhere else freed_bytes(folder, self._blobs_of(key.uid)),
            modified_at=modified_at,
            is_claimed=self._lock(key.uid).exists(),
        )

    def leftovers(self) -> Iterator[UnitLeftover]:
        """Give what dead writers left: a lock that can be taken, or a folder with no lock beside it."""
        if self._staging.is_symlink() or not self._staging.is_dir():
            return
        for path in sorted(self._staging.iterdir()):
            uid = path.name.removesuffix(_LOCK)
            # A writer takes its lock before it makes its folder, so a folder alone is of nobody.
            if _can_be_locked(path) if path.name.endswith(_LOCK) else not self._lock(uid).exists():
                yield UnitLeftover(uid=uid, size_bytes=freed_bytes(self._staging / uid, self._blobs_of(uid)))

    def remove_leftover(self, uid: str) -> bool:
        """Remove what a dead writer left, unless it is alive after all; tell whether nothing of it is left."""
        self._ownership.claim()
        lock, folder = self._lock(uid), self._staging / uid
        if lock.exists():
            with suppress(OSError):
                self._remove_leftover(lock)
            return not lock.exists()
        with translate_disk_errors(folder):
            _remove_tree(folder)
        return True

    def cached(self) -> Iterator[CachedUnit]:
        """Give nothing: the files are read where they are."""
        return iter(())

    def remove_cached(self, key: UnitKey) -> bool:
        """Remove nothing."""
        del key
        return False

    def remove_leftovers(self) -> int:
        """Remove what writers left that were killed, and return how many there were. Live writers are not touched."""
        removed = 0
        if self._staging.is_symlink() or not self._staging.is_dir():
            return removed
        locks = sorted(self._staging.glob(f"*{_LOCK}"))
        for lock in locks if locks and self._ownership.may_write() else ():
            with suppress(OSError):  # somebody else removes the same leftover, or the folder is read-only
                removed += self._remove_leftover(lock)
        return removed

    def close(self) -> None:
        """Do nothing: no file is held open."""

    def _folder(self, key: UnitKey) -> Path:
        return self._root / check_name(key.name) / key.uid

    def _unit(self, uid: str, final: Path) -> LocalStagedUnit:
        return LocalStagedUnit(
            uid=uid,
            folder=self._staging / uid,
            final=final,
            blobs=self._blobs,
            digests_file=self._digests_file(uid),
        )

    def _lock(self, uid: str) -> Path:
        return self._staging / f"{uid}{_LOCK}"

    def _digests_file(self, uid: str) -> Path:
        return self._root / _BLOBS / _UNITS / uid[:2] / uid

    def _compare(self, part: Part, verified: VerifiedFiles | None) -> list[FileProblem]:
        unit = self._folder(part.unit)
        folder = unit / part.prefix
        try:
            self._refuse_links(folder)
            is_there = folder.is_dir()
        except OSError as exc:  # of a folder above it
            return [FileProblem(path=part.prefix or ".", change="unreadable", why=reason_of(exc))]
        if not is_there:
            raise IntegrityError("a sealed folder is missing", where=str(folder), file=part.prefix or str(unit))
        check = None if verified is None else verified.has_digest
        return in_unit(part, compare_folder(folder, part.manifest, has_digest=check, ignore=part.ignores))

    def _refuse_links(self, path: Path) -> None:
        """Raise `IntegrityError` if a folder below the root, down to `path`, is a link: what is sealed lies here."""
        for folder in (path, *path.parents):
            if folder == self._root:
                return
            if folder.is_symlink():
                raise IntegrityError(
                    f"the folder `{folder.name}` of the store is a symbolic link: it was changed",
                    where=str(folder),
                    expected="a folder",
                    received=f"a link to {folder.readlink()}",
                    remedy="Remove the link and put the folder itself back",
                    file=str(folder),
                )

    def _claim(self, name: str) -> tuple[str, int, Path]:
        while True:
            uid = uuid.uuid4().hex
            lock = self._lock(uid)
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                os.write(handle, json.dumps({"name": name}).encode())
                if is_same_file(handle, lock):  # else it was taken for a leftover before we had it locked
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
            if not is_same_file(handle, lock):
                return 0
            uid = lock.stem
            self._discard(self._unit(uid, self._final_of(uid, lock)))
            lock.unlink(missing_ok=True)
            return 1
        finally:
            os.close(handle)

    def _final_of(self, uid: str, lock: Path) -> Path:
        try:
            return self._folder(UnitKey(name=str(json.loads(lock.read_text())["name"]), uid=uid))
        except (ValueError, KeyError, TypeError, InvalidInputError):
            # Killed before it wrote its name: then it published nothing either.
            return self._staging / uid

    def _discard(self, unit: LocalStagedUnit) -> None:
        _remove_tree(unit.folder)
        if self._seals.is_sealed(unit.uid):
            return
        _remove_tree(unit.final)
        self._drop_blobs(unit.digests_file)

    def _blobs_of(self, uid: str) -> set[tuple[int, int]]:
        """Return which files have a name among the blobs on behalf of this unit."""
        try:
            digests = self._digests_file(uid).read_text().split()
        except FileNotFoundError:
            return set()
        found = (file_identity(self._blobs.path(digest)) for digest in digests)
        return {identity for identity in found if identity is not None}

    def _drop_blobs(self, digests_file: Path) -> None:
        with suppress(FileNotFoundError):
            for digest in digests_file.read_text().split():
                self._blobs.drop_unused(digest)
            digests_file.unlink()


def is_same_file(handle: int, path: Path) -> bool:
    """Tell whether an open file is still the one at `path`."""
    try:
        ours, there = os.fstat(handle), path.stat()
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


def _folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, no links; none where it cannot be read: a version that is in it says so."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def _remove_tree(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()  # never what it leads to
    elif folder.exists():
        shutil.rmtree(folder)


def _can_be_locked(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
    except OSError:
        return False
