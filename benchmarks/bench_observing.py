"""What it costs a request to be observed: the calls that are added to its way, alone, in one process.

Each case is the same loop with and without them; the difference of the medians is the cost. No server runs here: in a
request of some 20 us a microsecond is lost in the noise of a shared machine, in a loop of nothing else it is not.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from time import perf_counter_ns

import numpy as np

from benchmarks.rows import Row
from noa_serving._http import Response
from noa_serving._stages import Passage, StageTimes

_LOOPS = 20_000


def run(*, quick: bool) -> list[Row]:
    """Measure every part of observation that is on by default."""
    rounds = 5 if quick else 31
    return [Row(what="times by stage (parse, queue, batch, run, encode)", figure=_stages(rounds), unit="us/request")]


def _stages(rounds: int) -> float:
    """Return the microseconds that counting a request by stage adds, the marks of its batch among them."""
    response, outputs, times = Response(200, b""), dict[str, np.ndarray](), StageTimes()

    def encode(outputs: Mapping[str, np.ndarray]) -> Response:
        del outputs
        return response

    def counted() -> None:
        for _ in range(_LOOPS):
            passage = Passage(times, encode, perf_counter_ns(), 1)
            begun = perf_counter_ns()
            passage.run = (begun, perf_counter_ns(), perf_counter_ns())
            passage.encode(outputs)

    def bare() -> None:
        for _ in range(_LOOPS):
            encode(outputs)

    return added_us(counted, bare, rounds=rounds)


def added_us(full: Callable[[], object], bare: Callable[[], object], *, rounds: int) -> float:
    """Return by how much a turn of one loop of `_LOOPS` takes longer than one of the other, microseconds."""
    taken: dict[Callable[[], object], list[int]] = {full: [], bare: []}
    for _ in range(rounds):
        for loop, times in taken.items():
            started = perf_counter_ns()
            loop()
            times.append(perf_counter_ns() - started)
    return (statistics.median(taken[full]) - statistics.median(taken[bare])) / _LOOPS / 1e3
