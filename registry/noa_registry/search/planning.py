"""From a query to one statement that reads few rows, on any database.

Versions come in the order of their time from an index; every term is one probe per version that stops at the first row
it finds. Walking all versions so is quick if many match and slow if few do; therefore the rows of each term are counted
first, up to a limit, and the walk goes over the rarest term instead: in order where its index has the time in it, else
over all its versions, which are then few enough to be sorted. Conditions that an index must not be chosen for are
written so that none can be (`|| ''`), because a planner without statistics guesses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    and_,
    exists,
    false,
    func,
    literal,
    or_,
    select,
    tuple_,
)

from noa.errors import InvalidInputError
from noa_registry.search.counted import CountedValues
from noa_registry.search.grammar import LiveTerm, MetricTerm, NumberTerm, Query, Term, TextTerm, TimeTerm
from noa_registry.search.indexing import label_key, label_value
from noa_registry.tables import aliases, formats, models, trash, version_labels, version_metrics, versions

MAX_TERMS: Final = 30
_MOST_DRIVEN: Final = 25_000
_MOST_SORTED: Final = 4_000
_MOST_DIGESTS: Final = 1_000  # digests are spread evenly: many matches are found soon by walking
_MOST_NAMES: Final = 200
_BEYOND_DIGITS: Final = "g"
_BEYOND_TEXT: Final = "\U0010ffff"
_Predicate: TypeAlias = ColumnElement[bool]


@dataclass(frozen=True, slots=True)
class _Source:
    """Rows that hold all versions of one term: `name`, `number` and `created_at`.

    `is_ordered`: an index gives them by time. `is_unique`: each version once. `counted`: as many rows, counted sooner.
    Of more rows than `most` (None: as many as may be sorted) it is not used.
    """

    term: _Condition | None
    table: FromClause
    where: tuple[_Predicate, ...]
    is_ordered: bool = False
    is_unique: bool = True
    counted: Select[Any] | None = None
    most: int | None = None
    count: int = 0

    @property
    def cost(self) -> int:
        """Roughly how many rows are read for a page."""
        return self.count // 2 if self.is_ordered else self.count


def plan(
    connection: Connection, query: Query, *, counted: CountedValues, after: Sequence[Any] | None, limit: int
) -> Select[Any, Any, Any]:
    """Return the statement for one page: name, number and what the page is sorted by, in order.

    `counted` says which of several values of a metric that is.
    `after` is the last row of the page before: its sort value, name and number.

    Raises:
        InvalidInputError: the query has more terms than a statement should.
    """
    if len(query.terms) > MAX_TERMS:
        raise InvalidInputError(
            "the query is too long", expected=f"at most {MAX_TERMS} terms", received=f"{len(query.terms)} terms"
        )
    terms = tuple(_with_names(connection, term) for term in query.terms)
    source = _rarest(connection, terms, trashed=query.trashed)
    if query.sort_metric is not None:
        return _by_metric(query, terms, source, counted, after, limit)
    return _by_time(query, terms, source, after, limit)


def _by_time(
    query: Query, terms: Sequence[_Condition], source: _Source | None, after: Sequence[Any] | None, limit: int
) -> Select[Any, Any, Any]:
    rows, where, is_ordered = _from(source)
    others = [term for term in terms if source is None or term is not source.term]
    moment = rows.c.created_at if is_ordered else rows.c.created_at.concat("")
    statement = (
        select(rows.c.name, rows.c.number, rows.c.created_at)
        .where(*where, *_conditions(rows, others, trashed=query.trashed))
        .limit(limit)
    )
    return _page(statement, (moment, rows.c.name, rows.c.number), after, ascending=query.ascending)


def _by_metric(
    query: Query,
    terms: Sequence[_Condition],
    source: _Source | None,
    counted: CountedValues,
    after: Sequence[Any] | None,
    limit: int,
) -> Select[Any, Any, Any]:
    """A version with several values of the metric (of formats, datasets) counts with that one which its hit shows."""
    metric = query.sort_metric or ""
    asked = [t for t in terms if isinstance(t, MetricTerm) and t.metric == metric and not t.negated]
    wanted = asked[0] if asked else MetricTerm(metric=metric, comparisons=(), negated=False)
    others = [term for term in terms if term is not wanted]
    if source is not None and source.count <= _MOST_SORTED and source.term is not wanted:
        return _by_metric_of(query, wanted, others, source, counted, after, limit)
    m = version_metrics
    conditions = _conditions(m, others, trashed=query.trashed)
    statement = (
        select(m.c.name, m.c.number, m.c.value)
        .where(_metric(m, wanted), *conditions, _is_counted(m, wanted, counted))
        .limit(limit)
    )
    return _page(statement, (m.c.value, m.c.name, m.c.number), after, ascending=query.ascending)


def _by_metric_of(
    query: Query,
    wanted: MetricTerm,
    others: Sequence[_Condition],
    source: _Source,
    counted: CountedValues,
    after: Sequence[Any] | None,
    limit: int,
) -> Select[Any, Any, Any]:
    """Look up the value of each of few versions, instead of walking along all values."""
    m = version_metrics.alias()
    rows, where, _ = _from(source)
    others = [term for term in others if term is not source.term]
    # The metric is compared so that its index is of no use: the few versions come first, then their values.
    is_metric = m.c.metric.concat("") == wanted.metric
    of_version = and_(m.c.name == rows.c.name, m.c.number == rows.c.number, is_metric, *_in_bounds(m, wanted))
    found = (
        select(rows.c.name, rows.c.number, m.c.value)
        .select_from(rows.join(m, of_version))
        .where(*where, *_conditions(rows, others, trashed=query.trashed), _is_counted(m, wanted, counted))
        .distinct()
        .subquery()
    )
    statement = select(found.c.name, found.c.number, found.c.value).limit(limit)
    return _page(statement, (found.c.value, found.c.name, found.c.number), after, ascending=query.ascending)


def _is_counted(row: FromClause, wanted: MetricTerm, counted: CountedValues) -> _Predicate:
    other = version_metrics.alias()
    return ~_exists(other, row, _metric(other, wanted), counted.counts_more(other, row, wanted.metric))


def _page(
    statement: Select[Any, Any, Any],
    keys: tuple[ColumnElement[Any], ...],
    after: Sequence[Any] | None,
    *,
    ascending: bool,
) -> Select[Any, Any, Any]:
    if after is not None:
        row, last = tuple_(*keys), tuple_(*(literal(value) for value in after))
        statement = statement.where(row > last if ascending else row < last)
    return statement.order_by(*(key.asc() if ascending else key.desc() for key in keys))


def _from(source: _Source | None) -> tuple[FromClause, tuple[_Predicate, ...], bool]:
    if source is None:
        return versions, (), True
    if source.is_ordered or source.is_unique:
        return source.table, source.where, source.is_ordered
    c = source.table.c
    return select(c.name, c.number, c.created_at).where(*source.where).distinct().subquery(), (), False


@dataclass(frozen=True, slots=True)
class _Names:
    """The models that a term about names means; `names` None: too many to list, `like` says which."""

    term: TextTerm
    names: tuple[str, ...] | None
    like: _Predicate


_Condition: TypeAlias = Term | _Names


def _with_names(connection: Connection, term: Term) -> _Condition:
    if not isinstance(term, TextTerm) or term.field != "name" or term.match == "exact":
        return term
    like = _like(term)
    found = connection.execute(select(models.c.name).where(like).limit(_MOST_NAMES + 1)).scalars().all()
    return _Names(term, tuple(found) if len(found) <= _MOST_NAMES else None, like)


def _like(term: TextTerm) -> _Predicate:
    if term.match == "any":
        return models.c.name == models.c.name
    if term.match == "prefix":
        return _begins(models.c.name, term.text)
    return func.lower(models.c.name).contains(term.text.lower(), autoescape=True)


def _rarest(connection: Connection, terms: Sequence[_Condition], *, trashed: bool) -> _Source | None:
    """Return the term whose rows are the fewest to read, None if walking all versions is better."""
    found = [source for term in terms if (source := _source(term)) is not None]
    found += [_Source(None, versions, (_in(_trash_keys()),))] if trashed else []
    limited = [source if source.most is not None else replace(source, most=_MOST_DRIVEN) for source in found]
    counted = [replace(source, count=_count(connection, source)) for source in limited]
    usable = [source for source in counted if source.is_ordered or source.count <= (source.most or 0)]
    return min(usable, key=lambda source: source.cost, default=None)


def _count(connection: Connection, source: _Source) -> int:
    counted = select(literal(1)).select_from(source.table).where(*source.where)
    rows = (counted if source.counted is None else source.counted).limit((source.most or 0) + 1).subquery()
    return int(connection.execute(select(func.count()).select_from(rows)).scalar_one())


def _source(term: _Condition) -> _Source | None:
    if isinstance(term, _Names):
        if term.term.negated or term.names is None:
            return None
        return _Source(term, versions, (versions.c.name.in_(term.names),), is_ordered=len(term.names) == 1)
    if term.negated:
        return None
    match term:
        case TextTerm(field="name"):
            return _Source(term, versions, (versions.c.name == term.text,), is_ordered=True)
        case TextTerm(field="label"):
            is_exact = term.match == "exact"
            is_unique = is_exact or term.key != "format"  # of all else a version has one value
            return _Source(
                term, version_labels, (_label(version_labels, term),), is_ordered=is_exact, is_unique=is_unique
            )
        case TextTerm(field="digest"):
            of_versions, of_formats = _digest_keys(term)
            either = select(of_versions.union(of_formats).subquery())
            rows = select(of_versions.union_all(of_formats).subquery().c.number)
            return _Source(term, versions, (_in(either),), counted=rows, most=_MOST_DIGESTS)
        case TextTerm():
            return _Source(term, versions, (_in(_alias_keys(term)),))
        case LiveTerm():
            return _Source(term, versions, (_in(select(aliases.c.name, aliases.c.number)),))
        case MetricTerm():
            return _Source(term, version_metrics, (_metric(version_metrics, term),), is_unique=False)
        case NumberTerm() | TimeTerm():
            return None  # the walk over all versions tests them in its own index


def _trash_keys() -> Select[Any, Any]:
    return select(trash.c.name, trash.c.number).where(trash.c.state == "trashed")


def _in(keys: Select[Any, Any]) -> _Predicate:
    return tuple_(versions.c.name, versions.c.number).in_(keys)


def _digest_keys(term: TextTerm) -> tuple[Select[Any, Any], Select[Any, Any]]:
    of_versions = select(versions.c.name, versions.c.number).where(_digest(versions.c.digest, term))
    of_formats = select(formats.c.name, formats.c.number).where(_digest(formats.c.digest, term))
    return of_versions, of_formats


def _alias_keys(term: TextTerm) -> Select[Any, Any]:
    return select(aliases.c.name, aliases.c.number).where(_matches(aliases.c.alias, term))


def _conditions(rows: FromClause, terms: Sequence[_Condition], *, trashed: bool) -> list[_Predicate]:
    c = rows.c
    in_trash = select(literal(1)).where(trash.c.name == c.name, trash.c.number == c.number)
    in_trash = in_trash.correlate(rows)
    is_visible = exists(in_trash.where(trash.c.state == "trashed")) if trashed else ~exists(in_trash)
    return [*(_condition(rows, term) for term in terms), is_visible]


def _condition(rows: FromClause, term: _Condition) -> _Predicate:
    negated = term.term.negated if isinstance(term, _Names) else term.negated
    holds = _holds(rows, term)
    return ~holds if negated else holds


def _holds(rows: FromClause, term: _Condition) -> _Predicate:
    c = rows.c
    match term:
        case _Names():
            return c.name.in_(term.names if term.names is not None else select(models.c.name).where(term.like))
        case TextTerm(field="name"):
            return c.name == term.text
        case TextTerm(field="label"):
            labels = version_labels.alias()  # `rows` may be the labels of another term
            return _exists(labels, rows, _label(labels, term))
        case TextTerm(field="digest"):
            versions_too = versions.alias()
            return or_(
                _exists(versions_too, rows, _digest(versions_too.c.digest.concat(""), term)),
                _exists(formats, rows, _digest(formats.c.digest.concat(""), term)),
            )
        case TextTerm():
            return _exists(aliases, rows, _matches(aliases.c.alias, term))
        case LiveTerm():
            return _exists(aliases, rows)
        case MetricTerm():
            other = version_metrics.alias()
            return _exists(other, rows, _metric(other, term))
        case NumberTerm():
            return _compare(c.number, term.comparison, term.value)
        case TimeTerm():
            bounds = [] if term.low is None else [c.created_at >= term.low]
            bounds += [] if term.high is None else [c.created_at < term.high]
            return and_(*bounds)


def _exists(table: FromClause, rows: FromClause, *where: _Predicate) -> _Predicate:
    same = and_(table.c.name == rows.c.name, table.c.number == rows.c.number)
    return exists(select(literal(1)).select_from(table).where(same, *where).correlate(rows))


def _label(table: FromClause, term: TextTerm) -> _Predicate:
    c = table.c
    key = c.key == label_key(term.key)
    match term.match:
        case "any":
            return key
        case "prefix":
            return and_(key, _begins(c.value, term.text))
        case _:
            return and_(key, c.value == label_value(term.text))


def _matches(column: ColumnElement[str], term: TextTerm) -> _Predicate:
    if term.match == "any":
        return column == column
    return _begins(column, term.text) if term.match == "prefix" else column == term.text


def _digest(column: ColumnElement[str], term: TextTerm) -> _Predicate:
    return and_(column >= term.text, column < term.text + _BEYOND_DIGITS) if term.match != "any" else column == column


def _begins(column: ColumnElement[str], text: str) -> _Predicate:
    return and_(column >= text, column < text + _BEYOND_TEXT)


def _metric(table: FromClause, term: MetricTerm) -> _Predicate:
    return and_(table.c.metric == term.metric, *_in_bounds(table, term))


def _in_bounds(table: FromClause, term: MetricTerm) -> list[_Predicate]:
    return [_compare(table.c.value, comparison, value) for comparison, value in term.comparisons]


def _compare(column: ColumnElement[Any], comparison: str, value: float) -> _Predicate:
    match comparison:
        case "=":
            return column == value
        case ">":
            return column > value
        case ">=":
            return column >= value
        case "<":
            return column < value
        case "<=":
            return column <= value
        case _:
            return false()
