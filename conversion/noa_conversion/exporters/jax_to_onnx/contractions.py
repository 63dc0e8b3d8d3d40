"""`dot_general`: MatMul wherever transpositions and reshapes lead to it, Einsum otherwise."""

from __future__ import annotations

from string import ascii_letters
from typing import Any

import numpy as np

from noa_conversion.exporters.jax_to_onnx.builder import Operand, Value
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler, is_static
from noa_conversion.exporters.jax_to_onnx.shaping import reshape_to

# What runtimes do not multiply is widened; the low bits of integer products do not depend on the high ones.
_WIDER = {
    "int8": "int32",
    "uint8": "int32",
    "int16": "int32",
    "uint16": "int32",
    "uint32": "int32",
    "bfloat16": "float32",
}
_COMPUTED = {"float16", "float32", "float64", "int32", "int64", *_WIDER}


def _dot_general(call: Call) -> list[Operand]:
    result_type = np.dtype(call.outputs[0].dtype)
    if result_type.name not in _COMPUTED:
        raise call.refuse("it multiplies matrices of a dtype that runtimes do not", received=result_type.name)
    computed = np.dtype(_WIDER.get(result_type.name, result_type.name))
    left, right = (_as(call, value, computed) for value in call.inputs)
    return [call.cast_from(_product(call, left, right), computed, result_type)]


def _product(call: Call, left: Value, right: Value) -> Operand:
    (contract_left, contract_right), (batch_left, batch_right) = call.params["dimension_numbers"]
    free_left = _free_axes(left, contract_left, batch_left)
    free_right = _free_axes(right, contract_right, batch_right)
    if len(contract_left) == 1 and len(free_left) == len(free_right) == 1:
        first = call.permuted(left, [*batch_left, *free_left, *contract_left])
        second = call.permuted(right, [*batch_right, *contract_right, *free_right])
        return call.node("MatMul", first, second)
    if not batch_left and free_left and contract_left and free_right and is_static(right.shape):
        return _with_matrix(call, left, right, free_left, free_right)
    return _einsum(call, left, right, free_left, free_right)


def _with_matrix(call: Call, left: Value, right: Value, free_left: list[int], free_right: list[int]) -> Operand:
    """Multiply by a right side of known sizes, seen as one matrix (contracted, free)."""
    (contract_left, contract_right), _ = call.params["dimension_numbers"]
    rows = [int(right.shape[axis]) for axis in contract_right]
    columns = [int(right.shape[axis]) for axis in free_right]
    first = call.permuted(left, [*free_left, *contract_left])
    second = call.permuted(right, [*contract_right, *free_right])
    kept = [left.shape[axis] for axis in free_left]
    if len(rows) > 1:
        first = reshape_to(call.graph, first, (*kept, _total(rows)))
    if len(rows) > 1 or len(columns) > 1:
        second = reshape_to(call.graph, second, (_total(rows), _total(columns)))
    result = call.node("MatMul", first, second)
    return result if len(columns) == 1 else reshape_to(call.graph, result, (*kept, *columns))


def _total(sizes: list[int]) -> int:
    return int(np.prod(sizes))


def _einsum(call: Call, left: Value, right: Value, free_left: list[int], free_right: list[int]) -> str:
    (contract_left, contract_right), (batch_left, batch_right) = call.params["dimension_numbers"]
    letters = iter(ascii_letters)
    names_left = {axis: next(letters) for axis in range(left.rank)}
    names_right: dict[int, str] = {}
    for mine, theirs in ((batch_left, batch_right), (contract_left, contract_right)):
        names_right.update({int(b): names_left[int(a)] for a, b in zip(mine, theirs, strict=True)})
    names_right.update({axis: next(letters) for axis in free_right})
    result = [names_left[int(axis)] for axis in (*batch_left, *free_left)] + [names_right[axis] for axis in free_right]
    terms = ("".join(names[axis] for axis in range(len(names))) for names in (names_left, names_right))
    return call.node("Einsum", left, right, equation=f"{','.join(terms)}->{''.join(result)}")


def _free_axes(value: Value, contract: list[int], batch: list[int]) -> list[int]:
    return [axis for axis in range(value.rank) if axis not in contract and axis not in batch]


def _as(call: Call, value: Value, dtype: np.dtype[Any]) -> Value:
    if value.dtype == dtype:
        return value
    return Value(shape=value.shape, dtype=dtype, name=call.cast(value, dtype))


HANDLERS: dict[str, Handler] = {"dot_general": _dot_general}
