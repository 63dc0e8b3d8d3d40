"""Admission: how many may be in at once. All state belongs to one event loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from noa_serving._http import RequestRefusedError

_LONGEST_WAIT_S = 60
_WINDOW_S = 4.0


class Admission:
    """Counts requests in flight and refuses more than `limit`, with the time after which a place should be free.

    `max_bytes` bounds what the bodies of all that have a place take together; the first is always let in.

    The rate is that of the present busy period: an hour of silence before a burst says nothing about how fast we work.
    """

    def __init__(
        self, limit: int, *, max_bytes: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit = limit
        self.max_bytes = max_bytes
        self.in_flight = 0
        self.num_bytes = 0
        self.refused = 0
        self._clock = clock
        self._finished = 0.0
        self._busy_since = clock()

    @property
    def is_full(self) -> bool:
        """Whether the next one would be refused."""
        return self.in_flight >= self.limit

    def enter(self) -> None:
        """Take a place.

        Raises:
            RequestRefusedError: 503 with `Retry-After`; all places are taken.
        """
        if self.is_full:
            self.refused += 1
            raise RequestRefusedError(
                "the server is busy",
                status=503,
                expected=f"at most {self.limit} requests at once",
                retry_after_s=self.retry_after_s(),
            )
        if self.in_flight == 0:
            self._busy_since = self._clock()
            self._finished = 0.0
        self.in_flight += 1

    def leave(self) -> None:
        """Give the place back; called once the work has really ended."""
        self.in_flight -= 1
        self._finished += 1.0

    def reserve(self, num_bytes: int) -> None:
        """Count bytes of a body before they are read.

        Raises:
            RequestRefusedError: 503 with `Retry-After`; the bodies of others take what there is.
        """
        total = self.num_bytes + num_bytes
        if self.max_bytes is not None and self.num_bytes and total > self.max_bytes:
            self.refused += 1
            raise RequestRefusedError(
                "the server is busy with large requests",
                status=503,
                expected=f"at most {self.max_bytes} bytes of bodies at once",
                retry_after_s=self.retry_after_s(),
                close=True,  # the body is not read
            )
        self.num_bytes = total

    def retry_after_s(self) -> int:
        """Return how long what is in flight needs at the present rate, in whole seconds from 1 to 60."""
        busy_s = self._clock() - self._busy_since
        # Nothing has ended yet: as long again as it has taken so far.
        wait_s = self.in_flight * busy_s / self._finished if self._finished > 0.0 else busy_s
        if busy_s > _WINDOW_S:  # forget the older half
            self._busy_since += busy_s / 2
            self._finished /= 2
        return min(max(1, math.ceil(wait_s)), _LONGEST_WAIT_S)


class Place:
    """One place among the requests in flight. Leaving its `with` block gives it back, unless work holds it by then."""

    __slots__ = ("_admission", "_is_held", "_is_ours", "_num_bytes")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._is_held = True
        self._is_ours = True
        self._num_bytes = 0

    def reserve(self, num_bytes: int) -> None:
        """Count bytes of its body before they are read, as `Admission.reserve` does, until the place is given back."""
        self._admission.reserve(num_bytes)
        self._num_bytes += num_bytes

    def hand_over(self) -> None:
        """Leave the place to work that goes on; whoever runs it calls `give_back` at its end."""
        self._is_ours = False

    def give_back(self) -> None:
        """Free the place, once; called on the event loop."""
        if self._is_held:
            self._is_held = False
            self._admission.num_bytes -= self._num_bytes
            self._admission.leave()

    def __enter__(self) -> Place:
        return self

    def leave(self) -> None:
        """Give the place back, unless work holds it."""
        if self._is_ours:
            self.give_back()

    def __exit__(self, *_: object) -> None:
        self.leave()
