"""How wide the columns of a table are: free text gives way first, words and names break last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_UNBROKEN: Final = 24  # numbers, times and names up to here stay on one line while there is room for them
_TEXT: Final = 100  # free text is wrapped here where nothing limits the table


def column_widths(
    columns: Sequence[Sequence[str]], room: int | None, *, wrapped: Sequence[bool] | None = None
) -> list[int]:
    """Return a width for each column of cells that together take at most `room` (None: as much as they need).

    Without a limit, text is wrapped in columns that are `wrapped`, and no word is broken. With one, the widest columns
    give way, down to their longest words; only if these do not fit are the longest of them broken.
    """
    natural = [max(map(_width, cells), default=1) or 1 for cells in columns]
    words = [max((_width(word) for cell in cells for word in cell.split()), default=1) for cells in columns]
    if room is None:
        texts = wrapped or [False] * len(columns)
        return [
            min(width, max(word, _TEXT)) if is_text else width
            for width, word, is_text in zip(natural, words, texts, strict=True)
        ]
    kept = [width if width <= _UNBROKEN else word for width, word in zip(natural, words, strict=True)]
    for least in (kept, words):
        if sum(least) <= room:
            return _shrunk(natural, least, room)
    return _shrunk(words, [1] * len(words), room)


def _shrunk(widths: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Return the widths cut to one level, though none below its least, so that they fill the room."""

    def cut(level: int) -> list[int]:
        return [max(low, min(width, level)) for width, low in zip(widths, least, strict=True)]

    level = max(widths)
    while level > 1 and sum(cut(level)) > room:
        level -= 1
    found = cut(level)
    for index, width in enumerate(cut(level + 1)):  # what is left over goes to the first ones
        if width > found[index] and sum(found) < room:
            found[index] = width
    return found


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)
