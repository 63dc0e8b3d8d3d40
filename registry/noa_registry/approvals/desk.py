"""The desk where approvals are granted, listed, revoked, and checked and used up by a promotion.

What is approved is a statement: this version with this digest may become this alias of this registry, says this
principal, until then. With configured principals it is signed, and the signature is verified when a promotion wants to
use it; what the row says beside it does not count. A promotion marks what it used in its own transaction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Connection, Row, false, insert, select, update

from noa.actors import distinct_users, is_same_user, written_user
from noa.digests import canonical_json, sha256_bytes
from noa.errors import ConflictError, IntegrityError, InvalidInputError, NotFoundError
from noa.references import MOST_NUMBER, check_alias, check_name, check_number
from noa_registry.approvals.keys import is_signed_by, load_principals, load_private_key, principal_of, sign
from noa_registry.approvals.values import Approval, ValidApproval
from noa_registry.clock import CLOCK_TOLERANCE, passed_moment
from noa_registry.database import Database, now, to_text
from noa_registry.events.outbox import append_event
from noa_registry.foreign_cells import require_own_types
from noa_registry.identity import find_registry_id, registry_id
from noa_registry.json_columns import parse_time
from noa_registry.records import newest_number, require_version
from noa_registry.tables import approvals, ledger, trash, versions
from noa_registry.versions import ModelVersion
from noa_registry.words import check_actor, check_reason

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_TYPE = "noa-approval-1"
_SAID = ("name", "number", "digest", "alias", "principal", "reason", "created_at", "expires_at")
DEFAULT_LIFETIME = timedelta(hours=24)
_LONGEST = timedelta(days=366)
_IN_TRASH = "is for a version that is in the trash"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the approvals of one version for one alias are worth now: those that count, and why the others do not."""

    valid: tuple[ValidApproval, ...]
    problems: tuple[str, ...]


