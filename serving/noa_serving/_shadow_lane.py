"""The lane in which shadows compute: behind everything that answers, one request at a time, in a thread of its own.

A share of the answered requests is offered to it once the answer was handed to its client. What finds the queue full is
dropped and counted, so no request waits for it. The thread takes the next one only while this worker has room, and
counts what the outputs say in a `Comparison`. Every `_TIME_EVERY`-th request is computed by both versions one after the
other, for times that can be compared: those of the answer are those of its batch.

An arm that raises is counted. One that does not come back is given up together with its thread, and computes no more;
what a worker computed when it died is told by a `CrashMark` to the worker that takes its place.
"""

from __future__ import annotations

import inspect
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from noa_serving._comparing import Comparison, Pair, Rule
from noa_serving._http import public_text
from noa_serving._statistics import ModelStatistics

if TYPE_CHECKING:
    from noa_serving._crash_mark import CrashMark
    from noa_serving._generation import Generation

log = logging.getLogger("noa.serving")

MOST_WAITING = 256
MOST_WAITING_BYTES = 64 << 20

_LOOK_EVERY_S = 0.05
_ROOM_EVERY_S = 0.002
_TIME_EVERY = 4
_MOST_PAIRS = 8
_MOST_HUNG = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A pair with what computes it: the two versions, and how their outputs are compared."""

    pair: Pair
    main: Generation
    arm: Generation
    rules: Mapping[str, Rule]
    most_ratio: float


class Copy(NamedTuple):
    """A request that was answered: what the main version computed, and of what."""

    match: Match
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    batch: int
    num_bytes: int


class _Turn:
    """One life of the thread. `copy` and `begun_at` are of the request that it computes now."""

    __slots__ = ("begun_at", "copy", "is_given_up")

    def __init__(self) -> None:
        self.is_given_up = False
        self.begun_at = 0.0
        self.copy: Copy | None = None


class ShadowLane:
    """The lane of one worker. `offer` belongs to its event loop, everything else may be called in any thread."""

    def __init__(
        self,
        has_room: Callable[[], bool],
        *,
        mark: CrashMark | None = None,
        most: int = MOST_WAITING,
        most_bytes: int = MOST_WAITING_BYTES,
    ) -> None:
        self._has_room = has_room
        self._mark = mark
        self._most = most
        self._most_bytes = most_bytes
        self._queue: deque[Copy] = deque()
        self._put_bytes = 0
        self._taken_bytes = 0
        self._offers: dict[Pair, list[int]] = {}
        self._counts: dict[Pair, Comparison] = {}
        self._lock = threading.Lock()
        self._open: frozenset[Pair] = frozenset()
        self._hung = 0
        self._stopping = threading.Event()
        self._turn = _Turn()
        if mark is not None and mark.left_by_another:
            self._count_death(mark.left_by_another)

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    def is_open(self, pair: Pair) -> bool:
        """Whether a pair is compared now."""
        return pair in self._open

    def open_only(self, pairs: Iterable[Pair]) -> None:
        """Compare these pairs from now on, and no others: what waits of others is dropped."""
        self._open = frozenset(pairs)

    def offer(
        self, match: Match, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], batch: int
    ) -> None:
        """Have a request computed by the arm, or drop it. Nobody may change `inputs` any more (`is_lasting`)."""
        if match.pair not in self._open:
            return
        num_bytes = sum(array.nbytes for array in (*inputs.values(), *outputs.values()))
        if self.is_full(num_bytes):
            self.drop(match.pair)
            return
        # Outputs are cut from those of their batch, which they would keep in memory.
        own = {name: array if array.base is None else array.copy() for name, array in outputs.items()}
        self._offers_of(match.pair)[0] += 1
        self._put_bytes += num_bytes
        self._queue.append(Copy(match, inputs, own, batch, num_bytes))

    def is_full(self, num_bytes: int) -> bool:
        """Tell whether a request of so many bytes would be dropped now."""
        waiting_bytes = self._put_bytes - self._taken_bytes
        return len(self._queue) >= self._most or waiting_bytes + num_bytes > self._most_bytes

    def drop(self, pair: Pair) -> None:
        """Count a request that is not compared because there is no room."""
        offers = self._offers_of(pair)
        offers[0] += 1
        offers[1] += 1

    def _offers_of(self, pair: Pair) -> list[int]:
        """Return how many requests were offered and dropped."""
        if pair not in self._offers and len(self._offers) >= _MOST_PAIRS:
            self._offers.clear()
        return self._offers.setdefault(pair, [0, 0])

    def counts(self) -> dict[Pair, Comparison]:
        """Return what this worker has counted, by pair: copies that nobody changes."""
        with self._lock:
            found = {pair: Comparison.from_json(one.to_json()) for pair, one in self._counts.items()}
        for pair, (offered, dropped) in list(self._offers.items()):
            one = found.setdefault(pair, Comparison())
            one.offered += offered
            one.dropped += dropped
        return found

    def start(self, before: Mapping[Pair, Comparison] | None = None) -> None:
        """Begin to compute. `before` is what the worker whose place this one took had counted."""
        with self._lock:
            for pair, one in (before or {}).items():
                self._counts.setdefault(pair, Comparison()).merge(one)
        self._begin_turn()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End after the request that is computed now; what waits is dropped."""
        self._stopping.set()
        deadline = time.monotonic() + timeout_s
        while self._turn.copy is not None and time.monotonic() < deadline:
            time.sleep(_ROOM_EVERY_S)
        if self._mark is not None:
            self._mark.clear()  # an end that was asked for is nobody's fault

    def watch(self, timeout_s: float) -> None:
        """Give up an arm that has computed for longer than `timeout_s`, and its thread; others go on in a new one."""
        turn, reason = self._turn, f"it did not compute a request within {timeout_s:g} s"
        with self._lock:
            copy = turn.copy
            if copy is None or time.monotonic() - turn.begun_at < timeout_s:
                return
            turn.is_given_up, turn.copy = True, None
            match = copy.match
            self._taken_bytes += copy.num_bytes
            counts = self._of(match.pair)
            counts.failed += 1
            counts.hangs += 1
            counts.problem = reason
        self._hung += 1
        self._open -= {match.pair}
        if self._mark is not None:
            self._mark.clear()
        log.error("endpoint %s: shadow %s (%s): %s", match.pair.endpoint, match.pair.arm, match.arm.reference, reason)
        if self._hung < _MOST_HUNG:
            self._begin_turn()
        else:
            log.error("no shadow is computed any more: %d of them hold a thread each", self._hung)

    def _begin_turn(self) -> None:
        turn = self._turn = _Turn()
        threading.Thread(target=self._run, args=(turn,), name="noa-shadow", daemon=True).start()

    def _run(self, turn: _Turn) -> None:
        pause_s = _LOOK_EVERY_S
        while not self._stopping.wait(pause_s) and not turn.is_given_up:
            pause_s = _LOOK_EVERY_S
            while self._queue and not self._stopping.is_set() and not turn.is_given_up:
                is_old = self._queue[0].match.pair not in self._open  # nor may it keep a version in memory
                if not is_old and not self._has_room():
                    pause_s = _ROOM_EVERY_S
                    break
                self._take(turn, self._queue.popleft())

    def _take(self, turn: _Turn, copy: Copy) -> None:
        match = copy.match
        found = Comparison()
        with self._lock:
            turn.begun_at, turn.copy = time.monotonic(), copy
            before = self._counts.get(match.pair, found)
            is_timed, is_main_first = before.tried % _TIME_EVERY == 0, before.timed % 2 == 0
        if self._mark is not None:
            self._mark.set(_key(match.pair))
        try:
            if self.is_open(match.pair):
                _compare(copy, found, is_timed=is_timed, is_main_first=is_main_first)
        except Exception as exc:  # noqa: BLE001  # whatever an arm raises, it is counted and harms nobody
            found = Comparison(failed=1, problem=public_text(exc))
        with self._lock:
            if turn.is_given_up:
                return
            turn.copy = None
            self._taken_bytes += copy.num_bytes
            if found.tried:
                self._of(match.pair).merge(found)
        if self._mark is not None:
            self._mark.clear()

    def _of(self, pair: Pair) -> Comparison:
        if pair not in self._counts and len(self._counts) >= _MOST_PAIRS:
            del self._counts[next(iter(self._counts))]
        return self._counts.setdefault(pair, Comparison())

    def _count_death(self, text: str) -> None:
        try:
            pair = Pair(*json.loads(text))
        except (ValueError, TypeError):
            return
        self._of(pair).deaths += 1
        log.error("a worker ended while shadow %s of endpoint %s computed", pair.arm, pair.endpoint)


