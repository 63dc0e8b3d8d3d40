"""What to say of a query that finds nothing because no version has the metric, tag or parameter that it names."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from sqlalchemy import Connection, select

from noa_registry.search.grammar import MetricTerm, Query, TextTerm
from noa_registry.search.indexing import label_key
from noa_registry.tables import version_labels, version_metrics

_MOST_NAMES = 1000
_NAMED = ("tag.", "param.")


def unknown_name_hint(connection: Connection, query: Query) -> str | None:
    """Return a sentence about the first name that no version has, and which was meant perhaps; None: all are known."""
    for name in _names(query):
        if not _is_known(connection, name):
            kind = name.partition(".")[0]
            what = {"tag": "tag", "param": "parameter"}.get(kind, "metric")
            known = _known(connection, kind)
            close = difflib.get_close_matches(name, known, n=1)
            end = f"did you mean `{close[0]}`?" if close else _list(known)
            return f"No version has a {what} `{name.partition('.')[2]}`{': ' if end else ''}{end}"
    return None


def _names(query: Query) -> Iterator[str]:
    if query.sort_metric is not None:
        yield f"metric.{query.sort_metric}"
    for term in query.terms:
        if term.negated:
            continue
        if isinstance(term, MetricTerm):
            yield f"metric.{term.metric}"
        elif isinstance(term, TextTerm) and term.key.startswith(_NAMED):
            yield term.key


def _is_known(connection: Connection, name: str) -> bool:
    kind, _, rest = name.partition(".")
    if kind == "metric":
        query = select(version_metrics.c.metric).where(version_metrics.c.metric == rest)
    else:
        query = select(version_labels.c.key).where(version_labels.c.key == label_key(name))
    return connection.execute(query.limit(1)).first() is not None


def _known(connection: Connection, kind: str) -> list[str]:
    """Return names of this kind, walking from each to the next one: there are few names in many rows."""
    column = version_metrics.c.metric if kind == "metric" else version_labels.c.key
    before = "" if kind == "metric" else f"{kind}."
    found: list[str] = []
    last = before
    while len(found) < _MOST_NAMES:
        row = connection.execute(select(column).where(column > last).order_by(column).limit(1)).first()
        if row is None or not str(row[0]).startswith(before):
            break
        last = str(row[0])
        found.append(f"metric.{last}" if kind == "metric" else last)
    return found


def _list(known: list[str]) -> str:
    return (
        f"there are {', '.join(f'`{name}`' for name in known[:8])}" + (", ..." if len(known) > 8 else "")
        if known
        else ""
    )
