"""The trash: a deleted version is hidden at once, can be restored for a while, and its number is never used again.

A row in `noa_trash` makes a version invisible; restoring it removes the row. MLflow's row changes in the same
transaction, so stock clients see the version go and come back. Files stay until the garbage collector purges them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal, TypeAlias, cast

from sqlalchemy import Connection, Row, delete, insert, select, update

from noa.errors import ConflictError, InvalidInputError, NotFoundError
from noa.references import MOST_NUMBER, check_number
from noa_registry import mlflow_rows
from noa_registry.approvals.desk import ApprovalDesk
from noa_registry.database import to_text
from noa_registry.events.outbox import append_event
from noa_registry.json_columns import parse_time
from noa_registry.records import model_not_found, require_version, restorable_numbers, version_deleted
from noa_registry.retention.reach import Hold, find_holds
from noa_registry.tables import models, trash, versions

_MOST_NUMBERS: Final = 10
TrashState: TypeAlias = Literal["trashed", "purging", "purged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrashedVersion:
    """A deleted version. `purge_after` is when its files may go; `purged_at` when they went, None until then."""

    name: str
    number: int
    digest: str
    state: TrashState
    reason: str
    deleted_by: str
    deleted_at: datetime
    purge_after: datetime
    purged_at: datetime | None

    @property
    def reference(self) -> str:
        """Return e.g. `digits/3`."""
        return f"{self.name}/{self.number}"


def move_to_trash(
    connection: Connection,
    name: str,
    number: int,
    *,
    reason: str,
    actor: str,
    grace: timedelta,
    approvals: ApprovalDesk,
    endpoints: Mapping[str, str],
    moment: datetime,
) -> None:
    """Delete a version in the caller's write transaction.

    Raises:
        NotFoundError: there is no such version, or it is deleted already.
        ConflictError: something needs it; `facts["holds"]` says what.
    """
    if grace < timedelta(0):
        raise InvalidInputError("the grace period is negative", expected="0 or more days", received=str(grace))
    require_version(connection, name, number)
    refuse_held(
        name, number, find_holds(connection, name, number, approvals=approvals, endpoints=endpoints, moment=moment)
    )
    purge_after = to_text(moment + grace)
    connection.execute(
        insert(trash).values(
            name=name,
            number=number,
            state="trashed",
            reason=reason,
            deleted_by=actor,
            deleted_at=to_text(moment),
            purge_after=purge_after,
        )
    )
    mlflow_rows.hide_version(connection, name=name, number=number)
    connection.execute(update(models).where(models.c.name == name).values(updated_at=to_text(moment)))
    payload = {"number": number, "reason": reason, "actor": actor, "purge_after": purge_after}
    append_event(connection, "version.trashed", name=name, payload=payload)


def take_from_trash(connection: Connection, name: str, number: int, *, actor: str, moment: datetime) -> None:
    """Restore a deleted version in the caller's write transaction; MLflow's row is the caller's to bring back.

    Raises:
        NotFoundError: there is no such version, or its files are gone.
        ConflictError: it is not deleted.
    """
    is_possible = 1 <= check_number(number, what=f"the number of a version of `{name}`") <= MOST_NUMBER
    row = find_trashed(connection, name, number) if is_possible else None
    if row is None:
        found = select(versions.c.number).where(versions.c.name == name, versions.c.number == number)
        if not is_possible or connection.execute(found).one_or_none() is None:
            raise _nothing_to_restore(connection, name, number)
        raise ConflictError(f"`{name}/{number}` is not in the trash", remedy="There is nothing to restore")
    if row.state != "trashed":
        raise version_deleted(name, number, row)
    connection.execute(delete(trash).where(trash.c.name == name, trash.c.number == number))
    connection.execute(update(models).where(models.c.name == name).values(updated_at=to_text(moment)))
    append_event(connection, "version.restored", name=name, payload={"number": number, "actor": actor})


def load_trash(
    connection: Connection, name: str | None, *, with_purged: bool, number: int | None = None
) -> list[TrashedVersion]:
    """Return deleted versions, the newest deletion first: all, of one model, or one version of it.

    Raises:
        IntegrityError: a time of one cannot be read.
    """
    query = (
        select(trash, versions.c.digest)
        .join(versions, (versions.c.name == trash.c.name) & (versions.c.number == trash.c.number))
        .order_by(trash.c.deleted_at.desc(), trash.c.name, trash.c.number.desc())
    )
    if name is not None:
        query = query.where(trash.c.name == name)
    if number is not None:
        query = query.where(trash.c.number == number)
    if not with_purged:
        query = query.where(trash.c.state != "purged")
    return [_to_trashed(row) for row in connection.execute(query)]


def find_trashed(connection: Connection, name: str, number: int) -> Row[Any] | None:
    """Return the row of a version in the trash, or None."""
    return connection.execute(select(trash).where(trash.c.name == name, trash.c.number == number)).one_or_none()


def refuse_held(name: str, number: int, holds: Sequence[Hold]) -> None:
    """Raise `ConflictError` if something needs a version."""
    if not holds:
        return
    raise ConflictError(
        f"`{name}/{number}` is in use and cannot be deleted",
        expected="a version that nothing needs",
        received="; ".join(str(hold) for hold in holds),
        remedy=". ".join(dict.fromkeys(hold.release for hold in holds)),
        holds=tuple(holds),
    )


def _nothing_to_restore(connection: Connection, name: str, number: int) -> NotFoundError:
    """Return the error that says which versions of a model can be taken out of the trash."""
    if connection.execute(select(versions.c.number).where(versions.c.name == name).limit(1)).first() is None:
        return model_not_found(connection, name)
    in_trash = restorable_numbers(connection, name)
    there = ", ".join(f"`{name}/{one}`" for one in in_trash[:_MOST_NUMBERS])
    more = f" or one of {len(in_trash) - _MOST_NUMBERS} others" if len(in_trash) > _MOST_NUMBERS else ""
    return NotFoundError(
        f"no version {number} of model `{name}` is in the trash",
        expected=f"{there}{more}" if there else "a deleted version; none of this model can be restored",
        received=f"`{name}/{number}`",
        remedy=f"List them with: noa models list {name} --trash"
        if there
        else f"List what is there with: noa models list {name}",
    )


def _to_trashed(row: Row[Any]) -> TrashedVersion:
    return TrashedVersion(
        name=row.name,
        number=row.number,
        digest=row.digest,
        state=cast("TrashState", row.state),
        reason=row.reason,
        deleted_by=row.deleted_by,
        deleted_at=trash_time(row, "deleted_at"),
        purge_after=trash_time(row, "purge_after"),
        purged_at=None if row.purged_at is None else trash_time(row, "purged_at"),
    )


def trash_time(row: Row[Any], column: str) -> datetime:
    """Return a time of a row of the trash.

    Raises:
        IntegrityError: it cannot be read; the files stay as long as nobody knows for how long they should.
    """
    reference = f"{row.name}/{row.number}"
    remedy = f"Nothing of it is removed; take it out with `noa models restore {reference}` and delete it anew"
    if row.state != "trashed":
        remedy = "Its files are gone; restore a backup of the database if you need to know when"
    of = f"`{reference}` in the trash"
    return parse_time(getattr(row, column), of=of, column=f"noa_trash.{column}", remedy=remedy)
