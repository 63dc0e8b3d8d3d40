"""What the passes ask of a node: which operator it is, with which operands, and who uses it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

aten = torch.ops.aten


def is_call(node: object, *targets: object) -> bool:
    """Tell whether a node calls one of these operators."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets


def only_user(node: Node) -> Node | None:
    """Return the one node that uses a node, or None."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def value_of(node: object) -> torch.Tensor | None:
    """Return the stand-in of a node's value, if it is a tensor."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value if isinstance(value, torch.Tensor) else None


def rank(node: object) -> int:
    """Return the number of axes of a node's value, -1 if it is no tensor."""
    value = value_of(node)
    return -1 if value is None else value.ndim


def number(value: object) -> float | None:
    """Return a plain number, or None."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def is_near(value: object, expected: float) -> bool:
    """Tell whether a plain number is the expected one, as closely as single precision says it."""
    given = number(value)
    return given is not None and math.isclose(given, expected, rel_tol=1e-6)


def two_operands(node: object, target: Any, first: Callable[[object], bool]) -> tuple[Any, Any] | None:
    """Return the operands of a commutative call, the one that fits `first` in front; None if it is another call."""
    if not isinstance(node, Node) or not is_call(node, target) or len(node.args) != 2 or node.kwargs:
        return None
    a, b = node.args
    if first(a):
        return a, b
    return (b, a) if first(b) else None


def replace(
    graph: Graph, old: Node, target: Any, arguments: tuple[Any, ...], options: dict[str, Any] | None = None
) -> Node:
    """Put a call in the place of a node; the new node keeps its stand-in."""
    with graph.inserting_before(old):
        new = graph.call_function(target, arguments, options or {})
    new.meta = dict(old.meta)
    old.replace_all_uses_with(new)
    graph.erase_node(old)
    return new


def insert(
    graph: Graph, before: Node, target: Any, arguments: tuple[Any, ...], value: torch.Tensor | None = None
) -> Node:
    """Insert a call in front of a node."""
    with graph.inserting_before(before):
        new = graph.call_function(target, arguments)
    if value is not None:
        new.meta["val"] = value
    return new
