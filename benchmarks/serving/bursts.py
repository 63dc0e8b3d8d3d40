"""Short bursts of everything that is compared, interleaved in random order; medians of them are the figures.

A machine's speed changes from minute to minute: what shall be compared takes turns, and each figure is given by the
clock and per second of the server's CPU time. A burst with one wrong, refused or missing answer does not count, and its
subject is out of the run with that reason.
"""

from __future__ import annotations

import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.serving.load import Loaded, run_load
from benchmarks.serving.processes import PeerFailedError, Server, run_on
from benchmarks.serving.roster import LIMIT
from benchmarks.serving.wire import Way, grpc_message, plan

if TYPE_CHECKING:
    from benchmarks.serving.served_models import ServedModel

ROOT = Path(__file__).resolve().parents[2]
_CHECK_EVERY = {"tensor": 16}
_WARM_S = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where a run takes place: the server has one core, the generator the others."""

    server_cores: frozenset[int]
    load_cores: frozenset[int]
    program: Path
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """What one burst showed; `core_share` is the part of the server's core that it used."""

    rate: float
    rate_per_cpu: float
    p50_s: float
    p99_s: float
    core_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One thing that takes its turn: a server, a protocol and a number of connections."""

    peer: str
    model: str
    encoding: str
    way: str
    connections: int
    burst: Callable[[float], Burst] = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """The medians of a subject's bursts, or why there are none."""

    peer: str
    model: str
    encoding: str
    way: str
    connections: int
    rate: float = 0.0
    rate_per_cpu: float = 0.0
    p50_s: float = 0.0
    p99_s: float = 0.0
    core_share: float = 0.0
    bursts: int = 0
    fault: str | None = None


def measure(subjects: Sequence[Subject], *, seconds: float, rounds: int, seed: int = 0) -> list[Figure]:
    """Let all subjects take turns; the first turn warms and is not counted."""
    found: dict[Subject, list[Burst]] = {subject: [] for subject in subjects}
    faults: dict[Subject, str] = {}
    for turn in range(rounds + 1):
        order = [subject for subject in subjects if subject not in faults]
        random.Random(seed + turn).shuffle(order)
        for number, subject in enumerate(order):
            place = f"round {turn} of {rounds}, {number + 1} of {len(order)}"
            say(f"{place}: {subject.model}, {subject.peer}, {subject.way}, {subject.connections} connections")
            try:
                burst = subject.burst(seconds if turn else min(_WARM_S, seconds))
            except PeerFailedError as exc:
                faults[subject] = str(exc)
                say(f"{subject.peer} is out of this case: {exc}", keep=True)
                continue
            if turn:
                found[subject].append(burst)
    return [_figure(subject, bursts, faults.get(subject)) for subject, bursts in found.items()]


def _figure(subject: Subject, bursts: Sequence[Burst], fault: str | None) -> Figure:
    names = ("rate", "rate_per_cpu", "p50_s", "p99_s", "core_share")
    values: Mapping[str, float] = (
        {} if fault or not bursts else {name: statistics.median(getattr(one, name) for one in bursts) for name in names}
    )
    return Figure(
        peer=subject.peer,
        model=subject.model,
        encoding=subject.encoding,
        way=subject.way,
        connections=subject.connections,
        bursts=len(bursts),
        fault=fault,
        **values,
    )


def http_subject(bench: Bench, server: Server, model: ServedModel, way: Way, connections: int) -> Subject:
    """A server that is called over HTTP. It is frozen but for its turns."""
    path = plan(model, way, bench.folder / "plans" / f"{server.name}-{model.name}-{way.name}.plan".replace(" ", "_"))

    def burst(seconds: float) -> Burst:
        loaded, cpu_s = load_server(
            bench, server, path, connections=connections, seconds=seconds, check_every=_CHECK_EVERY.get(model.name, 1)
        )
        if loaded.fault:
            raise PeerFailedError(loaded.fault)
        return Burst(
            rate=loaded.rate,
            rate_per_cpu=loaded.ok / max(cpu_s, 1e-3),
            p50_s=loaded.answered.p50_s,
            p99_s=loaded.answered.p99_s,
            core_share=cpu_s / loaded.elapsed_s,
        )

    return Subject(
        peer=server.name,
        model=model.name,
        encoding=way.encoding,
        way=way.name,
        connections=connections,
        burst=burst,
    )


def load_server(
    bench: Bench, server: Server, path: Path, *, connections: int, seconds: float, rate: float | None = None,
    check_every: int = 1, backs_off: bool = False,
) -> tuple[Loaded, float]:  # fmt: skip
    """Thaw the server, send it the plan, freeze it; returns what was found and the CPU time that the server took."""
    server.thaw()
    try:
        before = server.cpu_s()
        loaded = run_load(
            bench.program,
            path,
            port=server.port,
            connections=connections,
            seconds=seconds,
            rate=rate,
            check_every=check_every,
            backs_off=backs_off,
            cores=bench.load_cores,
        )
        return loaded, server.cpu_s() - before
    except (RuntimeError, subprocess.TimeoutExpired) as exc:
        raise PeerFailedError(str(exc)) from exc
    finally:
        server.freeze()


