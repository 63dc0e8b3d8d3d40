"""Operators that work element by element, with numpy's broadcasting."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from noa_conversion.importers.jax.casting import cut_to_whole
from noa_conversion.importers.jax.dtypes import is_float, is_unsigned
from noa_conversion.importers.jax.handlers import Tensor, register

if TYPE_CHECKING:
    from noa_conversion.importers.op import Op

_SELU_ALPHA = 1.67326319217681884765625
_SELU_GAMMA = 1.05070102214813232421875
_LARGEST_UNROLLED_POWER = 8

_UNARY: dict[str, Callable[[Any], Any]] = {
    "Abs": jnp.abs,
    "Acos": jnp.arccos,
    "Acosh": jnp.arccosh,
    "Asin": jnp.arcsin,
    "Asinh": jnp.arcsinh,
    "Atan": jnp.arctan,
    "Atanh": jnp.arctanh,
    "BitwiseNot": jnp.bitwise_not,
    "Ceil": jnp.ceil,
    "Cos": jnp.cos,
    "Cosh": jnp.cosh,
    "Erf": lax.erf,
    "Exp": jnp.exp,
    "Floor": jnp.floor,
    "Log": jnp.log,
    "Mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
    "Neg": jnp.negative,
    "Not": jnp.logical_not,
    "Reciprocal": lambda x: 1 / x,
    "Relu": lambda x: jnp.maximum(x, jnp.zeros((), x.dtype)),
    "Round": jnp.round,  # halves to even, in both
    "Sigmoid": jax.nn.sigmoid,
    "Sign": jnp.sign,
    "Sin": jnp.sin,
    "Sinh": jnp.sinh,
    "Softplus": jax.nn.softplus,
    "Softsign": lambda x: x / (1 + jnp.abs(x)),
    "Sqrt": jnp.sqrt,
    "Tan": jnp.tan,
    "Tanh": jnp.tanh,
    "HardSwish": lambda x: x * jnp.clip(x * (1 / 6) + 0.5, 0, 1),
}
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": jnp.add,
    "And": jnp.logical_and,
    "BitwiseAnd": jnp.bitwise_and,
    "BitwiseOr": jnp.bitwise_or,
    "BitwiseXor": jnp.bitwise_xor,
    "Equal": jnp.equal,
    "Greater": jnp.greater,
    "GreaterOrEqual": jnp.greater_equal,
    "Less": jnp.less,
    "LessOrEqual": jnp.less_equal,
    "Mul": jnp.multiply,
    "Or": jnp.logical_or,
    "Sub": jnp.subtract,
    "Xor": jnp.logical_xor,
}
_VARIADIC: dict[str, Callable[[Any, Any], Any]] = {
    "Max": jnp.maximum,
    "Min": jnp.minimum,
    "Sum": jnp.add,
}


def _register_tables() -> None:
    for kind, function in _UNARY.items():
        register(kind, tensors=True)(functools.partial(_unary, function))
    for kind, function in _BINARY.items():
        register(kind, tensors=True)(functools.partial(_binary, function))
    for kind, function in _VARIADIC.items():
        register(kind, tensors=True)(functools.partial(_variadic, function))


def _unary(function: Callable[[Any], Any], op: Op, x: Tensor) -> Tensor:
    return function(x)


def _binary(function: Callable[[Any, Any], Any], op: Op, a: Tensor, b: Tensor) -> Tensor:
    return function(a, aligned(op, a, b))


def _variadic(function: Callable[[Any, Any], Any], op: Op, *values: Tensor) -> Tensor:
    return functools.reduce(function, values)


_register_tables()


def aligned(op: Op, a: Tensor, b: Tensor) -> Tensor:
    """Return `b` with the axes that opsets before 7 give it by attributes; newer ones broadcast as numpy does."""
    if op.version >= 7 or not op.attribute("broadcast", 0) or not op.has("axis"):
        return b
    axis = op.axis(int(op.attribute("axis")), a.ndim)
    return b.reshape(b.shape + (1,) * (a.ndim - axis - b.ndim))


@register("Identity")
def identity(op: Op, x: Any) -> Any:
    """Pass anything through, sequences and absent optionals too."""
    return x


@register("Div", tensors=True)
def divide(op: Op, a: Tensor, b: Tensor) -> Tensor:
    """Divide; integers are cut towards zero."""
    b = aligned(op, a, b)
    if is_float(a):
        return jnp.divide(a, b)
    shape = jnp.broadcast_shapes(a.shape, b.shape)
    return lax.div(jnp.broadcast_to(a, shape), jnp.broadcast_to(b, shape))


@register("Mean", tensors=True)
def mean(op: Op, *values: Tensor) -> Tensor:
    """Average any number of tensors."""
    return functools.reduce(jnp.add, values) / len(values)


@register("Mod", tensors=True)
def mod(op: Op, a: Tensor, b: Tensor) -> Tensor:
    """Give the remainder with the sign of the divisor, or of the dividend with `fmod`."""
    return jnp.fmod(a, b) if op.attribute("fmod", 0) else jnp.mod(a, b)


@register("Pow")
def power(op: Op, x: Any, y: Any) -> Tensor:
    """Raise to a power of any type; the result has the type of the base. Small known integers become products."""
    base = op.tensor(x)
    if op.is_known(y) and y.size == 1 and y.ndim <= base.ndim:
        exponent = float(y.ravel()[0])
        if exponent.is_integer() and 0 < exponent <= _LARGEST_UNROLLED_POWER:
            return lax.integer_pow(base, int(exponent))
    exponent = aligned(op, base, op.tensor(y))
    if is_float(base):
        return jnp.power(base, exponent.astype(base.dtype))
    return jnp.power(base, exponent).astype(base.dtype)


@register("BitShift", tensors=True)
def bit_shift(op: Op, x: Tensor, y: Tensor) -> Tensor:
    """Shift bits, a sign to the right staying; by the width or more, or by a negative amount, only the sign is left."""
    direction = op.attribute("direction")
    if direction not in ("LEFT", "RIGHT"):
        op.refuse(f"`direction` is {direction!r}, neither LEFT nor RIGHT")
    shape = jnp.broadcast_shapes(x.shape, y.shape)
    x, y = jnp.broadcast_to(x, shape), jnp.broadcast_to(y, shape)
    if direction == "LEFT":
        return lax.shift_left(x, y)
    # lax gives what a shift by the width gives, also for a negative amount, which it reads as a large unsigned one.
    return lax.shift_right_logical(x, y) if is_unsigned(x) else lax.shift_right_arithmetic(x, y)


@register("Where", tensors=True)
def where(op: Op, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Choose by element."""
    return jnp.where(condition, x, y)


