"""The registry: which model is it?

One object per process and project; safe to share between threads. It keeps no state of its own beyond connections: the
database and the artifact folder are the truth, and any number of processes use them at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Self

from sqlalchemy import Connection, bindparam, select

from noa.errors import InvalidInputError, NotFoundError
from noa.formats import Runnable, find_adapter
from noa.references import ModelReference, check_name, parse_reference
from noa_registry.artifacts import RUNS_FOLDER, ArtifactStore
from noa_registry.bootstrap import prepare_database
from noa_registry.database import Database, sqlite_path
from noa_registry.evidence import Evidence
from noa_registry.faults import Checkpoint, no_checkpoint
from noa_registry.gates import GateReport
from noa_registry.ledger import LedgerEntry
from noa_registry.mirror import Discrepancy, find_discrepancies, rewrite_mirror
from noa_registry.mlflow_model import read_example
from noa_registry.promotion import EXPECT_ANY, Expectation, Promoter, verify_bytes
from noa_registry.records import (
    load_aliases,
    load_evidence,
    load_history,
    load_numbers,
    load_summaries,
    load_version,
    load_versions,
    newest_number,
)
from noa_registry.registration import Registrar
from noa_registry.tables import aliases, formats, versions
from noa_registry.versions import ModelSummary, ModelVersion, VersionDraft

if TYPE_CHECKING:
    import numpy as np

    from noa.settings import GateSettings, RegistrySettings

_NO_GATES: Mapping[str, GateSettings] = MappingProxyType({})
_HOLDER = select(aliases.c.number, aliases.c.digest).where(
    aliases.c.name == bindparam("name"), aliases.c.alias == bindparam("alias")
)


class Registry:
    """Versions, aliases, evidence and the ledger. Made by `Registry.open`; close it, or use it in a `with` block."""

    def __init__(
        self,
        database: Database,
        artifact_dir: Path,
        *,
        gates: Mapping[str, GateSettings] = _NO_GATES,
        checkpoint: Checkpoint = no_checkpoint,
    ) -> None:
        self._database = database
        self._artifacts = ArtifactStore(artifact_dir, is_sealed=self._is_sealed)
        self._registrar = Registrar(database=database, artifacts=self._artifacts, checkpoint=checkpoint)
        self._promoter = Promoter(database=database, root=artifact_dir, gates=gates)

    @classmethod
    def open(
        cls,
        settings: RegistrySettings,
        *,
        gates: Mapping[str, GateSettings] = _NO_GATES,
        checkpoint: Checkpoint = no_checkpoint,
    ) -> Registry:
        """Open the registry, creating everything that is missing. Safe for many processes at once.

        `checkpoint` is called with the name of each step of a registration; tests stop the process there.

        Raises:
            SettingsError: `database_url` is not a SQLite file.
            StorageError: the disk refused, or the database belongs to a newer noa or MLflow.
        """
        if not settings.artifact_dir.is_absolute():
            raise InvalidInputError(
                "`registry.artifact_dir` is not absolute",
                received=str(settings.artifact_dir),
                remedy="Load the settings with `load_settings`, or call `Settings.resolved`",
            )
        path = sqlite_path(settings.database_url)
        prepare_database(
            path, artifact_root=settings.artifact_dir / RUNS_FOLDER, lock_timeout_s=settings.lock_timeout_s
        )
        registry = cls(
            Database(path, lock_timeout_s=settings.lock_timeout_s),
            settings.artifact_dir,
            gates=gates,
            checkpoint=checkpoint,
        )
        try:
            registry._artifacts.remove_leftovers()
        except BaseException:
            registry.close()
            raise
        return registry

    def register(self, draft: VersionDraft, *, actor: str) -> ModelVersion:
        """Seal `draft` as the next version of its model; it becomes visible whole or not at all.

        Raises:
            InvalidInputError: the draft is incomplete or contradicts itself; nothing was written.
            StorageError: the disk or database refused; nothing is left, and a retry works.
        """
        return self._registrar.register(draft, actor=actor)

    def add_format(
        self,
        name: str,
        number: int,
        format: str,  # our word
        folder: Path,
        *,
        evidence: Sequence[Evidence],
        actor: str,
    ) -> ModelVersion:
        """Seal one more format into a version; what was sealed before, and the version's digest, stay.

        Raises:
            ConflictError: the version has this format already.
            GateRefusedError: the version is live and `evidence` does not show that the format computes the same.
        """
        return self._registrar.add_format(name, number, format, folder, evidence=evidence, actor=actor)

    def attach(self, name: str, number: int, evidence: Sequence[Evidence] | Evidence) -> None:
        """Append evidence to a version."""
        facts = [evidence] if isinstance(evidence, Evidence) else evidence
        self._registrar.attach(name, number, facts)

    def evidence(self, name: str, number: int) -> list[Evidence]:
        """Return all evidence of a version in the order in which it was attached."""
        with self._database.read() as connection:
            load_version(connection, self._artifacts.root, name, number)
            return load_evidence(connection, name, number)

    def resolve(self, reference: str | ModelReference) -> ModelVersion:
        """Return the version that `name@alias`, `name/3` or `name` (the newest) means now.

        Raises:
            NotFoundError: there is no such model, version or alias; the message says what there is.
            IntegrityError: its records were changed.
        """
        parsed = parse_reference(reference) if isinstance(reference, str) else reference
        with self._database.read() as connection:
            held = load_aliases(connection, parsed.name)
            number = _number_of(connection, parsed, held)
            return load_version(connection, self._artifacts.root, parsed.name, number, held=held)

    def resolve_digest(self, name: str, alias: str) -> tuple[int, str] | None:
        """Return number and digest of the version that an alias points to, None if the alias does not exist."""
        with self._database.read() as connection:
            row = connection.execute(_HOLDER, {"name": name, "alias": alias}).one_or_none()
        return None if row is None else (int(row[0]), str(row[1]))

    def models(self) -> list[ModelSummary]:
        """Return one line per model, by name."""
        with self._database.read() as connection:
            return load_summaries(connection)

    def versions(self, name: str, *, limit: int = 50, offset: int = 0) -> list[ModelVersion]:
        """Return versions of a model, newest first.

        Raises:
            NotFoundError: there is no such model.
        """
        check_name(name)
        if limit < 1 or offset < 0:
            raise InvalidInputError("a page must not be empty", expected="limit >= 1, offset >= 0", received=str(limit))
        with self._database.read() as connection:
            return load_versions(connection, self._artifacts.root, name, limit=limit, offset=offset)

    def numbers(self, name: str) -> list[int]:
        """Return the numbers of all versions of a model, oldest first; reads no more than that.

        Raises:
            NotFoundError: there is no such model.
        """
        with self._database.read() as connection:
            return load_numbers(connection, check_name(name))

    def verify(self, name: str, number: int, *, format: str | None = None) -> None:  # our word
        """Re-hash the files of a version, or of one of its formats.

        Raises:
            IntegrityError: names the file that is not what was sealed.
        """
        verify_bytes(self.resolve(ModelReference(name=check_name(name), number=number)), format=format)

    def open_format(self, version: ModelVersion, format: str) -> Path:  # our word
        """Return the folder of a format after re-hashing all its files: ready to load.

        Raises:
            NotFoundError: the version has no such format.
            IntegrityError: names the file that is not what was sealed.
        """
        verify_bytes(version, format=format)
        return version.formats[format].folder

    def load(
        self,
        reference: str | ModelReference,
        *,
        format: str | None = None,  # our word
        threads: int | None = None,
    ) -> Runnable:
        """Verify and load a version; `format` defaults to `onnx` if there is one, else to the native format.

        Raises:
            NotFoundError: no such version or format.
            IntegrityError: a file is not what was sealed.
            DependencyMissingError: the format's framework is not installed.
        """
        version = self.resolve(reference)
        chosen = format or version.default_format
        return find_adapter(chosen).load(self.open_format(version, chosen), threads=threads)

    def input_example(self, version: ModelVersion) -> dict[str, np.ndarray]:
        """Return the real inputs that were sealed with a version, by name."""
        return read_example(version.folder, version.wrapper)

    def check(self, name: str, number: int, *, alias: str = "champion") -> GateReport:
        """Return what the gate would say now; changes nothing."""
        return self._promoter.check(name, number, alias=alias)

    def promote(
        self,
        name: str,
        number: int,
        *,
        alias: str = "champion",
        reason: str,
        actor: str,
        expect: Expectation = EXPECT_ANY,
    ) -> LedgerEntry:
        """Point `alias` at a version: gate, alias and ledger row in one transaction.

        `expect` is the number that must hold the alias now (None: nobody); without it any holder is replaced. Promoting
        the present holder writes nothing and returns the row that put it there.

        Raises:
            GateRefusedError: `facts["report"]` holds the verdicts.
            ConflictError: another version holds the alias; `facts["holder"]` names it.
            IntegrityError: MLflow's alias row was moved behind noa's back.
        """
        return self._promoter.promote(name, number, alias=alias, reason=reason, actor=actor, expect=expect)

    def rollback(
        self, name: str, *, alias: str = "champion", reason: str, actor: str, expect: Expectation = EXPECT_ANY
    ) -> LedgerEntry:
        """Point `alias` at the version it had before; a second rollback goes one further back.

        The bytes and the equivalence of the formats are checked again; limits on metrics are not: they could block the
        way back in an emergency.

        Raises:
            NotFoundError: there is no earlier version.
            GateRefusedError: the earlier version's files were changed; `facts["report"]` names them.
            ConflictError: another version holds the alias; `facts["holder"]` names it.
        """
        return self._promoter.rollback(name, alias=alias, reason=reason, actor=actor, expect=expect)

    def previous(self, name: str, *, alias: str = "champion") -> int:
        """Return the number of the version that `rollback` would move to; changes nothing.

        Raises:
            NotFoundError: there is no earlier version.
        """
        return self._promoter.previous(name, alias=alias)

    def history(self, name: str, *, alias: str | None = None) -> list[LedgerEntry]:
        """Return who moved which alias when, from, to and why, newest first.

        Raises:
            NotFoundError: there is no such model.
        """
        with self._database.read() as connection:
            newest_number(connection, check_name(name))
            return load_history(connection, name, alias)

    def verify_ledger(self) -> None:
        """Check the ledger's chain, and that every alias is where the ledger says.

        Raises:
            IntegrityError: names the row or alias that does not fit.
        """
        self._promoter.verify_ledger()

    def mirror_discrepancies(self) -> list[Discrepancy]:
        """Return where MLflow's rows differ from noa's: what somebody changed behind noa's back."""
        with self._database.snapshot() as connection:
            return find_discrepancies(connection, self._artifacts.root)

    def repair_mirror(self) -> list[Discrepancy]:
        """Write MLflow's alias and version rows anew from noa's, and return what differed."""
        with self._database.write() as connection:
            return rewrite_mirror(connection, self._artifacts.root)

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _is_sealed(self, uid: str) -> bool:
        in_versions = select(versions.c.uid).where(versions.c.uid == uid)
        in_formats = select(formats.c.uid).where(formats.c.uid == uid)
        with self._database.read() as connection:
            return any(connection.execute(query).first() is not None for query in (in_versions, in_formats))


def _number_of(connection: Connection, reference: ModelReference, held: dict[str, int]) -> int:
    if reference.number is not None:
        return reference.number
    if reference.alias is None:
        return newest_number(connection, reference.name)
    if reference.alias in held:
        return held[reference.alias]
    newest = newest_number(connection, reference.name)
    raise NotFoundError(
        f"no alias `{reference.alias}` of model `{reference.name}`",
        expected=", ".join(f"`{alias}` (version {number})" for alias, number in sorted(held.items())) or "no alias yet",
        received=f"`{reference}`",
        remedy=f"Promote a version first: noa models promote {reference.name}/{newest} --alias {reference.alias}",
        newest=newest,
    )
