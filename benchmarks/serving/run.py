"""The cases of the run: which servers are up, what takes turns, and what comes after the bursts."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.bursts import Bench, Subject, grpc_subject, http_subject, limit_subject, measure, say
from benchmarks.serving.environments import CACHE, python_of
from benchmarks.serving.goals import best
from benchmarks.serving.load import build
from benchmarks.serving.noa_server import grpc_settings, make_project, start_noa
from benchmarks.serving.package_start import package_start
from benchmarks.serving.processes import PeerFailedError, Server
from benchmarks.serving.report import Record
from benchmarks.serving.roster import (
    BENTOML,
    ECHO_PEER,
    FASTAPI,
    LIMIT,
    MLSERVER,
    NOA,
    PEERS_BY_WEIGHT,
    PYTRITON,
    TRITON,
    Peer,
    noa_ways,
    start_peer,
)
from benchmarks.serving.served_models import ServedModel, make_model
from benchmarks.serving.stress import BEYOND_PLACES, OVERLOAD_CONNECTIONS, half_load, memory, overload
from benchmarks.serving.wire import Way

CASES = ("mlp", "grpc", "cnn", "minilm", "tensor", "swaps", "memory", "start")
"""`mlp` and `cnn` bring half of saturation and overload with them."""

QUICK_PEERS = (FASTAPI, BENTOML, TRITON)
_LIMIT_BATCHES = {"mlp": (1, 8, 64), "cnn": (1, 8, 32), "minilm": (1, 4, 8, 16, 32)}
_SLOW = frozenset({"minilm"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured. `peers` None: all; a figure is the median of `rounds` bursts of `seconds`."""

    quick: bool
    cases: tuple[str, ...] = CASES
    peers: tuple[str, ...] | None = None
    memory_requests: int = 1_000_000
    memory_swaps: int = 200
    full_load_swaps: int = 100

    @property
    def seconds(self) -> float:
        return 0.5 if self.quick else 1.0

    @property
    def rounds(self) -> int:
        return 2 if self.quick else 5

    @property
    def connections(self) -> tuple[int, ...]:
        return (1, 16, 64) if self.quick else (1, 4, 16, 64)

    @property
    def overload_s(self) -> float:
        return 4.0 if self.quick else 10.0


def run(plan: Plan, *, keep: Callable[[Record], object]) -> Record:
    """Measure; `keep` is called with what there is after every case, whatever comes next."""
    record = Record(quick=plan.quick)
    with bench() as place:
        for case in plan.cases:
            say(f"case {case}", keep=True)
            _CASE[case](place, plan, record)
            keep(record)
    return record


