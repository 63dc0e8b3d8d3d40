"""Names while a graph is built: which unique name a written name means, and in which order nodes stand."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import onnx

    from noa_conversion.onnx_graph.model import Attribute


_MOST_SHOWN = 6
"""Most nodes of a circle that an error names."""


class UniqueNames:
    """Gives out names that no value of the model has yet."""

    __slots__ = ("_counts", "_taken")

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._counts: dict[str, int] = {}

    def take(self, name: str) -> str:
        """Return `name`, or `name` with a number if it is taken."""
        free = name
        while free in self._taken:
            self._counts[name] = self._counts.get(name, 1) + 1
            free = f"{name}_{self._counts[name]}"
        self._taken.add(free)
        return free


@dataclass(slots=True)
class Scope:
    """The written names of one graph or function, and those around it."""

    names: dict[str, str] = field(default_factory=dict[str, str])
    parent: Scope | None = None

    def find(self, name: str) -> str | None:
        """Return the unique name that `name` means here, or None if nothing makes it."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.parent
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Where nodes come from: the model itself, or a function that is being inlined."""

    opsets: Mapping[str, int]
    bound: Mapping[str, Attribute] = field(default_factory=dict[str, "Attribute"])
    """Attributes of the function's call, for the nodes that refer to them."""
    prefix: str = ""
    """What names of nodes and inner values begin with."""


def subgraph_protos(node: onnx.NodeProto) -> Iterator[Any]:
    """Yield the graphs among a node's attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def nodes_within(nodes: Iterable[onnx.NodeProto]) -> Iterator[Any]:
    """Yield nodes and those of the graphs within them."""
    for node in nodes:
        yield node
        for graph in subgraph_protos(node):
            yield from nodes_within(graph.node)


def used_names(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node reads, those that its subgraphs capture included."""
    names = {name for name in node.input if name}
    for graph in subgraph_protos(node):
        made = {value.name for value in graph.input}
        made.update(tensor.name for tensor in graph.initializer)
        made.update(sparse.values.name for sparse in graph.sparse_initializer)
        made.update(name for inner in graph.node for name in inner.output)
        inside = {value.name for value in graph.output}
        for inner in graph.node:
            inside |= used_names(inner)
        names |= inside - made
    return names


def in_order(nodes: Sequence[onnx.NodeProto], refuse: Callable[[str], NoReturn]) -> list[onnx.NodeProto]:
    """Return nodes so that each comes after those whose outputs it uses; a given order that does so is kept."""
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = [{makers[name] for name in used_names(node) if name in makers} for node in nodes]
    if all(max(need, default=-1) < index for index, need in enumerate(needs)):
        return list(nodes)
    users: dict[int, list[int]] = {}
    for index, need in enumerate(needs):
        for maker in need:
            users.setdefault(maker, []).append(index)
    waiting = [len(need) for need in needs]
    ready = [index for index, count in enumerate(waiting) if count == 0]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for user in users.get(index, ()):
            waiting[user] -= 1
            if waiting[user] == 0:
                heapq.heappush(ready, user)
    if len(order) < len(nodes):
        circle = [f"`{nodes[index].name or nodes[index].op_type}`" for index in _circle(needs, waiting)]
        shown = circle if len(circle) <= _MOST_SHOWN else [*circle[: _MOST_SHOWN - 1], "..."]
        refuse(f"the graph runs in a circle through node {', '.join(shown)}: each needs what another makes")
    return [nodes[index] for index in order]


def _circle(needs: Sequence[set[int]], waiting: Sequence[int]) -> list[int]:
    """Return nodes that need each other, in the order in which they compute; `waiting` is above 0 for what is stuck."""
    index = next(index for index, count in enumerate(waiting) if count)
    way: dict[int, int] = {}
    while index not in way:
        way[index] = len(way)
        index = min(need for need in needs[index] if waiting[need])
    circle = list(reversed([node for node, step in way.items() if step >= way[index]]))
    first = circle.index(min(circle))
    return [*circle[first:], *circle[:first]]
