"""The rows by which versions are found: written in the transaction of what they tell of, so that search never lags.

Labels hold what a version is (`tag.KEY`, `param.KEY`, `format`, `native`, `dataset`, `by`, `run`, `commit`), metrics
what was measured on it. Both can be made anew from the records at any time (`rebuild_index`); they are no record
themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Connection, Row, Select, delete, insert, select, tuple_

from noa.digests import sha256_bytes
from noa.errors import IntegrityError
from noa_registry.evidence import METRICS, Evidence
from noa_registry.gates.counted_values import is_lower_better
from noa_registry.json_columns import parse_table
from noa_registry.search.parameters import parameter_labels
from noa_registry.tables import evidence, formats, version_labels, version_metrics, versions

if TYPE_CHECKING:
    from noa.settings import GateSettings

TAG_PREFIX = "tag."
MAX_KEY_CHARS = 250
_KEPT_CHARS = 180
_PAGE = 500
_INDEXED = (
    versions.c.name,
    versions.c.number,
    versions.c.created_at,
    versions.c.native,
    versions.c.dataset_digest,
    versions.c.created_by,
    versions.c.run_id,
    versions.c.git_commit,
    versions.c.tags,
    versions.c.params,
)


def index_version(
    connection: Connection,
    name: str,
    number: int,
    *,
    created_at: str,
    native: str,
    dataset_digest: str,
    created_by: str,
    run_id: str | None,
    git_commit: str | None,
    tags: Mapping[str, str],
    params: Mapping[str, object],
) -> None:
    """Index what a version is, in the transaction that registers it. Its formats and metrics are indexed with them."""
    labels = _version_labels(native, dataset_digest, created_by, run_id, git_commit, tags, params)
    _insert_labels(connection, name, number, created_at, labels)


def index_format(connection: Connection, name: str, number: int, format: str) -> None:  # our word
    """Index a format of a version whose row is there, in the transaction that seals the format."""
    _insert_labels(connection, name, number, _created_at(connection, name, number), [("format", format)])


def index_evidence(
    connection: Connection,
    name: str,
    number: int,
    facts: Sequence[Evidence],
    *,
    policy: GateSettings | None = None,
) -> None:
    """Index the metrics among `facts`, in the transaction that attaches them.

    Of the same bytes on the same rows the worst value counts, as for a gate: by the direction that `policy` says, else
    the metric or its name; the first, where nobody knows which it is.
    """
    rows = [row for fact in facts if fact.kind == METRICS for row in metric_rows(fact.subject, fact.values)]
    if not rows:
        return
    created_at = _created_at(connection, name, number)
    things = list({_thing(row): None for row in rows})
    c = version_metrics.c
    here = (c.name == name, c.number == number, tuple_(c.format, c.dataset_digest, c.split, c.metric).in_(things))
    measured = (c.format, c.dataset_digest, c.split, c.metric, c.value)
    before = [dict(row) for row in connection.execute(select(*measured).where(*here).order_by(c.id)).mappings()]
    connection.execute(delete(version_metrics).where(*here))
    newest: dict[tuple[object, ...], dict[str, str | float]] = {}
    for row in (*before, *rows):
        known = newest.setdefault(_thing(row), row)
        lower = is_lower_better(str(row["metric"]), policy)
        value, than = float(row["value"]), float(known["value"])
        if lower is not None and (value > than if lower else value < than):
            newest[_thing(row)] = row
    version = {"name": name, "number": number, "created_at": created_at}
    connection.execute(insert(version_metrics), [{**version, **row} for row in newest.values()])


def _thing(row: Mapping[str, object]) -> tuple[object, ...]:
    return row["format"], row["dataset_digest"], row["split"], row["metric"]


def unindex_version(connection: Connection, name: str, number: int) -> None:
    """Take a version out of the index, so that search does not find it any more."""
    for table in (version_labels, version_metrics):
        connection.execute(delete(table).where(table.c.name == name, table.c.number == number))


def rebuild_index(connection: Connection) -> int:
    """Make all rows of the index anew from the records, and return how many versions there are.

    For a database of an older noa; runs in the caller's write transaction and keeps one page of records in memory.
    """
    for table in (version_labels, version_metrics):
        connection.execute(delete(table))
    count = 0
    for rows in _pages(connection):
        for row in rows:
            if _is_whole(row):
                _index_row(connection, row)
        count += len(rows)
    return count


def label_value(text: str) -> str:
    """Return the text as a label holds it: what is too long for an index is cut and completed by its digest."""
    return text if len(text) <= _KEPT_CHARS else text[:_KEPT_CHARS] + sha256_bytes(text.encode())


def label_key(key: str) -> str:
    """Return the key as a label holds it."""
    return key if len(key) <= MAX_KEY_CHARS else key[:_KEPT_CHARS] + sha256_bytes(key.encode())


def reindex_labels(connection: Connection, name: str, number: int) -> None:
    """Write the labels of a version into the index, of which nothing is there."""
    query: Select[*tuple[Any, ...]] = select(*_INDEXED).where(versions.c.name == name, versions.c.number == number)
    for row in connection.execute(query).all():
        if _is_whole(row):
            labels = record_labels(row, _held_formats(connection, name, number))
            connection.execute(
                insert(version_labels),
                [
                    {"name": name, "number": number, "created_at": row.created_at, "key": key, "value": value}
                    for key, value in labels
                ],
            )


def record_labels(row: Row[Any], held: Iterable[str]) -> list[tuple[str, str]]:
    """Return the labels of a version that `record_pages` gave, as the index holds them; `held` are its formats."""
    tags, params = _readable(row.tags), _readable(row.params)
    labels = _version_labels(row.native, row.dataset_digest, row.created_by, row.run_id, row.git_commit, tags, params)
    labels += [("format", one) for one in held]
    return [(label_key(key), label_value(value)) for key, value in labels]


def record_pages(connection: Connection) -> Iterator[list[Row[Any]]]:
    """Give what the index needs of all versions, a page at a time by name and number; those with spoilt cells not."""
    for rows in _pages(connection):
        if whole := [row for row in rows if _is_whole(row)]:
            yield whole


def reindex_metrics(connection: Connection, name: str, number: int, *, policy: GateSettings | None = None) -> None:
    """Write the metrics of a version into the index, of which nothing is there."""
    e = evidence.c
    measured = (
        select(e.subject, e.digest, e.content)
        .where(e.name == name, e.number == number, e.kind == METRICS)
        .order_by(e.id)
    )
    facts = [
        Evidence(kind=METRICS, subject=entry.subject, digest=entry.digest, values=_readable(entry.content))
        for entry in connection.execute(measured)
        if type(entry.subject) is str
    ]
    index_evidence(connection, name, number, facts, policy=policy)


def metric_rows(subject: str, values: Mapping[str, object]) -> Iterator[dict[str, str | float]]:
    """Give what the index holds of one fact that is a table of metrics: what was measured on what, and the value."""
    metrics = values.get("metrics")
    if not isinstance(metrics, Mapping):
        return
    for metric, value in cast("Mapping[str, object]", metrics).items():
        # What is no number (NaN is stored as text) cannot be compared, so nothing is found by it.
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            continue
        yield {
            "format": subject,
            "dataset_digest": str(values.get("dataset_digest") or "")[:71],
            "split": str(values.get("split") or "")[:64],
            "metric": metric[:128],
            "value": float(value),
        }


def _is_whole(row: Row[Any]) -> bool:
    """Tell whether every cell is of the type that noa writes; others are named by the verification."""
    texts = (row.created_at, row.native, row.dataset_digest, row.created_by, row.run_id, row.git_commit)
    is_text = all(text is None or type(text) is str for text in (row.name, row.tags, row.params, *texts))
    return is_text and type(row.number) is int


def _index_row(connection: Connection, row: Row[Any]) -> None:
    index_version(
        connection,
        row.name,
        row.number,
        created_at=row.created_at,
        native=row.native,
        dataset_digest=row.dataset_digest,
        created_by=row.created_by,
        run_id=row.run_id,
        git_commit=row.git_commit,
        tags=_readable(row.tags),
        params=_readable(row.params),
    )
    found = [("format", held) for held in _held_formats(connection, row.name, row.number)]
    _insert_labels(connection, row.name, row.number, row.created_at, found)
    reindex_metrics(connection, row.name, row.number)


def _readable(text: str) -> dict[str, Any]:
    try:
        return parse_table(text, of="a version", column="of the index")
    except IntegrityError:  # an upgrade goes on; whoever opens the version is told
        return {}


def _pages(connection: Connection) -> Iterator[Sequence[Row[Any]]]:
    c = versions.c
    query: Select[*tuple[Any, ...]] = select(*_INDEXED).order_by(c.name, c.number)
    last: tuple[str, int] | None = None
    while True:
        page = query if last is None else query.where(tuple_(c.name, c.number) > last)
        rows = connection.execute(page.limit(_PAGE)).all()
        if not rows:
            return
        yield rows
        last = (rows[-1].name, rows[-1].number)


def _held_formats(connection: Connection, name: str, number: int) -> list[str]:
    held = select(formats.c.format).where(formats.c.name == name, formats.c.number == number)
    return [str(entry.format) for entry in connection.execute(held)]


def _version_labels(
    native: str,
    dataset_digest: str,
    created_by: str,
    run_id: str | None,
    git_commit: str | None,
    tags: Mapping[str, object],
    params: Mapping[str, object],
) -> list[tuple[str, str]]:
    labels = [("native", native), ("dataset", dataset_digest), ("by", created_by)]
    labels += [("run", run_id)] if run_id else []
    labels += [("commit", git_commit)] if git_commit else []
    labels += [(f"{TAG_PREFIX}{key}", str(value)) for key, value in tags.items()]
    return [*labels, *parameter_labels(params).items()]


def _insert_labels(
    connection: Connection, name: str, number: int, created_at: str, labels: Iterable[tuple[str, str]]
) -> None:
    here = {"name": name, "number": number, "created_at": created_at}
    rows = [{**here, "key": label_key(key), "value": label_value(value)} for key, value in labels]
    if rows:
        connection.execute(insert(version_labels), rows)


def _created_at(connection: Connection, name: str, number: int) -> str:
    query = select(versions.c.created_at).where(versions.c.name == name, versions.c.number == number)
    return str(connection.execute(query).scalar_one())


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold, in a database of an older noa
        return False
