"""What of the store does not belong to the database: another registry's mark, a newer ledger, units of no version.

No writer leaves a unit that no version names, however it dies: until its rows are committed, a marker beside its files
says that it was at it. So such a unit comes from a database that is not this one: another project's, a lost one, or a
newer one than the backup that was restored.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from noa.errors import ConflictError, IntegrityError, NoaError
from noa_registry.artifacts import OWNER_MARK, ArtifactStore, UnitKey
from noa_registry.database import Database, now, to_text
from noa_registry.records import shown_time
from noa_registry.seals import named_uids
from noa_registry.store_head import StoreHead

_MOST_NAMED: Final = 3


def find_store_problems(
    database: Database, store: ArtifactStore, *, orphan_age: timedelta, grace: timedelta
) -> list[NoaError]:
    """Return what of the store does not belong to the database, and from when on what nobody knows may be removed.

    Raises:
        StorageError: the store does not answer.
    """
    problems: list[NoaError] = []
    try:
        store.ownership.refuse_foreign()
    except (ConflictError, IntegrityError) as exc:
        problems.append(exc)
    problems += _older_than_the_store(database, store)
    unknown = find_unknown_units(database, store)
    if unknown:
        problems.append(_unknown_error(unknown, _removable_from(store, unknown, orphan_age, grace), store))
    return problems


def find_lost_models(database: Database, store: ArtifactStore) -> NoaError | None:
    """Return why a database that shows no model may be the wrong one, None if its store is empty, too. Cheap."""
    try:
        store.ownership.refuse_foreign()
        with database.read() as connection:
            if named_uids(connection):
                return None
        found = next((key for key in store.units() if _is_free(store, key)), None)
    except NoaError as exc:
        return exc
    if found is None:
        return None
    return IntegrityError(
        f"the store holds versions of `{found.name}` that the database does not know: was it lost or emptied?",
        where=store.ownership.marks.where(""),
        expected="an empty store, as the database has no version",
        received=f"at least the unit {found.name}/{found.uid}",
        remedy="Restore the newest backup of the database. See all of it with: noa models verify",
    )


def refuse_unknown(database: Database, store: ArtifactStore, *, moment: datetime, grace: timedelta) -> None:
    """Raise if units that no version names may be models that somebody needs.

    Raises:
        ConflictError: the database is older than the store, so it does not know what it names; or it took the store
            over less than `grace` ago, and that may have been a mistake; or the store is another registry's by now.
    """
    store.ownership.refuse_foreign_now()
    mark = store.ownership.mark()
    if mark is not None and mark.adopted_at is not None and moment - mark.adopted_at < grace:
        raise ConflictError(
            "units that no version names are not removed: this registry took the store over lately",
            where=store.ownership.marks.where(OWNER_MARK),
            expected=f"that it did so at least {grace / timedelta(days=1):g} days ago (`retention.grace_days`)",
            received=f"it did so at {mark.adopted_at.isoformat(timespec='seconds')}"
            + (f"; before, the store was of registry {mark.before[-1]}" if mark.before else ""),
            remedy="Wait. If it was a mistake, restore the database of that registry and let it have the store again: "
            "noa models verify --adopt-store",
        )
    for problem in _older_than_the_store(database, store):
        raise ConflictError(
            "units that no version names are not removed: the database is older than the store, or nobody can tell",
            where=problem.where,
            expected=problem.expected,
            received=problem.received or problem.what,
            remedy=problem.remedy,
        ) from problem
    StoreHead(database, store.ownership).require_readable()


def find_unknown_units(database: Database, store: ArtifactStore) -> list[UnitKey]:
    """Return the units in place that no version names and that no writer is at."""
    units = list(store.units())
    if not units:
        return []
    with database.read() as connection:
        named = named_uids(connection)
    # A writer gives up its claim after its commit: so who has none now is named by now, or never.
    free = [key for key in units if key.uid not in named and _is_free(store, key)]
    if not free:
        return []
    with database.read() as connection:
        named = named_uids(connection)
    return [key for key in free if key.uid not in named]


def _older_than_the_store(database: Database, store: ArtifactStore) -> list[NoaError]:
    try:
        problem = StoreHead(database, store.ownership).find_lost_move()
    except IntegrityError as exc:
        return [exc]
    return [] if problem is None else [problem]


def _removable_from(
    store: ArtifactStore, unknown: list[UnitKey], orphan_age: timedelta, grace: timedelta
) -> datetime | None:
    """Return when all of these units may be removed, None if nobody can tell."""
    try:
        mark = store.ownership.mark()
    except IntegrityError:
        return None
    facts = [store.unit_facts(key) for key in unknown]
    moments = [one.modified_at + orphan_age for one in facts if one is not None]
    if mark is not None and mark.adopted_at is not None:
        moments.append(mark.adopted_at + grace)
    return max(moments, default=None)


def _unknown_error(unknown: list[UnitKey], removable_from: datetime | None, store: ArtifactStore) -> IntegrityError:
    late = removable_from is not None and removable_from > now()
    moment = f", from {shown_time(to_text(removable_from))} on" if late and removable_from is not None else ""
    units = [f"{key.name}/{key.uid}" for key in unknown]
    models = sorted({key.name for key in unknown})
    return IntegrityError(
        f"the store holds versions of {_listed(models)} that the database does not know: was it emptied, replaced or "
        "restored from an older backup?",
        where=store.ownership.marks.where(""),
        expected="a version for each unit of model files",
        received=f"{len(units)} that no version names: {_listed(units)}",
        remedy="Restore the newest backup of the database. If there is none, and nothing of them is needed, remove "
        f"them{moment}: noa gc --unknown",
        units=tuple(units),
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(f"`{name}`" for name in names[:_MOST_NAMED]) + more


def _is_free(store: ArtifactStore, key: UnitKey) -> bool:
    facts = store.unit_facts(key)
    return facts is not None and not facts.is_claimed
