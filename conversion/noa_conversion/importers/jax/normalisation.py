"""Normalisations: by batch, instance, layer, group, root mean square, response and norm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from noa_conversion.importers.jax.dtypes import accumulator, held_as
from noa_conversion.importers.jax.handlers import Tensor, register
from noa_conversion.importers.jax.reductions import sum_of_squares
from noa_conversion.importers.jax.windows import by_channel
from noa_conversion.onnx_graph.dtypes import dtype_of

if TYPE_CHECKING:
    from noa_conversion.importers.op import Op


@register("BatchNormalization", tensors=True)
def batch_normalization(
    op: Op, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor | tuple[Tensor, ...]:
    """Normalise each channel by given statistics, or by the batch's own while training."""
    epsilon = op.attribute("epsilon", 1e-5)
    if op.version < 9 and not op.attribute("spatial", 1):
        op.refuse("`spatial=0` normalises each element by itself")
    if not op.attribute("training_mode", 0) and (op.version >= 7 or op.attribute("is_test", 0)):
        return _by_statistics(x, scale, bias, mean, variance, epsilon)
    if op.version < 14:
        op.refuse("training mode before opset 14")
    momentum = op.attribute("momentum", 0.9)
    axes = (0, *range(2, x.ndim))
    wide = x.astype(accumulator(x.dtype))
    seen_mean, seen_variance = wide.mean(axis=axes), wide.var(axis=axes)
    y = _by_statistics(x, scale, bias, seen_mean, seen_variance, epsilon)
    next_mean = mean * momentum + seen_mean.astype(mean.dtype) * (1 - momentum)
    next_variance = variance * momentum + seen_variance.astype(variance.dtype) * (1 - momentum)
    return (y, next_mean, next_variance)[: max(op.num_outputs, 1)]


def _by_statistics(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, epsilon: float) -> Tensor:
    """Fold the statistics into one factor and one shift per channel."""
    wide = accumulator(x.dtype)
    factor = scale.astype(wide) * lax.rsqrt(variance.astype(wide) + epsilon)
    shift = bias.astype(wide) - mean.astype(wide) * factor
    return (x.astype(wide) * by_channel(factor, x.ndim) + by_channel(shift, x.ndim)).astype(x.dtype)


