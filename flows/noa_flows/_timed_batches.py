"""Which batch sizes are measured in time: one row and 32, and those whose latency the model's gate limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from noa.settings import Settings

_ALWAYS: Final = (1, 32)


def timed_batches(settings: Settings, model: str) -> tuple[int, ...]:
    """Return the batch sizes to measure, in rows; `noa train` and the gate's own measurement take the same."""
    policy = settings.gates.get(model)
    return tuple(sorted({*_ALWAYS, *(policy.latency_batches if policy is not None else ())}))
