"""Promotion: the only way in which an alias moves.

The bytes are hashed first, which takes a while and needs no lock. Then one transaction reads the holder, compares it
with what the caller expects, lets the gate judge on what is in the database at that instant, and writes alias, ledger
row, event and MLflow's row and marks the approvals it used, or does nothing. Nothing in it reads more because there are
more versions, or because the alias has moved often.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from sqlalchemy import Connection, insert, select, update

from noa.errors import ConflictError, GateRefusedError, IntegrityError, NotFoundError, StorageError
from noa.references import check_alias, check_name, check_number
from noa_registry import alias_stack, mlflow_rows
from noa_registry.approvals.desk import ApprovalDesk, Standing
from noa_registry.approvals.values import ValidApproval
from noa_registry.attachments import load_attachment
from noa_registry.clock import CLOCK_TOLERANCE, newest_move, refuse_clock_behind
from noa_registry.database import Database, now, to_text
from noa_registry.events.outbox import append_event
from noa_registry.evidence_sets import IN_VERDICT, load_set
from noa_registry.gates import ApprovalFact, Candidate, GateInput, GateReport, GateWork, evaluate, evaluate_rollback
from noa_registry.gates.known_policy import KnownPolicy, policy_in_evidence, policy_in_ledger
from noa_registry.gates.measured_rows import measured_rows_verdicts
from noa_registry.gates.report import report_of
from noa_registry.identity import registry_id
from noa_registry.ledger import GENESIS, Action, LedgerEntry, entry_hash
from noa_registry.ledger_anchors import AnchorFile, head_of
from noa_registry.ledger_events import EVENT_KINDS, event_payload
from noa_registry.records import (
    insert_entry,
    last_entry,
    load_entry,
    load_evidence,
    load_version,
    newest_number,
    shown_time,
)
from noa_registry.registration import candidate_of
from noa_registry.sealed_files import SealedFiles
from noa_registry.store_head import StoreHead
from noa_registry.tables import aliases, models
from noa_registry.versions import ModelVersion
from noa_registry.words import check_actor, check_reason

if TYPE_CHECKING:
    from noa.settings import GateSettings


class _Expect(Enum):
    ANY = "any holder"


EXPECT_ANY: Final = _Expect.ANY
Expectation: TypeAlias = int | _Expect | None
_SHOWN_PROBLEMS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Move:
    name: str
    alias: str
    action: Action
    reason: str
    actor: str
    expect: Expectation


@dataclass(frozen=True, slots=True, kw_only=True)
class _Holder:
    number: int
    digest: str
    sequence: int


@dataclass(frozen=True, slots=True)
class _Done:
    entry: LedgerEntry
    registry: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoter:
    """Moves aliases. `gates` maps model names to their policies; every move is kept in `anchor`, if there is one.

    `store_head` is told of every move, too: it shows a database that is older than the models.
    """

    database: Database
    root: Path
    files: SealedFiles
    gates: Mapping[str, GateSettings]
    approvals: ApprovalDesk
    anchor: AnchorFile | None = None
    store_head: StoreHead | None = None
    clock_tolerance: timedelta = CLOCK_TOLERANCE

    def check(self, name: str, number: int, *, alias: str, actor: str | None = None) -> GateReport:
        """Return what the gate would say now (to `actor`, who may not approve what they promote); changes nothing."""
        check_alias(alias)
        version, problem = self._hash(name, number)
        with self.database.read() as connection:
            holder = _holder(connection, name, alias)
            standing = self.approvals.standing(connection, version, alias, actor)
            facts = self._facts(connection, version, alias, problem, holder, standing, actor or "")
        return evaluate(facts, self._work())

    def warnings(self) -> list[GateReport]:
        """Return the warnings about the present holders of guarded aliases. See `Registry.gate_warnings`."""
        reports: list[GateReport] = []
        with self.database.snapshot() as connection:
            for row in connection.execute(select(aliases.c.name, aliases.c.alias, aliases.c.number)).all():
                policy = self.gates.get(row.name)
                if policy is None or (policy.aliases and row.alias not in policy.aliases):
                    continue
                try:
                    candidate = self._candidate(connection, row.name, row.number)
                except IntegrityError:
                    continue
                facts = GateInput(candidate=candidate, alias=row.alias, policy=policy).on_rows(policy.datasets)
                found = [verdict for verdict in measured_rows_verdicts(facts, policy) if verdict.warning is not None]
                if found:
                    reports.append(report_of(candidate.reference, row.alias, found))
        return reports

    def promote(
        self, name: str, number: int, *, alias: str, reason: str, actor: str, expect: Expectation
    ) -> LedgerEntry:
        """Point `alias` at a version if the gate allows it. See `Registry.promote`."""
        self.database.require_writable()
        move = _checked_move(name, alias, "promote", reason, actor, expect)
        self._require_ours()
        work = self._work()
        while True:
            version, problem = self._hash(name, number)
            self._judge_early(move, version, problem, work)
            with self.database.write() as connection:
                holder = _holder(connection, name, alias)
                _check_holder(connection, move, holder)
                refuse_clock_behind(connection, self.clock_tolerance)
                present = load_version(connection, self.root, name, number)
                # Else a format was added meanwhile: its bytes count too.
                if present.formats.keys() <= version.formats.keys():
                    done = self._promote(connection, move, holder, present, problem, work)
                    break
        return self._anchored(done)

    def rollback(self, name: str, *, alias: str, reason: str, actor: str, expect: Expectation) -> LedgerEntry:
        """Point `alias` at the version it had before. See `Registry.rollback`."""
        self.database.require_writable()
        move = _checked_move(name, alias, "rollback", reason, actor, expect)
        self._require_ours()
        with self.database.snapshot() as connection:  # else a move in between looks like somebody's tampering
            holder = _holder(connection, name, alias)
            if holder is not None:  # else there is nothing to go back from, whatever the caller expects
                _check_holder(connection, move, holder)
            target = _previous(connection, move, holder)
        while True:
            version, problem = self._hash(name, target)
            with self.database.write() as connection:
                holder = _holder(connection, name, alias)
                _check_holder(connection, move, holder)
                refuse_clock_behind(connection, self.clock_tolerance)
                target = _previous(connection, move, holder)
                present = load_version(connection, self.root, name, target)
                if target == version.number and present.formats.keys() <= version.formats.keys():
                    candidate = candidate_of(present, load_evidence(connection, name, target))
                    known = _known_policy(connection, holder, candidate, alias)
                    report = evaluate_rollback(
                        candidate, alias=alias, bytes_problem=problem, policy=known.digest if known else None
                    )
                    _require_passed(present, move, report)
                    done = _write_move(connection, move, holder, present, report.to_dict())
                    break
        return self._anchored(done)

    def previous(self, name: str, *, alias: str) -> int:
        """Return the version that a rollback would move to. See `Registry.previous`."""
        move = _checked_move(name, alias, "rollback", "only asked", "nobody", EXPECT_ANY)
        with self.database.snapshot() as connection:
            return _previous(connection, move, _holder(connection, name, alias))

    def _work(self) -> GateWork:
        return GateWork(self._attachment)

    def _attachment(self, digest: str) -> bytes:
        with self.database.read() as connection:
            return load_attachment(connection, digest).content

    def _judge_early(self, move: _Move, version: ModelVersion, problem: str | None, work: GateWork) -> None:
        """Do what takes a while before the database is locked; the verdict that counts is given again inside."""
        with self.database.read() as connection:
            holder = _holder(connection, move.name, move.alias)
            standing = self.approvals.standing(connection, version, move.alias, move.actor)
            facts = self._facts(connection, version, move.alias, problem, holder, standing, move.actor)
        evaluate(facts, work)

    def _promote(
        self,
        connection: Connection,
        move: _Move,
        holder: _Holder | None,
        version: ModelVersion,
        problem: str | None,
        work: GateWork,
    ) -> _Done:
        standing = self.approvals.standing(connection, version, move.alias, move.actor)
        facts = self._facts(connection, version, move.alias, problem, holder, standing, move.actor)
        report = evaluate(facts, work)
        _require_passed(version, move, report, standing)
        if holder is not None and holder.number == version.number:
            # It is there already, e.g. a step that was run again.
            return _Done(load_entry(connection, holder.sequence), registry_id(connection))
        used = standing.valid[: self._approvals_needed(version.name, move.alias)]
        verdict = report.to_dict()
        if used:
            verdict["approvals"] = [_used_to_dict(fact) for fact in used]
        done = _write_move(connection, move, holder, version, verdict)
        self.approvals.use(connection, used, done.entry.sequence)
        return done

    def _approvals_needed(self, name: str, alias: str) -> int:
        policy = self.gates.get(name)
        return policy.approvals if policy is not None and (not policy.aliases or alias in policy.aliases) else 0

    def _require_ours(self) -> None:
        """Refuse, before anything is judged, an anchor that cannot be written or is gone, a store that is not ours,
        and a database that is older than its store: a move in it would be a second row with a lost one's number."""
        if self.store_head is not None:
            lost: IntegrityError | None = None
            with suppress(
                StorageError, IntegrityError
            ):  # the mark is a help; what the store holds is verified by itself
                self.store_head.ownership.refuse_foreign()
                lost = self.store_head.find_lost_move()
            if lost is not None:
                raise ConflictError(
                    "no alias is moved: the database is older than the store",
                    where=lost.where,
                    expected=lost.expected,
                    received=lost.received,
                    remedy=lost.remedy,
                ) from lost
        if self.anchor is not None:
            with self.database.read() as connection:
                last = last_entry(connection)
            self.anchor.refuse_gap(0 if last is None else last[0])
            self.anchor.require_writable()

    def _anchored(self, done: _Done) -> LedgerEntry:
        if self.anchor is not None:
            self.anchor.append(head_of(done.entry, done.registry))
        if self.store_head is not None:
            self.store_head.keep(head_of(done.entry, done.registry))
        return done.entry

    def _hash(self, name: str, number: int) -> tuple[ModelVersion, str | None]:
        with self.database.read() as connection:
            version = load_version(connection, self.root, check_name(name), number)
        try:
            self.files.verify(version)
        except IntegrityError as exc:
            return version, exc.what
        return version, None

    def _facts(
        self,
        connection: Connection,
        version: ModelVersion,
        alias: str,
        problem: str | None,
        holder: _Holder | None,
        standing: Standing,
        actor: str,
    ) -> GateInput:
        policy = self.gates.get(version.name)
        candidate = candidate_of(version, load_evidence(connection, version.name, version.number))
        return GateInput(
            candidate=candidate,
            alias=alias,
            bytes_problem=problem,
            policy=policy,
            known_policy=_known_policy(connection, holder, candidate, alias),
            holder=None if holder is None else self._candidate(connection, version.name, holder.number),
            approvals=tuple(
                ApprovalFact(principal=approval.principal, digest=version.digest) for approval in standing.valid
            ),
            actor=actor,
        )

    def _candidate(self, connection: Connection, name: str, number: int) -> Candidate:
        version = load_version(connection, self.root, name, number)
        return candidate_of(version, load_evidence(connection, name, number))


