"""Primitives written in terms of others: special functions, bits, and the gradient of pooling.

Each is a JAX function of the same values, which is traced and walked in the primitive's place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import numpy as np

from noa_conversion.exporters.jax_to_onnx.builder import Operand, Value
from noa_conversion.exporters.jax_to_onnx.dtypes import is_float
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler

_UNROLLED_WINDOW = 64
# Giles 2012, "Approximating the erfinv function", table 1 (single precision): central and tail.
_ERF_INV_CENTRAL = (
    *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087),
    *(-0.00125372503, -0.00417768164, 0.246640727, 1.50140941),
)
_ERF_INV_TAIL = (
    *(-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773),
    *(-0.0076224613, 0.00943887047, 1.00167406, 2.83297682),
)
# Lanczos' approximation with g = 7 and 9 terms, as XLA uses it.
_LANCZOS_BASE = 0.99999999999980993227684700473478
_LANCZOS = (
    *(676.520368121885098567009190444019, -1259.13921672240287047156078755283),
    *(771.3234287776530788486528258894, -176.61502916214059906584551354),
    *(12.507343278686904814458936853, -0.13857109526572011689554707),
    *(9.984369578019570859563e-6, 1.50563273514931155834e-7),
)
_LANCZOS_G = 7.0


def _erf_inv(x: Any) -> Any:
    from jax import numpy as jnp

    small = -jnp.log1p(-x * x)
    is_central = small < 5.0
    central, tail = small - 2.5, jnp.sqrt(jnp.maximum(small, 5.0)) - 3.0
    result = jnp.where(is_central, _polynomial(_ERF_INV_CENTRAL, central), _polynomial(_ERF_INV_TAIL, tail)) * x
    beyond = jnp.where(jnp.abs(x) > 1.0, np.nan, result)  # far out, the product above is infinite and would stay so
    return jnp.where(jnp.abs(x) == 1.0, x * np.inf, beyond).astype(x.dtype)


def _polynomial(coefficients: tuple[float, ...], x: Any) -> Any:
    """Evaluate a polynomial by Horner's rule, highest power first."""
    result = np.asarray(coefficients[0], x.dtype)
    for coefficient in coefficients[1:]:
        result = result * x + np.asarray(coefficient, x.dtype)
    return result


def _log_gamma(x: Any) -> Any:
    """Source: Lanczos' approximation; below one half through the reflection `gamma(x) gamma(1-x) = pi / sin(pi x)`."""
    from jax import numpy as jnp

    is_low = x < 0.5
    z = jnp.where(is_low, -x, x - 1)
    series = _lanczos_series(z)
    log_t = np.log(_LANCZOS_G + 0.5) + jnp.log1p(z / (_LANCZOS_G + 0.5))
    t = z + _LANCZOS_G + 0.5
    high = (z + 0.5 - t / log_t) * log_t + np.log(np.sqrt(2 * np.pi)) + jnp.log(series)
    fraction = jnp.abs(x) - jnp.floor(jnp.abs(x))
    fraction = jnp.where(fraction > 0.5, 1 - fraction, fraction)
    sine = jnp.log(jnp.sin(np.pi * fraction))
    low = jnp.where(jnp.isfinite(sine), np.log(np.pi) - sine - high, -sine)
    result = jnp.where(is_low, low, high)
    return jnp.where(jnp.isinf(x), jnp.inf, result).astype(x.dtype)


def _lanczos_series(z: Any) -> Any:
    total = np.asarray(_LANCZOS_BASE, z.dtype)
    for index, coefficient in enumerate(_LANCZOS):
        total = total + np.asarray(coefficient, z.dtype) / (z + (index + 1))
    return total


