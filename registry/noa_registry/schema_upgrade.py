"""noa's tables, brought to this noa's schema inside the caller's transaction. Imported only when that is needed.

Alembic makes and changes the tables; its own table is `noa_alembic_version`, since `alembic_version` is MLflow's. What
is derived (triggers, the index of search, the stacks of aliases) is made anew from what it is derived from.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from noa_registry import alias_stack
from noa_registry.search.indexing import rebuild_index
from noa_registry.tables import schema, versions
from noa_registry.triggers import create_triggers, drop_triggers

VERSION_TABLE = "noa_alembic_version"
MIGRATIONS = Path(__file__).parent / "migrations"
_FIRST = "0001"


def lift_for_upgrade(connection: Connection) -> None:
    """Take away the mark of a complete database, and the triggers: MLflow's tables are about to change."""
    drop_triggers(connection)
    connection.execute(schema.delete())


def upgrade_tables(connection: Connection) -> None:
    """Bring noa's tables and triggers to this noa's schema."""
    drop_triggers(connection)
    before = _revision(connection)
    if before is None and inspect(connection).has_table(versions.name):
        before = _FIRST  # made before Alembic kept the books
        migrate(connection, _FIRST, only_mark=True)
    migrate(connection)
    if _revision(connection) != before:
        rebuild_index(connection)
        alias_stack.rebuild(connection)
    create_triggers(connection)


def migrate(connection: Connection, revision: str = "head", *, only_mark: bool = False) -> None:
    """Run the revisions up to `revision` in the caller's transaction, or only write down that they were run."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    (command.stamp if only_mark else command.upgrade)(config, revision)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
