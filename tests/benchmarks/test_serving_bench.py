"""`make bench-serving` measures what it says: wrong answers are found, a slower server measures slower."""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from benchmarks.serving.bursts import Bench, Figure, holds_numbers, http_subject, measure, read_h2load
from benchmarks.serving.goals import judge
from benchmarks.serving.load import build, run_load
from benchmarks.serving.noa_server import make_project, start_noa
from benchmarks.serving.package_start import package_start
from benchmarks.serving.processes import PeerFailedError, Server
from benchmarks.serving.profiles import own_times
from benchmarks.serving.report import Record, plot, show, write_json
from benchmarks.serving.roster import BENTOML, FASTAPI, NOA, TRITON, noa_ways, start_peer
from benchmarks.serving.served_models import ServedModel, make_model
from benchmarks.serving.stress import growth, memory, overload
from benchmarks.serving.wire import JSON_NUMBERS, RAW_TAIL, Planned, http, write_plan

DELAY_S = 0.004


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    return Bench(server_cores=frozenset(), load_cores=frozenset(), program=build(folder), folder=folder)


@pytest.fixture(scope="module")
def model(bench: Bench) -> ServedModel:
    return make_model("mlp", bench.folder / "models")


@contextmanager
def fastapi_peer(bench: Bench, model: ServedModel, name: str, *, env: dict[str, str] | None = None) -> Iterator[Server]:
    """The bare peer from this environment: the tests install nothing."""
    python = Path(sys.executable)
    server = start_peer(FASTAPI, model, bench.folder / name, cores=frozenset(), python=python, env=env)
    try:
        yield server
    finally:
        server.stop()


def figures_of(bench: Bench, server: Server, model: ServedModel, *, connections: int = 4) -> list[Figure]:
    ways = noa_ways(model) if server.name == NOA else FASTAPI.ways(model)
    subjects = [http_subject(bench, server, model, way, connections) for way in ways]
    return measure(subjects, seconds=0.5, rounds=1)


@pytest.mark.bentoml
def test_noa_and_the_bare_peer_answer_rightly_in_every_encoding_and_a_slow_server_measures_slower(
    bench: Bench, model: ServedModel
) -> None:
    project = make_project(bench.folder / "project", [model])
    with closing_server(start_noa(project, model, bench.folder / "noa", cores=frozenset())) as noa:
        ours = figures_of(bench, noa, model)
    with fastapi_peer(bench, model, "bare") as bare:
        theirs = figures_of(bench, bare, model)
    with fastapi_peer(bench, model, "slow", env={"NOA_BENCH_DELAY_S": str(DELAY_S)}) as slow:
        slowed = figures_of(bench, slow, model)
    assert {one.way for one in ours} == {"OIP binary", "OIP JSON", "plain JSON"}
    for one in (*ours, *theirs, *slowed):
        assert one.fault is None
        assert one.rate > 0 and one.rate_per_cpu > 0 and one.p99_s >= one.p50_s > 0
    # Four connections, one at a time: each answer waits for the delays of all, whatever the machine does.
    assert all(one.p50_s >= 3 * DELAY_S for one in slowed)
    assert all(one.rate <= 1 / DELAY_S for one in slowed)


def test_a_server_that_computes_another_model_does_not_count(bench: Bench, model: ServedModel) -> None:
    other = make_model("mlp", bench.folder / "models", seed=7)
    with fastapi_peer(bench, other, "other") as server:
        found = figures_of(bench, server, model)
    assert found and all(one.fault is not None and "wrong" in one.fault and one.rate == 0 for one in found)


def test_a_server_that_does_not_start_is_told_with_its_last_words(bench: Bench, model: ServedModel) -> None:
    with pytest.raises(PeerFailedError, match=r"it ended: .*could not convert string to float"):
        start_peer(
            FASTAPI,
            model,
            bench.folder / "broken",
            cores=frozenset(),
            python=Path(sys.executable),
            env={"NOA_BENCH_DELAY_S": "nothing"},
        )


def test_a_frozen_server_takes_no_processor_time_and_answers_after_it(bench: Bench, model: ServedModel) -> None:
    with fastapi_peer(bench, model, "frozen") as server:
        server.freeze()
        before = server.cpu_s()
        assert all(one.status() == "stopped" for one in server.processes())
        time.sleep(0.2)
        assert server.cpu_s() == before
        assert all(one.fault is None for one in figures_of(bench, server, model))


