"""Computes at import what depends on constants only, and writes constants of one element as plain numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from noa_conversion.importers.torch.dtypes import is_float8
from noa_conversion.importers.torch.fusion.matching import aten, is_call, rank, value_of
from noa_conversion.importers.torch.operands import is_static
from noa_conversion.importers.torch.target import CONSTANTS, outside_the_trace, set_attribute

_MAX_ELEMENTS = 1 << 16
"""Larger results are computed at run time: they would make the module large."""
_MAX_KEPT_BYTES = 256 << 20
"""What all results together may take; what comes after is computed at run time."""
_MAX_WORK = 1 << 28
"""The most multiplications, or elements read and written, of one call; what asks for more is computed at run time."""
_MAX_TOTAL_WORK = 1 << 32
_PRODUCTS = {"matmul", "mm", "bmm", "addmm", "linear", "einsum", "lstm", "gru", "scaled_dot_product_attention"}
_BINARY = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
_COMPARED = {
    aten.eq.Tensor: aten.eq.Scalar,
    aten.ne.Tensor: aten.ne.Scalar,
    aten.lt.Tensor: aten.lt.Scalar,
    aten.le.Tensor: aten.le.Scalar,
    aten.gt.Tensor: aten.gt.Scalar,
    aten.ge.Tensor: aten.ge.Scalar,
    aten.pow.Tensor_Tensor: aten.pow.Tensor_Scalar,
}


def fold_constants(module: torch.fx.GraphModule) -> None:
    """Replace what is the same in every run by its value."""
    with outside_the_trace(), torch.no_grad():
        known = _known_values(module)
        _store(module, known)
    for node in module.graph.nodes:
        _write_number(node, known)


def drop_idle_casts(module: torch.fx.GraphModule) -> None:
    """Drop casts to the type that a tensor has already."""
    for node in list(module.graph.nodes):
        if is_call(node, aten.to.dtype) and len(node.args) == 2 and not node.kwargs:
            value = value_of(node.args[0])
            if value is not None and value.dtype == node.args[1]:
                node.replace_all_uses_with(node.args[0])


def _known_values(module: torch.fx.GraphModule) -> dict[Node, torch.Tensor]:
    known: dict[Node, torch.Tensor] = {}
    kept_bytes = total_work = 0
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value = module.get_buffer(node.target) if str(node.target).startswith(f"{CONSTANTS}.") else None
            if isinstance(value, torch.Tensor):
                known[node] = value
        elif node.op == "call_function" and _is_foldable(node, known):
            work = _work_of(node, known)
            if work > _MAX_WORK or total_work + work > _MAX_TOTAL_WORK or kept_bytes > _MAX_KEPT_BYTES:
                continue
            try:
                result = node.target(
                    *torch.fx.map_arg(node.args, known.__getitem__), **torch.fx.map_arg(node.kwargs, known.__getitem__)
                )
            except (RuntimeError, ValueError, TypeError):
                continue  # it is left to run time, where it says itself what is wrong
            known[node] = result
            total_work += work
            kept_bytes += result.nbytes
    return known


def _work_of(node: Node, known: dict[Node, torch.Tensor]) -> int:
    """Return about how many steps a call takes: of a product, as many as its largest operand for each element."""
    operands = [known[operand].numel() for operand in node.all_input_nodes]
    value = value_of(node)
    count = value.numel() if value is not None else 0
    target: Any = node.target
    name = str(target._schema.name).removeprefix("aten::")
    if name in _PRODUCTS or "conv" in name:
        return count * max(operands, default=1)
    return count + sum(operands)


def _is_foldable(node: Node, known: dict[Node, torch.Tensor]) -> bool:
    value = value_of(node)
    target: Any = node.target
    if value is None or getattr(target, "namespace", "") != "aten":
        return False
    if not all(is_static(size) for size in value.shape) or value.numel() > _MAX_ELEMENTS:
        return False
    is_pure = torch.Tag.nondeterministic_seeded not in target.tags and not target._schema.is_mutable
    return is_pure and all(operand in known for operand in node.all_input_nodes)


def _store(module: torch.fx.GraphModule, known: dict[Node, torch.Tensor]) -> None:
    """Make buffers of the computed values that something else uses."""
    taken = {name for name, _ in module.named_buffers()}
    count = 0
    for node, value in list(known.items()):
        if node.op == "get_attr" or all(user in known for user in node.users):
            continue
        while f"{CONSTANTS}.c{count}" in taken:
            count += 1
        name = f"{CONSTANTS}.c{count}"
        taken.add(name)
        set_attribute(module, name, value.contiguous().clone())
        with module.graph.inserting_before(node):
            stored = module.graph.get_attr(name)
        stored.meta = dict(node.meta)
        node.replace_all_uses_with(stored)
        known[stored] = value


def _write_number(node: Any, known: dict[Node, torch.Tensor]) -> None:
    """Give a call of two operands its constant one as a number, where neither shape nor type depends on it."""
    if not is_call(node, *_BINARY, *_COMPARED) or len(node.args) != 2 or node.kwargs:
        return
    first, second = node.args
    if is_call(node, aten.add.Tensor, aten.mul.Tensor) and _scalar(first, second, known) is not None:
        first, second = second, first
    scalar = _scalar(second, first, known)
    if scalar is None:
        return
    node.args = (first, scalar)
    node.target = _COMPARED.get(node.target, node.target)


def _scalar(constant: Any, other: Any, known: dict[Node, torch.Tensor]) -> int | float | bool | None:
    value, beside = known.get(constant), value_of(other)
    if value is None or beside is None or other in known or value.numel() != 1 or value.ndim > rank(other):
        return None
    if value.dtype != beside.dtype or is_float8(value.dtype) or value.dtype == torch.bool or value.is_complex():
        return None
    return value.item()
