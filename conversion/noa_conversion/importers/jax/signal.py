"""Fourier transforms, windows and the mel scale."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from noa_conversion.importers.jax.dtypes import element_type, held_as
from noa_conversion.importers.jax.handlers import Tensor, register

if TYPE_CHECKING:
    from noa_conversion.importers.op import Op


@register("DFT")
def dft(op: Op, data: Any, length: Any = None, axis: Any = None) -> Tensor:
    """Transform along an axis; real and imaginary parts are the last axis."""
    x = op.tensor(data)
    named = op.attribute("axis", 1) if op.version < 20 else -2
    along = op.axis(named if axis is None else int(op.integer(axis, "axis")), x.ndim)
    inverse, onesided = bool(op.attribute("inverse", 0)), bool(op.attribute("onesided", 0))
    size = None if length is None else int(op.integer(length, "dft_length"))
    wide = _widened(x)
    if inverse and onesided:
        count = 2 * (x.shape[along] - 1) if size is None else size
        return jnp.fft.irfft(_complex(op, wide), count, axis=along)[..., None].astype(x.dtype)
    signal = _complex(op, wide) if wide.shape[-1] == 2 else wide[..., 0]
    if inverse:
        result = jnp.fft.ifft(signal, size, axis=along)
    elif onesided and not jnp.iscomplexobj(signal):
        result = jnp.fft.rfft(signal, size, axis=along)
    else:
        result = jnp.fft.fft(signal, size, axis=along)
        if onesided:
            result = lax.slice_in_dim(result, 0, result.shape[along] // 2 + 1, axis=along)
    return _parts(result).astype(x.dtype)


def _widened(x: Tensor) -> Tensor:
    """Return a signal in the type to compute in: for real ones 64 bits where the scope has them."""
    is_real = x.shape[-1] != 2
    return x.astype(held_as(np.float64) if is_real else jnp.promote_types(x.dtype, jnp.float32))


def _complex(op: Op, x: Tensor) -> Tensor:
    if x.shape[-1] == 1:
        return lax.complex(x[..., 0], jnp.zeros_like(x[..., 0]))
    if x.shape[-1] != 2:
        op.refuse(f"the last axis holds {x.shape[-1]} parts of a number")
    return lax.complex(x[..., 0], x[..., 1])


def _parts(x: Tensor) -> Tensor:
    return jnp.stack([x.real, x.imag], axis=-1)


@register("STFT")
def stft(op: Op, data: Any, step: Any, window: Any = None, length: Any = None) -> Tensor:
    """Transform overlapping frames of a signal, each weighed by a window."""
    given = op.tensor(data)
    x = _widened(given)
    stride = int(op.integer(step, "frame_step"))
    if length is not None:
        size = int(op.integer(length, "frame_length"))
    else:
        size = x.shape[1] if window is None else op.shape(window)[0]
    onesided = bool(op.attribute("onesided", 1))
    signal = x[..., 0] if x.ndim == 2 or x.shape[-1] == 1 else _complex(op, x)
    signal = x if x.ndim == 2 else signal
    count = (signal.shape[1] - size) // stride + 1
    index = np.arange(count)[:, None] * stride + np.arange(size)[None, :]
    frames = jnp.take(signal, jnp.asarray(index, jnp.int32), axis=1, mode="clip")
    if window is not None:
        frames = frames * op.tensor(window).astype(x.dtype)
    if jnp.iscomplexobj(frames):
        result = jnp.fft.fft(frames, axis=-1)
        result = result[..., : size // 2 + 1] if onesided else result
    else:
        result = jnp.fft.rfft(frames, axis=-1) if onesided else jnp.fft.fft(frames, axis=-1)
    return _parts(result).astype(given.dtype)


def _cosines(*factors: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda turns: sum((f * np.cos(i * turns) for i, f in enumerate(factors)), np.zeros_like(turns))


# Hamming's factors are those of the schema's own body.
_WINDOWS = {
    "HannWindow": _cosines(0.5, -0.5),
    "HammingWindow": _cosines(25 / 46, -21 / 46),
    "BlackmanWindow": _cosines(0.42, -0.5, 0.08),
}


def _window(shape: Callable[[np.ndarray], np.ndarray], op: Op, size: Any) -> Tensor:
    length = int(op.integer(size, "size"))
    period = length if op.attribute("periodic", 1) else length - 1
    values = shape(2 * np.pi * np.arange(length) / max(period, 1))
    return op.tensor(values.astype(element_type(op, op.attribute("output_datatype", 1))))


for _kind, _shape in _WINDOWS.items():
    register(_kind)(functools.partial(_window, _shape))


@register("MelWeightMatrix")
def mel_weight_matrix(op: Op, bins: Any, length: Any, rate: Any, lower: Any, upper: Any) -> Tensor:
    """Return triangular filters that are evenly spaced on the mel scale. As onnx.reference of onnx 1.23 does it."""
    count, size = int(op.integer(bins, "num_mel_bins")), int(op.integer(length, "dft_length"))
    low, high = (
        2595 * np.log10(1 + float(op.known(edge, name).reshape(-1)[0]) / 700)
        for edge, name in ((lower, "lower_edge_hertz"), (upper, "upper_edge_hertz"))
    )
    mels = np.arange(count + 2) * ((high - low) / (count + 2)) + low
    hertz = 700 * (10 ** (mels / 2595) - 1)
    places = ((size + 1) * hertz // int(op.integer(rate, "sample_rate"))).astype(int)
    matrix = np.zeros((size // 2 + 1, count))
    for i in range(count):
        left, centre, right = places[i : i + 3]
        if centre == left:
            matrix[centre, i] = 1
        else:
            rising = np.arange(left, centre + 1)
            matrix[rising, i] = (rising - left) / (centre - left)
        if right > centre:
            falling = np.arange(centre, right)
            matrix[falling, i] = (right - falling) / (right - centre)
    return op.tensor(matrix.astype(element_type(op, op.attribute("output_datatype", 1))))
