"""The index of labels against the records that it is made from: labels that somebody changed, added or removed.

Search finds versions by their labels alone, so a lost one hides a version and an added one shows a wrong one. Page by
page, both sides in the order of the primary keys. What is found here is written anew by `noa models verify --repair`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Connection, Row, Table, and_, delete, exists, func, select, tuple_

from noa_registry.events.outbox import WHOLE_REGISTRY
from noa_registry.mirror_findings import Discrepancy
from noa_registry.search.indexing import record_labels, record_pages, reindex_labels
from noa_registry.tables import formats, version_labels, versions

_Place: TypeAlias = tuple[Any, Any]
_SHOWN = 80


def label_discrepancies(connection: Connection) -> Iterator[Discrepancy]:
    """Give every label of the index that is not what the record of its version says, and those that are not there."""
    c = version_labels.c
    strange = select(c.name, c.number, func.count()).where(~_of_a_version()).group_by(c.name, c.number)
    for name, number, count in sorted(connection.execute(strange).all(), key=repr):
        yield Discrepancy(
            name=name if isinstance(name, str) else WHOLE_REGISTRY,
            subject=f"version {number}, labels",
            field="index",
            expected="no such version",
            received=_counted(count),
        )
    for rows in record_pages(connection):
        indexed = _by_place(connection, version_labels, rows)
        held = _by_place(connection, formats, rows)
        for row in rows:
            place = (row.name, row.number)
            yield from _compare(row, [str(one.format) for one in held[place]], indexed[place])


def repair_labels(connection: Connection, places: Iterable[tuple[str, int]]) -> None:
    """Write the labels of these versions anew, and remove those of versions that are not there."""
    c = version_labels.c
    connection.execute(delete(version_labels).where(~_of_a_version()))
    for name, number in places:
        connection.execute(delete(version_labels).where(c.name == name, c.number == number))
        reindex_labels(connection, name, number)


def _of_a_version() -> ColumnElement[bool]:
    c = version_labels.c
    return exists(select(versions.c.number).where(versions.c.name == c.name, versions.c.number == c.number))


def _by_place(connection: Connection, table: Table, page: Sequence[Row[Any]]) -> defaultdict[_Place, list[Row[Any]]]:
    place = tuple_(table.c.name, table.c.number)
    first, last = ((row.name, row.number) for row in (page[0], page[-1]))
    found: defaultdict[_Place, list[Row[Any]]] = defaultdict(list)
    for row in connection.execute(select(table).where(and_(place >= first, place <= last))):
        found[row.name, row.number].append(row)
    return found


def _compare(row: Row[Any], held: Sequence[str], indexed: Sequence[Row[Any]]) -> Iterator[Discrepancy]:
    expected: defaultdict[str, list[str]] = defaultdict(list)
    received: defaultdict[str, list[Any]] = defaultdict(list)
    for key, value in record_labels(row, held):
        expected[key].append(value)
    for one in indexed:
        received[one.key].append(one.value)
    place = f"version {row.number}"
    if not indexed:
        count = sum(map(len, expected.values()))
        yield _finding(row.name, row.number, f"{place}, labels", _counted(count), "nothing")
        return
    for key in sorted(expected.keys() | received.keys(), key=repr):
        right, theirs = sorted(set(expected[key])), sorted(received[key], key=repr)
        if right != theirs:
            yield _finding(row.name, row.number, f"{place}, label {key}", _said(right), _said(theirs))
    if times := sorted({str(one.created_at) for one in indexed} - {row.created_at}):
        yield _finding(row.name, row.number, f"{place}, time of its labels", row.created_at, _said(times))


def _counted(count: int) -> str:
    return f"{count} label{'' if count == 1 else 's'}"


def _said(values: Sequence[object]) -> str:
    return " and ".join(repr(value)[:_SHOWN] for value in values) or "nothing"


def _finding(name: str, number: int, subject: str, expected: str, received: str) -> Discrepancy:
    return Discrepancy(name=name, subject=subject, field="index", expected=expected, received=received, number=number)
