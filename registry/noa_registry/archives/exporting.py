"""Export: one version as one file, the same bytes whenever and wherever it is made.

Everything is read from one state of the database. Files are streamed from the store after they were verified, and
hashed once more on their way; the archive appears under its name when it is complete and on the disk, or not at all.
"""

from __future__ import annotations

import glob
import os
import shlex
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Connection, Row, select

from noa.abandoned_files import own, remove_if_abandoned
from noa.atomic_write import sync_folder, translate_disk_errors
from noa.digests import FileDigest, Manifest, sha256_file
from noa.errors import ConflictError, NotFoundError
from noa_registry.archives.container import Member, bytes_member, file_member, write_container
from noa_registry.archives.contents import ATTACHMENTS, FILES, ArchivedFormat, ArchivedVersion, to_members
from noa_registry.attachments import load_attachment
from noa_registry.database import Database
from noa_registry.evidence import attachment_digests
from noa_registry.identity import find_registry_id, registry_id
from noa_registry.json_columns import parse_time
from noa_registry.records import load_evidence, load_moves_of, load_version
from noa_registry.sealed_files import SealedFiles
from noa_registry.signing import load_signatures
from noa_registry.tables import attachments, formats
from noa_registry.versions import ModelVersion

OnProgress = Callable[[int, int], None]
"""Called with the bytes done and the bytes there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenArchive:
    """An archive on the disk. `content_digest` is that of its index, `file_digest` that of the whole file."""

    path: Path
    reference: str
    digest: str
    size_bytes: int
    members: int
    content_digest: str
    file_digest: str


def write_archive(
    database: Database,
    files: SealedFiles,
    name: str,
    number: int,
    path: Path,
    *,
    force: bool,
    on_progress: OnProgress,
) -> WrittenArchive:
    """Write one version as an archive. See `Archives.write`."""
    target = path.absolute()
    _check_target(target, force=force)
    origin = _registry_id(database)
    with database.snapshot() as connection:
        version = load_version(connection, files.artifacts.root, name, number)
        archived = _collect(connection, version, origin)
        sizes = _attachment_sizes(connection, archived)
    members = list(_members(database, files, version, archived, sizes))
    total, done = sum(member.file.size_bytes for member in members), 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        on_progress(min(done, total), total)

    head = {"name": archived.name, "number": archived.number, "digest": archived.digest, "registry": origin}
    with _appearing(target, force=force) as file:
        index = write_container(file, head, members, tell)
    return WrittenArchive(
        path=path,
        reference=version.reference,
        digest=version.digest,
        size_bytes=index.size_bytes,
        members=len(index.members) + 1,
        content_digest=index.digest,
        file_digest=sha256_file(target),
    )


def _registry_id(database: Database) -> str:
    with database.read() as connection:
        found = find_registry_id(connection)
    if found is not None:
        return found
    with database.write() as connection:
        return registry_id(connection)


def _sealed_at(row: Row[Any]) -> datetime:
    of = f"`{row.name}/{row.number}` in format `{row.format}`"
    return parse_time(row.created_at, of=of, column="noa_formats.created_at")


def _collect(connection: Connection, version: ModelVersion, origin: str) -> ArchivedVersion:
    facts = tuple(load_evidence(connection, version.name, version.number))
    rows = select(formats).where(formats.c.name == version.name, formats.c.number == version.number)
    sealed = {row.format: (_sealed_at(row), str(row.created_by)) for row in connection.execute(rows)}
    named = sorted({digest for fact in facts for digest in attachment_digests(fact)})
    types = select(attachments.c.digest, attachments.c.media_type).where(attachments.c.digest.in_(named))
    media = {str(row.digest): str(row.media_type) for row in connection.execute(types)}
    missing = [digest for digest in named if digest not in media]
    if missing:
        raise NotFoundError(f"an attachment of `{version.reference}` is not there any more", received=missing[0])
    return ArchivedVersion(
        registry_id=origin,
        name=version.name,
        number=version.number,
        digest=version.digest,
        native=version.native,
        formats={
            name: ArchivedFormat(manifest=part.manifest, created_at=sealed[name][0], created_by=sealed[name][1])
            for name, part in version.formats.items()
        },
        wrapper=version.wrapper,
        signature=version.signature,
        dataset_digest=version.dataset_digest,
        run_id=version.run_id,
        git_commit=version.git_commit,
        environment=version.environment,
        params=version.params,
        tags=version.tags,
        description=version.description,
        created_at=version.created_at,
        created_by=version.created_by,
        evidence=facts,
        attachments=media,
        ledger=tuple(load_moves_of(connection, version.name, version.number)),
        signatures=tuple(load_signatures(connection, version.name, version.number)),
    )


def _attachment_sizes(connection: Connection, archived: ArchivedVersion) -> dict[str, int]:
    return {digest: len(load_attachment(connection, digest).content) for digest in archived.attachments}


def _members(
    database: Database, files: SealedFiles, version: ModelVersion, archived: ArchivedVersion, sizes: dict[str, int]
) -> Iterator[Member]:
    for path, content in to_members(archived).items():
        yield bytes_member(path, content)
    for digest, size in sizes.items():
        file = FileDigest(path=_named(ATTACHMENTS, digest), size_bytes=size, digest=digest)
        yield Member(file=file, open=lambda digest=digest: _open_attachment(database, digest))
    known: set[str] = set()
    for folder, manifest in _folders(files, version):
        for file in manifest.files:
            if file.digest not in known:
                known.add(file.digest)
                yield file_member(_named(FILES, file.digest), file, folder / file.path)


def _folders(files: SealedFiles, version: ModelVersion) -> Iterator[tuple[Path, Manifest]]:
    for name, sealed in version.formats.items():
        yield files.open_format(version, name), sealed.manifest
    yield files.open_wrapper(version), version.wrapper


def _open_attachment(database: Database, digest: str) -> IO[bytes]:
    with database.read() as connection:
        return BytesIO(load_attachment(connection, digest).content)


def _named(prefix: str, digest: str) -> str:
    return prefix + digest.removeprefix("sha256:")


def _check_target(target: Path, *, force: bool) -> None:
    if target.is_dir():
        raise ConflictError("there is a folder of this name", where=str(target), remedy="Name a file with -o")
    if target.exists() and not force:
        raise ConflictError(
            "this file is there already", where=str(target), remedy="Name another with -o, or overwrite it with --force"
        )
    if target.parent.exists() and not target.parent.is_dir():
        raise ConflictError(
            "the archive cannot be in a file",
            where=str(target.parent),
            expected="a folder",
            remedy="Name another place with -o",
        )
    if not target.parent.is_dir():
        raise NotFoundError(
            "the folder for the archive does not exist",
            where=str(target.parent),
            remedy=f"Make it with: mkdir -p {shlex.quote(str(target.parent))}",
        )


@contextmanager
def _appearing(target: Path, *, force: bool) -> Generator[IO[bytes], None, None]:
    """Give a file that is at `target` after the block, complete and durable, or nowhere."""
    with translate_disk_errors(target):
        _remove_abandoned(target)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                own(handle)
                yield file
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
                if force:
                    temporary.replace(target)
                else:
                    _rename_to_new(temporary, target)
            sync_folder(target.parent)
        finally:
            with suppress(OSError):
                temporary.unlink()


def _remove_abandoned(target: Path) -> None:
    """Remove the unfinished archives of this name whose writer was killed: nobody holds their lock any more."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.????????.tmp"):
        remove_if_abandoned(path)


def _rename_to_new(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)  # unlike a rename it replaces nothing that appeared meanwhile
    except FileExistsError as exc:
        raise ConflictError("this file appeared meanwhile", where=str(target)) from exc
    except OSError:  # a file system without hard links
        temporary.rename(target)