@pytest.mark.conformance  # the sample of what starts noa is the first test of this file
@pytest.mark.bentoml
def test_memory_and_overload_of_noa_are_taken_over_real_swaps_and_connections(bench: Bench, model: ServedModel) -> None:
    project = make_project(bench.folder / "swapping", [model], poll_interval_s=0.05)
    with closing_server(start_noa(project, model, bench.folder / "noa-memory", cores=frozenset())) as noa:
        way = noa_ways(model)[0]
        kept = memory(bench, noa, project, model, way, requests=200, swaps=2)
        pressed = overload(bench, noa, model, way, seconds=1, is_patient=True)
    assert kept.fault is None
    assert (kept.swaps, kept.requests >= 200) == (2, True)
    assert kept.highest_bytes >= kept.start_bytes > 10e6
    assert pressed.fault is None
    assert pressed.goodput > 0 and pressed.connections == 512
    record = Record(quick=True, memory=kept, overloads=[pressed], figures=figures())
    write_json(record, bench.folder / "out" / "serving.json")
    show(record)
    assert all(path.stat().st_size > 1000 for path in plot(record, bench.folder / "out"))


@pytest.mark.conformance
@pytest.mark.bentoml
def test_the_start_of_a_package_is_taken_by_its_first_right_answer(bench: Bench, model: ServedModel) -> None:
    found_s = package_start(bench, model, rounds=1)
    (goal,) = (one for one in judge([], [], [], None, found_s) if "packaged" in one.case)
    assert goal.ours == found_s > 0.2
    assert goal.is_met is (found_s <= 2.0)


def figures() -> list[Figure]:
    """What a run may have found: noa is 4x Triton, 5x FastAPI, 20x BentoML."""
    rows = ((NOA, "binary", 40e3, 1e-4), (TRITON.name, "binary", 10e3, 2e-4), (FASTAPI.name, "binary", 8e3, 2e-4),
            (BENTOML.name, "JSON", 2e3, 1e-3), (FASTAPI.name, "JSON", 8e3, 2e-4))  # fmt: skip
    return [
        Figure(peer=peer, model="mlp", encoding=encoding, way=encoding, connections=count,
               rate=rate * count / 64, rate_per_cpu=rate * count / 64, p50_s=p50, p99_s=2 * p50, bursts=1)
        for peer, encoding, rate, p50 in rows
        for count in (1, 64)
    ]  # fmt: skip


def test_goals_are_met_not_met_or_not_measured() -> None:
    goals = {(one.case, one.against): one for one in judge(figures(), [], [], None)}
    mlp = "MLP, binary, best of 1..64 connections"
    assert goals[mlp, "Triton"].is_met is True
    assert goals[mlp, "Triton"].ratio == pytest.approx(4.0)
    assert goals[mlp, "FastAPI + onnxruntime"].is_met is True
    assert goals[mlp, "BentoML (JSON)"].is_met is False
    assert goals["MLP, binary, one connection: p50", "Triton"].is_met is True
    assert goals["MLP, JSON, one connection: p50", "Triton"].is_met is None
    broken = [Figure(peer=NOA, model="mlp", encoding="binary", way="", connections=1, rate=1e9, fault="wrong")]
    assert all(one.is_met is None for one in judge(broken, [], [], None))


class Scripted(asyncio.Protocol):
    """Answers each request with the next of the given bytes; the requests end with an empty body."""

    def __init__(self, answers: Callable[[bytes], bytes]) -> None:
        self._answers = answers
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0 and len(self._buffer) >= end + 6:
            request, self._buffer = self._buffer[: end + 6], self._buffer[end + 6 :]
            self._transport.write(self._answers(request))


@contextmanager
def scripted(answers: Callable[[bytes], bytes]) -> Iterator[int]:
    """A server on a free port that answers with what `answers` makes of each request."""
    ports: queue.Queue[int] = queue.Queue()
    over = threading.Event()

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Scripted(answers), "127.0.0.1", 0)
        ports.put(server.sockets[0].getsockname()[1])
        while not over.is_set():
            await asyncio.sleep(0.01)
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        yield ports.get(timeout=20)
    finally:
        over.set()
        thread.join()


