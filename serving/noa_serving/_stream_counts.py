"""The streams of one endpoint in one worker: how many may run at once, and what was counted of them."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final, Literal

from noa_serving._admission import Admission
from noa_serving._http import RequestRefusedError
from noa_serving._stages import BUCKETS_S

EndReason = Literal["stop", "max_steps", "deadline", "gone", "error"]
"""Why a stream ended: by its model, by its number of steps, in time, without a client, or because a step failed."""

END_REASONS: Final[tuple[EndReason, ...]] = ("stop", "max_steps", "deadline", "gone", "error")


class StepTimes:
    """A histogram of seconds with the bounds `BUCKETS_S`, not cumulated."""

    __slots__ = ("buckets", "total_s")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BUCKETS_S) + 1)
        self.total_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one more."""
        self.buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self.total_s += seconds


class StreamCounts:
    """Places for streams, and what they did. Belongs to one event loop."""

    def __init__(self, endpoint: str, max_streams: int) -> None:
        self.endpoint = endpoint
        self.max_streams = max_streams
        self.steps = 0
        self.ended: dict[EndReason, int] = dict.fromkeys(END_REASONS, 0)
        self.first_times = StepTimes()
        """From a request's head to its first event."""
        self.step_times = StepTimes()
        """Of each step: from the event before it, with what it waited."""
        self._places = Admission(max_streams)

    @property
    def active(self) -> int:
        """Streams that run now."""
        return self._places.in_flight

    @property
    def refused(self) -> int:
        """Streams that were refused because as many ran as may."""
        return self._places.refused

    def enter(self) -> None:
        """Take a place for a stream; `leave` gives it back.

        Raises:
            RequestRefusedError: 503 with `Retry-After`; as many run as may.
        """
        if self._places.is_full:
            self._places.refused += 1
            raise RequestRefusedError(
                f"endpoint `{self.endpoint}` has as many streams as it may",
                status=503,
                expected=f"at most {self.max_streams} at once in a worker",
                retry_after_s=self._places.retry_after_s(),
            )
        self._places.enter()

    def leave(self) -> None:
        """Give a place back."""
        self._places.leave()
