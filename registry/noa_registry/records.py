"""Records: rows of noa's tables to values and back. Those about sealed bytes are checked against their digest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Integer, Row, and_, bindparam, case, exists, func, insert, or_, select

from noa.digests import Manifest, canonical_json, digest_json, sha256_bytes
from noa.errors import IntegrityError, InvalidInputError, NotFoundError
from noa.references import MOST_NUMBER, check_number
from noa.signatures import Signature
from noa_registry.artifacts import FORMATS_FOLDER
from noa_registry.attachments import insert_attachments, load_attachment
from noa_registry.database import to_text
from noa_registry.evidence import RECORDING_KEY, Evidence, Recording, attachment_digests, plain_fact, plain_json
from noa_registry.evidence_sets import EvidenceSet, check_judged, check_set, extend_set
from noa_registry.foreign_cells import refuse_foreign, require_own_types
from noa_registry.json_columns import parse_table, parse_time, unreadable
from noa_registry.ledger import LedgerEntry
from noa_registry.ledger_rows import StoredEntry, to_entry, to_stored
from noa_registry.search.indexing import index_evidence
from noa_registry.tables import aliases, evidence, evidence_sets, formats, ledger, models, trash, versions
from noa_registry.versions import ModelSummary, ModelVersion, SealedFormat

if TYPE_CHECKING:
    from noa.settings import GateSettings

_PAGE = 1000
_CACHED_RECORDS = 1024
# Built once: composing a statement costs more than running it.
_ALIASES_OF = select(aliases.c.alias, aliases.c.number, aliases.c.sequence).where(aliases.c.name == bindparam("name"))
_HOLDER = (
    select(
        aliases.c.number,
        aliases.c.digest,
        aliases.c.sequence,
        and_(
            ledger.c.name == aliases.c.name,
            ledger.c.alias == aliases.c.alias,
            ledger.c.to_number == aliases.c.number,
            ledger.c.to_digest == aliases.c.digest,
        ).label("agrees"),
    )
    .select_from(aliases.outerjoin(ledger, ledger.c.sequence == aliases.c.sequence))
    .where(aliases.c.name == bindparam("name"), aliases.c.alias == bindparam("alias"))
)
# SQLite sorts a text after all numbers; what is none by it is no version's number.
_NUMBER = case((versions.c.number <= MOST_NUMBER, versions.c.number), else_=0)
_IN_TRASH = and_(trash.c.name == versions.c.name, trash.c.number == versions.c.number)
_TRASH_COLUMNS = [column for column in trash.c if column.name not in ("name", "number")]
_VERSION = (
    select(versions, *_TRASH_COLUMNS)
    .select_from(versions.outerjoin(trash, _IN_TRASH))
    .where(versions.c.name == bindparam("name"), versions.c.number == bindparam("number", type_=Integer))
)
_PRESENCE = (
    select(versions.c.number, *_TRASH_COLUMNS)
    .select_from(versions.outerjoin(trash, _IN_TRASH))
    .where(versions.c.name == bindparam("name"), versions.c.number == bindparam("number", type_=Integer))
)
_FORMATS_OF = select(formats).where(
    formats.c.name == bindparam("name"), formats.c.number == bindparam("number", type_=Integer)
)
# One statement, so that a fact that is attached meanwhile is not taken for one too many; one row, without a fact, for a
# version that has none.
_EVIDENCE_OF = (
    select(evidence, evidence_sets.c.facts.label("set_facts"), evidence_sets.c.digest.label("set_digest"))
    .select_from(
        versions.outerjoin(
            evidence_sets, and_(evidence_sets.c.name == versions.c.name, evidence_sets.c.number == versions.c.number)
        ).outerjoin(evidence, and_(evidence.c.name == versions.c.name, evidence.c.number == versions.c.number))
    )
    .where(versions.c.name == bindparam("name"), versions.c.number == bindparam("number", type_=Integer))
    .order_by(evidence.c.id)
)


def version_digest(
    *, name: str, native: str, native_digest: str, wrapper_digest: str, signature: Signature, dataset_digest: str
) -> str:
    """Return the name of what a version computes and from which data; formats added later do not change it."""
    return sha256_bytes(
        version_record(
            name=name,
            native=native,
            native_digest=native_digest,
            wrapper_digest=wrapper_digest,
            signature=signature,
            dataset_digest=dataset_digest,
        )
    )


def version_record(
    *, name: str, native: str, native_digest: str, wrapper_digest: str, signature: Signature, dataset_digest: str
) -> bytes:
    """Return the text whose SHA-256 is the digest of a version: what the signature of its record is about."""
    return canonical_json(
        {
            "name": name,
            "native": native,
            "native_digest": native_digest,
            "wrapper_digest": wrapper_digest,
            "signature": signature.to_dict(),
            "dataset_digest": dataset_digest,
        }
    )


def load_aliases(connection: Connection, name: str, *, of: int | None = None) -> dict[str, int]:
    """Return the version number that each alias of a model points to.

    With `of`, for the aliases of this version: a spoilt row that is another one's by the ledger is left out.

    Raises:
        IntegrityError: a row holds another type than noa writes.
    """
    held: dict[str, int] = {}
    for alias, number, sequence in connection.execute(_ALIASES_OF, {"name": name}).all():
        if type(alias) is str and type(number) is int:
            held[alias] = number
        elif of is None or _moved_to(connection, name, sequence) in (None, of):
            refuse_foreign(connection, aliases)
    return held


def _moved_to(connection: Connection, name: str, sequence: object) -> int | None:
    """Return the version to which a row of the ledger moved an alias, None if nobody can tell."""
    if type(sequence) is not int:
        return None
    query = select(ledger.c.to_number).where(ledger.c.sequence == sequence, ledger.c.name == name)
    number = connection.execute(query).scalar()
    return number if type(number) is int else None


class Holder(NamedTuple):
    """The version that an alias points to, and the row of the ledger that put it there."""

    number: int
    digest: str
    move: int


def load_holder(connection: Connection, name: str, alias: str) -> Holder | None:
    """Return the version that an alias points to, None if the alias does not exist.

    Raises:
        IntegrityError: the ledger's row of that move says something else: the alias was moved behind noa's back.
    """
    row = connection.execute(_HOLDER, {"name": name, "alias": alias}).one_or_none()
    if row is None:
        return None
    if not row.agrees:
        if type(row.number) is not int:
            refuse_foreign(connection, aliases)
        raise IntegrityError(
            f"`{name}@{alias}` is not where the ledger says",
            expected=f"what row {row.sequence} of the ledger says",
            received=f"version {row.number}",
            remedy="Somebody wrote into the database directly; see it with: noa ledger verify",
            file="noa_aliases",
        )
    return Holder(int(row.number), str(row.digest), int(row.sequence))


def load_version(
    connection: Connection,
    root: Path,
    name: str,
    number: int,
    *,
    held: dict[str, int] | None = None,
    trashed: bool = False,
) -> ModelVersion:
    """Return one version. `held` are the model's aliases, if the caller has read them already.

    `trashed`: return it also if it is in the trash.

    Raises:
        NotFoundError: there is no such version, or it was deleted; the message says what there is.
        IntegrityError: the rows were changed.
    """
    _refuse_impossible(connection, name, number)
    key = {"name": name, "number": number}
    row = connection.execute(_VERSION, key).one_or_none()
    if row is None:
        raise version_not_found(connection, name, number)
    if row.state is not None and not trashed:
        raise version_deleted(name, number, row)
    rows = connection.execute(_FORMATS_OF, key).all()
    return _to_version(row, rows, root, load_aliases(connection, name, of=number) if held is None else held)


def load_versions(
    connection: Connection,
    root: Path,
    name: str,
    *,
    limit: int,
    offset: int,
    problems: list[IntegrityError] | None = None,
) -> list[ModelVersion]:
    """Return versions of one model, newest first. With `problems`, what was changed is put there and left out."""
    query = (
        select(versions)
        .where(versions.c.name == name, not_trashed())
        .order_by(versions.c.number.desc())
        .limit(limit)
        .offset(offset)
    )
    rows = connection.execute(query).all()
    if not rows:
        newest_number(connection, name)
        return []
    try:
        held = load_aliases(connection, name)
    except IntegrityError:
        if problems is None:
            raise
        held = None  # each version is asked for its own
    by_number: defaultdict[int, list[Row[Any]]] = defaultdict(list)
    between = formats.c.number.between(rows[-1].number, rows[0].number)
    for row in connection.execute(select(formats).where(formats.c.name == name, between)):
        by_number[row.number].append(row)
    found: list[ModelVersion] = []
    for row in rows:
        try:
            own = load_aliases(connection, name, of=row.number) if held is None else held
            found.append(_to_version(row, by_number[row.number], root, own))
        except IntegrityError as exc:
            if problems is None:
                raise
            problems.append(exc)
    return found


def load_numbers(connection: Connection, name: str) -> list[int]:
    """Return the numbers of all versions of a model, oldest first.

    Raises:
        NotFoundError: there is no such model.
    """
    query = select(versions.c.number).where(versions.c.name == name, not_trashed()).order_by(versions.c.number)
    numbers = [row.number for row in connection.execute(query) if type(row.number) is int]  # others are no version's
    if not numbers:
        raise no_version_left(connection, name)
    return numbers


def newest_number(connection: Connection, name: str) -> int:
    """Return the number of the newest version.

    Raises:
        NotFoundError: there is no such model.
    """
    # The newest is found by the primary key, whatever number of versions there is.
    query = (
        select(versions.c.number)
        .where(versions.c.name == name, not_trashed())
        .order_by(versions.c.number.desc())
        .limit(1)
    )
    number = connection.execute(query).scalar()
    if number is None:
        raise no_version_left(connection, name)
    return int(number)


def load_summaries(connection: Connection) -> list[ModelSummary]:
    """Return one line per model, by name."""
    held: defaultdict[str, dict[str, int]] = defaultdict(dict)
    spoilt: dict[str, str] = {}
    for row in connection.execute(select(aliases)):
        try:
            require_own_types(row, aliases)
        except IntegrityError as exc:
            spoilt[row.name] = exc.what
        else:
            held[row.name][row.alias] = row.number
    counted = (
        select(models, func.count(versions.c.number).label("version_count"), func.max(_NUMBER).label("newest"))
        .join(versions, versions.c.name == models.c.name)
        .where(not_trashed())
        .group_by(models.c.name)
        .order_by(models.c.name)
    )
    return [_to_summary(row, held[row.name], spoilt.get(row.name)) for row in connection.execute(counted).all()]


def load_digests(connection: Connection, name: str, number: int) -> tuple[str, dict[str, str]]:
    """Return the digest of a version and those of its formats by name, as the rows say; nothing is checked."""
    whole = select(versions.c.digest).where(versions.c.name == name, versions.c.number == number)
    parts = select(formats.c.format, formats.c.digest).where(formats.c.name == name, formats.c.number == number)
    return connection.execute(whole).scalar_one(), {row.format: row.digest for row in connection.execute(parts)}


def insert_evidence(
    connection: Connection,
    name: str,
    number: int,
    facts: Sequence[Evidence],
    recording: Recording,
    *,
    policy: GateSettings | None = None,
) -> None:
    """Append evidence in the given order, with what is attached to it and who did so; `policy`: the model's gate."""
    facts = [plain_fact(fact) for fact in facts]  # else the digest were over something else than what is read back
    insert_attachments(connection, facts)
    rows = [
        with_record(
            {
                "name": name,
                "number": number,
                "kind": fact.kind,
                "subject": fact.subject,
                "digest": fact.digest,
                "passed": fact.passed,
                "content": to_json({**fact.values, RECORDING_KEY: recording.to_dict()}),
                "created_at": to_text(fact.created_at),
            }
        )
        for fact in facts
    ]
    if rows:
        connection.execute(insert(evidence), rows)
        index_evidence(connection, name, number, facts, policy=policy)
    extend_set(connection, name, number, [str(row["record"]) for row in rows])


