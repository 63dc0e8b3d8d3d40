"""The identity of one registry: a random name that is made once and that everything signed for it carries.

A signature given for the test registry is thereby worth nothing in the one of production, though both know `digits/4`.
"""

from __future__ import annotations

import uuid

from sqlalchemy import Connection, insert, select

from noa_registry.tables import identity


def find_registry_id(connection: Connection) -> str | None:
    """Return the registry's id, or None if nothing has asked for one in a write transaction yet."""
    found = connection.execute(select(identity.c.id)).scalar()
    return None if found is None else str(found)


def registry_id(connection: Connection) -> str:
    """Return the registry's id; made by the first who asks, in the caller's write transaction."""
    found = find_registry_id(connection)
    if found is None:
        found = uuid.uuid4().hex
        connection.execute(insert(identity).values(id=found))
    return found
