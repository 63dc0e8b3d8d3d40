"""Repair of files: what differs from what was sealed is put back, where the same bytes still exist somewhere.

A file is known by its digest, so it may come from anywhere: another version or format that holds it, a second name of
it, the store's own copy, the local cache, or an archive of the version. Every byte is hashed on its way. A file that
somebody added is moved aside, not deleted. What exists nowhere any more is said so; its version stays as it is, which
no gate lets through and nobody loads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from sqlalchemy import Connection, select

from noa.digests import FileDigest, FileProblem, Manifest
from noa.errors import IntegrityError, NoaError
from noa_registry.artifacts import FORMATS_FOLDER, ArtifactStore, Part, UnitKey
from noa_registry.database import Database
from noa_registry.events.outbox import append_event
from noa_registry.outside import CODE_FORMATS
from noa_registry.sealed_files import parts_of
from noa_registry.tables import formats, trash, versions
from noa_registry.versions import ModelVersion

_MAX_DONORS = 20

Spare: TypeAlias = Callable[[str], Path | None]
"""Gives a file by its digest from outside the registry, None if it is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRepair:
    """What was done about one file. `is_repaired` is False where nothing could be done; `how` says why or by what."""

    reference: str
    path: str
    change: str
    is_repaired: bool
    how: str

    @property
    def verb(self) -> str:
        """The word before `change`."""
        return "is" if self.change in ("missing", "unreadable") else "was"

    def __str__(self) -> str:
        return f"{self.reference}: `{self.path}` {self.verb} {self.change}; it {self.how}"


def repair_files(
    database: Database, store: ArtifactStore, version: ModelVersion, *, spare: Spare | None = None
) -> list[FileRepair]:
    """Put back what differs in a version, and return what was done about each file; `spare` is asked last."""
    database.require_writable()
    done = [
        _repair(database, store, version, part, problem, spare or _nothing)
        for part in parts_of(version)
        for problem in _look(store, part)
    ]
    repaired = [repair for repair in done if repair.is_repaired]
    if repaired:
        payload = {"number": version.number, "files": [{"path": one.path, "how": one.how} for one in repaired]}
        with database.write() as connection:
            append_event(connection, "files.repaired", name=version.name, payload=payload)
    return done


def _look(store: ArtifactStore, part: Part) -> list[FileProblem]:
    try:
        return store.find_problems(part)
    except IntegrityError:  # the whole folder is gone
        return [FileProblem(path=part.path_in_unit(file.path), change="missing") for file in part.manifest.files]


def _repair(
    database: Database,
    store: ArtifactStore,
    version: ModelVersion,
    part: Part,
    problem: FileProblem,
    spare: Spare,
) -> FileRepair:
    try:
        if problem.change == "added":
            where = store.set_aside(part.unit, problem.path)
            return _told(version, problem, True, f"does not belong here and was moved to {where}")
        by_path = {part.path_in_unit(file.path): file for file in part.manifest.files}
        if problem.path not in by_path:
            return _told(version, problem, False, f"could not be looked at: {problem.why}")
        sealed = by_path[problem.path]
        wanted = FileDigest(path=problem.path, size_bytes=sealed.size_bytes, digest=sealed.digest)
        donor = _put_back(database, store, part.unit, wanted, spare)
    except (NoaError, OSError) as exc:
        return _told(version, problem, False, f"could not be repaired: {exc}")
    if donor is None:
        how = (
            f"its bytes ({wanted.digest}) exist nowhere else here. If the version was exported, put them back from "
            f"the archive: noa models import FILE.noa --exist-ok{_permission(version)}"
        )
        return _told(version, problem, False, how)
    return _told(version, problem, True, f"was put back from {donor}")


def _permission(version: ModelVersion) -> str:
    return f" --allow-pickle {version.name}" if CODE_FORMATS.intersection(version.formats) else ""


def _nothing(_digest: str) -> Path | None:
    return None


def _told(version: ModelVersion, problem: FileProblem, is_repaired: bool, how: str) -> FileRepair:
    return FileRepair(
        reference=version.reference, path=problem.path, change=problem.change, is_repaired=is_repaired, how=how
    )


def _put_back(database: Database, store: ArtifactStore, unit: UnitKey, wanted: FileDigest, spare: Spare) -> str | None:
    copy = store.find_equal(wanted)
    if copy is not None:
        store.put_back(unit, wanted, copy)
        return "the store's own copy"
    with database.read() as connection:
        donors = [(unit, wanted), *_donors(connection, wanted)]
    for donor, file in donors:
        try:
            store.put_back(unit, wanted, store.open_file(donor, file))
        except (NoaError, OSError):  # damaged as well, or purged meanwhile
            continue
        return (
            "the local cache" if donor == unit and file.path == wanted.path else f"{donor.name}/{donor.uid}/{file.path}"
        )
    source = spare(wanted.digest)
    if source is None:
        return None
    store.put_back(unit, wanted, source)
    return "the archive"


def _donors(connection: Connection, wanted: FileDigest) -> list[tuple[UnitKey, FileDigest]]:
    """Return other places where the records name the same bytes."""
    found: list[tuple[UnitKey, FileDigest]] = []
    in_formats = select(formats.c.name, formats.c.number, formats.c.uid, formats.c.format, formats.c.manifest)
    for row in connection.execute(in_formats.where(formats.c.manifest.contains(wanted.digest)).limit(_MAX_DONORS)):
        found += _places(row.name, row.uid, row.manifest, wanted, prefix=f"{FORMATS_FOLDER}/{row.format}/")
    purged = select(trash.c.number).where(
        trash.c.name == versions.c.name, trash.c.number == versions.c.number, trash.c.state == "purged"
    )
    in_wrappers = select(versions.c.name, versions.c.uid, versions.c.wrapper).where(~purged.exists())
    for row in connection.execute(in_wrappers.where(versions.c.wrapper.contains(wanted.digest)).limit(_MAX_DONORS)):
        found += _places(row.name, row.uid, row.wrapper, wanted, prefix="")
    return found


def _places(
    name: str, uid: str, manifest: str, wanted: FileDigest, *, prefix: str
) -> Iterator[tuple[UnitKey, FileDigest]]:
    try:
        files = Manifest.from_json(manifest).files
    except IntegrityError:  # of another version, which somebody changed
        return
    for file in files:
        if file.digest == wanted.digest:
            place = FileDigest(path=f"{prefix}{file.path}", size_bytes=file.size_bytes, digest=file.digest)
            yield UnitKey(name=name, uid=uid), place