def load_evidence(connection: Connection, name: str, number: int) -> list[Evidence]:
    """Return all evidence of a version in the order in which it was attached.

    Raises:
        IntegrityError: a fact was changed, or not all that were attached are there.
    """
    rows, written = _evidence_rows(connection, name, number)
    facts = [_to_evidence(row) for row in rows]
    check_set(f"{name}/{number}", written, [row.record for row in rows])
    return facts


def find_record_problems(connection: Connection, name: str, number: int) -> list[IntegrityError]:
    """Return what of a version's record, its evidence and their attachments is not as it was written; all of it."""
    problems: list[IntegrityError] = []
    try:
        load_version(connection, Path(), name, number)
    except IntegrityError as exc:
        problems.append(exc)
    rows, written = _evidence_rows(connection, name, number)
    changed: list[IntegrityError] = []
    for row in rows:
        try:
            fact = _to_evidence(row)
            for digest in attachment_digests(fact):
                _require_attachment(connection, digest, of=_evidence_name(row))
        except IntegrityError as exc:
            changed.append(exc)
    if not changed:  # else the set differs because of them
        changed += _set_problems(connection, name, number, written, [row.record for row in rows])
    return [*problems, *changed]


def _evidence_rows(connection: Connection, name: str, number: int) -> tuple[list[Row[Any]], EvidenceSet | None]:
    rows = connection.execute(_EVIDENCE_OF, {"name": name, "number": number}).all()
    if not rows or rows[0].set_facts is None:
        written = None
    else:
        written = EvidenceSet(facts=rows[0].set_facts, digest=rows[0].set_digest)
    return [row for row in rows if row.id is not None], written


