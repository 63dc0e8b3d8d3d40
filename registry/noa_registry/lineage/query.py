"""The query: which versions a question is about, and the graph around them, read from the tables in a few joins.

A question is a version (`digits/3`, `digits@champion`), a model (`digits`), or the digest of a dataset, a version or a
format, or the id of a run or job. Versions are bounded: those that an alias or a server needs come first, then the
newest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, func, or_, select, tuple_

from noa.digests import Manifest, short_digest
from noa.errors import IntegrityError, InvalidInputError, NotFoundError
from noa.references import parse_reference
from noa_registry.database import to_text
from noa_registry.digest_prefix import DIGEST, complete_digest, is_bare
from noa_registry.evidence import EQUIVALENCE
from noa_registry.json_columns import parse_table
from noa_registry.lineage.graph import Direction, GraphBuilder, LineageGraph
from noa_registry.records import load_aliases, model_not_found, version_not_found
from noa_registry.tables import (
    aliases,
    evidence,
    formats,
    generations,
    ledger,
    models,
    replicas,
    trash,
    version_labels,
    versions,
)

DEFAULT_LIMIT: Final = 10
MAX_LIMIT: Final = 1000
_JOB_TAG = "noa.job_id"
_RECIPE_TAG = "noa.recipe"
_GENERATIONS_PER_VERSION = 5
_IN_TRASH = and_(trash.c.name == versions.c.name, trash.c.number == versions.c.number)


@dataclass(frozen=True, slots=True)
class _Question:
    """Which versions are meant, and what to call the focus: a node's kind and key, or the version itself."""

    condition: ColumnElement[bool]
    focus: tuple[str, str] | None


def load_lineage(
    connection: Connection, question: str, *, direction: Direction, depth: int | None, limit: int, moment: datetime
) -> LineageGraph:
    """Return the graph around what `question` names. See `Registry.lineage`."""
    if not 1 <= limit <= MAX_LIMIT or (depth is not None and depth < 1):
        raise InvalidInputError(
            "a lineage without bounds, or with none of it, cannot be drawn",
            expected=f"1 <= limit <= {MAX_LIMIT}, depth >= 1",
            received=f"limit {limit}, depth {depth}",
        )
    asked = _understand(connection, question)
    rows, total = _choose_versions(connection, asked.condition, limit, moment)
    graph = _Drawing(connection, moment).draw(rows, hidden=total - len(rows), focus=asked.focus)
    return graph.around(direction=direction, depth=depth)


def _understand(connection: Connection, question: str) -> _Question:
    if "@" in question or "/" in question:
        return _of_version(connection, question)
    if question.lower().startswith(DIGEST):
        return _of_digest(connection, complete_digest(connection, question))
    if connection.execute(select(models.c.name).where(models.c.name == question)).first() is not None:
        return _Question(versions.c.name == question, ("model", question))
    for label, kind in (("run", "run"), (f"tag.{_JOB_TAG}", "job")):
        condition = _labelled(label, question)
        if _matches(connection, condition):
            return _Question(condition, (kind, question))
    if is_bare(question):
        return _of_digest(connection, complete_digest(connection, question))
    error = model_not_found(connection, question) if len(question) <= 128 else None
    raise NotFoundError(
        f"nothing is known of `{question[:128]}`",
        expected="a model, a version (`name/number`, `name@alias`), a digest, or the id of a run or job",
        received=f"`{question[:128]}`",
        remedy="List the models with: noa models list" if error is None else error.remedy,
    )


def _of_version(connection: Connection, question: str) -> _Question:
    reference = parse_reference(question)
    number = reference.number
    if number is None:
        held = load_aliases(connection, reference.name)
        if reference.alias not in held:
            raise NotFoundError(
                f"no alias `{reference.alias}` of model `{reference.name}`",
                expected=", ".join(f"`{alias}`" for alias in sorted(held)) or "an alias that is set; none is yet",
                received=f"`{question}`",
            )
        number = held[reference.alias]
    condition = and_(versions.c.name == reference.name, versions.c.number == number)
    if not _matches(connection, condition):
        raise version_not_found(connection, reference.name, number)
    return _Question(condition, None)


