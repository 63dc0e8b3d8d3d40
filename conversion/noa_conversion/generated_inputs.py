"""Inputs that are made up to compare two models: seeded, by dtype, and by what whole numbers are used for.

Floats are normal numbers, texts are words. Whole numbers that index a table stay inside it (`InputRange`, read from a
graph); those that decide a shape cannot be made up and are refused by name. Every free axis gets a size that the others
do not have, so that two axes that were swapped show.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from noa.errors import InvalidInputError
from noa.signatures import Signature, TensorSpec, is_float, numpy_dtype
from noa_conversion.batches import batch_axis
from noa_conversion.made_up_texts import draw_texts
from noa_conversion.models import free_axes

MOST_ELEMENTS: Final = 1 << 26
ODD_BATCH: Final = 7
_BYTE_RANGES: Final = {"uint8": (0, 256), "int8": (-128, 128)}
_FLAG = (0, 2)
_COUNT = (0, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRange:
    """What an input may hold: whole numbers from `low` up to and without `high`. `reason` says who wants it.

    `decides_shape` marks an input whose values are sizes: none can be made up.
    """

    low: int = 0
    high: int | None = None
    reason: str = ""
    decides_shape: bool = False
    is_flag: bool = False
    """It may be used as an index in a way that is not understood, or is a mask: only 0 and 1 are safe."""

    def meet(self, other: InputRange) -> InputRange:
        """Return what satisfies both."""
        highs = [high for high in (self.high, other.high) if high is not None]
        tighter = other if other.high is not None and (self.high is None or other.high < self.high) else self
        return InputRange(
            low=max(self.low, other.low),
            high=min(highs, default=None),
            reason=tighter.reason or self.reason or other.reason,
            decides_shape=self.decides_shape or other.decides_shape,
            is_flag=self.is_flag or other.is_flag,
        )


def size_ladder(signature: Signature, fixed: Mapping[str, int]) -> Iterator[tuple[dict[str, int], ...]]:
    """Yield pairs of sizes for the free axes, the most telling first; later ones suit models that want round sizes.

    The first of a pair has batch 1, the second an odd batch. `fixed` are the sizes that somebody asked for.
    """
    axes = free_axes(signature.inputs)
    batch = batch_axis(signature)
    others = [axis for axis in axes if axis != batch]

    def sizes(rows: int, rest: list[int]) -> dict[str, int]:
        chosen = ({} if batch is None else {batch: rows}) | dict(zip(others, rest, strict=True))
        return {**chosen, **{axis: size for axis, size in fixed.items() if axis in axes}}

    count = len(others)
    yield sizes(1, [8 + 2 * i for i in range(count)]), sizes(ODD_BATCH, [5 + 2 * i for i in range(count)])
    if not count:
        return
    yield sizes(1, [8] * count), sizes(ODD_BATCH, [5] * count)
    yield sizes(1, [1] * count), sizes(ODD_BATCH, [1] * count)
    yield sizes(1, [16 + 8 * i for i in range(count)]), sizes(ODD_BATCH, [24 + 8 * i for i in range(count)])
    for small, large in ((16, 24), (32, 64), (64, 96), (224, 256)):
        yield sizes(1, [small] * count), sizes(3, [large] * count)


def generate_inputs(
    signature: Signature, sizes: Mapping[str, int], *, ranges: Mapping[str, InputRange], seed: int
) -> dict[str, np.ndarray]:
    """Make up one batch of inputs; the same for the same arguments.

    Raises:
        InvalidInputError: an input decides a shape, may hold nothing at all, or is too large to be made up.
    """
    generator = np.random.default_rng(seed)
    return {spec.name: _draw(generator, spec, sizes, ranges.get(spec.name, InputRange())) for spec in signature.inputs}


def poison_inputs(inputs: Mapping[str, np.ndarray], *, seed: int) -> dict[str, np.ndarray] | None:
    """Return a copy with a NaN and both infinities in every float input, None where there is none."""
    generator = np.random.default_rng(seed)
    poisoned: dict[str, np.ndarray] = {}
    found = False
    for name, array in inputs.items():
        poisoned[name] = array
        if is_float(array.dtype.name) and array.size:
            found = True
            poisoned[name] = array.copy()
            places = generator.choice(array.size, size=min(3, array.size), replace=False)
            for place, value in zip(places, (np.nan, np.inf, -np.inf), strict=False):
                poisoned[name].reshape(-1)[place] = value
    return poisoned if found else None


def describe_ranges(signature: Signature, ranges: Mapping[str, InputRange]) -> dict[str, str]:
    """Return for each input what was drawn, in words."""
    words: dict[str, str] = {}
    for spec in signature.inputs:
        limits = ranges.get(spec.name, InputRange())
        if spec.dtype == "string":
            words[spec.name] = "words"
        elif _wants_whole(spec, limits):
            low, high = _limits(spec, limits)
            words[spec.name] = f"whole numbers {low} to {high - 1}" + (f" ({limits.reason})" if limits.reason else "")
        else:
            words[spec.name] = "normal numbers" if is_float(spec.dtype) else "true and false"
    return words


def _draw(generator: np.random.Generator, spec: TensorSpec, sizes: Mapping[str, int], limits: InputRange) -> np.ndarray:
    shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape)
    if int(np.prod(shape, dtype=object)) > MOST_ELEMENTS:
        raise InvalidInputError(
            f"input `{spec.name}` is too large to make one up",
            expected=f"at most {MOST_ELEMENTS} numbers",
            received=str(shape),
            remedy="Give real inputs with `--input FILE`",
            field=spec.name,
        )
    if limits.decides_shape:
        raise InvalidInputError(
            f"the values of input `{spec.name}` decide a shape ({limits.reason}), so none can be made up",
            expected="real values for it",
            received=spec.describe(),
            remedy=f"Give them with `--input FILE`, or fix them with `--bind {spec.name}=...` when converting",
            field=spec.name,
        )
    if spec.dtype == "string":
        return draw_texts(generator, shape)
    if _wants_whole(spec, limits):
        low, high = _limits(spec, limits)
        return generator.integers(low, high, shape).astype(numpy_dtype(spec.dtype))
    if spec.dtype == "bool":
        drawn = generator.integers(0, 2, shape).astype(bool)
        drawn.reshape(-1)[:1] = True  # a mask that hides all is a case of its own
        return drawn
    return np.asarray(generator.standard_normal(shape)).astype(numpy_dtype(spec.dtype))


def _wants_whole(spec: TensorSpec, limits: InputRange) -> bool:
    return spec.dtype != "bool" and (not is_float(spec.dtype) or limits.high is not None)


def _limits(spec: TensorSpec, limits: InputRange) -> tuple[int, int]:
    if limits.high is None:
        low, high = _BYTE_RANGES.get(spec.dtype, _FLAG if limits.is_flag or "mask" in spec.name.lower() else _COUNT)
    else:
        low, high = limits.low, min(limits.high, limits.low + 2) if limits.is_flag else limits.high
    if spec.dtype.startswith("u"):
        low = max(low, 0)
    if low >= high:
        raise InvalidInputError(
            f"no value of input `{spec.name}` can be made up: {limits.reason}",
            expected=f"at least {low} and less than {high}",
            remedy="Give real inputs with `--input FILE`",
            field=spec.name,
        )
    return low, high