def _set_problems(
    connection: Connection, name: str, number: int, written: EvidenceSet | None, records: Sequence[str | None]
) -> list[IntegrityError]:
    """Return the first reason why the evidence is not all that was attached, and judged by."""
    reference = f"{name}/{number}"
    try:
        check_set(reference, written, records)
        for entry in _readable_moves(connection, name, number):
            check_judged(reference, entry.sequence, entry.verdict, records)
    except IntegrityError as exc:
        return [exc]
    return []


def _readable_moves(connection: Connection, name: str, number: int) -> list[LedgerEntry]:
    try:
        return [entry for entry in load_moves_of(connection, name, number) if entry.to_number == number]
    except IntegrityError:  # the ledger's own verification names the row
        return []


def insert_entry(connection: Connection, entry: LedgerEntry) -> None:
    """Append a row to the ledger."""
    connection.execute(
        insert(ledger).values(
            sequence=entry.sequence,
            name=entry.name,
            alias=entry.alias,
            action=entry.action,
            from_number=entry.from_number,
            to_number=entry.to_number,
            from_digest=entry.from_digest,
            to_digest=entry.to_digest,
            actor=entry.actor,
            reason=entry.reason,
            verdict=canonical_json(entry.verdict).decode(),
            created_at=to_text(entry.created_at),
            previous_hash=entry.previous_hash,
            hash=entry.hash,
        )
    )


