"""What was measured of each format, and which of them no other beats in everything.

A format is on the front if no other is at least as good in latency, size and task metric, and better in one of them.
Latencies closer than the noise of the machine count as equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

LATENCY_NOISE: Final = 0.05
"""Share below which two latencies are taken for equal: medians of repeated rounds still differ by as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One format: `latency_ms` is the median by batch size. `problem` says why it was not made or is not chosen."""

    format: str
    size_bytes: int = 0
    latency_ms: Mapping[int, float]
    metric: float | None = None
    metrics: Mapping[str, float]
    max_abs_error: float | None = None
    problem: str | None = None
    is_registered: bool = False
    on_front: bool = False
    is_chosen: bool = False

    @property
    def is_candidate(self) -> bool:
        """Whether it may be on the front."""
        return self.problem is None and self.metric is not None

    def to_dict(self) -> dict[str, object]:
        """Return JSON values."""
        return {
            "format": self.format,
            "size_bytes": self.size_bytes or None,
            "latency_ms": {str(batch): value for batch, value in self.latency_ms.items()},
            "metric": self.metric,
            "metrics": dict(self.metrics),
            "max_abs_error": self.max_abs_error,
            "problem": self.problem,
            "is_registered": self.is_registered,
            "on_front": self.on_front,
            "is_chosen": self.is_chosen,
        }


def metric_drop(baseline: float, value: float, *, larger_is_better: bool) -> float:
    """Return by how much a metric is worse than the baseline's; negative if it is better."""
    return baseline - value if larger_is_better else value - baseline


def mark_front(measured: Sequence[Measured], *, larger_is_better: bool) -> list[Measured]:
    """Return the formats with those on the front marked."""
    candidates = [one for one in measured if one.is_candidate]
    return [
        replace(
            one,
            on_front=one.is_candidate
            and not any(_beats(other, one, larger_is_better=larger_is_better) for other in candidates),
        )
        for one in measured
    ]


def _beats(left: Measured, right: Measured, *, larger_is_better: bool) -> bool:
    """Tell whether `left` is at least as good as `right` in everything, and better in something."""
    if left is right or left.metric is None or right.metric is None:
        return False
    sign = 1 if larger_is_better else -1
    signs = [_sign(sign * left.metric, sign * right.metric, 0.0), -_sign(left.size_bytes, right.size_bytes, 0.0)]
    signs += [-_sign(left.latency_ms[batch], right.latency_ms[batch], LATENCY_NOISE) for batch in right.latency_ms]
    return min(signs) >= 0 and max(signs) > 0


def _sign(left: float, right: float, noise: float) -> int:
    if abs(left - right) <= noise * max(abs(left), abs(right)):
        return 0
    return 1 if left > right else -1
