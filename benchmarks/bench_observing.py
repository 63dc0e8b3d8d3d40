"""What it costs a request to be observed: the calls that are added to its way, alone, in one process.

Each case is the same loop with and without them; the difference of the medians is the cost. No server runs here: in a
request of some 20 us a microsecond is lost in the noise of a shared machine, in a loop of nothing else it is not.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter, perf_counter_ns, process_time_ns

import numpy as np

from benchmarks.rows import Row
from noa_serving._http import Response
from noa_serving._observer import Observer, Record
from noa_serving._off_loop import OffLoop
from noa_serving._stages import Passage, StageTimes

_LOOPS = 20_000
_SHARES = (1.0, 0.01)


def run(*, quick: bool) -> list[Row]:
    """Measure what is on by default, and the part of the access log that is on the event loop."""
    rounds = 5 if quick else 31
    rows = [("times by stage (parse, queue, batch, run, encode)", _stages(rounds))]
    rows += [(f"access log, {share:.0%} of the requests", _access_log(rounds, share)) for share in _SHARES]
    return [Row(what=what, figure=figure, unit="us/request") for what, figure in rows]


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


def _access_log(rounds: int, share: float) -> float:
    """Return the microseconds that the access log adds on the event loop; lines are made and written in a thread."""

    def write(records: Sequence[Record]) -> int:
        del records
        return 0

    headers = {b"host": b"127.0.0.1", b"content-type": b"application/json"}
    peer, started_s = ("127.0.0.1", 50_000), perf_counter()

    def told() -> None:
        log = OffLoop("access_log", write, most=_LOOPS)
        observer = Observer(access_log=log, access_share=share)
        for _ in range(_LOOPS):
            observer.watch("digits", "predict", headers, peer=peer, started_s=started_s).end(200)

    def bare() -> None:
        for _ in range(_LOOPS):
            pass

    return added_us(told, bare, rounds=rounds)


def added_us(full: Callable[[], object], bare: Callable[[], object], *, rounds: int) -> float:
    """Return by how much a turn of one loop of `_LOOPS` takes longer than one of the other, microseconds of CPU."""
    taken: dict[Callable[[], object], list[int]] = {full: [], bare: []}
    for _ in range(rounds):
        for loop, times in taken.items():
            started = process_time_ns()
            loop()
            times.append(process_time_ns() - started)
    return (statistics.median(taken[full]) - statistics.median(taken[bare])) / _LOOPS / 1e3