def load_history(connection: Connection, name: str, alias: str | None) -> list[LedgerEntry]:
    """Return the moves of a model's aliases, newest first."""
    query = select(ledger).where(ledger.c.name == name).order_by(ledger.c.sequence.desc())
    if alias is not None:
        query = query.where(ledger.c.alias == alias)
    return [to_entry(row) for row in connection.execute(query)]


def load_entries(connection: Connection, *, name: str | None, limit: int, before: int | None) -> list[LedgerEntry]:
    """Return a page of the ledger, of one model or of all, newest first; `before` is the last row of the one before."""
    query = select(ledger).order_by(ledger.c.sequence.desc()).limit(limit)
    if name is not None:
        query = query.where(ledger.c.name == name)
    if before is not None:
        query = query.where(ledger.c.sequence < before)
    return [to_entry(row) for row in connection.execute(query)]


def load_moves_of(connection: Connection, name: str, number: int) -> list[LedgerEntry]:
    """Return the rows of the ledger that lead to a version or away from it, oldest first."""
    is_part = or_(ledger.c.to_number == number, ledger.c.from_number == number)
    query = select(ledger).where(ledger.c.name == name, is_part).order_by(ledger.c.sequence)
    return [to_entry(row) for row in connection.execute(query)]


def iterate_stored(connection: Connection) -> Iterator[StoredEntry]:
    """Give the whole ledger as it is stored, oldest first, in pages."""
    last: int | None = None
    while True:
        query = select(ledger).order_by(ledger.c.sequence).limit(_PAGE)
        rows = connection.execute(query if last is None else query.where(ledger.c.sequence > last)).all()
        if not rows:
            return
        yield from (to_stored(row) for row in rows)
        last = rows[-1].sequence


