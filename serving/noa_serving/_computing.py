"""Computing a `Prepared` for any front end (ASGI, gRPC): within a deadline, on a place held until the work has ended.

A front end takes a `Place` before it reads a body, and hands it over with `Computing.run` (awaited) or
`Computing.submit` (a callback). Both batch: quick models on the event loop, the others in a queue before a bounded pool
(`_batcher`). A place is given back when the compute has really ended, also if its client was told 504, or went away,
before that.

    with computing.enter() as place:
        prepared = route.prepare(headers, body, grant.who)
        outputs = await computing.run(prepared, place, Deadline.after(30.0))
    response = prepared.encode(outputs)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from noa_serving._admission import Place
from noa_serving._batcher import Job, Outcome, Outputs, QueueBatcher, TickBatcher
from noa_serving._deadline import Deadline

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from noa.settings import ServingSettings
    from noa_serving._admission import Admission
    from noa_serving._attempt import Attempt
    from noa_serving._prepared import Prepared
    from noa_serving._response_cache import ResponseCache


class Computing:
    """Where all front ends of one worker compute. Belongs to one event loop."""

    def __init__(self, admission: Admission, pool: ThreadPoolExecutor, settings: ServingSettings, threads: int) -> None:
        self.ticks = TickBatcher(settings)
        self.queue = QueueBatcher(admission, pool, settings, threads)
        self._admission = admission

    def enter(self) -> Place:
        """Take a place.

        Raises:
            RequestRefusedError: 503 with `Retry-After`; all places are taken.
        """
        if self._admission.is_full:
            self.ticks.flush()  # what waits only for the end of this turn holds places that can be free
        self._admission.enter()
        return Place(self._admission)

    def has_room(self) -> bool:
        """Tell whether `enter` would be let in now; nobody is counted as refused."""
        if self._admission.is_full:
            self.ticks.flush()
        return not self._admission.is_full

    def submit(
        self, prepared: Prepared, place: Place, deadline: Deadline, done: Callable[[Outcome], None]
    ) -> Job | Attempt:
        """Have a request computed, by the fallback of its endpoint if it comes to that; `done` is told the outputs or
        the refusal, now or later, on the event loop. What is returned may be dropped.

        Raises:
            RequestRefusedError: 504, the deadline has passed; 503, the queue is full or too long for it.
        """
        deadline = deadline.within(prepared.timeout_s)
        attempt = prepared.attempt
        if attempt is None or not attempt.has_fallback:
            return self.submit_once(prepared, place, deadline, done)
        attempt.submit(self, place, deadline, done)
        return attempt

    def submit_once(
        self,
        prepared: Prepared,
        place: Place,
        deadline: Deadline,
        done: Callable[[Outcome], None],
        *,
        is_step: bool = False,
        is_slow: bool = False,
    ) -> Job:
        """Have a request computed by the version for which it was prepared, and no other. Errors as in `submit`.

        It may be a step of a stream; one that is known to be slow is not computed on the event loop.
        """
        cache = prepared.generation.cache
        if cache is not None:
            key, outputs = cache.find(prepared.inputs)
            if outputs is not None:
                return _told_at_once(Job(prepared, place, deadline, done), outputs)
            if key is not None:
                done = _keeping(cache, key, done)
        job = Job(prepared, place, deadline, done)
        if not is_slow and prepared.generation.runs_inline(prepared.batch):
            place.hand_over()
            self.ticks.add(job)
            return job
        if deadline.left_s() <= 0.0:
            raise deadline.missed()
        self.queue.add(job, comes_back=is_step)
        place.hand_over()
        return job

    async def run(self, prepared: Prepared, place: Place, deadline: Deadline) -> Outputs:
        """Return the outputs of the model. If the caller is cancelled, work that has not begun is dropped.

        Raises:
            RequestRefusedError: 504, the deadline passed; 503, the queue is full or too long for it; 400, the model
                refused the values.
        """
        waiter: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def done(outcome: Outcome) -> None:
            if not waiter.done():  # cancelled in this very turn
                waiter.set_result(outcome)

        job = self.submit(prepared, place, deadline, done)
        try:
            outcome = await waiter
        except asyncio.CancelledError:
            job.drop()
            raise
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def _told_at_once(job: Job, outputs: Outputs) -> Job:
    """Answer a job with what was computed before; its place stays with its caller, who gives it back."""
    if job.prepared.passage is not None:
        job.prepared.passage.is_cached = True
    job.tell(outputs)
    return job


def _keeping(cache: ResponseCache, key: bytes, done: Callable[[Outcome], None]) -> Callable[[Outcome], None]:
    def keep_and_tell(outcome: Outcome) -> None:
        if not isinstance(outcome, BaseException):
            cache.keep(key, outcome)
        done(outcome)

    return keep_and_tell