def match_of(
    endpoint: str,
    arm_name: str,
    main: Generation,
    arm: Generation,
    *,
    rules: Mapping[str, Rule],
    most_ratio: float,
) -> Match:
    """Return what it takes to compare two versions; runs for comparing are in no statistics of the main one."""
    bare = inspect.unwrap(main.run)
    return Match(
        pair=Pair(endpoint, arm_name, main.number, main.digest, arm.number, arm.digest),
        main=replace(main, run=bare, statistics=ModelStatistics()),
        arm=arm,
        rules=rules,
        most_ratio=most_ratio,
    )


def is_lasting(array: np.ndarray) -> bool:
    """Tell whether nobody can change an array: it owns its memory, or is cut from bytes."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = cast("Any", owner.base)
    if isinstance(owner, memoryview):
        owner = owner.obj
    return owner is None or isinstance(owner, bytes)


def _compare(copy: Copy, counts: Comparison, *, is_timed: bool, is_main_first: bool) -> None:
    match, inputs, batch = copy.match, copy.inputs, copy.batch
    match.arm.check(inputs)
    main_s = 0.0
    if is_timed and is_main_first:  # in turn, because who computes second finds warmer caches
        main_s = _seconds(match.main, inputs, batch)
    start = time.perf_counter()
    outputs = match.arm.compute(inputs, batch)
    arm_s = time.perf_counter() - start
    if is_timed and not is_main_first:
        main_s = _seconds(match.main, inputs, batch)
    counts.add(copy.outputs, outputs, batch, match.rules)
    if is_timed:
        counts.add_times(main_s, arm_s, most_ratio=match.most_ratio)


def _seconds(generation: Generation, inputs: Mapping[str, np.ndarray], batch: int) -> float:
    start = time.perf_counter()
    generation.compute(inputs, batch)
    return time.perf_counter() - start


def _key(pair: Pair) -> bytes:
    return json.dumps(pair).encode()