def last_entry(connection: Connection) -> tuple[int, str] | None:
    """Return sequence number and hash of the newest row of the ledger.

    Raises:
        IntegrityError: the hash is no text: nothing can follow on it.
    """
    query = select(ledger.c.sequence, ledger.c.hash).order_by(ledger.c.sequence.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    if row is not None and not isinstance(row.hash, str):
        load_entry(connection, row.sequence)  # says which cell it is
    return None if row is None else (row.sequence, row.hash)


def load_entry(connection: Connection, sequence: int) -> LedgerEntry:
    """Return one row of the ledger.

    Raises:
        IntegrityError: it is gone.
    """
    row = connection.execute(select(ledger).where(ledger.c.sequence == sequence)).one_or_none()
    if row is None:
        raise IntegrityError("a row of the ledger is missing", where=f"row {sequence}", sequence=sequence)
    return to_entry(row)


def version_not_found(connection: Connection, name: str, number: int) -> NotFoundError:
    """Return the error that says which versions there are, in the trash too."""
    newest = newest_number(connection, name)
    in_trash = restorable_numbers(connection, name)
    those = str(in_trash[0]) if len(in_trash) == 1 else f"{len(in_trash)} more"
    there = f"; in the trash ({those}): noa models list {name} --trash" if in_trash else ""
    return NotFoundError(
        f"no version {number} of model `{name}`",
        expected=f"a version up to {newest}",
        received=f"`{name}/{number}`",
        remedy=f"List them with: noa models list {name}{there}",
        newest=newest,
    )


def restorable_numbers(connection: Connection, name: str) -> list[int]:
    """Return the numbers of a model's versions that can be taken out of the trash, the newest first."""
    query = select(trash.c.number).where(trash.c.name == name, trash.c.state == "trashed")
    return [int(row[0]) for row in connection.execute(query.order_by(trash.c.number.desc()))]


def not_trashed() -> ColumnElement[bool]:
    """Return the condition that a row of `noa_versions` is not in the trash."""
    return ~exists(select(trash.c.number).where(_IN_TRASH))


def require_version(connection: Connection, name: str, number: int) -> None:
    """Check that a version is there and not in the trash, without reading or checking its record.

    Raises:
        NotFoundError: there is no such version, or it was deleted.
    """
    _refuse_impossible(connection, name, number)
    row = connection.execute(_PRESENCE, {"name": name, "number": number}).one_or_none()
    if row is None:
        raise version_not_found(connection, name, number)
    if row.state is not None:
        raise version_deleted(name, number, row)


def _refuse_impossible(connection: Connection, name: str, number: int) -> None:
    """Raise for what is no number, and for one that no database holds."""
    if not 1 <= check_number(number, what=f"the number of a version of `{name}`") <= MOST_NUMBER:
        raise version_not_found(connection, name, number)


def version_deleted(name: str, number: int, row: Row[Any]) -> NotFoundError:
    """Return the error that says when and by whom a version was deleted, and how it comes back."""
    reference = f"{name}/{number}"
    deleted = f"deleted by {row.deleted_by} at {shown_time(row.deleted_at)} ({row.reason})"
    if row.state == "trashed":
        return NotFoundError(
            f"`{reference}` is in the trash: {deleted}",
            remedy=f"Restore it before {shown_time(row.purge_after)} with: noa models restore {reference}",
            state=row.state,
        )
    return NotFoundError(
        f"`{reference}` is gone for good: {deleted}, and its files were removed since",
        remedy="Its record is kept; if it was exported, import it anew: noa models import FILE.noa",
        state=row.state,
    )


def shown_time(text: str) -> str:
    """Return a stored time for people, to the second."""
    return f"{text[:19].replace('T', ' ')} UTC"


def no_version_left(connection: Connection, name: str) -> NotFoundError:
    """Return the error that says that a model does not exist, or that all its versions were deleted."""
    count = connection.execute(select(func.count()).select_from(versions).where(versions.c.name == name)).scalar()
    if not count:
        return model_not_found(connection, name)
    return NotFoundError(
        f"every version of model `{name}` is in the trash",
        received=f"{count} deleted",
        remedy=f"List them with: noa models list {name} --trash",
    )


def with_record(values: Mapping[str, object]) -> dict[str, object]:
    """Return the values of a row with the digest over all of them, by which a changed row is found."""
    return {**values, "record": _row_digest(tuple(values.items()))}


def check_record(row: Row[Any], what: str, table: str) -> None:
    """Compare a row with its digest. Every row has one: an upgrade gives it to those of an older noa.

    Raises:
        IntegrityError: the row was changed behind noa's back.
    """
    sealed = row.record or "the digest of its record, which is missing"
    columns = {"noa_versions": versions, "noa_formats": formats, "noa_evidence": evidence}[table].c
    try:
        found = _row_digest(tuple((c.name, getattr(row, c.name)) for c in columns if c.name not in ("id", "record")))
    except (TypeError, ValueError):  # SQLite keeps bytes in any column
        found = "values that no record has"
    if found != sealed:
        raise IntegrityError(
            f"the record of {what} was changed",
            expected=sealed,
            received=found,
            remedy="It is refused wherever it would be used; restore a backup of the database",
            file=table,
        )


def model_not_found(connection: Connection, name: str) -> NotFoundError:
    """Return the error that says which models there are."""
    known = [str(row[0]) for row in connection.execute(select(models.c.name).order_by(models.c.name).limit(20))]
    return NotFoundError(
        f"no model `{name}`",
        expected=", ".join(f"`{model}`" for model in known) or "any model; none is registered yet",
        received=f"`{name}`",
        remedy="List them with: noa models list",
    )


def to_json(value: object) -> str:
    """Return canonical JSON text of plain values."""
    return canonical_json(plain_json(value)).decode()


def _to_summary(row: Row[Any], held: Mapping[str, int], problem: str | None) -> ModelSummary:
    times: dict[str, datetime | None] = {}
    try:
        require_own_types(row, models)
    except IntegrityError as exc:
        problem = exc.what
    for column in ("created_at", "updated_at"):
        try:
            times[column] = parse_time(getattr(row, column), of=f"`{row.name}`", column=f"noa_models.{column}")
        except IntegrityError as exc:  # tells nothing about its versions: they and the other models are listed
            times[column], problem = None, exc.what
    return ModelSummary(
        name=row.name,
        versions=row.version_count,
        newest=row.newest,
        aliases=dict(sorted(held.items())),
        created_at=times["created_at"],
        updated_at=times["updated_at"],
        problem=problem,
    )


def _evidence_name(row: Row[Any]) -> str:
    return f"evidence {row.id} (`{row.kind}` of `{row.subject}`) of `{row.name}/{row.number}`"


def _to_evidence(row: Row[Any]) -> Evidence:
    require_own_types(row, evidence)
    check_record(row, _evidence_name(row), "noa_evidence")
    values = parse_table(row.content, of=_evidence_name(row), column="noa_evidence.content")
    recording = Recording.from_dict(values.pop(RECORDING_KEY, None))
    return Evidence(
        kind=row.kind,
        subject=row.subject,
        digest=row.digest,
        passed=row.passed,
        values=values,
        created_at=parse_time(row.created_at, of=_evidence_name(row), column="noa_evidence.created_at"),
        recording=recording,
    )


def _require_attachment(connection: Connection, digest: str, *, of: str) -> None:
    try:
        load_attachment(connection, digest)
    except NotFoundError:
        change, received = "is missing", "nothing"
    except IntegrityError as exc:
        change, received = "was changed", exc.received
    else:
        return
    raise IntegrityError(
        f"the attachment of {of} {change}",
        expected=digest,
        received=received,
        remedy="Nothing that needs it is promoted; measure again, or import the version from an archive",
        file="noa_attachments",
    )


def _to_version(row: Row[Any], rows: Iterable[Row[Any]], root: Path, held: dict[str, int]) -> ModelVersion:
    require_own_types(row, versions)
    reference = f"{row.name}/{row.number}"
    sealed = {entry.format: _to_format(entry, root, reference) for entry in rows}
    native = sealed.get(row.native)
    signature = _parse_signature(row.signature, f"`{reference}`")
    wrapper = _parse_manifest(row.wrapper, f"`{reference}`", "noa_versions.wrapper")
    digest = _version_digest(
        row.name,
        row.native,
        "" if native is None else native.digest,
        wrapper.digest,
        signature,
        row.dataset_digest,
    )
    if digest != row.digest:
        raise IntegrityError(
            f"the record of `{reference}` was changed", expected=row.digest, received=digest, file="noa_versions"
        )
    check_record(row, f"`{reference}`", "noa_versions")
    return ModelVersion(
        name=row.name,
        number=row.number,
        digest=row.digest,
        native=row.native,
        formats=dict(sorted(sealed.items())),
        wrapper=wrapper,
        signature=signature,
        dataset_digest=row.dataset_digest,
        run_id=row.run_id,
        git_commit=row.git_commit,
        environment=parse_table(row.environment, of=f"`{reference}`", column="noa_versions.environment"),
        params=parse_table(row.params, of=f"`{reference}`", column="noa_versions.params"),
        tags=parse_table(row.tags, of=f"`{reference}`", column="noa_versions.tags"),
        description=row.description,
        created_at=parse_time(row.created_at, of=f"`{reference}`", column="noa_versions.created_at"),
        created_by=row.created_by,
        aliases=tuple(sorted(alias for alias, number in held.items() if number == row.number)),
        folder=root / row.name / row.uid,
        uid=row.uid,
    )


@lru_cache(_CACHED_RECORDS)
def _row_digest(values: tuple[tuple[str, object], ...]) -> str:
    # Without what is empty: a column that a later schema adds must not make old rows look changed.
    return digest_json({name: value for name, value in values if value is not None})


@lru_cache(_CACHED_RECORDS)
def _parse_manifest(text: str, of: str, column: str) -> Manifest:
    try:
        return Manifest.from_json(text)
    except IntegrityError as exc:
        raise unreadable(of, column, received=str(text)[:80]) from exc


@lru_cache(_CACHED_RECORDS)
def _parse_signature(text: str, of: str) -> Signature:
    column = "noa_versions.signature"
    try:
        return Signature.from_dict(parse_table(text, of=of, column=column))
    except InvalidInputError as exc:
        raise unreadable(of, column, received=str(exc)) from exc


@lru_cache(_CACHED_RECORDS)
def _version_digest(
    name: str, native: str, native_digest: str, wrapper_digest: str, signature: Signature, dataset_digest: str
) -> str:
    """Return the digest of a version's record; cached, for it depends on nothing else."""
    return version_digest(
        name=name,
        native=native,
        native_digest=native_digest,
        wrapper_digest=wrapper_digest,
        signature=signature,
        dataset_digest=dataset_digest,
    )


def _to_format(row: Row[Any], root: Path, reference: str) -> SealedFormat:
    require_own_types(row, formats)
    manifest = _parse_manifest(row.manifest, f"`{reference}` in format `{row.format}`", "noa_formats.manifest")
    if manifest.digest != row.digest:
        raise IntegrityError(
            f"the record of `{reference}` in format `{row.format}` was changed",
            expected=row.digest,
            received=manifest.digest,
            file="noa_formats",
        )
    check_record(row, f"`{reference}` in format `{row.format}`", "noa_formats")
    return SealedFormat(
        name=row.format,
        manifest=manifest,
        folder=root / row.name / row.uid / FORMATS_FOLDER / row.format,
        uid=row.uid,
    )
