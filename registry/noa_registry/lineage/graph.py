"""The graph: what came from what. Edges point the way of the data, from a dataset to the replica that answers.

    dataset -> job -> run -> version -> format -> generation -> replica
                 commit -^           -> alias  -^

A graph is bounded: what does not fit is folded into one node that says how many more there are.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

NodeKind: TypeAlias = Literal[
    "model", "dataset", "job", "run", "commit", "version", "format", "alias", "generation", "replica", "more"
]
Direction: TypeAlias = Literal["both", "upstream", "downstream"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageNode:
    """One thing. `id` is unique in the graph, `label` for people, `facts` are plain JSON values."""

    id: str
    kind: NodeKind
    label: str
    facts: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageEdge:
    """`target` comes from `source`; `kind` says how, e.g. `converted to`."""

    source: str
    target: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageGraph:
    """Nodes and edges around `focus`, the nodes that were asked for. `hidden` counts versions that were folded."""

    focus: tuple[str, ...]
    nodes: Mapping[str, LineageNode]
    edges: tuple[LineageEdge, ...]
    hidden: int = 0

    def upstream(self, node_id: str) -> list[LineageNode]:
        """Return the nodes that a node comes from directly, in the order of the graph."""
        return [self.nodes[edge.source] for edge in self.edges if edge.target == node_id]

    def downstream(self, node_id: str) -> list[LineageNode]:
        """Return the nodes that come from a node directly, in the order of the graph."""
        return [self.nodes[edge.target] for edge in self.edges if edge.source == node_id]

    def of_kind(self, kind: NodeKind) -> list[LineageNode]:
        """Return all nodes of a kind, in the order of the graph."""
        return [node for node in self.nodes.values() if node.kind == kind]

    def to_dict(self) -> dict[str, object]:
        """Return the graph as plain JSON values."""
        return {
            "focus": list(self.focus),
            "nodes": [
                {"id": node.id, "kind": node.kind, "label": node.label, "facts": dict(node.facts)}
                for node in self.nodes.values()
            ],
            "edges": [{"source": edge.source, "target": edge.target, "kind": edge.kind} for edge in self.edges],
            "hidden_versions": self.hidden,
        }

    def around(self, *, direction: Direction, depth: int | None) -> LineageGraph:
        """Return what can be reached from the focus in one direction or both, at most `depth` edges away.

        What a model comes from is what its versions come from; and so it is for the versions of a dataset or run,
        unless only one direction is asked for.
        """
        kept = set(self.focus)
        if direction in ("both", "upstream"):
            is_group = direction == "both" or any(key.startswith("model:") for key in self.focus)
            versions = [key for key in self.nodes if key.startswith("version:")] if is_group else []
            kept |= {*versions, *_reached([*self.focus, *versions], self.edges, depth, against=True)}
        if direction in ("both", "downstream"):
            kept |= _reached(self.focus, self.edges, depth, against=False)
        return replace(
            self,
            nodes={key: node for key, node in self.nodes.items() if key in kept},
            edges=tuple(edge for edge in self.edges if edge.source in kept and edge.target in kept),
        )


class GraphBuilder:
    """Collects nodes and edges; the first of each counts."""

    def __init__(self) -> None:
        self._nodes: dict[str, LineageNode] = {}
        self._edges: dict[tuple[str, str], LineageEdge] = {}

    def node(self, kind: NodeKind, key: str, label: str, **facts: object) -> str:
        """Add a node, and return its id."""
        node_id = f"{kind}:{key}"
        known = {name: value for name, value in facts.items() if value is not None}
        self._nodes.setdefault(node_id, LineageNode(id=node_id, kind=kind, label=label, facts=known))
        return node_id

    def has(self, node_id: str) -> bool:
        """Tell whether a node is there."""
        return node_id in self._nodes

    def edge(self, source: str | None, target: str, kind: str) -> None:
        """Add an edge, if there is something to come from."""
        if source is not None:
            self._edges.setdefault((source, target), LineageEdge(source=source, target=target, kind=kind))

    def build(self, focus: Iterable[str], *, hidden: int) -> LineageGraph:
        """Return the graph."""
        return LineageGraph(focus=tuple(focus), nodes=self._nodes, edges=tuple(self._edges.values()), hidden=hidden)


def _reached(start: Iterable[str], edges: Iterable[LineageEdge], depth: int | None, *, against: bool) -> set[str]:
    following: defaultdict[str, list[str]] = defaultdict(list)
    for edge in edges:
        near, far = (edge.target, edge.source) if against else (edge.source, edge.target)
        following[near].append(far)
    seen: set[str] = set()
    waiting = deque((key, 0) for key in start)
    while waiting:
        near, distance = waiting.popleft()
        if depth is not None and distance >= depth:
            continue
        for far in following[near]:
            if far not in seen:
                seen.add(far)
                waiting.append((far, distance + 1))
    return seen
