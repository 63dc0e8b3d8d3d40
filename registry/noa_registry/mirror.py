"""The mirror: MLflow's rows about noa's versions and aliases, which any MLflow client may change.

noa's own tables are the truth, so such a change is never served. It is found here and reported; `mirror_repair.py`
undoes it. Rows are compared by joins of whole tables, tags page by page in the order of the primary keys: the time
grows with the number of versions and no faster, a few seconds for 100,000.

What MLflow's clients add of their own is theirs and left alone: models and further tags. A version that they made
inside a model of noa's is named, since it looks like one of noa's, and left alone too. A description or a tag that noa
wrote is compared. Experiments and runs are in `mirror_runs.py`; a moved project is told apart (`mirror_moves.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    Tuple,
    and_,
    case,
    exists,
    func,
    literal,
    or_,
    select,
    tuple_,
)

from noa.errors import IntegrityError
from noa_registry.artifacts import ArtifactStore, UnitKey
from noa_registry.events.outbox import WHOLE_REGISTRY
from noa_registry.foreign_cells import find_foreign_cells, refuse_foreign, tried
from noa_registry.json_columns import parse_table
from noa_registry.mirror_findings import Discrepancy, MirrorField
from noa_registry.mirror_moves import Places, Relocation, moved_runs, moved_versions, root_of
from noa_registry.mirror_runs import run_discrepancies
from noa_registry.mlflow_rows import DELETED_STAGE, NO_STAGE, WORKSPACE
from noa_registry.records import load_holder, load_version
from noa_registry.search.index_check import index_discrepancies
from noa_registry.search.label_check import label_discrepancies
from noa_registry.tables import (
    aliases,
    formats,
    mlflow_aliases,
    mlflow_models,
    mlflow_version_tags,
    mlflow_versions,
    models,
    trash,
    versions,
)
from noa_registry.triggers import missing_triggers

if TYPE_CHECKING:
    from noa.settings import GateSettings

DIGEST_TAG: Final = "noa.digest"
FORMATS_TAG: Final = "noa.formats"
MAX_RUN_ID: Final = 32
_Place: TypeAlias = tuple[str, int]
_DELETED = "deleted"
_PAGE = 2000
_NO_GATES: Mapping[str, GateSettings] = MappingProxyType({})


def find_discrepancies(
    connection: Connection, store: ArtifactStore, gates: Mapping[str, GateSettings] = _NO_GATES
) -> list[Discrepancy]:
    """Compare everything that noa wrote into MLflow's tables with what is there, and look for dropped triggers.

    Also the index of search with the records and the evidence; `gates` say which of several measurements counts there.
    What stops at a cell of another type is said so, and everything else is compared all the same.
    """
    places = Places(base_uri(store))
    spoilt = find_foreign_cells(connection)

    def look(what: str, comparison: Callable[[], Iterable[Discrepancy]]) -> list[Discrepancy]:
        return tried(comparison, spoilt, lambda at: _undone(what, at))

    lost = _lost_models(connection)
    of_versions = look("versions", lambda: _version_discrepancies(connection, store, places))
    of_versions += look("tags", lambda: _tag_discrepancies(connection))
    of_models = [
        Discrepancy(name=name, subject="model", field="model", expected="registered", received=_DELETED)
        for name in sorted(lost)
    ]
    return [
        *_dropped_triggers(connection),
        *of_models,
        *look("aliases", lambda: _alias_discrepancies(connection)),
        *_with_sound_records(connection, [found for found in of_versions if found.name not in lost], tell=True),
        *look("places of runs", lambda: _moves("experiment", moved_runs(connection, places))),
        *look("versions of others", lambda: _strangers(connection, places)),
        *look("runs", lambda: run_discrepancies(connection, places)),
        *look(
            "labels in the index of search",
            lambda: _with_sound_records(connection, label_discrepancies(connection), tell=False),
        ),
        *look("metrics in the index of search", lambda: index_discrepancies(connection, gates)),
    ]


def record_problem(connection: Connection, name: str, number: int) -> IntegrityError | None:
    """Return why nothing of a version's record may be copied: it is not what was sealed."""
    try:
        if type(number) is not int:  # SQLite keeps anything in any column
            refuse_foreign(connection, versions)
        load_version(connection, Path(), name, number, held={}, trashed=True)
    except IntegrityError as exc:
        return exc
    return None


