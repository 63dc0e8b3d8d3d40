"""One line of a benchmark's result."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A figure, and where something comparable ran in the same minutes, the peer's."""

    what: str
    figure: float
    unit: str
    peer: str | None = None
    peer_figure: float | None = None

    @property
    def ratio(self) -> float | None:
        """The figure divided by the peer's."""
        return None if not self.peer_figure else self.figure / self.peer_figure


def median_seconds(action: Callable[[], object], *, repeats: int) -> float:
    """Return the median wall time of `action` over `repeats` calls, seconds."""
    times: list[float] = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times)
