"""Serving: requests per second and latency of noa's server against a bare uvicorn + onnxruntime app in the same
minutes.

    python benchmarks/bench_serving.py [--quick]

The bare app is a raw ASGI function with no validation, limits, metrics, deadlines or swaps. Both run one worker; short
bursts of all cases are interleaved in random order, medians are quoted. Machines are shared, so each figure is also
given per second of the server's CPU time. `--load` makes this file the load generator, which runs as a process of its
own.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.rows import Row  # noqa: E402  # the file also runs as a script, which must find its package first

FEATURES = 64
MODEL_VARIABLE = "NOA_BENCH_MODEL"
BARE, NOA = "bare uvicorn + onnxruntime", "noa"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    server: str
    body: str
    connections: int
    port: int
    request: bytes

    @property
    def name(self) -> str:
        return f"{self.body}, {self.connections} connections"


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """What one burst showed; latencies in seconds."""

    rate: float
    rate_per_cpu: float
    p50_s: float
    p99_s: float


def run(*, quick: bool) -> list[Row]:
    seconds, rounds = (0.5, 3) if quick else (2.0, 7)
    with tempfile.TemporaryDirectory() as folder, servers(Path(folder)) as (noa, bare):
        cases = [case for connections in (1, 16, 64) for case in cases_of(noa.port, bare.port, connections)]
        bursts: dict[Case, list[Burst]] = {case: [] for case in cases}
        for turn in range(rounds + 1):
            random.Random(turn).shuffle(cases)
            for case in cases:
                measured = burst(case, noa.pid if case.server == NOA else bare.pid, seconds if turn else 0.3)
                if turn:  # the first round warms
                    bursts[case].append(measured)
    return [row for case in bursts if case.server == NOA for row in rows_of(case, bursts)]


def rows_of(case: Case, bursts: dict[Case, list[Burst]]) -> Iterator[Row]:
    peer = next(one for one in bursts if (one.server, one.body, one.connections) == (BARE, case.body, case.connections))
    for figure, unit, scale in (
        ("rate", "requests/s", 1.0),
        ("rate_per_cpu", "requests/CPU s", 1.0),
        ("p50_s", "ms p50", 1e3),
        ("p99_s", "ms p99", 1e3),
    ):
        ours, theirs = (
            statistics.median(getattr(one, figure) for one in bursts[which]) * scale for which in (case, peer)
        )
        yield Row(what=f"serve MLP, {case.name}", figure=ours, unit=unit, peer=BARE, peer_figure=theirs)


def cases_of(noa_port: int, bare_port: int, connections: int) -> Iterator[Case]:
    import numpy as np

    x = np.random.default_rng(0).normal(size=(1, FEATURES)).astype(np.float32)
    raw = x.tobytes()
    table = {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [1, FEATURES], "parameters": {"binary_data_size": len(raw)}}
        ],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(table).encode()
    plain = json.dumps({"inputs": {"x": [[round(float(value), 4) for value in x[0]]]}}).encode()
    octets = "application/octet-stream"
    length = f"inference-header-content-length: {len(head)}\r\n"
    for body, noa_request, bare_request in (
        ("binary", http("/v2/models/mlp/infer", head + raw, octets, length), http("/binary", raw, octets)),
        ("JSON", http("/predict/mlp", plain, "application/json"), http("/json", plain, "application/json")),
    ):
        yield Case(server=NOA, body=body, connections=connections, port=noa_port, request=noa_request)
        yield Case(server=BARE, body=body, connections=connections, port=bare_port, request=bare_request)


def http(path: str, body: bytes, kind: str, more: str = "") -> bytes:
    lines = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    )
    return lines.encode() + body


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    port: int
    pid: int


@contextmanager
def servers(root: Path) -> Iterator[tuple[Listener, Listener]]:
    """Start both servers with one compute thread each, on the first core if there are two or more."""
    import psutil

    from benchmarks.models import register_version, write_mlp
    from noa.settings import EndpointSettings, Settings
    from noa_registry import Registry
    from noa_serving import start_server

    settings = Settings.model_validate({"serving": {"port": 0, "threads": 1}}).resolved(root)
    with Registry.open(settings.registry) as registry:
        register_version(registry, "mlp", seed=0)
        registry.promote("mlp", 1, reason="bench", actor="bench")
    write_mlp(root / "bare", seed=0)
    endpoints = {"mlp": EndpointSettings(model="mlp@champion")}
    with start_server(settings, endpoints=endpoints, log_file=root / "noa.log") as server, bare_server(root) as bare:
        address = server.wait_ready()
        worker = psutil.Process(server.pid).children()[0].pid
        for pid in (worker, bare.pid):
            os.sched_setaffinity(pid, {min(os.sched_getaffinity(0))})
        yield Listener(port=address.port, pid=worker), bare


@contextmanager
def bare_server(root: Path) -> Iterator[Listener]:
    # Not `--fd`: uvicorn takes that for a Unix socket, leaves Nagle's algorithm on, and every answer waits 40 ms.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "benchmarks.bench_serving:bare_app", "--port", str(port)]
    command += ["--no-access-log", "--log-level", "warning", "--loop", "uvloop", "--http", "httptools"]
    environment = {**os.environ, MODEL_VARIABLE: str(root / "bare" / "model.onnx"), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, cwd=ROOT)
    try:
        wait_listening(port)
        yield Listener(port=port, pid=process.pid)
    finally:
        process.terminate()
        process.wait(20)


def wait_listening(port: int, *, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def burst(case: Case, pid: int, seconds: float) -> Burst:
    import psutil

    request = {"port": case.port, "connections": case.connections, "seconds": seconds, "request": case.request.hex()}
    server = psutil.Process(pid)
    before = server.cpu_times()
    command = [sys.executable, str(Path(__file__)), "--load"]
    result = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, timeout=120, check=True)
    after = server.cpu_times()
    found = json.loads(result.stdout)
    if found["failures"] or not found["count"]:
        raise RuntimeError(f"{case.server}, {case.name}: {found}")
    cpu_s = max(after.user + after.system - before.user - before.system, 1e-3)
    return Burst(
        rate=found["count"] / found["elapsed_s"],
        rate_per_cpu=found["count"] / cpu_s,
        p50_s=found["p50_s"],
        p99_s=found["p99_s"],
    )


class Connection(asyncio.Protocol):
    """One client: sends the same request again as soon as its answer is whole."""

    def __init__(self, request: bytes, state: Load) -> None:
        self._request, self._state = request, state
        self._buffer = b""
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        start = self._buffer.find(b"content-length: ", 0, head) + 16
        length = int(self._buffer[start : self._buffer.find(b"\r\n", start)])
        if len(self._buffer) < head + 4 + length:
            return
        self._state.failures += not self._buffer.startswith(b"HTTP/1.1 200")
        self._state.latencies.append(time.perf_counter() - self._sent)
        self._buffer = b""
        if self._state.is_open:
            self._send()
        else:
            self._transport.close()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request)


class Load:
    """What all connections of one burst found."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.failures = 0
        self.is_open = True