def alias_problem(connection: Connection, name: str, alias: str) -> IntegrityError | None:
    """Return why noa's own row of an alias may not be copied: it is not where the ledger says."""
    try:
        load_holder(connection, name, alias)
    except IntegrityError as exc:
        return exc
    return None


def _with_sound_records(connection: Connection, found: Iterable[Discrepancy], *, tell: bool) -> Iterator[Discrepancy]:
    """Give the findings without those about versions whose own record was changed: nobody knows what is right there.

    With `tell` the changed record stands once in their place; without it, whoever checks the version says so.
    """
    problems: dict[_Place, IntegrityError | None] = {}
    for one in found:
        if one.number is None:
            yield one
            continue
        place = (one.name, one.number)
        is_new = place not in problems
        if is_new:
            problems[place] = record_problem(connection, *place)
        problem = problems[place]
        if problem is None:
            yield one
        elif tell and is_new:
            yield Discrepancy(
                name=one.name,
                subject=f"version {one.number}",
                field="record",
                expected=f"noa's record as it was sealed, {problem.expected}",
                received=f"{problem.what}: {problem.received}",
                number=one.number,
            )


def _undone(what: str, at: IntegrityError) -> Discrepancy:
    return Discrepancy(
        name=WHOLE_REGISTRY,
        subject=what,
        field="undone",
        expected=str(at.expected),
        received=f"{at.received}: {at.what} ({at.where})",
    )


def base_uri(store: ArtifactStore) -> str:
    """Return what the source of every unit begins with."""
    return store.unit_uri(UnitKey(name="x", uid="y")).removesuffix("x/y")


def same_version() -> ColumnElement[bool]:
    """Return the condition that joins MLflow's row of a version to noa's."""
    return and_(
        mlflow_versions.c.workspace == WORKSPACE,
        mlflow_versions.c.name == versions.c.name,
        mlflow_versions.c.version == versions.c.number,
    )


def mirrored_run_id() -> ColumnElement[str | None]:
    """Return the run's name as MLflow's column can hold it."""
    return case((func.length(versions.c.run_id) <= MAX_RUN_ID, versions.c.run_id), else_=None)


def _dropped_triggers(connection: Connection) -> Iterator[Discrepancy]:
    for trigger in missing_triggers(connection):
        yield Discrepancy(
            name=WHOLE_REGISTRY,
            subject=f"trigger {trigger}",
            field="guard",
            expected="in place",
            received="dropped or switched off: rows of this table could be changed unseen",
            key=trigger,
        )


def _lost_models(connection: Connection) -> set[str]:
    there = select(mlflow_models.c.name).where(
        mlflow_models.c.workspace == WORKSPACE, mlflow_models.c.name == models.c.name
    )
    return {str(row[0]) for row in connection.execute(select(models.c.name).where(~exists(there)))}


