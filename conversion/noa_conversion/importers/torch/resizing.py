"""`Resize` and `Upsample`: PyTorch's own interpolation where it does the same, else weighted sums, axis by axis."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from noa_conversion.importers.free_sizes import fixing
from noa_conversion.importers.op import Op
from noa_conversion.importers.target import Size, Value
from noa_conversion.importers.torch.operands import in_wider, is_integer, is_static
from noa_conversion.importers.torch.resize_weights import (
    AxisResize,
    ResizeRule,
    resize_weights,
    scaled_size,
    source_places,
)
from noa_conversion.importers.torch.table import register


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What is asked for, per axis of the tensor."""

    scales: list[float] | None
    sizes: list[Size] | None
    regions: list[tuple[float, float]] | None


@register("Upsample")
def upsample(op: Op, x: Value, scales: Value = None) -> torch.Tensor:
    """Opsets 7 to 9: by scales, places counted from the corner."""
    tensor = op.tensor(x)
    listed = op.attribute("scales") if scales is None else op.known(scales, "scales").tolist()
    mode = op.attribute("mode", "nearest")
    mode = "linear" if mode in ("bilinear", "trilinear") else mode
    rule = ResizeRule(
        mode=mode, coordinates="asymmetric", nearest="floor", cubic=-0.75, antialias=False, exclude_outside=False
    )
    return _resize(op, tensor, rule, _Request(scales=[float(s) for s in listed], sizes=None, regions=None))


@register("Resize")
def resize(op: Op, x: Value, roi: Value = None, scales: Value = None, sizes: Value = None) -> torch.Tensor:
    """Resize by scales or to sizes."""
    tensor = op.tensor(x)
    if op.version < 11:
        roi, scales = None, roi
    rule = ResizeRule(
        mode=op.attribute("mode", "nearest"),
        coordinates=op.attribute("coordinate_transformation_mode", "half_pixel" if op.version >= 11 else "asymmetric"),
        nearest=op.attribute("nearest_mode", "round_prefer_floor" if op.version >= 11 else "floor"),
        cubic=op.attribute("cubic_coeff_a", -0.75),
        antialias=bool(op.attribute("antialias", 0)),
        exclude_outside=bool(op.attribute("exclude_outside", 0)),
    )
    return _resize(op, tensor, rule, _request(op, tensor, rule, roi, scales, sizes))


