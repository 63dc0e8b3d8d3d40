"""Windows that slide over the spatial axes: what convolutions and poolings have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noa_conversion.importers.jax.sizes import Size, all_plain, ceil_divide

if TYPE_CHECKING:
    from noa_conversion.importers.op import Op


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Where the windows are. `pads` are those that the file asks for; `extra` is what rounding up adds at the ends."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[Size, Size], ...]
    extra: tuple[Size, ...]

    @property
    def padding(self) -> tuple[tuple[Size, Size], ...]:
        """The padding that makes every window whole."""
        return tuple((low, high + more) for (low, high), more in zip(self.pads, self.extra, strict=True))

    @property
    def is_padded(self) -> bool:
        """Whether some window may reach over an edge."""
        return any(end != 0 for ends in self.padding for end in ends)


def read_windows(op: Op, sizes: tuple[Size, ...], kernel: tuple[int, ...]) -> Windows:
    """Return the windows of a node over axes of `sizes`, from its attributes."""
    rank = len(sizes)
    strides = tuple(op.attribute("strides", [1] * rank))
    dilations = tuple(op.attribute("dilations", [1] * rank))
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    automatic = op.attribute("auto_pad", "NOTSET") or "NOTSET"
    if automatic == "NOTSET":
        given = op.attribute("pads", [0] * (2 * rank))
        pads = tuple(zip(given[:rank], given[rank:], strict=True))
    else:
        pads = _automatic_pads(op, automatic, sizes, reach, strides)
    extra: tuple[Size, ...] = (0,) * rank
    if op.attribute("ceil_mode", 0) and automatic in ("NOTSET", "VALID"):
        extra = tuple(_rounded_up(op, *each) for each in zip(sizes, reach, strides, pads, strict=True))
    return Windows(kernel=kernel, strides=strides, dilations=dilations, pads=pads, extra=extra)


def _automatic_pads(
    op: Op, automatic: str, sizes: tuple[Size, ...], reach: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[tuple[Size, Size], ...]:
    if automatic == "VALID":
        return ((0, 0),) * len(sizes)
    if automatic not in ("SAME_UPPER", "SAME_LOWER"):
        op.refuse(f"`auto_pad` is {automatic!r}")
    pads: list[tuple[Size, Size]] = []
    for size, width, stride in zip(sizes, reach, strides, strict=True):
        if not all_plain((size,)) and stride != 1:
            op.refuse(f"`auto_pad` over the free axis {size} with stride {stride}")
        total = width - 1 if stride == 1 else max((ceil_divide(size, stride) - 1) * stride + width - size, 0)
        less = total // 2
        pads.append((less, total - less) if automatic == "SAME_UPPER" else (total - less, less))
    return tuple(pads)


def _rounded_up(op: Op, size: Size, reach: int, stride: int, pads: tuple[Size, Size]) -> Size:
    """Return what must be added at the end so that the last, partial window counts; it must begin inside."""
    if stride == 1:
        return 0
    if not all_plain((size,)):
        op.refuse(f"`ceil_mode` over the free axis {size}")
    padded = size + sum(pads)
    count = ceil_divide(padded - reach, stride) + 1
    if (count - 1) * stride >= size + pads[0]:
        count -= 1
    return max((count - 1) * stride + reach - padded, 0)


def by_channel(x: Any, rank: int) -> Any:
    """Give a vector over channels the axes that broadcast over batch and space."""
    return x.reshape((1, -1) + (1,) * (rank - 2)) if x.ndim == 1 else x
