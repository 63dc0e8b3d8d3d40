"""The registry: which model is it?

One object per process and project; safe to share between threads. It keeps no state of its own beyond connections: the
database and the artifact folder are the truth, and any number of processes use them at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Self, cast

from sqlalchemy import Connection, select

from noa.current_user import current_user
from noa.digests import FileProblem
from noa.errors import IntegrityError, InvalidInputError, NoaError, NotFoundError, StorageError
from noa.formats import CheckedRunnable, Runnable, find_adapter
from noa.references import ModelReference, check_name, parse_reference
from noa.texts import check_text
from noa_registry.approvals.desk import ApprovalDesk
from noa_registry.archives import Archives
from noa_registry.archives.workspace import WORKSPACES, remove_dead, workspace
from noa_registry.artifacts import ArtifactStore, UnitKey, check_artifact_settings, open_artifacts, runs_uri
from noa_registry.attachments import load_attachment
from noa_registry.bootstrap import open_database
from noa_registry.cards import SERVER, Card, CardFacts
from noa_registry.clock import CLOCK_TOLERANCE
from noa_registry.database import Database, now
from noa_registry.digest_prefix import DIGEST, find_version, is_bare
from noa_registry.endpoints import Endpoints
from noa_registry.events.log import DEFAULT_KEEP, EventLog
from noa_registry.evidence import (
    Attachment,
    Evidence,
    GoldenRequests,
    Way,
    decode_golden,
    find_golden,
    refuse_reserved,
)
from noa_registry.faults import Checkpoint, no_checkpoint
from noa_registry.file_repair import FileRepair, repair_files
from noa_registry.foreign_cells import find_foreign_cells
from noa_registry.gates import BootstrapPlan, GateReport
from noa_registry.ledger import LedgerEntry
from noa_registry.ledger_anchors import AnchorFile
from noa_registry.ledger_book import LedgerBook
from noa_registry.lineage.graph import Direction, LineageGraph
from noa_registry.lineage.query import load_lineage
from noa_registry.mirror import find_discrepancies
from noa_registry.mirror_findings import Discrepancy
from noa_registry.mirror_repair import repair_mirror
from noa_registry.promotion import EXPECT_ANY, Expectation, Promoter
from noa_registry.records import (
    Holder,
    find_record_problems,
    load_aliases,
    load_evidence,
    load_history,
    load_holder,
    load_moves_of,
    load_numbers,
    load_summaries,
    load_version,
    load_versions,
    newest_number,
)
from noa_registry.registration import Registrar
from noa_registry.retention.keeper import Retention
from noa_registry.retention.plan import GRACE, ORPHAN_AGE
from noa_registry.sealed_files import SealedFiles
from noa_registry.seals import DatabaseSeals
from noa_registry.search.counted import CountedValues
from noa_registry.search.pages import SearchPage, search
from noa_registry.signing import Signatures, load_signatures
from noa_registry.store_head import StoreHead
from noa_registry.store_problems import find_lost_models, find_store_problems
from noa_registry.store_transfer import StoreTransfer, adopt_store, look_at_store
from noa_registry.tables import models
from noa_registry.time_problems import find_time_problems
from noa_registry.versions import ModelSummary, ModelVersion, VersionDraft
from noa_registry.words import check_actor

if TYPE_CHECKING:
    import numpy as np

    from noa.settings import GateSettings, RegistrySettings, Settings, SigningSettings
    from noa_registry.comparison import Comparison

_NO_GATES: Mapping[str, GateSettings] = MappingProxyType({})
_NO_PRINCIPALS: Mapping[str, str] = MappingProxyType({})


class Registry:
    """Versions, aliases, evidence and the ledger. Made by `Registry.open`; close it, or use it in a `with` block."""

    def __init__(
        self,
        database: Database,
        artifacts: ArtifactStore,
        *,
        gates: Mapping[str, GateSettings] = _NO_GATES,
        principals: Mapping[str, str] = _NO_PRINCIPALS,
        ledger_anchor: Path | None = None,
        signing: SigningSettings | None = None,
        keep_events: timedelta = DEFAULT_KEEP,
        clock_tolerance: timedelta = CLOCK_TOLERANCE,
        checkpoint: Checkpoint = no_checkpoint,
    ) -> None:
        self._database = database
        self._checkpoint = checkpoint
        self._artifacts = artifacts
        self._signatures = Signatures(database, signing)
        self._files = SealedFiles(artifacts, self._signatures)
        self._registrar = Registrar(
            database=database,
            artifacts=artifacts,
            signatures=self._signatures,
            gates=gates,
            checkpoint=checkpoint,
        )
        self._approvals = ApprovalDesk(database, principals=principals, clock_tolerance=clock_tolerance)
        self._keep_events = keep_events
        anchor = None if ledger_anchor is None else AnchorFile(ledger_anchor)
        self._promoter = Promoter(
            database=database,
            root=artifacts.root,
            files=self._files,
            gates=gates,
            approvals=self._approvals,
            anchor=anchor,
            store_head=StoreHead(database, artifacts.ownership),
            clock_tolerance=clock_tolerance,
        )
        self._ledger = LedgerBook(
            database,
            approvals=self._approvals,
            anchor=anchor,
            clock_tolerance=clock_tolerance,
            keep_events=keep_events,
        )

    @classmethod
    def open(
        cls,
        settings: Settings | RegistrySettings,
        *,
        gates: Mapping[str, GateSettings] | None = None,
        checkpoint: Checkpoint = no_checkpoint,
    ) -> Registry:
        """Open the registry, creating everything that is missing. Safe for many processes at once.

        Where this user cannot write the SQLite file or its folder, everything that only reads works (`is_read_only`).

        Give it all settings of the project, so that its gates apply; with `[registry]` alone, or other `gates`, a
        promotion is refused where the ledger knows of a policy. `checkpoint` is called with the name of each step of a
        registration; tests stop the process there.

        Raises:
            SettingsError: `database_url` names no SQLite file and no PostgreSQL database.
            DependencyMissingError: the driver of PostgreSQL or of S3 is not installed; nothing was made.
            StorageError: the disk or server refused, or the database belongs to a newer noa or MLflow.
        """
        from noa.settings import Settings as AllSettings  # pydantic's models are made when somebody opens a registry

        if isinstance(settings, AllSettings):
            gates = settings.gates if gates is None else gates
            settings = settings.registry
        check_artifact_settings(settings)
        database = open_database(
            settings.database_url, artifact_root=runs_uri(settings), lock_timeout_s=settings.lock_timeout_s
        )
        registry = cls(
            database,
            open_artifacts(settings, seals=DatabaseSeals(database)),
            gates=_NO_GATES if gates is None else gates,
            principals=settings.principals,
            ledger_anchor=settings.ledger_anchor,
            signing=settings.signing,
            keep_events=timedelta(days=settings.events_keep_days),
            clock_tolerance=timedelta(seconds=settings.clock_tolerance_s),
            checkpoint=checkpoint,
        )
        try:
            if not database.is_read_only:
                registry._artifacts.remove_leftovers()
                remove_dead(registry._artifacts.root / WORKSPACES)
        except BaseException:
            registry.close()
            raise
        return registry

    @property
    def is_read_only(self) -> bool:
        """Tell whether this process can only read: whatever writes raises a `StorageError` before anything is done."""
        return self._database.is_read_only

    @property
    def signatures(self) -> Signatures:
        """Sign versions, list their signatures and check them."""
        return self._signatures

    def card(self, reference: str | ModelReference, *, server: str = SERVER) -> Card:
        """Return the model card of a version: `to_markdown()` and `to_html()` write it.

        `server` is the URL of the server in its examples.

        Raises:
            NotFoundError: there is no such model, version or alias.
        """
        version = self.resolve(reference)
        graph = self.lineage(version.reference)
        with self._database.snapshot() as connection:
            facts = CardFacts(
                version=version,
                evidence=tuple(load_evidence(connection, version.name, version.number)),
                moves=tuple(load_moves_of(connection, version.name, version.number)),
                signatures=tuple(load_signatures(connection, version.name, version.number)),
                lineage=graph,
                policy=self._promoter.gates.get(version.name),
                server=server,
            )
        return Card(facts)

    @property
    def archives(self) -> Archives:
        """Write a version to one file, and register what is in such a file."""
        return Archives(database=self._database, files=self._files, registrar=self._registrar)

    def workspace(self) -> AbstractContextManager[Path]:
        """Give a private folder, beside the models, in which something is prepared; it is removed when the block ends.

        What a process that was killed left in its own is removed by the next one that opens the registry.
        """
        self._database.require_writable()
        return workspace(self._artifacts.root / WORKSPACES)

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

    def attach(
        self,
        name: str,
        number: int,
        evidence: Sequence[Evidence] | Evidence,
        *,
        actor: str | None = None,
        by_pipeline: bool = False,
    ) -> None:
        """Append evidence to a version.

        It is kept that `actor` did so (the user of this process, if nobody is named), and when: the verdicts that it is
        judged by say it, and that it was attached by hand, unless a program that measures says `by_pipeline`.

        Raises:
            NotFoundError: there is no such version.
            InvalidInputError: a fact lacks what its kind needs, or is of a kind that only noa itself writes.
        """
        facts = [evidence] if isinstance(evidence, Evidence) else list(evidence)
        refuse_reserved(facts)
        way: Way = "pipeline" if by_pipeline else "attached"
        self._registrar.attach(name, number, facts, actor=current_user() if actor is None else actor, way=way)

    def evidence(self, name: str, number: int) -> list[Evidence]:
        """Return all evidence of a version in the order in which it was attached."""
        with self._database.read() as connection:
            load_version(connection, self._artifacts.root, name, number)
            return load_evidence(connection, name, number)

    def resolve(self, reference: str | ModelReference) -> ModelVersion:
        """Return the version that `name@alias`, `name/3` or `name` (the newest) means now.

        Also `sha256:` and eight or more digits, if only one version has such a digest, or a format with one.

        Raises:
            NotFoundError: there is no such model, version or alias; the message says what there is.
            InvalidInputError: it is no reference, or a digest of several versions; the message names them.
            IntegrityError: its records were changed.
        """
        with self._database.read() as connection:
            parsed = _parsed(connection, reference)
            # Refuses an alias that the ledger does not know.
            holder = None if parsed.alias is None else load_holder(connection, parsed.name, parsed.alias)
            number = _number_of(connection, parsed) if holder is None else holder[0]
            return load_version(connection, self._artifacts.root, parsed.name, number)

    def resolve_digest(self, name: str, alias: str) -> tuple[int, str] | None:
        """Return number and digest of the version that an alias points to, None if the alias does not exist.

        Raises:
            IntegrityError: the alias is not where the ledger says.
        """
        holder = self.holder(name, alias)
        return None if holder is None else (holder.number, holder.digest)

    def holder(self, name: str, alias: str) -> Holder | None:
        """Return what `resolve_digest` does, with the row of the ledger that put it there.

        Raises:
            IntegrityError: the alias is not where the ledger says.
        """
        with self._database.read() as connection:
            return load_holder(connection, name, alias)

    def models(self) -> list[ModelSummary]:
        """Return one line per model, by name."""
        with self._database.read() as connection:
            return load_summaries(connection)

    def versions(
        self, name: str, *, limit: int = 50, offset: int = 0, problems: list[IntegrityError] | None = None
    ) -> list[ModelVersion]:
        """Return versions of a model, newest first.

        With `problems`, a version whose record was changed is left out, and its error is appended there.

        Raises:
            NotFoundError: there is no such model.
            IntegrityError: a record was changed.
        """
        check_name(name)
        if limit < 1 or offset < 0:
            raise InvalidInputError("a page must not be empty", expected="limit >= 1, offset >= 0", received=str(limit))
        with self._database.read() as connection:
            return load_versions(connection, self._artifacts.root, name, limit=limit, offset=offset, problems=problems)

    def search(self, query: str, *, limit: int = 50, cursor: str | None = None) -> SearchPage:
        """Return a page of the versions that a query finds, newest first unless it sorts; see `docs/search.md`.

        E.g. `digits tag.team=vision metric.accuracy>=0.98 -is:live sort:metric.accuracy`. `cursor` is the `next_cursor`
        of the page before. What is in the trash is found by `is:trashed` only. Hits are lines of a list: nothing about
        them is verified before `resolve` or `load`.

        Raises:
            InvalidInputError: the query is not readable (`facts["column"]`), or the cursor belongs to another one.
        """
        counted = CountedValues(self._promoter.gates)
        return search(self._database, check_text(query, field="query"), limit=limit, cursor=cursor, counted=counted)

    def numbers(self, name: str) -> list[int]:
        """Return the numbers of all versions of a model, oldest first; reads no more than that.

        Raises:
            NotFoundError: there is no such model.
        """
        with self._database.read() as connection:
            return load_numbers(connection, check_name(name))

    def verify(self, name: str, number: int, *, format: str | None = None) -> None:  # our word
        """Hash all files of a version, or of one of its formats, anew where they are kept.

        Raises:
            IntegrityError: names every file that differs, is missing or is extra; `facts["files"]` holds their paths.
        """
        self._files.verify(self.resolve(ModelReference(name=check_name(name), number=number)), format=format)

    def find_record_problems(self, name: str, number: int) -> list[IntegrityError]:
        """Return what of a version's record, its evidence and their attachments is not as it was written; all of it.

        Raises:
            NotFoundError: there is no such version.
        """
        with self._database.snapshot() as connection:
            return find_record_problems(connection, check_name(name), number)

    def find_foreign_cells(self) -> list[IntegrityError]:
        """Return each cell of another type than noa writes, with its row: whatever reads that row may stop at it."""
        with self._database.snapshot() as connection:
            return find_foreign_cells(connection)

    def find_time_problems(self) -> list[IntegrityError]:
        """Return what times of the trash, the approvals, the events and their consumers cannot be read."""
        with self._database.snapshot() as connection:
            return find_time_problems(connection)

    def find_store_problems(self, *, orphan_age: timedelta = ORPHAN_AGE, grace: timedelta = GRACE) -> list[NoaError]:
        """Return what of the store does not belong to the database.

        That is another registry's mark, a newer ledger than the database's, and units of no version: they may be
        removed when they are `orphan_age` old, and `grace` after this registry took the store over.
        """
        return find_store_problems(self._database, self._artifacts, orphan_age=orphan_age, grace=grace)

    def find_lost_models(self) -> NoaError | None:
        """Return why this may be the wrong database for the store, if it shows no model at all."""
        return find_lost_models(self._database, self._artifacts)

    def look_at_store(self) -> StoreTransfer:
        """Return whose the store is and what `adopt_store` would take over; changes nothing."""
        return look_at_store(self._database, self._artifacts)

    def adopt_store(self, *, actor: str) -> StoreTransfer:
        """Let this registry have the store, whoever's it was, and return what it was.

        What another registry has there is never removed unasked, and not at all before the grace period is over.
        """
        check_actor(actor)
        return adopt_store(self._database, self._artifacts, actor=actor, moment=now())

    def find_problems(self, version: ModelVersion, *, format: str | None = None) -> list[FileProblem]:  # our word
        """Do as `verify` does, and return what it found instead of raising."""
        return self._files.find_problems(version, format=format)

    def open_format(self, version: ModelVersion, format: str) -> Path:  # our word
        """Return the local folder of a format whose files are verified: ready to load.

        A file is hashed once per machine, and again only after it was written to. Files that are kept in S3 are fetched
        into the local cache first, and stay there while this registry is open.

        Raises:
            NotFoundError: the version has no such format.
            IntegrityError: names every file that is not what was sealed.
            StorageError: S3 does not answer, or the disk refused.
        """
        return self._files.open_format(version, format)

    def location(self, version: ModelVersion) -> str:
        """Return where the files of a version are kept: a `file://` or `s3://` URI, which is also MLflow's source."""
        return self._artifacts.unit_uri(UnitKey(name=version.name, uid=version.uid))

    def open_wrapper(self, version: ModelVersion) -> Path:
        """Return the local folder of `MLmodel` and the other files around the formats, verified as `open_format` does.

        Raises:
            IntegrityError: names every file that is not what was sealed.
            StorageError: S3 does not answer, or the disk refused.
        """
        return self._files.open_wrapper(version)

    def load(
        self,
        reference: str | ModelReference,
        *,
        format: str | None = None,  # our word
        threads: int | None = None,
    ) -> Runnable:
        """Verify and load a version; `format` defaults to `onnx` if there is one, else to the native format.

        What it returns checks its inputs against the signature, and raises `SignatureError` for what does not fit.

        Raises:
            NotFoundError: no such version or format.
            IntegrityError: a file is not what was sealed.
            DependencyMissingError: the format's framework is not installed.
        """
        version = self.resolve(reference)
        chosen = version.sealed(format or version.default_format).name
        return CheckedRunnable(find_adapter(chosen).load(self.open_format(version, chosen), threads=threads))

    def input_example(self, version: ModelVersion) -> dict[str, np.ndarray]:
        """Return the real inputs that were sealed with a version, by name."""
        return self._files.input_example(version)

    def golden_requests(self, version: ModelVersion, format: str) -> GoldenRequests | None:  # our word
        """Return requests with the answers of the format that was proven equivalent, or whose equivalent was; or None.

        Raises:
            NotFoundError: the version has no such format, or the attachment is gone.
            IntegrityError: they are not what was recorded.
        """
        fact = find_golden(
            self.evidence(version.name, version.number), format=format, digest=version.sealed(format).digest
        )
        return None if fact is None else decode_golden(self.attachment(str(fact.values["attachment"])).content, fact)

    def attachment(self, digest: str) -> Attachment:
        """Return bytes that evidence names under `attachment`, after hashing them again.

        Raises:
            NotFoundError: there are none with this digest.
            IntegrityError: they were changed.
        """
        with self._database.read() as connection:
            return load_attachment(connection, digest)

    def compare(
        self, a: str | ModelReference, b: str | ModelReference, *, plan: BootstrapPlan | None = None
    ) -> Comparison:
        """Return two versions side by side: measurements with bootstrap intervals, and what they were made from.

        Without a `plan` the intervals are drawn as the gate of B's model draws them (`comparison_plan`).

        Raises:
            NotFoundError: there is no such model, version or alias.
        """
        from noa_registry.comparison import compare_versions  # most processes never compare

        left, right = self.resolve(a), self.resolve(b)
        facts = [self.evidence(version.name, version.number) for version in (left, right)]
        return compare_versions(
            left,
            facts[0],
            right,
            facts[1],
            read_attachment=lambda digest: self.attachment(digest).content,
            plan=plan,
            policy=self._promoter.gates.get(right.name),
        )

    def comparison_plan(self, b: str | ModelReference) -> BootstrapPlan:
        """Return the plan by which the gate of a model judges differences; the default where there is no such gate.

        Raises:
            NotFoundError: there is no such model, version or alias.
        """
        from noa_registry.gates.bootstrap import plan_of

        return plan_of(self._promoter.gates.get(self.resolve(b).name))

    def check(
        self, name: str, number: int, *, alias: str = "champion", actor: str | None = None, record: bool = True
    ) -> GateReport:
        """Return what the gate would say now, to `actor` if that is known; moves nothing.

        The verdict is kept as evidence of kind `gate`, once as long as it stays the same; not with `record=False`.
        """
        if record:
            self._database.require_writable()
        report = self._promoter.check(name, number, alias=alias, actor=actor)
        if record:
            self._keep_verdict(name, number, report, actor=actor or current_user())
        return report

    def gate_warnings(self) -> list[GateReport]:
        """Return what the gates of all live aliases pass without knowing: reports that hold only such verdicts.

        It hashes nothing and judges nothing else. An alias whose records were changed is left to
        `find_record_problems`.
        """
        return self._promoter.warnings()

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
        """Point `alias` at a version: gate, approvals, alias, ledger row, event and MLflow's row in one transaction.

        `expect` is the number that must hold the alias now (None: nobody); without it any holder is replaced. Promoting
        the present holder writes nothing and returns the row that put it there.

        Raises:
            GateRefusedError: `facts["report"]` holds the verdicts.
            ConflictError: another version holds the alias; `facts["holder"]` names it, the text who put it there.
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
        for problem in self._ledger.verify().problems:
            raise problem.to_error()

    @property
    def ledger(self) -> LedgerBook:
        """The ledger's pages, its newest hash, and a report of everything that is not as it was written."""
        return self._ledger

    @property
    def approvals(self) -> ApprovalDesk:
        """Approvals of versions for protected aliases: grant, list, revoke."""
        return self._approvals

    @property
    def events(self) -> EventLog:
        """What happened, in order, for consumers that remember how far they have come."""
        return EventLog(self._database, keep=self._keep_events)

    @property
    def retention(self) -> Retention:
        """Deleting and restoring versions, and removing for good what nothing needs."""
        return Retention(
            database=self._database,
            store=self._artifacts,
            approvals=self._approvals,
            checkpoint=self._checkpoint,
        )

    @property
    def endpoints(self) -> Endpoints:
        """What endpoints serve, and the replicas that hold a lease on it."""
        return Endpoints(database=self._database)

    def lineage(
        self, question: str, *, direction: Direction = "both", depth: int | None = None, limit: int = 10
    ) -> LineageGraph:
        """Return what a version, model, dataset digest, run or job came from and where it went, as one graph.

        `question` is e.g. `digits/3`, `digits@champion`, `digits`, `sha256:...` or the id of a run or job. `depth` is
        the most edges from there; of more than `limit` versions those in use and then the newest are shown, the others
        counted. What is in the trash is shown as such.

        Raises:
            NotFoundError: nothing of that name is known.
        """
        check_text(question, field="question")
        with self._database.snapshot() as connection:
            return load_lineage(connection, question, direction=direction, depth=depth, limit=limit, moment=now())

    def mirror_discrepancies(self) -> list[Discrepancy]:
        """Return where MLflow's rows differ from noa's: what somebody changed behind noa's back."""
        with self._database.snapshot() as connection:
            return find_discrepancies(connection, self._artifacts, self._promoter.gates)

    def repair_mirror(self) -> list[Discrepancy]:
        """Write MLflow's rows anew from noa's, put dropped triggers back, and return what differed and was repaired.

        Raises:
            ConflictError: the store belongs to another registry; rows that point into the right one are left alone.
        """
        self._database.require_writable()
        self._artifacts.ownership.refuse_foreign()
        with self._database.write() as connection:
            return repair_mirror(connection, self._artifacts, self._promoter.gates)

    def repair_files(self, name: str, number: int) -> list[FileRepair]:
        """Put back files of a version that differ from what was sealed, where the same bytes exist elsewhere.

        Returns what was done about each; what exists nowhere else is left as it is and said so.
        """
        version = self.resolve(ModelReference(name=check_name(name), number=number))
        return repair_files(self._database, self._artifacts, version)

    @property
    def was_replaced(self) -> bool:
        """Whether another file lies in the place of the database that was opened: it is to be opened again.

        Raises:
            StorageError: there is no file any more.
        """
        if self._database.is_gone:
            raise StorageError(
                "the registry's database is not there any more",
                where=str(self._database.url),
                remedy="Put it back, e.g. from a backup; who has it open goes on with what it knew",
            )
        return self._database.was_replaced

    def close(self) -> None:
        """Close all connections, and let go of the local copies of files."""
        self._artifacts.close()
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _keep_verdict(self, name: str, number: int, report: GateReport, *, actor: str) -> None:
        fact = report.to_evidence(self.resolve(ModelReference(name=name, number=number)).digest)
        kept = (
            entry
            for entry in reversed(self.evidence(name, number))
            if entry.kind == fact.kind and entry.values.get("alias") == report.alias
        )
        newest = next(kept, None)
        if newest is None or newest.values != fact.values:
            self._registrar.attach(name, number, [fact], actor=actor, way="checked")