def limit_subject(bench: Bench, model: ServedModel, batch: int) -> Subject:
    """What onnxruntime does in a process of its own on the server's core, `batch` rows a call."""

    def burst(seconds: float) -> Burst:
        command = [sys.executable, "-m", "benchmarks.serving.limit", str(model.folder), str(batch), str(seconds)]
        with run_on(bench.server_cores):
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        found = json.loads(done.stdout)
        per_run_s = found["elapsed_s"] / found["runs"]
        return Burst(
            rate=found["rows"] / found["elapsed_s"],
            rate_per_cpu=found["rows"] / found["cpu_s"],
            p50_s=per_run_s,
            p99_s=per_run_s,
            core_share=found["cpu_s"] / found["elapsed_s"],
        )

    return Subject(peer=LIMIT, model=model.name, encoding="none", way=f"batch {batch}", connections=batch, burst=burst)


def grpc_subject(bench: Bench, server: Server, model: ServedModel, connections: int, *, python: Path) -> Subject:
    """A server that is called over gRPC by h2load; one call is checked before, and then the size of every answer.

    `python` is an interpreter with grpcio. h2load sends one row only and does not read gRPC's status; an answer that
    fails has no message, so that its bytes would be missing.
    """
    message = grpc_message(model, model.rows[0])
    body = bench.folder / "plans" / f"{model.name}.grpc"
    body.parent.mkdir(parents=True, exist_ok=True)
    body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    url = f"http://127.0.0.1:{server.grpc_port}/inference.GRPCInferenceService/ModelInfer"
    sizes: list[int] = []

    def burst(seconds: float) -> Burst:
        server.thaw()
        try:
            if not sizes:
                sizes.append(_check_grpc(python, server, message, model.answers[0]) + 5)
            before = server.cpu_s()
            command = ["h2load", "-D", str(max(1, round(seconds))), "-c", str(connections), "-t", "1", "-m", "1"]
            command += ["-H", "content-type: application/grpc", "-H", "te: trailers", "-d", str(body), url]
            with run_on(bench.load_cores):
                done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
            return read_h2load(done.stdout, server.cpu_s() - before, answer_bytes=sizes[0])
        finally:
            server.freeze()

    return Subject(
        peer=server.name, model=model.name, encoding="gRPC", way="gRPC", connections=connections, burst=burst
    )


def read_h2load(text: str, cpu_s: float, *, answer_bytes: int) -> Burst:
    """Understand h2load's report.

    Raises:
        PeerFailedError: a request failed or an answer has another size than the one that was checked.
    """
    finished = re.search(r"finished in ([\d.]+)(m?s), ([\d.]+) req/s", text)
    counts = re.search(r"(\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", text)
    data = re.search(r"\((\d+)\) data", text)
    if finished is None or counts is None or data is None:
        raise PeerFailedError(f"h2load: {text.strip()[-200:] or 'no output'}")
    done, succeeded, failed, errored = (int(counts.group(i)) for i in (1, 2, 3, 4))
    elapsed_s = float(finished.group(1)) * (1e-3 if finished.group(2) == "ms" else 1)
    if failed or errored or not done:
        raise PeerFailedError(f"h2load: {failed} calls failed, {errored} broke, {succeeded} succeeded")
    missing = succeeded * answer_bytes - int(data.group(1))
    if abs(missing) > 128 * answer_bytes:  # those that are under way when the time is up
        raise PeerFailedError(f"h2load: {data.group(1)} bytes in {succeeded} answers of {answer_bytes} bytes")
    mean = re.search(r"time for request:\s+\S+\s+\S+\s+([\d.]+)(us|ms|s)", text)
    scale = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
    mean_s = float(mean.group(1)) * scale[mean.group(2)] if mean else 0.0
    return Burst(
        rate=succeeded / elapsed_s,
        rate_per_cpu=succeeded / max(cpu_s, 1e-3),
        p50_s=mean_s,
        p99_s=0.0,
        core_share=cpu_s / elapsed_s,
    )


def _check_grpc(python: Path, server: Server, message: bytes, answer: np.ndarray) -> int:
    """Call once, look for the right numbers in the answer, and return its size."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(message)
        file.flush()
        script = Path(__file__).with_name("peers") / "grpc_call.py"
        command = [str(python), str(script), str(server.grpc_port), file.name]
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        if done.returncode:  # a server that was just thawed may still be closing old connections
            done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    if done.returncode:
        raise PeerFailedError(f"gRPC: {' '.join(done.stderr.decode(errors='replace').split())[-200:]}")
    if not holds_numbers(done.stdout, answer):
        raise PeerFailedError(f"gRPC: the right numbers are not in the answer of {len(done.stdout)} bytes")
    return len(done.stdout)


def holds_numbers(data: bytes, answer: np.ndarray) -> bool:
    """Tell whether the float32 numbers stand somewhere in `data`, one after the other."""
    wanted = answer.astype("<f4").reshape(-1)
    size = wanted.nbytes
    return any(
        np.allclose(np.frombuffer(data[start : start + size], "<f4"), wanted, rtol=1e-3, atol=1e-4)
        for start in range(len(data) - size + 1)
    )


_shown = [0.0]


def say(text: str, *, keep: bool = False) -> None:
    """Show that the run goes on: every line on a terminal, else one every ten seconds and what shall be kept."""
    on_terminal = sys.stderr.isatty()
    if keep:
        print(
            f"\r\033[Kbench-serving: {text}" if on_terminal else f"bench-serving: {text}", file=sys.stderr, flush=True
        )
    elif on_terminal:
        print(f"\r\033[Kbench-serving: {text[:110]}", end="", file=sys.stderr, flush=True)
    elif time.monotonic() - _shown[0] > 10:
        _shown[0] = time.monotonic()
        print(f"bench-serving: {text}", file=sys.stderr, flush=True)
