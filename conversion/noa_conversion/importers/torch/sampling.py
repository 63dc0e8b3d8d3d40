"""Reading images between their pixels: grids, regions, affine maps; and choosing boxes that do not overlap."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from noa_conversion.importers.op import Op
from noa_conversion.importers.target import Size, Value
from noa_conversion.importers.torch.table import register

_GRID_MODES = {
    "bilinear": "bilinear", "linear": "bilinear", "nearest": "nearest", "bicubic": "bicubic", "cubic": "bicubic"
}  # fmt: skip


@register("GridSample", tensors=True)
def grid_sample(op: Op, x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Read at places given as shares of the image."""
    mode = _GRID_MODES.get(op.attribute("mode", "linear" if op.version >= 20 else "bilinear"))
    padding = op.attribute("padding_mode", "zeros")
    if mode is None or padding not in ("zeros", "border", "reflection"):
        op.refuse(f"the mode `{op.attribute('mode', '')}` or padding `{padding}` is unknown")
    if x.ndim == 3:
        op.refuse("PyTorch samples images of 2 or 3 axes")
    return functional.grid_sample(x, grid, mode, padding, bool(op.attribute("align_corners", 0)))


@register("AffineGrid")
def affine_grid(op: Op, theta: Value, size: Value) -> torch.Tensor:
    """The places that an affine map gives. An axis of one pixel, aligned, is at 1, as in onnxruntime, not at 0."""
    matrix, sizes = op.tensor(theta), op.integers(size, "size")
    if not op.attribute("align_corners", 0):
        return functional.affine_grid(matrix, list(sizes), align_corners=False)
    space = sizes[2:]
    lines = [_aligned_places(length, matrix.dtype) for length in space]
    spread = [
        line.reshape([-1 if at == axis else 1 for at in range(len(space))]).expand(space)
        for axis, line in enumerate(lines)
    ]
    points = torch.stack([*reversed(spread), torch.ones(space, dtype=matrix.dtype)], -1)
    grid = torch.matmul(points.reshape(1, -1, len(space) + 1), matrix.transpose(1, 2))
    return grid.reshape(matrix.shape[0], *space, len(space))


def _aligned_places(length: Size, dtype: torch.dtype) -> torch.Tensor:
    """Return places from -1 to 1, counted from the end: one alone is at 1."""
    before_last = length - 1 - torch.arange(length, dtype=dtype)
    return 1 - before_last * 2 / torch.sym_max(length - 1, 1)


@register("RoiAlign", tensors=True)
def roi_align(op: Op, x: torch.Tensor, rois: torch.Tensor, batches: torch.Tensor) -> torch.Tensor:
    """Means or maxima of samples within each cell of each region."""
    default = "half_pixel" if op.version >= 16 else "output_half_pixel"
    is_half = op.attribute("coordinate_transformation_mode", default) == "half_pixel"
    rows, columns = op.attribute("output_height", 1), op.attribute("output_width", 1)
    ratio = op.attribute("sampling_ratio", 0)
    if ratio <= 0:
        op.refuse(
            "its number of samples follows from the regions (`sampling_ratio=0`), which are known only at run time"
        )
    scaled = rois * op.attribute("spatial_scale", 1.0) - (0.5 if is_half else 0.0)
    left, top, right, bottom = scaled[:, 0], scaled[:, 1], scaled[:, 2], scaled[:, 3]
    width, height = right - left, bottom - top
    if not is_half:
        width, height = torch.clamp(width, min=1.0), torch.clamp(height, min=1.0)
    y = _cell_places(top, height, rows, ratio)
    z = _cell_places(left, width, columns, ratio)
    parts = _four_pixels(x, batches.to(torch.int64), y, z)
    shape = [rois.shape[0], x.shape[1], rows, ratio, columns, ratio]
    if op.attribute("mode", "avg") == "avg":
        return torch.mean((parts[0] + parts[1] + parts[2] + parts[3]).reshape(shape), (3, 5))
    return torch.amax(torch.stack(parts).amax(0).reshape(shape), (3, 5))


def _cell_places(start: torch.Tensor, length: torch.Tensor, cells: int, samples: int) -> torch.Tensor:
    """Return where the samples lie along one axis: (regions, cells * samples)."""
    steps = (torch.arange(cells * samples, dtype=start.dtype) + 0.5) / samples
    return start.unsqueeze(1) + steps * (length / cells).unsqueeze(1)


