"""How a model is called step by step: what each step takes of the one before, what is sent of it, and when it ends.

A `StreamPlan` belongs to one loaded version; `stream_fit` makes it of the endpoint's settings and the version's
signature. It holds no state: what a stream has so far are the inputs of its next step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from noa.signatures import numpy_dtype
from noa.text_tensors import size_bytes
from noa_serving._http import RequestRefusedError

if TYPE_CHECKING:
    from noa.signatures import TensorSpec


class FedInput(NamedTuple):
    """An input of the next step. `axis` is where the output goes behind what there is, None: it takes its place.

    `is_item`: the output lacks that axis, and is one element along it.
    """

    name: str
    output: str
    axis: int | None
    is_item: bool


class Stop(NamedTuple):
    """The output that ends a stream. `values` are of its dtype; none for booleans.

    `has_items`: its first axis is that of the batch.
    """

    output: str
    values: tuple[object, ...]
    has_items: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPlan:
    """What the streams of one version do. `zeros` are the inputs that a request may leave out."""

    feeds: tuple[FedInput, ...]
    zeros: tuple[TensorSpec, ...]
    emits: tuple[str, ...]
    stop: Stop | None
    max_steps: int
    max_bytes: int
    batch_axis: str | None

    @property
    def optional(self) -> frozenset[str]:
        """The inputs that a request may leave out."""
        return frozenset(spec.name for spec in self.zeros)

    def begin(self, inputs: Mapping[str, np.ndarray], specs: Mapping[str, TensorSpec]) -> dict[str, np.ndarray]:
        """Return the inputs of the first step: those of a request, with zeros for what it left out.

        Free axes of the zeros have the sizes that the given inputs have, others are empty. Nothing else is checked.

        Raises:
            RequestRefusedError: 413, they are larger than a stream may be.
        """
        missing = [spec for spec in self.zeros if spec.name not in inputs]
        sizes = self._free_sizes(inputs, specs)
        shapes = {one.name: [sizes.get(a, 0) if isinstance(a, str) else a for a in one.shape] for one in missing}
        num_bytes = sum(math.prod(shapes[one.name]) * numpy_dtype(one.dtype).itemsize for one in missing)
        self._check_bytes(num_bytes + sum(map(size_bytes, inputs.values())))
        made = {one.name: _blank(one, shapes[one.name]) for one in missing}
        return {**made, **inputs}

    def advance(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the inputs of the next step, from those of a step and what it gave.

        Raises:
            RequestRefusedError: 413, they would be larger than a stream may be; 500, the model gave something that
                cannot be put behind what there is.
        """
        sizes = {name: size_bytes(array) for name, array in inputs.items()}
        for feed in self.feeds:
            before = 0 if feed.axis is None else sizes[feed.name]
            sizes[feed.name] = before + size_bytes(outputs[feed.output])
        self._check_bytes(sum(sizes.values()))
        found = dict(inputs)
        for feed in self.feeds:
            array = outputs[feed.output]
            found[feed.name] = array if feed.axis is None else _join(feed, inputs[feed.name], array, feed.axis)
        return found

    def has_stopped(self, outputs: Mapping[str, np.ndarray], batch: int) -> np.ndarray:
        """Return for each item of the batch whether this step ends it, as booleans (batch,)."""
        stop = self.stop
        if stop is None:
            return np.zeros(batch, dtype=np.bool_)
        array = outputs[stop.output]
        hits = _equals_any(array, stop.values) if stop.values else array
        if not hits.size:
            return np.zeros(batch, dtype=np.bool_)
        if stop.has_items and hits.shape[:1] == (batch,):
            return np.asarray(hits.reshape(batch, -1).all(axis=1))
        return np.full(batch, bool(hits.all()))

    def _free_sizes(self, inputs: Mapping[str, np.ndarray], specs: Mapping[str, TensorSpec]) -> dict[str, int]:
        """Return the sizes of the free axes that the given inputs have; the batch is 1 where none has it."""
        sizes: dict[str, int] = {} if self.batch_axis is None else {self.batch_axis: 1}
        for name, array in inputs.items():
            spec = specs.get(name)
            if spec is not None and len(spec.shape) == array.ndim:
                free = zip(spec.shape, array.shape, strict=True)
                sizes |= {axis: size for axis, size in free if isinstance(axis, str)}
        return sizes

    def _check_bytes(self, num_bytes: int) -> None:
        if num_bytes > self.max_bytes:
            raise RequestRefusedError(
                "the inputs of a step of this stream are too large",
                status=413,
                expected=f"at most {self.max_bytes} bytes",
                received=f"{num_bytes} bytes",
                remedy="Ask for fewer steps or send less, or raise `max_bytes` of the endpoint's `stream`",
            )


def _equals_any(array: np.ndarray, values: Sequence[object]) -> np.ndarray:
    hits = np.zeros(array.shape, dtype=np.bool_)
    for value in values:
        hits |= np.asarray(array == value, dtype=np.bool_)
    return hits


def _join(feed: FedInput, before: np.ndarray, array: np.ndarray, axis: int) -> np.ndarray:
    fits = array.ndim == before.ndim - feed.is_item
    added = np.expand_dims(array, axis) if feed.is_item and fits else array
    if not fits or _without(added.shape, axis) != _without(before.shape, axis):
        free = ("any" if place == axis else str(size) for place, size in enumerate(before.shape))
        raise RequestRefusedError(
            f"output `{feed.output}` cannot be put behind input `{feed.name}`",
            status=500,
            expected=f"({', '.join(free)})",
            received=str(tuple(added.shape)),
        )
    return np.concatenate((before, added), axis=axis)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _blank(spec: TensorSpec, shape: Sequence[int]) -> np.ndarray:
    """Return zeros, or empty texts."""
    dtype = numpy_dtype(spec.dtype)
    return np.full(shape, "", dtype) if spec.dtype == "string" else np.zeros(shape, dtype)
