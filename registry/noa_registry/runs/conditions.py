"""What a term of a query means in SQL, on MLflow's table of runs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, TypeAlias

from sqlalchemy import ColumnElement, Select, and_, false, func, not_, or_, select, true

from noa_registry.mlflow_rows import DELETED_STAGE, WORKSPACE
from noa_registry.runs import tags
from noa_registry.runs.grammar import Comparison, MetricTerm, StatusTerm, Term, TextTerm, TimeTerm
from noa_registry.search.parameters import parameter_text
from noa_registry.tables import (
    mlflow_experiments,
    mlflow_latest_metrics,
    mlflow_params,
    mlflow_run_tags,
    mlflow_runs,
    mlflow_versions,
)

Predicate: TypeAlias = ColumnElement[bool]
RUNNING: Final = "RUNNING"
_TAGS: Final = {
    "recipe": (tags.RECIPE,),
    "backend": (tags.BACKEND,),
    "dataset": (tags.DATASET_DIGEST,),
    "commit": (tags.COMMIT, tags.JOB_COMMIT),
}
_WORDS: Final = {"true": "True", "false": "False", "none": "None", "null": "None"}


def condition(term: Term, *, gone: Collection[str]) -> Predicate:
    """Return what a run must meet. `gone` are the runs that are recorded as running and whose process is gone."""
    holds = _holds(term, gone)
    # What a run has not is NULL, and so would be the negation of what is asked of it.
    return not_(func.coalesce(holds, false())) if term.negated else holds


def metric_value(metric: str) -> ColumnElement[float]:
    """Return the value of a metric of the run, NULL where it has none or that is NaN."""
    return func.coalesce(*(_latest(key) for key in tags.metric_keys(metric)))


def started() -> ColumnElement[int]:
    """Return when the run started, milliseconds; 0 where that is not recorded."""
    return func.coalesce(mlflow_runs.c.start_time, 0)


def _holds(term: Term, gone: Collection[str]) -> Predicate:
    match term:
        case StatusTerm():
            return _status(term, gone)
        case MetricTerm():
            value = metric_value(term.metric)
            return value.is_not(None) if term.comparison is None else _compared(value, term.comparison, term.value)
        case TimeTerm():
            bounds: list[Predicate] = [] if term.low_ms is None else [started() >= term.low_ms]
            bounds += [] if term.high_ms is None else [started() < term.high_ms]
            return and_(true(), *bounds)
        case TextTerm():
            return _text(term)


def _status(term: StatusTerm, gone: Collection[str]) -> Predicate:
    c = mlflow_runs.c
    if term.status == "interrupted":
        return c.run_uuid.in_(sorted(gone))
    recorded = c.status == term.status.upper()
    return and_(recorded, c.run_uuid.not_in(sorted(gone))) if term.status == "running" and gone else recorded


def _text(term: TextTerm) -> Predicate:
    c = mlflow_runs.c
    match term.field:
        case "name":
            return _matches(func.coalesce(c.name, ""), term)
        case "run":
            return _matches(c.run_uuid, term)
        case "tag":
            return _tagged((term.key,), term)
        case "param":
            return c.run_uuid.in_(_with_param(term))
        case "model":
            return or_(
                _tagged((tags.MODEL,), term), c.run_uuid.in_(_registered(_matches(mlflow_versions.c.name, term)))
            )
        case "version":
            return c.run_uuid.in_(_registered(_version(term)))
        case "experiment":
            e = mlflow_experiments.c
            return c.experiment_id.in_(select(e.experiment_id).where(e.workspace == WORKSPACE, _matches(e.name, term)))
        case "by":
            return or_(_matches(func.coalesce(c.user_id, ""), term), _tagged((tags.USER,), term))
        case field:
            return _tagged(_TAGS[field], term)


def _tagged(keys: tuple[str, ...], term: TextTerm) -> Predicate:
    t = mlflow_run_tags.c
    return mlflow_runs.c.run_uuid.in_(select(t.run_uuid).where(t.key.in_(keys), _matches(t.value, term)))


def _with_param(term: TextTerm) -> Select[Any]:
    """Find the runs with a parameter: MLflow keeps the text of a value, and `1e-2` is the same as `0.01`."""
    p = mlflow_params.c
    found = select(p.run_uuid).where(p.key == term.key)
    if term.match != "exact":
        return found.where(_matches(p.value, term))
    return found.where(p.value.in_(sorted(_spellings(term.text))))


def _spellings(text: str) -> set[str]:
    """Return the texts that Python, and so MLflow, writes for the same value."""
    found = {text, parameter_text(text), _WORDS.get(text.lower(), text)}
    try:
        found.add(str(float(text)))
    except ValueError:
        return found
    return found


def _registered(is_meant: Predicate) -> Select[Any]:
    v = mlflow_versions.c
    is_there = and_(
        v.workspace == WORKSPACE, v.run_id.is_not(None), func.coalesce(v.current_stage, "") != DELETED_STAGE
    )
    return select(v.run_id).where(is_there, is_meant)


def _version(term: TextTerm) -> Predicate:
    v = mlflow_versions.c
    name, mark, number = term.text.rpartition("/")
    if term.match != "exact" or not mark or not number.isdecimal():
        return _matches(v.name, term)
    return and_(v.name == name, v.version == int(number))


def _latest(key: str) -> ColumnElement[float]:
    m = mlflow_latest_metrics.alias()
    here = and_(m.c.key == key, m.c.run_uuid == mlflow_runs.c.run_uuid, m.c.is_nan.is_(False))
    return select(m.c.value).where(here).correlate(mlflow_runs).scalar_subquery()


def _matches(column: ColumnElement[str], term: TextTerm) -> Predicate:
    match term.match:
        case "any":
            return column == column
        case "exact":
            return column == term.text
        case "prefix":  # not by comparing: texts have an order of their own in each database
            return func.substr(column, 1, len(term.text)) == term.text
        case "part":
            return func.lower(column).contains(term.text.lower(), autoescape=True)


def _compared(value: ColumnElement[float], comparison: Comparison, bound: float) -> Predicate:
    match comparison:
        case "=":
            return value == bound
        case ">":
            return value > bound
        case ">=":
            return value >= bound
        case "<":
            return value < bound
        case "<=":
            return value <= bound