def _parsed(connection: Connection, reference: str | ModelReference) -> ModelReference:
    if isinstance(reference, ModelReference):
        return reference
    if not isinstance(cast("object", reference), str):
        return parse_reference(reference)  # which says what it is
    is_digest = reference.lower().startswith(DIGEST) or (is_bare(reference) and not _has_model(connection, reference))
    if not is_digest:
        return parse_reference(reference)
    name, number = find_version(connection, reference)
    return ModelReference(name=name, number=number)


def _has_model(connection: Connection, name: str) -> bool:
    return connection.execute(select(models.c.name).where(models.c.name == name)).first() is not None


def _number_of(connection: Connection, reference: ModelReference) -> int:
    if reference.number is not None:
        return reference.number
    if reference.alias is None:
        return newest_number(connection, reference.name)
    held = load_aliases(connection, reference.name)
    newest = newest_number(connection, reference.name)
    raise NotFoundError(
        f"no alias `{reference.alias}` of model `{reference.name}`",
        expected=", ".join(f"`{alias}` (version {number})" for alias, number in sorted(held.items()))
        or "an alias that is set; none is yet",
        received=f"`{reference}`",
        remedy=f"Promote a version first: noa models promote {reference.name}/{newest} --alias {reference.alias}",
        newest=newest,
    )
