"""Registration: from a draft to a sealed version that is visible whole or not at all.

Everything that can be refused is refused first. Then the files are stored and hashed in one pass, under a name that
nobody looks for, and made durable; last, one transaction numbers the version and writes noa's and MLflow's rows. Before
it commits, nobody sees anything; after, everything is in place.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, insert, select, update

from noa.atomic_write import translate_disk_errors
from noa.digests import Manifest
from noa.errors import ConflictError, DependencyMissingError, GateRefusedError, InvalidInputError, NotFoundError
from noa.formats import SignatureChecker, find_adapter
from noa.references import check_name
from noa.signatures import Signature
from noa_registry import mlflow_rows
from noa_registry.adoption import Adopted, Adoption, check_digests, find_present
from noa_registry.artifacts import FORMATS_FOLDER, ArtifactStore, StagedUnit, regular_files
from noa_registry.database import Database, now, to_text
from noa_registry.events.outbox import append_event
from noa_registry.evidence import Evidence, Recording, Way, check_evidence, check_measured_bytes, refuse_reserved
from noa_registry.faults import Checkpoint, no_checkpoint
from noa_registry.gates import Candidate, evaluate_rollback
from noa_registry.json_columns import parse_table
from noa_registry.mlflow_model import linked_files, write_wrapper
from noa_registry.outside import CODE_FORMATS, check_allowed, refuse_unallowed
from noa_registry.records import (
    insert_evidence,
    load_aliases,
    load_digests,
    load_evidence,
    load_version,
    require_version,
    to_json,
    version_digest,
    with_record,
)
from noa_registry.search.indexing import index_format, index_version
from noa_registry.signing import Signatures, Statement, format_statement, insert_signatures, record_statement
from noa_registry.tables import formats, models, versions
from noa_registry.versions import ModelVersion, VersionDraft
from noa_registry.words import check_actor, check_draft_texts

if TYPE_CHECKING:
    from noa.settings import GateSettings

_FORMAT_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_PICKLES = {".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Registrar:
    """Seals drafts and further formats. `checkpoint` is called at every step of `faults.REGISTRATION_STEPS`.

    `gates` say by model which of several measurements is the worse one, for the index of search.
    """

    database: Database
    artifacts: ArtifactStore
    signatures: Signatures
    gates: Mapping[str, GateSettings] = field(default_factory=dict[str, "GateSettings"])
    checkpoint: Checkpoint = no_checkpoint

    def register(self, draft: VersionDraft, *, actor: str) -> ModelVersion:
        """Seal `draft` as the next version of its model.

        Raises:
            InvalidInputError: the draft is incomplete or contradicts itself; nothing was written.
            StorageError: the disk or database refused; nothing is left, and a retry works.
        """
        self.database.require_writable()
        signature = check_draft(draft)
        check_actor(actor)
        self.artifacts.remove_leftovers()
        created_at = now()
        with self.artifacts.stage(draft.name, checkpoint=self.checkpoint) as unit:
            manifests = {
                name: unit.add_folder(folder, f"{FORMATS_FOLDER}/{name}") for name, folder in draft.formats.items()
            }
            self.checkpoint("formats copied")
            wrapper = _add_wrapper(unit, draft, signature, manifests, created_at)
            self.checkpoint("wrapper written")
            unit.publish()
            self.checkpoint("published")
            content = _Content(draft, signature, manifests, wrapper, actor, to_text(created_at))
            signed = self.signatures.prepare(_statements(content))
            with self.database.write() as connection:
                self.checkpoint("transaction begun")
                unit.confirm()
                number = _insert_version(connection, content, unit, self.gates.get(draft.name))
                insert_signatures(connection, draft.name, number, signed)
                self.checkpoint("rows written")
            self.checkpoint("committed")
        with self.database.read() as connection:
            return load_version(connection, self.artifacts.root, draft.name, number)

    def adopt(self, adoption: Adoption, *, actor: str) -> Adopted:
        """Seal a version that was sealed elsewhere, as the next version of its model, with the digests it had.

        It is not signed anew: the signatures it came with say who vouches for it.

        Raises:
            InvalidInputError: a format is not what it says, or holds a pickle that is not allowed.
            IntegrityError: the files are not those that its digests name.
            ConflictError: the version is here already.
            StorageError: the disk or database refused; nothing is left, and a retry works.
        """
        self.database.require_writable()
        draft = adoption.draft
        check_actor(actor)
        check_draft_texts(draft)
        refuse_unallowed(draft.name, draft.formats, adoption.allow_pickle)
        for name, folder in draft.formats.items():
            _check_format(name, folder, adoption.signature, model=draft.name)
        with self.database.read() as connection:
            number, is_new = find_present(connection, adoption), False
        if number is None:
            self.artifacts.remove_leftovers()
            with self.artifacts.stage(draft.name, checkpoint=self.checkpoint) as unit:
                number, is_new = self._seal_adopted(unit, adoption, actor)
        with self.database.read() as connection:
            version = load_version(connection, self.artifacts.root, draft.name, number)
        return Adopted(version=version, is_new=is_new)

    def _seal_adopted(self, unit: StagedUnit, adoption: Adoption, actor: str) -> tuple[int, bool]:
        """Return the version's number, and whether it is new: another process may have been faster."""
        draft = adoption.draft
        manifests = {
            name: unit.add_folder(folder, f"{FORMATS_FOLDER}/{name}") for name, folder in draft.formats.items()
        }
        self.checkpoint("formats copied")
        written = unit.add_folder(adoption.wrapper, "")
        links = [unit.add_link(file, f"{FORMATS_FOLDER}/onnx", file.path) for file in adoption.links]
        wrapper = Manifest.of([*written.files, *links])
        self.checkpoint("wrapper written")
        imported = Recording(by=actor, at=now(), way="imported")
        bare = replace(draft, evidence=())  # its attachments would all be in memory at once
        content = _Content(bare, adoption.signature, manifests, wrapper, actor, to_text(now()))
        check_digests(adoption, manifests, wrapper, content.digest)
        unit.publish()
        self.checkpoint("published")
        with self.database.write() as connection:
            self.checkpoint("transaction begun")
            present = find_present(connection, adoption)
            number = present
            if number is None:
                unit.confirm()
                policy = self.gates.get(draft.name)
                number = _insert_version(connection, content, unit, policy)
                for fact in draft.evidence:
                    whole = adoption.with_attachments(fact)
                    insert_evidence(connection, draft.name, number, [whole], imported, policy=policy)
                insert_signatures(connection, draft.name, number, adoption.signatures)
            self.checkpoint("rows written")
        self.checkpoint("committed")
        return number, present is None

    def add_format(
        self, name: str, number: int, format_name: str, folder: Path, *, evidence: Sequence[Evidence], actor: str
    ) -> ModelVersion:
        """Seal one more format into a version. What was sealed before stays as it is.

        Raises:
            ConflictError: the version has this format already.
            GateRefusedError: an alias holds the version and `evidence` does not show that the format computes the same.
        """
        self.database.require_writable()
        check_actor(actor)
        with self.database.read() as connection:
            version = load_version(connection, self.artifacts.root, name, number)
        _refuse_second(version, format_name)
        _check_format(format_name, folder, version.signature, model=name)
        refuse_reserved(evidence)
        evidence = [check_evidence(fact) for fact in evidence]
        self.artifacts.remove_leftovers()
        with self.artifacts.stage(name, checkpoint=self.checkpoint) as unit:
            manifest = unit.add_folder(folder, f"{FORMATS_FOLDER}/{format_name}")
            self.checkpoint("formats copied")
            unit.publish()
            self.checkpoint("published")
            signed = self.signatures.prepare([format_statement(name, version.digest, format_name, manifest)])
            with self.database.write() as connection:
                self.checkpoint("transaction begun")
                unit.confirm()
                _refuse_second(load_version(connection, self.artifacts.root, name, number), format_name)
                _insert_format(connection, name, number, format_name, unit.uid, manifest, actor, to_text(now()))
                recording = Recording(by=actor, at=now(), way="registered")
                insert_evidence(connection, name, number, evidence, recording, policy=self.gates.get(name))
                insert_signatures(connection, name, number, signed)
                _require_equivalence_if_live(connection, self.artifacts.root, name, number)
                payload = {"number": number, "format": format_name, "digest": manifest.digest, "actor": actor}
                append_event(connection, "format.added", name=name, payload=payload)
                self.checkpoint("rows written")
            self.checkpoint("committed")
        with self.database.read() as connection:
            return load_version(connection, self.artifacts.root, name, number)

    def attach(self, name: str, number: int, evidence: Sequence[Evidence], *, actor: str, way: Way) -> None:
        """Append evidence to a version."""
        check_name(name)
        check_actor(actor)
        evidence = [check_evidence(fact) for fact in evidence]
        with self.database.write() as connection:
            require_version(connection, name, number)
            _check_measured_bytes(connection, name, number, evidence)
            recording = Recording(by=actor, at=now(), way=way)
            insert_evidence(connection, name, number, evidence, recording, policy=self.gates.get(name))
            if evidence:
                facts = [_evidence_to_dict(fact) for fact in evidence]
                payload = {"number": number, "evidence": facts, "actor": actor}
                append_event(connection, "evidence.attached", name=name, payload=payload)


