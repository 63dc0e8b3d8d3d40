"""`dot_general`: MatMul where the axes allow it, Einsum otherwise."""

from __future__ import annotations

from string import ascii_letters

import numpy as np

from noa_conversion.exporters.jax_to_onnx.builder import Operand, Value
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler

_COMPUTED = {"float16", "float32", "float64", "int32", "int64"}


def _dot_general(call: Call) -> list[Operand]:
    left, right = call.inputs
    result_type = np.dtype(call.outputs[0].dtype)
    if result_type.name not in _COMPUTED:
        raise call.refuse("it multiplies matrices of a dtype that onnxruntime does not", received=result_type.name)
    operands = [_as(call, value, result_type) for value in (left, right)]
    (contract_left, contract_right), (batch_left, batch_right) = call.params["dimension_numbers"]
    free_left = _free_axes(left, contract_left, batch_left)
    free_right = _free_axes(right, contract_right, batch_right)
    fits_batched = len(free_left) == len(free_right) == 1
    fits_plain = not batch_left and len(free_right) == 1 and len(free_left) >= 1
    if len(contract_left) == 1 and (fits_batched or fits_plain):
        first = _permuted(call, operands[0], [*batch_left, *free_left, *contract_left])
        second = _permuted(call, operands[1], [*batch_right, *contract_right, *free_right])
        return [call.node("MatMul", first, second)]
    return [_einsum(call, operands, free_left, free_right)]


def _einsum(call: Call, operands: list[Operand], free_left: list[int], free_right: list[int]) -> str:
    left = call.inputs[0]
    (contract_left, contract_right), (batch_left, batch_right) = call.params["dimension_numbers"]
    letters = iter(ascii_letters)
    names_left = {axis: next(letters) for axis in range(left.rank)}
    names_right: dict[int, str] = {}
    for mine, theirs in ((batch_left, batch_right), (contract_left, contract_right)):
        names_right.update({int(b): names_left[int(a)] for a, b in zip(mine, theirs, strict=True)})
    names_right.update({axis: next(letters) for axis in free_right})
    result = [names_left[int(axis)] for axis in (*batch_left, *free_left)] + [names_right[axis] for axis in free_right]
    terms = ("".join(names[axis] for axis in range(len(names))) for names in (names_left, names_right))
    return call.node("Einsum", *operands, equation=f"{','.join(terms)}->{''.join(result)}")


def _permuted(call: Call, operand: Operand, axes: list[int]) -> Operand:
    order = [int(axis) for axis in axes]
    return operand if order == sorted(order) else call.node("Transpose", operand, perm=order)


def _free_axes(value: Value, contract: list[int], batch: list[int]) -> list[int]:
    return [axis for axis in range(value.rank) if axis not in contract and axis not in batch]


def _as(call: Call, value: Value, dtype: np.dtype[np.generic]) -> Operand:
    return value if value.dtype == dtype else call.cast(value, dtype)


HANDLERS: dict[str, Handler] = {"dot_general": _dot_general}
