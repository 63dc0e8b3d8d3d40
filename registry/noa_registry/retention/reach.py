"""Reach: what still needs a version. While there is one such hold, the version is neither deleted nor purged.

    alias             it holds an alias now
    rollback target   it is the version to which a rollback of an alias would go
    approval          an approval that may still be used names it
    replica           a running server has it loaded, and its lease has not run out
    endpoint          an endpoint of the settings names it by its number
    record            its row in the trash cannot be read, so nobody knows for how long it should be kept

Holds are read inside the transaction that deletes or purges. Every move of an alias is such a transaction too, so of a
deletion and a promotion at the same moment one comes first, and the other one sees it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

from sqlalchemy import Connection, Select, and_, select

from noa.references import ModelReference, parse_reference
from noa_registry.alias_stack import below_holder
from noa_registry.approvals.desk import ApprovalDesk
from noa_registry.approvals.values import Approval
from noa_registry.database import to_text
from noa_registry.records import shown_time
from noa_registry.tables import aliases, generations, replicas

HoldKind: TypeAlias = Literal["alias", "rollback target", "approval", "replica", "endpoint", "record"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """One thing that needs a version. `holder` names it, `release` says what would let go of the version."""

    kind: HoldKind
    holder: str
    release: str

    def __str__(self) -> str:
        return f"{self.kind} {self.holder}"


def find_holds(
    connection: Connection,
    name: str,
    number: int,
    *,
    approvals: ApprovalDesk,
    endpoints: Mapping[str, str],
    moment: datetime,
) -> list[Hold]:
    """Return all that needs a version at `moment`. `endpoints` maps names of endpoints to the references they serve."""
    return [
        *_alias_holds(connection, name, number),
        *map(_approval_hold, approvals.usable(connection, moment, name=name, number=number)),
        *_replica_holds(connection, name, number, moment),
        *_endpoint_holds(name, number, endpoints),
    ]


def held_versions(
    connection: Connection, *, approvals: ApprovalDesk, endpoints: Mapping[str, str], moment: datetime
) -> set[tuple[str, int]]:
    """Return every version that anything needs at `moment`: what `find_holds` says, for all versions at once."""
    held: set[tuple[str, int]] = set()
    for name, alias, number in connection.execute(select(aliases.c.name, aliases.c.alias, aliases.c.number)).all():
        below = below_holder(connection, name, alias, number)
        held |= {(name, number)} if below is None else {(name, number), (name, below)}
    held |= {(approval.name, approval.number) for approval in approvals.usable(connection, moment)}
    held |= {(str(row.name), int(row.number)) for row in connection.execute(_live_generations(moment))}
    for reference in map(parse_reference, endpoints.values()):
        if reference.number is not None:
            held.add((reference.name, reference.number))
    return held


def _alias_holds(connection: Connection, name: str, number: int) -> Iterator[Hold]:
    held = connection.execute(select(aliases.c.alias, aliases.c.number).where(aliases.c.name == name)).all()
    for alias, holder in sorted((str(row[0]), int(row[1])) for row in held):
        reference = f"{name}@{alias}"
        if holder == number:
            yield Hold(kind="alias", holder=f"`{reference}`", release="Promote another version first")
            continue
        if below_holder(connection, name, alias, holder) == number:
            yield Hold(
                kind="rollback target",
                holder=f"of `{reference}`",
                release=f"`noa models rollback {reference}` leads to it; after the next promotion it no longer does",
            )


def _approval_hold(approval: Approval) -> Hold:
    return Hold(
        kind="approval",
        holder=f"of `{approval.principal}` for `{approval.name}@{approval.alias}`",
        release=f"Use it or take it back with `noa models revoke {approval.id}`; it expires at "
        f"{shown_time(to_text(approval.expires_at))}",
    )


def _replica_holds(connection: Connection, name: str, number: int, moment: datetime) -> Iterator[Hold]:
    query = _live_generations(moment).where(generations.c.name == name, generations.c.number == number)
    for row in connection.execute(query.order_by(replicas.c.endpoint, replicas.c.replica)):
        yield Hold(
            kind="replica",
            holder=f"`{row.replica}` of endpoint `{row.endpoint}`",
            release=f"Stop that server, or wait: its lease ends at {shown_time(row.expires_at)} unless it is renewed",
        )


def _live_generations(moment: datetime) -> Select[*tuple[Any, ...]]:
    same = and_(replicas.c.endpoint == generations.c.endpoint, replicas.c.generation == generations.c.generation)
    return (
        select(
            generations.c.name,
            generations.c.number,
            replicas.c.endpoint,
            replicas.c.replica,
            replicas.c.expires_at,
        )
        .select_from(generations.join(replicas, same))
        .where(replicas.c.expires_at > to_text(moment))
    )


def _endpoint_holds(name: str, number: int, endpoints: Mapping[str, str]) -> Iterator[Hold]:
    wanted = ModelReference(name=name, number=number)
    for endpoint, reference in sorted(endpoints.items()):
        if parse_reference(reference) == wanted:
            yield Hold(
                kind="endpoint",
                holder=f"`{endpoint}` of the settings",
                release=f"Set another model in [endpoints.{endpoint}] of noa.toml",
            )
