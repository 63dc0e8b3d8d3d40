"""A project that was moved or copied: MLflow's rows name files by absolute locations, which then are those of before.

Locations are compared as resolved paths, so another spelling of the same folder (through `..` or a symbolic link) is no
difference. A move is told from tampering by all of this: the versions that were registered first, without exception,
are recorded below one other folder, by their right names, and their files are below the folder of now. Nothing of it is
served from the old place either way; what differs is what a person is told.

MLflow's own experiments and runs move too: those that noa put below `_runs`, and what stock clients registered from
there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from sqlalchemy import ColumnElement, Connection, Row, Table, and_, exists, func, literal, select, update

from noa_registry.artifacts import RUNS_FOLDER, ArtifactStore, UnitKey
from noa_registry.mlflow_rows import DELETED_STAGE, WORKSPACE
from noa_registry.tables import (
    mlflow_experiments,
    mlflow_logged_models,
    mlflow_runs,
    mlflow_versions,
    trash,
    versions,
)

_DEFAULT_EXPERIMENT = 0
_RUN_LOCATIONS: Final = (
    (mlflow_experiments, "artifact_location"),
    (mlflow_runs, "artifact_uri"),
    (mlflow_logged_models, "artifact_location"),
    (mlflow_versions, "source"),
    (mlflow_versions, "storage_location"),
)


@dataclass(frozen=True, slots=True)
class Places:
    """Compares what rows begin with to `base`, the URI below which the store keeps all units; reads each text once."""

    base: str
    _known: dict[str, str] = field(default_factory=dict[str, str])

    def is_here(self, root: str) -> bool:
        """Tell whether a URI, which ends with `/`, means the store's folder."""
        return root == self.base or self.resolve(root) == self.resolve(self.base)

    def resolve(self, root: str) -> str:
        """Return a URI without links and `..`, if it is one of local files."""
        if root not in self._known:
            path = local_path(root)
            self._known[root] = root if path is None else f"{path.resolve().as_uri().rstrip('/')}/"
        return self._known[root]


@dataclass(frozen=True, slots=True, kw_only=True)
class Relocation:
    """What is recorded below `old` and lies below `new`: so many versions, or experiments."""

    old: str
    new: str
    count: int


def root_of(source: str | None, name: str, uid: str) -> str | None:
    """Return what stands before `<name>/<uid>` in a source, None if that is not how it ends."""
    suffix = f"/{name}/{uid}"
    return None if source is None or not source.endswith(suffix) else source.removesuffix(suffix) + "/"


def local_path(uri: str) -> Path | None:
    """Return the path that a `file:` URI or a plain absolute path means, None for what is elsewhere."""
    if uri.startswith("/"):
        return Path(uri)
    parts = urlsplit(uri)
    is_local = parts.scheme == "file" and parts.netloc in ("", "localhost")
    return Path(unquote(parts.path)) if is_local and parts.path.startswith("/") else None


def moved_versions(
    connection: Connection, store: ArtifactStore, places: Places, rows: Sequence[Row[Any]]
) -> list[Relocation]:
    """Return the move that explains all of `rows`, versions recorded below another folder; nothing if none does.

    The rows have `name`, `uid`, `created_at`, `source` and `storage_location`. A folder that was spelled in two ways
    gives two.
    """
    roots: defaultdict[str, int] = defaultdict(int)
    for row in rows:
        root = root_of(row.source, row.name, row.uid)
        if root is None or row.source != row.storage_location:
            return []
        roots[root] += 1
    if len({places.resolve(root) for root in roots}) != 1:
        return []
    if _count_until(connection, max(row.created_at for row in rows)) != len(rows):
        return []
    present = set(store.units())
    if any(UnitKey(name=row.name, uid=row.uid) not in present for row in rows):
        return []
    return [Relocation(old=root, new=places.base, count=count) for root, count in sorted(roots.items())]


