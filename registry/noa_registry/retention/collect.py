"""Collection: acting on a plan. Every item is checked again in a transaction of its own before anything is removed.

A purge has three steps: a transaction marks the version `purging` (from here on it cannot be restored), its files go,
and a transaction marks it `purged`. A process that is killed between them is continued by the next collection. The rows
of the version stay: they are the record of what once was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, delete, select, update

from noa.errors import IntegrityError, StorageError
from noa.references import parse_reference
from noa_registry.approvals.desk import ApprovalDesk
from noa_registry.artifacts import ArtifactStore, UnitKey
from noa_registry.database import Database, to_text
from noa_registry.events.outbox import WHOLE_REGISTRY, append_event
from noa_registry.faults import Checkpoint
from noa_registry.records import shown_time
from noa_registry.retention.plan import (
    LEASE_AGE,
    GcItem,
    GcPlan,
    is_orphan,
    referenced_digests,
    unit_keys,
    unit_of,
)
from noa_registry.retention.reach import find_holds
from noa_registry.retention.trash import find_trashed, trash_time
from noa_registry.seals import named_uids
from noa_registry.store_problems import refuse_unknown
from noa_registry.tables import attachments, replicas, trash
from noa_registry.triggers import lifted_removal

_TRIES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedItem:
    """An item of the plan that was not removed, and why."""

    item: GcItem
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GcReport:
    """What a collection did."""

    removed: tuple[GcItem, ...]
    skipped: tuple[SkippedItem, ...]

    @property
    def freed_bytes(self) -> int:
        """Bytes that were given back."""
        return sum(item.size_bytes for item in self.removed)


@dataclass(slots=True, kw_only=True)
class Collector:
    """Applies one plan. `tell` is called with each item before it is worked on."""

    database: Database
    store: ArtifactStore
    checkpoint: Checkpoint
    approvals: ApprovalDesk
    actor: str
    endpoints: Mapping[str, str]
    clock: Callable[[], datetime]
    tell: Callable[[GcItem], None]
    _removed: list[GcItem] = field(default_factory=list[GcItem])
    _skipped: list[SkippedItem] = field(default_factory=list[SkippedItem])

    def apply(self, plan: GcPlan) -> GcReport:
        """Remove what the plan names and what is still not needed.

        Raises:
            ConflictError: the store belongs to another registry, or units that no version names are to go and the
                store is newer than the database or was taken over lately; nothing was removed.
        """
        if plan.items:
            self.database.require_writable()
            self.store.ownership.claim()
        if any(item.kind == "orphan" for item in plan.items):
            refuse_unknown(self.database, self.store, moment=self.clock(), grace=plan.grace)
        for item in plan.items:
            self.tell(item)
            if item.kind != "attachment":  # all of them in one transaction, below
                self._note(item, self._remove(item, plan))
        self._remove_attachments(tuple(item for item in plan.items if item.kind == "attachment"))
        return GcReport(removed=tuple(self._removed), skipped=tuple(self._skipped))

    def _remove(self, item: GcItem, plan: GcPlan) -> str | None:
        """Remove one thing, and return why that was not done."""
        try:
            match item.kind:
                case "version":
                    return self._purge(item)
                case "orphan":
                    return self._remove_orphan(item, plan)
                case "leftover":
                    problem = None if self.store.remove_leftover(item.key) else "its writer is alive"
                    self.checkpoint("leftover removed")
                case "cache":
                    problem = None if self.store.remove_cached(unit_of(item.key)) else "somebody uses it"
                    self.checkpoint("cache entry removed")
                case "lease":
                    problem = self._remove_lease(item)
                case "attachment":
                    problem = None
        except IntegrityError as exc:  # its place leads to elsewhere; the others go all the same
            return str(exc)
        return problem

    def _note(self, item: GcItem, problem: str | None) -> None:
        if problem is None:
            self._removed.append(item)
        else:
            self._skipped.append(SkippedItem(item=item, reason=problem))

    def _purge(self, item: GcItem) -> str | None:
        reference = parse_reference(item.key)
        name, number = reference.name, reference.number or 0
        with self.database.write() as connection:
            problem = self._begin_purge(connection, name, number)
            keys = unit_keys(connection, name, number)
            self.checkpoint("purge marked")
        if problem is not None:
            return problem
        self.checkpoint("purge begun")
        for key in keys:
            _remove(self.store, key)
            self.checkpoint("unit removed")
        moment = to_text(self.clock())
        with self.database.write() as connection:
            here = (trash.c.name == name) & (trash.c.number == number) & (trash.c.state == "purging")
            done = connection.execute(update(trash).where(here).values(state="purged", purged_at=moment))
            if done.rowcount == 1:  # else another collection was faster with the very same
                payload = {"number": number, "bytes": item.size_bytes, "actor": self.actor}
                append_event(connection, "version.purged", name=name, payload=payload)
            self.checkpoint("purge written")
        self.checkpoint("purge committed")
        return None

    def _begin_purge(self, connection: Connection, name: str, number: int) -> str | None:
        row = find_trashed(connection, name, number)
        if row is None:
            return "it was restored meanwhile"
        if row.state == "purging":
            return None
        if row.state == "purged":
            return "another collection has purged it already"
        moment = self.clock()
        if trash_time(row, "purge_after") > moment:
            return f"its grace period lasts until {shown_time(row.purge_after)}"
        holds = find_holds(connection, name, number, approvals=self.approvals, endpoints=self.endpoints, moment=moment)
        if holds:
            return "something needs it: " + "; ".join(str(hold) for hold in holds)
        here = (trash.c.name == name) & (trash.c.number == number)
        connection.execute(update(trash).where(here).values(state="purging"))
        return None

    def _remove_orphan(self, item: GcItem, plan: GcPlan) -> str | None:
        key = unit_of(item.key)
        facts = self.store.unit_facts(key)
        if facts is None:
            return "it is gone already"
        with self.database.read() as connection:
            if not is_orphan(key, facts, named_uids(connection), self.clock(), plan.orphan_age):
                return "a version names it, somebody writes it, or it changed lately"
        _remove(self.store, key)  # nobody has a claim on it, so nobody can commit a row that names it
        self.checkpoint("orphan removed")
        return None

    def _remove_lease(self, item: GcItem) -> str | None:
        endpoint, replica = json.loads(item.key)
        ended = to_text(self.clock() - LEASE_AGE)
        with self.database.write() as connection:
            here = (replicas.c.endpoint == endpoint) & (replicas.c.replica == replica)
            done = connection.execute(delete(replicas).where(here, replicas.c.expires_at <= ended))
        return None if done.rowcount else "it was renewed or is gone"

    def _remove_attachments(self, items: tuple[GcItem, ...]) -> None:
        if not items:
            return
        with self.database.write() as connection:
            used = referenced_digests(connection)
            present = {str(row[0]) for row in connection.execute(select(attachments.c.digest))}
            going = [item for item in items if item.key in present and item.key not in used]
            with lifted_removal(connection, attachments):
                for item in going:
                    connection.execute(delete(attachments).where(attachments.c.digest == item.key))
            if going:
                payload = {
                    "digests": [item.key for item in going],
                    "bytes": sum(item.size_bytes for item in going),
                    "actor": self.actor,
                }
                append_event(connection, "attachments.removed", name=WHOLE_REGISTRY, payload=payload)
            self.checkpoint("attachments removed")
        self.checkpoint("attachments committed")
        for item in items:
            self._note(item, None if item in going else "evidence refers to it now, or it is gone")


def _remove(store: ArtifactStore, key: UnitKey) -> None:
    """Remove a unit, or what is left of it; another collection may do the same at once."""
    for _ in range(_TRIES):
        try:
            store.remove_unit(key)
        except FileNotFoundError:  # the other one was faster with one file of it
            continue
        return
    raise StorageError("the files of a unit come and go", where=f"{key.name}/{key.uid}", remedy="Try again")
