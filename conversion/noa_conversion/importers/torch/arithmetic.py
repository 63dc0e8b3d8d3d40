"""Sums, products, powers, comparisons and bits: operators with two or more operands that broadcast."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from noa_conversion.importers.op import Op
from noa_conversion.importers.target import Value
from noa_conversion.importers.torch import unsigned
from noa_conversion.importers.torch.dtypes import widened
from noa_conversion.importers.torch.operands import in_wider, is_integer, placed, scalar_of, second_operand
from noa_conversion.importers.torch.table import register


@register("Add", "Mul", "Sub")
def add_mul_sub(op: Op, a: Value, b: Value) -> torch.Tensor:
    """`Add`, `Mul`, `Sub`; whole numbers wrap."""
    compute: Callable[..., torch.Tensor] = {"Add": torch.add, "Mul": torch.mul, "Sub": torch.sub}[op.kind]
    b = placed(op, a, b)
    if isinstance(a, np.ndarray) and not isinstance(b, np.ndarray) and op.kind != "Sub":
        a, b = b, a
    first = op.tensor(a)
    return in_wider(compute, first, second_operand(op, first, b))


@register("Div")
def div(op: Op, a: Value, b: Value) -> torch.Tensor:
    """Division; of whole numbers towards zero."""
    b = placed(op, a, b)
    if scalar_of(a) == 1.0 and isinstance(b, torch.Tensor) and b.is_floating_point() and a.ndim <= b.ndim:
        return torch.reciprocal(b)
    first = op.tensor(a)
    second = second_operand(op, first, b)
    if not is_integer(first):
        return torch.div(first, second)
    if first.dtype == torch.uint64:
        return unsigned.divide(first.to(torch.int64), op.tensor(b).to(torch.int64)).to(torch.uint64)
    return in_wider(functools.partial(torch.div, rounding_mode="trunc"), first, second)


@register("Mod")
def mod(op: Op, a: Value, b: Value) -> torch.Tensor:
    """Remainder with the sign of the divisor, or of the dividend with `fmod`."""
    is_fmod = bool(op.attribute("fmod", 0))
    first = op.tensor(a)
    if first.dtype == torch.uint64:
        wide, divisor = first.to(torch.int64), op.tensor(b).to(torch.int64)
        return (wide - unsigned.divide(wide, divisor) * divisor).to(torch.uint64)
    return in_wider(torch.fmod if is_fmod else torch.remainder, first, second_operand(op, first, b))


@register("Pow")
def pow_(op: Op, a: Value, b: Value) -> torch.Tensor:
    """Power, in the type of the base."""
    b = placed(op, a, b)
    first = op.tensor(a)
    exponent = second_operand(op, first, b)
    if isinstance(exponent, torch.Tensor) and exponent.dtype == torch.uint64:
        if not first.is_floating_point():
            op.refuse("PyTorch has no integer powers with exponents of 64-bit unsigned integers")
        exponent = exponent.to(torch.float64)
    if isinstance(exponent, float) and exponent.is_integer() and abs(exponent) < 2**31:
        exponent = int(exponent) if exponent >= 0 or first.is_floating_point() else exponent
    if isinstance(exponent, torch.Tensor):
        exponent = widened(exponent)
        if is_integer(first) and exponent.is_floating_point():
            return torch.pow(first.to(torch.float64), exponent.to(torch.float64)).to(first.dtype)
        if first.is_floating_point() and exponent.is_floating_point() and exponent.dtype != first.dtype:
            wide = torch.promote_types(first.dtype, exponent.dtype)
            return torch.pow(first.to(wide), exponent.to(wide)).to(first.dtype)
    elif is_integer(first) and (isinstance(exponent, float) or exponent < 0):
        return torch.pow(first.to(torch.float64), exponent).to(first.dtype)
    return in_wider(torch.pow, first, exponent)


@register("Max", "Min", "Sum", "Mean", tensors=True)
def variadic(op: Op, *inputs: torch.Tensor) -> torch.Tensor:
    """`Max`, `Min`, `Sum`, `Mean` of any number of tensors."""
    dtype = inputs[0].dtype
    if op.kind in ("Max", "Min"):
        compute = torch.maximum if op.kind == "Max" else torch.minimum
        if dtype == torch.uint64:
            best = functools.reduce(compute, [unsigned.ordered(tensor) for tensor in inputs])
            return unsigned.ordered(best).to(dtype)
        return in_wider(lambda *wide: functools.reduce(compute, wide), *inputs)
    total = functools.reduce(torch.add, inputs)
    return total / len(inputs) if op.kind == "Mean" else total


@register("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")
def compare(op: Op, a: Value, b: Value) -> torch.Tensor:
    """Comparisons."""
    compute: Callable[..., torch.Tensor] = {
        "Equal": torch.eq,
        "Greater": torch.gt,
        "Less": torch.lt,
        "GreaterOrEqual": torch.ge,
        "LessOrEqual": torch.le,
    }[op.kind]
    b = placed(op, a, b)
    first = op.tensor(a)
    second = second_operand(op, first, b)
    if isinstance(second, torch.Tensor):
        return compute(unsigned.in_order(first), unsigned.in_order(second))
    return compute(widened(first), second)


@register("And", "Or", "Xor", tensors=True)
def logical(op: Op, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Logic of truth values."""
    b = placed(op, a, b)
    compute = {"And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor}[op.kind]
    return compute(a, b)


@register("BitwiseAnd", "BitwiseOr", "BitwiseXor", tensors=True)
def bitwise(op: Op, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Logic of bits."""
    compute: Callable[..., torch.Tensor] = {
        "BitwiseAnd": torch.bitwise_and,
        "BitwiseOr": torch.bitwise_or,
        "BitwiseXor": torch.bitwise_xor,
    }[op.kind]
    return in_wider(compute, a, b)


@register("BitwiseNot", "Not", tensors=True)
def invert(op: Op, a: torch.Tensor) -> torch.Tensor:
    """Logic of one operand."""
    return torch.logical_not(a) if op.kind == "Not" else in_wider(torch.bitwise_not, a)


@register("BitShift", tensors=True)
def bit_shift(op: Op, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Shift bits; a count outside the width gives what shifting one by one would."""
    direction = op.attribute("direction")
    if direction not in ("LEFT", "RIGHT"):
        op.refuse(f"the direction `{direction}` is unknown")
    width = a.element_size() * 8
    wide = a.to(torch.int64)
    count = b.to(torch.int64) if b.dtype != torch.uint64 else b.to(torch.int64).where(b.to(torch.int64) >= 0, 64)
    is_far = (count < 0) | (count >= width)
    near = count.clamp(0, width - 1)
    if direction == "LEFT":
        shifted = torch.bitwise_left_shift(wide, near)
        result = torch.where(is_far, torch.zeros_like(shifted), shifted)
    elif a.dtype == torch.uint64:
        result = unsigned.shift_right(wide, count)
    else:
        shifted = torch.bitwise_right_shift(wide, near)
        result = torch.where(is_far, torch.where(wide < 0, -1, 0).to(shifted.dtype), shifted)
    return result.to(a.dtype)


@register("Where", tensors=True)
def where(op: Op, condition: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Choose between two tensors by truth values."""
    return in_wider(lambda x, y: torch.where(condition, x, y), a, b)


def _bound(value: Value, dtype: torch.dtype) -> Any:
    scalar = scalar_of(value)
    if scalar is None or dtype in (torch.uint16, torch.uint32, torch.uint64):
        return None
    return scalar


@register("Clip")
def clip(op: Op, x: Value, low: Value = None, high: Value = None) -> torch.Tensor:
    """Keep values between two bounds; the upper wins if they cross."""
    tensor = op.tensor(x)
    if op.version < 11:
        low = np.asarray(op.attribute("min", -np.inf), np.float64)
        high = np.asarray(op.attribute("max", np.inf), np.float64)
    lowest, highest = _bound(low, tensor.dtype), _bound(high, tensor.dtype)
    if (low is None or lowest is not None) and (high is None or highest is not None):
        lowest = None if lowest == -np.inf else lowest
        highest = None if highest == np.inf else highest
        return tensor if lowest is None and highest is None else torch.clamp(tensor, lowest, highest)
    is_64 = tensor.dtype == torch.uint64

    def compute(wide: torch.Tensor, bottom: torch.Tensor | None, top: torch.Tensor | None) -> torch.Tensor:
        wide = unsigned.ordered(wide) if is_64 else wide
        if bottom is not None:
            wide = torch.maximum(wide, unsigned.ordered(bottom) if is_64 else bottom)
        if top is not None:
            wide = torch.minimum(wide, unsigned.ordered(top) if is_64 else top)
        return unsigned.ordered(wide) if is_64 else wide

    bounds = [None if bound is None else op.tensor(bound) for bound in (low, high)]
    return in_wider(compute, tensor, *bounds)
