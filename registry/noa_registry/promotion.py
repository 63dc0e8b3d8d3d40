"""Promotion: the only way in which an alias moves.

The bytes are hashed first, which takes a while and needs no lock. Then one transaction reads the holder, compares it
with what the caller expects, lets the gate judge on what is in the database at that instant, and writes alias, ledger
row and MLflow's row, or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from sqlalchemy import Connection, Row, insert, select, update

from noa.digests import verify_folder
from noa.errors import ConflictError, GateRefusedError, IntegrityError, InvalidInputError, NotFoundError
from noa.references import check_alias, check_name
from noa_registry import mlflow_rows
from noa_registry.database import Database, now, to_text
from noa_registry.gates import Candidate, GateReport, evaluate, evaluate_rollback
from noa_registry.ledger import GENESIS, Action, LedgerEntry, entry_hash, replay, verify_chain
from noa_registry.mlflow_model import verify_wrapper
from noa_registry.records import (
    insert_entry,
    iterate_ledger,
    last_entry,
    load_entry,
    load_evidence,
    load_moves,
    load_version,
    newest_number,
)
from noa_registry.registration import candidate_of, check_actor
from noa_registry.tables import aliases, models
from noa_registry.versions import ModelVersion

if TYPE_CHECKING:
    from noa.settings import GateSettings


class _Expect(Enum):
    ANY = "any holder"


EXPECT_ANY: Final = _Expect.ANY
Expectation: TypeAlias = int | _Expect | None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoter:
    """Moves aliases. `gates` maps model names to their policies."""

    database: Database
    root: Path
    gates: Mapping[str, GateSettings]

    def check(self, name: str, number: int, *, alias: str) -> GateReport:
        """Return what the gate would say now, and change nothing."""
        check_alias(alias)
        version, problem = self._hash(name, number)
        with self.database.read() as connection:
            return self._judge(connection, version, alias, problem, _holder(connection, name, alias))

    def promote(
        self, name: str, number: int, *, alias: str, reason: str, actor: str, expect: Expectation
    ) -> LedgerEntry:
        """Point `alias` at a version if the gate allows it. See `Registry.promote`."""
        move = _checked_move(name, alias, "promote", reason, actor, expect)
        version, problem = self._hash(name, number)
        while True:
            with self.database.write() as connection:
                holder = _holder(connection, name, alias)
                _check_holder(connection, move, holder)
                present = load_version(connection, self.root, name, number)
                if present.formats.keys() <= version.formats.keys():
                    report = self._judge(connection, present, alias, problem, holder)
                    return _settle(connection, move, holder, present, report)
            version, problem = self._hash(name, number)  # a format was added meanwhile: its bytes count too

    def rollback(self, name: str, *, alias: str, reason: str, actor: str, expect: Expectation) -> LedgerEntry:
        """Point `alias` at the version it had before. See `Registry.rollback`."""
        move = _checked_move(name, alias, "rollback", reason, actor, expect)
        with self.database.read() as connection:
            target = _previous(connection, move, _holder(connection, name, alias))
        while True:
            version, problem = self._hash(name, target)
            with self.database.write() as connection:
                holder = _holder(connection, name, alias)
                _check_holder(connection, move, holder)
                target = _previous(connection, move, holder)
                present = load_version(connection, self.root, name, target)
                if target == version.number and present.formats.keys() <= version.formats.keys():
                    candidate = candidate_of(present, load_evidence(connection, name, target))
                    report = evaluate_rollback(candidate, alias=alias, bytes_problem=problem)
                    return _settle(connection, move, holder, present, report)

    def previous(self, name: str, *, alias: str) -> int:
        """Return the version that a rollback would move to. See `Registry.previous`."""
        move = _checked_move(name, alias, "rollback", "only asked", "nobody", EXPECT_ANY)
        with self.database.read() as connection:
            return _previous(connection, move, _holder(connection, name, alias))

    def verify_ledger(self) -> None:
        """Check the chain, and that the aliases are where the ledger says.

        Raises:
            IntegrityError: names the row or alias that does not fit.
        """
        with self.database.snapshot() as connection:
            tips: dict[tuple[str, str], LedgerEntry] = {}

            def remember(entry: LedgerEntry) -> LedgerEntry:
                tips[entry.name, entry.alias] = entry
                return entry

            verify_chain(remember(entry) for entry in iterate_ledger(connection))
            found = {(row.name, row.alias): row for row in connection.execute(select(aliases))}
        for key in sorted(tips.keys() | found.keys()):
            _check_alias_row(key, tips.get(key), found.get(key))

    def _hash(self, name: str, number: int) -> tuple[ModelVersion, str | None]:
        with self.database.read() as connection:
            version = load_version(connection, self.root, check_name(name), number)
        try:
            verify_bytes(version)
        except IntegrityError as exc:
            return version, exc.what
        return version, None

    def _judge(
        self, connection: Connection, version: ModelVersion, alias: str, problem: str | None, holder: _Holder | None
    ) -> GateReport:
        return evaluate(
            candidate_of(version, load_evidence(connection, version.name, version.number)),
            alias=alias,
            bytes_problem=problem,
            policy=self.gates.get(version.name),
            holder=None if holder is None else self._candidate(connection, version.name, holder.number),
        )

    def _candidate(self, connection: Connection, name: str, number: int) -> Candidate:
        version = load_version(connection, self.root, name, number)
        return candidate_of(version, load_evidence(connection, name, number))


def verify_bytes(version: ModelVersion, *, format: str | None = None) -> None:  # our word
    """Re-hash the files of a version, or of one of its formats.

    Raises:
        IntegrityError: names the first file that is not what was sealed.
    """
    if format is not None:
        sealed = version.sealed(format)
        verify_folder(sealed.folder, sealed.manifest)
        return
    verify_wrapper(version.folder, version.wrapper)
    for sealed in version.formats.values():
        verify_folder(sealed.folder, sealed.manifest)


def _checked_move(name: str, alias: str, action: Action, reason: str, actor: str, expect: Expectation) -> _Move:
    check_actor(actor)
    if not reason.strip():
        raise InvalidInputError("no reason is given", expected="why the alias moves; the ledger keeps it")
    return _Move(
        name=check_name(name), alias=check_alias(alias), action=action, reason=reason, actor=actor, expect=expect
    )


def _holder(connection: Connection, name: str, alias: str) -> _Holder | None:
    query = select(aliases.c.number, aliases.c.digest, aliases.c.sequence).where(
        aliases.c.name == name, aliases.c.alias == alias
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else _Holder(number=row.number, digest=row.digest, sequence=row.sequence)


def _check_holder(connection: Connection, move: _Move, holder: _Holder | None) -> None:
    """Compare the holder with what the caller and what MLflow's row say."""
    number = None if holder is None else holder.number
    if not isinstance(move.expect, _Expect) and number != move.expect:
        winner = "nobody" if holder is None else _winner(load_entry(connection, holder.sequence))
        raise ConflictError(
            f"`{move.name}@{move.alias}` was moved by somebody else",
            expected="no holder" if move.expect is None else f"version {move.expect}",
            received="no holder" if number is None else f"version {number}, put there by {winner}",
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


def _winner(entry: LedgerEntry) -> str:
    return f"{entry.actor} at {to_text(entry.created_at)} ({entry.reason})"


def _previous(connection: Connection, move: _Move, holder: _Holder | None) -> int:
    if holder is None:
        newest_number(connection, move.name)  # says so if there is no such model
        raise NotFoundError(
            f"`{move.name}@{move.alias}` does not exist",
            remedy=f"Promote a version first: noa models promote {move.name}/NUMBER --alias {move.alias}",
        )
    stack = replay(load_moves(connection, move.name, move.alias))
    if len(stack) < 2:
        raise NotFoundError(
            f"`{move.name}@{move.alias}` had no version before {holder.number}",
            remedy=f"Promote another version instead: noa models promote {move.name}/NUMBER --alias {move.alias}",
            holder=holder.number,
        )
    return stack[-2]


def _settle(
    connection: Connection, move: _Move, holder: _Holder | None, version: ModelVersion, report: GateReport
) -> LedgerEntry:
    if not report.passed:
        raise GateRefusedError(
            f"the gate refuses `{version.reference}` as `{move.alias}`: "
            + "; ".join(f"{v.rule}: expected {v.expected}, received {v.received}" for v in report.refusals),
            remedy=f"See all verdicts with `noa models check {version.reference}`",
            report=report,
        )
    if move.action == "promote" and holder is not None and holder.number == version.number:
        return load_entry(connection, holder.sequence)  # it is there already, e.g. a step that was run again
    entry = _next_entry(connection, move, holder, version, report)
    insert_entry(connection, entry)
    here = (aliases.c.name == move.name) & (aliases.c.alias == move.alias)
    values = {"number": version.number, "digest": version.digest, "sequence": entry.sequence}
    if holder is None:
        connection.execute(insert(aliases).values(name=move.name, alias=move.alias, **values))
    else:
        connection.execute(update(aliases).where(here).values(**values))
    connection.execute(update(models).where(models.c.name == move.name).values(updated_at=to_text(entry.created_at)))
    mlflow_rows.set_alias(connection, name=move.name, alias=move.alias, number=version.number)
    return entry


def _next_entry(
    connection: Connection, move: _Move, holder: _Holder | None, version: ModelVersion, report: GateReport
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
        verdict=report.to_dict(),
        created_at=now(),
        previous_hash=previous,
        hash="",
    )
    return replace(entry, hash=entry_hash(entry))


def _check_alias_row(key: tuple[str, str], tip: LedgerEntry | None, row: Row[tuple[object, ...]] | None) -> None:
    expected = None if tip is None else (tip.to_number, tip.to_digest, tip.sequence)
    received = None if row is None else (row.number, row.digest, row.sequence)
    if expected != received:
        raise IntegrityError(
            f"`{key[0]}@{key[1]}` is not where the ledger says",
            expected="nowhere" if expected is None else f"version {expected[0]} (row {expected[2]})",
            received="nowhere" if received is None else f"version {received[0]} (row {received[2]})",
            file="noa_aliases",
        )
