"""Statistics of one generation in the shape of Triton's extension, for the public clients that ask for them.

Each worker counts for itself, and each version from the moment it was loaded. A run is counted where the model computes
(on any thread), a request that was answered by its stages (`_stages`).
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from noa_serving._response_cache import CacheCounts
from noa_serving._stages import STAGES, StageTimes

if TYPE_CHECKING:
    import numpy as np

    from noa_serving._generation import Generation

FAILED_STEP = "noa_failed_step"
"""The attribute by which an error tells in which step of a pipeline it was raised."""

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

    fail: Duration = field(default_factory=Duration)
    run: Duration = field(default_factory=Duration)
    stages: StageTimes = field(default_factory=StageTimes)
    failed_requests: int = 0
    """Requests that fitted the signature and that the model could not compute, or not in time."""
    runs_by_batch: dict[int, Duration] = field(default_factory=dict[int, Duration])
    parts: Mapping[str, ModelStatistics] = field(default_factory=dict[str, "ModelStatistics"])
    """Of a pipeline: those of the versions that it is made of, by step."""
    through: dict[str, StageTimes] = field(default_factory=dict[str, StageTimes])
    """Of a version in pipelines: what each of them, as it is now, has answered with it."""
    _through_before: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def timed(
        self, run: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
    ) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
        """Return `run` with its executions counted."""

        @functools.wraps(run)  # who computes for itself alone finds `run` by `inspect.unwrap`
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

    @property
    def requests(self) -> int:
        """Requests that were understood and came to an end, answered or failed."""
        through = self._through_before + sum(times.count for times in list(self.through.values()))
        return self.stages.count + through + self.failed_requests

    def join_pipeline(self, name: str, times: StageTimes) -> None:
        """Count what a pipeline answers from now on as requests of this version too."""
        last = self.through.get(name)
        self._through_before += 0 if last is None else last.count
        self.through[name] = times

    @property
    def failed_share(self) -> float:
        """Which share of them failed, 0 to 1."""
        return self.failed_requests / max(self.requests, 1)

    def count_failed(self, error: BaseException | None = None) -> None:
        """Count a request that the model did not compute; of a pipeline, also for the step that raised `error`."""
        with self._lock:
            self.failed_requests += 1
        while error is not None:
            part = self.parts.get(str(getattr(error, FAILED_STEP, "")))
            if part is not None:
                part.count_failed()
                return
            error = error.__cause__

    def count_refused(self, ns: int) -> None:
        """Count a request that was not understood."""
        with self._lock:
            self.fail.add(ns)

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

    `queue` is what of a request's time is neither reading, computing nor writing.
    """
    one, stages = generation.statistics, generation.statistics.stages
    cached = CacheCounts() if generation.cache is None else generation.cache.own
    answered = stages.count
    spent = {stage: stages.sum_ns(stage) for stage in STAGES}
    total_ns = sum(spent.values())
    waited_ns = max(0, total_ns - spent["parse"] - one.run.ns - spent["encode"])
    ago_ms = (time.perf_counter_ns() - stages.last_ns) // 1_000_000
    return {
        "name": generation.endpoint,
        "version": str(generation.number),
        "last_inference": int(time.time() * 1000) - ago_ms if stages.last_ns else 0,
        "inference_count": stages.items,
        "execution_count": one.run.count,
        "inference_stats": {
            "success": {"count": answered, "ns": total_ns},
            "fail": _row(one.fail),
            "queue": {"count": answered, "ns": waited_ns},
            "compute_input": {"count": answered, "ns": spent["parse"]},
            "compute_infer": {"count": answered, "ns": one.run.ns},
            "compute_output": {"count": answered, "ns": spent["encode"]},
            "cache_hit": {"count": cached.hits, "ns": cached.hit_ns},
            "cache_miss": {"count": cached.misses, "ns": 0},
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
