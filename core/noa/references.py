"""References: how people name a version, `digits@champion` or `digits/3`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from noa.errors import InvalidInputError

MOST_NUMBER: Final = (1 << 31) - 1
"""The largest number that the databases hold."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,127}")
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReference:
    """A model by name, and one of its versions by number or by alias (neither: the model itself)."""

    name: str
    number: int | None = None
    alias: str | None = None

    def __str__(self) -> str:
        if self.alias is not None:
            return f"{self.name}@{self.alias}"
        return self.name if self.number is None else f"{self.name}/{self.number}"


def parse_reference(text: str) -> ModelReference:
    """Parse `name`, `name@alias` or `name/number`.

    Raises:
        InvalidInputError: the text is none of them.
    """
    _check_text(text, field="reference", expected="`name@alias` or `name/number`")
    name, mark, rest = text.partition("@")
    if mark:
        return ModelReference(name=check_name(name), alias=check_alias(rest))
    name, mark, rest = text.partition("/")
    if not mark:
        return ModelReference(name=check_name(name))
    if not rest.isascii() or not rest.isdecimal() or len(rest) > 9 or int(rest) < 1:
        raise InvalidInputError(
            f"`{text}` does not name a version", expected="`name@alias` or `name/number`", received=f"number `{rest}`"
        )
    return ModelReference(name=check_name(name), number=int(rest))


def check_name(name: str) -> str:
    """Return `name` if it may name a model, endpoint or recipe.

    Raises:
        InvalidInputError: it has other characters, or is too long. Names become folders and URLs.
    """
    _check_text(name, field="name", expected="a text")
    if not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"`{name}` cannot be a name",
            expected="a letter, then up to 127 letters, digits, `_`, `.` or `-`",
            received=repr(name),
        )
    return name


def check_number(number: object, *, what: str) -> int:
    """Return the number of a version or a row; one that is too large for any is a number too.

    Raises:
        InvalidInputError: it is something else that compares like one (`True`, `1.0`), or a text.
    """
    if isinstance(number, bool) or not isinstance(number, int):
        raise InvalidInputError(
            f"{what} is no whole number", expected="a whole number", received=f"{type(number).__name__} {number!r}"
        )
    return number


def check_alias(alias: str) -> str:
    """Return `alias` if it may name an alias.

    Raises:
        InvalidInputError: it has other characters, is too long, or reads like a version number (`v3`, `latest`).
    """
    _check_text(alias, field="alias", expected="a text")
    if not _ALIAS.fullmatch(alias) or re.fullmatch(r"v\d+", alias) or alias == "latest":
        raise InvalidInputError(
            f"`{alias}` cannot be an alias",
            expected="a small letter, then small letters, digits, `_` or `-`; not `latest` and not like `v3`",
            received=repr(alias),
        )
    return alias


def _check_text(value: object, *, field: str, expected: str) -> None:
    if not isinstance(value, str):
        raise InvalidInputError(
            f"the {field} is no text", expected=expected, received=type(value).__name__, field=field
        )