def _check_measured_bytes(connection: Connection, name: str, number: int, facts: Sequence[Evidence]) -> None:
    """Refuse measurements of what the version does not have; its record is checked by whoever uses it."""
    version, digests = load_digests(connection, name, number)
    for fact in facts:
        check_measured_bytes(fact, digests, version, reference=f"{name}/{number}")


def check_draft(draft: VersionDraft) -> Signature:
    """Check everything about a draft that can be checked without writing, and return its signature.

    Raises:
        InvalidInputError: names what is missing or contradicts.
    """
    check_name(draft.name)
    check_draft_texts(draft)
    refuse_reserved(draft.evidence)
    if draft.native not in draft.formats:
        raise InvalidInputError(
            f"the draft of `{draft.name}` lacks its native format",
            expected=f"`{draft.native}` among the formats",
            received=", ".join(f"`{name}`" for name in draft.formats) or "no formats",
        )
    signature = Signature.load(Path(draft.formats[draft.native]))
    for name, folder in draft.formats.items():
        _check_format(name, folder, signature, model=draft.name)
    signature.validate(draft.input_example)
    missing = {spec.name for spec in signature.inputs} - set(draft.input_example)
    if missing or not draft.dataset_digest:
        what = "an input example" if missing else "a dataset digest"
        raise InvalidInputError(
            f"the draft of `{draft.name}` lacks {what}", received=", ".join(sorted(missing)) or "''"
        )
    for fact in draft.evidence:
        check_evidence(fact)
    to_json([draft.params, draft.environment, draft.tags])
    return signature


