"""Where the words of a drawing go: names that fit into their boxes, and words at edges that cover nothing.

Widths are those of `text_width`. A word at an edge may stand anywhere along it; where everything is taken it is left
out, and the edge keeps it as its tooltip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from noa_registry.lineage.layout import NODE_HEIGHT, NODE_WIDTH, Layout
from noa_registry.lineage.text_width import cut_end, cut_middle, text_width

EDGE_FONT: Final = 9.5
NAME_FONTS: Final = (13.0, 11.0)
"""The sizes in which a name is tried, the largest first."""
KIND_FONT: Final = 10.0
NOTE_FONT: Final = 9.5
INSET: Final = 11.0
_BOLDER: Final = 1.16  # bold letters are that much wider
_NOTE_GAP: Final = 6.0
_ALONG: Final = (0.5, 0.4, 0.6, 0.3, 0.7, 0.22, 0.78)
_RISE: Final = 4.0  # the word stands on the line, not in it


@dataclass(frozen=True, slots=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def touches(self, other: _Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def fit_name(text: str) -> tuple[str, float]:
    """Return a name as it fits into a box, and its font size; what is too long loses its middle, not its number."""
    room = NODE_WIDTH - 2 * INSET
    for size in NAME_FONTS:
        if text_width(text, size) <= room:
            return text, size
    return cut_middle(text, NAME_FONTS[-1], room), NAME_FONTS[-1]


def fit_note(text: str, kind: str) -> str:
    """Return a note as it fits beside the word for a node's kind; what is too long loses its end."""
    room = NODE_WIDTH - 2 * INSET - _BOLDER * text_width(kind, KIND_FONT) - _NOTE_GAP
    return cut_end(text, NOTE_FONT, room)


def place_labels(layout: Layout) -> list[tuple[float, float] | None]:
    """Return where the middle of each edge's word stands on its base line, None where there is no room for it."""
    taken = [_Box(x, y, x + NODE_WIDTH, y + NODE_HEIGHT) for x, y in layout.nodes.values()]
    places: list[tuple[float, float] | None] = []
    for edge, points in layout.edges:
        half = text_width(edge.kind, EDGE_FONT) / 2
        found: tuple[float, float] | None = None
        for x, y in _candidates(points):
            box = _Box(x - half, y - 0.8 * EDGE_FONT, x + half, y + 0.25 * EDGE_FONT)
            if not any(box.touches(other) for other in taken):
                taken.append(box)
                found = (x, y)
                break
        places.append(found)
    return places


def _candidates(points: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Give places along an edge, in its last segments first: there it is known which node it leads to."""
    for index in range(len(points) - 1, 0, -1):
        (x0, y0), (x1, y1) = points[index - 1], points[index]
        for part in _ALONG:
            yield _curve(x0, x1, part), y0 + (y1 - y0) * part * part * (3 - 2 * part) - _RISE


def _curve(start: float, end: float, part: float) -> float:
    """Return x on the Bezier curve of an edge, whose handles reach to its middle."""
    middle = (start + end) / 2
    rest = 1 - part
    return start * rest**3 + 3 * middle * part * rest * (rest + part) + end * part**3
