"""Graphs within a graph as functions of tensors: what they take from around them becomes arguments.

PyTorch's operators of control flow (`cond`, `while_loop`) record each graph on its own, so that nothing may reach into
one but its operands.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from noa_conversion.importers.op import Op
from noa_conversion.importers.target import Value
from noa_conversion.importers.torch.target import TorchTarget
from noa_conversion.onnx_graph.model import OnnxGraph, OnnxValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """The tensors that some graphs take from around them, by name."""

    names: tuple[str, ...]
    tensors: tuple[torch.Tensor, ...]


def surroundings_of(op: Op, graphs: Sequence[OnnxGraph]) -> Surroundings:
    """Return the tensors around a node that its graphs use, their own weights among them."""
    used: dict[str, None] = {}
    for graph in graphs:
        made = {value.name for inner in graph.walk() for value in inner.inputs}
        made |= {name for inner in graph.walk() for node in inner.nodes for name in node.outputs}
        weights = op.target.weights if isinstance(op.target, TorchTarget) else {}
        made |= {name for name in graph.all_initialisers() if name not in weights}
        for inner in graph.walk():
            names = [name for node in inner.nodes for name in node.inputs] + [value.name for value in inner.outputs]
            used |= dict.fromkeys(name for name in names if name and name not in made)
    values = dict(zip(used, _around(op, graphs, list(used)), strict=True))
    found = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    return Surroundings(names=tuple(found), tensors=tuple(found.values()))


def _around(op: Op, graphs: Sequence[OnnxGraph], names: list[str]) -> list[Value]:
    """Look names up in the scope around a node, or among the weights of its graphs."""
    target = op.target
    own = {name for graph in graphs for name in graph.all_initialisers()}
    outside = [name for name in names if name not in own]
    probe = OnnxGraph(name="outside", inputs=(), outputs=tuple(OnnxValue(name=name) for name in outside), nodes=())
    values = dict(zip(outside, op.run(probe, []), strict=True))
    if isinstance(target, TorchTarget):
        values |= {name: target.weights[name] for name in names if name in own}
    return [values[name] for name in names]


def run_apart(
    op: Op, graph: OnnxGraph, inputs: Sequence[Value], around: Surroundings, given: Sequence[Any]
) -> list[Any]:
    """Walk a graph where `given` stands for the tensors around it."""
    extended = replace(graph, inputs=(*graph.inputs, *(OnnxValue(name=name) for name in around.names)))
    stand_ins = dict(zip(around.names, given, strict=True))
    target = op.target
    scope = target.weights.given(stand_ins) if isinstance(target, TorchTarget) else nullcontext()
    with scope:
        return op.run(extended, [*inputs, *given])


def fresh(op: Op, values: Sequence[Value], operands: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    """Return results as tensors of their own: an operand may not come back as it is, nor one result twice."""
    results: list[torch.Tensor] = []
    seen = {id(operand) for operand in operands}
    for value in values:
        tensor = op.tensor(value)
        is_own = isinstance(value, torch.Tensor) and id(tensor) not in seen and tensor._base is None
        results.append(tensor if is_own else tensor.clone())
        seen.add(id(tensor))
    return tuple(results)
