"""What was measured of each format, and which of them no other beats in everything.

A format is on the front if no other is at least as good in latency, size and task metric, and better in one of them.
Latencies closer than the noise of the machine count as equal. Of a format that is not on it is known which beats it,
and in what.
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
    beaten_by: str | None = None
    """A format that is at least as good in everything; of several one that is on the front."""
    beaten_in: tuple[str, ...] = ()
    """In what that one is better, in words."""

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
            "beaten_by": self.beaten_by,
            "beaten_in": list(self.beaten_in),
        }


def metric_drop(baseline: float, value: float, *, larger_is_better: bool) -> float:
    """Return by how much a metric is worse than the baseline's; negative if it is better."""
    return baseline - value if larger_is_better else value - baseline


def mark_front(measured: Sequence[Measured], *, larger_is_better: bool) -> list[Measured]:
    """Return the formats with those on the front marked, and of the others which beats them."""
    candidates = [one for one in measured if one.is_candidate]
    beaten = {
        one.format: {
            other.format: better
            for other in candidates
            if other is not one and (better := _advantages(other, one, larger_is_better=larger_is_better))
        }
        for one in candidates
    }
    found: list[Measured] = []
    for one in measured:
        by = beaten.get(one.format, {})
        # Within the noise "beats" does not carry over, so it may be that no format on the front beats this one.
        winner = next((name for name in by if not beaten[name]), next(iter(by), None))
        found.append(
            replace(
                one,
                on_front=one.is_candidate and winner is None,
                beaten_by=winner,
                beaten_in=() if winner is None else by[winner],
            )
        )
    return found


def describe_rule(metric: str) -> str:
    """Return in words what it means that one format beats another."""
    return (
        f"one format beats another if it is at least as good in size, {metric} and latency, and better in one of them; "
        f"latencies less than {LATENCY_NOISE:.0%} apart count as equal"
    )


def _advantages(left: Measured, right: Measured, *, larger_is_better: bool) -> tuple[str, ...]:
    """Return in what `left` is better than `right`; nothing if it is worse in anything."""
    if left.metric is None or right.metric is None:
        return ()
    sign = 1 if larger_is_better else -1
    signs = {
        f"{right.size_bytes - left.size_bytes:,} bytes smaller": -_sign(left.size_bytes, right.size_bytes, 0.0),
        f"the metric better by {abs(left.metric - right.metric):.3g}": _sign(
            sign * left.metric, sign * right.metric, 0.0
        ),
    }
    for batch, slower in right.latency_ms.items():
        share = (slower - left.latency_ms[batch]) / slower if slower else 0.0
        signs[f"{share:.0%} faster at batch {batch}"] = -_sign(left.latency_ms[batch], slower, LATENCY_NOISE)
    return () if min(signs.values()) < 0 else tuple(words for words, sign in signs.items() if sign > 0)


def _sign(left: float, right: float, noise: float) -> int:
    if abs(left - right) <= noise * max(abs(left), abs(right)):
        return 0
    return 1 if left > right else -1
