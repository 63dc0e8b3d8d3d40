"""Keys of the advisory locks that noa takes in a PostgreSQL database."""

from __future__ import annotations

from typing import Final

WRITE_LOCK: Final = 0x6E6F61_01
"""Held by a writer until its transaction ends."""
SCHEMA_LOCK: Final = 0x6E6F61_02
"""Held by a process while it creates or upgrades the tables."""
