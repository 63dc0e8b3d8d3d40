"""`Resize` and `Upsample`, one axis at a time: each output takes a few neighbours with weights.

Indices and weights are computed in numpy at import wherever sizes are numbers, and in the graph where an axis is free.
The rules are those of onnx.reference of onnx 1.23 (`op_resize.py`), in 64-bit floats as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from noa_conversion.importers.jax.dtypes import accumulator, is_float
from noa_conversion.importers.jax.handlers import Tensor, register
from noa_conversion.importers.jax.sizes import Size, is_plain

if TYPE_CHECKING:
    from noa_conversion.importers.op import Op

_NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """How all axes of one node are resized."""

    mode: str
    nearest: str
    coordinates: str
    cubic: float
    exclude_outside: bool
    antialias: bool
    extrapolation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """How one axis is resized: from which size to which, by what factor, within which part of it."""

    axis: int
    source: Size
    target: Size
    scale: Any
    roi: tuple[float, float] | None


@register("Resize")
def resize(op: Op, data: Any, roi: Any = None, scales: Any = None, sizes: Any = None) -> Tensor:
    """Interpolate to other sizes."""
    x = op.tensor(data)
    if op.version < 11:
        return _resize(op, x, _plan(op, x, roi, None, None), _old_rule(op))
    rule = _Rule(
        mode=op.attribute("mode", "nearest"),
        nearest=op.attribute("nearest_mode", "round_prefer_floor"),
        coordinates=op.attribute("coordinate_transformation_mode", "half_pixel"),
        cubic=op.attribute("cubic_coeff_a", -0.75),
        exclude_outside=bool(op.attribute("exclude_outside", 0)),
        antialias=bool(op.attribute("antialias", 0)),
        extrapolation=op.attribute("extrapolation_value", 0.0),
    )
    return _resize(op, x, _plan(op, x, _given(scales), _given(sizes), roi), rule)


@register("Upsample")
def upsample(op: Op, data: Any, scales: Any = None) -> Tensor:
    """Interpolate to larger sizes; the older form of `Resize`."""
    x = op.tensor(data)
    factors = np.asarray(op.attribute("scales"), np.float32) if op.version < 9 else scales
    return _resize(op, x, _plan(op, x, factors, None, None), _old_rule(op))


def _old_rule(op: Op) -> _Rule:
    return _Rule(
        mode=op.attribute("mode", "nearest"),
        nearest="floor",
        coordinates="asymmetric",
        cubic=-0.75,
        exclude_outside=False,
        antialias=False,
        extrapolation=0.0,
    )


def _given(value: Any) -> Any:
    """Return an input, or None if it is left out by being empty."""
    return None if value is None or (isinstance(value, np.ndarray) and value.size == 0) else value


def _plan(op: Op, x: Tensor, scales: Any, sizes: Any, roi: Any) -> list[_Axis]:
    axes = [op.axis(axis, x.ndim) for axis in op.attribute("axes", list(range(x.ndim)))]
    if scales is not None:
        factors = [float(f) for f in op.known(scales, "scales")]
        targets = [_scaled_size(op, x.shape[axis], f) for axis, f in zip(axes, factors, strict=True)]
    elif sizes is not None:
        targets = op.integers(sizes, "sizes")
        factors = [_ratio(target, x.shape[axis]) for axis, target in zip(axes, targets, strict=True)]
        targets, factors = _keep_aspect(op, x, axes, targets, factors)
    else:
        op.refuse("neither scales nor sizes are given")
    parts: list[tuple[float, float] | None] = [None] * len(axes)
    if op.attribute("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        ends = [float(end) for end in op.known(roi, "roi")]
        parts = [(ends[i], ends[i + len(axes)]) for i in range(len(axes))]
    return [
        _Axis(axis=axis, source=x.shape[axis], target=target, scale=factor, roi=part)
        for axis, target, factor, part in zip(axes, targets, factors, parts, strict=True)
    ]


def _ratio(target: Size, source: Size) -> Any:
    if is_plain(target) and is_plain(source):
        return target / source
    return 1.0 if target == source else jnp.asarray(target, jnp.float32) / jnp.asarray(source, jnp.float32)


def _scaled_size(op: Op, size: Size, factor: float) -> Size:
    if is_plain(size):
        return int(np.float32(factor) * np.float32(size))  # in 32 bits, as onnxruntime has it: 0.7 of 10 is 7
    if factor.is_integer():
        return size * int(factor)
    if (1 / factor).is_integer():
        return size // int(1 / factor)
    return op.refuse(f"the free axis {size} is scaled by {factor}", remedy="Only whole factors scale a free axis")


def _keep_aspect(
    op: Op, x: Tensor, axes: list[int], targets: list[Size], factors: list[Any]
) -> tuple[list[Size], list[Any]]:
    policy = op.attribute("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return targets, factors
    if policy not in ("not_larger", "not_smaller") or not all(isinstance(f, float) for f in factors):
        op.refuse(f"`keep_aspect_ratio_policy` {policy!r} with the sizes {targets}")
    scale = min(factors) if policy == "not_larger" else max(factors)
    return [int(scale * x.shape[axis] + 0.5) for axis in axes], [scale] * len(axes)


def _resize(op: Op, x: Tensor, plan: list[_Axis], rule: _Rule) -> Tensor:
    if rule.mode not in ("nearest", "linear", "cubic") or rule.nearest not in _NEAREST:
        op.refuse(f"mode {rule.mode!r}, nearest mode {rule.nearest!r}")
    if rule.antialias and rule.mode == "nearest":
        op.refuse("`antialias` with mode nearest")
    todo = [axis for axis in plan if not _is_identity(axis)]
    y = x if rule.mode == "nearest" else x.astype(accumulator(x.dtype) if is_float(x) else jnp.float32)
    for axis in todo:
        y = _resize_axis(op, y, axis, rule)
    if is_float(x) or rule.mode == "nearest":
        return y.astype(x.dtype)
    info = jnp.iinfo(x.dtype)
    return jnp.clip(jnp.round(y), info.min, info.max).astype(x.dtype)


def _is_identity(axis: _Axis) -> bool:
    whole = axis.roi is None or axis.roi == (0.0, 1.0)
    return whole and axis.source == axis.target and not hasattr(axis.scale, "dtype") and float(axis.scale) == 1.0


def _resize_axis(op: Op, x: Tensor, axis: _Axis, rule: _Rule) -> Tensor:
    plain = is_plain(axis.source) and is_plain(axis.target)
    xp: Any = np if plain else jnp
    if not plain and rule.antialias:
        op.refuse(f"`antialias` over the free axis {axis.source}")
    if plain and axis.target == 0:
        return jnp.zeros((*x.shape[: axis.axis], 0, *x.shape[axis.axis + 1 :]), x.dtype)
    places = _source(op, xp, axis, rule)
    if rule.mode == "nearest":
        index = xp.clip(_nearest(xp, places, rule.nearest), 0, axis.source - 1)
        y = _take(x, index, axis)
    else:
        index, weights = _neighbours(xp, places, axis, rule)
        shape = [-1 if i == axis.axis else 1 for i in range(x.ndim)]
        parts = [
            jnp.take(x, jnp.asarray(index[:, i], jnp.int32), axis=axis.axis, mode="clip")
            * jnp.asarray(weights[:, i], x.dtype).reshape(shape)
            for i in range(index.shape[1])
        ]
        y = sum(parts[1:], start=parts[0])
    if rule.coordinates != "tf_crop_and_resize":
        return y
    outside = jnp.asarray((places < 0) | (places > axis.source - 1))
    outside = outside.reshape([-1 if i == axis.axis else 1 for i in range(x.ndim)])
    return jnp.where(outside, jnp.asarray(rule.extrapolation, y.dtype), y)


def _take(x: Tensor, index: Any, axis: _Axis) -> Tensor:
    """Take by index; whole repetitions are a broadcast, which needs no gather."""
    if isinstance(index, np.ndarray) and axis.target % axis.source == 0:
        times = axis.target // axis.source
        if np.array_equal(index, np.repeat(np.arange(axis.source), times)):
            spread = jnp.broadcast_to(
                jnp.expand_dims(x, axis.axis + 1), (*x.shape[: axis.axis + 1], times, *x.shape[axis.axis + 1 :])
            )
            return spread.reshape((*x.shape[: axis.axis], axis.target, *x.shape[axis.axis + 1 :]))
    return jnp.take(x, jnp.asarray(index, jnp.int32), axis=axis.axis, mode="clip")


def _source(op: Op, xp: Any, axis: _Axis, rule: _Rule) -> Any:
    """Return where in the source each output lies."""
    if xp is np:
        at: Any = np.arange(axis.target, dtype=np.float64)
        source: Any = axis.source
        length: Any = axis.scale * source
        is_single = bool(length == 1)
    else:
        at = jnp.arange(axis.target, dtype=jnp.float32)
        source = jnp.asarray(axis.source, jnp.float32)
        length = axis.scale * source
        is_single = False
    # `length_resized` of the standard is a whole number, as in onnxruntime and PyTorch; its reference does not round it
    resized: Any = axis.target if xp is np else jnp.asarray(axis.target, jnp.float32)
    steps = xp.maximum(resized - 1, 1)
    half_pixel = (at + 0.5) / axis.scale - 0.5
    match rule.coordinates:
        case "half_pixel":
            return half_pixel
        case "pytorch_half_pixel":
            return xp.full_like(at, -0.5) if is_single else half_pixel
        case "half_pixel_symmetric":
            # One rounding; the standard's `source / 2 * (1 - target / length) + half_pixel` ends a hair beside a pixel.
            return (at + 0.5 - resized / 2) / axis.scale + (source - 1) / 2
        case "asymmetric":
            return at / axis.scale
        case "align_corners":
            return at * (source - 1) / steps
        case "tf_crop_and_resize":
            begin, end = axis.roi or (0.0, 1.0)
            span = (end - begin) * (source - 1)
            inner = xp.where(resized == 1, span / 2, at * span / steps)
            return inner + begin * (source - 1)
        case other:
            return op.refuse(f"`coordinate_transformation_mode` is {other!r}")


def _nearest(xp: Any, places: Any, rule: str) -> Any:
    match rule:
        case "round_prefer_floor":
            chosen = xp.ceil(places - 0.5)
        case "round_prefer_ceil":
            chosen = xp.floor(places + 0.5)
        case "floor":
            chosen = xp.floor(places)
        case _:
            chosen = xp.ceil(places)
    return chosen.astype(np.int32)


def _neighbours(xp: Any, places: Any, axis: _Axis, rule: _Rule) -> tuple[Any, Any]:
    """Return the indices of the neighbours of each output, held inside, and their weights."""
    left = xp.floor(places)
    on_grid = places == left
    base = xp.where(on_grid, left - 1, left)
    ratio = (places - base)[:, None]  # in (0, 1]: a place on the grid counts from its left neighbour
    reach = 1 if rule.mode == "linear" else 2
    scale = min(float(axis.scale), 1.0) if rule.antialias else 1.0
    start = int(np.floor(-reach / scale)) + 1
    steps = np.arange(start, 2 - start)
    distance = xp.abs((steps - ratio) * scale)
    weights = xp.clip(1 - distance, 0, 1) if rule.mode == "linear" else _cubic(xp, distance, rule.cubic)
    if rule.antialias:
        weights = weights / weights.sum(axis=-1, keepdims=True)
    index = (base[:, None] + steps).astype(np.int32)
    if rule.exclude_outside:
        weights = xp.where((index < 0) | (index >= axis.source), 0.0, weights)
        total = weights.sum(axis=-1, keepdims=True)
        weights = weights / xp.where(total == 0, 1.0, total)
    return xp.clip(index, 0, axis.source - 1), weights


def _cubic(xp: Any, distance: Any, a: float) -> Any:
    """Keys 1981, "Cubic convolution interpolation", eq. 15, with a free parameter."""
    square, cube = distance**2, distance**3
    near = (a + 2) * cube - (a + 3) * square + 1
    far = a * cube - 5 * a * square + 8 * a * distance - 4 * a
    return xp.where(distance <= 1, near, xp.where(distance < 2, far, 0.0))
