"""Convolutions: plain, transposed, deformable, of integers; and windows put back into images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from noa_conversion.importers.op import Op
from noa_conversion.importers.target import Size, Value
from noa_conversion.importers.torch.operands import in_wider, is_static
from noa_conversion.importers.torch.table import register


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Where a window moves over the axes of an image: sizes and paddings, before and after, per axis."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[Size]
    after: list[Size]

    @property
    def is_even(self) -> bool:
        """Tell whether the padding is the same on both sides, as PyTorch's own operators have it."""
        return all(
            isinstance(low, int) and isinstance(high, int) and low == high
            for low, high in zip(self.before, self.after, strict=True)
        )

    @property
    def flat_padding(self) -> list[Size]:
        """The paddings as `functional.pad` takes them: last axis first."""
        pairs = list(zip(self.before, self.after, strict=True))
        return [width for pair in reversed(pairs) for width in pair]


def window_of(op: Op, sizes: list[Size], kernel: list[int]) -> Window:
    """Read the window of an operator over axes of these sizes."""
    rank = len(kernel)
    strides = list(op.attribute("strides", [1] * rank))
    dilations = list(op.attribute("dilations", [1] * rank))
    mode = op.attribute("auto_pad", "NOTSET")
    pads: list[Size] = list(op.attribute("pads", [0] * 2 * rank))
    if mode == "VALID":
        pads = [0] * 2 * rank
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        low, high = [], []
        for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
            reach = (width - 1) * dilation + 1
            total = torch.sym_max(((size + stride - 1) // stride - 1) * stride + reach - size, 0)
            small = total // 2
            low.append(small if mode == "SAME_UPPER" else total - small)
            high.append(total - small if mode == "SAME_UPPER" else small)
        pads = [*low, *high]
    elif mode not in ("NOTSET", ""):
        op.refuse(f"the padding `{mode}` is unknown")
    if not len(pads) == 2 * len(strides) == 2 * len(dilations) == 2 * rank == 2 * len(sizes):
        op.refuse(f"its attributes do not fit a window of {rank} axes over {len(sizes)}")
    return Window(kernel=kernel, strides=strides, dilations=dilations, before=pads[:rank], after=pads[rank:])


def _kernel_of(op: Op, w: torch.Tensor) -> list[int]:
    kernel = list(w.shape[2:])
    if not all(is_static(size) for size in kernel):
        op.refuse("the size of its kernel is known only at run time")
    given = op.attribute("kernel_shape", kernel)
    if list(given) != kernel:
        op.refuse(f"its `kernel_shape` {given} is not that of its weights {kernel}")
    return kernel


_CONVOLUTIONS: dict[int, Any] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED: dict[int, Any] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def convolve(op: Op, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
    """Convolve by the attributes of `op`."""
    kernel = _kernel_of(op, w)
    window = window_of(op, list(x.shape[2:]), kernel)
    compute = _CONVOLUTIONS.get(len(kernel))
    if compute is None:
        op.refuse(f"PyTorch convolves over 1 to 3 axes, not {len(kernel)}")
    groups = op.attribute("group", 1)
    if window.is_even:
        return compute(x, w, b, window.strides, window.before, window.dilations, groups)
    return compute(functional.pad(x, window.flat_padding), w, b, window.strides, 0, window.dilations, groups)


@register("Conv", tensors=True)
def conv(op: Op, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """Convolution over 1 to 3 axes."""
    return convolve(op, x, w, b)


@register("ConvInteger", tensors=True)
def conv_integer(
    op: Op,
    x: torch.Tensor,
    w: torch.Tensor,
    x_zero_point: torch.Tensor | None = None,
    w_zero_point: torch.Tensor | None = None,
) -> torch.Tensor:
    """Convolution of small integers in 32 bits, less their zero points."""
    return convolve_integers(op, x, x_zero_point, w, w_zero_point).to(torch.int32)


def convolve_integers(
    op: Op, x: torch.Tensor, x_zero: torch.Tensor | None, w: torch.Tensor, w_zero: torch.Tensor | None
) -> torch.Tensor:
    """Convolve small integers exactly, in double precision; PyTorch has no convolution of integers."""
    image, kernel = x.to(torch.float64), w.to(torch.float64)
    if x_zero is not None:
        image = image - x_zero.to(torch.float64)
    if w_zero is not None:
        zero = w_zero.to(torch.float64)
        kernel = kernel - (zero.reshape([-1] + [1] * (w.ndim - 1)) if zero.ndim else zero)
    return convolve(op, image, kernel, None)


@register("ConvTranspose", tensors=True)
def conv_transpose(op: Op, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """Transposed convolution; uneven paddings are cut off its full result."""
    kernel = _kernel_of(op, w)
    rank = len(kernel)
    compute = _TRANSPOSED.get(rank)
    if compute is None:
        op.refuse(f"PyTorch convolves over 1 to 3 axes, not {rank}")
    strides = list(op.attribute("strides", [1] * rank))
    dilations = list(op.attribute("dilations", [1] * rank))
    extra = list(op.attribute("output_padding", [0] * rank))
    groups = op.attribute("group", 1)
    low, high = _cut_by_transposed(op, list(x.shape[2:]), kernel, strides, dilations, extra)
    can_pass = all(
        isinstance(a, int) and 0 <= a == b and extra[i] < max(strides[i], dilations[i])
        for i, (a, b) in enumerate(zip(low, high, strict=True))
    )
    if can_pass:
        return compute(x, w, b, strides, low, extra, groups, dilations)
    full = compute(x, w, b, strides, 0, 0, groups, dilations)
    flat = [width for i in reversed(range(rank)) for width in (-low[i], extra[i] - high[i])]
    if b is None or not any(isinstance(width, int) and width > 0 for width in flat):
        return functional.pad(full, flat)
    bare = functional.pad(compute(x, w, None, strides, 0, 0, groups, dilations), flat)
    return bare + b.reshape([-1] + [1] * rank)


def _cut_by_transposed(
    op: Op, sizes: list[Size], kernel: list[int], strides: list[int], dilations: list[int], extra: list[int]
) -> tuple[list[Size], list[Size]]:
    rank = len(kernel)
    mode = op.attribute("auto_pad", "NOTSET")
    pads = list(op.attribute("pads", [0] * 2 * rank))
    if op.has("output_shape") or mode in ("SAME_UPPER", "SAME_LOWER"):
        # A shape that the input leaves room in, by less than a stride, is filled at its end, as in onnxruntime; it
        # refuses any other, which is divided by the standard's formula.
        wanted = op.attribute("output_shape", None)
        low: list[Size] = []
        high: list[Size] = []
        for i in range(rank):
            target = wanted[-rank:][i] if wanted is not None else sizes[i] * strides[i]
            total = strides[i] * (sizes[i] - 1) + extra[i] + (kernel[i] - 1) * dilations[i] + 1 - target
            missing: Size = 0
            if wanted is not None and (not is_static(total) or extra[i] - total < strides[i]):
                missing = torch.sym_max(-total, 0)
            small = (total + missing) // 2
            large = total + missing - small
            low.append(small if mode == "SAME_UPPER" else large)
            high.append((large if mode == "SAME_UPPER" else small) - missing)
        return low, high
    if mode == "VALID":
        return [0] * rank, [0] * rank
    return pads[:rank], pads[rank:]


@register("Col2Im")
def col2im(op: Op, x: Value, image_shape: Value, block_shape: Value) -> torch.Tensor:
    """Add windows into an image where they overlap."""
    tensor = op.tensor(x)
    image = op.integers(image_shape, "image_shape")
    block = [int(size) for size in op.integers(block_shape, "block_shape")]
    window = window_of(op, image, block)
    rank = len(block)
    channels = tensor.shape[1] // math.prod(block)
    padded = [size + low + high for size, low, high in zip(image, window.before, window.after, strict=True)]
    counts = [
        (size - (width - 1) * dilation - 1) // stride + 1
        for size, width, dilation, stride in zip(padded, block, window.dilations, window.strides, strict=True)
    ]
    place = torch.zeros([1] * 2 * rank, dtype=torch.int64)
    for i in range(rank):
        steps = (torch.arange(block[i]) * window.dilations[i]).reshape([-1 if k == i else 1 for k in range(2 * rank)])
        moves = (torch.arange(counts[i]) * window.strides[i]).reshape(
            [-1 if k == rank + i else 1 for k in range(2 * rank)]
        )
        place = place * padded[i] + steps + moves
    flat = tensor.reshape(tensor.shape[0], channels, -1)

    def added(wide: torch.Tensor) -> torch.Tensor:
        total = torch.zeros([tensor.shape[0], channels, math.prod(padded)], dtype=wide.dtype)
        result = torch.index_add(total, 2, place.reshape(-1), wide).reshape([tensor.shape[0], channels, *padded])
        return functional.pad(result, [-width for width in window.flat_padding])

    return in_wider(added, flat)


@register("DeformConv", tensors=True)
def deform_conv(
    op: Op,
    x: torch.Tensor,
    w: torch.Tensor,
    offset: torch.Tensor,
    b: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Convolution whose window is bent by offsets: each place is read between its four pixels."""
    if x.ndim != 4:
        op.refuse(f"it is supported over images of 2 axes, not {x.ndim - 2}")
    kernel = _kernel_of(op, w)
    window = window_of(op, list(x.shape[2:]), kernel)
    groups, offset_groups = op.attribute("group", 1), op.attribute("offset_group", 1)
    batch, channels, height, width = x.shape
    out_h, out_w = offset.shape[2:]
    points = kernel[0] * kernel[1]
    moves = offset.reshape(batch, offset_groups, points, 2, out_h, out_w)
    rows = _grid(kernel[0], out_h, window, 0).reshape(kernel[0], 1, out_h, 1)
    columns = _grid(kernel[1], out_w, window, 1).reshape(1, kernel[1], 1, out_w)
    rows = rows.expand(kernel[0], kernel[1], out_h, out_w).reshape(points, out_h, out_w).to(x.dtype)
    columns = columns.expand(kernel[0], kernel[1], out_h, out_w).reshape(points, out_h, out_w).to(x.dtype)
    y, z = moves[:, :, :, 0] + rows, moves[:, :, :, 1] + columns
    image = x.reshape(batch, offset_groups, channels // offset_groups, height * width)
    read = _between_pixels(image, y, z, height, width)
    if mask is not None:
        read = read * mask.reshape(batch, offset_groups, 1, points, out_h, out_w)
    read = read.reshape(batch, groups, channels // groups, points, out_h * out_w)
    filters = w.reshape(groups, w.shape[0] // groups, channels // groups, points)
    y = torch.einsum("ngcpo,gfcp->ngfo", read, filters).reshape(batch, w.shape[0], out_h, out_w)
    return y if b is None else y + b.reshape(1, -1, 1, 1)


def _grid(kernel: int, count: Size, window: Window, axis: int) -> torch.Tensor:
    """Return where the window's rows (or columns) lie for each place of the result: (kernel, count)."""
    inside = torch.arange(kernel).reshape(-1, 1) * window.dilations[axis]
    return inside + torch.arange(count).reshape(1, -1) * window.strides[axis] - window.before[axis]


def _between_pixels(image: torch.Tensor, y: torch.Tensor, x: torch.Tensor, height: Size, width: Size) -> torch.Tensor:
    """Read (batch, group, channel, pixels) at real places (batch, group, ...); outside of the image all is zero."""
    batch, groups, channels, _ = image.shape
    low_y, low_x = torch.floor(y), torch.floor(x)
    total: torch.Tensor | None = None
    for step_y in (0, 1):
        for step_x in (0, 1):
            at_y, at_x = low_y + step_y, low_x + step_x
            share = (1 - torch.abs(y - at_y)) * (1 - torch.abs(x - at_x))
            is_inside = (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width)
            places = (at_y.clamp(0, height - 1) * width + at_x.clamp(0, width - 1)).to(torch.int64)
            flat = places.reshape(batch, groups, 1, -1).expand(-1, -1, channels, -1)
            pixels = torch.gather(image, 3, flat).reshape(batch, groups, channels, *places.shape[2:])
            part = pixels * (share * is_inside.to(share.dtype)).unsqueeze(2)
            total = part if total is None else total + part
    assert total is not None
    return total
