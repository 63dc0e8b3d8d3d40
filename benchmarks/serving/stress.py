"""The cases that are more than bursts: half of saturation, overload with recovery, memory over requests and swaps."""

from __future__ import annotations

import json
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.serving.bursts import Bench, load_server, say
from benchmarks.serving.processes import PeerFailedError, Server, exchange, pss_bytes, wait_until
from benchmarks.serving.wire import Way, plan

if TYPE_CHECKING:
    from benchmarks.serving.load import Loaded
    from benchmarks.serving.noa_server import Project
    from benchmarks.serving.served_models import ServedModel

OVERLOAD_CONNECTIONS = 512
BEYOND_PLACES = 2048
"""Connections of which noa has no place for half, as it is by default (`serving.max_in_flight`)."""
HALF_CONNECTIONS = 64
_CALM_ANSWERS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfLoad:
    """Latency while requests come at half of the best rate, at random moments. `batch_s` is one run of a batch."""

    peer: str
    model: str
    offered: float
    answered: float
    p50_s: float
    p99_s: float
    batch_s: float
    late_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """Many more connections than places. `recovery_s` is how long after the end single answers were slow or refused."""

    peer: str
    model: str
    is_patient: bool
    connections: int
    saturation: float
    goodput: float
    refused: int
    refusal_p99_s: float
    refusal_max_s: float
    recovery_s: float
    fault: str | None
    timeline: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Memory of the worker after so many requests."""

    requests: int
    swaps: int
    pss_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """PSS of noa's worker while it answers and swaps; growth is that of the second half."""

    requests: int
    swaps: int
    start_bytes: int
    highest_bytes: int
    growth: float
    p99_before_s: float
    p99_swapping_s: float
    fault: str | None
    samples: tuple[Sample, ...]


def half_load(
    bench: Bench,
    server: Server,
    model: ServedModel,
    way: Way,
    *,
    saturation: float,
    batch_s: float,
    seconds: float,
    rounds: int,
) -> HalfLoad:
    """Offer half of `saturation` requests per second; medians of `rounds`."""
    path = plan(model, way, bench.folder / "plans" / f"half-{server.name}-{model.name}.plan")
    found: list[Loaded] = []
    for turn in range(rounds):
        say(f"{model.name}, {server.name}: half of saturation, {turn + 1} of {rounds}")
        loaded, _ = load_server(bench, server, path, connections=HALF_CONNECTIONS, seconds=seconds, rate=saturation / 2)
        if loaded.fault:
            raise PeerFailedError(loaded.fault)
        found.append(loaded)
    return HalfLoad(
        peer=server.name,
        model=model.name,
        offered=saturation / 2,
        answered=statistics.median(one.rate for one in found),
        p50_s=statistics.median(one.answered.p50_s for one in found),
        p99_s=statistics.median(one.answered.p99_s for one in found),
        batch_s=batch_s,
        late_share=sum(one.late for one in found) / max(sum(one.ok for one in found), 1),
    )


def overload(
    bench: Bench,
    server: Server,
    model: ServedModel,
    way: Way,
    *,
    seconds: float,
    is_patient: bool,
    connections: int = OVERLOAD_CONNECTIONS,
) -> Overload:
    """Call from far more connections than saturate; `is_patient` ones wait as `Retry-After` says.

    Saturation is measured just before and after, over 64 connections.
    """
    path = plan(model, way, bench.folder / "plans" / f"overload-{server.name}-{model.name}.plan")
    request = way.encode(model, model.rows[0])

    def saturate() -> float:
        loaded, _ = load_server(bench, server, path, connections=HALF_CONNECTIONS, seconds=max(1.0, seconds / 5))
        return loaded.rate

    say(f"{model.name}, {server.name}: {connections} connections for {seconds:g} s")
    before = saturate()
    server.thaw()
    calm_s = statistics.median(_time_one(server, request) for _ in range(20))
    loaded, _ = load_server(bench, server, path, connections=connections, seconds=seconds, backs_off=is_patient)
    server.thaw()
    recovery_s = loaded.drain_s + _recovery_s(server, request, calm_s)
    server.freeze()
    fault = loaded.fault if loaded.wrong or loaded.other or loaded.broken or loaded.unanswered else None
    return Overload(
        peer=server.name,
        model=model.name,
        is_patient=is_patient,
        connections=connections,
        saturation=statistics.mean([before, saturate()]),
        goodput=loaded.rate,
        refused=loaded.refused,
        refusal_p99_s=loaded.refusals.p99_s,
        refusal_max_s=loaded.refusals.max_s,
        recovery_s=recovery_s,
        fault=fault,
        timeline=loaded.timeline,
    )


