"""Poolings over windows and over all of space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from noa_conversion.importers.jax.dtypes import held_as, lowest
from noa_conversion.importers.jax.handlers import Tensor, register
from noa_conversion.importers.jax.indexing import check_range, from_front
from noa_conversion.importers.jax.sizes import all_plain, product
from noa_conversion.importers.jax.windows import Windows, read_windows

if TYPE_CHECKING:
    from noa_conversion.importers.op import Op


def _windows(op: Op, x: Tensor) -> Windows:
    return read_windows(op, tuple(x.shape[2:]), tuple(op.attribute("kernel_shape")))


def _reduce(x: Tensor, initial: Any, function: Any, windows: Windows, padding: Any) -> Tensor:
    return lax.reduce_window(
        x,
        np.asarray(initial, x.dtype)[()],
        function,
        (1, 1, *windows.kernel),
        (1, 1, *windows.strides),
        ((0, 0), (0, 0), *padding),
        window_dilation=(1, 1, *windows.dilations),
    )


@register("MaxPool", tensors=True)
def max_pool(op: Op, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """Return the largest element of each window, and where it is if that is asked for."""
    windows = _windows(op, x)
    values = _reduce(x, lowest(x.dtype), lax.max, windows, windows.padding)
    if not op.wants(1):
        return values
    return values, _places(op, x, windows).astype(held_as(np.int64))


def _places(op: Op, x: Tensor, windows: Windows) -> Tensor:
    """Return the flat index of the first largest element, over the whole tensor.

    First is by rows whatever `storage_order` says: 1 only counts the index by columns.
    """
    sizes = tuple(x.shape[2:])
    if not all_plain(x.shape):
        op.refuse("indices over free axes")
    flat = np.arange(int(np.prod(sizes)), dtype=np.int32).reshape(sizes)
    index = jnp.broadcast_to(jnp.asarray(flat), x.shape)

    def choose(a: tuple[Any, Any], b: tuple[Any, Any]) -> tuple[Any, Any]:
        first = (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] <= b[1]))
        return jnp.where(first, a[0], b[0]), jnp.where(first, a[1], b[1])

    _, found = lax.reduce_window(
        (lax.stop_gradient(x), index),
        (np.asarray(lowest(x.dtype))[()], np.int32(np.iinfo(np.int32).max)),
        choose,
        (1, 1, *windows.kernel),
        (1, 1, *windows.strides),
        ((0, 0), (0, 0), *windows.padding),
        window_dilation=(1, 1, *windows.dilations),
    )
    if op.attribute("storage_order", 0):
        found = _by_columns(found, sizes)
    planes = np.arange(x.shape[0] * x.shape[1], dtype=np.int32).reshape(*x.shape[:2], *(1,) * len(sizes))
    return found + jnp.asarray(planes * int(np.prod(sizes)))


def _by_columns(index: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Turn indices that count the last axis first into such as count the first one first."""
    moved, stride = jnp.zeros_like(index), int(np.prod(sizes))
    for size in reversed(sizes):
        stride //= size
        moved, index = moved + index % size * stride, index // size
    return moved


@register("AveragePool", tensors=True)
def average_pool(op: Op, x: Tensor) -> Tensor:
    """Average each window over the elements inside the tensor, or over the padding too."""
    windows = _windows(op, x)
    total = _reduce(x, 0, lax.add, windows, windows.padding)
    include = bool(op.attribute("count_include_pad", 0))
    if not windows.is_padded or (include and not any(windows.extra)):
        return total / jnp.asarray(int(np.prod(windows.kernel)), x.dtype)
    if all_plain(x.shape[2:]):
        return total / jnp.asarray(_counts(tuple(x.shape[2:]), windows, include), x.dtype)
    ones = jnp.ones((1, 1, *x.shape[2:]), x.dtype)
    if not include:
        return total / _reduce(ones, 0, lax.add, windows, windows.padding)
    ones = lax.pad(
        ones, np.ones((), x.dtype)[()], ((0, 0, 0), (0, 0, 0), *((low, high, 0) for low, high in windows.pads))
    )
    return total / _reduce(ones, 0, lax.add, windows, [(0, more) for more in windows.extra])


def _counts(sizes: tuple[int, ...], windows: Windows, include: bool) -> np.ndarray:
    """Return how many elements each window averages: a product over the axes."""
    counts = np.ones((), np.float64)
    for axis, size in enumerate(sizes):
        low, high = windows.pads[axis]
        reach = (windows.kernel[axis] - 1) * windows.dilations[axis] + 1
        number = (size + low + high + windows.extra[axis] - reach) // windows.strides[axis] + 1
        taps = np.arange(number)[:, None] * windows.strides[axis] - low
        taps = taps + np.arange(windows.kernel[axis]) * windows.dilations[axis]
        inside = (taps >= -low) & (taps < size + high) if include else (taps >= 0) & (taps < size)
        counts = counts[..., None] * inside.sum(1)
    return counts


@register("LpPool", tensors=True)
def lp_pool(op: Op, x: Tensor) -> Tensor:
    """Return the p-norm of each window."""
    p = op.attribute("p", 2)
    windows = _windows(op, x)
    total = _reduce(jnp.abs(x) ** p, 0, lax.add, windows, windows.padding)
    return (total ** (1.0 / p)).astype(x.dtype)


@register("GlobalAveragePool", tensors=True)
def global_average_pool(op: Op, x: Tensor) -> Tensor:
    """Average over all of space."""
    return jnp.mean(x, axis=tuple(range(2, x.ndim)), keepdims=True)


@register("GlobalMaxPool", tensors=True)
def global_max_pool(op: Op, x: Tensor) -> Tensor:
    """Return the largest element in all of space."""
    return jnp.max(x, axis=tuple(range(2, x.ndim)), keepdims=True)


@register("GlobalLpPool", tensors=True)
def global_lp_pool(op: Op, x: Tensor) -> Tensor:
    """Return the p-norm over all of space."""
    p = op.attribute("p", 2)
    return (jnp.sum(jnp.abs(x) ** p, axis=tuple(range(2, x.ndim)), keepdims=True) ** (1.0 / p)).astype(x.dtype)


@register("MaxUnpool")
def max_unpool(op: Op, data: Any, indices: Any, output_shape: Any = None) -> Tensor:
    """Put elements back to where a max pooling took them from; the rest is zero."""
    x = op.tensor(data)
    kernel = op.attribute("kernel_shape")
    rank = len(kernel)
    strides, pads = op.attribute("strides", [1] * rank), op.attribute("pads", [0] * (2 * rank))
    inferred = [(size - 1) * strides[i] - pads[i] - pads[rank + i] + kernel[i] for i, size in enumerate(x.shape[2:])]
    shape = (*x.shape[:2], *inferred)
    count = product(shape)
    check_range(op, indices, count)
    index = from_front(op.tensor(indices).reshape(-1), count)
    spread = jnp.zeros(count, x.dtype).at[index].set(x.reshape(-1)).reshape(shape)
    if not op.is_known(indices):
        spread = jnp.where((index < count).all(), spread, jnp.asarray(np.nan, x.dtype))
    if output_shape is None:
        return spread
    wanted = op.integers(output_shape, "output_shape")
    return lax.pad(
        spread, jnp.zeros((), x.dtype), [(0, want - have, 0) for want, have in zip(wanted, shape, strict=True)]
    )
