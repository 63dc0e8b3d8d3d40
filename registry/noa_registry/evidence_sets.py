"""The set of a version's evidence: how many facts were attached, and a digest that is chained over their records.

A row of evidence says by its own record that it was changed, but not that it is gone. So each fact that is attached
extends the set of its version, and each move of an alias writes the set that it was judged by into the ledger, whose
hash an anchor keeps outside of the database. The state is one row per version; facts are read together with it in one
statement, so that a reader never takes a fact that is attached meanwhile for one that was removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, insert, select, update

from noa.digests import digest_json
from noa.errors import IntegrityError
from noa_registry.ledger import GENESIS
from noa_registry.tables import evidence_sets

IN_VERDICT: Final = "evidence"
"""Where the verdict of a move holds the set that it was judged by."""
_REMEDY = "What was measured is not whole, so nothing is decided by it; restore a backup of the database"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceSet:
    """How many facts there are, and the digest chained over their records, oldest first."""

    facts: int = 0
    digest: str = GENESIS

    def extended(self, records: Iterable[str | None]) -> EvidenceSet:
        """Return the set with more facts."""
        facts, digest = self.facts, self.digest
        for record in records:
            facts, digest = facts + 1, digest_json([digest, record])
        return EvidenceSet(facts=facts, digest=digest)

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {"facts": self.facts, "digest": self.digest}


def extend_set(connection: Connection, name: str, number: int, records: Sequence[str | None]) -> None:
    """Add facts, by their records in order, to the set of a version; a new version gets an empty one."""
    here = (evidence_sets.c.name == name) & (evidence_sets.c.number == number)
    found = load_set(connection, name, number)
    if found is None:
        values = EvidenceSet().extended(records).to_dict()
        connection.execute(insert(evidence_sets).values(name=name, number=number, **values))
    elif records:
        connection.execute(update(evidence_sets).where(here).values(**found.extended(records).to_dict()))


def load_set(connection: Connection, name: str, number: int) -> EvidenceSet | None:
    """Return the set of a version as it was written, None if there is none."""
    query = select(evidence_sets.c.facts, evidence_sets.c.digest).where(
        evidence_sets.c.name == name, evidence_sets.c.number == number
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else EvidenceSet(facts=row.facts, digest=row.digest)


def check_set(reference: str, written: EvidenceSet | None, records: Sequence[str | None]) -> None:
    """Compare the evidence that is there, by its records, with the set that was written.

    Raises:
        IntegrityError: facts were removed, added or put into another order behind noa's back.
    """
    if written is None:
        raise _differs(reference, "the set of all that was attached", f"none, and {_count(len(records))}")
    found = EvidenceSet().extended(records)
    if found != written:
        raise _differs(reference, _describe(written), _describe(found))


def check_judged(reference: str, sequence: int, verdict: Mapping[str, object], records: Sequence[str | None]) -> None:
    """Compare the evidence that is there with the set by which a move of the ledger was judged.

    Raises:
        IntegrityError: what it was judged by is not there any more.
    """
    judged = verdict.get(IN_VERDICT)
    if not isinstance(judged, Mapping):  # a move of an older noa
        return
    facts = judged.get("facts")
    found = EvidenceSet().extended(records[: facts if isinstance(facts, int) else 0])
    if found.to_dict() != dict(judged):
        expected = f"what row {sequence} of the ledger was judged by: {_count(facts)}, {judged.get('digest')}"
        raise _differs(reference, expected, _describe(found))


def _differs(reference: str, expected: str, received: str) -> IntegrityError:
    return IntegrityError(
        f"evidence of `{reference}` was removed or put there behind noa's back",
        expected=expected,
        received=received,
        remedy=_REMEDY,
        file="noa_evidence",
    )


def _describe(found: EvidenceSet) -> str:
    return f"{_count(found.facts)}, {found.digest}"


def _count(facts: object) -> str:
    return f"{facts} fact{'' if facts == 1 else 's'}"
