"""A page of runs: what a list shows of each, in order, and where the next page begins."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

from sqlalchemy import ColumnElement, Connection, and_, or_, select

from noa.errors import InvalidInputError
from noa.metric_directions import known_direction
from noa_registry.database import now, to_text
from noa_registry.mlflow_rows import DELETED_STAGE, WORKSPACE
from noa_registry.runs import tags
from noa_registry.runs.cells import plain_number, to_moment, to_number
from noa_registry.runs.cells import to_text as text_of
from noa_registry.runs.conditions import RUNNING, condition, metric_value, started
from noa_registry.runs.grammar import RunQuery, StatusTerm, parse_run_query
from noa_registry.runs.hints import unknown_name_hint
from noa_registry.tables import (
    mlflow_experiments,
    mlflow_latest_metrics,
    mlflow_run_tags,
    mlflow_runs,
    mlflow_versions,
)

MAX_PAGE: Final = 1000
ProcessCheck: TypeAlias = Callable[[str, int], bool]
"""Tells of a job and its attempt whether the process that ran it is known to be gone."""
_CURSOR_VERSION: Final = 1
_CHUNK: Final = 500
_MOST_RUNNING: Final = 2000
_ACTIVE: Final = "active"
_SHOWN_TAGS: Final = (tags.JOB_ID, tags.ATTEMPT, tags.MODEL, tags.BACKEND, tags.RECIPE, tags.BEST_BY, tags.USER)
_COLUMNS: Final = (
    mlflow_runs.c.run_uuid,
    mlflow_runs.c.name,
    mlflow_runs.c.status,
    mlflow_runs.c.start_time,
    mlflow_runs.c.end_time,
    mlflow_runs.c.lifecycle_stage,
    mlflow_runs.c.user_id,
    mlflow_runs.c.experiment_id,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BestMetric:
    """One metric that stands for a run. `is_best`: the value of the best epoch; else the last one that was logged."""

    name: str
    value: float
    is_best: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A run as a list shows it. `versions` were registered from it; `model` is that of noa's jobs.

    `status` is `running`, `interrupted` (its process is gone), `scheduled`, `finished`, `failed` or `killed`.
    `duration_s` is None where the start is not recorded, or the end of a run that does not go on.
    """

    run_id: str
    name: str
    experiment: str
    status: str
    started_at: datetime | None
    ended_at: datetime | None
    duration_s: float | None
    model: str | None
    recipe: str | None
    backend: str | None
    by: str | None
    metric: BestMetric | None
    versions: tuple[str, ...]
    is_deleted: bool

    def to_dict(self) -> dict[str, object]:
        """Return the run as plain JSON values."""
        metric = self.metric
        return {
            "run_id": self.run_id,
            "name": self.name,
            "experiment": self.experiment,
            "status": self.status,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "duration_s": self.duration_s,
            "model": self.model,
            "recipe": self.recipe,
            "backend": self.backend,
            "by": self.by,
            "metric": None
            if metric is None
            else {"name": metric.name, "value": plain_number(metric.value), "is_best": metric.is_best},
            "versions": list(self.versions),
            "is_deleted": self.is_deleted,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPage:
    """Some runs in order. `next_cursor` gives the page after this one to the same query; None: that was all.

    `hint` says, where nothing was found, which name in the query no run has.
    """

    runs: tuple[RunSummary, ...]
    next_cursor: str | None
    hint: str | None = None


def list_runs(
    connection: Connection, text: str, *, limit: int, cursor: str | None, metric: str | None, is_gone: ProcessCheck
) -> RunPage:
    """Return one page of what a query finds. See `RunBook.list`."""
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidInputError("a page has another size", expected=f"1 to {MAX_PAGE}", received=str(limit))
    moment, after = now(), None
    if cursor is not None:  # ages are counted from the first page on
        moment, after = _read_cursor(cursor, text)
    query = parse_run_query(text, now=moment)
    asks_status = any(isinstance(term, StatusTerm) for term in query.terms)
    gone = _gone(connection, is_gone) if asks_status else frozenset[str]()
    order = started() if query.sort_metric is None else metric_value(query.sort_metric)
    wanted = [mlflow_runs.c.lifecycle_stage != _ACTIVE if query.deleted else mlflow_runs.c.lifecycle_stage == _ACTIVE]
    wanted += [condition(term, gone=gone) for term in query.terms]
    wanted += [] if query.sort_metric is None else [order.is_not(None)]
    wanted += [] if after is None else [_behind(order, after, ascending=query.ascending)]
    key = mlflow_runs.c.run_uuid
    sorting = (order.asc(), key.asc()) if query.ascending else (order.desc(), key.desc())
    found = connection.execute(
        select(*_COLUMNS, order.label("sorted_by")).where(*wanted).order_by(*sorting).limit(limit + 1)
    ).all()
    shown = metric or next(iter(query.metrics), None)
    runs = summarise(connection, found[:limit], metric=shown, is_gone=is_gone)
    following = None
    if len(found) > limit:
        last = found[limit - 1]
        following = _write_cursor(query, moment, [last.sorted_by, last.run_uuid])
    hint = None if runs or cursor is not None else unknown_name_hint(connection, query)
    return RunPage(runs=tuple(runs), next_cursor=following, hint=hint)


def summarise(
    connection: Connection, rows: Sequence[Any], *, metric: str | None, is_gone: ProcessCheck
) -> list[RunSummary]:
    """Return what a list shows of each of these rows of runs. `metric` None: the one that each was judged by."""
    ids = [str(row.run_uuid) for row in rows]
    tagged = load_tags(connection, ids, _SHOWN_TAGS)
    metrics = _chosen_metrics(connection, ids, tagged, metric)
    versions = load_versions(connection, ids)
    experiments = _experiments(connection)
    moment = now()
    found: list[RunSummary] = []
    for row in rows:
        labels = tagged.get(row.run_uuid, {})
        status = _status(row.status, labels, is_gone)
        started_at, ended_at = to_moment(row.start_time), to_moment(row.end_time)
        until = moment if status == "running" else ended_at
        found.append(
            RunSummary(
                run_id=str(row.run_uuid),
                name=text_of(row.name),
                experiment=experiments.get(row.experiment_id, text_of(row.experiment_id)),
                status=status,
                started_at=started_at,
                ended_at=ended_at,
                duration_s=None if started_at is None or until is None else (until - started_at).total_seconds(),
                model=labels.get(tags.MODEL),
                recipe=labels.get(tags.RECIPE),
                backend=labels.get(tags.BACKEND),
                by=labels.get(tags.USER) or (None if row.user_id in (None, "", "unknown") else text_of(row.user_id)),
                metric=metrics.get(row.run_uuid),
                versions=versions.get(row.run_uuid, ()),
                is_deleted=row.lifecycle_stage != _ACTIVE,
            )
        )
    return found


def load_rows(connection: Connection, ids: Sequence[str]) -> list[Any]:
    """Return the rows of runs for `summarise`, in the order of `ids`."""
    rows = {
        row.run_uuid: row
        for chunk in _chunks(ids)
        for row in connection.execute(select(*_COLUMNS).where(mlflow_runs.c.run_uuid.in_(chunk)))
    }
    return [rows[run] for run in ids if run in rows]


def load_tags(connection: Connection, ids: Sequence[str], keys: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return those tags of each run."""
    t = mlflow_run_tags.c
    found: dict[str, dict[str, str]] = {}
    for chunk in _chunks(ids):
        query = select(t.run_uuid, t.key, t.value).where(t.run_uuid.in_(chunk), t.key.in_(keys))
        for row in connection.execute(query):
            found.setdefault(row.run_uuid, {})[row.key] = text_of(row.value)
    return found


def load_versions(connection: Connection, ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the versions that were registered from each run, also those of MLflow's own clients; oldest first."""
    v = mlflow_versions.c
    found: dict[str, list[tuple[str, int]]] = {}
    for chunk in _chunks(ids):
        query = select(v.run_id, v.name, v.version, v.current_stage).where(
            v.workspace == WORKSPACE, v.run_id.in_(chunk)
        )
        for row in connection.execute(query):
            if row.current_stage != DELETED_STAGE:
                found.setdefault(row.run_id, []).append((row.name, row.version))
    return {run: tuple(f"{name}/{number}" for name, number in sorted(those)) for run, those in found.items()}


def _status(recorded: object, labels: Mapping[str, str], is_gone: ProcessCheck) -> str:
    status = text_of(recorded).lower() or "unknown"
    job, attempt = labels.get(tags.JOB_ID), labels.get(tags.ATTEMPT, "")
    if status == RUNNING.lower() and job and attempt.isdecimal() and is_gone(job, int(attempt)):
        return "interrupted"
    return status


def _gone(connection: Connection, is_gone: ProcessCheck) -> frozenset[str]:
    """Return the runs that are recorded as running and whose process is gone; of very many the newest."""
    c = mlflow_runs.c
    query = select(c.run_uuid).where(c.status == RUNNING).order_by(started().desc()).limit(_MOST_RUNNING)
    ids = [str(run) for run in connection.execute(query).scalars()]
    tagged = load_tags(connection, ids, (tags.JOB_ID, tags.ATTEMPT))
    return frozenset(run for run in ids if _status(RUNNING, tagged.get(run, {}), is_gone) == "interrupted")


def _experiments(connection: Connection) -> dict[int, str]:
    c = mlflow_experiments.c
    rows = connection.execute(select(c.experiment_id, c.name).where(c.workspace == WORKSPACE))
    return {row.experiment_id: text_of(row.name) for row in rows}


def _chosen_metrics(
    connection: Connection, ids: Sequence[str], tagged: Mapping[str, Mapping[str, str]], metric: str | None
) -> dict[str, BestMetric]:
    """Return the metric that stands for each run: the one that is asked for, the one that its best epoch is chosen by,
    or, of a run that MLflow's clients wrote, the first whose name says what is better."""
    judged = {run: metric or tagged.get(run, {}).get(tags.BEST_BY) for run in ids}
    names = {name for name in judged.values() if name}
    keys = sorted({key for name in names for key in tags.metric_keys(name)})
    values = _latest(connection, [run for run in ids if judged[run]], keys) if keys else {}
    unnamed = [run for run in ids if not judged[run]]
    values |= _latest(connection, unnamed, None)
    found: dict[str, BestMetric] = {}
    for run in ids:
        name, of_run = judged[run], values.get(run, {})
        wanted = tags.metric_keys(name) if name else _telling(of_run)
        key = next((key for key in wanted if key in of_run), None)
        if key is not None:
            shown = name if name and key == f"{tags.BEST}{name}" else key
            found[run] = BestMetric(name=shown, value=of_run[key], is_best=key.startswith(tags.BEST))
    return found


def _telling(values: Mapping[str, float]) -> list[str]:
    """Return metrics that say how good a run is, those of held-out rows first."""
    known = [key for key in sorted(values) if known_direction(key) is not None and not key.startswith(tags.SYSTEM)]
    return sorted(known, key=lambda key: not key.lower().startswith(("val", "test", "eval", "best")))


def _latest(connection: Connection, ids: Sequence[str], keys: Sequence[str] | None) -> dict[str, dict[str, float]]:
    m = mlflow_latest_metrics.c
    found: dict[str, dict[str, float]] = {}
    for chunk in _chunks(ids):
        query = select(m.run_uuid, m.key, m.value, m.is_nan).where(m.run_uuid.in_(chunk))
        for row in connection.execute(query if keys is None else query.where(m.key.in_(keys))):
            found.setdefault(row.run_uuid, {})[row.key] = to_number(row.value, row.is_nan)
    return found


def _behind(order: ColumnElement[Any], after: list[Any], *, ascending: bool) -> ColumnElement[bool]:
    value, run = after
    key = mlflow_runs.c.run_uuid
    if ascending:
        return or_(order > value, and_(order == value, key > run))
    return or_(order < value, and_(order == value, key < run))


def _chunks(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK)]


def _write_cursor(query: RunQuery, moment: datetime, last: list[Any]) -> str:
    text = json.dumps([_CURSOR_VERSION, query.digest[-16:], to_text(moment), last], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read_cursor(cursor: str, text: str) -> tuple[datetime, list[Any]]:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        version, digest, moment, last = json.loads(base64.urlsafe_b64decode(padded.encode("ascii")))
        then = datetime.fromisoformat(moment)
        value, run = last
        is_whole = version == _CURSOR_VERSION and isinstance(value, int | float) and isinstance(run, str)
        is_whole = is_whole and then.tzinfo is not None
    except (ValueError, TypeError):
        is_whole, digest, then, last = False, "", now(), []
    if not is_whole:
        raise InvalidInputError(
            "the cursor is not readable",
            expected="the `next_cursor` of a page",
            received=f"`{cursor[:60]}`",
            remedy="Leave it out for the first page",
        )
    if digest != parse_run_query(text, now=then).digest[-16:]:
        raise InvalidInputError(
            "the cursor belongs to another query",
            received=f"`{text[:80]}`",
            remedy="Give the same query as for the page before, or leave the cursor out",
        )
    return then, last
