"""Which samples one run takes: the first free axis of the inputs is the batch, samples start again where they end."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from noa.signatures import Signature

ODD_BATCH = 7
LARGEST_BATCH = 256


def batch_axis(signature: Signature) -> str | None:
    """Return the name of the first free axis of the inputs, None if all sizes are fixed."""
    axes = [axis for spec in signature.inputs for axis in spec.shape if isinstance(axis, str)]
    return axes[0] if axes else None


def batch_sizes(signature: Signature, count: int) -> tuple[int, ...]:
    """Return the batches to run `count` real samples in: one row, an odd number, all of them up to a limit."""
    if batch_axis(signature) is None:
        return (1,)
    return tuple(sorted({1, ODD_BATCH, min(max(count, 1), LARGEST_BATCH)}))


def take_batch(
    signature: Signature, samples: Mapping[str, np.ndarray], *, batch: int, count: int
) -> dict[str, np.ndarray]:
    """Take the first `batch` samples, starting again at the first where there are fewer."""
    axis_name = batch_axis(signature)
    index = np.arange(batch) % count
    taken: dict[str, np.ndarray] = {}
    for spec in signature.inputs:
        array = samples[spec.name]
        for axis, size in enumerate(spec.shape):
            if size == axis_name and axis_name is not None:
                array = np.take(array, index, axis=axis)
        taken[spec.name] = np.ascontiguousarray(array).reshape(array.shape)
    return taken


def sizes_of(signature: Signature, inputs: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return the size that each free axis has in `inputs`."""
    return {
        axis: int(size)
        for spec in signature.inputs
        for axis, size in zip(spec.shape, inputs[spec.name].shape, strict=True)
        if isinstance(axis, str)
    }