def _time_one(server: Server, request: bytes) -> float:
    started = time.perf_counter()
    status, _ = exchange(server.port, request)
    return time.perf_counter() - started if status == 200 else float("inf")


def _recovery_s(server: Server, request: bytes, calm_s: float) -> float:
    """Return when the first of ten quick answers in a row came, seconds from now; a quick one takes 3x as before."""
    started = time.perf_counter()
    first, quick = 0.0, 0
    while quick < _CALM_ANSWERS:
        at = time.perf_counter() - started
        if at > 30:
            return at
        if _time_one(server, request) <= 3 * calm_s + 0.002:
            first, quick = (at if quick == 0 else first), quick + 1
        else:
            quick = 0
    return first


def memory(
    bench: Bench, server: Server, project: Project, model: ServedModel, way: Way, *, requests: int, swaps: int
) -> Memory:
    """Answer `requests` while the alias moves `swaps` times between two versions; the load ends when both are done."""
    path = plan(model, way, bench.folder / "plans" / f"memory-{model.name}.plan")
    pid = server.worker().pid
    calm, _ = load_server(bench, server, path, connections=16, seconds=3)
    samples = [Sample(requests=calm.ok, swaps=0, pss_bytes=pss_bytes(pid))]
    done, is_over, problem = [0], threading.Event(), list[str]()

    def keep_swapping() -> None:
        try:
            for number in range(swaps):
                if is_over.is_set():
                    return
                wanted = 2 - number % 2
                project.promote(model.name, wanted)
                if not wait_until(lambda: served_version(server, model.name) == wanted, timeout_s=30):  # noqa: B023
                    problem.append(f"version {wanted} was not served 30 s after its promotion")
                    return
                done[0] += 1
        except Exception as exc:  # noqa: BLE001  # told by the caller, not on a thread's stderr
            problem.append(f"{type(exc).__name__}: {exc}")

    swapper = threading.Thread(target=keep_swapping)
    total, p99s = calm.ok, list[float]()
    server.thaw()
    swapper.start()
    try:
        while (total < requests or swapper.is_alive()) and not problem:
            say(f"memory: {total:,} of {requests:,} requests, {done[0]} of {swaps} swaps, "
                f"{samples[-1].pss_bytes / 1e6:.1f} MB")  # fmt: skip
            loaded = _keep_loading(bench, server, path)
            if loaded.fault:
                problem.append(loaded.fault)
            total += loaded.ok
            p99s.append(loaded.answered.p99_s)
            samples.append(Sample(requests=total, swaps=done[0], pss_bytes=pss_bytes(pid)))
    finally:
        is_over.set()
        swapper.join()
    return Memory(
        requests=total,
        swaps=done[0],
        start_bytes=samples[0].pss_bytes,
        highest_bytes=max(one.pss_bytes for one in samples),
        growth=growth(samples),
        p99_before_s=calm.answered.p99_s,
        p99_swapping_s=statistics.median(p99s) if p99s else 0.0,
        fault=problem[0] if problem else None,
        samples=tuple(samples),
    )


def _keep_loading(bench: Bench, server: Server, path: Path) -> Loaded:
    from benchmarks.serving.load import run_load

    return run_load(bench.program, path, port=server.port, connections=16, seconds=1, cores=bench.load_cores)


def served_version(server: Server, name: str) -> int | None:
    """Return which version noa serves now."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/status", timeout=10) as answer:
        table = json.load(answer)
    version = table["endpoints"][name].get("version")
    return int(version) if version is not None else None


def growth(samples: list[Sample]) -> float:
    """Return by how much memory grew in the second half of the run: the median of its last fifth against its first."""
    half = samples[len(samples) // 2 :]
    part: Callable[[list[Sample]], float] = lambda some: statistics.median(one.pss_bytes for one in some)  # noqa: E731
    size = max(1, len(half) // 5)
    return part(half[-size:]) / part(half[:size]) - 1
