"""Which batch sizes are measured in time: one row and 32, and those whose latency the model's gate limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from noa_registry.gates.recorded_latency import latency_name

if TYPE_CHECKING:
    from noa.settings import Settings

_ALWAYS: Final = (1, 32)


def timed_batches(settings: Settings, model: str) -> tuple[int, ...]:
    """Return the batch sizes to measure, in rows; `noa train` and the gate's own measurement take the same."""
    policy = settings.gates.get(model)
    return tuple(sorted({*_ALWAYS, *(policy.latency_batches if policy is not None else ())}))


def tail_batches(settings: Settings, model: str) -> tuple[int, ...]:
    """Return the batch sizes whose 99th percentile the model's gate limits: it takes many runs to know one."""
    policy = settings.gates.get(model)
    names = () if policy is None else policy.max_latency_ms
    return tuple(sorted(batch for percentile, batch in map(latency_name, names) if percentile == "p99"))


def measured_tails(settings: Settings, model: str) -> dict[str, object]:
    """Return what a recipe's process is asked to measure for longer, and for how long, as JSON values."""
    return {"tails": tail_batches(settings, model), "tail_seconds": settings.training.latency_s}
