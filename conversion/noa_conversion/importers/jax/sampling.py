"""Reading an image at places that are computed: `GridSample`, `AffineGrid`, `RoiAlign`, and deformable convolution."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from noa_conversion.importers.jax.handlers import Tensor, register
from noa_conversion.importers.jax.indexing import check_range, from_front
from noa_conversion.importers.jax.sizes import Size, larger, product

if TYPE_CHECKING:
    from noa_conversion.importers.op import Op

_CUBIC = -0.75
_MODES = {"bilinear": "linear", "bicubic": "cubic"}


def read_pixels(x: Tensor, index: list[Tensor], inside: Tensor | None = None) -> Tensor:
    """Return x[n, :, index...] for places (batch, ...) as (batch, channels, ...); zero where not `inside`."""
    batch, channels, *sizes = x.shape
    flat: Any = 0
    for place, size in zip(index, sizes, strict=True):
        flat = flat * jnp.asarray(size, jnp.int32) + jnp.clip(place, 0, size - 1)
    out = flat.shape[1:]
    taken = jnp.take_along_axis(
        x.reshape(batch, channels, product(sizes)), flat.reshape(batch, 1, -1), axis=2, mode="clip"
    )
    taken = taken.reshape(batch, channels, *out)
    return taken if inside is None else jnp.where(inside[:, None], taken, jnp.zeros((), x.dtype))


def sample_linearly(x: Tensor, places: list[Tensor]) -> Tensor:
    """Interpolate x (batch, channels, *space) linearly at places (batch, ...), one array per axis; zero outside."""
    return _interpolate(x, places, "linear", "zeros", [(-0.5, size - 0.5) for size in x.shape[2:]])


@register("GridSample", tensors=True)
def grid_sample(op: Op, x: Tensor, grid: Tensor) -> Tensor:
    """Interpolate at the places of a grid, whose coordinates run from -1 to 1 and are listed innermost axis first."""
    mode = op.attribute("mode", "bilinear" if op.version < 20 else "linear")
    mode = _MODES.get(mode, mode)
    padding = op.attribute("padding_mode", "zeros")
    if mode not in ("nearest", "linear", "cubic") or padding not in ("zeros", "border", "reflection"):
        op.refuse(f"mode {mode!r} with padding mode {padding!r}")
    aligned = bool(op.attribute("align_corners", 0))
    sizes = x.shape[2:]
    borders = [(0.0, size - 1.0) if aligned else (-0.5, size - 0.5) for size in sizes]
    places: list[Tensor] = []
    for axis, size in enumerate(sizes):
        at = grid[..., len(sizes) - 1 - axis]
        place = (at + 1) / 2 * (size - 1) if aligned else ((at + 1) * size - 1) / 2
        places.append(jnp.round(place) if mode == "nearest" else place)
    if padding == "border" and mode != "cubic":  # its four pixels are taken from the border, not its place
        places = [jnp.clip(place, 0, size - 1) for place, size in zip(places, sizes, strict=True)]
    elif padding == "reflection":
        places = [_reflected(place, *border) for place, border in zip(places, borders, strict=True)]
    return _interpolate(x, places, mode, padding, borders).astype(x.dtype)


def _interpolate(x: Tensor, places: list[Tensor], mode: str, padding: str, borders: list[tuple[Any, Any]]) -> Tensor:
    if mode == "nearest":
        return _pixels(x, [place.astype(jnp.int32) for place in places], padding, borders)
    first = [jnp.floor(place) for place in places]
    ratios = [place - low for place, low in zip(places, first, strict=True)]
    steps = (0, 1) if mode == "linear" else (-1, 0, 1, 2)
    weigh = _linear_weight if mode == "linear" else _cubic_weight
    total: Any = 0
    for corner in itertools.product(steps, repeat=len(places)):
        index = [low.astype(jnp.int32) + step for low, step in zip(first, corner, strict=True)]
        weight: Any = 1
        for ratio, step in zip(ratios, corner, strict=True):
            weight = weight * weigh(jnp.abs(ratio - step))
        total = total + _pixels(x, index, padding, borders) * weight[:, None].astype(x.dtype)
    return total


def _linear_weight(distance: Tensor) -> Tensor:
    return 1 - distance


def _cubic_weight(distance: Tensor) -> Tensor:
    """Keys 1981, "Cubic convolution interpolation", eq. 15, with a = -0.75."""
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = ((_CUBIC * distance - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC
    return jnp.where(distance <= 1, near, far)


def _pixels(x: Tensor, index: list[Tensor], padding: str, borders: list[tuple[Any, Any]]) -> Tensor:
    if padding == "reflection":
        index = [
            _reflected(place.astype(jnp.float32), *border).astype(jnp.int32)
            for place, border in zip(index, borders, strict=True)
        ]
    if padding != "zeros":
        return read_pixels(x, index)
    inside: Any = True
    for place, size in zip(index, x.shape[2:], strict=True):
        inside = inside & (place >= 0) & (place < size)
    return read_pixels(x, index, inside)


def _reflected(place: Tensor, low: Any, high: Any) -> Tensor:
    """Fold a place back at both borders until it is between them."""
    width = jnp.maximum(high - low, jnp.finfo(jnp.float32).tiny)
    over = jnp.where(place < low, low - place, place - high)
    turns = jnp.floor(over / width)
    rest = over - turns * width
    from_low = jnp.mod(turns, 2) == jnp.where(place < low, 0, 1)
    folded = jnp.where(from_low, low + rest, high - rest)
    return jnp.where((place < low) | (place > high), folded, place)


@register("AffineGrid")
def affine_grid(op: Op, theta: Any, size: Any) -> Tensor:
    """Return the grid that an affine map makes of the regular one."""
    matrix = op.tensor(theta)
    _, _, *space = op.integers(size, "size")
    aligned = bool(op.attribute("align_corners", 0))
    lines = [_regular(length, aligned, matrix.dtype) for length in space]
    rank = len(space)
    spread = [
        jnp.broadcast_to(line.reshape([-1 if i == axis else 1 for i in range(rank)]), tuple(space))
        for axis, line in enumerate(lines)
    ]
    points = jnp.stack([*reversed(spread), jnp.ones(tuple(space), matrix.dtype)], -1)
    grid = jnp.einsum("nij,pj->npi", matrix, points.reshape(-1, rank + 1))
    return grid.reshape(matrix.shape[0], *space, rank)


def _regular(length: Size, aligned: bool, dtype: Any) -> Tensor:
    steps = jnp.arange(length, dtype=dtype)
    if aligned:  # counted from the end, so that an axis of one pixel lies at 1, as in onnxruntime
        return 1 - (length - 1 - steps) * 2 / larger(length - 1, 1)
    return (steps * 2 + 1) / length - 1


@register("RoiAlign")
def roi_align(op: Op, data: Any, rois: Any, batch_indices: Any) -> Tensor:
    """Pool each region into a grid of bins, by bilinear samples in each bin."""
    x, boxes = op.tensor(data), op.tensor(rois)
    mode = op.attribute("mode", "avg")
    rows, columns = op.attribute("output_height", 1), op.attribute("output_width", 1)
    half = op.version >= 16 and op.attribute("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    if mode not in ("avg", "max"):
        op.refuse(f"`mode` is {mode!r}")
    boxes = boxes * op.attribute("spatial_scale", 1.0) - (0.5 if half else 0.0)
    check_range(op, batch_indices, x.shape[0])
    index = from_front(op.tensor(batch_indices), x.shape[0])
    image = jnp.take(x, index, axis=0, mode="clip")
    known = None
    if op.attribute("sampling_ratio", 0) <= 0:
        known = op.known(rois, "rois").astype(np.float64) * op.attribute("spatial_scale", 1.0)
    axes = [_bins(op, boxes, known, axis, count, half) for axis, count in ((1, rows), (0, columns))]
    (y, y_valid, y_count), (x_place, x_valid, x_count) = axes
    regions, channels = boxes.shape[0], x.shape[1]
    grid = (regions, rows, y.shape[2], columns, x_place.shape[2])
    at_y = jnp.broadcast_to(y[:, :, :, None, None], grid)
    at_x = jnp.broadcast_to(x_place[:, None, None, :, :], grid)
    counted = jnp.broadcast_to(y_valid[:, None, :, None, None] & x_valid[:, None, None, None, :], grid)
    corners = _corners(image, at_y, at_x)
    if mode == "avg":
        taken = jnp.where(counted[:, None], sum(corners[1:], start=corners[0]), 0)
        total = taken.sum(axis=(3, 5))
        number = jnp.maximum(y_count * x_count, 1).astype(x.dtype).reshape(regions, 1, 1, 1)
        result = total / number
    else:
        largest = jnp.where(counted[:, None], jnp.max(jnp.stack(corners), axis=0), -jnp.inf)
        result = largest.max(axis=(3, 5))
    has_image = (index < jnp.asarray(x.shape[0], index.dtype)).reshape(-1, 1, 1, 1)
    return jnp.where(has_image, result.reshape(regions, channels, rows, columns), jnp.nan).astype(x.dtype)


def _bins(
    op: Op, boxes: Tensor, known: np.ndarray | None, axis: int, count: int, half: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (places (regions, bins, samples), which samples count, how many count) along one axis."""
    start, end = boxes[:, axis], boxes[:, axis + 2]
    width = end - start if half else jnp.maximum(end - start, 1.0)
    size = width / count
    if known is None:
        most = int(op.attribute("sampling_ratio"))
        numbers = jnp.full(boxes.shape[:1], most, jnp.int32)
    else:
        widths = known[:, axis + 2] - known[:, axis]
        needed = np.ceil((widths if half else np.maximum(widths, 1.0)) / count).astype(np.int32)
        most = max(int(needed.max(initial=1)), 1)
        numbers = jnp.asarray(np.maximum(needed, 0))
    steps = jnp.arange(most, dtype=boxes.dtype)
    inner = (steps + 0.5)[None] * (size / jnp.maximum(numbers, 1).astype(boxes.dtype))[:, None]
    offsets = jnp.arange(count, dtype=boxes.dtype)[None, :, None] * size[:, None, None]
    places = start[:, None, None] + offsets + inner[:, None, :]
    return places, jnp.arange(most)[None] < numbers[:, None], numbers


def _corners(image: Tensor, y: Tensor, x: Tensor) -> list[Tensor]:
    """Return the four weighted pixels around each place; all zero more than one pixel outside."""
    height, width = image.shape[2:]
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    (y_low, y_high, y_rest), (x_low, x_high, x_rest) = _around(y, height), _around(x, width)
    parts = (
        (y_low, x_low, (1 - y_rest) * (1 - x_rest)),
        (y_low, x_high, (1 - y_rest) * x_rest),
        (y_high, x_low, y_rest * (1 - x_rest)),
        (y_high, x_high, y_rest * x_rest),
    )
    return [read_pixels(image, [row, column], inside) * weight[:, None] for row, column, weight in parts]


def _around(place: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor]:
    place = jnp.maximum(place, 0)
    low = jnp.minimum(place.astype(jnp.int32), size - 1)
    at_end = low >= size - 1
    return low, jnp.minimum(low + 1, size - 1), jnp.where(at_end, 0, place - low)
