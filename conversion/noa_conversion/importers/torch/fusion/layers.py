"""Linear layers and layer normalisations as their own operators."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from noa_conversion.importers.torch.fusion.matching import (
    aten,
    insert,
    is_call,
    is_near,
    number,
    only_user,
    rank,
    replace,
    two_operands,
    value_of,
)
from noa_conversion.importers.torch.operands import is_static


def fuse_linear(module: torch.fx.GraphModule) -> None:
    """`x @ W + b` with a matrix W that all rows share."""
    graph = module.graph
    for node in list(graph.nodes):
        if not is_call(node, aten.matmul.default) or rank(node.args[1]) != 2 or rank(node.args[0]) < 2:
            continue
        x, w = node.args
        if not _is_weight(w):
            continue
        total = only_user(node)
        bias = _bias(total, node, value_of(w))
        weight = _untransposed(graph, node, w)
        if total is not None and bias is not None:
            replace(graph, total, aten.linear.default, (x, weight, bias))
        else:
            replace(graph, node, aten.linear.default, (x, weight))


def _is_weight(node: Any) -> bool:
    """Tell whether a matrix is a parameter, or a view of one."""
    while is_call(node, aten.permute.default, aten.t.default, aten.transpose.int):
        node = node.args[0]
    return isinstance(node, Node) and node.op == "get_attr"


def _bias(total: Node | None, product: Node, weight: torch.Tensor | None) -> Any:
    found = two_operands(total, aten.add.Tensor, lambda operand: operand is product)
    if found is None or weight is None:
        return None
    bias = value_of(found[1])
    if bias is None or bias.ndim != 1 or bias.dtype != weight.dtype or not is_static(bias.shape[0]):
        return None
    is_earlier = found[1].op in ("get_attr", "placeholder")
    return found[1] if is_earlier and bias.shape[0] == weight.shape[1] else None


def _untransposed(graph: torch.fx.Graph, before: Node, w: Any) -> Any:
    """Return the matrix whose transpose `w` is."""
    is_turned = is_call(w, aten.t.default) or (is_call(w, aten.permute.default) and list(w.args[1]) == [1, 0])
    if is_turned:
        return w.args[0]
    value = value_of(w)
    return insert(graph, before, aten.t.default, (w,), None if value is None else value)


def fuse_layer_norm(module: torch.fx.GraphModule) -> None:
    """`(x - mean) / sqrt(mean((x - mean) ** 2) + epsilon) * scale + bias`."""
    for node in list(module.graph.nodes):
        if is_call(node, aten.div.Tensor):
            _fuse_norm(module, node)


def _fuse_norm(module: torch.fx.GraphModule, quotient: Any) -> None:
    centred, root = quotient.args[0], quotient.args[1]
    if not is_call(centred, aten.sub.Tensor) or not is_call(root, aten.sqrt.default):
        return
    x, mean = centred.args[0], centred.args[1]
    shifted = root.args[0]
    epsilon = number(shifted.args[1]) if is_call(shifted, aten.add.Tensor) else None
    if epsilon is None or not _is_mean_of(mean, x) or not _is_variance(shifted.args[0], centred, x):
        return
    scaled = only_user(quotient)
    scale = two_operands(scaled, aten.mul.Tensor, lambda operand: operand is quotient)
    last = only_user(scaled) if scaled is not None else None
    bias = two_operands(last, aten.add.Tensor, lambda operand: operand is scaled)
    value = value_of(x)
    if scale is None or bias is None or last is None or value is None or not is_static(value.shape[-1]):
        return
    width = value.shape[-1]
    if not all(_is_vector(weight, width, value.dtype) for weight in (scale[1], bias[1])):
        return
    replace(module.graph, last, aten.layer_norm.default, (x, [width], scale[1], bias[1], epsilon))


def _is_mean_of(node: Any, x: Any) -> bool:
    if not is_call(node, aten.mean.dim) or node.args[0] is not x:
        return False
    axes, keeps = node.args[1], len(node.args) > 2 and node.args[2]
    return list(axes) in ([-1], [rank(x) - 1]) and bool(keeps)


def _is_variance(node: Any, centred: Any, x: Any) -> bool:
    if not is_call(node, aten.mean.dim):
        return False
    square = node.args[0]
    is_power = is_call(square, aten.pow.Tensor_Scalar) and _is_centred(square.args[0], centred, x)
    is_square = (is_power and is_near(square.args[1], 2.0)) or (
        is_call(square, aten.mul.Tensor) and all(_is_centred(part, centred, x) for part in square.args)
    )
    return is_square and _is_mean_of(node, square)


def _is_centred(node: Any, centred: Any, x: Any) -> bool:
    """Tell whether a node is `x - mean(x)`; exporters may write it twice."""
    return node is centred or (is_call(node, aten.sub.Tensor) and node.args[0] is x and _is_mean_of(node.args[1], x))


def _is_vector(node: Any, width: int, dtype: torch.dtype) -> bool:
    value = value_of(node)
    is_fit = value is not None and value.ndim == 1 and value.shape[0] == width and value.dtype == dtype
    return is_fit and isinstance(node, Node) and node.op == "get_attr"
