"""Computing a `Prepared` for any front end (ASGI, gRPC): within a deadline, on a place held until the work has ended.

A front end takes a `Place` before it reads a body, and hands it over with `Computing.run`. Small models compute at once
on the event loop; larger ones in a bounded pool. A place is given back when the compute has really ended, also if its
client was told 504, or went away, before that.

    with computing.enter() as place:
        prepared = route.prepare(headers, body)
        outputs = await computing.run(prepared, place, deadline)
    response = prepared.encode(outputs)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from noa_serving._admission import Admission
from noa_serving._http import RequestRefusedError
from noa_serving._prepared import Prepared, compute

if TYPE_CHECKING:
    import numpy as np

Outputs: TypeAlias = "Mapping[str, np.ndarray]"


@dataclass(frozen=True, slots=True)
class Deadline:
    """The moment until which a request wants its answer: `at` on the monotonic clock, `limit_s` after it came."""

    at: float
    limit_s: float

    @classmethod
    def after(cls, limit_s: float) -> Deadline:
        """Return the deadline `limit_s` seconds from now."""
        return cls(time.monotonic() + limit_s, limit_s)

    def left_s(self) -> float:
        """Return the seconds that are left, at least 0."""
        return max(0.0, self.at - time.monotonic())

    def missed(self) -> RequestRefusedError:
        """Return the refusal of a request whose deadline has passed: 504."""
        return RequestRefusedError(
            "the answer took too long",
            status=504,
            expected=f"at most {self.limit_s:g} s",
            remedy="Send a smaller batch, or raise `serving.timeout_s`",
        )


class Place:
    """One place among the requests in flight. Leaving its `with` block gives it back, unless work holds it by then."""

    __slots__ = ("_admission", "_is_held", "_is_ours")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._is_held = True
        self._is_ours = True

    def hand_over(self) -> None:
        """Leave the place to work that goes on; whoever runs it calls `give_back` at its end."""
        self._is_ours = False

    def give_back(self) -> None:
        """Free the place, once; called on the event loop."""
        if self._is_held:
            self._is_held = False
            self._admission.leave()

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            self.give_back()


class Computing:
    """Where all front ends of one worker compute. Belongs to one event loop."""

    def __init__(self, admission: Admission, pool: ThreadPoolExecutor) -> None:
        self._admission = admission
        self._pool = pool

    def enter(self) -> Place:
        """Take a place.

        Raises:
            RequestRefusedError: 503 with `Retry-After`; all places are taken.
        """
        self._admission.enter()
        return Place(self._admission)

    async def run(self, prepared: Prepared, place: Place, deadline: Deadline) -> Outputs:
        """Return the outputs of the model. If the caller is cancelled, work that has not begun is dropped.

        Raises:
            RequestRefusedError: 504, the deadline passed; 400, the model refused the values.
        """
        if prepared.generation.runs_inline(prepared.batch):
            return compute(prepared)
        return await self._run_in_pool(prepared, place, deadline)

    async def _run_in_pool(self, prepared: Prepared, place: Place, deadline: Deadline) -> Outputs:
        loop = asyncio.get_running_loop()
        work = self._pool.submit(compute, prepared)
        place.hand_over()

        def release(_: Future[Outputs]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(place.give_back)

        work.add_done_callback(release)
        waiter = asyncio.wrap_future(work, loop=loop)
        try:
            done, _ = await asyncio.wait((waiter,), timeout=deadline.left_s())
        except asyncio.CancelledError:
            waiter.cancel()  # takes it out of the queue if it has not begun
            raise
        if not done:
            waiter.cancel()
            raise deadline.missed()
        return waiter.result()
