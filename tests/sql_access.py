"""SQL as any other program could send it, on each kind of database: for tests that change things behind noa's back."""

from __future__ import annotations

from typing import Any

from sqlalchemy import NullPool, create_engine, inspect

from noa.settings import RegistrySettings


def execute_on(settings: RegistrySettings, *statements: str) -> list[tuple[Any, ...]]:
    """Run SQL statements in one transaction on the database of `settings`; return the rows of the last one."""
    engine = create_engine(settings.database_url, poolclass=NullPool)
    rows: list[tuple[Any, ...]] = []
    with engine.begin() as connection:
        for statement in statements:
            result = connection.exec_driver_sql(statement)
            rows = [tuple(row) for row in result] if result.returns_rows else []
    return rows


def tables_of(settings: RegistrySettings) -> set[str]:
    """Return the names of all tables."""
    return set(inspect(create_engine(settings.database_url, poolclass=NullPool)).get_table_names())
