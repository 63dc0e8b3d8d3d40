"""A card before it has a form: sections of plain texts, tables, code and one kind of picture.

Nothing here is markup. Whatever a user, recipe or archive wrote is a text until a renderer escapes it, once, in its own
way; so no value can become markup in one form and be harmless in the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Tone: TypeAlias = Literal["plain", "good", "bad", "muted"]


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of short texts."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings; without headings, facts with their names in the first column. None is shown as a dash."""

    headings: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Code:
    """Lines to copy."""

    language: str
    text: str


@dataclass(frozen=True, slots=True)
class Reliability:
    """The picture of a calibration: mean confidence, accuracy and rows of each bin."""

    bins: tuple[tuple[float, float, int], ...]
    caption: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that is markup of ours already, and what it says in words for where there are no pictures."""

    svg: str
    words: str


Block: TypeAlias = Text | Bullets | Table | Code | Reliability | Picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading with what belongs under it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A whole card."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]