def _four_pixels(x: torch.Tensor, batches: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> list[torch.Tensor]:
    """Return the weighted pixels around each sample: four tensors (regions, channels, rows, columns)."""
    height, width = x.shape[2:]
    is_inside = ((y >= -1.0) & (y <= height)).unsqueeze(2) & ((z >= -1.0) & (z <= width)).unsqueeze(1)
    sides = [_low_high(y, height), _low_high(z, width)]
    image = x.flatten(2)
    parts: list[torch.Tensor] = []
    for at_y, share_y in sides[0]:
        for at_z, share_z in sides[1]:
            flat = (at_y.unsqueeze(2) * width + at_z.unsqueeze(1)).flatten(1)
            picked = torch.gather(image[batches], 2, flat.unsqueeze(1).expand(-1, x.shape[1], -1))
            share = share_y.unsqueeze(2) * share_z.unsqueeze(1) * is_inside.to(x.dtype)
            parts.append(picked.reshape(picked.shape[0], picked.shape[1], *share.shape[1:]) * share.unsqueeze(1))
    return parts


def _low_high(place: torch.Tensor, size: Size) -> list[tuple[torch.Tensor, torch.Tensor]]:
    place = torch.clamp(place, min=0.0)
    low = torch.clamp(torch.floor(place), max=size - 1)
    rest = torch.clamp(place, max=size - 1) - low
    high = torch.clamp(low + 1, max=size - 1)
    return [(low.to(torch.int64), 1 - rest), (high.to(torch.int64), rest)]


@register("NonMaxSuppression")
def non_max_suppression(
    op: Op,
    boxes: Value,
    scores: Value,
    max_boxes: Value = None,
    iou_threshold: Value = None,
    score_threshold: Value = None,
) -> torch.Tensor:
    """Choose the best boxes of each class that overlap no better one.

    Which of the sorted boxes stay is the fixed point of "no better box that stays overlaps it"; n rounds reach it.
    """
    count = 0 if max_boxes is None else int(np.asarray(op.known(max_boxes, "max_output_boxes_per_class")).reshape(()))
    corners, values = op.tensor(boxes), op.tensor(scores)
    number = corners.shape[1]
    if count <= 0:
        return torch.zeros((0, 3), dtype=torch.int64)
    overlap = _overlaps(corners, bool(op.attribute("center_point_box", 0)))
    limit = 0.0 if iou_threshold is None else op.tensor(iou_threshold).reshape(())
    order = torch.sort(values, dim=2, descending=True, stable=True)[1]
    is_near = (overlap > limit).unsqueeze(1).expand(-1, values.shape[1], -1, -1)
    rows = torch.gather(is_near, 2, order.unsqueeze(3).expand(-1, -1, -1, number))
    is_near = torch.gather(rows, 3, order.unsqueeze(2).expand(-1, -1, number, -1))
    is_near = is_near & torch.ones((number, number), dtype=torch.bool).triu(1)
    is_candidate = torch.ones_like(order, dtype=torch.bool)
    if score_threshold is not None:
        is_candidate = torch.gather(values, 2, order) > op.tensor(score_threshold).reshape(())
    kept = _fixed_point(op, is_near, is_candidate, number)
    kept = kept & (torch.cumsum(kept.to(torch.int64), 2) <= count)
    places = torch.nonzero(kept)
    box = order[places[:, 0], places[:, 1], places[:, 2]]
    return torch.stack([places[:, 0], places[:, 1], box], 1)


def _fixed_point(op: Op, is_near: torch.Tensor, is_candidate: torch.Tensor, number: Size) -> torch.Tensor:
    if not isinstance(number, int):
        op.refuse("the number of boxes is free: fix the axis with `sizes`")

    def refined(kept: torch.Tensor) -> torch.Tensor:
        return is_candidate & ~(is_near & kept.unsqueeze(3)).any(2)

    if number <= 64:
        kept = is_candidate
        for _ in range(number):
            kept = refined(kept)
        return kept

    start = (is_candidate, torch.zeros_like(is_candidate))
    return torch.ops.higher_order.while_loop(_is_moving, _next_round, start, (is_near, is_candidate))[0]


def _is_moving(kept: torch.Tensor, before: torch.Tensor, near: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    return (kept != before).any()


def _next_round(
    kept: torch.Tensor, before: torch.Tensor, near: torch.Tensor, candidate: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return candidate & ~(near & kept.unsqueeze(3)).any(2), kept.clone()


def _overlaps(boxes: torch.Tensor, is_centred: bool) -> torch.Tensor:
    """Return intersection over union of each pair of boxes of a batch; zero where there is none."""
    a, b, c, d = boxes.unbind(-1)
    if is_centred:
        top, bottom, left, right = b - d / 2, b + d / 2, a - c / 2, a + c / 2
    else:
        top, bottom = torch.minimum(a, c), torch.maximum(a, c)
        left, right = torch.minimum(b, d), torch.maximum(b, d)
    heights = torch.minimum(bottom.unsqueeze(1), bottom.unsqueeze(2)) - torch.maximum(
        top.unsqueeze(1), top.unsqueeze(2)
    )
    widths = torch.minimum(right.unsqueeze(1), right.unsqueeze(2)) - torch.maximum(left.unsqueeze(1), left.unsqueeze(2))
    shared = torch.clamp(heights, min=0) * torch.clamp(widths, min=0)
    area = (bottom - top) * (right - left)
    union = area.unsqueeze(1) + area.unsqueeze(2) - shared
    is_real = (shared > 0) & (union > 0)
    return torch.where(
        is_real, shared / torch.where(is_real, union, torch.ones_like(union)), torch.full_like(union, -1.0)
    )
