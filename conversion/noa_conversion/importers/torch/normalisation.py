"""Normalisation of batches, layers, groups and vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from noa_conversion.importers.op import Op
from noa_conversion.importers.torch.casting import cast_tensor
from noa_conversion.importers.torch.operands import is_static
from noa_conversion.importers.torch.table import register
from noa_conversion.onnx_graph.dtypes import dtype_of as onnx_dtype


@register("BatchNormalization", tensors=True)
def batch_normalization(
    op: Op, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, var: torch.Tensor
) -> tuple[torch.Tensor, ...] | torch.Tensor:
    """By stored statistics, or in training mode by those of the batch, which the running ones then approach."""
    epsilon, momentum = op.attribute("epsilon", 1e-5), op.attribute("momentum", 0.9)
    if op.version < 9 and not op.attribute("spatial", 1):
        op.refuse("statistics per pixel (`spatial=0`) are not supported")
    is_training = bool(op.attribute("training_mode", 0)) if op.version >= 14 else op.num_outputs > 1
    if op.version < 7:
        is_training = not op.attribute("is_test", 0)
    if not is_training:
        wide = mean.dtype if mean.dtype != x.dtype else x.dtype
        y = functional.batch_norm(x.to(wide), mean, var, scale.to(wide), bias.to(wide), False, 0.0, epsilon)
        return y.to(x.dtype)
    if op.version < 14:
        op.refuse("statistics of the batch are supported from opset 14 on")
    axes = [axis for axis in range(x.ndim) if axis != 1]
    own_mean = torch.mean(x, axes)
    own_var = torch.var(x, axes, correction=0)
    y = functional.batch_norm(x, None, None, scale.to(x.dtype), bias.to(x.dtype), True, 0.0, epsilon)
    running_mean = mean * momentum + own_mean.to(mean.dtype) * (1 - momentum)
    running_var = var * momentum + own_var.to(var.dtype) * (1 - momentum)
    return y, running_mean, running_var


@register("InstanceNormalization", tensors=True)
def instance_normalization(op: Op, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Each channel of each sample by itself."""
    return functional.instance_norm(x, None, None, scale, bias, True, 0.0, op.attribute("epsilon", 1e-5))


@register("GroupNormalization", tensors=True)
def group_normalization(op: Op, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Groups of channels; before opset 21 the scale is one per group."""
    groups = op.attribute("num_groups")
    if op.version < 21:
        each = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return functional.group_norm(x, groups, scale, bias, op.attribute("epsilon", 1e-5))


@register("LayerNormalization", tensors=True)
def layer_normalization(
    op: Op, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...] | torch.Tensor:
    """Over the axes from one on, computed in the type `stash_type`."""
    axis, epsilon, stash, shape = _last_axes(op, x)
    is_plain = op.num_outputs == 1 and all(is_static(size) for size in shape)
    if is_plain and all(list(weight.shape) == shape for weight in (scale, bias) if weight is not None):
        return functional.layer_norm(x, shape, scale, bias, epsilon)
    wide = cast_tensor(op, x, stash)
    axes = list(range(axis, x.ndim))
    mean = torch.mean(wide, axes, keepdim=True)
    centred = wide - mean
    inverse = torch.rsqrt(torch.mean(centred * centred, axes, keepdim=True) + epsilon)
    y = (centred * inverse).to(x.dtype) * scale
    y = y if bias is None else y + bias
    return (y, mean, inverse) if op.num_outputs > 1 else y


def _last_axes(op: Op, x: torch.Tensor) -> tuple[int, float, np.dtype, list[Any]]:
    """Return the first axis that is normalised over, epsilon, the type to compute in, and the sizes of the axes."""
    axis = op.axis(op.attribute("axis", -1), x.ndim)
    stash = onnx_dtype(op.attribute("stash_type", 1))
    if stash is None:
        op.refuse("its `stash_type` is unknown")
    return axis, op.attribute("epsilon", 1e-5), stash, list(x.shape[axis:])


@register("RMSNormalization", tensors=True)
def rms_normalization(op: Op, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """By the root of the mean square over the axes from one on."""
    axis, epsilon, stash, shape = _last_axes(op, x)
    if stash == np.float32 and x.dtype == torch.float32 and list(scale.shape) == shape:
        return functional.rms_norm(x, shape, scale, epsilon)
    wide = cast_tensor(op, x, stash)
    inverse = torch.rsqrt(torch.mean(wide * wide, list(range(axis, x.ndim)), keepdim=True) + epsilon)
    return (wide * inverse).to(scale.dtype) * scale


@register("LRN", tensors=True)
def local_response_normalization(op: Op, x: torch.Tensor) -> torch.Tensor:
    """Each value by those of its neighbouring channels."""
    size, alpha = op.attribute("size"), op.attribute("alpha", 1e-4)
    before = (size - 1) // 2
    square = (x * x).flatten(2).unsqueeze(1) if x.ndim > 2 else (x * x).unsqueeze(1).unsqueeze(-1)
    padded = functional.pad(square, (0, 0, before, size - 1 - before))
    total = functional.avg_pool2d(padded, (size, 1), stride=1) * size
    total = total.squeeze(1).reshape(x.shape)
    return x / torch.pow(op.attribute("bias", 1.0) + alpha / size * total, op.attribute("beta", 0.75))


@register("LpNormalization", tensors=True)
def lp_normalization(op: Op, x: torch.Tensor) -> torch.Tensor:
    """By the norm along an axis; zero where the norm is."""
    axis, order = op.axis(op.attribute("axis", -1), x.ndim), op.attribute("p", 2)
    norm = torch.linalg.vector_norm(x, order, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, torch.ones_like(norm), norm))


@register("MeanVarianceNormalization", tensors=True)
def mean_variance_normalization(op: Op, x: torch.Tensor) -> torch.Tensor:
    """To mean 0 and variance 1 over axes."""
    axes = [op.axis(axis, x.ndim) for axis in op.attribute("axes", [0, 2, 3])]
    mean = torch.mean(x, axes, keepdim=True)
    variance = torch.mean(x * x, axes, keepdim=True) - mean * mean
    return (x - mean) / (torch.sqrt(variance) + 1e-9)


@register("Dropout")
def dropout(op: Op, x: object, ratio: object = None, training_mode: object = None) -> tuple[object, ...]:
    """Nothing, outside of training."""
    tensor = op.tensor(x)
    is_training = (
        bool(np.asarray(op.known(training_mode, "training_mode")).reshape(())) if training_mode is not None else False
    )
    if op.version < 7:
        is_training = not op.attribute("is_test", 0)
    share = op.attribute("ratio", 0.5) if op.version < 12 else 0.5
    if ratio is not None and is_training:
        share = float(np.asarray(ratio).reshape(())) if op.is_known(ratio) else 0.5
    if is_training and share != 0.0:
        op.refuse("it drops values at random: import the model in its form for inference")
    if not op.wants(1):
        return (tensor,)
    return tensor, torch.ones_like(tensor, dtype=torch.bool if op.version >= 10 else tensor.dtype)
