"""What every store of model files can do. A store holds units:

    <root>/<model name>/<uid>/           MLmodel and friends, formats/<format>/...

A unit is written under its uid, sealed by a row of the database, and never changed after that. Nobody looks for a uid
that has no row, so what a dead writer left is invisible, and is removed later. Model names begin with a letter: names
with `_` in front are free for the store itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from noa.digests import FileDigest, FileProblem, Manifest
from noa.errors import IntegrityError
from noa_registry.faults import Checkpoint

if TYPE_CHECKING:
    from noa_registry.artifacts.ownership import Ownership

FORMATS_FOLDER = "formats"
RUNS_FOLDER = "_runs"
LOADED_MARK = "registered_model_meta"
"""Stock MLflow writes this file, a name and a number, into a local model's folder each time it loads it. Nothing reads
it to run or to load a model, so it is left out of the comparison."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitKey:
    """Names a unit."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What is verified and opened as a whole: one format of a unit (`formats/onnx`), or its wrapper (`""`).

    The wrapper is everything outside of `formats`: those that were sealed in this unit, parts of their own.
    Paths of the manifest are relative to `prefix`.
    """

    unit: UnitKey
    prefix: str
    manifest: Manifest
    formats: frozenset[str] = frozenset()

    def path_in_unit(self, path: str) -> str:
        """Return e.g. `formats/onnx/model.onnx` for `model.onnx`, and `formats/onnx` for `.`."""
        if path == ".":
            return self.prefix or path
        return f"{self.prefix}/{path}" if self.prefix else path

    def ignores(self, path: str) -> bool:
        """Tell whether a path below `prefix` is no part of this."""
        first, _, rest = path.partition("/")
        is_format = first == FORMATS_FOLDER and rest.split("/", 1)[0] in self.formats
        return not self.prefix and (path == LOADED_MARK or is_format)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFacts:
    """What the garbage collector asks about a unit.

    `size_bytes` is what removing it gives back; `is_claimed`: a writer has not finished with it.
    """

    size_bytes: int
    modified_at: datetime
    is_claimed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitLeftover:
    """What a writer that died left behind."""

    uid: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedUnit:
    """A local copy of a unit, which can be fetched again."""

    key: UnitKey
    used_at: datetime
    size_bytes: int


class Seals(Protocol):
    """What a store asks the database."""

    def registry_id(self) -> str | None:
        """Return the registry's id, None if it has none yet."""
        ...

    def make_registry_id(self) -> str:
        """Return the registry's id; it gets one if it has none yet."""
        ...

    def sealed_uids(self) -> set[str]:
        """Return all units that are part of a version."""
        ...

    def is_sealed(self, uid: str) -> bool:
        """Tell whether a unit is part of a version."""
        ...

    def unless_sealed(self, uid: str, action: Callable[[], None]) -> bool:
        """Do `action` while nobody can seal the unit; tell whether it was done, which it is not for a sealed one."""
        ...


class StagedUnit(Protocol):
    """A unit that is being written."""

    @property
    def uid(self) -> str:
        """The unit's name for good."""
        ...

    @property
    def uri(self) -> str:
        """Where MLflow's clients will find it."""
        ...

    def add_folder(self, source: Path, prefix: str) -> Manifest:
        """Store all files of a folder below `prefix`; the digests are those of the bytes that were stored.

        Raises:
            InvalidInputError: there is a link or special file: its content could change or come from elsewhere.
            StorageError: the store refused.
        """
        ...

    def add_link(self, existing: FileDigest, prefix: str, name: str) -> FileDigest:
        """Store a second time, as `name`, what `add_folder` stored as `existing` below `prefix`."""
        ...

    def publish(self) -> None:
        """Make everything durable, and check that it arrived."""
        ...

    def confirm(self) -> None:
        """Check, inside the transaction that seals the unit, that it is still there.

        Raises:
            StorageError: this writer was taken for dead and its unit removed; nothing is left, and a retry works.
        """
        ...


