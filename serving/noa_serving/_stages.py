"""Where the time of a request goes: parse, queue, batch, run, encode.

| stage | from | to |
|---|---|---|
| parse | its body is there | it is understood and checked |
| queue | | its batch begins: the model is free, or the turn of the event loop ends |
| batch | | the model begins; then from the model's end to its own answer's turn: joined, cut apart, behind its mates |
| run | the model begins | the model ends, for the whole batch |
| encode | its answer's turn | its answer is bytes |

A `Passage` is one request on its way. One that was answered leaves a row of nanoseconds in the `StageTimes` of its
version; rows are folded into histograms a few hundred at once, because numpy counts a row in a fraction of the time
that Python needs. All of it belongs to one event loop, but for `Passage.run`, which the thread that computes sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter_ns
from typing import Any

import numpy as np

from noa_serving._http import Response

STAGES = ("parse", "queue", "batch", "run", "encode")
BUCKETS_S = (
    *(5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)

CACHE_HIT = (b"noa-cache", b"hit")
"""The header of an answer that was computed before."""

_FOLD_AT = 512
_TOTALS_FROM = 10  # totals are counted from 2**10 ns on, about a microsecond
_PER_DOUBLING = 8  # so a percentile of them is right to 9%
_TOTAL_BUCKETS = 26 * _PER_DOUBLING
_TOTALS_KEPT = 1 << 16
_BOUNDS_NS = np.array([round(bound * 1e9) for bound in BUCKETS_S], dtype=np.int64)
_WIDTH = len(BUCKETS_S) + 1


class StageTimes:
    """Histograms of the stages of the requests that one version has answered."""

    __slots__ = ("_buckets", "_count", "_folds", "_last_ns", "_rows", "_sums", "_totals", "memo")

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int, int, int, int]] = []
        self._buckets = np.zeros((len(STAGES), _WIDTH), dtype=np.int64)
        self._sums = np.zeros(len(STAGES) + 1, dtype=np.int64)
        self._count = 0
        self._last_ns = 0
        self._totals: np.ndarray | None = None
        self._folds = 0  # odd while one is under way
        self.memo: tuple[int, tuple[str, ...]] = (-1, ())
        """What was written of it last, and at which count; kept by `_metrics`."""

    def add(self, row: tuple[int, int, int, int, int, int], ended_ns: int) -> None:
        """Count a request: nanoseconds in each stage, and its items. `ended_ns` is on the clock `perf_counter_ns`."""
        rows = self._rows
        rows.append(row)
        self._last_ns = ended_ns
        if len(rows) >= _FOLD_AT:
            self._fold()

    @property
    def count(self) -> int:
        """Requests."""
        return self._count + len(self._rows)

    @property
    def items(self) -> int:
        """Items of all requests."""
        self._fold()
        return int(self._sums[-1])

    @property
    def last_ns(self) -> int:
        """When the last one ended, on the clock `perf_counter_ns`; 0: none has."""
        return self._last_ns

    def keep_totals(self) -> None:
        """Count whole requests too, for `total_percentile_ns`. To be called before the first request."""
        self._totals = np.zeros(_TOTAL_BUCKETS, dtype=np.int64)

    def total_percentile_ns(self, share: float) -> float | None:
        """Return within which time a share of the latest requests were computed; None where nothing was counted.

        Right to 9%, over the last 50,000 to 100,000 requests. May be called from any thread.
        """
        counts = self._count_totals()
        total = 0 if counts is None else int(counts.sum())
        if counts is None or not total:
            return None
        place = int(np.searchsorted(np.cumsum(counts), share * total))
        return 2.0 ** (_TOTALS_FROM + (min(place, _TOTAL_BUCKETS - 1) + 1) / _PER_DOUBLING)

    @property
    def total_count(self) -> int:
        """How many of the latest requests `total_percentile_ns` is over. May be called from any thread."""
        counts = self._count_totals()
        return 0 if counts is None else int(counts.sum())

    def _count_totals(self) -> np.ndarray | None:
        if self._totals is None:
            return None
        while True:
            folds, rows, counts = self._folds, list(self._rows), self._totals.copy()
            if folds == self._folds and folds % 2 == 0:  # else the event loop has just moved rows into the counts
                return counts + _totals_of(np.array(rows, dtype=np.int64)) if rows else counts

    def sum_ns(self, stage: str) -> int:
        """Return the time of all requests in a stage."""
        self._fold()
        return int(self._sums[STAGES.index(stage)])

    def buckets(self, stage: str) -> list[int]:
        """Return how many requests were within each bound of `BUCKETS_S`, and beyond the last; not cumulated."""
        self._fold()
        return [int(count) for count in self._buckets[STAGES.index(stage)]]

    def _fold(self) -> None:
        if not self._rows:
            return
        table = np.array(self._rows, dtype=np.int64)
        self._folds += 1
        self._rows.clear()
        if self._totals is not None:
            self._totals += _totals_of(table)
            if self._totals.sum() > _TOTALS_KEPT:
                self._totals //= 2
        self._count += len(table)
        self._sums += table.sum(axis=0)
        # In which bucket, a stage's buckets behind those of the stage before it: one count for all stages.
        places = np.searchsorted(_BOUNDS_NS, table[:, : len(STAGES)]) + np.arange(len(STAGES)) * _WIDTH
        self._buckets += np.bincount(places.ravel(), minlength=self._buckets.size).reshape(self._buckets.shape)
        self._folds += 1


def _totals_of(table: np.ndarray) -> np.ndarray:
    """Return how many requests took how long in all, in buckets that grow by an eighth of a doubling.

    Answers that were kept are left out: for them no model ran, and how many there are says nothing of the version.
    """
    computed = table[table[:, STAGES.index("run")] > 0]
    totals = np.maximum(computed[:, : len(STAGES)].sum(axis=1), 1)
    places = ((np.log2(totals) - _TOTALS_FROM) * _PER_DOUBLING).astype(np.int64)
    return np.bincount(np.clip(places, 0, _TOTAL_BUCKETS - 1), minlength=_TOTAL_BUCKETS)


class Passage:
    """One request on its way through the stages. `encode` stands in place of the encoder that it was prepared with.

    `run` is when its batch began, and when the model began and ended, by `perf_counter_ns`. `stages` are nanoseconds in
    each stage, then the items; None before the answer is written. `outputs` are kept if `keeps` was set before.
    `is_cached`: no model ran for it.
    """

    __slots__ = ("_encode", "_items", "_times", "is_cached", "keeps", "outputs", "parsed", "run", "stages", "started")

    def __init__(
        self,
        times: StageTimes,
        encode: Callable[[Mapping[str, np.ndarray]], Response],
        started: int,
        items: int,
    ) -> None:
        self._times = times
        self._encode = encode
        self._items = items
        self.started = started
        self.parsed = parsed = perf_counter_ns()
        self.run = (parsed, parsed, parsed)
        self.stages: tuple[int, ...] | None = None
        self.is_cached = False
        self.keeps = False
        self.outputs: Mapping[str, np.ndarray] | None = None

    def moments(self) -> tuple[int, ...] | None:
        """Return when it was there, was understood, its batch began, the model began and ended, and its answer began
        and ended to be written; None before that."""
        if self.stages is None:
            return None
        ended = self.started + sum(self.stages[: len(STAGES)])
        return self.started, self.parsed, *self.run, ended - self.stages[-2], ended

    def encode(self, outputs: Mapping[str, np.ndarray]) -> Response:
        """Write the answer, and count the request."""
        turn = perf_counter_ns()
        response = self._encode(outputs)
        if self.is_cached:
            response = _marked(response)
        ended = perf_counter_ns()
        parsed, (batch, begun, done) = self.parsed, self.run
        waited = begun - batch + turn - done
        row = (parsed - self.started, batch - parsed, waited, done - begun, ended - turn, self._items)
        self.stages = row
        if self.keeps:
            self.outputs = outputs
        self._times.add(row, ended)
        return response


def _marked(answer: Any) -> Any:
    """Say that an answer was computed before. Another protocol's has no headers."""
    return answer._replace(headers=(*answer.headers, CACHE_HIT)) if isinstance(answer, Response) else answer
