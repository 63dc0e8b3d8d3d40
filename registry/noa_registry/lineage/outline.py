"""The outline: a graph as a tree of lines for a terminal. A node that has several ways to it is written out once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from noa_registry.lineage.graph import LineageEdge, LineageGraph, LineageNode

MADE_FROM = "made from"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlineItem:
    """A line with its sub-lines. `verb` says how it hangs on the line above; `is_repeated`: written out elsewhere."""

    node: LineageNode | None
    verb: str
    children: tuple[OutlineItem, ...] = ()
    is_repeated: bool = False


def outline(graph: LineageGraph) -> list[OutlineItem]:
    """Return one tree per node in the focus: first what it was made from, then what came of it."""
    writer = _Writer(graph)
    return [writer.around(graph.nodes[key]) for key in graph.focus if key in graph.nodes]


class _Writer:
    def __init__(self, graph: LineageGraph) -> None:
        self._graph = graph
        self._written: set[str] = set()

    def around(self, node: LineageNode, verb: str = "") -> OutlineItem:
        self._written.add(node.id)
        origins = tuple(self._up(edge) for edge in self._edges_to(node.id))
        made_from = (OutlineItem(node=None, verb=MADE_FROM, children=origins),) if origins else ()
        results = tuple(self._down(edge) for edge in self._edges_from(node.id))
        return OutlineItem(node=node, verb=verb, children=(*made_from, *results))

    def _up(self, edge: LineageEdge) -> OutlineItem:
        node = self._graph.nodes[edge.source]
        if node.id in self._written:
            return OutlineItem(node=node, verb="", is_repeated=True)
        self._written.add(node.id)
        return OutlineItem(node=node, verb="", children=tuple(self._up(one) for one in self._edges_to(node.id)))

    def _down(self, edge: LineageEdge) -> OutlineItem:
        node = self._graph.nodes[edge.target]
        if node.id in self._written:
            return OutlineItem(node=node, verb=edge.kind, is_repeated=True)
        if node.kind == "version":  # of a model, a dataset or a run: each version has its own origins
            return self.around(node, edge.kind)
        self._written.add(node.id)
        return OutlineItem(
            node=node, verb=edge.kind, children=tuple(self._down(one) for one in self._edges_from(node.id))
        )

    def _edges_to(self, key: str) -> Iterator[LineageEdge]:
        # A model is no origin of its versions; it only groups them.
        return (edge for edge in self._graph.edges if edge.target == key and not edge.source.startswith("model:"))

    def _edges_from(self, key: str) -> Iterator[LineageEdge]:
        return (edge for edge in self._graph.edges if edge.source == key)
