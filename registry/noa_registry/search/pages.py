"""Pages of search: hits with what a list of them shows, and a cursor to the next page.

A hit is what the index and the rows say; nothing is verified here. `resolve` and `load` verify what they give.
"""

from __future__ import annotations

import base64
import json
import operator
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, TypeAlias

from sqlalchemy import ColumnElement, Connection, FromClause, Row, and_, or_, select

from noa.errors import IntegrityError, InvalidInputError
from noa_registry.database import Database, now, to_text
from noa_registry.foreign_cells import refuse_foreign, require_own_types
from noa_registry.json_columns import parse_table, parse_time
from noa_registry.search.counted import CountedValues
from noa_registry.search.grammar import Comparison, MetricTerm, Query, parse_query
from noa_registry.search.hints import unknown_name_hint
from noa_registry.search.planning import plan
from noa_registry.tables import aliases, formats, trash, version_metrics, versions

MAX_PAGE: Final = 1000
_CURSOR_VERSION: Final = 1
_CHUNK: Final = 200
_Key = tuple[str, int]
_Matches: TypeAlias = Callable[[float], bool]
_HOLDS: Final[Mapping[Comparison, Callable[[float, float], bool]]] = {
    "=": operator.eq,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchHit:
    """A version that was found. `metrics` holds the values by which a gate would judge, of those that meet the query:
    measured on test rows, of the served format, and of several the worst. By the same values a page is sorted.

    `problem` says what of its row cannot be read, None where nothing is wrong with it.
    """

    name: str
    number: int
    digest: str
    native: str
    formats: tuple[str, ...]
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    dataset_digest: str
    created_at: datetime | None
    created_by: str
    is_trashed: bool
    problem: str | None = None
    measured_on: Mapping[str, str] = field(default_factory=dict[str, str])
    """The format, split and digest of test rows of each value in `metrics`."""

    @property
    def reference(self) -> str:
        """Return e.g. `digits/3`."""
        return f"{self.name}/{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPage:
    """Some hits in order. `next_cursor` gives the page after this one to the same query; None: that was all.

    `hint` says, where nothing was found, which name in the query no version has, or that a deleted one matches.
    """

    hits: tuple[SearchHit, ...]
    next_cursor: str | None
    hint: str | None = None


def search(
    database: Database, text: str, *, limit: int, cursor: str | None, counted: CountedValues | None = None
) -> SearchPage:
    """Return one page of what a query finds. See `Registry.search`."""
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidInputError("a page has another size", expected=f"1 to {MAX_PAGE}", received=str(limit))
    counted = counted or CountedValues()
    moment, after = now(), None
    if cursor is not None:
        # Ages are counted from the first page on: a version must not slip from one page to another meanwhile.
        moment, after = _read_cursor(cursor, text)
    query = parse_query(text, now=moment)
    with database.snapshot() as connection:
        rows = connection.execute(plan(connection, query, counted=counted, after=after, limit=limit + 1)).all()
        keys = [(str(row[0]), int(row[1])) for row in rows[:limit]]
        hits = _load_hits(connection, keys, _asked(query), counted)
        if len(hits) < len(set(keys)):  # rows of the index tell of versions that are not there
            refuse_foreign(connection, versions)
        hint = None if keys or cursor is not None else _hint(connection, query, counted)
    following = None
    if len(rows) > limit:
        name, number, value = rows[limit - 1]
        following = _write_cursor(query, moment, [value, name, number])
    return SearchPage(hits=tuple(hits[key] for key in keys if key in hits), next_cursor=following, hint=hint)


def _hint(connection: Connection, query: Query, counted: CountedValues) -> str | None:
    if unknown := unknown_name_hint(connection, query):
        return unknown
    if query.trashed:
        return None
    row = connection.execute(
        plan(connection, replace(query, trashed=True), counted=counted, after=None, limit=1)
    ).first()
    return None if row is None else f"In the trash `{row[0]}/{row[1]}` does: add `is:trashed` to see what is there"


def _load_hits(
    connection: Connection, keys: Sequence[_Key], asked: Mapping[str, _Matches], counted: CountedValues
) -> dict[_Key, SearchHit]:
    hits: dict[_Key, SearchHit] = {}
    for start in range(0, len(keys), _CHUNK):
        hits |= _load_chunk(connection, keys[start : start + _CHUNK], asked, counted)
    return hits


def _load_chunk(
    connection: Connection, keys: Sequence[_Key], asked: Mapping[str, _Matches], counted: CountedValues
) -> dict[_Key, SearchHit]:
    held: defaultdict[_Key, list[str]] = defaultdict(list)
    for row in connection.execute(select(aliases).where(_of(aliases, keys))):
        require_own_types(row, aliases)
        held[(row.name, row.number)].append(row.alias)
    made: defaultdict[_Key, list[str]] = defaultdict(list)
    of_formats = select(formats.c.name, formats.c.number, formats.c.format).where(_of(formats, keys))
    for row in connection.execute(of_formats):
        if type(row.format) is not str:
            refuse_foreign(connection, formats)
        made[(row.name, row.number)].append(row.format)
    in_trash = {(row.name, row.number) for row in connection.execute(select(trash).where(_of(trash, keys)))}
    found = connection.execute(select(versions).where(_of(versions, keys))).all()
    native = {(row.name, row.number): str(row.native) for row in found}
    metrics, measured_on = _load_metrics(connection, native, asked, counted)
    hits: dict[_Key, SearchHit] = {}
    for row in found:
        key = (row.name, row.number)
        spoilt_type = _foreign_type_of(row)
        tags, spoilt_tags = _tags_of(row)
        created_at, spoilt_time = _time_of(row)
        hits[key] = SearchHit(
            name=row.name,
            number=row.number,
            digest=_text(row.digest),
            native=_text(row.native),
            formats=tuple(sorted(made[key])),
            aliases=tuple(sorted(held[key])),
            tags=tags,
            metrics=metrics[key],
            measured_on=measured_on[key],
            dataset_digest=_text(row.dataset_digest),
            created_at=created_at,
            created_by=_text(row.created_by),
            is_trashed=key in in_trash,
            problem=spoilt_tags or spoilt_time or spoilt_type,
        )
    return hits


def _foreign_type_of(row: Row[Any]) -> str | None:
    try:
        require_own_types(row, versions)
    except IntegrityError as exc:
        return f"{exc.what} ({exc.where})"
    return None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _tags_of(row: Row[Any]) -> tuple[dict[str, str], str | None]:
    try:
        return parse_table(row.tags, of=f"`{row.name}/{row.number}`", column="noa_versions.tags"), None
    except IntegrityError as exc:  # of one version: the others are found all the same
        return {}, exc.what


def _time_of(row: Row[Any]) -> tuple[datetime | None, str | None]:
    try:
        return parse_time(row.created_at, of=f"`{row.name}/{row.number}`", column="noa_versions.created_at"), None
    except IntegrityError as exc:
        return None, exc.what


def _load_metrics(
    connection: Connection, native: Mapping[_Key, str], asked: Mapping[str, _Matches], counted: CountedValues
) -> tuple[defaultdict[_Key, dict[str, float]], defaultdict[_Key, dict[str, str]]]:
    """Return, per version and metric, the value that counts of those that the query asks for, and where it is from."""
    chosen: dict[tuple[_Key, str], tuple[tuple[float, ...], Row[Any]]] = {}
    query = select(version_metrics).where(_of(version_metrics, list(native))).order_by(version_metrics.c.id)
    for row in connection.execute(query):
        require_own_types(row, version_metrics)
        key = (row.name, row.number)
        if row.metric in asked and not asked[row.metric](row.value):
            continue
        order = counted.key(row.name, native[key], row)
        known = chosen.get((key, row.metric))
        if known is None or order < known[0]:
            chosen[key, row.metric] = (order, row)
    metrics: defaultdict[_Key, dict[str, float]] = defaultdict(dict)
    measured_on: defaultdict[_Key, dict[str, str]] = defaultdict(dict)
    for (key, metric), (_, row) in chosen.items():
        metrics[key][metric] = row.value
        measured_on[key][metric] = f"{row.format} on {row.split}, {row.dataset_digest}"
    return metrics, measured_on


def _asked(query: Query) -> dict[str, _Matches]:
    """Return what the query asks of each metric that it names."""
    terms = (term for term in query.terms if isinstance(term, MetricTerm) and not term.negated)
    by_metric: defaultdict[str, list[tuple[Comparison, float]]] = defaultdict(list)
    for term in terms:
        by_metric[term.metric] += term.comparisons
    return {metric: _matcher(comparisons) for metric, comparisons in by_metric.items()}


def _matcher(comparisons: Sequence[tuple[Comparison, float]]) -> _Matches:
    return lambda value: all(_HOLDS[comparison](value, bound) for comparison, bound in comparisons)


def _of(table: FromClause, keys: Sequence[_Key]) -> ColumnElement[bool]:
    # Not a list of pairs: SQLite reads the whole table for one.
    numbers: defaultdict[str, list[int]] = defaultdict(list)
    for name, number in keys:
        numbers[name].append(number)
    return or_(*(and_(table.c.name == name, table.c.number.in_(found)) for name, found in numbers.items()))


def _write_cursor(query: Query, moment: datetime, last: list[Any]) -> str:
    text = json.dumps([_CURSOR_VERSION, query.digest[-16:], to_text(moment), last], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read_cursor(cursor: str, text: str) -> tuple[datetime, list[Any]]:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        version, digest, moment, last = json.loads(base64.urlsafe_b64decode(padded.encode("ascii")))
        now_then = datetime.fromisoformat(moment)
        value, name, number = last
        is_whole = version == _CURSOR_VERSION and isinstance(name, str) and type(number) is int
        is_whole = is_whole and isinstance(value, str | float | int) and now_then.tzinfo is not None
    except (ValueError, TypeError):
        is_whole, digest, now_then, last = False, "", now(), []
    if not is_whole:
        raise InvalidInputError(
            "the cursor is not readable",
            expected="the `next_cursor` of a page",
            received=f"`{cursor[:60]}`",
            remedy="Search again without a cursor for the first page",
        )
    query = parse_query(text, now=now_then)
    is_time = query.sort_metric is None
    if digest != query.digest[-16:] or isinstance(last[0], str) is not is_time:
        raise InvalidInputError(
            "the cursor belongs to another query",
            received=f"`{text[:80]}`",
            remedy="Give the same query as for the page before, or leave the cursor out",
        )
    return now_then, last