def _add_wrapper(
    unit: StagedUnit, draft: VersionDraft, signature: Signature, manifests: Mapping[str, Manifest], created_at: datetime
) -> Manifest:
    """Write what makes the unit an MLflow model, and return the manifest of it."""
    with tempfile.TemporaryDirectory(prefix="noa-wrapper-") as scratch:
        folder = Path(scratch)
        with translate_disk_errors(folder):
            write_wrapper(
                folder,
                uid=unit.uid,
                formats=manifests,
                native=draft.native,
                signature=signature,
                input_example=draft.input_example,
                environment=draft.environment,
                run_id=draft.run_id,
                created_at=created_at,
            )
        written = unit.add_folder(folder, "")
    links = [unit.add_link(file, f"{FORMATS_FOLDER}/onnx", file.path) for file in linked_files(manifests.get("onnx"))]
    return Manifest.of([*written.files, *links])


@dataclass(frozen=True, slots=True)
class _Content:
    draft: VersionDraft
    signature: Signature
    manifests: dict[str, Manifest]
    wrapper: Manifest
    actor: str
    created_at: str

    @property
    def digest(self) -> str:
        """The digest of the version that is being made."""
        return version_digest(
            name=self.draft.name,
            native=self.draft.native,
            native_digest=self.manifests[self.draft.native].digest,
            wrapper_digest=self.wrapper.digest,
            signature=self.signature,
            dataset_digest=self.draft.dataset_digest,
        )


