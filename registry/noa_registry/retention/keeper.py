"""The keeper: what `Registry.retention` offers. Deleting, restoring, and collecting what nothing needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType

from noa.references import check_name
from noa_registry.approvals.desk import ApprovalDesk
from noa_registry.artifacts import ArtifactStore
from noa_registry.database import Database, now
from noa_registry.faults import Checkpoint, no_checkpoint
from noa_registry.mirror_repair import show_version
from noa_registry.records import require_version
from noa_registry.retention.collect import Collector, GcReport
from noa_registry.retention.plan import (
    CACHE_AGE,
    GRACE,
    ORPHAN_AGE,
    GcItem,
    GcPlan,
    plan_attachments,
    plan_files,
    plan_leases,
    plan_orphans,
    plan_versions,
    plan_waiting,
)
from noa_registry.retention.policy import Proposal, RetentionPolicy, propose
from noa_registry.retention.reach import Hold, find_holds
from noa_registry.retention.trash import TrashedVersion, load_trash, move_to_trash, take_from_trash
from noa_registry.store_problems import refuse_unknown
from noa_registry.words import check_actor, check_reason

_NO_ENDPOINTS: Mapping[str, str] = MappingProxyType({})


def _ignore(_item: GcItem) -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Deletes and restores versions, and removes for good what nothing needs.

    `endpoints`, wherever it is asked for, maps endpoints of the settings to the references they serve: what one of them
    names by its number is needed.
    """

    database: Database
    store: ArtifactStore
    approvals: ApprovalDesk
    checkpoint: Checkpoint = no_checkpoint
    clock: Callable[[], datetime] = now

    def holds(self, name: str, number: int, *, endpoints: Mapping[str, str] = _NO_ENDPOINTS) -> list[Hold]:
        """Return what needs a version now; it can be deleted if that is nothing.

        Raises:
            NotFoundError: there is no such version, or it is deleted.
        """
        with self.database.snapshot() as connection:
            require_version(connection, check_name(name), number)
            return find_holds(
                connection, name, number, approvals=self.approvals, endpoints=endpoints, moment=self.clock()
            )

    def delete(
        self,
        name: str,
        number: int,
        *,
        reason: str,
        actor: str,
        grace: timedelta = GRACE,
        endpoints: Mapping[str, str] = _NO_ENDPOINTS,
    ) -> TrashedVersion:
        """Move a version to the trash: nobody finds it any more, and until `grace` is over it can be restored.

        Raises:
            NotFoundError: there is no such version, or it is deleted already.
            ConflictError: an alias, a rollback, an approval, a replica or an endpoint needs it; `facts["holds"]`.
        """
        check_actor(actor)
        check_reason(reason, expected="why the version goes; its record keeps it")
        with self.database.write() as connection:
            move_to_trash(
                connection,
                check_name(name),
                number,
                reason=reason,
                actor=actor,
                grace=grace,
                approvals=self.approvals,
                endpoints=endpoints,
                moment=self.clock(),
            )
            return load_trash(connection, name, with_purged=False, number=number)[0]

    def restore(self, name: str, number: int, *, actor: str) -> None:
        """Take a version out of the trash; it is as it was before, also for stock MLflow clients.

        Raises:
            NotFoundError: there is no such version, or its files are gone.
            ConflictError: it is not in the trash.
        """
        check_actor(actor)
        with self.database.write() as connection:
            take_from_trash(connection, check_name(name), number, actor=actor, moment=self.clock())
            show_version(connection, self.store, name, number)

    def trashed(self, name: str | None = None, *, with_purged: bool = False) -> list[TrashedVersion]:
        """Return deleted versions, the newest deletion first; `with_purged`: also those whose files are gone."""
        with self.database.read() as connection:
            return load_trash(connection, None if name is None else check_name(name), with_purged=with_purged)

    def propose(self, policy: RetentionPolicy, *, endpoints: Mapping[str, str] = _NO_ENDPOINTS) -> list[Proposal]:
        """Return old versions that `policy` would move to the trash; moves nothing."""
        with self.database.snapshot() as connection:
            return propose(connection, policy, approvals=self.approvals, endpoints=endpoints, moment=self.clock())

    def plan_gc(
        self,
        *,
        endpoints: Mapping[str, str] = _NO_ENDPOINTS,
        orphan_age: timedelta = ORPHAN_AGE,
        cache_age: timedelta = CACHE_AGE,
        unknown: bool = False,
        grace: timedelta = GRACE,
    ) -> GcPlan:
        """Return what a collection would remove, why, and how many bytes that gives back; removes nothing.

        `orphan_age`: how old a unit that no version names must be. `cache_age`: how long a local copy was not used.
        `unknown`: such units go too. Otherwise they stay: where the database was lost or an older one restored, they
        are the models. `grace`: how long ago this registry must have taken the store over, if it did, for them to go.

        Raises:
            ConflictError: the store belongs to another registry; or they should go, and the store is newer than the
                database or was taken over lately.
        """
        self.store.ownership.refuse_foreign()
        moment = self.clock()
        if unknown:
            refuse_unknown(self.database, self.store, moment=moment, grace=grace)
        with self.database.snapshot() as connection:
            items, kept = plan_versions(connection, self.store, moment, approvals=self.approvals, endpoints=endpoints)
            waiting, unreadable = plan_waiting(connection, moment)
            items += plan_files(self.store, moment, cache_age=cache_age)
            orphans, young = plan_orphans(connection, self.store, moment, orphan_age=orphan_age)
            items += orphans if unknown else ()
            items += plan_attachments(connection, moment, orphan_age)
            items += plan_leases(connection, moment)
        return GcPlan(
            items=tuple(items),
            kept=(*kept, *unreadable),
            made_at=moment,
            waiting=tuple(waiting),
            unknown=() if unknown else tuple(orphans),
            young=tuple(young),
            orphan_age=orphan_age,
            cache_age=cache_age,
            grace=grace,
        )

    def apply(
        self,
        plan: GcPlan,
        *,
        actor: str,
        endpoints: Mapping[str, str] = _NO_ENDPOINTS,
        tell: Callable[[GcItem], None] = _ignore,
    ) -> GcReport:
        """Remove what a plan names, if it is still not needed. Safe beside other collections, writers and readers.

        A collection that is killed is continued by the next one. `actor` is who asked for it, for the events. `tell` is
        called with each item before it goes.
        """
        check_actor(actor)
        return Collector(
            database=self.database,
            store=self.store,
            checkpoint=self.checkpoint,
            approvals=self.approvals,
            actor=actor,
            endpoints=endpoints,
            clock=self.clock,
            tell=tell,
        ).apply(plan)
