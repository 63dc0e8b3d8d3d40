"""Mermaid: the graph as text that Markdown viewers draw. Every label is escaped: it may hold whatever people type."""

from __future__ import annotations

from typing import Final

from noa_registry.lineage.colours import COLOURS, PAST_FILL, PAST_INK
from noa_registry.lineage.graph import LineageGraph
from noa_registry.lineage.standing import standing

PAST: Final = "past"
_MAX_LABEL: Final = 80


def to_mermaid(graph: LineageGraph) -> str:
    """Return a Mermaid flowchart of a graph."""
    ids = {key: f"n{place}" for place, key in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for key, node in graph.nodes.items():
        became = standing(node)
        said = "" if became is None else f"<br/>{escape_label(became)}"
        style = node.kind if became is None else PAST
        lines.append(f'    {ids[key]}["{node.kind}<br/>{escape_label(node.label)}{said}"]:::{style}')
    lines += [f'    {ids[edge.source]} -->|"{escape_label(edge.kind)}"| {ids[edge.target]}' for edge in graph.edges]
    past = [node for node in graph.nodes.values() if standing(node) is not None]
    kinds = {node.kind for node in graph.nodes.values() if node not in past}
    for kind, (fill, stroke) in COLOURS.items():
        if kind not in kinds:
            continue
        lines.append(f"    classDef {kind} fill:{fill},stroke:{stroke},color:#1b1f24")
    if past:
        lines.append(f"    classDef {PAST} fill:{PAST_FILL},stroke:{PAST_INK},color:{PAST_INK},stroke-dasharray:5 3")
    focus = [ids[key] for key in graph.focus if key in ids]
    if focus:
        lines.append(f"    style {focus[0]} stroke-width:3px")
    return "\n".join(lines) + "\n"


def escape_label(text: str) -> str:
    """Return text that Mermaid shows as it is inside quotes: whatever could be syntax becomes a character code."""
    short = text if len(text) <= _MAX_LABEL else text[: _MAX_LABEL - 1] + "…"
    return "".join(char if _is_plain(char) else f"#{ord(char)};" for char in short if char.isprintable())


def _is_plain(char: str) -> bool:
    return char.isalnum() or char in " ./@-_:,…()"
