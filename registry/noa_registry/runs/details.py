"""One run with all that it holds, found by the beginning of its id."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, and_, func, select

from noa.errors import InvalidInputError, NotFoundError
from noa_registry.runs import tags
from noa_registry.runs.cells import plain_number, to_moment, to_number, to_table, to_text
from noa_registry.runs.listing import ProcessCheck, RunSummary, load_rows, summarise
from noa_registry.runs.tables import DATASET, RUN, mlflow_datasets, mlflow_input_tags, mlflow_inputs
from noa_registry.tables import mlflow_latest_metrics, mlflow_params, mlflow_run_tags, mlflow_runs

_ID: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")
_MOST_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMetric:
    """The last value of a metric, by step and time as MLflow counts."""

    key: str
    value: float
    step: int
    at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDataset:
    """Data that the run used. `context` says for what; `schema` and `profile` are the tables that MLflow shows."""

    name: str
    digest: str
    context: str
    source_type: str
    schema: Mapping[str, object]
    profile: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDetails:
    """A run with its parameters, tags, last metrics and data. `artifact_uri` is where its files are."""

    summary: RunSummary
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: tuple[RunMetric, ...]
    datasets: tuple[RunDataset, ...]
    artifact_uri: str

    @property
    def environment(self) -> dict[str, str]:
        """Where the job ran: Python, platform, processor, threads, and the version of each package by its name."""
        found = {
            key.removeprefix(tags.ENVIRONMENT): value
            for key, value in self.tags.items()
            if key.startswith(tags.ENVIRONMENT) and key != tags.PACKAGES
        }
        packages = to_table(self.tags.get(tags.PACKAGES))
        return found | {name: str(version) for name, version in packages.items()}

    @property
    def git(self) -> dict[str, str]:
        """The commit that was checked out, and what differed from it."""
        names = {"commit": tags.COMMIT, "branch": tags.BRANCH, "dirty": tags.DIRTY, "diff": tags.GIT_DIFF}
        found = {name: self.tags[key] for name, key in names.items() if self.tags.get(key)}
        old = self.tags.get(tags.JOB_COMMIT, "none")  # of jobs from before MLflow's tag was written
        if "commit" not in found and old != "none":
            found["commit"] = old
        return found

    @property
    def config(self) -> dict[str, str]:
        """What was asked for: recipe, backend, overrides, and the digest of all of it."""
        keys = (tags.MODEL, tags.RECIPE, tags.RECIPE_DIGEST, tags.BACKEND, tags.OVERRIDES, tags.CONFIG_DIGEST)
        return {key.removeprefix("noa."): self.tags[key] for key in keys if key in self.tags}

    @property
    def data(self) -> dict[str, str]:
        """The digest of the whole dataset, and digest and shape of each part by what it was used for."""
        found = {"digest": self.tags[tags.DATASET_DIGEST]} if tags.DATASET_DIGEST in self.tags else {}
        for dataset in self.datasets:
            of = dataset.context or dataset.name
            found[of] = dataset.digest
            found |= {f"{of}.{key}": _short(value) for key, value in dataset.profile.items() if key.endswith("shape")}
        return found

    @property
    def labels(self) -> dict[str, str]:
        """The tags that people set: neither MLflow's nor noa's."""
        return {key: value for key, value in self.tags.items() if not key.startswith(("mlflow.", "noa."))}

    def to_dict(self) -> dict[str, object]:
        """Return the run as plain JSON values."""
        return {
            **self.summary.to_dict(),
            "params": dict(self.params),
            "metrics": [
                {"key": one.key, "value": plain_number(one.value), "step": one.step, "at": one.at}
                for one in self.metrics
            ],
            "environment": self.environment,
            "git": self.git,
            "config": self.config,
            "data": self.data,
            "datasets": [
                {
                    "name": one.name,
                    "digest": one.digest,
                    "context": one.context,
                    "source_type": one.source_type,
                    "schema": dict(one.schema),
                    "profile": dict(one.profile),
                }
                for one in self.datasets
            ],
            "tags": dict(self.tags),
            "artifact_uri": self.artifact_uri,
        }


def find_run(connection: Connection, text: str) -> str:
    """Return the id of the only run whose id begins with `text`, or, if none does, of the only one of this name.

    Raises:
        NotFoundError: there is none.
        InvalidInputError: there are several, which are named; or it can be the beginning of no id.
    """
    c = mlflow_runs.c
    query = select(c.run_uuid, c.name).order_by(func.coalesce(c.start_time, 0).desc()).limit(_MOST_SHOWN + 1)
    is_id = _ID.fullmatch(text) is not None
    begin = text.lower()
    found = connection.execute(query.where(func.substr(c.run_uuid, 1, len(begin)) == begin)).all() if is_id else []
    found = found or connection.execute(query.where(c.name == text)).all()
    exact = [row for row in found if row.run_uuid == begin]
    if not found:
        raise NotFoundError(
            f"no run `{text[:80]}`",
            expected="the beginning of a run's id, or the name of one run",
            remedy="List them with: noa runs list",
        )
    if len(found) > 1 and not exact:
        more = ", and more" if len(found) > _MOST_SHOWN else ""
        raise InvalidInputError(
            f"`{text[:80]}` is not one run alone",
            expected="enough of the id to mean one run",
            received=", ".join(f"`{row.run_uuid}` ({to_text(row.name)})" for row in found[:_MOST_SHOWN]) + more,
        )
    return str((exact or found)[0].run_uuid)


def load_details(connection: Connection, run_id: str, *, is_gone: ProcessCheck) -> RunDetails:
    """Return everything about a run that is there.

    Raises:
        NotFoundError: somebody removed it.
    """
    rows = load_rows(connection, [run_id])
    if not rows:
        raise NotFoundError(f"no run `{run_id}`", remedy="List them with: noa runs list")
    p, t = mlflow_params.c, mlflow_run_tags.c
    params = connection.execute(select(p.key, p.value).where(p.run_uuid == run_id).order_by(p.key))
    labels = connection.execute(select(t.key, t.value).where(t.run_uuid == run_id).order_by(t.key))
    place = select(mlflow_runs.c.artifact_uri).where(mlflow_runs.c.run_uuid == run_id)
    return RunDetails(
        summary=summarise(connection, rows, metric=None, is_gone=is_gone)[0],
        params={row.key: to_text(row.value) for row in params},
        tags={row.key: to_text(row.value) for row in labels},
        metrics=_metrics(connection, run_id),
        datasets=_datasets(connection, run_id),
        artifact_uri=to_text(connection.execute(place).scalar()),
    )


def _metrics(connection: Connection, run_id: str) -> tuple[RunMetric, ...]:
    m = mlflow_latest_metrics.c
    query = select(m.key, m.value, m.is_nan, m.step, m.timestamp).where(m.run_uuid == run_id)
    found = [
        RunMetric(
            key=str(row.key),
            value=to_number(row.value, row.is_nan),
            step=row.step if isinstance(row.step, int) else 0,
            at=to_moment(row.timestamp),
        )
        for row in connection.execute(query)
    ]
    return tuple(sorted(found, key=lambda one: one.key))


def _datasets(connection: Connection, run_id: str) -> tuple[RunDataset, ...]:
    d, i, t = mlflow_datasets.c, mlflow_inputs.c, mlflow_input_tags.c
    of_run = and_(i.destination_type == RUN, i.destination_id == run_id, i.source_type == DATASET)
    is_context = and_(t.input_uuid == i.input_uuid, t.name == tags.DATA_CONTEXT)
    query = (
        select(d.name, d.digest, d.dataset_source_type, d.dataset_schema, d.dataset_profile, t.value.label("context"))
        .select_from(mlflow_inputs)
        .join(mlflow_datasets, d.dataset_uuid == i.source_id)
        .outerjoin(mlflow_input_tags, is_context)
        .where(of_run)
    )
    found = [
        RunDataset(
            name=to_text(row.name),
            digest=to_text(row.digest),
            context=to_text(row.context),
            source_type=to_text(row.dataset_source_type),
            schema=to_table(row.dataset_schema),
            profile=to_table(row.dataset_profile),
        )
        for row in connection.execute(query)
    ]
    return tuple(sorted(found, key=lambda one: (one.name, one.context, one.digest)))


def _short(value: object) -> str:
    return str(value).replace(" ", "")