async def load(order: dict[str, Any]) -> dict[str, float]:
    state = Load()
    request = bytes.fromhex(order["request"])
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    for _ in range(order["connections"]):
        await loop.create_connection(lambda: Connection(request, state), "127.0.0.1", order["port"])
    await asyncio.sleep(order["seconds"])
    elapsed_s, times = time.perf_counter() - started, sorted(state.latencies)
    state.is_open = False
    await asyncio.sleep(0.05)
    return {
        "count": len(times),
        "failures": state.failures,
        "elapsed_s": elapsed_s,
        "p50_s": times[len(times) // 2] if times else 0.0,
        "p99_s": times[len(times) * 99 // 100] if times else 0.0,
    }


@functools.cache
def bare_session() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(os.environ[MODEL_VARIABLE], options)


async def bare_app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The peer: parse, run, answer, and nothing else."""
    import numpy as np
    import orjson

    if scope["type"] != "http":
        return
    session = bare_session()
    body = (await receive())["body"]
    if scope["path"] == "/binary":
        x = np.frombuffer(body, dtype=np.float32).reshape(-1, FEATURES)
        answer = session.run(None, {"x": x})[0].tobytes()
    else:
        x = np.array(orjson.loads(body)["inputs"]["x"], dtype=np.float32)
        outputs = {"outputs": {"logits": session.run(None, {"x": x})[0]}}
        answer = orjson.dumps(outputs, option=orjson.OPT_SERIALIZE_NUMPY)
    headers = [(b"content-length", str(len(answer)).encode()), (b"content-type", b"application/octet-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


def main() -> None:
    if "--load" in sys.argv:
        import uvloop

        print(json.dumps(uvloop.run(load(json.load(sys.stdin)))))
        return
    for row in run(quick="--quick" in sys.argv):
        print(f"{row.what:<38}{row.figure:>10.4g} {row.unit:<15} bare {row.peer_figure:>10.4g}   ratio {row.ratio:.2f}")


if __name__ == "__main__":
    main()
