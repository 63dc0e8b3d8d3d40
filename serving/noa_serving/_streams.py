"""One stream: a model called again and again for one client, each step with what the one before gave.

A stream holds the version with which it began until it ends. Its steps are jobs like those of other requests, so what
other streams and requests ask in the same moment runs in the same batch where shapes allow that. The next step is
computed when its front end asks for it, which it does when the client has taken the one before. It ends by what the
model gives, by the number of its steps, at its deadline, when its client is gone, or with the error of a step.

    stream = Stream(asked, computing, deadline, counts, write)
    while (event := await stream.next()) is not None:
        await send(event)
    stream.close()
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from noa.errors import SignatureError
from noa_serving._http import ModelFailedError, RequestRefusedError, Response
from noa_serving._prepared import Prepared
from noa_serving._stages import Passage
from noa_serving._tensors import contiguous

if TYPE_CHECKING:
    from noa_serving._admission import Place
    from noa_serving._batcher import Job, Outcome, Outputs
    from noa_serving._computing import Computing
    from noa_serving._deadline import Deadline
    from noa_serving._generation import Generation
    from noa_serving._stream_counts import EndReason, StreamCounts
    from noa_serving._stream_plan import StreamPlan

_SHORTEST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.1
_SLOW_NS = 2_000_000  # twice what may compute on the event loop: steps get slower as their inputs grow
_SLOW_RUNS = 3
"""After so many slow ones in a row a stream leaves the event loop: one alone may be the machine's."""

Write = Callable[[int, Mapping[str, np.ndarray], bool], bytes]
"""Writes a step: its number from 1, the outputs that are sent, and whether it is the last one that is known."""