def _alias_discrepancies(connection: Connection) -> Iterator[Discrepancy]:
    same = and_(
        mlflow_aliases.c.workspace == WORKSPACE,
        mlflow_aliases.c.name == aliases.c.name,
        mlflow_aliases.c.alias == aliases.c.alias,
    )
    changed = (
        select(aliases.c.name, aliases.c.alias, aliases.c.number, mlflow_aliases.c.version)
        .select_from(aliases.outerjoin(mlflow_aliases, same))
        .where(mlflow_aliases.c.version.is_distinct_from(aliases.c.number))
    )
    ours = select(aliases.c.alias).where(aliases.c.name == mlflow_aliases.c.name, same)
    added = (
        select(mlflow_aliases.c.name, mlflow_aliases.c.alias, literal(None).label("number"), mlflow_aliases.c.version)
        .select_from(mlflow_aliases.join(models, models.c.name == mlflow_aliases.c.name))
        .where(mlflow_aliases.c.workspace == WORKSPACE, ~exists(ours))
    )
    rows = [row for query in (changed, added) for row in connection.execute(query)]
    for row in sorted(rows, key=lambda row: (row.name, row.alias)):
        problem = None if row.number is None else alias_problem(connection, row.name, row.alias)
        if problem is not None:
            yield Discrepancy(
                name=row.name,
                subject=f"alias {row.alias}",
                field="record",
                expected=str(problem.expected),
                received=f"{problem.what}: {problem.received}",
            )
            continue
        yield Discrepancy(
            name=row.name,
            subject=f"alias {row.alias}",
            field="alias",
            expected=_number_text(row.number),
            received=_number_text(row.version),
            key=row.alias,
        )


def _version_discrepancies(connection: Connection, store: ArtifactStore, places: Places) -> Iterator[Discrepancy]:
    rows = connection.execute(_differing_versions(places.base)).all()
    elsewhere = [row for row in rows if _is_shown(row) and not _is_right(row, places)]
    moves = moved_versions(connection, store, places, elsewhere) if elsewhere else []
    yield from _moves("version", moves)
    for row in rows:
        yield from _differing_fields(row, places, is_moved=bool(moves))


def _moves(what: str, moves: list[Relocation]) -> Iterator[Discrepancy]:
    for move in moves:
        yield Discrepancy(
            name=WHOLE_REGISTRY,
            subject=f"files of {move.count} {what}{'' if move.count == 1 else 's'}",
            field="moved",
            expected=move.new,
            received=move.old,
            key=what,
        )


def _is_shown(row: Row[Any]) -> bool:
    return row.trash_state is None and row.found is not None and row.current_stage != DELETED_STAGE


def _is_right(row: Row[Any], places: Places) -> bool:
    """Tell whether a row's source means the folder of the version, however it is spelled."""
    root = root_of(row.source, row.name, row.uid)
    return row.source == row.storage_location and root is not None and places.is_here(root)


def _differing_versions(base: str) -> Select[*tuple[Any, ...]]:
    source = literal(base) + versions.c.name + literal("/") + versions.c.uid
    in_trash = and_(trash.c.name == versions.c.name, trash.c.number == versions.c.number)
    is_gone = or_(mlflow_versions.c.version.is_(None), mlflow_versions.c.current_stage == DELETED_STAGE)
    differs = or_(
        is_gone,
        mlflow_versions.c.source.is_distinct_from(source),
        mlflow_versions.c.storage_location.is_distinct_from(source),
        mlflow_versions.c.current_stage.is_distinct_from(NO_STAGE),
        mlflow_versions.c.run_id.is_distinct_from(mirrored_run_id()),
        func.coalesce(mlflow_versions.c.description, "") != versions.c.description,
    )
    return (
        select(
            versions.c.name,
            versions.c.number,
            versions.c.uid,
            versions.c.description,
            versions.c.created_at,
            mirrored_run_id().label("run_id"),
            trash.c.state.label("trash_state"),
            mlflow_versions.c.version.label("found"),
            mlflow_versions.c.current_stage,
            mlflow_versions.c.source,
            mlflow_versions.c.storage_location,
            mlflow_versions.c.run_id.label("found_run_id"),
            mlflow_versions.c.description.label("found_description"),
        )
        .select_from(versions.outerjoin(mlflow_versions, same_version()).outerjoin(trash, in_trash))
        .where(or_(and_(trash.c.state.is_(None), differs), and_(trash.c.state.is_not(None), ~is_gone)))
        .order_by(versions.c.name, versions.c.number)
    )


