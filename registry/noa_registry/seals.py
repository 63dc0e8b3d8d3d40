"""Whether a unit of model files is part of a version: asked before one is removed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, select

from noa_registry.database import Database
from noa_registry.identity import find_registry_id, registry_id
from noa_registry.tables import formats, versions


@dataclass(frozen=True, slots=True)
class DatabaseSeals:
    """The `Seals` of a registry's database."""

    database: Database

    def registry_id(self) -> str | None:
        """Return the registry's id, None if it has none yet."""
        with self.database.read() as connection:
            return find_registry_id(connection)

    def make_registry_id(self) -> str:
        """Return the registry's id; it gets one if it has none yet."""
        with self.database.write() as connection:
            return registry_id(connection)

    def sealed_uids(self) -> set[str]:
        """Return all units that are part of a version."""
        with self.database.read() as connection:
            return named_uids(connection)

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


def named_uids(connection: Connection) -> set[str]:
    """Return the units that a row names."""
    return {str(row[0]) for table in (versions, formats) for row in connection.execute(select(table.c.uid))}


def _is_named(connection: Connection, uid: str) -> bool:
    queries = (select(table.c.uid).where(table.c.uid == uid) for table in (versions, formats))
    return any(connection.execute(query).first() is not None for query in queries)
