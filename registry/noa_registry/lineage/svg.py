"""SVG: the graph as a picture that every browser shows. Text is escaped; nothing in it runs or is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from noa_registry.lineage.colours import COLOURS, PAST_FILL, PAST_INK
from noa_registry.lineage.graph import LineageGraph, LineageNode
from noa_registry.lineage.labels import EDGE_FONT, INSET, KIND_FONT, NOTE_FONT, fit_name, fit_note, place_labels
from noa_registry.lineage.layout import NODE_HEIGHT, NODE_WIDTH, lay_out
from noa_registry.lineage.standing import standing

_FONT: Final = "font-family=\"ui-sans-serif, system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif\""


def to_svg(graph: LineageGraph, *, title: str) -> str:
    """Return an SVG document with a picture of a graph."""
    layout = lay_out(graph)
    width, height = round(layout.width), round(layout.height)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
            f'role="img" aria-label="{_text(title)}" {_FONT}>'
        ),
        f"<title>{_text(title)}</title>",
        (
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0L8 4L0 8z" fill="#7d8894"/></marker></defs>'
        ),
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for edge, points in layout.edges:
        parts.append(
            f'<path d="{_path(points)}" fill="none" stroke="#9aa4ae" stroke-width="1.4" marker-end="url(#tip)">'
            f"<title>{_text(edge.kind)}</title></path>"
        )
    for (edge, _), place in zip(layout.edges, place_labels(layout), strict=True):
        if place is not None:
            parts.append(
                f'<text x="{place[0]:.1f}" y="{place[1]:.1f}" font-size="{EDGE_FONT:g}" fill="#5c6773" '
                f'text-anchor="middle" stroke="#ffffff" stroke-width="3" paint-order="stroke">{_text(edge.kind)}</text>'
            )
    focus = set(graph.focus)
    parts += [_node(node, layout.nodes[key], is_focus=key in focus) for key, node in graph.nodes.items()]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _node(node: LineageNode, place: tuple[float, float], *, is_focus: bool) -> str:
    x, y = place
    fill, line = COLOURS[node.kind]
    became = standing(node)
    ink, dashes = "#1b1f24", ""
    if became is not None:
        fill, ink, dashes = PAST_FILL, PAST_INK, ' stroke-dasharray="5 3"'
    label, size = fit_name(node.label)
    note = fit_note(_note(node) if became is None else became.partition(" since ")[0], node.kind)
    said = [f"{node.kind} {node.label}", *([] if became is None else [became])]
    details = "\n".join([*said, *(f"{key}: {value}" for key, value in node.facts.items())])
    return (
        f"<g><title>{_text(details)}</title>"
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{NODE_WIDTH:g}" height="{NODE_HEIGHT:g}" rx="7" fill="{fill}" '
        f'stroke="{line}" stroke-width="{2.6 if is_focus else 1.2:g}"{dashes}/>'
        f'<text x="{x + INSET:.1f}" y="{y + 17:.1f}" font-size="{KIND_FONT:g}" fill="{line}" '
        f'font-weight="600">{node.kind}</text>'
        f'<text x="{x + NODE_WIDTH - INSET:.1f}" y="{y + 17:.1f}" font-size="{NOTE_FONT:g}" fill="#5c6773" '
        f'text-anchor="end">{_text(note)}</text>'
        f'<text x="{x + INSET:.1f}" y="{y + 35:.1f}" font-size="{size:g}" fill="{ink}">{_text(label)}</text></g>'
    )


def _note(node: LineageNode) -> str:
    """Return the one fact that is worth a place on the box."""
    if node.kind == "format" and "equivalence" in node.facts:
        return f"equivalence {node.facts['equivalence']}"
    if node.kind == "version":
        return str(node.facts.get("created_at", ""))[:10]
    if node.kind == "alias":
        return f"since {str(node.facts.get('since', ''))[:10]}"
    if node.kind == "generation":
        return f"since {str(node.facts.get('announced_at', ''))[:10]}"
    return str(node.facts.get("backend", ""))


def _path(points: Sequence[tuple[float, float]]) -> str:
    x, y = points[0]
    parts = [f"M{x:.1f} {y:.1f}"]
    for index in range(1, len(points)):
        (x0, y0), (x1, y1) = points[index - 1], points[index]
        if index % 2 == 0:  # along a waypoint: straight through its column
            parts.append(f"L{x1:.1f} {y1:.1f}")
        else:
            bend = (x1 - x0) / 2
            parts.append(f"C{x0 + bend:.1f} {y0:.1f} {x1 - bend:.1f} {y1:.1f} {x1:.1f} {y1:.1f}")
    return "".join(parts)


def _text(value: object) -> str:
    # Control characters are not allowed in XML at all, not even escaped.
    return escape("".join(char if char.isprintable() or char == "\n" else " " for char in str(value)), quote=True)
