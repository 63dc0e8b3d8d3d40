"""The mirror: MLflow's rows about noa's versions and aliases, which any MLflow client may change.

noa's own tables are the truth, so such a change is never served. It is found here, reported, and undone on request.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, and_, delete, select, update

from noa_registry import mlflow_rows
from noa_registry.mlflow_rows import DELETED_STAGE, WORKSPACE
from noa_registry.records import from_json
from noa_registry.tables import aliases, create_guards, drop_guards, mlflow_aliases, mlflow_versions, models, versions


@dataclass(frozen=True, slots=True, kw_only=True)
class Discrepancy:
    """One place where MLflow's rows differ from noa's. `subject` is e.g. `alias champion` or `version 3`."""

    name: str
    subject: str
    expected: str
    received: str


def find_discrepancies(connection: Connection, root: Path) -> list[Discrepancy]:
    """Compare all alias and version rows of MLflow with noa's."""
    return [*_alias_discrepancies(connection), *_version_discrepancies(connection, root)]


def rewrite_mirror(connection: Connection, root: Path) -> list[Discrepancy]:
    """Make MLflow's rows say what noa's say, and return what differed."""
    found = find_discrepancies(connection, root)
    drop_guards(connection)
    for discrepancy in found:
        kind, _, subject = discrepancy.subject.partition(" ")
        if kind == "version":
            _rewrite_version(connection, root, discrepancy.name, int(subject))
    for discrepancy in found:
        kind, _, subject = discrepancy.subject.partition(" ")
        if kind == "alias":
            _rewrite_alias(connection, discrepancy.name, subject)
    create_guards(connection)
    return found


def _alias_discrepancies(connection: Connection) -> Iterator[Discrepancy]:
    known = {row.name for row in connection.execute(select(models.c.name))}
    ours = {(row.name, row.alias): row.number for row in connection.execute(select(aliases))}
    query = select(mlflow_aliases).where(mlflow_aliases.c.workspace == WORKSPACE)
    theirs = {(row.name, row.alias): row.version for row in connection.execute(query) if row.name in known}
    for name, alias in sorted(ours.keys() | theirs.keys()):
        expected, received = ours.get((name, alias)), theirs.get((name, alias))
        if expected != received:
            yield Discrepancy(
                name=name, subject=f"alias {alias}", expected=_number_text(expected), received=_number_text(received)
            )


def _version_discrepancies(connection: Connection, root: Path) -> Iterator[Discrepancy]:
    same = and_(
        mlflow_versions.c.workspace == WORKSPACE,
        mlflow_versions.c.name == versions.c.name,
        mlflow_versions.c.version == versions.c.number,
    )
    query = (
        select(
            versions.c.name,
            versions.c.number,
            versions.c.uid,
            mlflow_versions.c.current_stage,
            mlflow_versions.c.source,
            mlflow_versions.c.storage_location,
        )
        .select_from(versions.outerjoin(mlflow_versions, same))
        .order_by(versions.c.name, versions.c.number)
    )
    for row in connection.execute(query):
        expected = (root / row.name / row.uid).as_uri()
        if row.source is None or row.current_stage == DELETED_STAGE:
            received = "deleted"
        elif (row.source, row.storage_location) != (expected, expected):
            received = row.source if row.source != expected else str(row.storage_location)
        else:
            continue
        yield Discrepancy(name=row.name, subject=f"version {row.number}", expected=expected, received=received)


def _rewrite_version(connection: Connection, root: Path, name: str, number: int) -> None:
    row = connection.execute(select(versions).where(versions.c.name == name, versions.c.number == number)).one()
    here = and_(
        mlflow_versions.c.workspace == WORKSPACE,
        mlflow_versions.c.name == name,
        mlflow_versions.c.version == number,
    )
    folder = root / name / row.uid
    values = {
        "source": folder.as_uri(),
        "storage_location": folder.as_uri(),
        "current_stage": "None",
        "user_id": row.created_by,
        "run_id": row.run_id,
        "description": row.description or None,
    }
    if connection.execute(update(mlflow_versions).where(here).values(**values)).rowcount == 0:
        mlflow_rows.insert_version(
            connection,
            name=name,
            number=number,
            folder=folder,
            run_id=row.run_id,
            actor=row.created_by,
            description=row.description,
            tags={**from_json(row.tags), "noa.digest": row.digest},
        )


def _rewrite_alias(connection: Connection, name: str, alias: str) -> None:
    query = select(aliases.c.number).where(aliases.c.name == name, aliases.c.alias == alias)
    number = connection.execute(query).scalar()
    if number is not None:
        mlflow_rows.set_alias(connection, name=name, alias=alias, number=number)
        return
    connection.execute(
        delete(mlflow_aliases).where(
            mlflow_aliases.c.workspace == WORKSPACE, mlflow_aliases.c.name == name, mlflow_aliases.c.alias == alias
        )
    )


def _number_text(number: int | None) -> str:
    return "nothing" if number is None else f"version {number}"
