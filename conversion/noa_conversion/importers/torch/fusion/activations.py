"""GELU and SiLU as their own operators."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from noa_conversion.importers.torch.fusion.matching import (
    aten,
    is_call,
    is_near,
    number,
    only_user,
    replace,
    two_operands,
)


def fuse_silu(module: torch.fx.GraphModule) -> None:
    """`x * sigmoid(x)`."""
    for node in list(module.graph.nodes):
        found = two_operands(node, aten.mul.Tensor, lambda operand: is_call(operand, aten.sigmoid.default))
        if found is not None and found[0].args[0] is found[1] and only_user(found[0]) is node:
            replace(module.graph, node, aten.silu.default, (found[1],))


def fuse_gelu(module: torch.fx.GraphModule) -> None:
    """`0.5 * x * (1 + erf(x / sqrt(2)))`, whichever way it is multiplied out, and the same through tanh."""
    for node in list(module.graph.nodes):
        if is_call(node, aten.erf.default):
            _fuse(module, node, _divided_by_root_two(node.args[0]), "none")
        elif is_call(node, aten.tanh.default):
            _fuse(module, node, _cubic_inside(node.args[0]), "tanh")


def _divided_by_root_two(node: Any) -> Node | None:
    if is_call(node, aten.div.Tensor) and is_near(node.args[1], math.sqrt(2)):
        return node.args[0]
    if is_call(node, aten.mul.Tensor) and is_near(node.args[1], math.sqrt(0.5)):
        return node.args[0]
    return None


def _cubic_inside(node: Any) -> Node | None:
    """Return x of `sqrt(2 / pi) * (x + 0.044715 * x ** 3)`."""
    if not is_call(node, aten.mul.Tensor) or not is_near(node.args[1], math.sqrt(2 / math.pi)):
        return None
    parts = two_operands(node.args[0], aten.add.Tensor, lambda operand: is_call(operand, aten.mul.Tensor))
    if parts is None or not is_near(parts[0].args[1], 0.044715):
        return None
    cube, x = parts[0].args[0], parts[1]
    is_cube = is_call(cube, aten.pow.Tensor_Scalar) and cube.args[0] is x and is_near(cube.args[1], 3.0)
    return x if is_cube else None


def _fuse(module: torch.fx.GraphModule, inner: Node, x: Node | None, approximate: str) -> None:
    plus_one = only_user(inner)
    if x is None or plus_one is None or not is_call(plus_one, aten.add.Tensor) or not is_near(plus_one.args[1], 1.0):
        return
    top, factor, has_x = plus_one, 1.0, False
    while True:
        above = only_user(top)
        if above is None or not is_call(above, aten.mul.Tensor) or (has_x and is_near(factor, 0.5)):
            break
        other = above.args[1] if above.args[0] is top else above.args[0]
        share = number(other)
        half = _half_of(other, x)
        if share is not None:
            factor *= share
        elif not has_x and other is x:
            has_x = True
        elif not has_x and half is not None:
            has_x, factor = True, factor * half
        else:
            break
        top = above
    if has_x and is_near(factor, 0.5):
        options = {} if approximate == "none" else {"approximate": approximate}
        replace(module.graph, top, aten.gelu.default, (x,), options)


def _half_of(node: Any, x: Node) -> float | None:
    """Return the number in `number * x`."""
    return number(node.args[1]) if is_call(node, aten.mul.Tensor) and node.args[0] is x else None