def _of_digest(connection: Connection, digest: str) -> _Question:
    of_data = _labelled("dataset", digest)
    if _matches(connection, of_data):
        return _Question(of_data, ("dataset", digest))
    of_version = versions.c.digest == digest
    if _matches(connection, of_version):
        return _Question(of_version, None)
    holders = select(formats.c.name, formats.c.number).where(formats.c.digest == digest)
    return _Question(tuple_(versions.c.name, versions.c.number).in_(holders), None)


def _labelled(key: str, value: str) -> ColumnElement[bool]:
    """Return the condition that a version has a label, found in the index of labels and not by reading all versions."""
    holders = select(version_labels.c.name, version_labels.c.number).where(
        version_labels.c.key == key, version_labels.c.value == value
    )
    return tuple_(versions.c.name, versions.c.number).in_(holders)


def _matches(connection: Connection, condition: ColumnElement[bool]) -> bool:
    return connection.execute(select(versions.c.number).where(condition).limit(1)).first() is not None


def _choose_versions(
    connection: Connection, condition: ColumnElement[bool], limit: int, moment: datetime
) -> tuple[list[Row[Any]], int]:
    """Return the versions to draw, the newest first, and how many there are in all."""
    total = connection.execute(select(func.count()).select_from(versions).where(condition)).scalar_one()
    held = select(aliases.c.name, aliases.c.number)
    leased = (
        select(generations.c.name, generations.c.number)
        .join(
            replicas,
            and_(replicas.c.endpoint == generations.c.endpoint, replicas.c.generation == generations.c.generation),
        )
        .where(replicas.c.expires_at > to_text(moment))
    )
    key = tuple_(versions.c.name, versions.c.number)
    needed = connection.execute(_version_rows(and_(condition, or_(key.in_(held), key.in_(leased))), limit)).all()
    newest = connection.execute(_version_rows(condition, limit)).all()
    chosen = {(row.name, row.number): row for row in [*needed, *newest]}
    rows = list(chosen.values())[: max(limit, 1)]
    return sorted(rows, key=lambda row: (row.created_at, row.name, row.number), reverse=True), int(total)


def _version_rows(condition: ColumnElement[bool], limit: int) -> Select[*tuple[Any, ...]]:
    columns = (
        versions.c.name,
        versions.c.number,
        versions.c.digest,
        versions.c.native,
        versions.c.dataset_digest,
        versions.c.run_id,
        versions.c.git_commit,
        versions.c.tags,
        versions.c.created_at,
        versions.c.created_by,
        trash.c.state.label("trash_state"),
        trash.c.deleted_at,
        trash.c.purged_at,
    )
    return (
        select(*columns)
        .select_from(versions.outerjoin(trash, _IN_TRASH))
        .where(condition)
        .order_by(versions.c.created_at.desc(), versions.c.name, versions.c.number.desc())
        .limit(limit)
    )


