"""Whose store it is: the mark `_registry.json` at its root names the one registry that writes and removes there.

A unit says nothing about whose it is. Without the mark, two projects that name one place would each take the units of
the other for garbage, and so would the empty database that is made where one was lost. The first who writes into a
store leaves the mark; from then on whoever has another id is refused before anything is written or removed. Reading is
not refused: what is read is compared with digests that the reader's own database holds.

A store from before there were marks is marked by the first writer whose database names at least half of its units. The
mark is read before every write of model files: the store may have changed hands while it was open. Where an alias
moves, which writes no model file, it is read again only if its stamp has changed, which costs no request. Those who
only read do not look at it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, cast

from noa.errors import ConflictError, IntegrityError, StorageError
from noa_registry.artifacts.marks import Marks
from noa_registry.artifacts.store import Seals, UnitKey

OWNER_MARK: Final = "_registry.json"
_MOST_BEFORE: Final = 16
_ID: Final = re.compile(r"[0-9a-f]{32}")
_REMEDY: Final = (
    "Give each project its own `registry.artifact_dir` or `registry.artifact_url`. If this place is the right one, its "
    "database was lost, emptied or replaced: restore a backup of it. If there is none, let the present database have "
    "the store: noa models verify --adopt-store"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerMark:
    """What the mark says: whose the store is, whose it was before (oldest first), and when it changed hands last."""

    registry: str
    before: tuple[str, ...] = ()
    adopted_at: datetime | None = None

    def to_bytes(self) -> bytes:
        """Return one line of JSON."""
        value: dict[str, object] = {"registry": self.registry}
        if self.adopted_at is not None:
            value |= {"before": list(self.before), "adopted_at": self.adopted_at.isoformat()}
        return json.dumps(value).encode() + b"\n"


@dataclass(slots=True)
class Ownership:
    """Compares the mark of a store with the id of the registry that uses it. Safe to share between threads."""

    marks: Marks
    seals: Seals
    units: Callable[[], Iterator[UnitKey]]
    _ours_as_of: object = field(default=None, init=False)
    """The stamp of the mark when it was read and was ours, None if it was not."""

    def mark(self) -> OwnerMark | None:
        """Return what the store is marked with, None if nobody has written there since there are marks.

        Raises:
            IntegrityError: the mark was changed.
            StorageError: the store does not answer.
        """
        data = self.marks.read(OWNER_MARK)
        if data is None:
            return None
        try:
            return _read_mark(data)
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise IntegrityError(
                "the mark that says whose store this is was changed",
                where=self.marks.where(OWNER_MARK),
                expected='{"registry": "<32 hexadecimal digits>"}',
                received=ascii(data[:80]),
                remedy="Put it back, or write it anew: noa models verify --adopt-store",
                file=OWNER_MARK,
            ) from exc

    def refuse_foreign(self) -> bool:
        """Raise if the store is another registry's, and tell whether it bears our mark. Writes nothing.

        Raises:
            ConflictError: the store belongs to another registry.
        """
        stamp = self.marks.stamp(OWNER_MARK)
        if stamp is not None and stamp == self._ours_as_of:
            return True
        self._ours_as_of = None
        mark = self.mark()
        if mark is None:
            return False
        owner = mark.registry
        mine = self.seals.registry_id()
        if owner != mine:
            raise ConflictError(
                "the model files here belong to another registry",
                where=self.marks.where(""),
                expected=f"registry {owner}, which the store is marked with",
                received=_text_of(mine),
                remedy=_REMEDY,
            )
        self._ours_as_of = stamp
        return True

    def refuse_foreign_now(self) -> bool:
        """Do as `refuse_foreign` does, and read the mark anew: the store may have changed hands since.

        Raises:
            ConflictError: the store belongs to another registry.
        """
        self._ours_as_of = None
        return self.refuse_foreign()

    def claim(self) -> None:
        """Make sure, before anything is written or removed, that the store is ours; mark it if nobody has.

        Raises:
            ConflictError: it belongs to another registry, or bears no mark and holds mostly units of another.
            StorageError: the store or the database refused.
        """
        if self.refuse_foreign_now():
            return
        units = list(self.units())
        named = self.seals.sealed_uids() if units else set[str]()
        unknown = sum(unit.uid not in named for unit in units)
        if unknown > len(units) - unknown:
            raise ConflictError(
                "the model files here seem to belong to another registry",
                where=self.marks.where(""),
                expected="a store that is empty, or of whose units the database names at least half",
                received=f"{unknown} of {len(units)} units that it does not name",
                remedy=_REMEDY,
            )
        self.marks.create(OWNER_MARK, OwnerMark(registry=self.seals.make_registry_id()).to_bytes())
        self.refuse_foreign()  # somebody else may have been faster

    def may_write(self) -> bool:
        """Do as `claim` does, and tell whether it succeeded."""
        try:
            self.claim()
        except (ConflictError, IntegrityError, StorageError):
            return False
        return True

    def take_over(self, moment: datetime) -> None:
        """Mark the store as ours, whoever's it was; the mark keeps whose."""
        mine = self.seals.make_registry_id()
        try:
            old = self.mark()
        except IntegrityError:  # written anew, unless something that is no file is in its place
            old = None
        before = () if old is None else (*old.before, *((old.registry,) if old.registry != mine else ()))
        mark = OwnerMark(registry=mine, before=before[-_MOST_BEFORE:], adopted_at=moment)
        self.marks.replace(OWNER_MARK, mark.to_bytes())
        self._ours_as_of = None


def _read_mark(data: bytes) -> OwnerMark:
    value = cast("dict[str, object]", json.loads(data))
    registry = _id_of(value["registry"])
    if "adopted_at" not in value:
        return OwnerMark(registry=registry)
    adopted_at = datetime.fromisoformat(cast("str", value["adopted_at"]))
    if adopted_at.tzinfo is None:
        raise ValueError(adopted_at)
    before = cast("list[object]", value["before"])
    return OwnerMark(registry=registry, before=tuple(_id_of(one) for one in before), adopted_at=adopted_at)


def _id_of(value: object) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ValueError(value)
    return value


def _text_of(registry: str | None) -> str:
    return "a database that has no id yet: it is new" if registry is None else f"registry {registry}"
