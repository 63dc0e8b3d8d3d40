"""Import: an archive becomes the next version of its model, with the digests that it had where it is from.

The archive is unpacked and hashed in one pass; whatever it says is checked against its own digests before anything is
registered. Then the files are sealed like those of any version, in one transaction with all rows. The ledger's rows are
kept as evidence of what happened elsewhere; they are never part of the chain here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final

from noa.atomic_write import translate_disk_errors
from noa.digests import FileDigest, Manifest
from noa.errors import IntegrityError, NotFoundError
from noa_registry.adoption import Adoption
from noa_registry.archives.container import Index, iterate_members, read_index
from noa_registry.archives.contents import (
    ATTACHMENTS,
    FILES,
    MAX_META_BYTES,
    META_MEMBERS,
    ArchivedVersion,
    expected_members,
    from_members,
    ledger_to_dicts,
)
from noa_registry.archives.exporting import OnProgress
from noa_registry.archives.workspace import WORKSPACES, workspace
from noa_registry.archives.wrappers import check_wrapper
from noa_registry.database import to_text
from noa_registry.evidence import (
    HISTORY,
    MAX_ATTACHMENT_BYTES,
    MAX_VALUES_BYTES,
    ORIGIN,
    WHOLE_VERSION,
    Attachment,
    Evidence,
    attachment_digests,
    values_bytes,
)
from noa_registry.file_repair import FileRepair, repair_files
from noa_registry.registration import Registrar
from noa_registry.versions import ModelVersion, VersionDraft

ORIGIN_TAG: Final = "noa.origin"


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenArchive:
    """What taking an archive in led to. A version that was here already is not new; `repairs`: its damaged files."""

    version: ModelVersion
    is_new: bool
    repairs: tuple[FileRepair, ...] = ()


def read_archive(
    registrar: Registrar,
    path: Path,
    *,
    actor: str,
    allow_pickle: Collection[str],
    exist_ok: bool,
    on_progress: OnProgress,
) -> TakenArchive:
    """Register the version in an archive, or repair it where it is here already. See `Archives.take`."""
    registrar.database.require_writable()
    where = str(path)
    with _opened(path) as file, workspace(registrar.artifacts.root / WORKSPACES) as folder:
        index = read_index(file, where)
        meta = _unpack(file, index, folder, where, on_progress)
        archived = from_members(meta, where=where)
        _check_members(index, archived, where)
        adoption = _assemble(archived, index, folder, actor=actor, allow_pickle=allow_pickle, exist_ok=exist_ok)
        check_wrapper(adoption.wrapper, where=where)
        adopted = registrar.adopt(adoption, actor=actor)
        repairs = () if adopted.is_new else _repair(registrar, adopted.version, folder)
    return TakenArchive(version=adopted.version, is_new=adopted.is_new, repairs=repairs)


def inspect_archive(path: Path) -> tuple[Index, ArchivedVersion]:
    """Return what is in an archive after checking all of its bytes, without registering anything. See `Archives`."""
    where = str(path)
    with _opened(path) as file:
        index = read_index(file, where)
        meta: dict[str, bytes] = {}
        for member, pieces in iterate_members(file, index, where):
            if member.path in META_MEMBERS:
                _check_size(member, MAX_META_BYTES, where)
                meta[member.path] = b"".join(pieces)
            else:
                for _ in pieces:
                    pass
    _check_meta(meta, where)
    archived = from_members(meta, where=where)
    _check_members(index, archived, where)
    return index, archived


def _repair(registrar: Registrar, version: ModelVersion, folder: Path) -> tuple[FileRepair, ...]:
    """Hash the files of a version that is here already, and put back from the archive what differs."""

    def spare(digest: str) -> Path | None:
        path = folder / FILES / digest.removeprefix("sha256:")
        return path if path.is_file() else None

    done = repair_files(registrar.database, registrar.artifacts, version, spare=spare)
    left = [repair for repair in done if not repair.is_repaired]
    if left:
        raise IntegrityError(
            f"`{version.reference}` is here already, and the archive does not mend it: {left[0]}",
            expected=version.digest,
            file=left[0].path,
            files=tuple(repair.path for repair in left),
            repairs=tuple(done),
        )
    return tuple(done)


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except FileNotFoundError as exc:
        raise NotFoundError("there is no such archive", where=str(path)) from exc
    except IsADirectoryError as exc:
        raise NotFoundError("this is a folder, not an archive", where=str(path)) from exc


def _unpack(file: IO[bytes], index: Index, folder: Path, where: str, on_progress: OnProgress) -> dict[str, bytes]:
    """Write all members but the JSON ones below `folder` under their names, and return those."""
    meta: dict[str, bytes] = {}
    total, done = sum(member.size_bytes for member in index.members), 0
    for prefix in (ATTACHMENTS, FILES):
        (folder / prefix).mkdir()
    for member, pieces in iterate_members(file, index, where):
        if member.path in META_MEMBERS:
            _check_size(member, MAX_META_BYTES, where)
            meta[member.path] = b"".join(pieces)
            continue
        prefix, _, digits = member.path.rpartition("/")
        if f"{prefix}/" not in (ATTACHMENTS, FILES) or member.digest != f"sha256:{digits}":
            raise _foreign(member.path, where)
        target = folder / member.path
        with translate_disk_errors(target), target.open("xb") as copy:
            for piece in pieces:
                copy.write(piece)
                done += len(piece)
                on_progress(done, total)
    _check_meta(meta, where)
    return meta


def _assemble(
    archived: ArchivedVersion,
    index: Index,
    folder: Path,
    *,
    actor: str,
    allow_pickle: Collection[str],
    exist_ok: bool,
) -> Adoption:
    formats = {name: folder / "formats" / name for name in archived.formats}
    for name, target in formats.items():
        _lay_out(folder, archived.formats[name].manifest, target)
    linked = {file.path: file for file in _linked(archived)}
    alone = [file for file in archived.wrapper.files if file.path not in linked]
    _lay_out(folder, Manifest.of(alone), folder / "wrapper")
    draft = VersionDraft(
        name=archived.name,
        formats=formats,
        native=archived.native,
        input_example={},
        dataset_digest=archived.dataset_digest,
        evidence=(*archived.evidence, *_provenance(archived, index, actor)),
        run_id=None,  # the run is in the other registry's tracking, not here
        git_commit=archived.git_commit,
        environment=archived.environment,
        params=archived.params,
        tags={**archived.tags, ORIGIN_TAG: f"{archived.registry_id}:{archived.reference}"},
        description=archived.description,
    )

    def load(fact: Evidence) -> Evidence:
        carried = tuple(
            Attachment(
                media_type=archived.attachments[digest],
                content=(folder / ATTACHMENTS / digest.removeprefix("sha256:")).read_bytes(),
            )
            for digest in attachment_digests(fact)
        )
        return replace(fact, attachments=carried)

    return Adoption(
        draft=draft,
        digest=archived.digest,
        signature=archived.signature,
        manifests={name: sealed.manifest for name, sealed in archived.formats.items()},
        wrapper=folder / "wrapper",
        wrapper_manifest=archived.wrapper,
        links=tuple(linked.values()),
        signatures=archived.signatures,
        with_attachments=load,
        allow_pickle=frozenset(allow_pickle),
        exist_ok=exist_ok,
    )


def _provenance(archived: ArchivedVersion, index: Index, actor: str) -> list[Evidence]:
    origin = Evidence(
        kind=ORIGIN,
        subject=WHOLE_VERSION,
        digest=archived.digest,
        values={
            "registry": archived.registry_id,
            "reference": archived.reference,
            "created_at": to_text(archived.created_at),
            "created_by": archived.created_by,
            "run_id": archived.run_id,
            "archive": index.digest,
            "imported_by": actor,
        },
    )
    if not archived.ledger:
        return [origin]
    return [origin, _history(archived)]


def _history(archived: ArchivedVersion) -> Evidence:
    """Return the moves of a version elsewhere; of very many the newest, as far as they fit into a fact."""
    rows = ledger_to_dicts(archived.ledger)
    left_out = 0
    while True:
        values: dict[str, object] = {"registry": archived.registry_id, "rows": rows[left_out:]}
        values |= {"left_out": left_out} if left_out else {}
        fact = Evidence(kind=HISTORY, subject=WHOLE_VERSION, digest=archived.digest, values=values)
        if values_bytes(fact) <= MAX_VALUES_BYTES:
            return fact
        left_out += (len(rows) - left_out + 1) // 2


def _linked(archived: ArchivedVersion) -> list[FileDigest]:
    """Return the files of the wrapper that are second names of ONNX files, as `linked_files` made them."""
    onnx = archived.formats.get("onnx")
    held = {} if onnx is None else {file.path: file for file in onnx.manifest.files}
    return [file for file in archived.wrapper.files if held.get(file.path) == file]


def _lay_out(folder: Path, manifest: Manifest, target: Path) -> None:
    """Give the unpacked files of a manifest their names below `target`."""
    with translate_disk_errors(target):
        target.mkdir(parents=True)
        for file in manifest.files:
            path = target / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            source = folder / FILES / file.digest.removeprefix("sha256:")
            try:
                os.link(source, path)
            except OSError:  # a file system without hard links
                shutil.copyfile(source, path)


def _check_meta(meta: dict[str, bytes], where: str) -> None:
    missing = [name for name in META_MEMBERS if name not in meta]
    if missing:
        raise IntegrityError(f"the archive has no `{missing[0]}`", where=where, file=missing[0])


def _check_members(index: Index, archived: ArchivedVersion, where: str) -> None:
    """Compare what is in the archive with what the record needs."""
    found = {member.path: member for member in index.members}
    expected = expected_members(archived)
    for path in sorted(found.keys() - expected.keys()):
        raise _foreign(path, where)
    for path in sorted(expected.keys() - found.keys()):
        raise IntegrityError(f"the archive lacks `{path}`, which its record names", where=where, file=path)
    for path, size in expected.items():
        member = found[path]
        if path.startswith(ATTACHMENTS):
            _check_size(member, MAX_ATTACHMENT_BYTES, where)
        is_named = "/" not in path or path in META_MEMBERS or member.digest == f"sha256:{path.rpartition('/')[2]}"
        if not is_named or (size is not None and size != member.size_bytes):
            raise IntegrityError(
                f"`{path}` is not what the record names",
                where=where,
                expected=size,
                received=member.size_bytes,
                file=path,
            )
    head = {"name": archived.name, "number": archived.number, "digest": archived.digest}
    if dict(index.head) != {**head, "registry": archived.registry_id}:
        raise IntegrityError(
            "the archive's index is about another version", where=where, expected=head, received=dict(index.head)
        )


def _check_size(member: FileDigest, most: int, where: str) -> None:
    if member.size_bytes > most:
        raise IntegrityError(
            f"`{member.path}` of the archive is too large",
            where=where,
            expected=f"at most {most} bytes",
            received=f"{member.size_bytes} bytes",
            file=member.path,
        )


def _foreign(path: str, where: str) -> IntegrityError:
    return IntegrityError(
        f"`{path}` in the archive belongs to nothing in its record", where=where, received=f"`{path}`", file=path
    )
