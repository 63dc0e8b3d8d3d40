"""Where the database is: a URL that was checked once, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from sqlalchemy import exc
from sqlalchemy.engine import URL, make_url

from noa.database_urls import mask_password
from noa.errors import SettingsError

Dialect: TypeAlias = Literal["sqlite", "postgresql"]
_EXAMPLES = "a SQLite file (sqlite:////path/noa.db) or a PostgreSQL database (postgresql://user@host/database)"
_POSTGRES_DRIVERS = ("postgresql", "postgresql+psycopg")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DatabaseUrl:
    """A database that this registry can use. `str()` hides the password, `render()` does not."""

    dialect: Dialect
    address: URL

    @property
    def file(self) -> Path:
        """The file of a SQLite database."""
        if self.dialect != "sqlite" or self.address.database is None:
            raise ValueError(f"{self} is not a file")  # a mistake of ours, not of a user
        return Path(self.address.database)

    def render(self) -> str:
        """Return the URL by which SQLAlchemy and stock MLflow open the same database, with its password."""
        return self.address.render_as_string(hide_password=False)

    def __repr__(self) -> str:
        return f"DatabaseUrl({mask_password(self.render())!r})"

    def __str__(self) -> str:
        return str(self.file) if self.dialect == "sqlite" else mask_password(self.render())


def parse_database_url(url: str) -> DatabaseUrl:
    """Check a URL from the settings.

    Raises:
        SettingsError: it is malformed, or names a database that this registry cannot use. Never shows a password.
    """
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError) as error:
        raise SettingsError(
            "`registry.database_url` is not a database URL", expected=_EXAMPLES, received=mask_password(url)
        ) from (error if mask_password(url) == url else None)  # the parser's message quotes the URL
    if parsed.drivername in _POSTGRES_DRIVERS:
        return _postgres(parsed, url)
    if parsed.drivername == "sqlite" and parsed.database and parsed.database != ":memory:" and not parsed.query:
        return DatabaseUrl(dialect="sqlite", address=URL.create("sqlite", database=str(_absolute(parsed.database))))
    raise SettingsError(
        "`registry.database_url` names a database that this registry cannot use",
        expected=_EXAMPLES,
        received=mask_password(url),
    )


def _postgres(parsed: URL, url: str) -> DatabaseUrl:
    if not parsed.database:
        raise SettingsError(
            "`registry.database_url` names no database", expected=_EXAMPLES, received=mask_password(url)
        )
    if "@" in f"{parsed.host}{parsed.database}":
        raise SettingsError(
            "the password in `registry.database_url` holds characters that must be percent-encoded",
            received=mask_password(url),
            remedy="Write %40 for @, %2F for /, %3A for : and %25 for %",
        )
    return DatabaseUrl(dialect="postgresql", address=parsed.set(drivername="postgresql+psycopg"))


def _absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()
