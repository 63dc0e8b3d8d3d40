"""The ledger: who moved which alias, from what, to what, why, and what the gate had found.

Rows are numbered without gaps over the whole registry and chained: each holds the SHA-256 of the row before it and of
itself, over canonical JSON. A row that is changed, removed or put in between breaks the chain at a place that can be
named. The alias's past is a stack: `promote` pushes a version, `rollback` pops one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from noa.digests import digest_json
from noa.errors import IntegrityError

Action: TypeAlias = Literal["promote", "rollback"]
GENESIS = "sha256:" + "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One move of an alias. `verdict` is the gate's report as plain JSON values."""

    sequence: int
    name: str
    alias: str
    action: Action
    from_number: int | None
    to_number: int
    from_digest: str | None
    to_digest: str
    actor: str
    reason: str
    verdict: Mapping[str, object]
    created_at: datetime
    previous_hash: str
    hash: str


def entry_hash(entry: LedgerEntry) -> str:
    """Return the hash that `entry` must carry: over its content and the hash of the row before."""
    return digest_json(
        {
            "sequence": entry.sequence,
            "name": entry.name,
            "alias": entry.alias,
            "action": entry.action,
            "from": [entry.from_number, entry.from_digest],
            "to": [entry.to_number, entry.to_digest],
            "actor": entry.actor,
            "reason": entry.reason,
            "verdict": entry.verdict,
            "created_at": entry.created_at.isoformat(timespec="microseconds"),
            "previous_hash": entry.previous_hash,
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerProblem:
    """One place where the ledger, or what hangs on it, is not what was written. `sequence` is the row, 0 for none."""

    sequence: int
    what: str
    expected: str
    received: str
    remedy: str | None = None

    def __str__(self) -> str:
        row = f"row {self.sequence}: " if self.sequence else ""
        said = f"{row}{self.what}; expected {self.expected}; received {self.received}"
        return said if self.remedy is None else f"{said}. {self.remedy}"

    def to_error(self) -> IntegrityError:
        """Return the error that a caller who asked for yes or no gets."""
        return IntegrityError(
            self.what,
            where=f"row {self.sequence}" if self.sequence else None,
            expected=self.expected,
            received=self.received,
            remedy=self.remedy or "Somebody wrote into the database directly; restore it from a backup and compare",
            sequence=self.sequence,
        )


def chain_problems(
    entries: Iterable[LedgerEntry], *, fault: Callable[[LedgerEntry], LedgerProblem | None] = lambda _: None
) -> Iterator[LedgerProblem]:
    """Check all entries, oldest first, and give every place that does not fit.

    `fault` tells what is wrong with an entry before its hash is computed: that is then said in place of the hash.
    """
    sequence, previous = 0, GENESIS
    for entry in entries:
        wanted = sequence + 1
        if entry.sequence != wanted:
            yield _problem(wanted, "a row of the ledger is missing", f"row {wanted}", f"row {entry.sequence}")
        elif entry.previous_hash != previous:
            yield _problem(entry.sequence, "the ledger's chain is broken", previous, entry.previous_hash)
        if (found := fault(entry)) is not None:
            yield found
        elif entry.hash != (computed := entry_hash(entry)):
            yield _problem(entry.sequence, "a row of the ledger was changed", computed, entry.hash)
        sequence, previous = entry.sequence, entry.hash


def verify_chain(entries: Iterable[LedgerEntry]) -> tuple[int, str]:
    """Check all entries, oldest first, and return the last sequence number and hash.

    Raises:
        IntegrityError: a row was changed, removed or inserted; `facts["sequence"]` is the first that does not fit.
    """
    last = (0, GENESIS)

    def remember() -> Iterator[LedgerEntry]:
        nonlocal last
        for entry in entries:
            yield entry
            last = (entry.sequence, entry.hash)

    for problem in chain_problems(remember()):
        raise problem.to_error()
    return last


@dataclass(frozen=True, slots=True)
class Place:
    """One place of an alias's stack: a version, and the ledger row that pushed it."""

    number: int
    sequence: int


def apply_move(stack: list[Place], action: Action, number: int, sequence: int) -> None:
    """Change the stack of one alias as the ledger row `sequence` says.

    Raises:
        IntegrityError: a rollback does not lead to the version below.
    """
    if action == "promote":
        stack.append(Place(number, sequence))
        return
    if len(stack) < 2 or stack[-2].number != number:
        raise IntegrityError(
            "the ledger holds a rollback that leads nowhere",
            where=f"row {sequence}",
            received=f"to version {number}",
            sequence=sequence,
        )
    stack.pop()


def replay(moves: Iterable[tuple[Action, int]]) -> list[int]:
    """Return the stack of version numbers of one alias after `moves`, oldest first; the last one holds the alias.

    Raises:
        IntegrityError: a rollback does not lead to the version below.
    """
    stack: list[Place] = []
    for sequence, (action, number) in enumerate(moves, start=1):
        apply_move(stack, action, number, sequence)
    return [place.number for place in stack]


def _problem(sequence: int, what: str, expected: str, received: str) -> LedgerProblem:
    return LedgerProblem(sequence=sequence, what=what, expected=expected, received=received)
