"""How wide a text is, and how it is cut to a width.

Nobody knows the font of whoever looks. Measured is DejaVu Sans, the widest of the common sans-serif fonts and the last
named one of the drawing: what fits in it fits in the others.
"""

from __future__ import annotations

import unicodedata
from typing import Final

ELLIPSIS: Final = "…"
_MOST_CHARS: Final = 120  # more never fit, whatever they are
_FIRST: Final = 32
# Advance widths of the characters from space to `~`, in hundredths of the font size, rounded up.
_ASCII: Final = (
    32,
    41,
    46,
    84,
    64,
    96,
    78,
    28,
    40,
    40,
    50,
    84,
    32,
    37,
    32,
    34,
    64,
    64,
    64,
    64,
    64,
    64,
    64,
    64,
    64,
    64,
    34,
    34,
    84,
    84,
    84,
    54,
    100,
    69,
    69,
    70,
    78,
    64,
    58,
    78,
    76,
    30,
    30,
    66,
    56,
    87,
    75,
    79,
    61,
    79,
    70,
    64,
    62,
    74,
    69,
    99,
    69,
    62,
    69,
    40,
    34,
    40,
    84,
    50,
    50,
    62,
    64,
    55,
    64,
    62,
    36,
    64,
    64,
    28,
    28,
    58,
    28,
    98,
    64,
    62,
    64,
    64,
    42,
    53,
    40,
    64,
    60,
    82,
    60,
    60,
    53,
    64,
    34,
    64,
    84,
)
_OTHER: Final = 85  # most letters of other scripts are narrower
_WIDE: Final = 105


def text_width(text: str, size: float) -> float:
    """Return the width of a text in a font size, both in pixels."""
    return sum(map(_advance, text)) * size / 100


def cut_end(text: str, size: float, room: float) -> str:
    """Return a text that is at most `room` wide; what is too long loses its end."""
    if text_width(text, size) <= room:
        return text
    return next((cut for cut in _cuts(text, tail=False) if text_width(cut, size) <= room), "")


def cut_middle(text: str, size: float, room: float) -> str:
    """Return a text that is at most `room` wide; what is too long loses its middle."""
    if text_width(text, size) <= room:
        return text
    return next((cut for cut in _cuts(text, tail=True) if text_width(cut, size) <= room), "")


def _cuts(text: str, *, tail: bool) -> list[str]:
    """Return ever shorter forms of a text."""
    cuts: list[str] = []
    for kept in range(min(len(text), _MOST_CHARS) - 1, -1, -1):
        end = kept // 2 if tail else 0
        cuts.append(f"{text[: kept - end]}{ELLIPSIS}{text[len(text) - end :]}")
    return cuts


def _advance(character: str) -> int:
    place = ord(character) - _FIRST
    if 0 <= place < len(_ASCII):
        return _ASCII[place]
    if unicodedata.combining(character):
        return 0
    return _WIDE if unicodedata.east_asian_width(character) in ("W", "F") or character == ELLIPSIS else _OTHER