def moved_runs(connection: Connection, places: Places) -> list[Relocation]:
    """Return where experiments are recorded that noa put below another folder, and whose files are not there now."""
    found: defaultdict[str, int] = defaultdict(int)
    for root, experiment in _moved_experiments(connection, places):
        found[root] += int(experiment != _DEFAULT_EXPERIMENT or _has_runs(connection, experiment))
    return [Relocation(old=root, new=places.base, count=count) for root, count in sorted(found.items()) if count > 0]


def rewrite_moved_versions(connection: Connection, moves: Iterable[Relocation]) -> None:
    """Write the sources of noa's versions that begin with the old place anew; the guards must be lifted."""
    uid = (
        select(versions.c.uid)
        .where(versions.c.name == mlflow_versions.c.name, versions.c.number == mlflow_versions.c.version)
        .scalar_subquery()
    )
    tail = literal("/") + mlflow_versions.c.name + literal("/") + uid
    for move in moves:
        for column in (mlflow_versions.c.source, mlflow_versions.c.storage_location):
            was = literal(move.old.rstrip("/")) + tail
            here = and_(mlflow_versions.c.workspace == WORKSPACE, column == was)
            connection.execute(
                update(mlflow_versions).where(here).values({column.name: literal(move.new.rstrip("/")) + tail})
            )


def rewrite_moved_runs(connection: Connection, places: Places) -> None:
    """Write the locations of experiments, their runs and what was registered from there anew."""
    locations = select(mlflow_experiments.c.artifact_location)
    for root, experiment in list(_moved_experiments(connection, places)):
        own = locations.where(mlflow_experiments.c.experiment_id == experiment)
        old = str(connection.execute(own).scalar_one())
        new = places.base + old.removeprefix(root)
        for table, column in _RUN_LOCATIONS:
            _rewrite_prefix(connection, table, column, old, new)


def _count_until(connection: Connection, created_at: str) -> int:
    """Return how many versions that MLflow shows were registered until then."""
    in_trash = select(trash.c.number).where(trash.c.name == versions.c.name, trash.c.number == versions.c.number)
    shown = and_(
        mlflow_versions.c.workspace == WORKSPACE,
        mlflow_versions.c.name == versions.c.name,
        mlflow_versions.c.version == versions.c.number,
        mlflow_versions.c.current_stage != DELETED_STAGE,
    )
    query = select(func.count()).select_from(versions.join(mlflow_versions, shown))
    return connection.execute(query.where(versions.c.created_at <= created_at, ~exists(in_trash))).scalar_one()


def _rewrite_prefix(connection: Connection, table: Table, column: str, old: str, new: str) -> None:
    value = table.c[column]
    below = func.substr(value, 1, len(old) + 1) == f"{old}/"
    changed: ColumnElement[str] = literal(new) + func.substr(value, len(old) + 1)
    connection.execute(update(table).where((value == old) | below).values({column: changed}))


def _moved_experiments(connection: Connection, places: Places) -> Iterator[tuple[str, int]]:
    """Give the old place and the number of each experiment that lies below `_runs` of another folder, or nowhere."""
    here = local_path(places.base)
    if here is None:
        return
    query = select(mlflow_experiments.c.experiment_id, mlflow_experiments.c.artifact_location)
    for experiment, location in connection.execute(query.order_by(mlflow_experiments.c.experiment_id)).all():
        root, mark, name = str(location or "").rpartition(f"/{RUNS_FOLDER}/")
        old = local_path(f"{root}/")
        if not mark or not name or "/" in name or old is None or places.is_here(f"{root}/"):
            continue
        if not (old / RUNS_FOLDER / unquote(name)).exists() or (here / RUNS_FOLDER / unquote(name)).exists():
            yield f"{root}/", int(experiment)


def _has_runs(connection: Connection, experiment: int) -> bool:
    query = select(mlflow_runs.c.run_uuid).where(mlflow_runs.c.experiment_id == experiment).limit(1)
    return connection.execute(query).first() is not None