class _Drawing:
    """Adds all that belongs to some versions to one graph."""

    def __init__(self, connection: Connection, moment: datetime) -> None:
        self._connection = connection
        self._moment = to_text(moment)
        self._builder = GraphBuilder()

    def draw(self, rows: list[Row[Any]], *, hidden: int, focus: tuple[str, str] | None) -> LineageGraph:
        names = sorted({(row.name, row.number) for row in rows})
        sealed = self._by_version(formats, names)
        shown = self._equivalences(names)
        moves = self._aliases(names)
        served = self._generations(names)
        for row in rows:
            version = self._upstream(row)
            self._formats(row, version, sealed[row.name, row.number], shown)
            self._alias_nodes(row, version, moves[row.name, row.number])
            self._served(row, version, served[row.name, row.number])
        return self._builder.build(self._focus(rows, hidden, focus), hidden=hidden)

    def _focus(self, rows: list[Row[Any]], hidden: int, focus: tuple[str, str] | None) -> list[str]:
        ids = [f"version:{row.name}/{row.number}" for row in rows]
        if focus is None:
            return ids
        kind, key = focus
        build = self._builder
        if kind == "model":
            root = build.node("model", key, key, versions=len(rows) + hidden)
            for version in ids:
                build.edge(root, version, "has")
        else:
            root = f"{kind}:{key}"
        if hidden:
            more = build.node("more", f"{kind}:{key}", f"and {hidden:,} more versions", versions=hidden)
            build.edge(root, more, "has")
        return [root]

    def _upstream(self, row: Row[Any]) -> str:
        build = self._builder
        tags, problem = _tags_of(row)
        job_id, recipe = tags.get(_JOB_TAG), tags.get(_RECIPE_TAG)
        reference = f"{row.name}/{row.number}"
        version = build.node(
            "version",
            reference,
            reference,
            digest=row.digest,
            created_at=row.created_at,
            created_by=row.created_by,
            in_trash_since=row.deleted_at if row.trash_state is not None and row.purged_at is None else None,
            purged_at=row.purged_at,
            problem=problem,
        )
        last = build.node("dataset", row.dataset_digest, short_digest(row.dataset_digest), digest=row.dataset_digest)
        verb = "used by"
        commit = None
        if row.git_commit:
            commit = build.node("commit", row.git_commit, str(row.git_commit)[:12], commit=row.git_commit)
        if job_id:
            job = build.node("job", str(job_id), str(job_id), recipe=recipe, backend=tags.get("noa.backend"))
            build.edge(last, job, "read by")
            build.edge(commit, job, "code of")
            last, verb = job, "made"
        if row.run_id:
            run = build.node("run", str(row.run_id), str(row.run_id), run_id=row.run_id)
            build.edge(last, run, "tracked as" if job_id else "read by")
            last, verb = run, "registered as"
        build.edge(last, version, verb)
        if not job_id:
            build.edge(commit, version, "code of")
        return version

    def _formats(
        self, row: Row[Any], version: str, sealed: list[Row[Any]], shown: Mapping[tuple[str, str], str]
    ) -> None:
        build = self._builder
        ids = {
            one.format: build.node(
                "format",
                f"{row.name}/{row.number}:{one.format}",
                f"{one.format}{' (native)' if one.format == row.native else ''}",
                version=f"{row.name}/{row.number}",
                digest=one.digest,
                bytes=_size_bytes(one.manifest),
                created_at=one.created_at,
                equivalence=None if one.format == row.native else shown.get((one.format, one.digest)),
                purged_at=row.purged_at,
            )
            for one in sealed
        }
        for one in sealed:
            if one.format == row.native:
                build.edge(version, ids[one.format], "sealed as")
            elif row.native in ids:
                build.edge(ids[row.native], ids[one.format], "converted to")
            else:
                build.edge(version, ids[one.format], "sealed as")

    def _alias_nodes(self, row: Row[Any], version: str, held: list[Row[Any]]) -> None:
        for one in held:
            name = f"{row.name}@{one.alias}"
            alias = self._builder.node(
                "alias", name, name, since=one.created_at, by=one.actor, reason=one.reason, ledger_row=one.sequence
            )
            self._builder.edge(version, alias, "held by")

    def _served(self, row: Row[Any], version: str, served: list[Row[Any]]) -> None:
        build = self._builder
        reference = f"{row.name}/{row.number}"
        by_generation: defaultdict[tuple[str, int], list[Row[Any]]] = defaultdict(list)
        for one in served:
            by_generation[one.endpoint, one.generation].append(one)
        for (endpoint, generation), group in by_generation.items():
            first = group[0]
            answering = [one for one in group if one.replica is not None]
            served_as = build.node(
                "generation",
                f"{endpoint}#{generation}",
                f"{endpoint} #{generation}",
                endpoint=endpoint,
                generation=generation,
                format=first.format,
                follows=f"{row.name}@{first.alias}" if first.alias else reference,
                announced_at=first.created_at,
                replicas=len(answering),
                ended_at=None if answering else first.replaced_at,
            )
            format_id = f"format:{reference}:{first.format}"
            build.edge(format_id if build.has(format_id) else version, served_as, "served by")
            alias_id = f"alias:{row.name}@{first.alias}"
            if first.alias and build.has(alias_id):
                build.edge(alias_id, served_as, "followed by")
            for one in answering:
                replica = build.node("replica", f"{endpoint}:{one.replica}", one.replica, lease_until=one.expires_at)
                build.edge(served_as, replica, "acknowledged by")

    def _by_version(self, table: Any, names: list[tuple[str, int]]) -> defaultdict[tuple[str, int], list[Row[Any]]]:
        found: defaultdict[tuple[str, int], list[Row[Any]]] = defaultdict(list)
        query = select(table).where(tuple_(table.c.name, table.c.number).in_(names)).order_by(*table.primary_key)
        for row in self._connection.execute(query):
            found[row.name, row.number].append(row)
        return found

    def _equivalences(self, names: list[tuple[str, int]]) -> dict[tuple[str, str], str]:
        """Return the newest verdict on each format by its name and digest."""
        query = (
            select(evidence.c.subject, evidence.c.digest, evidence.c.passed)
            .where(tuple_(evidence.c.name, evidence.c.number).in_(names), evidence.c.kind == EQUIVALENCE)
            .order_by(evidence.c.id)
        )
        return {
            (row.subject, row.digest): "passed" if row.passed else "FAILED" for row in self._connection.execute(query)
        }

    def _aliases(self, names: list[tuple[str, int]]) -> defaultdict[tuple[str, int], list[Row[Any]]]:
        found: defaultdict[tuple[str, int], list[Row[Any]]] = defaultdict(list)
        query = (
            select(aliases, ledger.c.created_at, ledger.c.actor, ledger.c.reason)
            .join(ledger, ledger.c.sequence == aliases.c.sequence)
            .where(tuple_(aliases.c.name, aliases.c.number).in_(names))
            .order_by(aliases.c.name, aliases.c.alias)
        )
        for row in self._connection.execute(query):
            found[row.name, row.number].append(row)
        return found

    def _generations(self, names: list[tuple[str, int]]) -> defaultdict[tuple[str, int], list[Row[Any]]]:
        """Return the newest generations of each version, and every one that a replica serves, with the replicas.

        `replaced_at` is when the endpoint's next generation was announced.
        """
        alive = and_(
            replicas.c.endpoint == generations.c.endpoint,
            replicas.c.generation == generations.c.generation,
            replicas.c.expires_at > self._moment,
        )
        place = func.row_number().over(
            partition_by=(generations.c.name, generations.c.number), order_by=generations.c.created_at.desc()
        )
        following = generations.alias()
        is_next = and_(
            following.c.endpoint == generations.c.endpoint, following.c.generation == generations.c.generation + 1
        )
        ranked = (
            select(
                generations,
                replicas.c.replica,
                replicas.c.expires_at,
                following.c.created_at.label("replaced_at"),
                place.label("place"),
            )
            .select_from(generations.outerjoin(replicas, alive).outerjoin(following, is_next))
            .where(tuple_(generations.c.name, generations.c.number).in_(names))
            .subquery()
        )
        query = (
            select(ranked)
            .where(or_(ranked.c.place <= _GENERATIONS_PER_VERSION, ranked.c.replica.is_not(None)))
            .order_by(ranked.c.endpoint, ranked.c.generation, ranked.c.replica)
        )
        found: defaultdict[tuple[str, int], list[Row[Any]]] = defaultdict(list)
        for row in self._connection.execute(query):
            found[row.name, row.number].append(row)
        return found


def _tags_of(row: Row[Any]) -> tuple[dict[str, Any], str | None]:
    """Return the tags of a version, and what is wrong where they cannot be read: the others are drawn all the same."""
    try:
        return parse_table(row.tags, of=f"`{row.name}/{row.number}`", column="noa_versions.tags"), None
    except IntegrityError as exc:
        return {}, exc.what


def _size_bytes(manifest: str) -> int | None:
    try:
        return Manifest.from_json(manifest).size_bytes
    except IntegrityError:  # what is wrong with it is said by whoever opens the version
        return None
