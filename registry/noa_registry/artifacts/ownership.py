"""Whose store it is: the mark `_registry.json` at its root names the one registry that writes and removes there.

A unit says nothing about whose it is. Without the mark, two projects that name one place would each take the units of
the other for garbage, and so would the empty database that is made where one was lost. The first who writes into a
store leaves the mark; from then on whoever has another id is refused before anything is written or removed. Reading is
not refused: what is read is compared with digests that the reader's own database holds.

A store from before there were marks is marked by the first writer whose database names at least half of its units. The
mark is looked at once per open store, and not at all by those who only read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from noa.errors import ConflictError, IntegrityError, StorageError
from noa_registry.artifacts.marks import Marks
from noa_registry.artifacts.store import Seals, UnitKey

OWNER_MARK: Final = "_registry.json"
_ID: Final = re.compile(r"[0-9a-f]{32}")
_REMEDY: Final = (
    "Give each project its own `registry.artifact_dir` or `registry.artifact_url`. If this place is the right one, its "
    "database was lost, emptied or replaced: restore a backup of it. If there is none, let the present database have "
    "the store: noa models verify --adopt-store"
)


@dataclass(slots=True)
class Ownership:
    """Compares the mark of a store with the id of the registry that uses it. Safe to share between threads."""

    marks: Marks
    seals: Seals
    units: Callable[[], Iterator[UnitKey]]
    _is_ours: bool = field(default=False, init=False)

    def owner(self) -> str | None:
        """Return the id of the registry whose store this is, None if nobody has written there since there are marks.

        Raises:
            IntegrityError: the mark was changed.
            StorageError: the store does not answer.
        """
        data = self.marks.read(OWNER_MARK)
        if data is None:
            return None
        try:
            return _id_of(json.loads(data)["registry"])
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
        if self._is_ours:
            return True
        owner = self.owner()
        if owner is None:
            return False
        mine = self.seals.registry_id()
        if owner != mine:
            raise ConflictError(
                "the model files here belong to another registry",
                where=self.marks.where(""),
                expected=f"registry {owner}, which the store is marked with",
                received=_text_of(mine),
                remedy=_REMEDY,
            )
        self._is_ours = True
        return True

    def claim(self) -> None:
        """Make sure, before anything is written or removed, that the store is ours; mark it if nobody has.

        Raises:
            ConflictError: it belongs to another registry, or bears no mark and holds mostly units of another.
            StorageError: the store or the database refused.
        """
        if self.refuse_foreign():
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
        self.marks.create(OWNER_MARK, self._ours())
        self.refuse_foreign()  # somebody else may have been faster

    def may_write(self) -> bool:
        """Do as `claim` does, and tell whether it succeeded."""
        try:
            self.claim()
        except (ConflictError, IntegrityError, StorageError):
            return False
        return True

    def take_over(self) -> None:
        """Mark the store as ours, whoever's it was."""
        self.marks.replace(OWNER_MARK, self._ours())
        self._is_ours = True

    def _ours(self) -> bytes:
        return json.dumps({"registry": self.seals.make_registry_id()}).encode() + b"\n"


def _id_of(value: object) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ValueError(value)
    return value


def _text_of(registry: str | None) -> str:
    return "a database that has no id yet: it is new" if registry is None else f"registry {registry}"
