"""Windows that move over an image: maxima, means, norms, and their inverse."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

from noa_conversion.importers.op import Op
from noa_conversion.importers.target import Size, Value
from noa_conversion.importers.torch.convolution import Window, window_of
from noa_conversion.importers.torch.operands import is_integer, is_static
from noa_conversion.importers.torch.table import register

_MAX: dict[int, Any] = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE: dict[int, Any] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def _window(op: Op, x: torch.Tensor) -> Window:
    kernel = list(op.attribute("kernel_shape"))
    if len(kernel) not in _MAX:
        op.refuse(f"PyTorch pools over 1 to 3 axes, not {len(kernel)}")
    return window_of(op, list(x.shape[2:]), kernel)


def _counts(op: Op, x: torch.Tensor, window: Window) -> list[Size]:
    """Return how often the window fits along each axis."""
    is_ceil = bool(op.attribute("ceil_mode", 0))
    counts: list[Size] = []
    for axis, size in enumerate(x.shape[2:]):
        stride = window.strides[axis]
        room = size + window.before[axis] + window.after[axis] - (window.kernel[axis] - 1) * window.dilations[axis] - 1
        count = room // stride + 1
        if is_ceil:
            if not is_static(size):
                op.refuse("with `ceil_mode` and uneven padding its size depends on an axis that is free")
            count = -(-room // stride) + 1
            count -= (count - 1) * stride >= size + window.before[axis]
        counts.append(count)
    return counts


def _covered(x: torch.Tensor, window: Window, counts: list[Size], fill: float) -> torch.Tensor:
    """Pad (or cut) an image to exactly what the windows cover."""
    flat: list[Size] = []
    for axis in reversed(range(len(counts))):
        reach = (counts[axis] - 1) * window.strides[axis] + (window.kernel[axis] - 1) * window.dilations[axis] + 1
        flat += [window.before[axis], reach - x.shape[axis + 2] - window.before[axis]]
    return functional.pad(x, flat, value=fill)


@register("MaxPool", tensors=True)
def max_pool(op: Op, x: torch.Tensor) -> tuple[torch.Tensor, ...] | torch.Tensor:
    """Maxima, and if asked for their places in the flattened image."""
    window = _window(op, x)
    wants_places = op.wants(1)
    image = x.to(torch.float32) if is_integer(x) and x.element_size() == 1 else x
    compute = _MAX[len(window.kernel)]
    can_pass = window.is_even and all(2 * pad <= size for pad, size in zip(window.before, window.kernel, strict=True))
    if can_pass:
        is_ceil = bool(op.attribute("ceil_mode", 0))
        result = compute(image, window.kernel, window.strides, window.before, window.dilations, is_ceil, wants_places)
        y, places = result if wants_places else (result, None)
        width = list(x.shape[2:])
    else:
        padded = _covered(image, window, _counts(op, x, window), -math.inf)
        result = compute(padded, window.kernel, window.strides, 0, window.dilations, False, wants_places)
        y, places = result if wants_places else (result, None)
        width = list(padded.shape[2:])
    y = y.to(x.dtype)
    if places is None:
        return y
    before: list[Size] = [0] * len(width) if can_pass else window.before
    return y, _places_in_image(op, x, places, width, before)


def _places_in_image(
    op: Op, x: torch.Tensor, places: torch.Tensor, width: list[Size], before: list[Size]
) -> torch.Tensor:
    """Turn places in a padded channel into places in the flattened tensor; `storage_order` 1 counts columns first."""
    coordinates: list[torch.Tensor] = []
    rest = places
    for axis in reversed(range(len(width))):
        coordinates.insert(0, rest % width[axis] - before[axis])
        rest = torch.div(rest, width[axis], rounding_mode="floor")
    sizes = list(x.shape[2:])
    order = list(range(len(sizes)))
    if op.attribute("storage_order", 0):
        order.reverse()
    inside = coordinates[order[0]]
    for axis in order[1:]:
        inside = inside * sizes[axis] + coordinates[axis]
    channels = torch.arange(x.shape[0] * x.shape[1]).reshape([x.shape[0], x.shape[1], *[1] * len(sizes)])
    return inside + channels * math.prod(sizes)


@register("AveragePool", tensors=True)
def average_pool(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Means, of the padding too with `count_include_pad`."""
    window = _window(op, x)
    counts_padding = bool(op.attribute("count_include_pad", 0))
    can_pass = window.is_even and all(2 * pad <= size for pad, size in zip(window.before, window.kernel, strict=True))
    if can_pass and all(dilation == 1 for dilation in window.dilations):
        compute = _AVERAGE[len(window.kernel)]
        is_ceil = bool(op.attribute("ceil_mode", 0))
        return compute(x, window.kernel, window.strides, window.before, is_ceil, counts_padding)
    counts = _counts(op, x, window)
    total = _sums(_covered(x, window, counts, 0.0), window, counts)
    ones = torch.ones([1, 1, *x.shape[2:]], dtype=x.dtype)
    if counts_padding:
        ones = functional.pad(ones, window.flat_padding, value=1.0)
        bare = Window(
            kernel=window.kernel,
            strides=window.strides,
            dilations=window.dilations,
            before=[0] * len(counts),
            after=[0] * len(counts),
        )
        return total / _sums(_covered(ones, bare, counts, 0.0), bare, counts)
    return total / _sums(_covered(ones, window, counts, 0.0), window, counts)


