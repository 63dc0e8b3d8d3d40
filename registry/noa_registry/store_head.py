"""The newest row of the ledger as the store remembers it, in `_ledger.json` at its root.

A database that does not have this row is older than its store: a backup was restored, and moves of aliases are lost.
No alias moves in such a database, so that the ledger is not forked, until somebody takes it as it is. Else the mark is
a help and no lock: a move whose mark could not be written counts all the same, and the next one writes it.
Who must be sure that nobody wrote a new ledger keeps anchors elsewhere (`ledger_anchors.py`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, select

from noa.digests import canonical_json
from noa.errors import ConflictError, IntegrityError
from noa_registry.artifacts.ownership import Ownership
from noa_registry.database import Database
from noa_registry.identity import find_registry_id
from noa_registry.ledger_anchors import LedgerHead, head_of, parse_head
from noa_registry.records import last_entry, load_entry
from noa_registry.tables import ledger

LEDGER_MARK: Final = "_ledger.json"
log = logging.getLogger("noa.registry")


@dataclass(frozen=True, slots=True)
class StoreHead:
    """Writes and reads the mark of one store."""

    database: Database
    ownership: Ownership

    def find(self) -> LedgerHead | None:
        """Return the newest row that the store remembers, None if it remembers none or what it says is no row.

        Raises:
            IntegrityError: something else is in the place of the mark.
            StorageError: the store does not answer.
        """
        data = self._read()
        try:
            return None if data is None else parse_head(data, LEDGER_MARK)
        except IntegrityError:
            return None

    def find_lost_move(self) -> IntegrityError | None:
        """Return what is wrong if the store remembers a move of this registry that the database does not know.

        Raises:
            IntegrityError: something else is in the place of the mark.
            StorageError: the store does not answer.
        """
        kept = self.find()  # before the database is read: a row is committed before it is remembered
        with self.database.read() as connection:
            if kept is None or kept.registry != find_registry_id(connection) or has_row(connection, kept):
                return None
            last = last_entry(connection)
        return IntegrityError(
            "the store remembers a move of an alias that the database does not know: was an older backup restored?",
            where=self.ownership.marks.where(LEDGER_MARK),
            expected=f"row {kept.sequence} of the ledger, of {kept.created_at.isoformat(timespec='seconds')}, with "
            f"the hash {kept.hash}",
            received="an empty ledger" if last is None else f"a ledger of {last[0]} rows without it",
            remedy="Restore the newest backup of the database. If there is none, look where the aliases are, and "
            "take the database as it is: noa models verify --adopt-store",
        )

    def require_readable(self) -> None:
        """Raise if the store remembers something that nobody can read.

        Raises:
            ConflictError: what it remembers is no row of a ledger.
        """
        data = self._read()
        try:
            if data is not None:
                parse_head(data, LEDGER_MARK)
        except IntegrityError as exc:
            raise ConflictError(
                "nobody can tell whether the database is older than the store: the mark of the ledger was changed",
                where=self.ownership.marks.where(LEDGER_MARK),
                expected=exc.expected,
                received=exc.received,
                remedy="If the database is the newest, promote what is live again: that writes the mark anew",
            ) from exc

    def _read(self) -> bytes | None:
        data = self.ownership.marks.read(LEDGER_MARK)
        return data if data and data.strip() else None

    def keep(self, head: LedgerHead) -> None:
        """Remember a row that was just written, unless the store knows a newer one or one that is missing here.

        Raises nothing: the move is committed, whatever is wrong with the mark.
        """
        try:
            if not self.ownership.refuse_foreign():
                self.ownership.claim()
            kept = self.find()
            if kept is not None:
                with self.database.read() as connection:
                    if kept.sequence >= head.sequence or not has_row(connection, kept):
                        return
            self._write(head)
        except Exception as exc:  # noqa: BLE001  # who promoted must not be told that it failed
            log.warning("the store does not remember row %d of the ledger: %s", head.sequence, exc)

    def reset(self) -> None:
        """Remember the present end of the ledger, whatever was remembered before."""
        with self.database.snapshot() as connection:
            last = last_entry(connection)
            head = None if last is None else head_of(load_entry(connection, last[0]), find_registry_id(connection))
        self._write(head)

    def _write(self, head: LedgerHead | None) -> None:
        self.ownership.marks.replace(LEDGER_MARK, b"\n" if head is None else canonical_json(head.to_dict()) + b"\n")


def has_row(connection: Connection, head: LedgerHead) -> bool:
    """Tell whether the ledger has this very row."""
    return connection.execute(select(ledger.c.hash).where(ledger.c.sequence == head.sequence)).scalar() == head.hash
