"""Latency and size of a format on this machine, as evidence.

The format is loaded from its folder and called in this process, with real samples and no server in between. The
measurement stops after a short time and says how many calls it saw.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from noa.digests import build_manifest
from noa.errors import InvalidInputError
from noa.formats import Runnable, find_adapter
from noa_conversion.batches import batch_axis, take_batch
from noa_registry.evidence import BatchLatency, Hardware, LatencyEvidence, SizeEvidence

if TYPE_CHECKING:
    from noa_registry import Evidence

_WARM_UP_RUNS = 3
_LEAST_RUNS = 5
_MOST_RUNS = 1000
_RUNTIMES = {"onnx": "onnxruntime", "torch": "torch", "jax": "jax"}


def measure_performance(
    format: str,  # our word
    folder: Path,
    samples: Mapping[str, np.ndarray],
    *,
    threads: int | None = None,
    batches: Sequence[int] = (1, 32),
    seconds_per_batch: float = 0.15,
) -> tuple[Evidence, Evidence]:
    """Return latency (50th and 99th percentile per batch size) and size of a format's folder.

    `samples` satisfy the signature; a batch starts again at the first where there are fewer. A model without a free
    axis is called as it is, which counts as batch 1.

    Raises:
        InvalidInputError: the folder does not hold this format, or there is no sample.
    """
    manifest = build_manifest(folder)
    runnable = find_adapter(format).load(folder, threads=threads)
    count = runnable.signature.validate(samples)
    if count < 1:
        raise InvalidInputError("latency needs at least one sample", received="none")
    sizes = tuple(batches) if batch_axis(runnable.signature) is not None else (1,)
    measured = tuple(_measure(runnable, samples, batch, count, seconds_per_batch) for batch in sizes)
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


def _measure(
    runnable: Runnable, samples: Mapping[str, np.ndarray], batch: int, count: int, seconds: float
) -> BatchLatency:
    taken = take_batch(runnable.signature, samples, batch=batch, count=count)
    for _ in range(_WARM_UP_RUNS):
        runnable.run(taken)
    times: list[int] = []
    end = time.perf_counter_ns() + int(seconds * 1e9)
    while len(times) < _LEAST_RUNS or (len(times) < _MOST_RUNS and time.perf_counter_ns() < end):
        begun = time.perf_counter_ns()
        runnable.run(taken)
        times.append(time.perf_counter_ns() - begun)
    # The value that occurred, not an interpolated one: of few calls the 99th percentile is the slowest.
    p50, p99 = (float(value) / 1e6 for value in np.percentile(times, (50, 99), method="inverted_cdf"))
    return BatchLatency(batch=batch, runs=len(times), p50_ms=p50, p99_ms=p99)


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip() or platform.machine()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or "unknown"