class ArtifactStore(Protocol):
    """Keeps units. `root` is the local folder below which `open_part` gives them."""

    @property
    def root(self) -> Path:
        """The local folder; a part is at `<root>/<name>/<uid>/<prefix>` after `open_part`."""
        ...

    @property
    def ownership(self) -> Ownership:
        """Whose store it is. What writes or removes claims it first, and is refused if it is another registry's."""
        ...

    @property
    def runs_uri(self) -> str:
        """Where MLflow's runs put their artifacts."""
        ...

    def unit_uri(self, key: UnitKey) -> str:
        """Return MLflow's source of a unit."""
        ...

    def stage(self, name: str, *, checkpoint: Checkpoint) -> AbstractContextManager[StagedUnit]:
        """Give a unit to write. What was not sealed when the block ends is removed.

        Raises:
            ConflictError: the store belongs to another registry.
            StorageError: the store refused; nothing is left.
        """
        ...

    def open_part(self, part: Part) -> Path:
        """Return a local folder with the verified files of a part. A file is hashed once per machine.

        Raises:
            IntegrityError: names every file that is not what was sealed.
            StorageError: the store does not answer, or the disk refused.
        """
        ...

    def open_file(self, unit: UnitKey, file: FileDigest) -> Path:
        """Return one verified file of a unit, whose path in the unit `file` names.

        Raises:
            IntegrityError: it is not what was sealed.
            StorageError: the store does not answer, or the disk refused.
        """
        ...

    def find_problems(self, *parts: Part) -> list[FileProblem]:
        """Hash parts anew where they are kept, and return every file that differs, is missing, is extra or unreadable.

        Paths are relative to the unit.

        Raises:
            StorageError: the store does not answer.
        """
        ...

    def find_equal(self, file: FileDigest) -> Path | None:
        """Return a whole local copy of a file, by its digest alone; None if the store keeps none beside its units."""
        ...

    def put_back(self, key: UnitKey, file: FileDigest, source: Path) -> None:
        """Replace a damaged or missing file of a sealed unit by `source`, whose bytes are hashed while they are copied.

        Raises:
            IntegrityError: `source` is not `file`; nothing was changed.
            StorageError: the store refused.
        """
        ...

    def set_aside(self, key: UnitKey, path: str) -> str:
        """Move a file that somebody added out of a sealed unit, and return where it is now. Nothing is deleted.

        Raises:
            StorageError: the store refused.
        """
        ...

    def remove_unit(self, key: UnitKey) -> None:
        """Remove a unit's files. What it shared with others stays theirs; a unit that is gone is no error.

        Raises:
            ConflictError: the store belongs to another registry.
            StorageError: the store refused.
        """
        ...

    def units(self) -> Iterator[UnitKey]:
        """Give all units, sealed or not, that are in place."""
        ...

    def unit_facts(self, key: UnitKey) -> UnitFacts | None:
        """Return how large and how old a unit is, None if there is none."""
        ...

    def leftovers(self) -> Iterator[UnitLeftover]:
        """Give what dead writers left."""
        ...

    def remove_leftover(self, uid: str) -> bool:
        """Remove what a dead writer left, unless it is alive after all; tell whether nothing of it is left."""
        ...

    def cached(self) -> Iterator[CachedUnit]:
        """Give the local copies; none where files are read where they are kept."""
        ...

    def remove_cached(self, key: UnitKey) -> bool:
        """Remove the local copy of a unit unless somebody uses it; tell whether it is gone."""
        ...

    def remove_leftovers(self) -> int:
        """Remove what writers left that were killed, and return how many there were. Live writers are not touched.

        In a store of another registry nothing is removed.
        """
        ...

    def close(self) -> None:
        """Let go of files that are held open."""
        ...


def integrity_error(part: Part, problems: list[FileProblem], *, where: str) -> IntegrityError:
    """Return the error that names all `problems`, whose paths are relative to the unit."""
    return IntegrityError(
        "sealed files are not what was sealed: " + ", ".join(str(problem) for problem in problems),
        where=where,
        expected=part.manifest.digest,
        file=problems[0].path,
        files=tuple(problem.path for problem in problems),
    )


def require_same(found: FileDigest, file: FileDigest, *, where: str) -> None:
    """Raise `IntegrityError` if `found` has other bytes than `file`."""
    if (found.size_bytes, found.digest) != (file.size_bytes, file.digest):
        raise IntegrityError(
            f"this is not `{file.path}`", where=where, expected=file.digest, received=found.digest, file=file.path
        )


def in_unit(part: Part, problems: list[FileProblem]) -> list[FileProblem]:
    """Return problems with their paths relative to the unit."""
    return [replace(problem, path=part.path_in_unit(problem.path)) for problem in problems]
