"""Functions of one value at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch.nn import functional

from noa_conversion.importers.op import Op
from noa_conversion.importers.torch.dtypes import widened
from noa_conversion.importers.torch.operands import in_wider, is_integer, is_static
from noa_conversion.importers.torch.table import register

_SIMPLE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": functional.hardswish,
    "Log": torch.log,
    "Mish": functional.mish,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}
_FOR_INTEGERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Relu": torch.relu,
    "Sign": torch.sign,
}


@register(*_SIMPLE, tensors=True)
def simple(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Functions that PyTorch has by the same meaning."""
    if is_integer(x):
        return _SIMPLE[op.kind](x.to(torch.float64)).to(x.dtype)
    return _SIMPLE[op.kind](x)


@register(*_FOR_INTEGERS, tensors=True)
def for_integers(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Functions of floats and whole numbers; unsigned ones are their own absolute value."""
    if x.dtype in (torch.uint8, torch.uint16, torch.uint32, torch.uint64):
        if op.kind in ("Abs", "Relu"):
            return x
        if op.kind == "Sign":
            return (widened(x) != 0).to(x.dtype)
    if op.kind == "Sign" and x.is_floating_point():
        return torch.where(torch.isnan(x), x, torch.sign(x))
    if op.kind == "Relu" and x.dtype in (torch.int8, torch.int16):
        return torch.clamp(x, min=0)
    return in_wider(_FOR_INTEGERS[op.kind], x)


@register("Softplus", tensors=True)
def softplus(op: Op, x: torch.Tensor) -> torch.Tensor:
    """`log(exp(x) + 1)`, without overflow."""
    return functional.softplus(x)


@register("Identity")
def identity(op: Op, x: object) -> object:
    """The value itself, of any kind."""
    return x


@register("IsNaN", tensors=True)
def is_nan(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Whether a value is no number."""
    return torch.isnan(x.to(torch.float32) if x.element_size() == 1 else x)


@register("IsInf", tensors=True)
def is_inf(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Whether a value is infinite, of the signs asked for."""
    x = x.to(torch.float32) if x.element_size() == 1 else x
    negative, positive = op.attribute("detect_negative", 1), op.attribute("detect_positive", 1)
    if negative and positive:
        return torch.isinf(x)
    if negative:
        return torch.isneginf(x)
    return torch.isposinf(x) if positive else torch.zeros_like(x, dtype=torch.bool)


@register("LeakyRelu", tensors=True)
def leaky_relu(op: Op, x: torch.Tensor) -> torch.Tensor:
    """A slope below zero."""
    return functional.leaky_relu(x, op.attribute("alpha", 0.01))


@register("PRelu", tensors=True)
def prelu(op: Op, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """A learnt slope below zero."""
    if x.dtype in (torch.uint8, torch.uint16, torch.uint32, torch.uint64):
        return x
    if is_integer(x):
        return in_wider(lambda wide, by: torch.where(wide < 0, wide * by, wide), x, slope)
    if op.version < 7 and slope.ndim == 1 and x.ndim > 1 and slope.shape[0] != 1:
        slope = slope.reshape([-1] + [1] * (x.ndim - 2))
    is_per_channel = slope.ndim == x.ndim - 1 and x.ndim > 1 and all(size == 1 for size in slope.shape[1:])
    if is_per_channel and is_static(slope.shape[0]) and slope.shape[0] == x.shape[1]:
        return functional.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


@register("Elu", "Celu", tensors=True)
def elu(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Exponential units."""
    alpha = op.attribute("alpha", 1.0)
    return functional.elu(x, alpha) if op.kind == "Elu" else torch.celu(x, alpha)


@register("Selu", tensors=True)
def selu(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Scaled exponential units; opsets before 6 have rounder constants."""
    alpha = op.attribute("alpha", 1.67326319217681884765625 if op.version >= 6 else 1.6732)
    gamma = op.attribute("gamma", 1.05070102214813232421875 if op.version >= 6 else 1.0507)
    return gamma * functional.elu(x, alpha)


@register("ThresholdedRelu", tensors=True)
def thresholded_relu(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Zero up to a threshold."""
    return functional.threshold(x, op.attribute("alpha", 1.0), 0.0)


@register("HardSigmoid", tensors=True)
def hard_sigmoid(op: Op, x: torch.Tensor) -> torch.Tensor:
    """A line between zero and one."""
    alpha, beta = op.attribute("alpha", 0.2), op.attribute("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return functional.hardsigmoid(x)
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


@register("Gelu", tensors=True)
def gelu(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Gaussian units, exact or through tanh."""
    return functional.gelu(x, approximate=op.attribute("approximate", "none"))


@register("Swish", tensors=True)
def swish(op: Op, x: torch.Tensor) -> torch.Tensor:
    """`x * sigmoid(alpha * x)`."""
    alpha = op.attribute("alpha", 1.0)
    return functional.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


@register("Shrink", tensors=True)
def shrink(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Zero near zero, moved towards it elsewhere."""
    bias, threshold = op.attribute("bias", 0.0), op.attribute("lambd", 0.5)
    compute = functools.partial(_shrunk, bias=bias, threshold=threshold)
    return compute(x.to(torch.float64)).to(x.dtype) if is_integer(x) else compute(x)


def _shrunk(x: torch.Tensor, *, bias: float, threshold: float) -> torch.Tensor:
    below = torch.where(x < -threshold, x + bias, torch.zeros_like(x))
    return torch.where(x > threshold, x - bias, below)


@register("Softmax", "LogSoftmax", tensors=True)
def softmax(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Over one axis; before opset 13 over all axes from one on."""
    compute = torch.softmax if op.kind == "Softmax" else torch.log_softmax
    axis = op.axis(op.attribute("axis", -1 if op.version >= 13 else 1), max(x.ndim, 1))
    if op.version >= 13 or axis == x.ndim - 1:
        return compute(x, axis)
    return compute(x.flatten(axis), axis).reshape(x.shape)


@register("Hardmax", tensors=True)
def hardmax(op: Op, x: torch.Tensor) -> torch.Tensor:
    """One at the first greatest value of an axis, zero elsewhere."""
    axis = op.axis(op.attribute("axis", -1 if op.version >= 13 else 1), x.ndim)
    flat = x if op.version >= 13 else x.flatten(axis)
    best = torch.argmax(flat, axis, keepdim=True)
    places = torch.arange(flat.shape[axis], device=flat.device).reshape([-1] + [1] * (flat.ndim - 1 - axis))
    return (places == best).to(x.dtype).reshape(x.shape)
