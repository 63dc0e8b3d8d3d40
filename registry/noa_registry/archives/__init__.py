"""Archives: one version as one file, to carry it to another registry.

`Archives` is what `Registry.archives` gives. `container` is the form of the file, `contents` what is in it; `exporting`
and `importing` are the two ways.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from noa_registry.archives.container import Index
from noa_registry.archives.contents import ArchivedVersion
from noa_registry.archives.exporting import OnProgress, WrittenArchive, write_archive
from noa_registry.archives.importing import TakenArchive, inspect_archive, read_archive

if TYPE_CHECKING:
    from noa_registry.database import Database
    from noa_registry.registration import Registrar
    from noa_registry.sealed_files import SealedFiles
    from noa_registry.versions import ModelVersion

__all__ = ["ArchivedVersion", "Archives", "Index", "OnProgress", "TakenArchive", "WrittenArchive"]

SUFFIX = ".noa"


@dataclass(frozen=True, slots=True, kw_only=True)
class Archives:
    """Writes versions to archives and reads them back."""

    database: Database
    files: SealedFiles
    registrar: Registrar

    def write(
        self, name: str, number: int, path: Path, *, force: bool = False, on_progress: OnProgress | None = None
    ) -> WrittenArchive:
        """Write a version with all its formats, evidence, signatures and its part of the ledger to one file.

        The same record gives the same bytes. Memory stays bounded whatever the size; `on_progress` gets bytes done and
        bytes in all.

        Raises:
            NotFoundError: no such version, or the folder of `path` is not there.
            ConflictError: `path` is there already and `force` is not given.
            IntegrityError: a file is not what was sealed; nothing is left at `path`.
            StorageError: the disk refused; nothing is left at `path`.
        """
        return write_archive(
            self.database, self.files, name, number, path, force=force, on_progress=on_progress or _say_nothing
        )

    def read(
        self,
        path: Path,
        *,
        actor: str,
        allow_pickle: Collection[str] = (),
        exist_ok: bool = False,
        on_progress: OnProgress | None = None,
    ) -> ModelVersion:
        """Register the version in an archive under the next free number; its digests are those it had.

        Where it is from is kept as the tag `noa.origin` and as evidence of kind `origin`; what its aliases did there as
        evidence of kind `history`. Its evidence counts as if it had been attached here, so import from whom you trust,
        or require signatures. `allow_pickle` names models whose files may hold code; `exist_ok`: return the version
        that is there, after its files were checked and damaged ones put back from the archive.

        Raises:
            InvalidInputError: this is no archive, one of a newer noa, or one with a pickle that is not allowed.
            IntegrityError: it is damaged, cut off, contradicts itself or holds more than its record names.
            ConflictError: this version is here already; `facts["reference"]` names it.
            StorageError: the disk or database refused; nothing is left, and a retry works.
        """
        return self.take(
            path, actor=actor, allow_pickle=allow_pickle, exist_ok=exist_ok, on_progress=on_progress
        ).version

    def take(
        self,
        path: Path,
        *,
        actor: str,
        allow_pickle: Collection[str] = (),
        exist_ok: bool = False,
        on_progress: OnProgress | None = None,
    ) -> TakenArchive:
        """Do as `read` does, and tell whether the version is new and which of its files were put back.

        Raises:
            NoaError: as `read`.
            IntegrityError: also where files of the version that is here are damaged and the archive lacks their bytes.
        """
        return read_archive(
            self.registrar,
            path,
            actor=actor,
            allow_pickle=allow_pickle,
            exist_ok=exist_ok,
            on_progress=on_progress or _say_nothing,
        )

    def inspect(self, path: Path) -> tuple[Index, ArchivedVersion]:
        """Return what is in an archive after checking all its bytes; registers nothing.

        Raises:
            InvalidInputError, IntegrityError: as `read`.
        """
        return inspect_archive(path)


def _say_nothing(_done: int, _total: int) -> None:
    """Take a progress."""
