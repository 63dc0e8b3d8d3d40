"""Along one axis, which pixels make each pixel of a resized image, and with what weights: numpy, in double precision.

Source: the specification of ONNX's `Resize` and its reference implementation (onnx/reference/ops/op_resize.py, Apache
2.0), whose rule for ties between neighbours is kept. Sizes are rounded as onnxruntime does it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisResize:
    """How one axis is resized."""

    size: int
    new_size: int
    scale: float
    start: float = 0.0
    end: float = 1.0
    """The region of interest, as shares of the axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeRule:
    """What is the same for all axes."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    antialias: bool
    exclude_outside: bool


def scaled_size(size: int, factor: float) -> int:
    """Return the pixels of a scaled axis, by 32 bits as onnxruntime has them: 0.7 of 10 is 7."""
    return int(np.float32(factor) * np.float32(size))


def source_places(axis: AxisResize, coordinates: str) -> np.ndarray:
    """Return where each new pixel lies in the source.

    `length_resized` of the standard is the whole number of pixels there are, as in onnxruntime and PyTorch; its
    reference takes the size times the scale, which only `half_pixel_symmetric` is defined by. That one is written with
    a single rounding; `size / 2 * (1 - new / (scale * size)) + (i + 0.5) / scale - 0.5` ends a hair beside a pixel.

    Raises:
        ValueError: the transformation is unknown.
    """
    new = np.arange(axis.new_size, dtype=np.float64)
    width = axis.scale * axis.size
    if coordinates == "align_corners":
        return new * (axis.size - 1) / max(axis.new_size - 1, 1)
    if coordinates == "asymmetric":
        return new / axis.scale
    if coordinates == "tf_crop_and_resize":
        span = (axis.end - axis.start) * (axis.size - 1)
        inside = np.full_like(new, span / 2) if axis.new_size == 1 else new * span / (axis.new_size - 1)
        return inside + axis.start * (axis.size - 1)
    if coordinates == "pytorch_half_pixel" and width == 1:
        return np.full_like(new, -0.5)
    if coordinates in ("half_pixel", "pytorch_half_pixel"):
        return (new + 0.5) / axis.scale - 0.5
    if coordinates == "half_pixel_symmetric":
        return (new + 0.5 - axis.new_size / 2) / axis.scale + (axis.size - 1) / 2
    raise ValueError(f"the transformation of coordinates `{coordinates}` is unknown")


def resize_weights(axis: AxisResize, rule: ResizeRule) -> tuple[np.ndarray, np.ndarray]:
    """Return indices and weights, both (new size, number of neighbours).

    Raises:
        ValueError: a mode is unknown.
    """
    places = source_places(axis, rule.coordinates)
    floor = np.floor(places)
    ratios = np.where(places == floor, 1.0, places - floor)
    weights = np.stack([_coefficients(float(ratio), axis.scale, rule) for ratio in ratios])
    count = weights.shape[1]
    margin = math.ceil(count / 2)
    whole = floor + margin  # not the floor of the sum, which rounds a place a hair before a pixel up to it
    rest = places - floor
    if count % 2 == 0:
        first = whole + np.where(rest == 0, -(count // 2), -(count // 2) + 1)
    else:
        first = whole + np.where(rest <= 0.5, -((count - 1) // 2), -((count - 1) // 2) + 1)
    indices = first[:, None].astype(np.int64) + np.arange(count) - margin
    if rule.exclude_outside:
        weights = np.where((indices < 0) | (indices >= axis.size), 0.0, weights)
        total = weights.sum(axis=-1, keepdims=True)
        weights = weights / np.where(total == 0, 1.0, total)
    return np.clip(indices, 0, axis.size - 1), weights


def _coefficients(ratio: float, scale: float, rule: ResizeRule) -> np.ndarray:
    if rule.mode == "nearest":
        return _nearest(ratio, rule.nearest)
    if rule.mode == "linear":
        return _linear(ratio, min(scale, 1.0)) if rule.antialias else np.array([1 - ratio, ratio])
    if rule.mode == "cubic":
        return _cubic(ratio, min(scale, 1.0) if rule.antialias else 1.0, rule.cubic)
    raise ValueError(f"the mode `{rule.mode}` is unknown")


def _nearest(ratio: float, mode: str) -> np.ndarray:
    if ratio == 1.0:
        return np.array([0.0, 1.0])
    takes_right = {
        "round_prefer_floor": ratio > 0.5,
        "round_prefer_ceil": ratio >= 0.5,
        "floor": False,
        "ceil": True,
    }
    if mode not in takes_right:
        raise ValueError(f"the rounding `{mode}` is unknown")
    return np.array([0.0, 1.0]) if takes_right[mode] else np.array([1.0, 0.0])


def _linear(ratio: float, scale: float) -> np.ndarray:
    start = math.floor(-1 / scale) + 1
    weights = np.clip(1 - np.abs((np.arange(start, 2 - start) - ratio) * scale), 0, 1)
    return weights / weights.sum()


def _cubic(ratio: float, scale: float, a: float) -> np.ndarray:
    start = math.floor(-2 / scale) + 1
    x = np.abs(scale * (np.arange(start, 2 - start) - ratio))
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    weights = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
    return weights / weights.sum() if scale < 1.0 else weights
