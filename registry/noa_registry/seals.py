"""Whether a unit of model files is part of a version: asked before one is removed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, select

from noa_registry.database import Database
from noa_registry.tables import formats, versions


@dataclass(frozen=True, slots=True)
class DatabaseSeals:
    """The `Seals` of a registry's database."""

    database: Database

    def is_sealed(self, uid: str) -> bool:
        """Tell whether a unit is part of a version."""
        with self.database.read() as connection:
            return _is_named(connection, uid)

    def unless_sealed(self, uid: str, action: Callable[[], None]) -> bool:
        """Do `action` inside a write transaction, so that nobody seals the unit meanwhile; not if it is sealed."""
        with self.database.write() as connection:
            if _is_named(connection, uid):
                return False
            action()
            return True


def _is_named(connection: Connection, uid: str) -> bool:
    queries = (select(table.c.uid).where(table.c.uid == uid) for table in (versions, formats))
    return any(connection.execute(query).first() is not None for query in queries)