@register("Clip", tensors=True)
def clip(op: Op, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Hold between two bounds; the upper one wins where they cross."""
    if op.version < 11:
        low = jnp.asarray(op.attribute("min"), x.dtype) if op.has("min") else None
        high = jnp.asarray(op.attribute("max"), x.dtype) if op.has("max") else None
    x = x if low is None else jnp.maximum(x, low)
    return x if high is None else jnp.minimum(x, high)


@register("IsNaN", tensors=True)
def is_nan(op: Op, x: Tensor) -> Tensor:
    """Tell which elements are no numbers."""
    return jnp.isnan(_wide(x))


@register("IsInf", tensors=True)
def is_inf(op: Op, x: Tensor) -> Tensor:
    """Tell which elements are infinite, of the signs that are asked for."""
    x = _wide(x)
    positive, negative = op.attribute("detect_positive", 1), op.attribute("detect_negative", 1)
    if positive and negative:
        return jnp.isinf(x)
    if positive:
        return jnp.isposinf(x)
    return jnp.isneginf(x) if negative else jnp.zeros(x.shape, bool)


def _wide(x: Tensor) -> Tensor:
    return x.astype(jnp.float32) if np.dtype(x.dtype).itemsize == 1 else x


@register("Elu", tensors=True)
def elu(op: Op, x: Tensor) -> Tensor:
    """x, or alpha * (exp(x) - 1) below zero."""
    return jax.nn.elu(x, op.attribute("alpha", 1.0))


@register("Celu", tensors=True)
def celu(op: Op, x: Tensor) -> Tensor:
    """x, or alpha * (exp(x / alpha) - 1) below zero."""
    return jax.nn.celu(x, op.attribute("alpha", 1.0))


@register("Selu", tensors=True)
def selu(op: Op, x: Tensor) -> Tensor:
    """Scaled `Elu`."""
    return op.attribute("gamma", _SELU_GAMMA) * jax.nn.elu(x, op.attribute("alpha", _SELU_ALPHA))


@register("Gelu", tensors=True)
def gelu(op: Op, x: Tensor) -> Tensor:
    """x times the normal distribution function, or its approximation by tanh."""
    return jax.nn.gelu(x, approximate=op.attribute("approximate", "none") == "tanh")


@register("Swish", tensors=True)
def swish(op: Op, x: Tensor) -> Tensor:
    """x * sigmoid(alpha * x)."""
    return x * jax.nn.sigmoid(op.attribute("alpha", 1.0) * x)


@register("SwiGLU", tensors=True)
def swiglu(op: Op, a: Tensor, b: Tensor) -> Tensor:
    """Swish of one half times the other."""
    return a * jax.nn.sigmoid(op.attribute("alpha", 1.0) * a) * b


@register("HardSigmoid", tensors=True)
def hard_sigmoid(op: Op, x: Tensor) -> Tensor:
    """alpha * x + beta, held in 0 to 1."""
    return jnp.clip(op.attribute("alpha", 0.2) * x + op.attribute("beta", 0.5), 0, 1)


@register("LeakyRelu", tensors=True)
def leaky_relu(op: Op, x: Tensor) -> Tensor:
    """x, or alpha * x below zero."""
    return jnp.where(x < 0, op.attribute("alpha", 0.01) * x, x)


@register("PRelu", tensors=True)
def parametric_relu(op: Op, x: Tensor, slope: Tensor) -> Tensor:
    """x, or slope * x below zero. Before opset 7 a slope counts along the channels."""
    if op.version < 7 and slope.ndim == 1 and slope.size > 1:
        slope = slope.reshape((-1,) + (1,) * (x.ndim - 2))
    return jnp.where(x < 0, slope * x, x)


@register("ThresholdedRelu", tensors=True)
def thresholded_relu(op: Op, x: Tensor) -> Tensor:
    """x where it is above alpha, else zero."""
    return jnp.where(x > op.attribute("alpha", 1.0), x, jnp.zeros((), x.dtype))


@register("Shrink", tensors=True)
def shrink(op: Op, x: Tensor) -> Tensor:
    """Move towards zero by `bias` outside of +-`lambd`, else zero."""
    bias, threshold = op.attribute("bias", 0.0), op.attribute("lambd", 0.5)
    wide = x if is_float(x) else x.astype(jnp.float64)
    moved = jnp.where(
        wide < -threshold, wide + bias, jnp.where(wide > threshold, wide - bias, jnp.zeros((), wide.dtype))
    )
    return moved if is_float(x) else cut_to_whole(moved, x.dtype)
