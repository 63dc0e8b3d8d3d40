"""Warming a loaded model on its example: what runs cost, which batch is best, and whether requests may share a run.

Requests of different callers are run together only where that was shown to change no answer: all tensors have the
batch axis in front, and items computed together are what they are alone, within the tolerance of their dtype
(`noa_conversion.comparison`). What depends on its batch mates (a statistic over the batch, dynamic quantisation with
one scale for the batch, randomness) is never batched.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from noa.errors import InvalidInputError
from noa.settings import ConversionSettings
from noa.text_tensors import is_text, text_array

if TYPE_CHECKING:
    from noa.formats import Runnable
    from noa.signatures import Signature

WARM_BATCH = 8

_WARM_RUNS = 5
_WARM_BUDGET_S = 2.0
_PROOF_ITEMS = 4
_SLOW_RUN_S = 0.25
_LARGEST_BATCH = 256
_SWEEP_BUDGET_S = 1.0
_GOOD_ENOUGH = 1.02  # a smaller batch that is this near to the best answers sooner
_HANDOVER_S = 2e-4  # what a run costs the server besides the model: to the pool and back, on cold caches
_COMPILE_S = 0.02
_COMPILE_RATIO = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one run takes, seconds: `fixed_s` per call and `per_item_s` per item of the batch axis."""

    fixed_s: float
    per_item_s: float

    def estimate_s(self, batch: int) -> float:
        """Return the expected time of one run of `batch` items, seconds."""
        return self.fixed_s + self.per_item_s * batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How requests may share a run: `best_items` have the most items per second; `refusal` says why they never do.

    `buckets` are the sizes to which a batch is filled up, for a runtime that compiles each size once; else empty.
    """

    best_items: int = 1
    refusal: str | None = None
    buckets: tuple[int, ...] = ()


def warm(runnable: Runnable, example: Mapping[str, np.ndarray]) -> tuple[Cost, Batching]:
    """Run the model on real inputs, at batch 1 and larger ones, until its time is known, and how it may be batched."""
    signature = runnable.signature
    single_s = _median_s(runnable, resize(signature, example, batch=1))
    if batch_axis(signature) is None:
        return Cost(fixed_s=single_s, per_item_s=0.0), Batching(refusal=axis_refusal(signature))
    many_s = _median_s(runnable, resize(signature, example, batch=WARM_BATCH))
    proof_items = 2 if single_s > _SLOW_RUN_S else _PROOF_ITEMS
    refusal = axis_refusal(signature) or _dependence(runnable, example, proof_items)
    if refusal is not None:
        return _cost(single_s, many_s, WARM_BATCH), Batching(refusal=refusal)
    item_s, batching = _sweep(runnable, example, proof_items)
    # Over the widest range of sizes: between neighbours, what an item costs drowns in what the machine does besides.
    largest = max(item_s)
    if largest > WARM_BATCH:
        return _cost(single_s, item_s[largest] * largest, largest), batching
    return _cost(single_s, many_s, WARM_BATCH), batching


def resize(signature: Signature, example: Mapping[str, np.ndarray], *, batch: int) -> dict[str, np.ndarray]:
    """Return `example` with `batch` items along the batch axis (the first free one), repeating what there is."""
    axis = batch_axis(signature)
    resized: dict[str, np.ndarray] = {}
    for spec in signature.inputs:
        array = example[spec.name]
        if axis is not None and axis in spec.shape:
            place = spec.shape.index(axis)
            array = np.take(array, [index % array.shape[place] for index in range(batch)], axis=place)
        resized[spec.name] = array
    return resized


def batch_axis(signature: Signature) -> str | None:
    """Return the name of the first free axis, None if there is none."""
    return next((axis for spec in signature.inputs for axis in spec.shape if isinstance(axis, str)), None)


def axis_refusal(signature: Signature) -> str | None:
    """Return which tensor lacks the batch axis in front, None if all have it."""
    axis = batch_axis(signature)
    for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            if axis is None or spec.shape[:1] != (axis,) or axis in spec.shape[1:]:
                return f"{kind} `{spec.name}` has no batch axis in front"
    return None


def _dependence(runnable: Runnable, example: Mapping[str, np.ndarray], count: int) -> str | None:
    """Return why items may not be computed together, None if each comes out as it does alone."""
    from noa_conversion.comparison import compare_output, largest_finite

    signature = runnable.signature
    repeated = resize(signature, example, batch=count)
    try:
        items = {name: _vary(array, integers=True) for name, array in repeated.items()}
        together = runnable.run(items)
    except InvalidInputError:  # a whole number out of its range, e.g. an index
        items = {name: _vary(array, integers=False) for name, array in repeated.items()}
        together = runnable.run(items)
    each = [runnable.run({name: array[index : index + 1] for name, array in items.items()}) for index in range(count)]
    for index, alone in enumerate(each):
        for spec in signature.outputs:
            found = compare_output(
                spec,
                alone[spec.name],
                together[spec.name][index : index + 1],
                batch=1,
                settings=ConversionSettings(),
                largest=largest_finite(*(one[spec.name] for one in each)),
            )
            if not found.passed:
                return f"output `{spec.name}` of an item depends on the items beside it"
    return None


def _vary(array: np.ndarray, *, integers: bool) -> np.ndarray:
    """Make the items of a batch differ: numbers are scaled, whole ones trade places within their item, texts grow."""
    varied = array.astype(object) if is_text(array.dtype) else array.copy()
    for index in range(1, len(array)):
        if array.dtype.kind in "fV":
            varied[index] = array[index] * array.dtype.type(1.0 + index / len(array))
        elif is_text(array.dtype):
            texts = [f"{text}{index}" for text in array[index, ...].reshape(-1).tolist()]
            varied[index, ...] = text_array(texts, array.shape[1:])
        elif integers:
            varied[index] = np.roll(array[index].reshape(-1), index).reshape(array[index].shape)
    return varied


def _cost(single_s: float, many_s: float, size: int) -> Cost:
    per_item_s = max(0.0, many_s - single_s) / (size - 1)
    return Cost(fixed_s=max(single_s - per_item_s, 0.0), per_item_s=per_item_s)


def _sweep(
    runnable: Runnable, example: Mapping[str, np.ndarray], proof_items: int
) -> tuple[dict[int, float], Batching]:
    """Time batches of 1, 2, 4, ... items, within a budget: seconds per item by size, and which size is best.

    Each size is warm after that.
    """
    started = time.perf_counter()
    item_s: dict[int, float] = {}
    fresh: list[bool] = []  # of the sizes that were not run before: whether the first run took far longer
    size = 1
    while size <= _LARGEST_BATCH and time.perf_counter() - started < _SWEEP_BUDGET_S:
        inputs = resize(runnable.signature, example, batch=size)
        first_s, *later_s = (_time_s(runnable, inputs) for _ in range(3))
        item_s[size] = min(later_s) / size
        if size not in (1, WARM_BATCH, proof_items):
            fresh.append(first_s > _COMPILE_S + _COMPILE_RATIO * min(later_s))
        size *= 2
    served_s = {size: seconds + _HANDOVER_S / size for size, seconds in item_s.items()}
    enough_s = _GOOD_ENOUGH * min(served_s.values())
    best = next(size for size, seconds in served_s.items() if seconds <= enough_s)
    is_compiled = sum(fresh) > len(fresh) // 2
    return item_s, Batching(best_items=best, buckets=tuple(item_s) if is_compiled else ())


def _time_s(runnable: Runnable, inputs: Mapping[str, np.ndarray]) -> float:
    start = time.perf_counter()
    runnable.run(inputs)
    return time.perf_counter() - start


def _median_s(runnable: Runnable, inputs: Mapping[str, np.ndarray]) -> float:
    times: list[float] = []
    runnable.run(inputs)  # the first run allocates and compiles
    while len(times) < _WARM_RUNS and sum(times) < _WARM_BUDGET_S:
        times.append(_time_s(runnable, inputs))
    return statistics.median(times)
