"""The ledger: who moved which alias, from what, to what, why, and what the gate had found.

Rows are numbered without gaps over the whole registry and chained: each holds the SHA-256 of the row before it and of
itself, over canonical JSON. A row that is changed, removed or put in between breaks the chain at a place that can be
named. The alias's past is a stack: `promote` pushes a version, `rollback` pops one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def verify_chain(entries: Iterable[LedgerEntry]) -> tuple[int, str]:
    """Check all entries, oldest first, and return the last sequence number and hash.

    Raises:
        IntegrityError: a row was changed, removed or inserted; `facts["sequence"]` is the first that does not fit.
    """
    sequence, previous = 0, GENESIS
    for entry in entries:
        if entry.sequence != sequence + 1:
            raise _broken("a row of the ledger is missing", sequence + 1, sequence + 1, entry.sequence)
        if entry.previous_hash != previous:
            raise _broken("the ledger's chain is broken", entry.sequence, previous, entry.previous_hash)
        if entry.hash != entry_hash(entry):
            raise _broken("a row of the ledger was changed", entry.sequence, entry_hash(entry), entry.hash)
        sequence, previous = entry.sequence, entry.hash
    return sequence, previous


def replay(moves: Iterable[tuple[Action, int]]) -> list[int]:
    """Return the stack of version numbers of one alias after `moves`, oldest first; the last one holds the alias.

    Raises:
        IntegrityError: a rollback does not lead to the version below.
    """
    stack: list[int] = []
    for action, number in moves:
        if action == "promote":
            stack.append(number)
            continue
        if len(stack) < 2 or stack[-2] != number:
            raise IntegrityError("the ledger holds a rollback that leads nowhere", received=f"to version {number}")
        stack.pop()
    return stack


def _broken(what: str, sequence: int, expected: object, received: object) -> IntegrityError:
    return IntegrityError(
        what,
        where=f"row {sequence}",
        expected=expected,
        received=received,
        remedy="Somebody wrote into the database directly; restore it from a backup and compare",
        sequence=sequence,
    )
