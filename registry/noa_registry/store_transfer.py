"""Letting a registry have the store of another: what it takes with it, and the taking.

Nothing is removed, and for the grace period of the trash units of no version cannot be: who took the wrong store gives
the right database back to it in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from noa.errors import IntegrityError
from noa_registry.artifacts import ArtifactStore, UnitKey
from noa_registry.database import Database
from noa_registry.events.outbox import WHOLE_REGISTRY, append_event
from noa_registry.identity import find_registry_id
from noa_registry.ledger_anchors import LedgerHead
from noa_registry.store_head import StoreHead
from noa_registry.store_problems import find_unknown_units


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreTransfer:
    """What a store is before a registry takes it over.

    `owner` is the id of the registry whose it is, `head` the newest row of its ledger, both None where there is no mark
    or `problems` says why it cannot be read. `unknown` are units that the database which takes it does not know.
    """

    where: str
    owner: str | None
    is_ours: bool
    head: LedgerHead | None
    unknown: tuple[UnitKey, ...]
    problems: tuple[str, ...]


def look_at_store(database: Database, store: ArtifactStore) -> StoreTransfer:
    """Return what would be taken over; changes nothing.

    Raises:
        StorageError: the store does not answer.
    """
    owner: str | None = None
    head: LedgerHead | None = None
    problems: list[str] = []
    try:
        mark = store.ownership.mark()
        owner = None if mark is None else mark.registry
    except IntegrityError as exc:
        problems.append(str(exc))
    try:
        head = StoreHead(database, store.ownership).find()
    except IntegrityError as exc:
        problems.append(str(exc))
    with database.read() as connection:
        mine = find_registry_id(connection)
    return StoreTransfer(
        where=store.ownership.marks.where(""),
        owner=owner,
        is_ours=owner is not None and owner == mine,
        head=head,
        unknown=tuple(find_unknown_units(database, store)),
        problems=tuple(problems),
    )


def adopt_store(database: Database, store: ArtifactStore, *, actor: str, moment: datetime) -> StoreTransfer:
    """Mark the store as this database's; return what it was before, which the mark and the event keep."""
    database.require_writable()
    old = look_at_store(database, store)
    store.ownership.take_over(moment)
    StoreHead(database, store.ownership).reset()
    payload = {
        "actor": actor,
        "before": old.owner,
        "ledger": None if old.head is None else old.head.to_dict(),
        "unknown": len(old.unknown),
    }
    with database.write() as connection:
        append_event(connection, "store.adopted", name=WHOLE_REGISTRY, payload=payload)
    return old
