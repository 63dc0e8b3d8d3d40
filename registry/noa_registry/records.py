"""Records: rows of noa's tables to values and back. Those about sealed bytes are checked against their digest."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Connection, Integer, Row, bindparam, func, insert, select

from noa.digests import Manifest, canonical_json, digest_json
from noa.errors import IntegrityError, NotFoundError
from noa.signatures import Signature
from noa_registry.artifacts import FORMATS_FOLDER
from noa_registry.database import to_text
from noa_registry.evidence import Evidence, plain_json
from noa_registry.ledger import Action, LedgerEntry
from noa_registry.tables import aliases, evidence, formats, ledger, models, versions
from noa_registry.versions import ModelSummary, ModelVersion, SealedFormat

_PAGE = 1000
_CACHED_RECORDS = 1024
# Built once: composing a statement costs more than running it.
_ALIASES_OF = select(aliases.c.alias, aliases.c.number).where(aliases.c.name == bindparam("name"))
_VERSION = select(versions).where(
    versions.c.name == bindparam("name"), versions.c.number == bindparam("number", type_=Integer)
)
_FORMATS_OF = select(formats).where(
    formats.c.name == bindparam("name"), formats.c.number == bindparam("number", type_=Integer)
)


def version_digest(
    *, name: str, native: str, native_digest: str, wrapper_digest: str, signature: Signature, dataset_digest: str
) -> str:
    """Return the name of what a version computes and from which data; formats added later do not change it."""
    return digest_json(
        {
            "name": name,
            "native": native,
            "native_digest": native_digest,
            "wrapper_digest": wrapper_digest,
            "signature": signature.to_dict(),
            "dataset_digest": dataset_digest,
        }
    )


def load_aliases(connection: Connection, name: str) -> dict[str, int]:
    """Return the version number that each alias of a model points to."""
    return {str(row[0]): int(row[1]) for row in connection.execute(_ALIASES_OF, {"name": name})}


def load_version(
    connection: Connection, root: Path, name: str, number: int, *, held: dict[str, int] | None = None
) -> ModelVersion:
    """Return one version. `held` are the model's aliases, if the caller has read them already.

    Raises:
        NotFoundError: there is no such version; the message says what there is.
        IntegrityError: the rows were changed.
    """
    key = {"name": name, "number": number}
    row = connection.execute(_VERSION, key).one_or_none()
    if row is None:
        raise version_not_found(connection, name, number)
    rows = connection.execute(_FORMATS_OF, key).all()
    return _to_version(row, rows, root, load_aliases(connection, name) if held is None else held)


def load_versions(connection: Connection, root: Path, name: str, *, limit: int, offset: int) -> list[ModelVersion]:
    """Return versions of one model, newest first."""
    query = (
        select(versions).where(versions.c.name == name).order_by(versions.c.number.desc()).limit(limit).offset(offset)
    )
    rows = connection.execute(query).all()
    if not rows:
        newest_number(connection, name)
        return []
    held = load_aliases(connection, name)
    by_number: defaultdict[int, list[Row[Any]]] = defaultdict(list)
    between = formats.c.number.between(rows[-1].number, rows[0].number)
    for row in connection.execute(select(formats).where(formats.c.name == name, between)):
        by_number[row.number].append(row)
    return [_to_version(row, by_number[row.number], root, held) for row in rows]


def load_numbers(connection: Connection, name: str) -> list[int]:
    """Return the numbers of all versions of a model, oldest first.

    Raises:
        NotFoundError: there is no such model.
    """
    query = select(versions.c.number).where(versions.c.name == name).order_by(versions.c.number)
    numbers = [int(row.number) for row in connection.execute(query)]
    if not numbers:
        raise model_not_found(connection, name)
    return numbers


def newest_number(connection: Connection, name: str) -> int:
    """Return the number of the newest version.

    Raises:
        NotFoundError: there is no such model.
    """
    number = connection.execute(select(func.max(versions.c.number)).where(versions.c.name == name)).scalar()
    if number is None:
        raise model_not_found(connection, name)
    return int(number)


def load_summaries(connection: Connection) -> list[ModelSummary]:
    """Return one line per model, by name."""
    held: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for row in connection.execute(select(aliases.c.name, aliases.c.alias, aliases.c.number)):
        held[row.name][row.alias] = row.number
    counted = (
        select(
            models, func.count(versions.c.number).label("version_count"), func.max(versions.c.number).label("newest")
        )
        .join(versions, versions.c.name == models.c.name)
        .group_by(models.c.name)
        .order_by(models.c.name)
    )
    return [
        ModelSummary(
            name=row.name,
            versions=row.version_count,
            newest=row.newest,
            aliases=dict(sorted(held[row.name].items())),
            created_at=datetime.fromisoformat(row.created_at),
            updated_at=datetime.fromisoformat(row.updated_at),
        )
        for row in connection.execute(counted).all()
    ]


def insert_evidence(connection: Connection, name: str, number: int, facts: Sequence[Evidence]) -> None:
    """Append evidence in the given order."""
    rows = [
        {
            "name": name,
            "number": number,
            "kind": fact.kind,
            "subject": fact.subject,
            "digest": fact.digest,
            "passed": fact.passed,
            "content": to_json(fact.values),
            "created_at": to_text(fact.created_at),
        }
        for fact in facts
    ]
    if rows:
        connection.execute(insert(evidence), rows)


def load_evidence(connection: Connection, name: str, number: int) -> list[Evidence]:
    """Return all evidence of a version in the order in which it was attached."""
    query = select(evidence).where(evidence.c.name == name, evidence.c.number == number).order_by(evidence.c.id)
    return [
        Evidence(
            kind=row.kind,
            subject=row.subject,
            digest=row.digest,
            passed=row.passed,
            values=from_json(row.content),
            created_at=datetime.fromisoformat(row.created_at),
        )
        for row in connection.execute(query)
    ]


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
    return [_to_entry(row) for row in connection.execute(query)]


def iterate_ledger(connection: Connection) -> Iterator[LedgerEntry]:
    """Give the whole ledger, oldest first, in pages."""
    last: int | None = None
    while True:
        query = select(ledger).order_by(ledger.c.sequence).limit(_PAGE)
        rows = connection.execute(query if last is None else query.where(ledger.c.sequence > last)).all()
        if not rows:
            return
        yield from (_to_entry(row) for row in rows)
        last = rows[-1].sequence


def load_moves(connection: Connection, name: str, alias: str) -> list[tuple[Action, int]]:
    """Return what happened to one alias, oldest first: the action and the version it led to."""
    query = (
        select(ledger.c.action, ledger.c.to_number)
        .where(ledger.c.name == name, ledger.c.alias == alias)
        .order_by(ledger.c.sequence)
    )
    return [(cast("Action", row[0]), int(row[1])) for row in connection.execute(query)]


def last_entry(connection: Connection) -> tuple[int, str] | None:
    """Return sequence number and hash of the newest row of the ledger."""
    query = select(ledger.c.sequence, ledger.c.hash).order_by(ledger.c.sequence.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return None if row is None else (int(row[0]), str(row[1]))


def load_entry(connection: Connection, sequence: int) -> LedgerEntry:
    """Return one row of the ledger.

    Raises:
        IntegrityError: it is gone.
    """
    row = connection.execute(select(ledger).where(ledger.c.sequence == sequence)).one_or_none()
    if row is None:
        raise IntegrityError("a row of the ledger is missing", where=f"row {sequence}", sequence=sequence)
    return _to_entry(row)


def version_not_found(connection: Connection, name: str, number: int) -> NotFoundError:
    """Return the error that says which versions there are."""
    newest = newest_number(connection, name)
    return NotFoundError(
        f"no version {number} of model `{name}`",
        expected=f"a version up to {newest}",
        received=f"`{name}/{number}`",
        remedy=f"List them with: noa models show {name}",
        newest=newest,
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


def from_json(text: str) -> dict[str, Any]:
    """Parse what `to_json` wrote."""
    return cast("dict[str, Any]", json.loads(text))


def _to_version(row: Row[Any], rows: Iterable[Row[Any]], root: Path, held: dict[str, int]) -> ModelVersion:
    reference = f"{row.name}/{row.number}"
    sealed = {entry.format: _to_format(entry, root, reference) for entry in rows}
    native = sealed.get(row.native)
    signature, wrapper, digest = _parse_version(
        row.name,
        row.native,
        "" if native is None else native.digest,
        row.wrapper,
        row.signature,
        row.dataset_digest,
    )
    if digest != row.digest:
        raise IntegrityError(
            f"the record of `{reference}` was changed", expected=row.digest, received=digest, file="noa_versions"
        )
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
        environment=from_json(row.environment),
        params=from_json(row.params),
        tags=from_json(row.tags),
        description=row.description,
        created_at=datetime.fromisoformat(row.created_at),
        created_by=row.created_by,
        aliases=tuple(sorted(alias for alias, number in held.items() if number == row.number)),
        folder=root / row.name / row.uid,
    )


@lru_cache(_CACHED_RECORDS)
def _parse_manifest(text: str) -> Manifest:
    return Manifest.from_json(text)


@lru_cache(_CACHED_RECORDS)
def _parse_version(
    name: str, native: str, native_digest: str, wrapper_text: str, signature_text: str, dataset_digest: str
) -> tuple[Signature, Manifest, str]:
    """Return signature, wrapper and digest of a version's record; cached, for it depends on nothing else."""
    signature, wrapper = Signature.from_dict(json.loads(signature_text)), Manifest.from_json(wrapper_text)
    digest = version_digest(
        name=name,
        native=native,
        native_digest=native_digest,
        wrapper_digest=wrapper.digest,
        signature=signature,
        dataset_digest=dataset_digest,
    )
    return signature, wrapper, digest


def _to_format(row: Row[Any], root: Path, reference: str) -> SealedFormat:
    manifest = _parse_manifest(row.manifest)
    if manifest.digest != row.digest:
        raise IntegrityError(
            f"the record of `{reference}` in format `{row.format}` was changed",
            expected=row.digest,
            received=manifest.digest,
            file="noa_formats",
        )
    return SealedFormat(
        name=row.format, manifest=manifest, folder=root / row.name / row.uid / FORMATS_FOLDER / row.format
    )


def _to_entry(row: Row[Any]) -> LedgerEntry:
    return LedgerEntry(
        sequence=row.sequence,
        name=row.name,
        alias=row.alias,
        action=row.action,
        from_number=row.from_number,
        to_number=row.to_number,
        from_digest=row.from_digest,
        to_digest=row.to_digest,
        actor=row.actor,
        reason=row.reason,
        verdict=from_json(row.verdict),
        created_at=datetime.fromisoformat(row.created_at),
        previous_hash=row.previous_hash,
        hash=row.hash,
    )
