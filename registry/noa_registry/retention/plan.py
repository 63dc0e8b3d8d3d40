"""The plan of a collection: what may go, why, and how many bytes that gives back. Making one changes nothing.

A plan is a proposal of one moment. `collect.py` checks every item again, in its own transaction, before it acts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal, TypeAlias

from sqlalchemy import Connection, Row, and_, func, select

from noa.errors import IntegrityError
from noa_registry.approvals.desk import ApprovalDesk
from noa_registry.artifacts import ArtifactStore, UnitFacts, UnitKey
from noa_registry.database import to_text
from noa_registry.records import shown_time, to_json
from noa_registry.retention.reach import Hold, find_holds
from noa_registry.retention.trash import trash_time
from noa_registry.seals import named_uids
from noa_registry.tables import attachments, evidence, formats, replicas, trash, versions

GcKind: TypeAlias = Literal["version", "leftover", "orphan", "attachment", "cache", "lease"]
ORPHAN_AGE: Final = timedelta(hours=24)
"""Younger folders are left alone: a writer whose clock or disk is slow may still be at it."""
CACHE_AGE: Final = timedelta(days=30)
GRACE: Final = timedelta(days=7)
LEASE_AGE: Final = timedelta(days=1)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PAGE = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class GcItem:
    """One thing that may go. `key` finds it again: `name/number`, `name/uid`, a digest or a file's name."""

    kind: GcKind
    key: str
    reason: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptVersion:
    """A deleted version whose grace period is over and which is kept all the same, because something needs it."""

    reference: str
    holds: tuple[Hold, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingVersion:
    """A deleted version that can be restored until `purge_after`; a collection after that removes its files."""

    reference: str
    purge_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class GcPlan:
    """What a collection would remove. The ages are kept, so that applying the plan checks by the same ones.

    `waiting` are deleted versions whose grace period is not over, the one that is over first in front.
    `unknown` are units that no version names and that stay: they go only where they were asked for. `young` are those
    that are not `orphan_age` old yet, and stay in any case.
    """

    items: tuple[GcItem, ...]
    kept: tuple[KeptVersion, ...]
    made_at: datetime
    waiting: tuple[WaitingVersion, ...] = ()
    unknown: tuple[GcItem, ...] = ()
    young: tuple[GcItem, ...] = ()
    orphan_age: timedelta = ORPHAN_AGE
    cache_age: timedelta = CACHE_AGE
    grace: timedelta = GRACE

    @property
    def size_bytes(self) -> int:
        """Bytes that all items hold together."""
        return sum(item.size_bytes for item in self.items)


def plan_versions(
    connection: Connection,
    store: ArtifactStore,
    moment: datetime,
    *,
    approvals: ApprovalDesk,
    endpoints: Mapping[str, str],
) -> tuple[list[GcItem], list[KeptVersion]]:
    """Return deleted versions whose files may go, and those that something needs against all expectation."""
    due = (trash.c.state == "purging") | ((trash.c.state == "trashed") & (trash.c.purge_after <= to_text(moment)))
    items: list[GcItem] = []
    kept: list[KeptVersion] = []
    for row in connection.execute(select(trash).where(due).order_by(trash.c.name, trash.c.number)).all():
        reference = f"{row.name}/{row.number}"
        size = sum(_size_bytes(store, key) for key in unit_keys(connection, row.name, row.number))
        if row.state == "purging":
            items.append(GcItem(kind="version", key=reference, reason="its purge was interrupted", size_bytes=size))
            continue
        holds = _unreadable_times(row) or find_holds(
            connection, row.name, row.number, approvals=approvals, endpoints=endpoints, moment=moment
        )
        if holds:
            kept.append(KeptVersion(reference=reference, holds=tuple(holds)))
            continue
        reason = f"deleted by {row.deleted_by} ({row.reason}); its grace period ended at {shown_time(row.purge_after)}"
        items.append(GcItem(kind="version", key=reference, reason=reason, size_bytes=size))
    return items, kept


def plan_waiting(connection: Connection, moment: datetime) -> tuple[list[WaitingVersion], list[KeptVersion]]:
    """Return deleted versions whose grace period is not over, and those of which nobody can tell when it is."""
    later = (trash.c.state == "trashed") & (trash.c.purge_after > to_text(moment))
    waiting: list[WaitingVersion] = []
    kept: list[KeptVersion] = []
    query = select(trash).where(later).order_by(trash.c.purge_after, trash.c.name, trash.c.number)
    for row in connection.execute(query).all():
        reference = f"{row.name}/{row.number}"
        if holds := _unreadable_times(row):
            kept.append(KeptVersion(reference=reference, holds=tuple(holds)))
        else:
            waiting.append(WaitingVersion(reference=reference, purge_after=trash_time(row, "purge_after")))
    return waiting, kept


def _unreadable_times(row: Row[Any]) -> list[Hold]:
    try:
        trash_time(row, "purge_after")
    except IntegrityError as exc:
        return [Hold(kind="record", holder="in the trash, whose end cannot be read", release=exc.remedy or exc.what)]
    return []


def plan_files(store: ArtifactStore, moment: datetime, *, cache_age: timedelta) -> list[GcItem]:
    """Return what dead writers left, and copies in the cache that nobody used for long."""
    items = [
        GcItem(kind="leftover", key=left.uid, reason="its writer died before it was sealed", size_bytes=left.size_bytes)
        for left in store.leftovers()
    ]
    items += [
        GcItem(
            kind="cache",
            key=unit_text(copy.key),
            reason=f"a local copy; last used at {shown_time(to_text(copy.used_at))}",
            size_bytes=copy.size_bytes,
        )
        for copy in store.cached()
        if copy.used_at <= moment - cache_age
    ]
    return items


def plan_orphans(
    connection: Connection, store: ArtifactStore, moment: datetime, *, orphan_age: timedelta
) -> tuple[list[GcItem], list[GcItem]]:
    """Return units that no row names: those that may go, and those that are too young, with when they may.

    No writer of this registry leaves one: what a dead one left has its marker.
    """
    known = named_uids(connection)
    items: list[GcItem] = []
    young: list[GcItem] = []
    for key in store.units():
        facts = store.unit_facts(key) if key.uid not in known else None
        if facts is None or facts.is_claimed:
            continue
        is_old = is_orphan(key, facts, known, moment, orphan_age)
        reason = f"no version names it; last changed at {shown_time(to_text(facts.modified_at))}"
        if not is_old:
            reason += f", so it stays until {shown_time(to_text(facts.modified_at + orphan_age))}"
        item = GcItem(kind="orphan", key=unit_text(key), reason=reason, size_bytes=facts.size_bytes)
        (items if is_old else young).append(item)
    return items, young


def plan_attachments(connection: Connection, moment: datetime, orphan_age: timedelta) -> list[GcItem]:
    """Return attachments that no evidence of a version that still has its files refers to."""
    query = select(attachments.c.digest, func.length(attachments.c.content).label("size")).where(
        attachments.c.created_at <= to_text(moment - orphan_age)
    )
    sizes = {str(row.digest): int(row.size) for row in connection.execute(query)}
    if not sizes:
        return []
    unused = sizes.keys() - referenced_digests(connection)
    return [
        GcItem(
            kind="attachment",
            key=digest,
            reason="no evidence of a version that still has its files refers to it",
            size_bytes=sizes[digest],
        )
        for digest in sorted(unused)
    ]


def plan_leases(connection: Connection, moment: datetime) -> list[GcItem]:
    """Return rows of replicas whose lease ran out long ago: of servers that were killed."""
    ended = replicas.c.expires_at <= to_text(moment - LEASE_AGE)
    return [
        GcItem(
            kind="lease",
            key=to_json([row.endpoint, row.replica]),
            reason=f"the server is gone; its lease ended at {shown_time(row.expires_at)}",
            size_bytes=0,
        )
        for row in connection.execute(select(replicas).where(ended).order_by(replicas.c.endpoint, replicas.c.replica))
    ]


def unit_keys(connection: Connection, name: str, number: int) -> list[UnitKey]:
    """Return the units of one version: its own, and those of formats that were added later."""
    own = select(versions.c.uid).where(versions.c.name == name, versions.c.number == number)
    added = select(formats.c.uid).where(formats.c.name == name, formats.c.number == number)
    uids = {str(row[0]) for query in (own, added) for row in connection.execute(query)}
    return [UnitKey(name=name, uid=uid) for uid in sorted(uids)]


def unit_text(key: UnitKey) -> str:
    """Return a unit as an item names it."""
    return f"{key.name}/{key.uid}"


def unit_of(text: str) -> UnitKey:
    """Return the unit that an item names."""
    name, _, uid = text.partition("/")
    return UnitKey(name=name, uid=uid)


def is_orphan(key: UnitKey, facts: UnitFacts, known: set[str], moment: datetime, orphan_age: timedelta) -> bool:
    """Tell whether no row names a unit, nobody writes it, and it is old enough."""
    return key.uid not in known and not facts.is_claimed and facts.modified_at <= moment - orphan_age


def referenced_digests(connection: Connection) -> set[str]:
    """Return every digest that the evidence of a version with files holds, wherever in it."""
    purged = and_(trash.c.name == evidence.c.name, trash.c.number == evidence.c.number, trash.c.state == "purged")
    found: set[str] = set()
    last = 0
    while True:
        query = (
            select(evidence.c.id, evidence.c.content)
            .where(evidence.c.id > last, ~select(trash.c.number).where(purged).exists())
            .order_by(evidence.c.id)
            .limit(_PAGE)
        )
        rows = connection.execute(query).all()
        if not rows:
            return found
        for row in rows:
            found.update(_DIGEST.findall(row.content))
        last = int(rows[-1].id)


def _size_bytes(store: ArtifactStore, key: UnitKey) -> int:
    facts = store.unit_facts(key)
    return 0 if facts is None else facts.size_bytes
