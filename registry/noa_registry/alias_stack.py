"""The past of an alias as a stack in the database, so that a rollback reads two rows and not the whole history.

`promote` pushes, `rollback` pops. The ledger stays the truth: each place names the ledger row that pushed it, that row
is checked before it is followed, and verifying the ledger replays all moves and compares.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, delete, insert, select

from noa.errors import IntegrityError
from noa_registry.ledger import LedgerEntry, Place, apply_move, entry_hash
from noa_registry.records import iterate_stored, load_entry
from noa_registry.tables import alias_stack, versions


def push(connection: Connection, entry: LedgerEntry) -> None:
    """Put the version that `entry` promoted on top of its alias's stack."""
    present = _newest(connection, entry.name, entry.alias, limit=1)
    connection.execute(
        insert(alias_stack).values(
            name=entry.name,
            alias=entry.alias,
            depth=present[0][0] + 1 if present else 1,
            number=entry.to_number,
            sequence=entry.sequence,
        )
    )


def pop(connection: Connection, name: str, alias: str) -> None:
    """Take the top off an alias's stack."""
    present = _newest(connection, name, alias, limit=1)
    if present:
        here = (alias_stack.c.name == name) & (alias_stack.c.alias == alias) & (alias_stack.c.depth == present[0][0])
        connection.execute(delete(alias_stack).where(here))


def below_holder(connection: Connection, name: str, alias: str, holder: int) -> int | None:
    """Return the version under the one that holds the alias, None if there is none.

    Raises:
        IntegrityError: the stack is not what the ledger says.
    """
    rows = _newest(connection, name, alias, limit=2)
    for _, place in rows:
        entry = load_entry(connection, place.sequence)
        made = (entry.name, entry.alias, entry.action, entry.to_number)
        if made != (name, alias, "promote", place.number) or entry.hash != entry_hash(entry):
            raise _differs(name, alias, f"version {entry.to_number} (row {entry.sequence})", place)
    if not rows or rows[0][1].number != holder:
        raise _differs(name, alias, f"version {holder} on top", rows[0][1] if rows else None)
    return rows[1][1].number if len(rows) == 2 else None


def rebuild(connection: Connection) -> None:
    """Write all stacks anew from the ledger, in the caller's write transaction.

    Raises:
        IntegrityError: the ledger cannot be followed: a row of it was spoilt, or a version that it names is not there.
    """
    connection.execute(delete(alias_stack))
    stacks: defaultdict[tuple[str, str], list[Place]] = defaultdict(list)
    for stored in iterate_stored(connection):
        if stored.fault is not None and not stored.leads_somewhere:
            raise stored.fault
        entry = stored.entry
        apply_move(stacks[entry.name, entry.alias], entry.action, entry.to_number, entry.sequence)
    _require_versions(connection, stacks)
    rows = [
        {"name": name, "alias": alias, "depth": depth, "number": place.number, "sequence": place.sequence}
        for (name, alias), stack in stacks.items()
        for depth, place in enumerate(stack, start=1)
    ]
    if rows:
        connection.execute(insert(alias_stack), rows)


def check_stacks(connection: Connection, replayed: Mapping[tuple[str, str], Iterable[Place]]) -> None:
    """Compare the stacks with those that replaying the ledger gives.

    Raises:
        IntegrityError: names the first alias whose stack differs.
    """
    found: defaultdict[tuple[str, str], list[Place]] = defaultdict(list)
    depths: defaultdict[tuple[str, str], list[object]] = defaultdict(list)
    query = select(alias_stack).order_by(alias_stack.c.name, alias_stack.c.alias, alias_stack.c.depth)
    for row in connection.execute(query):
        found[row.name, row.alias].append(Place(number=row.number, sequence=row.sequence))
        depths[row.name, row.alias].append(row.depth)
    for name, alias in sorted(found.keys() | replayed.keys(), key=repr):  # SQLite keeps bytes in any column
        expected, received = list(replayed.get((name, alias), ())), found.get((name, alias), [])
        for depth in range(max(len(expected), len(received))):
            mine = expected[depth] if depth < len(expected) else None
            theirs = received[depth] if depth < len(received) else None
            if mine != theirs:
                wanted = "nothing" if mine is None else f"version {mine.number} (row {mine.sequence})"
                raise _differs(name, alias, f"{wanted} at depth {depth + 1}", theirs)
            if depths[name, alias][depth] != depth + 1:
                raise _differs(name, alias, f"depth {depth + 1}", theirs, depth=depths[name, alias][depth])


def _require_versions(connection: Connection, stacks: Mapping[tuple[str, str], Iterable[Place]]) -> None:
    there = {(row.name, row.number) for row in connection.execute(select(versions.c.name, versions.c.number))}
    for (name, alias), stack in stacks.items():
        for place in stack:
            if (name, place.number) not in there:
                raise IntegrityError(
                    f"version {place.number} of `{name}` is not there, to which `{name}@{alias}` was moved",
                    where=f"row {place.sequence} of the ledger",
                    expected=f"a row of noa_versions with name '{name}', number {place.number}",
                    received="nothing",
                    remedy="Somebody wrote into the database directly; restore a backup of it",
                    file="noa_versions",
                )


def _newest(connection: Connection, name: str, alias: str, *, limit: int) -> list[tuple[int, Place]]:
    query = (
        select(alias_stack.c.depth, alias_stack.c.number, alias_stack.c.sequence)
        .where(alias_stack.c.name == name, alias_stack.c.alias == alias)
        .order_by(alias_stack.c.depth.desc())
        .limit(limit)
    )
    return [(int(row[0]), Place(number=int(row[1]), sequence=int(row[2]))) for row in connection.execute(query)]


def _differs(name: str, alias: str, expected: str, place: Place | None, *, depth: object = None) -> IntegrityError:
    at = "" if depth is None else f" at depth {depth!r}"
    return IntegrityError(
        f"the stack of `{name}@{alias}` is not what the ledger says",
        expected=expected,
        received="nothing" if place is None else f"version {place.number} (row {place.sequence}){at}",
        remedy="Somebody wrote into the database directly; see it with: noa ledger verify",
        file="noa_alias_stack",
    )
