"""Running requests of different callers as one batch, and giving each its own answer.

- A `Job` is one request that waits. Its caller is told once, by whatever comes first: the answer, a refusal, or the
  deadline. One that nobody waits for any more is dropped before it is computed.
- `TickBatcher` is for quick models: what one turn of the event loop has read, over all connections, runs together at
  the end of that turn, on the loop itself.
- `QueueBatcher` is for the others: one lane per generation and shape of an item. A lane sends a batch to the pool as
  soon as the model is free, and grows its batches by what waited meanwhile. There is no timer that polls.

Only what `_warm_up` has shown to be independent of its batch mates shares a run. An item that the model refuses is
found by halving the batch, and the others get their answers. Each job keeps the generation with which it was
prepared, so a swap in the middle mixes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np

from noa.text_tensors import size_bytes
from noa_serving._http import ModelFailedError, RequestRefusedError
from noa_serving._prepared import Prepared, compute

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from noa.settings import ServingSettings
    from noa_serving._admission import Admission, Place
    from noa_serving._deadline import Deadline
    from noa_serving._generation import Generation

Outputs: TypeAlias = "Mapping[str, np.ndarray]"
Outcome: TypeAlias = "Outputs | BaseException"
_Done: TypeAlias = "tuple[list[Job], list[Outcome], float]"

_MAX_PACES = 256
_PACE_WEIGHT = 0.2
_KNOWN_AFTER_RUNS = 3


class Job:
    """One request that waits for its outputs. `done` is called once, on the event loop, unless the job is dropped."""

    __slots__ = ("_done", "deadline", "is_wanted", "lane", "num_bytes", "place", "prepared", "timer")

    def __init__(self, prepared: Prepared, place: Place, deadline: Deadline, done: Callable[[Outcome], None]) -> None:
        self.prepared = prepared
        self.place = place
        self.deadline = deadline
        self.is_wanted = True
        self.num_bytes = 0
        self.lane: _Lane | None = None
        """The lane in which it waits; its place is free once it has left that and its run, if any, has ended."""
        self.timer: asyncio.TimerHandle | None = None
        self._done = done

    def tell(self, outcome: Outcome) -> None:
        """Tell the caller, if it still waits. A job that waits is taken out of its lane."""
        if self.is_wanted:
            self.drop()
            self._done(outcome)

    def drop(self) -> None:
        """Let nobody be told any more; what has not begun is not computed."""
        self.is_wanted = False
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.lane is not None:
            self.lane.remove(self)
            self.place.give_back()

    def expire(self) -> None:
        """Tell the caller that its deadline has passed."""
        if self.is_wanted:
            self.prepared.generation.statistics.count_failed()
        self.tell(self.deadline.missed())


def compute_together(jobs: Sequence[Job]) -> list[Outcome]:
    """Return the outcome of each job. What the model refuses is found by halves; the others get their outputs."""
    return _compute(jobs, time.perf_counter_ns())


def lane_key(prepared: Prepared) -> Hashable:
    """Return what requests must have in common to share a run: the generation and the shape of an item."""
    generation = prepared.generation
    if generation.plain_inputs:
        return generation
    return (generation, *(prepared.inputs[name].shape[1:] for name in generation.input_names))


class TickBatcher:
    """Batches of quick models: filled during one turn of the event loop and computed at its end."""

    def __init__(self, settings: ServingSettings) -> None:
        self.batches = 0
        self.requests = 0
        self._is_on = settings.batching
        self._lanes: dict[Hashable, list[Job]] = {}
        self._items: dict[Hashable, int] = {}
        self._is_scheduled = False

    def add(self, job: Job) -> None:
        """Compute a job at the end of this turn, or at once if its batch is full or it takes no batch mates."""
        prepared = job.prepared
        generation = prepared.generation
        limit = min(generation.inline_items, generation.batching.best_items)
        if not self._is_on or limit <= prepared.batch:
            self._compute([job])
            return
        key = lane_key(prepared)
        items = self._items.get(key, 0) + prepared.batch
        if items > limit:
            self._send(key)
            items = prepared.batch
        self._lanes.setdefault(key, []).append(job)
        self._items[key] = items
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._end_turn)

    def flush(self) -> None:
        """Compute everything that waits."""
        while self._lanes:
            self._send(next(iter(self._lanes)))

    def _end_turn(self) -> None:
        self._is_scheduled = False
        self.flush()

    def _send(self, key: Hashable) -> None:
        jobs = self._lanes.pop(key)
        del self._items[key]
        self._compute(jobs)

    def _compute(self, jobs: list[Job]) -> None:
        now = time.monotonic()
        wanted: list[Job] = []
        for job in jobs:
            if not job.is_wanted:
                job.place.give_back()
            elif job.deadline.at <= now:
                job.place.give_back()
                job.tell(job.deadline.missed())
            else:
                wanted.append(job)
        if not wanted:
            return
        self.batches += 1
        self.requests += len(wanted)
        for job, outcome in zip(wanted, compute_together(wanted), strict=True):
            job.place.give_back()
            job.tell(outcome)


@dataclass(slots=True)
class _Pace:
    """How much longer runs take now than when the model was warmed; known after a few, as warming may be disturbed."""

    factor: float = 1.0
    runs: int = 0

    @property
    def is_known(self) -> bool:
        return self.runs >= _KNOWN_AFTER_RUNS

    def observe(self, expected_s: float, seconds: float) -> None:
        if expected_s > 0.0:
            self.runs += 1
            weight = max(_PACE_WEIGHT, 1.0 / self.runs)  # the mean of the first ones
            self.factor += weight * (seconds / expected_s - self.factor)


@dataclass(slots=True)
class _Waiting:
    """What waits in all lanes together."""

    items: int = 0
    num_bytes: int = 0


@dataclass(slots=True)
class _Run:
    """A batch that runs: when it should end, on the monotonic clock, and whether it takes too long to wait for."""

    ends_at: float
    is_stalled: bool = False


class _Lane:
    """What waits for one generation, with items of one shape."""

    def __init__(
        self, key: Hashable, generation: Generation, pace: _Pace, waiting: _Waiting, *, is_batched: bool
    ) -> None:
        self.key = key
        self.generation = generation
        self.pace = pace
        self.is_batched = is_batched
        self.jobs: deque[Job] = deque()
        self.items = 0
        self.runs: list[_Run] = []
        self.handle: asyncio.Handle | None = None
        self.comes_back = False
        """Whether there are steps of streams in it: who was answered asks for the next one in the very turn."""
        self._waiting = waiting

    def append(self, job: Job) -> None:
        self.jobs.append(job)
        job.lane = self
        self._count(job, 1)

    def remove(self, job: Job) -> None:
        self.jobs.remove(job)
        job.lane = None
        self._count(job, -1)

    def take(self, limit: int) -> list[Job]:
        """Take the next batch: at least one job, then as many as fit."""
        batch = [self._pop()]
        items = batch[0].prepared.batch
        while self.is_batched and self.jobs and items + self.jobs[0].prepared.batch <= limit:
            batch.append(self._pop())
            items += batch[-1].prepared.batch
        return batch

    def estimate_s(self, items: int) -> float:
        return self.pace.factor * self.generation.cost.estimate_s(items)

    def limit(self, target_s: float) -> int:
        """Return how many items a batch may have: the best number, or fewer if two such batches miss the target."""
        if not self.is_batched:
            return 1
        cost, best = self.generation.cost, self.generation.batching.best_items
        if cost.per_item_s <= 0.0:
            return best
        in_time = (target_s / 2 / self.pace.factor - cost.fixed_s) / cost.per_item_s
        return max(1, min(best, int(in_time)))

    def wait_s(self, now: float, limit: int) -> float:
        """Return how long what runs and waits here will take; 0 if nothing does."""
        left_s = max((run.ends_at - now for run in self.runs), default=0.0)
        cost = self.generation.cost
        batches = -(-self.items // limit)
        return max(left_s, 0.0) + self.pace.factor * (batches * cost.fixed_s + self.items * cost.per_item_s)

    def _pop(self) -> Job:
        job = self.jobs.popleft()
        job.lane = None
        self._count(job, -1)
        return job

    def _count(self, job: Job, sign: int) -> None:
        self.items += sign * job.prepared.batch
        self._waiting.items += sign * job.prepared.batch
        self._waiting.num_bytes += sign * job.num_bytes


class QueueBatcher:
    """Batches of models that are too slow for the event loop: computed in the pool. Belongs to one event loop.

    Bounded by `serving.max_queue_items` and `serving.max_queue_bytes`. A batch has the size with the most items per
    second, or fewer if two of them would take longer than `serving.p99_target_ms`.
    """

    def __init__(self, admission: Admission, pool: ThreadPoolExecutor, settings: ServingSettings, threads: int) -> None:
        self.batches = 0
        self.requests = 0
        self._admission = admission
        self._pool = pool
        self._threads = threads
        self._settings = settings
        self._target_s = settings.p99_target_ms / 1000
        self._waiting = _Waiting()
        self._lanes: dict[Hashable, _Lane] = {}
        self._paces: WeakKeyDictionary[Generation, dict[Hashable, _Pace]] = WeakKeyDictionary()

    @property
    def waiting_items(self) -> int:
        """Items that wait and have not begun."""
        return self._waiting.items

    def add(self, job: Job, *, comes_back: bool = False) -> None:
        """Queue a job. One that `comes_back` is a step of a stream, whose next one is asked for when it is answered.

        Raises:
            RequestRefusedError: 503 with `Retry-After`; the queue is full, or what is in it takes until the deadline.
        """
        lane = self._lane(job.prepared)
        job.num_bytes = sum(map(size_bytes, job.prepared.inputs.values()))
        self._refuse_hopeless(lane, job)
        loop = asyncio.get_running_loop()
        self._lanes[lane.key] = lane
        if comes_back:
            lane.comes_back = True
        lane.append(job)
        job.timer = loop.call_later(job.deadline.left_s(), job.expire)
        self._schedule(loop, lane)

    def _lane(self, prepared: Prepared) -> _Lane:
        key = lane_key(prepared)
        lane = self._lanes.get(key)
        if lane is not None:
            return lane
        generation = prepared.generation
        paces = self._paces.setdefault(generation, {})
        if len(paces) >= _MAX_PACES:
            paces.clear()
        shapes = key[1:] if isinstance(key, tuple) else ()  # not the generation, which must not be kept alive
        pace = paces.setdefault(shapes, _Pace())
        is_batched = self._settings.batching and generation.batching.best_items > 1
        return _Lane(key, generation, pace, self._waiting, is_batched=is_batched)

    def _refuse_hopeless(self, lane: _Lane, job: Job) -> None:
        settings = self._settings
        items, num_bytes = self._waiting.items + job.prepared.batch, self._waiting.num_bytes + job.num_bytes
        if self._waiting.items and (items > settings.max_queue_items or num_bytes > settings.max_queue_bytes):
            self._admission.refused += 1
            raise RequestRefusedError(
                "the queue is full",
                status=503,
                expected=f"at most {settings.max_queue_items} items and {settings.max_queue_bytes} bytes that wait",
                retry_after_s=self._admission.retry_after_s(),
            )
        if not lane.pace.is_known:
            return
        wait_s = lane.wait_s(time.monotonic(), lane.limit(self._target_s))
        # Behind an empty queue it is tried: the estimate of its own run may be wrong.
        if wait_s > 0.0 and wait_s + lane.estimate_s(job.prepared.batch) > job.deadline.left_s():
            self._admission.refused += 1
            raise RequestRefusedError(
                "the queue is too long for the request's deadline",
                status=503,
                expected=f"an answer within {job.deadline.limit_s:g} s",
                received=f"about {wait_s:.3g} s of work that waits",
                retry_after_s=self._admission.retry_after_s(),
            )

    def _schedule(self, loop: asyncio.AbstractEventLoop, lane: _Lane) -> None:
        """Send at the end of this turn, so that what came in it goes together; or after the delay that is set."""
        if not self._is_free(lane):
            return  # the end of the batch that runs sends the next
        delay_s = self._settings.max_queue_delay_us / 1e6
        is_full = not lane.is_batched or lane.items >= lane.limit(self._target_s)
        if lane.handle is not None:
            if not is_full or not isinstance(lane.handle, asyncio.TimerHandle):
                return
            lane.handle.cancel()
        if is_full or delay_s <= 0.0:
            lane.handle = loop.call_soon(self._send, loop, lane)
        else:
            lane.handle = loop.call_later(delay_s, self._send, loop, lane)

    def _is_free(self, lane: _Lane) -> bool:
        """Tell whether a batch may start: a batched model runs one at a time, but a giant does not hold up others."""
        if len(lane.runs) >= (self._threads if lane.generation.pool is None else 1):
            return False
        return not lane.is_batched or all(run.is_stalled for run in lane.runs)

    def _send(self, loop: asyncio.AbstractEventLoop, lane: _Lane) -> None:
        lane.handle = None
        while lane.jobs and self._is_free(lane):
            self._start(loop, lane, lane.take(lane.limit(self._target_s)))

    def _start(self, loop: asyncio.AbstractEventLoop, lane: _Lane, batch: list[Job]) -> None:
        items = sum(job.prepared.batch for job in batch)
        try:
            work = (lane.generation.pool or self._pool).submit(_work, batch)
        except RuntimeError:  # the pool is shut down
            for job in batch:
                job.place.give_back()
                job.tell(RequestRefusedError("the server is ending", status=503, retry_after_s=1))
            return
        self.batches += 1
        self.requests += len(batch)
        run = _Run(time.monotonic() + lane.estimate_s(items))
        lane.runs.append(run)
        stall = loop.call_later(self._target_s, self._stall, loop, lane, run)

        def finish(work: Future[_Done]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._finish, loop, lane, batch, run, stall, work)

        work.add_done_callback(finish)

    def _stall(self, loop: asyncio.AbstractEventLoop, lane: _Lane, run: _Run) -> None:
        run.is_stalled = True
        self._schedule(loop, lane)

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        lane: _Lane,
        batch: list[Job],
        run: _Run,
        stall: asyncio.TimerHandle,
        work: Future[_Done],
    ) -> None:
        stall.cancel()
        lane.runs.remove(run)
        if not lane.comes_back:
            self._send(loop, lane)  # the model works on while these answers are written
        for job in batch:
            job.place.give_back()
        if not work.cancelled():
            jobs, outcomes, seconds = work.result()
            items = sum(job.prepared.batch for job in jobs)
            if items:
                lane.pace.observe(lane.generation.cost.estimate_s(items), seconds)
            for job, outcome in zip(jobs, outcomes, strict=True):
                job.tell(outcome)
        if lane.comes_back and lane.jobs:
            self._schedule(loop, lane)  # with the next steps of those that were answered, else streams run by turns
        if not lane.jobs and not lane.runs:
            self._lanes.pop(lane.key, None)


def _work(batch: list[Job]) -> _Done:
    """Compute what is still wanted of a batch, in a thread of the pool."""
    wanted = [job for job in batch if job.is_wanted]
    start = time.perf_counter()
    outcomes = compute_together(wanted) if wanted else []
    return wanted, outcomes, time.perf_counter() - start


def _compute(jobs: Sequence[Job], begun: int) -> list[Outcome]:
    if len(jobs) == 1:
        prepared = jobs[0].prepared
        start = time.perf_counter_ns()
        try:
            outputs = compute(prepared)
        except Exception as exc:  # noqa: BLE001  # it becomes the answer of this one request
            prepared.generation.statistics.count_failed(exc)
            return [exc]
        if prepared.passage is not None:
            prepared.passage.run = (begun, start, time.perf_counter_ns())
        return [outputs]
    try:
        return _run(jobs, begun)
    except ModelFailedError as exc:
        return [exc] * len(jobs)
    except Exception:  # noqa: BLE001  # whatever it is, it belongs to some of them only
        middle = len(jobs) // 2
        return _compute(jobs[:middle], begun) + _compute(jobs[middle:], begun)


def _run(jobs: Sequence[Job], begun: int) -> list[Outcome]:
    """Run jobs of one lane as one batch, and cut its outputs apart. `begun` is when their batch began."""
    generation = jobs[0].prepared.generation
    columns = [job.prepared.inputs for job in jobs]
    inputs = {name: np.concatenate([column[name] for column in columns]) for name in generation.input_names}
    items = sum(job.prepared.batch for job in jobs)
    run_start = time.perf_counter_ns()
    outputs = generation.compute(inputs, items)
    run = (begun, run_start, time.perf_counter_ns())
    outcomes: list[Outcome] = []
    start = 0
    for job in jobs:
        if job.prepared.passage is not None:
            job.prepared.passage.run = run
        end = start + job.prepared.batch
        outcomes.append({name: array[start:end] for name, array in outputs.items()})
        start = end
    return outcomes
