"""Raw tensors whose JSON header was seen before: what that header asks for is known, only the bytes are new.

A client that sends raw tensors of one shape repeats its header to the byte, and understanding it costs more than a
small model. So a generation remembers headers that were understood, by their bytes: a few, small ones, none with an
`id`. What was not understood in full before never comes this way: every check and message has one place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from noa_serving._generation import Generation
    from noa_serving._http import Response

MAX_PLANS: Final = 64
MAX_HEADER_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class BinaryPlan:
    """What one header asks for. `tensors` holds name, dtype, shape, number of elements and bytes, in their order."""

    tensors: tuple[tuple[str, np.dtype, tuple[int, ...], int, int], ...]
    num_bytes: int
    batch: int
    encode: Callable[[Mapping[str, np.ndarray]], Response]
    timeout_s: float | None

    def read(self, body: bytes, start: int) -> dict[str, np.ndarray] | None:
        """Return the inputs that lie in `body` from `start` on, None if their size is not that of the plan."""
        if len(body) - start != self.num_bytes:
            return None
        inputs: dict[str, np.ndarray] = {}
        for name, dtype, shape, count, size in self.tensors:
            array = np.frombuffer(body, dtype, count, start).reshape(shape)
            inputs[name] = array if array.flags.aligned else array.copy()
            start += size
        return inputs


def remember(
    generation: Generation,
    header: bytes,
    inputs: Mapping[str, np.ndarray],
    *,
    num_bytes: int,
    batch: int,
    encode: Callable[[Mapping[str, np.ndarray]], Response],
    timeout_s: float | None,
) -> None:
    """Keep what `header` asks for, if all its inputs are plain numbers that came as raw bytes."""
    total = sum(array.nbytes for array in inputs.values())
    if (
        len(header) > MAX_HEADER_BYTES
        or total != num_bytes
        or any(one.dtype.kind not in "fiuV" for one in inputs.values())
    ):
        return
    tensors = tuple((name, one.dtype, one.shape, one.size, one.nbytes) for name, one in inputs.items())
    if len(generation.binary_plans) >= MAX_PLANS:
        generation.binary_plans.clear()
    generation.binary_plans[header] = BinaryPlan(tensors, num_bytes, batch, encode, timeout_s)