def reply(body: bytes, status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{more}\r\n".encode() + body


def rows_plan(path: Path, mode: int, marker: bytes = b"") -> Path:
    """Eight requests whose two-byte body is their number, to be answered by that number twice."""
    write_plan(
        (
            Planned(
                request=http("/", f"{i:02}".encode(), "text/plain"),
                mode=mode,
                marker=marker,
                answer=np.full(2, i, np.float32),
            )
            for i in range(8)
        ),
        path,
    )
    return path


def number_of(request: bytes) -> float:
    return float(request[-2:])


@pytest.mark.parametrize("kind", ["raw", "JSON", "chunks"])
def test_the_generator_reads_every_kind_of_reply(bench: Bench, tmp_path: Path, kind: str) -> None:
    def answer(request: bytes) -> bytes:
        number = number_of(request)
        if kind == "raw":
            return reply(b"head" + np.full(2, number, np.float32).tobytes())
        text = f'{{"shape": [1, 2], "data": [[{number}, {number:.3e}]]}}'.encode()
        if kind == "JSON":
            return reply(text)
        cut = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (9, text[:9], len(text) - 9, text[9:])
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + cut

    path = rows_plan(
        tmp_path / "plan", RAW_TAIL if kind == "raw" else JSON_NUMBERS, b"" if kind == "raw" else b'"data":'
    )
    with scripted(answer) as port:
        found = run_load(bench.program, path, port=port, connections=3, seconds=0.3)
    assert found.fault is None
    assert found.ok == found.checked > 8
    assert found.answered.count == found.ok


def test_one_wrong_row_among_many_and_numbers_too_many_are_found(bench: Bench, tmp_path: Path) -> None:
    def mixed(request: bytes) -> bytes:
        number = number_of(request)
        return reply(np.full(2, 6 if number == 5 else number, np.float32).tobytes())

    with scripted(mixed) as port:
        found = run_load(bench.program, rows_plan(tmp_path / "raw", RAW_TAIL), port=port, connections=2, seconds=0.3)
    assert found.wrong in range(found.ok // 8 - 1, found.ok // 8 + 2)
    assert found.fault is not None and "wrong" in found.fault
    with scripted(lambda request: reply(f"[{number_of(request)}, {number_of(request)}, 1]".encode())) as port:
        found = run_load(
            bench.program, rows_plan(tmp_path / "json", JSON_NUMBERS), port=port, connections=2, seconds=0.3
        )
    assert found.wrong == found.ok > 0


def test_refusals_are_counted_apart_and_a_patient_client_waits_as_told(bench: Bench, tmp_path: Path) -> None:
    refusal = reply(b"full", "503 Service Unavailable", "Retry-After: 0.2\r\n")
    path = rows_plan(tmp_path / "plan", RAW_TAIL)
    with scripted(lambda _: refusal) as port:
        hasty = run_load(bench.program, path, port=port, connections=2, seconds=0.5)
        patient = run_load(bench.program, path, port=port, connections=2, seconds=0.5, backs_off=True)
    assert hasty.ok == patient.ok == 0
    assert hasty.statuses == {"503": hasty.refused}
    assert 2 <= patient.refused <= 6
    assert hasty.refusals.count == hasty.refused


def test_in_an_open_loop_the_wait_for_a_free_connection_counts(bench: Bench, tmp_path: Path) -> None:
    def slow(request: bytes) -> bytes:
        time.sleep(0.02)
        return reply(np.full(2, number_of(request), np.float32).tobytes())

    path = rows_plan(tmp_path / "plan", RAW_TAIL)
    with scripted(slow) as port:
        calm = run_load(bench.program, path, port=port, connections=4, seconds=1, rate=5)
        pressed = run_load(bench.program, path, port=port, connections=4, seconds=1, rate=100)
    assert calm.ok <= 20
    assert calm.answered.p50_s >= 0.02
    # Twice as many are due as can be answered: by the end the last ones have waited for about half the time.
    assert pressed.answered.max_s >= 0.2


def test_memory_growth_is_that_of_the_second_half() -> None:
    from benchmarks.serving.stress import Sample

    rising = [Sample(requests=i, swaps=0, pss_bytes=100 + max(0, i - 50)) for i in range(100)]
    settled = [Sample(requests=i, swaps=0, pss_bytes=100 + min(i, 30)) for i in range(100)]
    assert growth(rising) > 0.3
    assert growth(settled) == 0


def test_h2load_counts_only_answers_that_have_their_bytes() -> None:
    def text(done: int, data: int, failed: int = 0) -> str:
        return (
            f"finished in 2.00s, {done / 2:.2f} req/s, 1.00MB/s\n"
            f"requests: {done} total, {done} started, {done} done, {done - failed} succeeded, {failed} failed, "
            f"0 errored, 0 timeout\ntraffic: 9MB (9) total, 1MB (1) headers (space savings 9%), 1MB ({data}) data\n"
            "time for request:      200us      9.00ms       500us       100us    90.00%\n"
        )

    found = read_h2load(text(10_000, 10_000 * 87), 1.0, answer_bytes=87)
    assert (found.rate, found.rate_per_cpu, found.p50_s) == (5000, 10_000, pytest.approx(5e-4))
    with pytest.raises(PeerFailedError, match="bytes"):
        read_h2load(text(10_000, 0), 1.0, answer_bytes=87)
    with pytest.raises(PeerFailedError, match="failed"):
        read_h2load(text(10_000, 10_000 * 87, failed=1), 1.0, answer_bytes=87)
    assert holds_numbers(b"abc" + np.arange(3, dtype="<f4").tobytes() + b"z", np.arange(3, dtype=np.float32))
    assert not holds_numbers(b"abc" + np.ones(3, "<f4").tobytes(), np.arange(3, dtype=np.float32))


def test_a_profile_counts_a_function_once_per_sample_and_no_thread_that_waits() -> None:
    raw = "main (a.py:1);run (b.py:2) 6\nmain (a.py:1) 2\nboot (t.py:1);_worker (concurrent/futures/thread.py:69) 90\n"
    assert own_times(raw) == [("run (b.py:2)", 0.75), ("main (a.py:1)", 0.25)]
    assert own_times("") == []


@contextmanager
def closing_server(server: Server) -> Iterator[Server]:
    try:
        yield server
    finally:
        server.stop()
