"""Digests as people type them: at least eight digits, which is enough if only one digest begins so.

`sha256:` in front says that it is one; without that, a model of this name comes first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from sqlalchemy import ColumnElement, Connection, and_, select

from noa.errors import InvalidInputError, NotFoundError
from noa_registry.records import not_trashed
from noa_registry.tables import formats, trash, version_labels, versions

DIGEST: Final = "sha256:"
_SHORTEST = 8
_TEXT = re.compile(r"sha256:[0-9a-f]{8,64}")
_BARE = re.compile(r"[0-9a-fA-F]{8,64}")
_BEYOND_DIGITS = "g"
_MOST_SHOWN = 5


def is_bare(text: str) -> bool:
    """Tell whether `text` looks like a digest without its algorithm, as columns and labels show the first digits of."""
    return _BARE.fullmatch(text) is not None


def complete_digest(connection: Connection, text: str) -> str:
    """Return the only digest of data, a version or a format that begins with `text`.

    Raises:
        InvalidInputError: it is too short, or no digest; or several begin so, which are named.
        NotFoundError: none begins so.
    """
    begin = _checked(text)
    is_data = version_labels.c.key == "dataset"
    found = {
        *_beginning(connection, version_labels.c.value, begin, is_data),
        *_beginning(connection, versions.c.digest, begin),
        *_beginning(connection, formats.c.digest, begin),
    }
    return _only(found, begin, what="digest", nothing="no dataset, version or format has this digest")


def find_version(connection: Connection, text: str) -> tuple[str, int]:
    """Return name and number of the only version whose digest, or that of one of its formats, begins with `text`.

    Raises:
        InvalidInputError: it is too short, or no digest; or several versions have it, which are named.
        NotFoundError: none has it.
    """
    begin = _checked(text)
    in_trash = select(trash.c.number).where(trash.c.name == formats.c.name, trash.c.number == formats.c.number)
    queries = (
        select(versions.c.name, versions.c.number).where(_begins(versions.c.digest, begin), not_trashed()),
        select(formats.c.name, formats.c.number).where(_begins(formats.c.digest, begin), ~in_trash.exists()).distinct(),
    )
    found = {
        (str(row[0]), int(row[1])) for query in queries for row in connection.execute(query.limit(_MOST_SHOWN + 1))
    }
    texts = {f"{name}/{number}": (name, number) for name, number in sorted(found)}
    return texts[_only(texts, begin, what="version", nothing="no version and no format has this digest")]


def _checked(text: str) -> str:
    begin = text.lower() if not is_bare(text) else f"{DIGEST}{text.lower()}"
    if not _TEXT.fullmatch(begin):
        raise InvalidInputError(
            f"`{text[:80]}` is no digest, and no beginning of one",
            expected=f"`{DIGEST}` and {_SHORTEST} to 64 hexadecimal digits",
            received=f"`{text[:80]}`",
        )
    return begin


def _beginning(
    connection: Connection, column: ColumnElement[str], begin: str, *where: ColumnElement[bool]
) -> list[str]:
    query = select(column).where(_begins(column, begin), *where).distinct().order_by(column).limit(_MOST_SHOWN + 1)
    return [str(row[0]) for row in connection.execute(query)]


def _begins(column: ColumnElement[str], begin: str) -> ColumnElement[bool]:
    return and_(column >= begin, column < begin + _BEYOND_DIGITS)


def _only(found: Iterable[str], begin: str, *, what: str, nothing: str) -> str:
    names = sorted(found)
    if not names:
        raise NotFoundError(nothing, received=begin, remedy="Digests are shown by: noa models show NAME/NUMBER")
    if len(names) > 1:
        more = ", and more" if len(names) > _MOST_SHOWN else ""
        raise InvalidInputError(
            f"`{begin}` is not one {what} alone",
            expected=f"enough of it to mean one {what}; or a version by its number",
            received=", ".join(f"`{name}`" for name in names[:_MOST_SHOWN]) + more,
        )
    return names[0]