def _differing_fields(row: Row[Any], places: Places, *, is_moved: bool) -> Iterator[Discrepancy]:
    source = f"{places.base}{row.name}/{row.uid}"
    if row.trash_state is not None:
        yield _of_version(row, "stage", f"{_DELETED}: it is in noa's trash", f"stage {row.current_stage}")
        return
    if row.found is None or row.current_stage == DELETED_STAGE:
        yield _of_version(row, "row", source, _DELETED)
        return
    received = row.source if row.source != source else row.storage_location
    compared: tuple[tuple[MirrorField, object, object], ...] = (
        ("source", source, source if is_moved or _is_right(row, places) else received),
        ("stage", NO_STAGE, row.current_stage),
        ("run_id", row.run_id, row.found_run_id),
        ("description", row.description, row.found_description or ""),
    )
    for field, expected, received in compared:
        if expected != received:
            yield _of_version(row, field, _text(expected), _text(received))


def _of_version(row: Row[Any], field: MirrorField, expected: str, received: str, key: str = "") -> Discrepancy:
    return Discrepancy(
        name=row.name,
        subject=f"version {row.number}",
        field=field,
        expected=expected,
        received=received,
        number=row.number,
        key=key,
    )


def _tag_discrepancies(connection: Connection) -> Iterator[Discrepancy]:
    """Compare the tags of visible versions: page by page, both sides in the same order."""
    last: _Place = ("", 0)
    while True:
        page = connection.execute(_tagged_versions(last)).all()
        if not page:
            return
        first, last = (page[0].name, page[0].number), (page[-1].name, page[-1].number)
        visible = _visible(connection, first, last)
        found = _found_tags(connection, first, last)
        sealed = _sealed_formats(connection, first, last)
        for row in page:
            place = (row.name, row.number)
            if place not in visible:
                continue
            theirs = found.get(place, {})
            for key, allowed in expected_tags(row, sealed.get(place, [])).items():
                if theirs.get(key) not in allowed:
                    yield _of_version(row, "tag", _text(allowed[0]), _text(theirs.get(key)), key)