def _sums(padded: torch.Tensor, window: Window, counts: list[Size]) -> torch.Tensor:
    """Sum each window of an image that is padded already: axis by axis, as the windows are boxes."""
    for axis, count in enumerate(counts):
        stride, dilation = window.strides[axis], window.dilations[axis]
        parts = [
            torch.ops.aten.slice.Tensor(padded, axis + 2, i * dilation, i * dilation + (count - 1) * stride + 1, stride)
            for i in range(window.kernel[axis])
        ]
        padded = parts[0]
        for part in parts[1:]:
            padded = padded + part
    return padded


@register("LpPool", tensors=True)
def lp_pool(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Norms of windows."""
    window = _window(op, x)
    order = op.attribute("p", 2)
    counts = _counts(op, x, window)
    return torch.pow(_sums(_covered(torch.pow(torch.abs(x), order), window, counts, 0.0), window, counts), 1.0 / order)


@register("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", tensors=True)
def global_pool(op: Op, x: torch.Tensor) -> torch.Tensor:
    """One value per channel."""
    axes = list(range(2, x.ndim))
    if op.kind == "GlobalAveragePool":
        return torch.mean(x, axes, keepdim=True)
    if op.kind == "GlobalMaxPool":
        return torch.amax(x, axes, keepdim=True)
    return torch.linalg.vector_norm(x, op.attribute("p", 2), axes, keepdim=True)


@register("MaxUnpool")
def max_unpool(op: Op, x: Value, places: Value, output_shape: Value = None) -> torch.Tensor:
    """Put maxima back where they came from; the rest is zero."""
    tensor = op.tensor(x)
    kernel = list(op.attribute("kernel_shape"))
    window = window_of(op, list(tensor.shape[2:]), kernel)
    inferred: list[Size] = list(tensor.shape[:2])
    for axis, size in enumerate(tensor.shape[2:]):
        inferred.append((size - 1) * window.strides[axis] + kernel[axis] - window.before[axis] - window.after[axis])
    flat = torch.zeros([math.prod(inferred)], dtype=tensor.dtype)
    filled = torch.scatter(flat, 0, op.tensor(places).reshape(-1), tensor.reshape(-1)).reshape(inferred)
    if output_shape is None:
        return filled
    wanted = op.integers(output_shape, "output_shape")
    return functional.pad(
        filled, [w for axis in reversed(range(tensor.ndim)) for w in (0, wanted[axis] - inferred[axis])]
    )
