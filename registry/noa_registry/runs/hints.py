"""What to say of a query that finds nothing because no run has the metric, tag or parameter that it names."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Final, Literal, TypeAlias

from sqlalchemy import Connection, Table, select

from noa_registry.runs import tags
from noa_registry.runs.grammar import MetricTerm, RunQuery, TextTerm
from noa_registry.tables import mlflow_latest_metrics, mlflow_params, mlflow_run_tags

_Kind: TypeAlias = Literal["metric", "parameter", "tag"]
_TABLES: Final[dict[_Kind, Table]] = {
    "metric": mlflow_latest_metrics,
    "parameter": mlflow_params,
    "tag": mlflow_run_tags,
}
_MOST_NAMES: Final = 500
_SHOWN: Final = 8


def unknown_name_hint(connection: Connection, query: RunQuery) -> str | None:
    """Return a sentence about the first name that no run has, and which was meant perhaps; None: all are known."""
    for kind, name in _names(query):
        table = _TABLES[kind]
        keys = tags.metric_keys(name) if kind == "metric" else (name,)
        if connection.execute(select(table.c.key).where(table.c.key.in_(keys)).limit(1)).first() is None:
            known = known_names(connection, table)
            close = difflib.get_close_matches(name, known, n=1)
            end = f"did you mean `{close[0]}`?" if close else list_names(known)
            return f"No run has a {kind} `{name}`{': ' if end else ''}{end}"
    return None


def known_names(connection: Connection, table: Table, *, run_ids: tuple[str, ...] = ()) -> list[str]:
    """Return the keys of a table of metrics, parameters or tags, walking from each to the next: few names, many rows.

    `run_ids`: only those of these runs. Metrics of the machine and tags of MLflow's own are left out.
    """
    column = table.c.key
    found: list[str] = []
    last = ""
    while len(found) < _MOST_NAMES:
        query = select(column).where(column > last)
        query = query.where(table.c.run_uuid.in_(run_ids)) if run_ids else query
        row = connection.execute(query.order_by(column).limit(1)).first()
        if row is None:
            break
        last = str(row[0])
        if not last.startswith((tags.SYSTEM, "mlflow.")):
            found.append(last)
    return found


def list_names(known: list[str]) -> str:
    """Return e.g. "there are `a`, `b`", of many names the first; nothing for none."""
    more = ", ..." if len(known) > _SHOWN else ""
    return f"there are {', '.join(f'`{name}`' for name in known[:_SHOWN])}{more}" if known else ""


def _names(query: RunQuery) -> Iterator[tuple[_Kind, str]]:
    if query.sort_metric is not None:
        yield "metric", query.sort_metric
    for term in query.terms:
        if term.negated:
            continue
        if isinstance(term, MetricTerm):
            yield "metric", term.metric
        elif isinstance(term, TextTerm) and term.field in ("tag", "param"):
            yield ("tag" if term.field == "tag" else "parameter"), term.key
