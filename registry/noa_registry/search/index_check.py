"""The index of metrics against the evidence that it is made from: rows that somebody changed, added or removed.

Search shows what the index says, so a changed row shows a number that nobody measured. What is found here is written
anew by `noa models verify --repair`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sqlalchemy import Connection, Row, delete, exists, select

from noa.errors import IntegrityError
from noa_registry.events.outbox import WHOLE_REGISTRY
from noa_registry.evidence import METRICS
from noa_registry.gates.counted_values import is_lower_better
from noa_registry.json_columns import parse_table
from noa_registry.mirror_findings import Discrepancy
from noa_registry.search.indexing import metric_rows, reindex_metrics
from noa_registry.tables import evidence, version_metrics, versions

if TYPE_CHECKING:
    from noa.settings import GateSettings

_PAGE: Final = 500
_Place: TypeAlias = tuple[Any, Any]
_Thing: TypeAlias = tuple[Any, ...]


def index_discrepancies(connection: Connection, gates: Mapping[str, GateSettings]) -> Iterator[Discrepancy]:
    """Give every row of the index of metrics that is not what the evidence says, and those that are not there."""
    known = _registered(connection)
    indexed = _indexed(connection)
    for place in sorted(indexed.keys() - known.keys(), key=repr):
        for row in indexed[place]:
            yield _finding(row.name, row.number, _said(row), "no such row", _said_value(row.value))
    measured = _measured(connection)
    for place in sorted(indexed.keys() & known.keys() | measured.keys() & known.keys(), key=repr):
        rows = indexed.get(place, [])
        yield from _compare(place, known[place], rows, measured.get(place, {}), gates.get(place[0]))


def repair_index(connection: Connection, found: Sequence[Discrepancy], gates: Mapping[str, GateSettings]) -> None:
    """Write the rows of the index anew for the versions of these findings."""
    if not found:
        return
    c = version_metrics.c
    of_it = select(versions.c.number).where(versions.c.name == c.name, versions.c.number == c.number)
    connection.execute(delete(version_metrics).where(~exists(of_it)))
    known = _registered(connection)
    for name, number in dict.fromkeys((one.name, int(one.key)) for one in found if one.key):
        connection.execute(delete(version_metrics).where(c.name == name, c.number == number))
        if (name, number) in known:
            reindex_metrics(connection, name, number, policy=gates.get(name))


def _registered(connection: Connection) -> dict[_Place, Any]:
    """Return the time of each version."""
    c = versions.c
    return {
        (row.name, row.number): row.created_at for row in connection.execute(select(c.name, c.number, c.created_at))
    }


def _indexed(connection: Connection) -> dict[_Place, list[Row[Any]]]:
    found: defaultdict[_Place, list[Row[Any]]] = defaultdict(list)
    for row in connection.execute(select(version_metrics).order_by(version_metrics.c.id)):
        found[row.name, row.number].append(row)
    return found


def _measured(connection: Connection) -> dict[_Place, dict[_Thing, list[float]]]:
    """Return all values of each thing that was measured on a version, the first one first."""
    e = evidence.c
    found: defaultdict[_Place, dict[_Thing, list[float]]] = defaultdict(dict)
    last = 0
    while True:
        query = select(e.id, e.name, e.number, e.subject, e.content).where(e.kind == METRICS, e.id > last)
        rows = connection.execute(query.order_by(e.id).limit(_PAGE)).all()
        if not rows:
            return found
        last = rows[-1].id
        for row in rows:
            try:
                values = parse_table(row.content, of="a version", column="noa_evidence.content")
            except IntegrityError:  # `find_record_problems` names it
                continue
            for one in metric_rows(row.subject, values) if type(row.subject) is str else ():
                thing = (one["format"], one["dataset_digest"], one["split"], one["metric"])
                found[row.name, row.number].setdefault(thing, []).append(float(one["value"]))


def _compare(
    place: _Place,
    created_at: Any,
    rows: Sequence[Row[Any]],
    measured: Mapping[_Thing, list[float]],
    policy: GateSettings | None,
) -> Iterator[Discrepancy]:
    name, number = place
    seen: set[_Thing] = set()
    for row in rows:
        thing = (row.format, row.dataset_digest, row.split, row.metric)
        if thing in seen or thing not in measured:
            yield _finding(name, number, _said(row), "no such row", _said_value(row.value))
            continue
        seen.add(thing)
        right = _right_values(row.metric, measured[thing], policy)
        if row.value not in right:
            yield _finding(name, number, _said(row), " or ".join(map(_said_value, right)), _said_value(row.value))
        elif row.created_at != created_at:
            yield _finding(name, number, f"{_said(row)}, its time", str(created_at), str(row.created_at))
    for thing in measured.keys() - seen:
        right = " or ".join(map(_said_value, _right_values(thing[3], measured[thing], policy)))
        yield _finding(name, number, f"{thing[3]} of {thing[0]} on {thing[2]}", right, "nothing")


def _right_values(metric: str, values: Sequence[float], policy: GateSettings | None) -> list[float]:
    """Return which of several measurements may be in the index: a gate's settings may have changed since."""
    right: list[float] = []
    for lower in (is_lower_better(metric, policy), is_lower_better(metric)):
        right += values if lower is None else [max(values) if lower else min(values)]
    return list(dict.fromkeys(right))


def _said(row: Row[Any]) -> str:
    return f"{row.metric} of {row.format} on {row.split}"


def _said_value(value: object) -> str:
    return repr(value)


def _finding(name: Any, number: Any, what: str, expected: str, received: str) -> Discrepancy:
    is_place = isinstance(name, str) and type(number) is int
    return Discrepancy(
        name=name if is_place else WHOLE_REGISTRY,
        subject=f"version {number}, {what}",
        field="index",
        expected=expected,
        received=received,
        key=str(number) if is_place else "",
    )
