"""A card as Markdown (GitHub's flavour, which most readers take). Every text is escaped: it shows as it was written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from noa_registry.cards.document import Block, Bullets, Code, Document, Picture, Reliability, Table, Text

_ANYWHERE: Final = re.compile(r"([\\`*_\[\]|!~#$^])")
_LINKS: Final = re.compile(r"(:)//|www(\.)|(@)", re.IGNORECASE)
_AT_START: Final = re.compile(r"^(\d{0,9})([-+=.)])(?=\s|$|[-+=])")
_ENTITIES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def to_markdown(document: Document) -> str:
    """Return the card as Markdown text."""
    lines = [f"# {_text(document.title)}", "", _text(document.subtitle), ""]
    for section in document.sections:
        lines += [f"## {_text(section.title)}", ""]
        for block in section.blocks:
            lines += [*_block(block), ""]
    return "\n".join(lines).rstrip() + "\n"


def _block(block: Block) -> Iterator[str]:
    match block:
        case Text():
            yield f"**{_text(block.text)}**" if block.tone in ("good", "bad") else _text(block.text)
        case Bullets():
            yield from (f"- {_text(item)}" for item in block.items)
        case Table():
            yield from _table(block)
        case Code():
            yield from _code(block)
        case Reliability():
            rows = tuple((f"{confidence:.3f}", f"{accuracy:.3f}", rows) for confidence, accuracy, rows in block.bins)
            yield from _table(Table(("confidence", "accuracy", "rows"), rows, block.caption))
        case Picture():
            yield from _code(Code("text", block.words))


def _table(table: Table) -> Iterator[str]:
    if table.caption:
        yield _text(table.caption)
        yield ""
    headings = table.headings or ("", *[""] * (len(table.rows[0]) - 1 if table.rows else 0))
    yield "| " + " | ".join(_text(heading) for heading in headings) + " |"
    yield "|" + " --- |" * len(headings)
    for row in table.rows:
        yield "| " + " | ".join("–" if cell is None else _text(str(cell)) for cell in row) + " |"  # noqa: RUF001


def _code(code: Code) -> Iterator[str]:
    longest = max((len(run) for run in re.findall(r"`+", code.text)), default=0)
    fence = "`" * max(3, longest + 1)
    yield fence + code.language
    yield code.text.rstrip("\n")
    yield fence


def _text(text: str) -> str:
    """Return a text on one line, in which no reader of Markdown finds anything but letters."""
    flat = " ".join(text.split())
    visible = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in flat)
    plain = re.sub(r"[&<>]", lambda found: _ENTITIES[found[0]], visible)
    plain = _ANYWHERE.sub(r"\\\1", plain)
    plain = _LINKS.sub(r"\\\g<0>", plain).replace("\\www.", "www\\.").replace("\\WWW.", "WWW\\.")
    return _AT_START.sub(r"\1\\\2", plain)