def _statements(content: _Content) -> list[Statement]:
    """Return what is signed about a new version: its record, and each format."""
    name, digest = content.draft.name, content.digest
    formats_of = (format_statement(name, digest, key, manifest) for key, manifest in content.manifests.items())
    return [record_statement(name, digest), *formats_of]


def _insert_version(connection: Connection, content: _Content, unit: StagedUnit, policy: GateSettings | None) -> int:
    draft = content.draft
    number = _take_number(connection, draft.name, content.created_at)
    digest = content.digest
    connection.execute(
        insert(versions).values(
            with_record(
                {
                    "name": draft.name,
                    "number": number,
                    "uid": unit.uid,
                    "digest": digest,
                    "native": draft.native,
                    "signature": to_json(content.signature.to_dict()),
                    "wrapper": content.wrapper.to_json(),
                    "dataset_digest": draft.dataset_digest,
                    "run_id": draft.run_id,
                    "git_commit": draft.git_commit,
                    "environment": to_json(draft.environment),
                    "params": to_json(draft.params),
                    "tags": to_json(draft.tags),
                    "description": draft.description,
                    "created_at": content.created_at,
                    "created_by": content.actor,
                }
            )
        )
    )
    index_version(
        connection,
        draft.name,
        number,
        created_at=content.created_at,
        native=draft.native,
        dataset_digest=draft.dataset_digest,
        created_by=content.actor,
        run_id=draft.run_id,
        git_commit=draft.git_commit,
        tags=_as_stored(draft.tags),
        params=_as_stored(draft.params),
    )
    for format_name, manifest in content.manifests.items():
        _insert_format(
            connection, draft.name, number, format_name, unit.uid, manifest, content.actor, content.created_at
        )
    recording = Recording(by=content.actor, at=now(), way="registered")
    insert_evidence(connection, draft.name, number, draft.evidence, recording, policy=policy)
    mlflow_rows.insert_version(
        connection,
        name=draft.name,
        number=number,
        source=unit.uri,
        run_id=draft.run_id,
        actor=content.actor,
        description=draft.description,
        tags={**draft.tags, "noa.digest": digest, "noa.formats": ",".join(sorted(content.manifests))},
    )
    append_event(
        connection,
        "version.registered",
        name=draft.name,
        payload={
            "number": number,
            "digest": digest,
            "formats": sorted(content.manifests),
            "dataset_digest": draft.dataset_digest,
            "run_id": draft.run_id,
            "actor": content.actor,
        },
    )
    return number


def _evidence_to_dict(fact: Evidence) -> dict[str, object]:
    return {"kind": fact.kind, "subject": fact.subject, "digest": fact.digest, "passed": fact.passed}


def _take_number(connection: Connection, name: str, moment: str) -> int:
    """Return the next number, which no version of this name ever had; also not one that MLflow deleted."""
    next_number = connection.execute(select(models.c.next_number).where(models.c.name == name)).scalar()
    number = max(next_number or 1, mlflow_rows.highest_number(connection, name) + 1)
    if next_number is None:
        connection.execute(
            insert(models).values(name=name, next_number=number + 1, created_at=moment, updated_at=moment)
        )
    else:
        connection.execute(
            update(models).where(models.c.name == name).values(next_number=number + 1, updated_at=moment)
        )
    return number