def expected_tags(row: Row[Any], sealed: list[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Return the tags that noa wrote for a version, each with the values that are right; the first is written anew.

    `sealed` are its formats with their units, by name: their list may be that of the registration, or that of now.
    """
    tags: dict[str, tuple[str, ...]] = {}
    if row.tags != "{}":
        with suppress(IntegrityError):  # then nobody knows them; `find_record_problems` says so
            found = parse_table(row.tags, of=f"`{row.name}/{row.number}`", column="noa_versions.tags")
            tags = {str(key): (str(value),) for key, value in found.items()}
    tags[DIGEST_TAG] = (row.digest,)
    now = ",".join([name for name, _ in sealed])
    registered = [name for name, uid in sealed if uid == row.uid]
    tags[FORMATS_TAG] = (now,) if len(registered) == len(sealed) else (now, ",".join(registered))
    return tags


def sealed_formats(connection: Connection, name: str, number: int) -> list[tuple[str, str]]:
    """Return the formats of one version with their units."""
    return _sealed_formats(connection, (name, number), (name, number)).get((name, number), [])


def _tagged_versions(last: _Place) -> Select[*tuple[Any, ...]]:
    # No join: the primary key alone gives the page in order, whatever the planner thinks of the other tables.
    c = versions.c
    return (
        select(c.name, c.number, c.uid, c.digest, c.tags)
        .where(tuple_(c.name, c.number) > tuple_(*map(literal, last)))
        .order_by(c.name, c.number)
        .limit(_PAGE)
    )


def _visible(connection: Connection, first: _Place, last: _Place) -> set[_Place]:
    """Return the versions that MLflow shows and that are not in noa's trash: the others are compared by their row."""
    c = mlflow_versions.c
    shown = select(c.name, c.version).where(
        c.workspace == WORKSPACE, c.current_stage != DELETED_STAGE, _between(tuple_(c.name, c.version), first, last)
    )
    deleted = select(trash.c.name, trash.c.number).where(_between(tuple_(trash.c.name, trash.c.number), first, last))
    visible: set[_Place] = {(name, number) for name, number in connection.execute(shown).all()}
    return visible - {(name, number) for name, number in connection.execute(deleted).all()}


def _found_tags(connection: Connection, first: _Place, last: _Place) -> dict[_Place, dict[str, str]]:
    c = mlflow_version_tags.c
    query = select(c.name, c.version, c.key, c.value).where(
        c.workspace == WORKSPACE, _between(tuple_(c.name, c.version), first, last)
    )
    found: defaultdict[_Place, dict[str, str]] = defaultdict(dict)
    for name, number, key, value in connection.execute(query).all():
        found[name, number][key] = value
    return found


def _sealed_formats(connection: Connection, first: _Place, last: _Place) -> dict[_Place, list[tuple[str, str]]]:
    c = formats.c
    within = _between(tuple_(c.name, c.number), first, last)
    query = select(c.name, c.number, c.format, c.uid).where(within).order_by(c.name, c.number, c.format)
    found: defaultdict[_Place, list[tuple[str, str]]] = defaultdict(list)
    for name, number, format_name, uid in connection.execute(query).all():
        found[name, number].append((format_name, uid))
    return found


def _between(place: Tuple, first: _Place, last: _Place) -> ColumnElement[bool]:
    # Compared as rows: the databases then read the range from the primary key.
    return and_(place >= tuple_(*map(literal, first)), place <= tuple_(*map(literal, last)))


def _strangers(connection: Connection, places: Places) -> Iterator[Discrepancy]:
    """Find versions that noa did not make: its own files under another name or number, and others inside its models.

    A renamed model leaves the former: they are below our folder, and have our tag.
    """
    tagged = select(mlflow_version_tags.c.key).where(
        mlflow_version_tags.c.workspace == WORKSPACE,
        mlflow_version_tags.c.name == mlflow_versions.c.name,
        mlflow_version_tags.c.version == mlflow_versions.c.version,
        mlflow_version_tags.c.key == DIGEST_TAG,
    )
    ours = select(versions.c.number).where(same_version())
    inside = select(models.c.name).where(models.c.name == mlflow_versions.c.name)
    query = (
        select(
            mlflow_versions.c.name,
            mlflow_versions.c.version,
            mlflow_versions.c.source,
            mlflow_versions.c.current_stage,
            exists(tagged).label("is_tagged"),
            exists(inside).label("is_inside"),
        )
        .where(mlflow_versions.c.workspace == WORKSPACE, ~exists(ours), or_(exists(tagged), exists(inside)))
        .order_by(mlflow_versions.c.name, mlflow_versions.c.version)
    )
    for row in connection.execute(query):
        if not (row.is_tagged and _is_unit_here(row.source, places)):
            if row.is_inside and row.current_stage != DELETED_STAGE:
                yield Discrepancy(
                    name=row.name,
                    subject=f"version {row.version}",
                    field="foreign",
                    expected="no such version: noa did not register it",
                    received=row.source or "nothing",
                    number=row.version,
                )
            continue
        yield Discrepancy(
            name=row.name,
            subject=f"version {row.version}",
            field="model",
            expected="no such version: noa registered these files under another name",
            received=row.source,
            number=row.version,
        )


def _is_unit_here(source: str | None, places: Places) -> bool:
    root, _, uid = (source or "").rpartition("/")
    root, _, name = root.rpartition("/")
    return bool(uid and name) and places.is_here(f"{root}/")


def _number_text(number: int | None) -> str:
    return "nothing" if number is None else f"version {number}"


def _text(value: object) -> str:
    return "nothing" if value is None or value == "" else str(value)