@contextmanager
def bench() -> Iterator[Bench]:
    """A scratch folder and the cores: the first for the server, all others for the load.

    Raises:
        RuntimeError: there is one core only; a generator on the server's core would measure itself.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise RuntimeError("bench-serving needs two cores: one for the server, one for the load generator")
    folder = Path(tempfile.mkdtemp(prefix="noa-bench-"))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores[1:])
    try:
        yield Bench(
            server_cores=frozenset(cores[:1]), load_cores=frozenset(cores[1:]), program=build(CACHE), folder=folder
        )
    finally:
        os.sched_setaffinity(0, before)
        shutil.rmtree(folder, ignore_errors=True)


def model_of(place: Bench, name: str) -> ServedModel:
    return make_model(name, CACHE.parent / "serving-models")


def chosen(plan: Plan, among: Sequence[Peer]) -> list[Peer]:
    """Return the peers of a case that this run has: in a quick one three, unless they are named."""
    if plan.peers is not None:
        return [one for one in among if one.name in plan.peers or one.environment in plan.peers]
    return [one for one in among if not plan.quick or one in QUICK_PEERS or one is ECHO_PEER]


@contextmanager
def servers(
    place: Bench, record: Record, model: ServedModel, peers: Sequence[Peer], **serving: object
) -> Iterator[list[tuple[Server, tuple[Way, ...], Peer | None]]]:
    """Start noa and the peers, all frozen; one that does not start is named with its reason and left out."""
    up: list[tuple[Server, tuple[Way, ...], Peer | None]] = []
    try:
        say(f"{model.name}: starting {NOA}")
        folder = Path(tempfile.mkdtemp(prefix=f"noa-{model.name}-", dir=place.folder))
        server = start_noa(make_project(folder, [model], **serving), model, folder, cores=place.server_cores)
        up.append((server, noa_ways(model), None))
        server.freeze()
        for peer in peers:
            say(f"{model.name}: starting {peer.name}", keep=True)
            folder = place.folder / f"{model.name}-{peer.name}".replace(" ", "-")
            try:
                server = start_peer(peer, model, folder, cores=place.server_cores)
            except (PeerFailedError, OSError) as exc:
                record.absent[f"{model.name}: {peer.name}"] = str(exc)
                say(f"{peer.name} is not in this case: {exc}", keep=True)
                continue
            server.freeze()
            up.append((server, peer.ways(model), peer))
        for server, _, _ in up:
            record.starts[f"{model.name}: {server.name}"] = server.start_s
        yield up
    finally:
        for server, _, _ in reversed(up):
            server.stop()


def _mlp(place: Bench, plan: Plan, record: Record) -> None:
    model = model_of(place, "mlp")
    with servers(place, record, model, chosen(plan, PEERS_BY_WEIGHT)) as up:
        _measure(place, plan, record, model, up)
        _under_stress(place, plan, record, model, up)


def _cnn(place: Bench, plan: Plan, record: Record) -> None:
    model = model_of(place, "cnn")
    with servers(place, record, model, chosen(plan, PEERS_BY_WEIGHT)) as up:
        _measure(place, plan, record, model, up)
        _under_stress(place, plan, record, model, up)


def _minilm(place: Bench, plan: Plan, record: Record) -> None:
    model = model_of(place, "minilm")
    with servers(place, record, model, chosen(plan, PEERS_BY_WEIGHT)) as up:
        _measure(place, plan, record, model, up)


def _tensor(place: Bench, plan: Plan, record: Record) -> None:
    """Raw bytes only: a quarter of a megabyte as JSON is another question."""
    model = model_of(place, "tensor")
    with servers(place, record, model, chosen(plan, (ECHO_PEER, FASTAPI, TRITON, PYTRITON))) as up:
        _measure(place, plan, record, model, up)


def _grpc(place: Bench, plan: Plan, record: Record) -> None:
    model = model_of(place, "mlp")
    if shutil.which("h2load") is None:
        record.absent["gRPC"] = "h2load is not installed (apt-get install nghttp2-client)"
        return
    try:
        python = python_of(TRITON.environment)
    except PeerFailedError as exc:
        record.absent["gRPC"] = f"no client to check answers with: {exc}"
        return
    with servers(place, record, model, chosen(plan, (TRITON, PYTRITON, MLSERVER)), **grpc_settings()) as up:
        if up[0][0].grpc_port is None:
            record.absent[f"gRPC: {NOA}"] = "this noa has no gRPC, or grpcio is not installed in its environment"
        subjects = [
            grpc_subject(place, server, model, connections, python=python)
            for server, _, _ in up
            if server.grpc_port is not None
            for connections in plan.connections
        ]
        record.figures += measure(subjects, seconds=max(1.0, plan.seconds), rounds=plan.rounds)


def _memory(place: Bench, plan: Plan, record: Record) -> None:
    model = model_of(place, "mlp")
    project = make_project(place.folder / "project-memory", [model], poll_interval_s=0.05)
    server = start_noa(project, model, place.folder / "noa-memory", cores=place.server_cores)
    scale = 0.1 if plan.quick else 1.0
    try:
        record.memory = memory(
            place,
            server,
            project,
            model,
            noa_ways(model)[0],
            requests=round(plan.memory_requests * scale),
            swaps=round(plan.memory_swaps * scale),
        )
    finally:
        server.stop()


def _swaps(place: Bench, plan: Plan, record: Record) -> None:
    model = model_of(place, "mlp")
    project = make_project(place.folder / "project-swaps", [model], poll_interval_s=0.05)
    server = start_noa(project, model, place.folder / "noa-swaps", cores=place.server_cores)
    try:
        count = max(1, round(plan.full_load_swaps * (0.1 if plan.quick else 1.0)))
        record.swaps = memory(place, server, project, model, noa_ways(model)[0], requests=0, swaps=count)
    finally:
        server.stop()


def _start(place: Bench, plan: Plan, record: Record) -> None:
    say("mlp: starting it from a package")
    record.package_start_s = package_start(place, model_of(place, "mlp"), rounds=3 if plan.quick else 5)


_CASE: dict[str, Callable[[Bench, Plan, Record], None]] = {
    "mlp": _mlp,
    "grpc": _grpc,
    "cnn": _cnn,
    "minilm": _minilm,
    "tensor": _tensor,
    "swaps": _swaps,
    "memory": _memory,
    "start": _start,
}


def _essential(model: ServedModel, ways: tuple[Way, ...]) -> tuple[Way, ...]:
    """Return what is measured of a server: both encodings of the perceptron, else raw tensors where it takes them."""
    raw = tuple(way for way in ways if way.encoding == "binary")
    return ways if model.name == "mlp" or not raw else raw


def _measure(
    place: Bench,
    plan: Plan,
    record: Record,
    model: ServedModel,
    up: Sequence[tuple[Server, tuple[Way, ...], Peer | None]],
) -> None:
    connections = (1, 16) if model.name in _SLOW and plan.quick else plan.connections
    subjects: list[Subject] = [
        http_subject(place, server, model, way, count)
        for server, ways, _ in up
        for way in _essential(model, ways)
        for count in connections
    ]
    batches = _LIMIT_BATCHES.get(model.name, ())
    subjects += [limit_subject(place, model, batch) for batch in batches]
    seconds = plan.seconds * (3 if model.name in _SLOW else 1)
    record.figures += measure(subjects, seconds=seconds, rounds=plan.rounds)


def _under_stress(
    place: Bench,
    plan: Plan,
    record: Record,
    model: ServedModel,
    up: Sequence[tuple[Server, tuple[Way, ...], Peer | None]],
) -> None:
    """Half of saturation and overload: noa, and Triton beside it."""
    limit = best(record.figures, LIMIT, model.name, "none")
    batch_s = limit.p50_s if limit else 0.0
    for server, ways, peer in up:
        if peer is not None and peer is not TRITON:
            continue
        way = ways[0]
        top = best(record.figures, server.name, model.name, way.encoding, by="rate")
        try:
            if top is not None:
                record.half.append(
                    half_load(
                        place,
                        server,
                        model,
                        way,
                        saturation=top.rate,
                        batch_s=batch_s,
                        seconds=max(1.0, plan.seconds * 2),
                        rounds=plan.rounds,
                    )
                )
            pressures = ((OVERLOAD_CONNECTIONS, False), (BEYOND_PLACES, False), (OVERLOAD_CONNECTIONS, True))
            for connections, is_patient in pressures[:1] if plan.quick else pressures:
                record.overloads.append(
                    overload(
                        place,
                        server,
                        model,
                        way,
                        seconds=plan.overload_s,
                        is_patient=is_patient,
                        connections=connections,
                    )
                )
        except (PeerFailedError, OSError) as exc:
            record.absent[f"{model.name}, under stress: {server.name}"] = str(exc)
            say(f"{server.name} is not in this case: {exc}", keep=True)