def _digamma(x: Any) -> Any:
    """Source: the logarithmic derivative of Lanczos' approximation, with the reflection below one half."""
    from jax import numpy as jnp

    is_low = x < 0.5
    z = jnp.where(is_low, -x, x - 1)
    top, bottom = np.asarray(0, x.dtype), np.asarray(_LANCZOS_BASE, x.dtype)
    for index, coefficient in enumerate(_LANCZOS):
        shifted = z + (index + 1)
        top = top - np.asarray(coefficient, x.dtype) / (shifted * shifted)
        bottom = bottom + np.asarray(coefficient, x.dtype) / shifted
    t = z + _LANCZOS_G + 0.5
    log_t = np.log(_LANCZOS_G + 0.5) + jnp.log1p(z / (_LANCZOS_G + 0.5))
    high = log_t + top / bottom - _LANCZOS_G / t
    reduced = x + jnp.abs(jnp.floor(x + 0.5))
    low = high - np.pi * jnp.cos(np.pi * reduced) / jnp.sin(np.pi * reduced)
    is_pole = (x <= 0) & (x == jnp.floor(x))
    return jnp.where(is_pole, jnp.nan, jnp.where(is_low, low, high)).astype(x.dtype)


def _population_count(x: Any) -> Any:
    """Count set bits: one shift and mask per bit of the dtype."""
    from jax import lax
    from jax import numpy as jnp

    bits = x.dtype.itemsize * 8
    words = lax.convert_element_type(_unsigned(x), jnp.uint32)
    total = sum((words >> np.uint32(place)) & np.uint32(1) for place in range(bits))
    return lax.convert_element_type(total, x.dtype)


def _leading_zeros(x: Any) -> Any:
    """Fill all places below the highest bit, and count those that stay clear."""
    from jax import lax
    from jax import numpy as jnp

    bits = x.dtype.itemsize * 8
    words = lax.convert_element_type(_unsigned(x), jnp.uint32)
    for step in (1, 2, 4, 8, 16):
        words = words | (words >> np.uint32(step))
    return lax.convert_element_type(np.uint32(bits) - lax.population_count(words), x.dtype)


def _unsigned(x: Any) -> Any:
    from jax import lax

    return lax.convert_element_type(x, np.dtype(f"uint{x.dtype.itemsize * 8}"))


def _bitcast(call: Call) -> list[Operand]:
    (value,) = call.inputs
    target = np.dtype(call.params["new_dtype"])
    source = value.dtype
    if source == target:
        return [value]
    if source.itemsize == target.itemsize and source.kind in "iu" and target.kind in "iu":
        return [call.cast(value, target)]
    if target == np.float32 and source.kind in "iu" and source.itemsize == 4:
        return [call.trace(_float_of_bits, value)[0]]
    if source == np.float32 and target.kind in "iu" and target.itemsize == 4:
        (bits,) = call.trace(_bits_of_float, value)
        return [call.cast_to(bits, target)]
    raise call.refuse("ONNX of this opset reads no bits as another type", received=f"{source.name} as {target.name}")


def _float_of_bits(x: Any) -> Any:
    """Compute the number that 32 bits stand for from sign, exponent and fraction; each step is exact."""
    from jax import lax
    from jax import numpy as jnp

    words = lax.convert_element_type(x, jnp.uint32)
    exponent = lax.convert_element_type((words >> np.uint32(23)) & np.uint32(255), jnp.int32)
    fraction = lax.convert_element_type(words & np.uint32((1 << 23) - 1), jnp.float32) * np.float32(2.0**-23)
    scale = jnp.asarray(_powers_of_two())[exponent]
    whole = jnp.where(exponent == 0, fraction, 1 + fraction) * scale
    special = jnp.where(fraction == 0, jnp.inf, jnp.nan)
    magnitude = jnp.where(exponent == 255, special, whole)
    return jnp.where((words >> np.uint32(31)) == 1, -magnitude, magnitude)