def _checked_move(name: str, alias: str, action: Action, reason: str, actor: str, expect: Expectation) -> _Move:
    check_actor(actor)
    check_reason(reason, expected="why the alias moves; the ledger keeps it")
    if expect is not None and not isinstance(expect, _Expect):
        check_number(expect, what="the expected holder")
    return _Move(
        name=check_name(name), alias=check_alias(alias), action=action, reason=reason, actor=actor, expect=expect
    )


def _holder(connection: Connection, name: str, alias: str) -> _Holder | None:
    query = select(aliases.c.number, aliases.c.digest, aliases.c.sequence).where(
        aliases.c.name == name, aliases.c.alias == alias
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else _Holder(number=row.number, digest=row.digest, sequence=row.sequence)


def _known_policy(
    connection: Connection, holder: _Holder | None, candidate: Candidate, alias: str
) -> KnownPolicy | None:
    """Return the policy of the alias's last move, else of the version's last check."""
    if holder is None:
        return policy_in_evidence(candidate.evidence, candidate.digest, alias)
    return policy_in_ledger(load_entry(connection, holder.sequence).verdict, holder.sequence)


def _check_holder(connection: Connection, move: _Move, holder: _Holder | None) -> None:
    """Compare the holder with what the caller and what MLflow's row say."""
    number = None if holder is None else holder.number
    if not isinstance(move.expect, _Expect) and number != move.expect:
        reference = f"{move.name}@{move.alias}"
        other = "is held already" if move.expect is None else f"is not held by version {move.expect}"
        raise ConflictError(
            f"nobody holds `{reference}`" if holder is None else f"`{reference}` {other}",
            expected="no holder" if move.expect is None else f"version {move.expect}",
            received="no holder" if holder is None else _put_there(load_entry(connection, holder.sequence)),
            remedy=f"Look at it with: noa models history {move.name}",
            holder=number,
        )
    mirrored = mlflow_rows.alias_number(connection, move.name, move.alias)
    if mirrored != number:
        raise IntegrityError(
            f"`{move.name}@{move.alias}` was moved in MLflow behind noa's back",
            expected="no holder" if number is None else f"version {number}",
            received="no alias" if mirrored is None else f"version {mirrored}",
            remedy="See it with: noa doctor; `Registry.repair_mirror` writes MLflow's rows anew",
            file="registered_model_aliases",
        )


def _put_there(entry: LedgerEntry) -> str:
    """Return which version holds an alias, and who moved it there when, from where and why."""
    before = "" if entry.from_number is None else f" in place of version {entry.from_number}"
    moment = shown_time(to_text(entry.created_at))
    return f"version {entry.to_number}, put there by {entry.actor} at {moment}{before} ({entry.reason})"


def _previous(connection: Connection, move: _Move, holder: _Holder | None) -> int:
    if holder is None:
        newest_number(connection, move.name)  # says so if there is no such model
        raise NotFoundError(
            f"`{move.name}@{move.alias}` does not exist",
            remedy=f"Promote a version first: noa models promote {move.name}/NUMBER --alias {move.alias}",
        )
    below = alias_stack.below_holder(connection, move.name, move.alias, holder.number)
    if below is None:
        raise NotFoundError(
            f"`{move.name}@{move.alias}` had no version before {holder.number}",
            remedy=f"Promote another version instead: noa models promote {move.name}/NUMBER --alias {move.alias}",
            holder=holder.number,
        )
    return below


def _require_passed(version: ModelVersion, move: _Move, report: GateReport, standing: Standing | None = None) -> None:
    if report.passed:
        return
    remedy = f"See all verdicts with `noa models check {version.reference}`"
    if all(verdict.rule == "approvals" for verdict in report.refusals):
        remedy = f"Somebody else approves it with: noa models approve {version.reference} --alias {move.alias}"
        if standing is not None and standing.problems:
            remedy += f" (what there is does not count: {'; '.join(standing.problems[-_SHOWN_PROBLEMS:])})"
    raise GateRefusedError(
        f"the gate refuses `{version.reference}` as `{move.alias}`: "
        + "; ".join(f"{v.rule}: expected {v.expected}, received {v.received}" for v in report.refusals),
        remedy=remedy,
        report=report,
    )


def _write_move(
    connection: Connection,
    move: _Move,
    holder: _Holder | None,
    version: ModelVersion,
    verdict: Mapping[str, object],
) -> _Done:
    """Write everything that a move consists of: ledger row, alias, stack, MLflow's row and event."""
    judged = load_set(connection, version.name, version.number)
    if judged is not None:
        verdict = {**verdict, IN_VERDICT: judged.to_dict()}
    entry = _next_entry(connection, move, holder, version, verdict)
    insert_entry(connection, entry)
    here = (aliases.c.name == move.name) & (aliases.c.alias == move.alias)
    values = {"number": version.number, "digest": version.digest, "sequence": entry.sequence}
    if holder is None:
        connection.execute(insert(aliases).values(name=move.name, alias=move.alias, **values))
    else:
        connection.execute(update(aliases).where(here).values(**values))
    if move.action == "promote":
        alias_stack.push(connection, entry)
    else:
        alias_stack.pop(connection, move.name, move.alias)
    connection.execute(update(models).where(models.c.name == move.name).values(updated_at=to_text(entry.created_at)))
    mlflow_rows.set_alias(connection, name=move.name, alias=move.alias, number=version.number)
    append_event(
        connection, EVENT_KINDS[move.action], name=move.name, payload=event_payload(entry), at=entry.created_at
    )
    return _Done(entry, registry_id(connection))


def _used_to_dict(fact: ValidApproval) -> dict[str, object]:
    return {
        "id": fact.id,
        "principal": fact.principal,
        "statement": fact.statement,
        "expires_at": to_text(fact.expires_at),
        "is_signed": fact.is_signed,
    }


def _next_entry(
    connection: Connection, move: _Move, holder: _Holder | None, version: ModelVersion, verdict: Mapping[str, object]
) -> LedgerEntry:
    sequence, previous = last_entry(connection) or (0, GENESIS)
    entry = LedgerEntry(
        sequence=sequence + 1,
        name=move.name,
        alias=move.alias,
        action=move.action,
        from_number=None if holder is None else holder.number,
        to_number=version.number,
        from_digest=None if holder is None else holder.digest,
        to_digest=version.digest,
        actor=move.actor,
        reason=move.reason,
        verdict=verdict,
        created_at=max(now(), newest_move(connection) or now()),  # within the tolerance: never before the last row
        previous_hash=previous,
        hash="",
    )
    return replace(entry, hash=entry_hash(entry))
