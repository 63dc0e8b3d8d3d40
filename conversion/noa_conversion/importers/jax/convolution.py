"""Convolutions, in ONNX's own layout (batch, channels, space)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from noa_conversion.importers.jax.handlers import Tensor, register
from noa_conversion.importers.jax.sampling import sample_linearly
from noa_conversion.importers.jax.sizes import Size, is_plain, larger
from noa_conversion.importers.jax.windows import by_channel, read_windows

if TYPE_CHECKING:
    from noa_conversion.importers.op import Op


@register("Conv", tensors=True)
def conv(op: Op, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Convolve over any number of spatial axes."""
    y = convolve(op, x, w)
    return y if b is None else y + by_channel(b, y.ndim)


def convolve(op: Op, x: Tensor, w: Tensor, result: Any = None) -> Tensor:
    """Convolve by the node's attributes; `result` is the type to accumulate in."""
    windows = read_windows(op, tuple(x.shape[2:]), tuple(w.shape[2:]))
    return lax.conv_general_dilated(
        x,
        w,
        windows.strides,
        windows.padding,
        rhs_dilation=windows.dilations,
        feature_group_count=op.attribute("group", 1),
        preferred_element_type=result,
    )


@register("ConvTranspose", tensors=True)
def conv_transpose(op: Op, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Spread each element over a window: a convolution over the input with gaps, by the mirrored kernel."""
    groups = op.attribute("group", 1)
    rank = x.ndim - 2
    strides = tuple(op.attribute("strides", [1] * rank))
    dilations = tuple(op.attribute("dilations", [1] * rank))
    reach = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    added = op.attribute("output_padding", [0] * rank)
    pads = _transposed_pads(op, tuple(x.shape[2:]), strides, reach, added)
    kernel = w.reshape((groups, w.shape[0] // groups, *w.shape[1:]))
    kernel = jnp.swapaxes(kernel, 1, 2).reshape((groups * w.shape[1], w.shape[0] // groups, *w.shape[2:]))
    y = lax.conv_general_dilated(
        x,
        lax.rev(kernel, range(2, 2 + rank)),
        (1,) * rank,
        [(wide - 1 - low, wide - 1 - high + more) for wide, (low, high), more in zip(reach, pads, added, strict=True)],
        lhs_dilation=strides,
        rhs_dilation=dilations,
        feature_group_count=groups,
    )
    return y if b is None else y + by_channel(b, y.ndim)


def _transposed_pads(
    op: Op, sizes: tuple[Size, ...], strides: tuple[int, ...], reach: list[int], added: list[int]
) -> list[tuple[Size, Size]]:
    """Return what is cut from both ends of the whole result."""
    rank = len(sizes)
    automatic = op.attribute("auto_pad", "NOTSET") or "NOTSET"
    if op.has("output_shape"):
        wanted: list[Size] = list(op.attribute("output_shape"))[-rank:]
    elif automatic in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    else:
        given = op.attribute("pads", [0] * (2 * rank))
        return list(zip(given[:rank], given[rank:], strict=True))
    pads: list[tuple[Size, Size]] = []
    for size, stride, wide, more, want in zip(sizes, strides, reach, added, wanted, strict=True):
        total = stride * (size - 1) + more + wide - want
        # A shape that the input leaves room in, by less than a stride, is filled at its end, as in onnxruntime; it
        # refuses any other, which is divided by the standard's formula.
        missing: Size = 0
        if op.has("output_shape") and (not is_plain(total) or more - total < stride):
            missing = larger(-total, 0)
        less = (total + missing) // 2
        rest = total + missing - less
        low, high = (less, rest) if automatic == "SAME_UPPER" else (rest, less)
        pads.append((low, high - missing))
    return pads


@register("CausalConvWithState", tensors=True)
def causal_conv(
    op: Op, x: Tensor, w: Tensor, b: Tensor | None = None, past: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Convolve each channel over its past, which is handed on as state."""
    batch, channels, _ = x.shape
    width = w.shape[2]
    before = jnp.zeros((batch, channels, width - 1), x.dtype) if past is None else past
    padded = jnp.concatenate([before, x], axis=2)
    y = lax.conv_general_dilated(padded, w, (1,), [(0, 0)], feature_group_count=channels)
    y = y if b is None else y + by_channel(b, 3)
    match op.attribute("activation", "none"):
        case "none":
            pass
        case "silu" | "swish":
            y = jax.nn.silu(y.astype(jnp.float32)).astype(x.dtype)
        case other:
            op.refuse(f"`activation` is {other!r}")
    return y, padded[:, :, padded.shape[2] - (width - 1) :]


@register("DeformConv", tensors=True)
def deform_conv(
    op: Op, x: Tensor, w: Tensor, offset: Tensor, b: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Convolve at places that are moved by learned offsets, read by bilinear interpolation."""
    if x.ndim != 4:
        op.refuse(f"an input of {x.ndim} axes", remedy="Only images (4 axes) have deformable convolutions here")
    groups, offset_groups = op.attribute("group", 1), op.attribute("offset_group", 1)
    batch, channels, *sizes = x.shape
    kernel = tuple(w.shape[2:])
    windows = read_windows(op, tuple(sizes), kernel)
    height, width = offset.shape[2:]
    moved = offset.reshape(batch, offset_groups, *kernel, 2, height, width)
    places: list[Tensor] = []
    for axis, count in enumerate((height, width)):
        start = np.arange(count) * windows.strides[axis] - windows.pads[axis][0]
        inner = np.arange(kernel[axis]) * windows.dilations[axis]
        grid = inner.reshape((-1, 1, 1, 1) if axis == 0 else (-1, 1, 1)) + start.reshape(
            (-1, 1) if axis == 0 else (-1,)
        )
        places.append(moved[:, :, :, :, axis] + jnp.asarray(grid, x.dtype))
    taken = sample_linearly(
        x.reshape(batch * offset_groups, -1, *sizes), [_rows(p, batch * offset_groups) for p in places]
    )
    taken = taken.reshape(batch, offset_groups, channels // offset_groups, *kernel, height, width)
    if mask is not None:
        taken = taken * mask.reshape(batch, offset_groups, 1, *kernel, height, width)
    columns = taken.reshape(batch, groups, channels // groups, *kernel, height, width)
    filters = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    y = jnp.einsum("bgcijhw,gocij->bgohw", columns, filters).reshape(batch, w.shape[0], height, width)
    return y if b is None else y + by_channel(b, 4)


def _rows(places: Tensor, rows: Size) -> Tensor:
    return places.reshape(rows, *places.shape[2:])


@register("Col2Im")
def col2im(op: Op, data: Any, image_shape: Any, block_shape: Any) -> Tensor:
    """Add up overlapping columns into an image."""
    x = op.tensor(data)
    image, block = op.integers(image_shape, "image_shape"), [int(n) for n in op.integers(block_shape, "block_shape")]
    rank = len(image)
    windows = read_windows(op, tuple(image), tuple(block))
    padded = [size + sum(ends) for size, ends in zip(image, windows.pads, strict=True)]
    counts = [
        (size - (k - 1) * d - 1) // s + 1
        for size, k, d, s in zip(padded, block, windows.dilations, windows.strides, strict=True)
    ]
    batch, channels = x.shape[0], x.shape[1] // int(np.prod(block))
    columns = x.reshape(batch, channels, *block, *counts)
    index: list[Tensor] = []
    for axis in range(rank):
        inner = np.arange(block[axis]) * windows.dilations[axis]
        outer = np.arange(counts[axis]) * windows.strides[axis]
        place = inner.reshape([-1 if i == axis else 1 for i in range(rank)] + [1] * rank)
        index.append(jnp.asarray(place + outer.reshape([-1 if i == axis else 1 for i in range(rank)]), jnp.int32))
    whole = jnp.zeros((batch, channels, *padded), x.dtype).at[(slice(None), slice(None), *index)].add(columns)
    begin = [0, 0, *(low for low, _ in windows.pads)]
    return lax.dynamic_slice(whole, begin, (batch, channels, *image))
