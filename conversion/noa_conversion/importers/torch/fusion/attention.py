"""Attention that is written out as products and a softmax, as one operator."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from noa_conversion.importers.torch.fusion.matching import (
    aten,
    insert,
    is_call,
    number,
    only_user,
    rank,
    replace,
    two_operands,
    value_of,
)


def fuse_attention(module: torch.fx.GraphModule) -> None:
    """`softmax(scale * q @ k' + mask) @ v` over four axes."""
    for node in list(module.graph.nodes):
        if is_call(node, aten.matmul.default) and rank(node) == 4:
            _fuse(module, node)


def _fuse(module: torch.fx.GraphModule, product: Node) -> None:
    graph = module.graph
    weights, v = product.args[0], product.args[1]
    softmax = _through_guard(weights)
    if not is_call(softmax, aten.softmax.int) or softmax.args[1] not in (-1, 3) or len(softmax.args) > 2:
        return
    if softmax.kwargs or not isinstance(weights, Node) or any(user is not product for user in weights.users):
        return
    scores, mask = softmax.args[0], None
    added = two_operands(scores, aten.add.Tensor, _is_scores)
    if added is not None and isinstance(added[1], Node):
        scores, mask = added
    found = _scores(scores)
    if found is None or rank(v) != 4:
        return
    q, k, scale = found
    is_turned = k is not _keys(scores)
    values = [value_of(node) for node in (q, k, v)]
    if any(value is None or value.ndim != 4 or value.dtype != torch.float32 for value in values):
        return
    if not _is_same_batch(values) or (mask is not None and not _is_mask(mask)):
        return
    keys = k if is_turned else insert(graph, product, aten.transpose.int, (k, -1, -2))
    options: dict[str, Any] = {"scale": scale}
    if mask is None or softmax is not weights:
        replace(graph, product, aten.scaled_dot_product_attention.default, (q, keys, v, mask), options)
        return
    # PyTorch gives 0 for a row that is masked as a whole, a softmax that is written out gives NaN.
    with graph.inserting_before(product):
        attended = graph.call_function(aten.scaled_dot_product_attention.default, (q, keys, v, mask), options)
    attended.meta = dict(product.meta)
    rows = insert(graph, product, aten.all.dim, (insert(graph, product, aten.eq.Scalar, (mask, -math.inf)), -1, True))
    replace(graph, product, aten.masked_fill.Scalar, (attended, rows, math.nan))


def _keys(scores: Any) -> Any:
    """Return the second operand of the product of queries and keys, without its factor."""
    return _unscaled(_unscaled(scores)[0].args[1])[0]


def _through_guard(node: Any) -> Any:
    """Step over `where(isnan(p), 0, p)`, which gives rows without any key zeros, as the operator does itself."""
    if is_call(node, aten.where.self) and is_call(node.args[0], aten.isnan.default):
        inner = node.args[2]
        return inner if node.args[0].args[0] is inner else node
    if (
        is_call(node, aten.where.ScalarSelf)
        and is_call(node.args[0], aten.isnan.default)
        and number(node.args[1]) == 0.0
    ):
        inner = node.args[2]
        return inner if node.args[0].args[0] is inner else node
    return node


def _is_scores(node: Any) -> bool:
    return _scores(node) is not None


def _scores(node: Any) -> tuple[Any, Any, float] | None:
    """Return q, k' and the factor of `factor * (a * q) @ (b * k')`."""
    factor = 1.0
    node, outer = _unscaled(node)
    factor *= outer
    if not is_call(node, aten.matmul.default) or rank(node) != 4 or only_user(node) is None:
        return None
    q, left = _unscaled(node.args[0])
    turned, right = _unscaled(node.args[1])
    straight = _unturned(turned)
    k, within = (turned, 1.0) if straight is None else _unscaled(straight)
    return q, k, factor * left * right * within


def _unturned(node: Any) -> Any:
    """Return the tensor of four axes of which a node swaps the last two; None if it does not."""
    if is_call(node, aten.permute.default) and list(node.args[1]) == [0, 1, 3, 2]:
        return node.args[0]
    if is_call(node, aten.transpose.int) and sorted(axis % 4 for axis in node.args[1:3]) == [2, 3]:
        return node.args[0]
    if not is_call(node, aten.reshape.default) or not is_call(node.args[0], aten.permute.default):
        return None
    flat = node.args[0].args[0]  # PyTorch's exporter joins batch and heads for the swap
    if list(node.args[0].args[1]) != [0, 2, 1] or not is_call(flat, aten.reshape.default):
        return None
    source, result = value_of(flat.args[0]), value_of(node)
    if source is None or result is None or source.ndim != 4 or result.ndim != 4:
        return None
    swapped = [source.shape[axis] for axis in (0, 1, 3, 2)]
    inner = [value.shape[-2:] for value in (source, value_of(flat)) if value is not None]
    is_same = [str(size) for size in swapped] == [str(size) for size in result.shape]
    return flat.args[0] if is_same and [str(s) for s in inner[0]] == [str(s) for s in inner[-1]] else None


def _unscaled(node: Any) -> tuple[Any, float]:
    if is_call(node, aten.mul.Tensor) and (factor := number(node.args[1])) is not None:
        return node.args[0], factor
    if is_call(node, aten.div.Tensor) and (divisor := number(node.args[1])) not in (None, 0.0):
        return node.args[0], 1.0 / float(divisor or 1.0)
    return node, 1.0


def _is_same_batch(values: list[torch.Tensor | None]) -> bool:
    """Tell whether queries, keys and values have the same batch and heads: nothing is broadcast."""
    shapes = [value.shape[:2] for value in values if value is not None]
    return all(str(a) == str(b) for shape in shapes[1:] for a, b in zip(shapes[0], shape, strict=True))


def _is_mask(node: Any) -> bool:
    value = value_of(node)
    return value is not None and value.ndim in (2, 4) and value.dtype == torch.float32