def _request(op: Op, x: torch.Tensor, rule: ResizeRule, roi: Value, scales: Value, sizes: Value) -> _Request:
    axes = [op.axis(axis, x.ndim) for axis in op.attribute("axes", list(range(x.ndim)))]
    regions = None
    if rule.coordinates == "tf_crop_and_resize":
        listed = [float(share) for share in op.known(roi, "roi").ravel()]
        regions = [(0.0, 1.0)] * x.ndim
        for place, axis in enumerate(axes):
            regions[axis] = (listed[place], listed[len(axes) + place])
    factors = op.known(scales, "scales").ravel().tolist() if scales is not None else []
    if factors:
        all_factors = [1.0] * x.ndim
        for axis, factor in zip(axes, factors, strict=True):
            all_factors[axis] = float(factor)
        return _Request(scales=all_factors, sizes=None, regions=regions)
    wanted: list[Size] = list(x.shape)
    for axis, size in zip(axes, op.integers(sizes, "sizes"), strict=True):
        wanted[axis] = size
    policy = op.attribute("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return _Request(scales=None, sizes=wanted, regions=regions)
    if not all(isinstance(wanted[axis], int) and is_static(x.shape[axis]) for axis in axes):
        op.refuse(f"with the policy `{policy}` its sizes depend on an axis that is free")
    ratios = [wanted[axis] / x.shape[axis] for axis in axes]
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    kept = [ratio if axis in axes else 1.0 for axis in range(x.ndim)]
    final = [math.floor(ratio * size + 0.5) if axis in axes else size for axis, size in enumerate(x.shape)]
    return _Request(scales=kept, sizes=final, regions=regions)


def _resize(op: Op, x: torch.Tensor, rule: ResizeRule, request: _Request) -> torch.Tensor:
    own = _by_pytorch(x, rule, request)
    if own is not None:
        return own
    if rule.mode == "nearest" and request.regions is None:  # it only picks
        return in_wider(lambda wide: _by_weights(op, wide, rule, request), x)
    if x.dtype == torch.uint64:
        op.refuse("PyTorch has no sums of 64-bit unsigned integers with weights")
    if is_integer(x):
        wide = _by_weights(op, x.to(torch.float64), rule, request)
        low, high = torch.iinfo(x.dtype).min, torch.iinfo(x.dtype).max
        return torch.clamp(torch.round(wide), low, high).to(x.dtype)
    return _by_weights(op, x, rule, request)


def _by_pytorch(x: torch.Tensor, rule: ResizeRule, request: _Request) -> torch.Tensor | None:
    """Resize with PyTorch's own operator, or return None where it would not do the same."""
    scales, sizes = request.scales, request.sizes
    if x.ndim not in (3, 4, 5) or rule.antialias or rule.exclude_outside or request.regions is not None:
        return None
    if not x.is_floating_point() or (scales is not None and sizes is not None):
        return None
    is_moved = scales[0] == scales[1] == 1.0 if scales is not None else list(sizes or ())[:2] == list(x.shape[:2])
    if not is_moved:
        return None
    if rule.mode == "nearest":
        if scales is None or rule.coordinates != "asymmetric" or rule.nearest != "floor":
            return None
        if not all(scale >= 1 and float(scale).is_integer() for scale in scales):
            return None
        return functional.interpolate(x, scale_factor=scales[2:], mode="nearest")
    mode = {("linear", 3): "linear", ("linear", 4): "bilinear", ("linear", 5): "trilinear", ("cubic", 4): "bicubic"}
    name = mode.get((rule.mode, x.ndim))
    if name is None or (rule.mode == "cubic" and rule.cubic != -0.75):
        return None
    if rule.coordinates == "half_pixel":
        if scales is not None:
            pairs = zip(x.shape, scales, strict=True)
            if any(is_static(size) and scaled_size(size, by) != math.floor(size * by) for size, by in pairs):
                return None
            return functional.interpolate(x, scale_factor=scales[2:], mode=name, align_corners=False)
        return functional.interpolate(x, size=list(sizes or ())[2:], mode=name, align_corners=False)
    if rule.coordinates == "align_corners" and sizes is not None:
        return functional.interpolate(x, size=list(sizes)[2:], mode=name, align_corners=True)
    return None


def _by_weights(op: Op, x: torch.Tensor, rule: ResizeRule, request: _Request) -> torch.Tensor:
    for axis in range(x.ndim):
        size, factor = x.shape[axis], request.scales[axis] if request.scales is not None else None
        wanted = request.sizes[axis] if request.sizes is not None else None
        start, end = request.regions[axis] if request.regions is not None else (0.0, 1.0)
        is_whole = start == 0.0 and end == 1.0
        if is_whole and ((factor == 1.0 and wanted is None) or (factor in (None, 1.0) and wanted is size)):
            continue
        if not is_static(size) or not (wanted is None or isinstance(wanted, int)):
            op.refuse(
                f"axis {axis}, which is free, is resized in a way that PyTorch has no operator for",
                remedy=fixing(size if not is_static(size) else wanted),
            )
        new_size = scaled_size(size, factor) if wanted is None and factor is not None else int(wanted or 0)
        scale = float(factor) if factor is not None else new_size / size
        if is_whole and new_size == size and math.isclose(scale, 1.0):
            continue
        resized = AxisResize(size=size, new_size=new_size, scale=scale, start=start, end=end)
        x = _resize_axis(op, x, axis, resized, rule)
    return x


def _resize_axis(op: Op, x: torch.Tensor, axis: int, resized: AxisResize, rule: ResizeRule) -> torch.Tensor:
    try:
        indices, weights = resize_weights(resized, rule)
    except ValueError as exc:
        op.refuse(str(exc))
    shape = [-1 if at == axis else 1 for at in range(x.ndim)]
    if rule.mode == "nearest":
        only = np.take_along_axis(indices, np.argmax(weights, axis=1)[:, None], axis=1)[:, 0]
        result = torch.index_select(x, axis, op.tensor(np.ascontiguousarray(only)))
    else:
        result = _weighted(op, x, axis, indices, weights)
    if rule.coordinates != "tf_crop_and_resize":
        return result
    places = source_places(resized, rule.coordinates)
    is_outside = (places < 0) | (places > resized.size - 1)
    if not is_outside.any():
        return result
    return torch.where(op.tensor(is_outside).reshape(shape), op.attribute("extrapolation_value", 0.0), result)


def _weighted(op: Op, x: torch.Tensor, axis: int, indices: np.ndarray, weights: np.ndarray) -> torch.Tensor:
    """Multiply by the matrix that the weights make: differentiable, and one call whatever their number."""
    matrix = np.zeros((len(indices), x.shape[axis]), np.float64)
    np.add.at(matrix, (np.arange(len(indices))[:, None], indices), weights)
    moved = torch.movedim(x, axis, -1)
    wide = moved.to(torch.float32) if x.element_size() < 4 else moved
    factor = op.tensor(np.ascontiguousarray(matrix.T.astype(np.float64 if x.dtype == torch.float64 else np.float32)))
    return torch.movedim(torch.matmul(wide, factor).to(x.dtype), -1, axis)
