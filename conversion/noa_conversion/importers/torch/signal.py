"""Fourier transforms and windows."""

from __future__ import annotations

import math

import numpy as np
import torch

from noa_conversion.importers.op import Op
from noa_conversion.importers.target import Value
from noa_conversion.importers.torch.casting import named_dtype
from noa_conversion.importers.torch.table import register


def _one(op: Op, value: Value, what: str) -> int:
    return int(np.asarray(op.known(value, what)).reshape(()))


@register("DFT")
def dft(op: Op, x: Value, length: Value = None, axis: Value = None) -> torch.Tensor:
    """Along one axis of real or complex numbers; the last axis holds real and imaginary parts."""
    tensor = op.tensor(x)
    along = op.attribute("axis", 1) if op.version < 20 else (-2 if axis is None else _one(op, axis, "axis"))
    along = op.axis(along, tensor.ndim)
    is_inverse, is_onesided = bool(op.attribute("inverse", 0)), bool(op.attribute("onesided", 0))
    count = None if length is None else op.integer(length, "dft_length")
    if along == tensor.ndim - 1:
        op.refuse("the last axis holds the parts of complex numbers and cannot be transformed")
    parts = tensor.shape[-1]
    if is_inverse and is_onesided:
        real = torch.fft.irfft(_complex(tensor), count, along)
        return real.unsqueeze(-1)
    if parts == 1 and not is_inverse:
        real = tensor.squeeze(-1)
        result = torch.fft.rfft(real, count, along) if is_onesided else torch.fft.fft(real, count, along)
        return torch.view_as_real(result)
    if is_onesided:
        op.refuse("one side of the transform needs real numbers")
    compute = torch.fft.ifft if is_inverse else torch.fft.fft
    return torch.view_as_real(compute(_complex(tensor), count, along))


def _complex(x: torch.Tensor) -> torch.Tensor:
    if x.shape[-1] == 1:
        return torch.complex(x.squeeze(-1), torch.zeros_like(x.squeeze(-1)))
    return torch.view_as_complex(x.contiguous())


@register("STFT")
def stft(op: Op, signal: Value, step: Value, window: Value = None, length: Value = None) -> torch.Tensor:
    """Transforms of frames of a signal."""
    tensor = op.tensor(signal)
    hop = op.integer(step, "frame_step")
    weights = None if window is None else op.tensor(window)
    size = op.integer(length, "frame_length") if length is not None else (None if weights is None else weights.shape[0])
    if size is None:
        op.refuse("it has neither a window nor a length of frames")
    is_complex = tensor.ndim == 3 and tensor.shape[-1] == 2
    is_onesided = bool(op.attribute("onesided", 1))
    flat = _complex(tensor) if is_complex else tensor.reshape(tensor.shape[0], tensor.shape[1])
    frames = flat.unfold(1, size, hop)
    if weights is not None:
        frames = frames * weights
    if is_complex and is_onesided:
        op.refuse("one side of the transform needs real numbers")
    result = torch.fft.rfft(frames) if is_onesided else torch.fft.fft(frames)
    return torch.view_as_real(result)


_COSINES = {
    "HannWindow": (0.5, 0.5, 0.0),
    "HammingWindow": (25 / 46, 21 / 46, 0.0),
    "BlackmanWindow": (0.42, 0.5, 0.08),
}


@register(*_COSINES)
def window(op: Op, size: Value) -> torch.Tensor:
    """Windows that are sums of cosines."""
    dtype = named_dtype(op, op.attribute("output_datatype", 1))
    count = _one(op, size, "size")
    period = count if op.attribute("periodic", 1) else max(count - 1, 1)
    a, b, c = _COSINES[op.kind]
    phase = 2 * math.pi * np.arange(count) / period
    return op.tensor((a - b * np.cos(phase) + c * np.cos(2 * phase)).astype(dtype))


@register("MelWeightMatrix")
def mel_weight_matrix(op: Op, bins: Value, length: Value, rate: Value, low: Value, high: Value) -> torch.Tensor:
    """The matrix that turns a spectrum into one on the mel scale."""
    dtype = named_dtype(op, op.attribute("output_datatype", 1))
    count, size, sampled = _one(op, bins, "num_mel_bins"), _one(op, length, "dft_length"), _one(op, rate, "sample_rate")
    lower, upper = (float(np.asarray(op.known(v, n)).reshape(())) for v, n in ((low, "lower"), (high, "upper")))
    mels = [2595 * np.log1p(edge / 700) / np.log(10) for edge in (lower, upper)]
    steps = np.arange(count + 2) * ((mels[1] - mels[0]) / (count + 2)) + mels[0]
    places = ((size + 1) * (700 * np.expm1(steps / 2595 * np.log(10))) // sampled).astype(int)
    matrix = np.zeros((size // 2 + 1, count))
    for i in range(count):
        left, middle, right = places[i], places[i + 1], places[i + 2]
        if middle == left:
            matrix[middle, i] = 1
        else:
            matrix[left : middle + 1, i] = np.arange(middle + 1 - left) / (middle - left)
        if right > middle:
            matrix[middle:right, i] = np.arange(right - middle, 0, -1) / (right - middle)
    return op.tensor(matrix.astype(dtype))
