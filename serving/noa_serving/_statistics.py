"""Statistics of one generation in the shape of Triton's extension, for the public clients that ask for them.

Each worker counts for itself, and each version from the moment it was loaded. A run is counted where the model computes
(on any thread), a request where it is understood and where its answer is written. Costs about a microsecond.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from noa_serving._generation import Generation

_MOST_BATCH_SIZES = 64  # rows of one answer; further sizes are counted in the totals only


@dataclass(slots=True)
class Duration:
    """How often, and how long in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Count one more."""
        self.count += count
        self.ns += ns


@dataclass(slots=True)
class ModelStatistics:
    """The counters of one generation."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    read: Duration = field(default_factory=Duration)
    run: Duration = field(default_factory=Duration)
    write: Duration = field(default_factory=Duration)
    runs_by_batch: dict[int, Duration] = field(default_factory=dict[int, Duration])
    items: int = 0
    last_inference_ms: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def timed(
        self, run: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
    ) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
        """Return `run` with its executions counted."""

        def timed_run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            start = time.perf_counter_ns()
            try:
                outputs = run(inputs)
            except Exception:
                with self._lock:
                    self.fail.add(time.perf_counter_ns() - start)
                raise
            ns = time.perf_counter_ns() - start
            shape = next(iter(inputs.values())).shape if inputs else ()
            self._count_run(shape[0] if shape else 1, ns)
            return outputs

        return timed_run

    def count_refused(self, ns: int) -> None:
        """Count a request that was not understood."""
        with self._lock:
            self.fail.add(ns)

    def count_answered(self, *, read_ns: int, write_ns: int, total_ns: int, items: int) -> None:
        """Count a request whose answer was written, `total_ns` after it had arrived."""
        with self._lock:
            self.read.add(read_ns)
            self.write.add(write_ns)
            self.success.add(total_ns)
            self.items += items
            self.last_inference_ms = int(time.time() * 1000)

    def _count_run(self, batch: int, ns: int) -> None:
        with self._lock:
            self.run.add(ns)
            row = self.runs_by_batch.get(batch)
            if row is None:
                if len(self.runs_by_batch) >= _MOST_BATCH_SIZES:
                    return
                row = self.runs_by_batch[batch] = Duration()
            row.add(ns)


def describe_statistics(generation: Generation) -> dict[str, object]:
    """Return what was counted, as Triton's `ModelStatistics` in JSON.

    `queue` is what of a request's time is neither reading, computing nor writing. There is no response cache.
    """
    one = generation.statistics
    waited_ns = max(0, one.success.ns - one.read.ns - one.run.ns - one.write.ns)
    answered = one.success.count
    return {
        "name": generation.endpoint,
        "version": str(generation.number),
        "last_inference": one.last_inference_ms,
        "inference_count": one.items,
        "execution_count": one.run.count,
        "inference_stats": {
            "success": _row(one.success),
            "fail": _row(one.fail),
            "queue": {"count": answered, "ns": waited_ns},
            "compute_input": _row(one.read),
            "compute_infer": {"count": answered, "ns": one.run.ns},
            "compute_output": _row(one.write),
            "cache_hit": _row(Duration()),
            "cache_miss": _row(Duration()),
        },
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": batch,
                "compute_input": {"count": row.count, "ns": 0},
                "compute_infer": _row(row),
                "compute_output": {"count": row.count, "ns": 0},
            }
            for batch, row in sorted(one.runs_by_batch.items())
        ],
        "memory_usage": [],
    }


def _row(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}