def _insert_format(
    connection: Connection,
    name: str,
    number: int,
    format_name: str,
    uid: str,
    manifest: Manifest,
    actor: str,
    moment: str,
) -> None:
    connection.execute(
        insert(formats).values(
            with_record(
                {
                    "name": name,
                    "number": number,
                    "format": format_name,
                    "uid": uid,
                    "digest": manifest.digest,
                    "manifest": manifest.to_json(),
                    "created_at": moment,
                    "created_by": actor,
                }
            )
        )
    )
    index_format(connection, name, number, format_name)


def _as_stored(table: Mapping[str, object]) -> dict[str, Any]:
    """Return the table as whoever reads the record sees it, so that the index can be compared with the record."""
    return parse_table(to_json(table), of="a version", column="noa_versions")


def _check_format(name: str, folder: Path, signature: Signature, *, model: str) -> None:
    if not _FORMAT_NAME.fullmatch(name):
        raise InvalidInputError(
            f"`{name}` cannot be a format's name", expected=_FORMAT_NAME.pattern, received=repr(name)
        )
    if not folder.is_dir():
        raise InvalidInputError(f"format `{name}` has no folder", where=str(folder))
    pickles = [path.name for path in regular_files(folder) if path.suffix.lower() in _PICKLES]
    if name in CODE_FORMATS:
        check_allowed(folder, model)
    elif pickles:
        raise InvalidInputError(
            f"format `{name}` holds a pickle, `{pickles[0]}`; loading it would run its code",
            where=str(folder),
            remedy="Save weights as safetensors and programs as ONNX or an exported program",
        )
    found = Signature.load(folder)
    if found != signature:
        raise InvalidInputError(
            f"format `{name}` has another signature than the native format",
            where=str(folder),
            expected=_describe(signature),
            received=_describe(found),
        )
    _check_tensors(name, folder, signature)


def _check_tensors(name: str, folder: Path, signature: Signature) -> None:
    """Ask the format, where it is installed and can tell, whether its own tensors are those of the signature."""
    try:
        adapter = find_adapter(name)
        if isinstance(adapter, SignatureChecker):
            adapter.check_signature(folder, signature)
    except (NotFoundError, DependencyMissingError):  # a machine that only keeps models need not be able to read them
        return


def _describe(signature: Signature) -> str:
    sides = (
        ", ".join(f"{spec.name}: {spec.describe()}" for spec in side) for side in (signature.inputs, signature.outputs)
    )
    return " -> ".join(sides)


def _refuse_second(version: ModelVersion, format_name: str) -> None:
    if format_name in version.formats:
        raise ConflictError(
            f"`{version.reference}` has the format `{format_name}` already",
            received=version.formats[format_name].digest,
            remedy="A sealed format never changes; register a new version",
        )


def _require_equivalence_if_live(connection: Connection, root: Path, name: str, number: int) -> None:
    held = [alias for alias, holder in load_aliases(connection, name).items() if holder == number]
    if not held:
        return
    version = load_version(connection, root, name, number)
    report = evaluate_rollback(
        candidate_of(version, load_evidence(connection, name, number)), alias=held[0], bytes_problem=None
    )
    if not report.passed:
        raise GateRefusedError(
            f"`{version.reference}` is live, and the new format is not shown to compute the same",
            expected=report.refusals[0].expected,
            received=report.refusals[0].received,
            remedy="Measure the equivalence first and add the format with its evidence",
            report=report,
        )


def candidate_of(version: ModelVersion, evidence: Sequence[Evidence]) -> Candidate:
    """Return what a gate looks at."""
    return Candidate(
        reference=version.reference,
        native=version.native,
        formats={name: sealed.digest for name, sealed in version.formats.items()},
        evidence=evidence,
        digest=version.digest,
        sizes={name: sealed.manifest.size_bytes for name, sealed in version.formats.items()},
        signature=version.signature,
        dataset_digest=version.dataset_digest,
    )
