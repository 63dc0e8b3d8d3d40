"""What an archive says about a version, as JSON members beside the bytes.

    META/version.json        the record: digests, signature, manifests of the wrapper and of every format, data, params
    META/evidence.json       all evidence, in order
    META/ledger.json         the rows of the ledger that lead to this version or away from it, with their hashes
    META/signatures.json     what was signed by whom
    attachments/<sha256>     bytes that evidence names
    files/<sha256>           bytes that manifests name, each once

Reading checks that all of this fits together and to its digests; nobody has to trust the writer for that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final, cast

from noa.digests import Manifest, canonical_json
from noa.errors import IntegrityError, InvalidInputError, NoaError
from noa.references import check_name
from noa.signatures import Signature
from noa_registry.database import to_text
from noa_registry.evidence import Evidence, attachment_digests, check_evidence, check_measured_bytes, plain_json
from noa_registry.ledger import LedgerEntry, entry_hash
from noa_registry.records import version_digest
from noa_registry.signing import StoredSignature

VERSION_MEMBER: Final = "META/version.json"
EVIDENCE_MEMBER: Final = "META/evidence.json"
LEDGER_MEMBER: Final = "META/ledger.json"
SIGNATURES_MEMBER: Final = "META/signatures.json"
META_MEMBERS: Final = (EVIDENCE_MEMBER, LEDGER_MEMBER, SIGNATURES_MEMBER, VERSION_MEMBER)
ATTACHMENTS: Final = "attachments/"
FILES: Final = "files/"
MAX_META_BYTES: Final = 8 << 20
"""Largest JSON member: what is parsed takes many times its size in memory."""
_LOCKED_PATHS: Final = ("formats", "registered_model_meta")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedFormat:
    """One format: its files, and when and by whom it was sealed."""

    manifest: Manifest
    created_at: datetime
    created_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedVersion:
    """All that is archived about a version, but for the bytes of its files. `registry_id` is where it is from."""

    registry_id: str
    name: str
    number: int
    digest: str
    native: str
    formats: Mapping[str, ArchivedFormat]
    wrapper: Manifest
    signature: Signature
    dataset_digest: str
    run_id: str | None
    git_commit: str | None
    environment: Mapping[str, str]
    params: Mapping[str, object]
    tags: Mapping[str, str]
    description: str
    created_at: datetime
    created_by: str
    evidence: tuple[Evidence, ...]
    attachments: Mapping[str, str]
    ledger: tuple[LedgerEntry, ...]
    signatures: tuple[StoredSignature, ...]

    @property
    def reference(self) -> str:
        """Return what the version is called where it is from, e.g. `digits/3`."""
        return f"{self.name}/{self.number}"

    @property
    def files(self) -> dict[str, int]:
        """The digests of all files with their sizes, each once."""
        manifests = (self.wrapper, *(sealed.manifest for sealed in self.formats.values()))
        return {file.digest: file.size_bytes for manifest in manifests for file in manifest.files}


def to_members(version: ArchivedVersion) -> dict[str, bytes]:
    """Return the JSON members of an archive by name; the same version gives the same bytes.

    Raises:
        InvalidInputError: one of them would be too large to be read back.
    """
    rows = {
        VERSION_MEMBER: _version_to_dict(version),
        EVIDENCE_MEMBER: [_evidence_to_dict(fact) for fact in version.evidence],
        LEDGER_MEMBER: [_entry_to_dict(entry) for entry in version.ledger],
        SIGNATURES_MEMBER: [
            {**asdict(signature), "created_at": to_text(signature.created_at)} for signature in version.signatures
        ],
    }
    members = {name: canonical_json(plain_json(value)) + b"\n" for name, value in rows.items()}
    for name, content in members.items():
        if len(content) > MAX_META_BYTES:
            raise InvalidInputError(
                f"`{version.reference}` has more than an archive holds: `{name}` is too large",
                expected=f"at most {MAX_META_BYTES} bytes",
                received=f"{len(content)} bytes",
            )
    return members


def from_members(members: Mapping[str, bytes], *, where: str) -> ArchivedVersion:
    """Read what `to_members` wrote, and check that it fits together.

    Raises:
        IntegrityError: something does not fit to its digest, or is not readable; names the member.
    """
    version = _parse(members, VERSION_MEMBER, where, lambda value: _version_from_dict(cast("dict[str, Any]", value)))
    facts = _parse(members, EVIDENCE_MEMBER, where, lambda value: tuple(map(_evidence_from_dict, _rows(value))))
    entries = _parse(members, LEDGER_MEMBER, where, lambda value: tuple(map(_entry_from_dict, _rows(value))))
    signed = _parse(members, SIGNATURES_MEMBER, where, lambda value: tuple(map(_signature_from_dict, _rows(value))))
    whole = ArchivedVersion(**version, evidence=facts, ledger=entries, signatures=signed)
    _check_paths(whole, where)
    _check_digests(whole, where)
    _check_rows(whole, where)
    return whole


def expected_members(version: ArchivedVersion) -> dict[str, int | None]:
    """Return the name of every member that the archive of `version` has, with its size where the record says it."""
    named: dict[str, int | None] = dict.fromkeys(META_MEMBERS)
    named |= {ATTACHMENTS + digest.removeprefix("sha256:"): None for digest in version.attachments}
    return named | {FILES + digest.removeprefix("sha256:"): size for digest, size in version.files.items()}


def ledger_to_dicts(entries: Sequence[LedgerEntry]) -> list[dict[str, object]]:
    """Return rows of the ledger as plain JSON values; `entry_hash` of each gives its hash anew."""
    return [_entry_to_dict(entry) for entry in entries]


def _version_to_dict(version: ArchivedVersion) -> dict[str, object]:
    return {
        "registry_id": version.registry_id,
        "name": version.name,
        "number": version.number,
        "digest": version.digest,
        "native": version.native,
        "formats": {
            name: {
                "digest": sealed.manifest.digest,
                "files": [asdict(file) for file in sealed.manifest.files],
                "created_at": to_text(sealed.created_at),
                "created_by": sealed.created_by,
            }
            for name, sealed in version.formats.items()
        },
        "wrapper": [asdict(file) for file in version.wrapper.files],
        "signature": version.signature.to_dict(),
        "dataset_digest": version.dataset_digest,
        "run_id": version.run_id,
        "git_commit": version.git_commit,
        "environment": dict(version.environment),
        "params": dict(version.params),
        "tags": dict(version.tags),
        "description": version.description,
        "created_at": to_text(version.created_at),
        "created_by": version.created_by,
        "attachments": dict(version.attachments),
    }


def _version_from_dict(row: dict[str, Any]) -> dict[str, Any]:
    formats = {
        str(name): ArchivedFormat(
            manifest=_manifest(entry["files"], entry["digest"]),
            created_at=_moment(entry["created_at"]),
            created_by=_text(entry["created_by"]),
        )
        for name, entry in cast("dict[str, Any]", row["formats"]).items()
    }
    if type(row["number"]) is not int or row["number"] < 1:
        raise ValueError("its number is none")
    return {
        **{key: _text(row[key]) for key in ("registry_id", "digest", "native", "dataset_digest", "description")},
        "name": check_name(_text(row["name"])),
        "number": row["number"],
        "formats": formats,
        "wrapper": _manifest(row["wrapper"], None),
        "signature": Signature.from_dict(row["signature"]),
        "run_id": None if row["run_id"] is None else _text(row["run_id"]),
        "git_commit": None if row["git_commit"] is None else _text(row["git_commit"]),
        "environment": _texts(row["environment"]),
        "params": dict(cast("dict[str, object]", row["params"])),
        "tags": _texts(row["tags"]),
        "created_at": _moment(row["created_at"]),
        "created_by": _text(row["created_by"]),
        "attachments": _texts(row["attachments"]),
    }


def _evidence_to_dict(fact: Evidence) -> dict[str, object]:
    return {
        "kind": fact.kind,
        "subject": fact.subject,
        "digest": fact.digest,
        "passed": fact.passed,
        "values": fact.values,
        "created_at": to_text(fact.created_at),
    }


def _evidence_from_dict(row: Mapping[str, Any]) -> Evidence:
    fact = Evidence(
        kind=_text(row["kind"]),
        subject=_text(row["subject"]),
        digest=_text(row["digest"]),
        passed=row["passed"],
        values=dict(cast("dict[str, object]", row["values"])),
        created_at=_moment(row["created_at"]),
    )
    return check_evidence(fact)


def _entry_to_dict(entry: LedgerEntry) -> dict[str, object]:
    return {**asdict(entry), "created_at": to_text(entry.created_at)}


def _entry_from_dict(row: Mapping[str, Any]) -> LedgerEntry:
    values: dict[str, Any] = {**row, "created_at": _moment(row["created_at"])}
    return LedgerEntry(**values)


def _signature_from_dict(row: Mapping[str, Any]) -> StoredSignature:
    texts = {key: _text(row[key]) for key in ("subject", "digest", "identity", "bundle")}
    return StoredSignature(**texts, created_at=_moment(row["created_at"]))


def _check_digests(version: ArchivedVersion, where: str) -> None:
    native = version.formats.get(version.native)
    found = version_digest(
        name=version.name,
        native=version.native,
        native_digest="" if native is None else native.manifest.digest,
        wrapper_digest=version.wrapper.digest,
        signature=version.signature,
        dataset_digest=version.dataset_digest,
    )
    if found != version.digest:
        raise _unfit(where, VERSION_MEMBER, "the version's digest is another", version.digest, found)
    sizes: dict[str, int] = {}
    for manifest in (version.wrapper, *(sealed.manifest for sealed in version.formats.values())):
        for file in manifest.files:
            if sizes.setdefault(file.digest, file.size_bytes) != file.size_bytes:
                raise _unfit(where, VERSION_MEMBER, f"`{file.path}` has two sizes", file.size_bytes, sizes[file.digest])


def _check_paths(version: ArchivedVersion, where: str) -> None:
    """Refuse what could be no folder: a file that is a folder too, or a wrapper that reaches into the formats."""
    parts = {"": version.wrapper, **{f"formats/{name}": s.manifest for name, s in version.formats.items()}}
    for prefix, manifest in parts.items():
        paths = [file.path for file in manifest.files]
        folders = {"/".join(path.split("/")[:end]) for path in paths for end in range(1, path.count("/") + 1)}
        strange = [path for path in paths if path in folders or paths.count(path) > 1 or "\0" in path]
        strange += [path for path in paths if not prefix and path.split("/")[0] in _LOCKED_PATHS]
        if strange:
            raise _unfit(where, VERSION_MEMBER, f"`{strange[0]}` cannot be a file of the version", "a file", "a folder")


def _check_rows(version: ArchivedVersion, where: str) -> None:
    for entry in version.ledger:
        if entry.hash != entry_hash(entry):
            raise _unfit(where, LEDGER_MEMBER, f"row {entry.sequence} was changed", entry.hash, entry_hash(entry))
        if entry.name != version.name or version.number not in (entry.from_number, entry.to_number):
            raise _unfit(where, LEDGER_MEMBER, f"row {entry.sequence} is about another", version.reference, entry.name)
    formats = {name: sealed.manifest.digest for name, sealed in version.formats.items()}
    for fact in version.evidence:
        with _refused_in(EVIDENCE_MEMBER, where):
            check_measured_bytes(fact, formats, version.digest, reference=version.reference)
    named = {digest for fact in version.evidence for digest in attachment_digests(fact)}
    if named != set(version.attachments):
        raise _unfit(where, EVIDENCE_MEMBER, "its attachments are others", len(version.attachments), len(named))


def _parse(members: Mapping[str, bytes], name: str, where: str, read: Any) -> Any:
    try:
        with _refused_in(name, where):
            return read(json.loads(members[name], parse_float=_finite, parse_constant=_refuse_constant))
    except IntegrityError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, NoaError) as exc:
        raise IntegrityError(
            f"`{name}` of the archive is not readable", where=where, received=str(exc)[:200], file=name
        ) from exc


@contextmanager
def _refused_in(name: str, where: str) -> Generator[None, None, None]:
    """Say of a part that is refused, with its field, that it is in the member `name` of an archive."""
    try:
        yield
    except InvalidInputError as exc:
        raise IntegrityError(
            f"`{name}` of the archive is not readable: {exc.what}",
            where=where if exc.where is None else f"{where}: {exc.where}",
            expected=exc.expected,
            received=exc.received,
            remedy=exc.remedy or "Export it again where it is from; nothing was imported",
            file=name,
            field=exc.facts.get("field"),
        ) from exc


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:40]} is more than a float can hold")
    return number


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON: numbers that are none are texts in an archive")


def _rows(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise TypeError("no list of rows")
    return cast("list[dict[str, Any]]", value)


def _manifest(rows: object, digest: str | None) -> Manifest:
    manifest = Manifest.from_json(json.dumps(rows))
    if digest is not None and manifest.digest != digest:
        raise ValueError(f"a manifest has the digest {manifest.digest}, not {digest}")
    return manifest


def _moment(text: object) -> datetime:
    moment = datetime.fromisoformat(_text(text))
    if moment.tzinfo is None:
        raise ValueError("a time has no zone")
    return moment


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]!r} is no text")
    return value


def _texts(value: object) -> dict[str, str]:
    return {_text(key): _text(entry) for key, entry in cast("dict[object, object]", value).items()}


def _unfit(where: str, member: str, what: str, expected: object, received: object) -> IntegrityError:
    return IntegrityError(
        f"`{member}` of the archive contradicts itself: {what}",
        where=where,
        expected=expected,
        received=received,
        remedy="Export it again where it is from; nothing was imported",
        file=member,
    )