class ApprovalDesk:
    """Approvals of one registry. `principals` maps names to public keys, as in the settings; empty: nothing is signed.

    Without principals whoever may write the database may write any name: the check is a reminder, not a lock.
    """

    def __init__(
        self, database: Database, *, principals: Mapping[str, str], clock_tolerance: timedelta = CLOCK_TOLERANCE
    ) -> None:
        self._database = database
        self._principals = dict(principals)
        self._clock_tolerance = clock_tolerance

    def grant(
        self,
        name: str,
        number: int,
        *,
        alias: str = "champion",
        principal: str | None = None,
        reason: str,
        expires_in: timedelta = DEFAULT_LIFETIME,
        key: Path | None = None,
    ) -> Approval:
        """Approve that a version becomes `alias`: for its present digest, once, and for a while.

        With configured principals `key` is the file of the approver's private key, and it tells who approves. Without,
        `principal` is believed.

        Raises:
            InvalidInputError: the key is missing, belongs to nobody or to another principal, or an argument is empty.
            NotFoundError: there is no such version.
        """
        check_alias(alias)
        check_reason(reason, expected="why the version may take the alias")
        if not timedelta() < expires_in <= _LONGEST:
            raise InvalidInputError(
                "an approval must end", expected=f"within {_LONGEST.days} days", received=str(expires_in)
            )
        signer = self._signer(principal, key)
        with self._database.write() as connection:
            require_version(connection, check_name(name), number)
            where = (versions.c.name == name, versions.c.number == number)
            moment = now()
            values: dict[str, object] = {
                "name": name,
                "number": number,
                "alias": alias,
                "digest": connection.execute(select(versions.c.digest).where(*where)).scalar_one(),
                "principal": signer.principal,
                "reason": reason,
                "created_at": to_text(moment),
                "expires_at": to_text(moment + expires_in),
            }
            statement = _statement(registry_id(connection), values)
            values["signature"] = signer.sign(statement)
            inserted = connection.execute(insert(approvals).values(**values).returning(approvals.c.id)).scalar_one()
            granted = self._load(connection, inserted)
            append_event(connection, "approval.granted", name=name, payload=_payload(granted))
            return granted

    def list(self, name: str, number: int | None = None, *, alias: str | None = None) -> Sequence[Approval]:
        """Return the approvals of a model or of one version, newest first, whatever they are still worth.

        Raises:
            NotFoundError: there is no such model.
        """
        query = select(approvals).where(approvals.c.name == check_name(name)).order_by(approvals.c.id.desc())
        if number is not None:
            is_possible = 1 <= check_number(number, what="the number of a version") <= MOST_NUMBER
            query = query.where(approvals.c.number == number if is_possible else false())
        if alias is not None:
            query = query.where(approvals.c.alias == check_alias(alias))
        with self._database.read() as connection:
            newest_number(connection, name)  # says so if there is no such model
            facts = self._facts(connection, name)
            return [self._judged(row, facts) for row in connection.execute(query)]

    def usable(
        self, connection: Connection, moment: datetime, *, name: str | None = None, number: int | None = None
    ) -> Sequence[Approval]:
        """Return the approvals that a promotion could use at `moment`: of a version, of a model or all.

        A row that cannot be read is none of them.
        """
        unused = (approvals.c.used_by.is_(None), approvals.c.revoked_at.is_(None))
        query = select(approvals).where(*unused).order_by(approvals.c.id)
        if name is not None:
            query = query.where(approvals.c.name == name)
        if number is not None:
            query = query.where(approvals.c.number == number)
        facts: dict[str, _Facts] = {}
        found: list[Approval] = []
        for row in connection.execute(query).all():
            if row.name not in facts:
                facts[row.name] = self._facts(connection, row.name)
            with suppress(IntegrityError):
                found.append(self._judged(row, facts[row.name]))
        return [approval for approval in found if approval.state(moment) == "open"]

    def revoke(self, approval: int, *, reason: str, actor: str) -> Approval:
        """Take an approval back before it is used; the event tells who did and why.

        Raises:
            NotFoundError: there is no such approval.
            ConflictError: it was used or revoked already.
        """
        check_actor(actor)
        check_reason(reason, expected="why it is taken back; the event tells it")
        with self._database.write() as connection:
            found = self._load(connection, approval)
            if found.used_by is not None or found.revoked_at is not None:
                how = f"used by ledger row {found.used_by}" if found.used_by else f"revoked at {found.revoked_at}"
                raise ConflictError(
                    f"approval {approval} can no longer be revoked",
                    received=how,
                    remedy=f"Move the alias back instead: noa models rollback {found.name}@{found.alias}"
                    if found.used_by
                    else None,
                )
            change = update(approvals).where(approvals.c.id == approval).values(revoked_at=to_text(now()))
            connection.execute(change)
            payload = {**_payload(found), "actor": actor, "reason": reason}
            append_event(connection, "approval.revoked", name=found.name, payload=payload)
            return self._load(connection, approval)

    def standing(self, connection: Connection, version: ModelVersion, alias: str, actor: str | None) -> Standing:
        """Check every approval of a version for an alias, in the caller's transaction.

        `actor` is who promotes and may not approve that; None if nobody promotes yet.
        """
        query = (
            select(approvals)
            .where(approvals.c.name == version.name, approvals.c.number == version.number, approvals.c.alias == alias)
            .order_by(approvals.c.id)
        )
        rows = connection.execute(query).all()
        facts = self._facts(connection, version.name) if rows else None
        passed, latest = passed_moment(connection), now() + self._clock_tolerance
        valid: dict[str, ValidApproval] = {}
        problems: list[str] = []
        for row in rows:
            try:
                approval = self._judged(row, facts)
            except IntegrityError as exc:  # it counts for nothing, and hinders no other one
                problems.append(f"approval {row.id} by {row.principal} cannot be read: {exc.what}")
                continue
            problem = _problem(approval, version.digest, actor, passed)
            if problem is None and approval.created_at > latest:
                problem = f"was granted at {_said(approval.created_at)}, which by the clock here is still to come"
            if problem is not None:
                problems.append(f"approval {approval.id} by {approval.principal} {problem}")
            elif approval.principal not in valid:
                valid[approval.principal] = ValidApproval(
                    id=approval.id,
                    principal=approval.principal,
                    statement=approval.statement,
                    expires_at=approval.expires_at,
                    is_signed=approval.signature is not None,
                )
        people = distinct_users(valid)
        for principal in [name for name in valid if name not in people]:
            left_out = valid.pop(principal)
            same = next(name for name in people if is_same_user(name, principal))
            problems.append(f"approval {left_out.id} by {principal} is by the same person as that by {same}")
        return Standing(valid=tuple(valid.values()), problems=tuple(problems))

    def problem_of_used(
        self, connection: Connection, used: Mapping[str, object], sequence: int, moment: datetime
    ) -> str | None:
        """Return what is wrong with an approval that ledger row `sequence`, of this moment, names, or None."""
        row = connection.execute(select(approvals).where(approvals.c.id == used.get("id"))).one_or_none()
        registry = find_registry_id(connection)
        if row is None:
            return "it is gone"
        try:
            approval = _to_approval(row, registry)
        except IntegrityError as exc:
            return exc.what
        if approval.used_by != sequence:
            return f"it is marked as used by row {approval.used_by}"
        if (approval.statement, approval.principal) != (used.get("statement"), used.get("principal")):
            return "it says something else now"
        if not approval.created_at - self._clock_tolerance <= moment < approval.expires_at + self._clock_tolerance:
            life = f"from {_said(approval.created_at)} to {_said(approval.expires_at)}"
            return f"it held {life}, and the row is of {_said(moment)}"
        # A principal who has left is no longer in the settings: the signature was verified when it was used.
        public = self._keys().get(approval.principal) if approval.signature else None
        if public is not None and not is_signed_by(public, _statement(registry, _plain(row)), str(approval.signature)):
            return "its signature does not verify"
        return None

    def used(self, connection: Connection) -> dict[int, int]:
        """Return which ledger row each used approval names, by the approval's id.

        A cell that holds no number names none: `find_foreign_cells` names it.
        """
        query = select(approvals.c.id, approvals.c.used_by).where(approvals.c.used_by.is_not(None))
        return {int(row[0]): row[1] for row in connection.execute(query) if type(row[1]) is int}

    def use(self, connection: Connection, used: Sequence[ValidApproval], sequence: int) -> None:
        """Mark approvals as used up by a ledger row, in its transaction."""
        for approval in used:
            free = (approvals.c.used_by.is_(None)) & (approvals.c.revoked_at.is_(None))
            change = update(approvals).where(approvals.c.id == approval.id, free).values(used_by=sequence)
            if connection.execute(change).rowcount != 1:  # cannot be: writers go one after the other
                raise ConflictError(f"approval {approval.id} was used by somebody else", received=approval.principal)

    def _judged(self, row: Row[Any], facts: _Facts | None) -> Approval:
        """Return the approval of a row with what makes it void now."""
        approval = _to_approval(row, None if facts is None else facts.registry)
        if facts is None or approval.used_by is not None or approval.revoked_at is not None:
            return approval
        void = facts.problem(approval) or self._signature_problem(approval, row, facts.registry)
        return approval if void is None else replace(approval, void=void)

    @staticmethod
    def _facts(connection: Connection, name: str) -> _Facts:
        """Read what decides whether approvals of a model can be used; the ledger's rows only where there are any."""
        named = select(approvals.c.number).where(approvals.c.name == name)
        digests = select(versions.c.number, versions.c.digest).where(
            versions.c.name == name, versions.c.number.in_(named)
        )
        states = select(trash.c.number, trash.c.state).where(trash.c.name == name, trash.c.number.in_(named))
        moves = select(ledger.c.sequence, ledger.c.verdict).where(ledger.c.name == name, ledger.c.to_number.in_(named))
        used: dict[object, int] = {}
        for sequence, verdict in connection.execute(moves).all():
            for statement in _used_statements(verdict):
                used[statement] = int(sequence)
        return _Facts(
            registry=find_registry_id(connection),
            digests={int(row[0]): str(row[1]) for row in connection.execute(digests)},
            deleted={int(row[0]): str(row[1]) for row in connection.execute(states)},
            used=used,
        )

    def _signature_problem(self, approval: Approval, row: Row[Any], registry: str | None) -> str | None:
        keys = self._keys()
        if not keys:
            return None
        if approval.signature is None:
            return "is not signed"
        public = keys.get(approval.principal)
        if public is None:
            return "is by nobody in [registry.principals]"
        signed = is_signed_by(public, _statement(registry, _plain(row)), approval.signature)
        return None if signed else "has a signature that does not verify"

    def _signer(self, principal: str | None, key: Path | None) -> _Signer:
        keys = self._keys()
        if not keys:
            if key is not None:
                raise InvalidInputError(
                    "this project has no principals, so nobody could verify the signature",
                    remedy="Put the public key into [registry.principals] of `noa.toml`",
                )
            check_actor(principal or "", field="principal")
            return _Signer(principal=written_user(str(principal)), key=None)
        if key is None:
            raise InvalidInputError(
                "approvals of this project must be signed",
                expected=f"the private key of one of {', '.join(sorted(keys))}",
                remedy="Name it with: --key FILE",
            )
        private = load_private_key(key)
        owner = principal_of(private, keys)
        if principal not in (None, owner):
            raise InvalidInputError(
                "the key belongs to another principal", where=str(key), expected=principal, received=owner
            )
        return _Signer(principal=owner, key=private)

    def _keys(self) -> dict[str, Ed25519PublicKey]:
        return load_principals(self._principals)

    @staticmethod
    def _load(connection: Connection, approval: int) -> Approval:
        is_number = 1 <= check_number(approval, what="the number of an approval") <= MOST_NUMBER
        found = select(approvals).where(approvals.c.id == approval)
        row = connection.execute(found).one_or_none() if is_number else None
        if row is None:
            raise NotFoundError(f"no approval {approval}", remedy="List them with: noa models approvals NAME")
        return _to_approval(row, find_registry_id(connection))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What decides whether approvals of one model can be used: its versions, its trash and its ledger."""

    registry: str | None
    digests: Mapping[int, str]
    deleted: Mapping[int, str]
    used: Mapping[object, int]

    def problem(self, approval: Approval) -> str | None:
        """Return why an approval cannot be used as things are, or None."""
        digest = self.digests.get(approval.number)
        if digest is None:
            return "is for a version that is not there"
        if approval.number in self.deleted:
            return "is for a version that was purged" if self.deleted[approval.number] != "trashed" else _IN_TRASH
        if approval.digest != digest:
            return f"is for other bytes, {approval.digest}"
        if approval.statement in self.used:
            return f"was used by ledger row {self.used[approval.statement]}; its own row was changed since"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signer:
    principal: str
    key: Ed25519PrivateKey | None

    def sign(self, statement: bytes) -> str | None:
        return None if self.key is None else sign(self.key, statement)


def _problem(approval: Approval, digest: str, actor: str | None, moment: datetime) -> str | None:
    """Return why an approval does not count for a promotion by `actor` of the version with `digest`, or None."""
    match approval.state(moment):
        case "used":
            return f"was used by ledger row {approval.used_by}"
        case "revoked":
            return "was revoked"
        case "expired":
            return f"expired at {_said(approval.expires_at)}"
        case "void":
            return approval.void
        case "open":
            pass
    if approval.digest != digest:
        return f"is for other bytes, {approval.digest}"
    if actor is not None and is_same_user(approval.principal, actor):
        return "is by the actor: somebody else must approve"
    return None


def _said(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _used_statements(verdict: str) -> list[object]:
    """Return the approvals that a row of the ledger used up; one that is not readable is found by its verification."""
    try:
        table: object = json.loads(verdict)
    except (ValueError, RecursionError):
        return []
    used: object = cast("dict[str, object]", table).get("approvals", []) if isinstance(table, dict) else []
    entries = cast("list[object]", used) if isinstance(used, list) else []
    return [cast("dict[str, object]", one).get("statement") for one in entries if isinstance(one, dict)]


def _statement(registry: str | None, values: Mapping[str, object]) -> bytes:
    """Return the bytes that are signed. `created_at` makes two approvals of the same thing two statements."""
    return canonical_json({"type": _TYPE, "registry": registry, **{key: values[key] for key in _SAID}})


def _plain(row: Row[Any]) -> dict[str, object]:
    return {key: getattr(row, key) for key in _SAID}


def _payload(approval: Approval) -> dict[str, object]:
    return {
        "approval": approval.id,
        "number": approval.number,
        "digest": approval.digest,
        "alias": approval.alias,
        "principal": approval.principal,
        "expires_at": to_text(approval.expires_at),
        "is_signed": approval.signature is not None,
    }


def _to_approval(row: Row[Any], registry: str | None) -> Approval:
    require_own_types(row, approvals)
    return Approval(
        id=row.id,
        name=row.name,
        number=row.number,
        alias=row.alias,
        digest=row.digest,
        principal=row.principal,
        reason=row.reason,
        created_at=approval_time(row, "created_at"),
        expires_at=approval_time(row, "expires_at"),
        statement=sha256_bytes(_statement(registry, _plain(row))),
        signature=row.signature,
        used_by=row.used_by,
        revoked_at=None if row.revoked_at is None else approval_time(row, "revoked_at"),
    )


def approval_time(row: Row[Any], column: str) -> datetime:
    """Return a time of a row of `noa_approvals`.

    Raises:
        IntegrityError: it cannot be read.
    """
    return parse_time(
        getattr(row, column),
        of=f"approval {row.id} of `{row.name}/{row.number}`",
        column=f"noa_approvals.{column}",
        remedy="It counts for nothing; approve anew with `noa models approve`, or restore a backup of the database",
    )