def _standardised(x: Tensor, axes: tuple[int, ...], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return (x - mean) / deviation with the mean and the inverse deviation."""
    mean = jnp.mean(x, axis=axes, keepdims=True)
    centred = x - mean
    inverse = lax.rsqrt(jnp.mean(centred * centred, axis=axes, keepdims=True) + epsilon)
    return centred * inverse, mean, inverse


@register("InstanceNormalization", tensors=True)
def instance_normalization(op: Op, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalise each channel of each sample over space."""
    wide = x.astype(accumulator(x.dtype))
    y, _, _ = _standardised(wide, tuple(range(2, x.ndim)), op.attribute("epsilon", 1e-5))
    return (y * by_channel(scale, x.ndim) + by_channel(bias, x.ndim)).astype(x.dtype)


@register("LayerNormalization", tensors=True)
def layer_normalization(
    op: Op, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Normalise over the axes from `axis` on, in the type that `stash_type` names."""
    stash = _stash(op)
    axes = tuple(range(op.axis(op.attribute("axis", -1), x.ndim), x.ndim))
    y, mean, inverse = _standardised(x.astype(stash), axes, op.attribute("epsilon", 1e-5))
    y = y.astype(x.dtype) * scale
    y = y if bias is None else y + bias
    return (y, mean, inverse) if op.num_outputs > 1 else y


def _stash(op: Op) -> Any:
    dtype = dtype_of(op.attribute("stash_type", 1))
    return held_as(dtype or np.float32)


@register("RMSNormalization", tensors=True)
def rms_normalization(op: Op, x: Tensor, scale: Tensor) -> Tensor:
    """Divide by the root of the mean square over the axes from `axis` on."""
    axes = tuple(range(op.axis(op.attribute("axis", -1), x.ndim), x.ndim))
    wide = x.astype(_stash(op))
    inverse = lax.rsqrt(jnp.mean(wide * wide, axis=axes, keepdims=True) + op.attribute("epsilon", 1e-5))
    return (wide * inverse).astype(x.dtype) * scale


@register("GroupNormalization", tensors=True)
def group_normalization(op: Op, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalise groups of channels; before opset 21 scale and bias count per group."""
    groups = op.attribute("num_groups")
    batch, channels, *space = x.shape
    wide = x.astype(_stash(op)).reshape(batch, groups, channels // groups, *space)
    y, _, _ = _standardised(wide, tuple(range(2, wide.ndim)), op.attribute("epsilon", 1e-5))
    y = y.astype(x.dtype)
    if op.version < 21:
        y = y * by_channel(scale, y.ndim) + by_channel(bias, y.ndim)
        return y.reshape(x.shape)
    return y.reshape(x.shape) * by_channel(scale, x.ndim) + by_channel(bias, x.ndim)


@register("MeanVarianceNormalization", tensors=True)
def mean_variance_normalization(op: Op, x: Tensor) -> Tensor:
    """Standardise over `axes`."""
    axes = tuple(op.axis(axis, x.ndim) for axis in op.attribute("axes", [0, 2, 3]))
    centred = x - jnp.mean(x, axis=axes, keepdims=True)
    return centred / (jnp.sqrt(jnp.mean(centred * centred, axis=axes, keepdims=True)) + 1e-9)


@register("LpNormalization", tensors=True)
def lp_normalization(op: Op, x: Tensor) -> Tensor:
    """Divide by the 1- or 2-norm along an axis; where the norm is zero the result is."""
    axis, p = op.axis(op.attribute("axis", -1), x.ndim), op.attribute("p", 2)
    if p not in (1, 2):
        op.refuse(f"`p` is {p}")
    norm = jnp.sum(jnp.abs(x), axis=axis, keepdims=True) if p == 1 else jnp.sqrt(sum_of_squares(x, (axis,)))
    is_zero = norm == 0
    return jnp.where(is_zero, 0, x / jnp.where(is_zero, 1, norm)).astype(x.dtype)


@register("LRN", tensors=True)
def local_response_normalization(op: Op, x: Tensor) -> Tensor:
    """Divide by a power of the sum of squares over neighbouring channels."""
    size = op.attribute("size")
    alpha, beta, bias = op.attribute("alpha", 1e-4), op.attribute("beta", 0.75), op.attribute("bias", 1.0)
    pads = [(0, 0)] * x.ndim
    pads[1] = ((size - 1) // 2, size // 2)
    window = tuple(size if axis == 1 else 1 for axis in range(x.ndim))
    squares = lax.reduce_window(x * x, np.zeros((), x.dtype)[()], lax.add, window, (1,) * x.ndim, pads)
    return x / (bias + alpha / size * squares) ** beta


@register("Dropout")
def dropout(op: Op, data: Any, ratio: Any = None, training: Any = None) -> Tensor | tuple[Tensor, Tensor]:
    """Pass the data through. Dropping at random is refused."""
    x = op.tensor(data)
    is_training = False
    if op.version < 7:
        is_training = not op.attribute("is_test", 0)
    elif training is not None:
        is_training = bool(op.known(training, "training_mode").reshape(-1)[0])
    if is_training:
        share = op.attribute("ratio", 0.5) if op.version < 12 else _share(op, ratio)
        if share != 0:
            op.refuse("it drops elements at random", remedy="Export the model for inference")
    if op.num_outputs == 1:
        return x
    return x, jnp.ones(x.shape, bool if op.version >= 10 else x.dtype)


def _share(op: Op, ratio: Any) -> float:
    return 0.5 if ratio is None else float(op.known(ratio, "ratio").reshape(-1)[0])
