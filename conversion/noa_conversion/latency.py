"""Latency and size of a format on this machine, as evidence.

The format is loaded from its folder and called in this process, with real samples and no server in between.

A percentile hangs on the runs beyond it, so there are 1,000 of them if the time allows. They are made in rounds, in
which the batch sizes take turns, and of the rounds' percentiles the median counts: what disturbs the machine for a
moment spoils one round of each size, not the result, while what is the model's own is in every round. Nothing is
chosen by how fast it was. How many runs there were, the slowest, and which share of the time this process had a
processor stand in the evidence.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from noa.digests import build_manifest
from noa.errors import InvalidInputError
from noa.formats import Runnable, find_adapter
from noa_conversion.batches import batch_axis, take_batch
from noa_registry.evidence import FEWEST_RUNS, BatchLatency, Hardware, LatencyEvidence, SizeEvidence

if TYPE_CHECKING:
    from noa_registry import Evidence

_WARM_UP_RUNS = 3
_ROUNDS = 5
_RUNS_PER_ROUND = 200
_RUNTIMES = {"onnx": "onnxruntime", "torch": "torch", "jax": "jax"}


def measure_performance(
    format: str,  # our word
    folder: Path,
    samples: Mapping[str, np.ndarray],
    *,
    threads: int | None = None,
    batches: Sequence[int] = (1, 32),
    seconds_per_batch: float = 2.0,
    tails: Sequence[int] = (),
    tail_seconds: float = 10.0,
) -> tuple[Evidence, Evidence]:
    """Return latency (50th and 99th percentile per batch size) and size of a format's folder.

    `samples` satisfy the signature; a batch starts again at the first where there are fewer. A model without a free
    axis is called as it is, which counts as batch 1. Each size is called 1,000 times, or for `seconds_per_batch`, but
    5 times at least; those in `tails`, whose 99th percentile is to be judged, go on until the runs are enough to bound
    it, for `tail_seconds` in all.

    Raises:
        InvalidInputError: the folder does not hold this format, or there is no sample.
    """
    manifest = build_manifest(folder)
    runnable = find_adapter(format).load(folder, threads=threads)
    count = runnable.signature.validate(samples)
    if count < 1:
        raise InvalidInputError("latency needs at least one sample", received="none")
    sizes = tuple(batches) if batch_axis(runnable.signature) is not None else (1,)
    taken = {batch: take_batch(runnable.signature, samples, batch=batch, count=count) for batch in sizes}
    timings = [_Timing(runnable=runnable, batch=batch, taken=taken[batch]) for batch in sizes]
    for timing in timings:
        timing.warm_up()
    for _ in range(_ROUNDS):
        for timing in timings:
            timing.run_round(_RUNS_PER_ROUND, seconds_per_batch / _ROUNDS)
    for timing in timings:
        if timing.batch in tails:
            timing.run_until(FEWEST_RUNS["p99"], tail_seconds)
    measured = tuple(timing.summarise() for timing in timings)
    hardware = describe_hardware(format, threads)
    latency = LatencyEvidence(subject=format, digest=manifest.digest, hardware=hardware, batches=measured)
    size = SizeEvidence(
        subject=format, digest=manifest.digest, size_bytes=manifest.size_bytes, files=len(manifest.files)
    )
    return latency.to_evidence(), size.to_evidence()


def describe_hardware(format: str, threads: int | None) -> Hardware:  # our word
    """Return this machine as a measurement of `format` with `threads` threads (None: one per core) names it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    package = _RUNTIMES.get(format, "onnxruntime" if format.startswith("onnx-") else format)
    try:
        runtime = f"{package} {version(package)}"
    except PackageNotFoundError:
        runtime = package
    return Hardware(cpu=_cpu(), cores=cores, threads=threads or cores, runtime=runtime, load=os.getloadavg()[0])


@dataclass(slots=True, kw_only=True)
class _Timing:
    """The runs of one batch size; times in nanoseconds, one list for each round."""

    runnable: Runnable
    batch: int
    taken: Mapping[str, np.ndarray]
    rounds: list[list[int]] = field(default_factory=list[list[int]])
    wall_ns: int = 0
    cpu_ns: int = 0

    @property
    def runs(self) -> int:
        return sum(map(len, self.rounds))

    def warm_up(self) -> None:
        for _ in range(_WARM_UP_RUNS):
            self.runnable.run(self.taken)

    def run_round(self, most: int, seconds: float) -> None:
        """Make up to `most` runs, one at least, and begin none when the time is up."""
        times: list[int] = []
        begun_cpu, begun = time.process_time_ns(), time.perf_counter_ns()
        end, before = begun + int(seconds * 1e9), begun
        while not times or (len(times) < most and before < end):
            before = time.perf_counter_ns()
            self.runnable.run(self.taken)
            times.append(time.perf_counter_ns() - before)
        self.wall_ns += time.perf_counter_ns() - begun
        self.cpu_ns += time.process_time_ns() - begun_cpu
        self.rounds.append(times)

    def run_until(self, runs: int, seconds: float) -> None:
        """Make rounds until there are so many runs, or as much time was spent on this batch size."""
        while (missing := runs - self.runs) > 0 and (left := seconds - self.wall_ns / 1e9) > 0:
            self.run_round(min(missing, _RUNS_PER_ROUND), left)

    def summarise(self) -> BatchLatency:
        everything = [taken for one in self.rounds for taken in one]
        is_full = all(len(one) == _RUNS_PER_ROUND for one in self.rounds)
        # Rounds that are not full are too short for a percentile of their own: all runs count as one.
        parts = self.rounds if is_full else [everything]
        p50, p99 = (statistics.median(_percentile(part, share) for part in parts) / 1e6 for share in (0.5, 0.99))
        return BatchLatency(
            batch=self.batch,
            runs=len(everything),
            p50_ms=p50,
            p99_ms=p99,
            max_ms=max(everything) / 1e6,
            cpu_share=round(self.cpu_ns / max(self.wall_ns, 1), 3),
        )


def _percentile(times: Sequence[int], share: float) -> int:
    """Return the time of a run that occurred, none below the percentile: of few runs the slowest.

    The k-th of n draws lies at k / (n + 1) of the distribution on average (Hyndman and Fan 1996, definition 6), so this
    one is not too low, as the k-th with k = share * n would be.
    """
    return sorted(times)[min(math.ceil(share * (len(times) + 1)), len(times)) - 1]


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip() or platform.machine()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or "unknown"