def _bits_of_float(x: Any) -> Any:
    """Compute the 32 bits of a number: the exponent by comparison with the powers of two; NaN has its usual bits."""
    from jax import lax
    from jax import numpy as jnp

    powers = jnp.asarray(_powers_of_two())
    size = jnp.abs(x)
    guess = jnp.clip(jnp.floor(jnp.log2(jnp.maximum(size, powers[1]))) + 127, 1, 254).astype(jnp.int32)
    guess = jnp.where(size < powers[guess], guess - 1, guess)
    guess = jnp.where((guess < 254) & (size >= powers[jnp.minimum(guess + 1, 254)]), guess + 1, guess)
    is_tiny = size < powers[1]
    exponent = jnp.where(is_tiny, 0, jnp.maximum(guess, 1))
    ratio = jnp.where(jnp.isfinite(size), size, 1) / powers[jnp.maximum(exponent, 1)]
    fraction = (jnp.where(is_tiny, ratio, ratio - 1) * np.float32(1 << 23)).astype(jnp.int32)
    bits = (exponent << 23) | fraction
    bits = jnp.where(jnp.isnan(x), 0x7FC00000, jnp.where(jnp.isinf(x), 0x7F800000, bits))
    is_negative = (x < 0) | ((x == 0) & (1 / x < 0))
    return lax.convert_element_type(jnp.where(is_negative, bits | np.int32(-(1 << 31)), bits), jnp.uint32)


def _powers_of_two() -> np.ndarray:
    """Return what each exponent field of a 32-bit number stands for; that of subnormal numbers first."""
    exponents = np.maximum(np.arange(255), 1) - 127
    return np.append(np.ldexp(np.float32(1), exponents).astype(np.float32), np.float32(1))


def _pooling_gradient(call: Call) -> list[Operand]:
    """Give each output's gradient to the first place of its window that holds the extreme."""
    from jax import lax
    from jax import numpy as jnp

    params = call.params
    window = [int(size) for size in params["window_dimensions"]]
    strides = [int(step) for step in params["window_strides"]]
    if prod(window) > _UNROLLED_WINDOW:
        raise call.refuse(f"its window has more than {_UNROLLED_WINDOW} places", received=window)
    if not is_float(call.inputs[0].dtype):
        raise call.refuse("it is not computed in floating point", received=call.inputs[0].dtype.name)
    is_largest = str(params["select_prim"]) == "ge"
    filler = np.asarray(-np.inf if is_largest else np.inf, call.inputs[1].dtype)
    pads = [(int(low), int(high)) for low, high in params["padding"]]

    def function(source: Any, operand: Any) -> Any:
        padded = lax.pad(operand, filler, [(low, high, 0) for low, high in pads])
        places = list(np.ndindex(*window))

        def part(place: tuple[int, ...]) -> Any:
            end = [i + (n - 1) * s + 1 for i, n, s in zip(place, source.shape, strides, strict=True)]
            return lax.slice(padded, place, end, strides)

        best = part(places[0])
        for place in places[1:]:
            best = lax.max(best, part(place)) if is_largest else lax.min(best, part(place))
        total, is_taken = jnp.zeros(padded.shape, source.dtype), jnp.zeros(source.shape, bool)
        for place in places:
            is_first = (part(place) == best) & ~is_taken
            is_taken = is_taken | is_first
            given = jnp.where(is_first, source, 0)
            config = [
                (i, size - (i + (n - 1) * s + 1), s - 1)
                for i, size, n, s in zip(place, padded.shape, source.shape, strides, strict=True)
            ]
            total = total + lax.pad(given, np.zeros((), source.dtype), config)
        return lax.pad(total, np.zeros((), source.dtype), [(-low, -high, 0) for low, high in pads])

    return list(call.trace(function, *call.inputs))


def _traced(call: Call, function: Callable[..., Any]) -> list[Operand]:
    """Write a function of one float in 32 bits at least."""
    (value,) = call.inputs
    if value.dtype.itemsize >= 4:
        return list(call.trace(function, value))
    wide = Value(shape=value.shape, dtype=np.dtype("float32"), name=call.cast(value, "float32"))
    return [call.cast(call.trace(function, wide)[0], value.dtype)]


HANDLERS: dict[str, Handler] = {
    "erf_inv": partial(_traced, function=_erf_inv),
    "lgamma": partial(_traced, function=_log_gamma),
    "digamma": partial(_traced, function=_digamma),
    "population_count": lambda call: list(call.trace(_population_count, *call.inputs)),
    "clz": lambda call: list(call.trace(_leading_zeros, *call.inputs)),
    "bitcast_convert_type": _bitcast,
    "select_and_scatter_add": _pooling_gradient,
}