class ClientGoneError(Exception):
    """There is nobody to compute for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRequest:
    """A stream that was asked for and understood. `wanted` are the outputs that are sent.

    `is_single`: the request was one item without the axis of the batch, and so are the answers. `started_ns` is when
    its body was there, on the clock `perf_counter_ns`.
    """

    generation: Generation
    plan: StreamPlan
    inputs: Mapping[str, np.ndarray]
    batch: int
    is_single: bool
    wanted: tuple[str, ...]
    max_steps: int
    timeout_s: float | None
    started_ns: int


class Stream:
    """Belongs to one event loop and one task; `abandon` may be called by another task of that loop.

    `reason` is set with the last step, or when there is no further one. `first` is the first step, as observers take
    it; its outputs, where they are kept, are those of the last step.
    """

    def __init__(
        self,
        asked: StreamRequest,
        computing: Computing,
        deadline: Deadline,
        counts: StreamCounts,
        write: Write,
        *,
        began_s: float,
    ) -> None:
        self.asked = asked
        self.steps = 0
        self.reason: EndReason | None = None
        self.first = self._prepare(asked.inputs, asked.started_ns)
        self._computing = computing
        self.deadline = deadline.within(asked.timeout_s)
        self._counts = counts
        self._write = write
        self._began_s = began_s
        self._next: Prepared | None = self.first
        self._before: tuple[Mapping[str, np.ndarray], Outputs] | None = None
        self._stopped = np.zeros(asked.batch, dtype=np.bool_)
        self._is_gone = False
        self._slow_runs = 0
        self._job: Job | None = None
        self._waiter: asyncio.Future[Outcome] | None = None

    async def next(self, place: Place | None = None) -> bytes | None:
        """Compute a step and return what is sent of it; None if there is none any more.

        The first step may have a `place`, which it gives back.

        Raises:
            RequestRefusedError: the step failed; of the first one also 503 and 504.
            Exception: whatever a model raises.
        """
        if self.reason is not None:
            return None
        began_s = time.perf_counter()
        prepared = self._next or self._advance()
        try:
            outputs = await self._compute(prepared, place)
        except ClientGoneError:
            self.reason = "gone"
            return None
        except RequestRefusedError as exc:
            # Not by the clock: the timer of a job that waits may fire a moment before it.
            if not self.steps or exc.status != 504 or isinstance(exc, ModelFailedError):
                raise
            self.reason = "deadline"
            return None
        return self._take(prepared, outputs, began_s)

    def abandon(self) -> None:
        """End it, as its client is gone: what has not begun is not computed."""
        self._is_gone = True
        if self._job is not None:
            self._job.drop()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(ClientGoneError())

    def fail(self) -> None:
        """Note that a step failed, or could not be sent."""
        self.reason = "error"
        if self.first.passage is not None:
            self.first.passage.outputs = None

    def close(self) -> None:
        """Count it, and let go of what it holds; to be called once."""
        if self.reason is None:
            self.reason = "gone"
        self._counts.ended[self.reason] += 1
        self._next = self._before = None

    def _prepare(self, inputs: Mapping[str, np.ndarray], started_ns: int) -> Prepared:
        asked = self.asked
        passage = Passage(asked.generation.statistics.stages, self._encode, started_ns, asked.batch)
        return Prepared(asked.generation, inputs, asked.batch, passage.encode, None, passage)

    def _advance(self) -> Prepared:
        """Return the next step."""
        started, asked = time.perf_counter_ns(), self.asked
        assert self._before is not None  # there was a step, and it was not the last
        inputs = asked.plan.advance(*self._before)
        try:
            batch = asked.generation.check(inputs)
        except SignatureError as exc:
            raise _unfit(self.steps, exc.what, exc.expected, exc.received) from exc
        if batch != asked.batch:
            raise _unfit(self.steps, "another number of items", asked.batch, batch)
        self._before = None
        return self._prepare(inputs, started)

    async def _compute(self, prepared: Prepared, place: Place | None) -> Outputs:
        """Compute a step. A stream that has begun waits while the server is full; one that has not is refused."""
        pause_s = _SHORTEST_PAUSE_S
        while True:
            if self._is_gone:
                raise ClientGoneError
            if not self.steps or self._computing.has_room():
                try:
                    with place or self._computing.enter() as taken:
                        return await self._run(prepared, taken)
                except ModelFailedError:
                    raise
                except RequestRefusedError as exc:
                    if not self.steps or exc.status != 503:
                        raise
            if self.deadline.left_s() <= 0.0:
                raise self.deadline.missed()
            await asyncio.sleep(min(pause_s, self.deadline.left_s()))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _run(self, prepared: Prepared, place: Place) -> Outputs:
        waiter: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def done(outcome: Outcome) -> None:
            if not waiter.done():  # cancelled or abandoned in this very turn
                waiter.set_result(outcome)

        self._waiter = waiter
        self._job = self._computing.submit_once(
            prepared, place, self.deadline, done, is_step=True, is_slow=self._slow_runs >= _SLOW_RUNS
        )
        try:
            outcome = await waiter
        except asyncio.CancelledError:
            self._job.drop()
            raise
        finally:
            self._job = self._waiter = None
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _take(self, prepared: Prepared, outputs: Outputs, began_s: float) -> bytes:
        """Take what a step gave: see whether it is the last, and write it."""
        asked, passage = self.asked, prepared.passage
        assert passage is not None  # every step has one
        self.steps += 1
        self._next = None
        if self.steps == 1:
            self._forget_inputs()
        if asked.plan.stop is not None:
            self._stopped |= asked.plan.has_stopped(outputs, asked.batch)
        if asked.plan.stop is not None and self._stopped.all():
            self.reason = "stop"
        elif self.steps >= asked.max_steps:
            self.reason = "max_steps"
        else:
            self._before = prepared.inputs, outputs
        if self._slow_runs < _SLOW_RUNS:
            self._slow_runs = self._slow_runs + 1 if passage.run[2] - passage.run[1] > _SLOW_NS else 0
        event = passage.encode(outputs).body
        first = self.first.passage
        if first is not None and first.keeps:
            first.outputs = {name: outputs[name] for name in asked.wanted}
        self._count(began_s)
        return event

    def _forget_inputs(self) -> None:
        """Let go of what the request sent, which may be large; an observer that keeps it has it."""
        self.asked = replace(self.asked, inputs={})
        self.first = self.first._replace(inputs={})

    def _encode(self, outputs: Mapping[str, np.ndarray]) -> Response:
        asked = self.asked
        arrays = {
            name: contiguous(outputs[name][0, ...] if asked.is_single else outputs[name]) for name in asked.wanted
        }
        return Response(200, self._write(self.steps, arrays, self.reason is not None), ())

    def _count(self, began_s: float) -> None:
        now_s = time.perf_counter()
        self._counts.steps += 1
        self._counts.step_times.observe(now_s - began_s)
        if self.steps == 1:
            self._counts.first_times.observe(now_s - self._began_s)


def _unfit(steps: int, what: str, expected: object, received: object) -> RequestRefusedError:
    """Return the error of a model whose outputs are not those of its signature, so that they cannot be fed back."""
    return RequestRefusedError(
        f"what step {steps} gave does not fit the inputs of the next one: {what}",
        status=500,
        expected=expected,
        received=received,
    )
