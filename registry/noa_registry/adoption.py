"""Adoption: what is needed to seal a version again that was sealed in another registry, with the digests it had."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, select

from noa.digests import FileDigest, Manifest
from noa.errors import ConflictError, IntegrityError
from noa.signatures import Signature
from noa_registry.evidence import Evidence
from noa_registry.signing import StoredSignature
from noa_registry.tables import trash, versions
from noa_registry.versions import ModelVersion, VersionDraft

_PURGED = "purged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """A version whose files lie ready. Its evidence is `draft.evidence`; `with_attachments` gives a fact its bytes.

    `wrapper` holds the files around the formats but for `links`, the second names of ONNX files. `allow_pickle` names
    models whose files may hold code. `exist_ok`: a version with this digest that is there already is not a conflict.
    """

    draft: VersionDraft
    digest: str
    signature: Signature
    manifests: Mapping[str, Manifest]
    wrapper: Path
    wrapper_manifest: Manifest
    links: tuple[FileDigest, ...]
    signatures: tuple[StoredSignature, ...]
    with_attachments: Callable[[Evidence], Evidence]
    allow_pickle: frozenset[str]
    exist_ok: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """What an adoption led to. `is_new` is False where the version was here already."""

    version: ModelVersion
    is_new: bool


def find_present(connection: Connection, adoption: Adoption) -> int | None:
    """Return the number of the version that has this digest already, None if there is none that could be used.

    Raises:
        ConflictError: there is one and `exist_ok` is not set, or it is in the trash.
    """
    is_same = (trash.c.name == versions.c.name) & (trash.c.number == versions.c.number)
    query = (
        select(versions.c.number, trash.c.state)
        .select_from(versions.outerjoin(trash, is_same))
        .where(versions.c.name == adoption.draft.name, versions.c.digest == adoption.digest)
        .order_by(versions.c.number)
    )
    present = [row for row in connection.execute(query) if row.state != _PURGED]
    if not present:
        return None
    return _number_of(present[0], adoption)


def check_digests(adoption: Adoption, manifests: Mapping[str, Manifest], wrapper: Manifest, digest: str) -> None:
    """Compare what was stored with what was announced.

    Raises:
        IntegrityError: names the part that differs.
    """
    expected = {**{name: manifest.digest for name, manifest in adoption.manifests.items()}, "": adoption.digest}
    received = {**{name: manifest.digest for name, manifest in manifests.items()}, "": digest}
    expected["wrapper"], received["wrapper"] = adoption.wrapper_manifest.digest, wrapper.digest
    for part, wanted in expected.items():
        if received[part] != wanted:
            raise IntegrityError(
                f"`{part or 'the version'}` became something else on its way into the store",
                expected=wanted,
                received=received[part],
            )


def _number_of(row: Row[Any, Any], adoption: Adoption) -> int:
    reference = f"{adoption.draft.name}/{row.number}"
    if row.state is not None:
        raise ConflictError(
            f"this version is here already, in the trash: `{reference}`",
            received=adoption.digest,
            remedy=f"Restore it with: noa models restore {reference}",
            reference=reference,
        )
    if not adoption.exist_ok:
        raise ConflictError(
            f"this version is here already: `{reference}`",
            received=adoption.digest,
            remedy="Use it; with --exist-ok its files are checked, and damaged ones put back from the archive",
            reference=reference,
        )
    return int(row.number)
