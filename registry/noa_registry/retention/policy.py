"""The policy: which old versions may go to the trash. It only ever proposes; nothing is purged by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, and_, exists, func, select

from noa.errors import InvalidInputError
from noa_registry.approvals.desk import ApprovalDesk
from noa_registry.database import to_text
from noa_registry.json_columns import parse_time
from noa_registry.records import not_trashed
from noa_registry.retention.reach import held_versions
from noa_registry.tables import ledger, versions


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """Which versions are kept whatever their age: the newest of each model, and every one younger than `keep_age`.

    A version that an alias ever pointed to is never proposed.
    """

    keep_newest: int
    keep_age: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A version that the policy would move to the trash, and why."""

    name: str
    number: int
    digest: str
    created_at: datetime
    reason: str

    @property
    def reference(self) -> str:
        """Return e.g. `digits/3`."""
        return f"{self.name}/{self.number}"


def propose(
    connection: Connection,
    policy: RetentionPolicy,
    *,
    approvals: ApprovalDesk,
    endpoints: Mapping[str, str],
    moment: datetime,
) -> list[Proposal]:
    """Return old versions that were never promoted and that nothing needs, the oldest first."""
    if policy.keep_newest < 1 or policy.keep_age < timedelta(0):
        raise InvalidInputError(
            "the retention policy keeps nothing",
            expected="keep_newest >= 1 and keep_age >= 0",
            received=f"{policy.keep_newest} and {policy.keep_age}",
        )
    place = func.row_number().over(partition_by=versions.c.name, order_by=versions.c.number.desc())
    ranked = (
        select(versions.c.name, versions.c.number, versions.c.digest, versions.c.created_at, place.label("place"))
        .where(not_trashed())
        .subquery()
    )
    promoted = exists(
        select(ledger.c.sequence).where(and_(ledger.c.name == ranked.c.name, ledger.c.to_number == ranked.c.number))
    )
    query = (
        select(ranked)
        .where(
            ranked.c.place > policy.keep_newest,
            ranked.c.created_at <= to_text(moment - policy.keep_age),
            ~promoted,
        )
        .order_by(ranked.c.created_at, ranked.c.name, ranked.c.number)
    )
    held = held_versions(connection, approvals=approvals, endpoints=endpoints, moment=moment)
    days = policy.keep_age / timedelta(days=1)
    reason = f"retention policy: never promoted, older than {days:g} days, not among the newest {policy.keep_newest}"
    return [
        Proposal(
            name=row.name,
            number=row.number,
            digest=row.digest,
            created_at=parse_time(row.created_at, of=f"`{row.name}/{row.number}`", column="noa_versions.created_at"),
            reason=reason,
        )
        for row in connection.execute(query).all()
        if (row.name, row.number) not in held
    ]
