"""Complex tensors, as one more axis of (real, imaginary): Fourier transforms and simple arithmetic of their results.

An input, weight or output of a model is never complex; within it, what is not listed here is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from noa_conversion.exporters.jax_to_onnx.builder import Operand, Value
from noa_conversion.exporters.jax_to_onnx.dtypes import is_complex
from noa_conversion.exporters.jax_to_onnx.elementwise import IDENTITIES, identity
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler, as_stored, is_same_size
from noa_conversion.exporters.jax_to_onnx.shaping import slice_axes

_MOVING = (
    *("reshape", "transpose", "squeeze", "broadcast_in_dim", "concatenate", "slice", "dynamic_slice", "rev", "gather"),
    *("dynamic_update_slice", "reduce_sum", "select_n", "split", "expand_dims", "cumsum", "tile", "pad"),
)


def moved(call: Call) -> Sequence[Operand]:
    """Apply a primitive that treats the real and imaginary parts alike to each of them."""
    if call.primitive not in _MOVING:
        raise call.refuse("this exporter has no rule for it on complex numbers")
    return apply_to_parts(call, [is_complex(value.dtype) for value in call.inputs])


def apply_to_parts(call: Call, has_parts: Sequence[bool]) -> Sequence[Operand]:
    """Apply a primitive to each part along the last axis of the tensors that have parts."""
    import jax

    axes = tuple(-1 if has else None for has in has_parts)

    def function(*stored: Any) -> Any:
        return jax.vmap(lambda *parts: call.bind(*parts, **call.params), in_axes=axes, out_axes=-1)(*stored)

    return call.trace(function, *call.inputs)


def _transform(call: Call) -> list[Operand]:
    (value,) = call.inputs
    kind = int(call.params["fft_type"])  # 0 FFT, 1 IFFT, 2 RFFT, 3 IRFFT
    lengths = tuple(call.params["fft_lengths"])
    first = value.rank - len(lengths)
    if kind == 3:
        return [_inverse_to_real(call, value, lengths)]
    data: Operand = value
    if not is_complex(value.dtype):
        data = call.node("Unsqueeze", value, call.graph.integers([value.rank]))
    for axis in range(value.rank - 1, first - 1, -1):
        data = _transform_axis(call, data, axis, inverse=kind == 1)
        if kind == 2 and axis == value.rank - 1:
            data = slice_axes(call.graph, data, {axis: (0, lengths[-1] // 2 + 1, 1)})
    return [data]


def _transform_axis(call: Call, data: Operand, axis: int, *, inverse: bool) -> str:
    if call.graph.opset >= 20:
        return call.node("DFT", data, "", call.graph.constant(np.int64(axis)), inverse=int(inverse))
    return call.node("DFT", data, inverse=int(inverse), axis=axis)


def _inverse_to_real(call: Call, value: Value, lengths: tuple[Any, ...]) -> Operand:
    """Complete the half that is not stored, which mirrors the other half's conjugate, and take the real part."""
    graph = call.graph
    axis = value.rank - 1
    data: Operand = value
    for place in range(value.rank - len(lengths), axis):
        data = _transform_axis(call, data, place, inverse=True)
    half, length = value.shape[axis], lengths[-1]
    if not is_same_size(half, length // 2 + 1):
        raise call.refuse("its input has another size than half its length", received=(half, length))
    last = (length - 1) // 2  # the places 1 .. last have a mirror image
    middle = slice_axes(graph, data, {axis: (1, last + 1, 1)})
    mirrored = slice_axes(graph, middle, {axis: (-1, -np.iinfo(np.int64).max, -1)})
    sign = graph.constant(np.asarray([1, -1], as_stored(value).dtype))
    whole = graph.node("Concat", data, graph.node("Mul", mirrored, sign), axis=axis)
    # The imaginary parts of the first place, and of the middle one of an even number, count for nothing.
    result = _transform_axis(call, whole, axis, inverse=True)
    return graph.node("Gather", result, graph.constant(np.int64(0)), axis=axis + 1)


def _part(call: Call, index: int) -> list[Operand]:
    return [call.node("Gather", call.inputs[0], call.graph.constant(np.int64(index)), axis=call.inputs[0].rank)]


def _complex(call: Call) -> list[Operand]:
    axes = call.graph.integers([call.inputs[0].rank])
    parts = [call.node("Unsqueeze", value, axes) for value in call.inputs]
    return [call.node("Concat", *parts, axis=call.inputs[0].rank)]


def _conjugate(call: Call) -> list[Operand]:
    (value,) = call.inputs
    if not is_complex(value.dtype):
        return [_with_zero(call, value)]
    return [call.node("Mul", value, call.graph.constant(np.asarray([1, -1], as_stored(value).dtype)))]


def _magnitude(call: Call) -> list[Operand]:
    """Source: `max * sqrt(1 + (min / max)^2)`, which neither overflows nor loses small numbers."""
    from jax import numpy as jnp

    def function(stored: Any) -> Any:
        first, second = jnp.abs(stored[..., 0]), jnp.abs(stored[..., 1])
        large, small = jnp.maximum(first, second), jnp.minimum(first, second)
        is_plain = (large > 0) & (large < jnp.inf)
        ratio = jnp.where(is_plain, small, 0) / jnp.where(is_plain, large, 1)
        return jnp.where(is_plain, large * jnp.sqrt(1 + ratio * ratio), large)

    return list(call.trace(function, *call.inputs))


def _pairwise(call: Call, function: Callable[..., Any]) -> list[Operand]:
    """Write a function of the parts of both sides: `(a, b), (c, d) -> (real, imaginary)`."""
    from jax import numpy as jnp

    def stored(*operands: Any) -> Any:
        parts = [operand[..., index] for operand in operands for index in (0, 1)]
        return jnp.stack(function(*parts), axis=-1)

    return list(call.trace(stored, *call.inputs))


def _divide(a: Any, b: Any, c: Any, d: Any) -> tuple[Any, Any]:
    scale = c * c + d * d
    return (a * c + b * d) / scale, (b * c - a * d) / scale


def _convert(call: Call) -> list[Operand]:
    (value,) = call.inputs
    target = np.dtype(call.params["new_dtype"])
    if is_complex(value.dtype) and is_complex(target):
        return [call.cast(value, as_stored(Value(shape=(), dtype=target, constant=None)).dtype)]
    if is_complex(value.dtype):
        raise call.refuse("it drops the imaginary part", received=target.name)
    return [_with_zero(call, call.cast(value, "float32" if target == np.complex64 else "float64"))]


def _with_zero(call: Call, real: Operand) -> str:
    """Return real numbers as complex ones."""
    rank = call.inputs[0].rank
    apart = call.node("Unsqueeze", real, call.graph.integers([rank]))
    return call.node("Pad", apart, call.graph.integers([*[0] * (2 * rank + 1), 1]), mode="constant")


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(IDENTITIES, identity),
    "fft": _transform,
    "real": partial(_part, index=0),
    "imag": partial(_part, index=1),
    "complex": _complex,
    "conj": _conjugate,
    "abs": _magnitude,
    "neg": partial(_pairwise, function=lambda a, b: (-a, -b)),
    "add": partial(_pairwise, function=lambda a, b, c, d: (a + c, b + d)),
    "add_any": partial(_pairwise, function=lambda a, b, c, d: (a + c, b + d)),
    "sub": partial(_pairwise, function=lambda a, b, c, d: (a - c, b - d)),
    "mul": partial(_pairwise, function=lambda a, b, c, d: (a * c - b * d, a * d + b * c)),
    "div": partial(_pairwise, function=_divide),
    "convert_element_type": _convert,
}
