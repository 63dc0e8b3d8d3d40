"""Layout: where each node and edge of a layered drawing goes, from left to right.

The columns are the longest ways from a start (Sugiyama's method, small): edges over several columns get a waypoint in
each of them, the order inside a column is improved by the mean place of the neighbours in a few sweeps, and then
every column is spread so that nodes stand beside their neighbours without touching.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from noa_registry.lineage.graph import LineageEdge, LineageGraph

NODE_WIDTH: Final = 190.0
NODE_HEIGHT: Final = 46.0
_COLUMN_GAP: Final = 96.0
_ROW_GAP: Final = 18.0
_WAYPOINT_HEIGHT: Final = 14.0
_MARGIN: Final = 24.0
_SWEEPS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Left upper corners of nodes, and the points of each edge; all in pixels."""

    width: float
    height: float
    nodes: Mapping[str, tuple[float, float]]
    edges: Sequence[tuple[LineageEdge, tuple[tuple[float, float], ...]]]


def lay_out(graph: LineageGraph) -> Layout:
    """Return the places of all nodes and edges of a graph without cycles."""
    columns = _columns(graph)
    chains = _chains(graph, columns)
    layers: list[list[str]] = [[] for _ in range(max(columns.values(), default=0) + 1)]
    for key, column in columns.items():
        layers[column].append(key)
    waypoints = {point: place for chain in chains for place, point in _inner(chain, columns)}
    for point, column in waypoints.items():
        layers[column].append(point)
    before, after = _neighbours(chains)
    _order(layers, before, after)
    heights = dict.fromkeys(graph.nodes, NODE_HEIGHT) | dict.fromkeys(waypoints, _WAYPOINT_HEIGHT)
    middles = _spread(layers, before, after, heights)
    top = min((middles[key] - heights[key] / 2 for key in middles), default=0.0)
    places = {
        key: (_MARGIN + column * (NODE_WIDTH + _COLUMN_GAP), middles[key] - top + _MARGIN)
        for column, layer in enumerate(layers)
        for key in layer
    }
    return Layout(
        width=2 * _MARGIN + len(layers) * (NODE_WIDTH + _COLUMN_GAP) - _COLUMN_GAP,
        height=max((y + heights[key] / 2 for key, (_, y) in places.items()), default=0.0) + _MARGIN,
        nodes={key: (places[key][0], places[key][1] - NODE_HEIGHT / 2) for key in graph.nodes},
        edges=[(edge, _points(chain, places)) for edge, chain in zip(graph.edges, chains, strict=True)],
    )


def _columns(graph: LineageGraph) -> dict[str, int]:
    incoming = dict.fromkeys(graph.nodes, 0)
    following: defaultdict[str, list[str]] = defaultdict(list)
    for edge in graph.edges:
        incoming[edge.target] += 1
        following[edge.source].append(edge.target)
    columns = dict.fromkeys(graph.nodes, 0)
    ready = [key for key, count in incoming.items() if not count]
    while ready:
        key = ready.pop()
        for target in following[key]:
            columns[target] = max(columns[target], columns[key] + 1)
            incoming[target] -= 1
            if not incoming[target]:
                ready.append(target)
    # What only begins later stands beside what it leads to, e.g. a commit beside its job.
    for key in graph.nodes:
        if following[key] and not any(edge.target == key for edge in graph.edges):
            columns[key] = max(0, min(columns[target] for target in following[key]) - 1)
    return columns


def _chains(graph: LineageGraph, columns: Mapping[str, int]) -> list[tuple[str, ...]]:
    chains: list[tuple[str, ...]] = []
    for number, edge in enumerate(graph.edges):
        between = range(columns[edge.source] + 1, columns[edge.target])
        chains.append((edge.source, *(f"waypoint:{number}:{column}" for column in between), edge.target))
    return chains


def _inner(chain: tuple[str, ...], columns: Mapping[str, int]) -> list[tuple[int, str]]:
    first = columns[chain[0]]
    return [(first + step, point) for step, point in enumerate(chain) if 0 < step < len(chain) - 1]


def _neighbours(chains: Sequence[tuple[str, ...]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    before: defaultdict[str, list[str]] = defaultdict(list)
    after: defaultdict[str, list[str]] = defaultdict(list)
    for chain in chains:
        for near, far in itertools.pairwise(chain):
            after[near].append(far)
            before[far].append(near)
    return before, after


def _order(layers: list[list[str]], before: Mapping[str, list[str]], after: Mapping[str, list[str]]) -> None:
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        neighbours = before if forward else after
        for layer in layers if forward else reversed(layers):
            place = {key: index for one in layers for index, key in enumerate(one)}
            means = {
                key: sum(place[near] for near in neighbours[key]) / len(neighbours[key])
                if neighbours.get(key)
                else float(place[key])
                for key in layer
            }
            layer.sort(key=lambda key: (means[key], place[key]))


def _spread(
    layers: list[list[str]],
    before: Mapping[str, list[str]],
    after: Mapping[str, list[str]],
    heights: Mapping[str, float],
) -> dict[str, float]:
    middles: dict[str, float] = {}
    for layer in layers:
        y = 0.0
        for key in layer:
            middles[key] = y + heights[key] / 2
            y += heights[key] + _ROW_GAP
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        neighbours = before if forward else after
        for layer in layers if forward else reversed(layers):
            wanted = [
                sum(middles[near] for near in neighbours[key]) / len(neighbours[key])
                if neighbours.get(key)
                else middles[key]
                for key in layer
            ]
            middles.update(zip(layer, _separated(layer, wanted, heights), strict=True))
    return middles


def _separated(layer: Sequence[str], wanted: Sequence[float], heights: Mapping[str, float]) -> list[float]:
    """Return places in the given order that do not touch, as near as possible to the wanted ones in the mean."""
    placed: list[float] = []
    for index, key in enumerate(layer):
        least = wanted[index]
        if placed:
            gap = (heights[layer[index - 1]] + heights[key]) / 2 + _ROW_GAP
            least = max(least, placed[-1] + gap)
        placed.append(least)
    shift = sum(want - have for want, have in zip(wanted, placed, strict=True)) / max(len(layer), 1)
    return [y + shift for y in placed]


def _points(chain: Sequence[str], places: Mapping[str, tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    points: list[tuple[float, float]] = [(places[chain[0]][0] + NODE_WIDTH, places[chain[0]][1])]
    for point in chain[1:-1]:
        x, y = places[point]
        points += [(x, y), (x + NODE_WIDTH, y)]
    points.append(places[chain[-1]])
    return tuple(points)
