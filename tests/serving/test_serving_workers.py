"""A server with several workers is one server: it is ready, swaps and survives the death of a worker as a whole."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from serving_kit import Project, affine_model, endpoint, failing_model, make_project, wait_until

from noa.errors import ServiceError
from noa_serving import Client, ServerProcess, start_server

WORKERS = 3
SCALES = {1: 2.0, 2: 3.0}

pytestmark = pytest.mark.bentoml


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server with its project, its address and its log."""

    project: Project
    process: ServerProcess
    url: str
    log: Path

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Ask over a new connection, which any worker may take."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=20)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def workers(self) -> list[dict[str, Any]]:
        return self.get("/status")[1]["workers"]

    def pids(self) -> list[int]:
        return [row["pid"] for row in self.workers() if row["state"] == "serving"]

    def is_whole(self, version: int) -> bool:
        return [row.get("versions") for row in self.workers()] == [{"digits": version}] * WORKERS


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Iterator[Running]:
    project = make_project(tmp_path_factory.mktemp("several"), empty_state, workers=WORKERS)
    for scale in SCALES.values():
        project.publish("digits", affine_model(scale), alias=None)
    project.promote("digits", 1)
    log = tmp_path_factory.mktemp("log") / "server.log"
    with start_server(project.settings, endpoints={"digits": endpoint("digits@champion")}, log_file=log) as process:
        found = Running(project=project, process=process, url=process.wait_ready().url, log=log)
        assert found.is_whole(1), "a server is ready first when all its workers are"
        yield found


@pytest.fixture(autouse=True)
def whole(running: Running) -> None:
    """Begin every test with all workers at version 1."""
    running.project.promote("digits", 1)
    wait_until(lambda: running.is_whole(1), timeout_s=60, what="every worker at version 1")
    with running.project.registry() as registry:
        endpoints = registry.endpoints
        wait_until(
            lambda: [one.generation.number for one in endpoints.live_replicas()] == [1] * WORKERS, what="the leases"
        )


@dataclass(slots=True)
class Load(threading.Thread):
    """Requests over one connection, opened anew after a failure; each answer is checked against its version.

    Where it does not keep its connection, any worker that takes one may get the next request.
    """

    host: str
    keeps: bool = True
    stopping: threading.Event = field(default_factory=threading.Event)
    versions: Counter[int] = field(default_factory=Counter[int])
    broken: int = 0
    refused: list[str] = field(default_factory=list[str])

    __hash__ = threading.Thread.__hash__

    def __post_init__(self) -> None:
        threading.Thread.__init__(self, daemon=True)

    def run(self) -> None:
        connection = http.client.HTTPConnection(self.host, timeout=20)
        try:
            self._press(connection)
        finally:
            connection.close()

    def _press(self, connection: http.client.HTTPConnection) -> None:
        body = json.dumps({"inputs": [[1.0, 2.0, 3.0, 4.0]]})
        while not self.stopping.is_set():
            try:
                connection.request("POST", "/predict/digits", body, {"content-type": "application/json"})
                response = connection.getresponse()
                answer = json.loads(response.read())
            except (OSError, http.client.HTTPException):
                self.broken += 1
                connection.close()
                continue
            if not self.keeps:
                connection.close()
            if response.status != 200:
                self.refused.append(f"{response.status}: {answer}")
                continue
            version = answer["version"]
            self.versions[version] += 1
            if answer["outputs"]["total"] != [10 * SCALES[version]]:
                self.refused.append(f"version {version} did not compute {answer['outputs']}")


def start_load(running: Running, clients: int) -> list[Load]:
    loads = [Load(running.url.removeprefix("http://"), keeps=index > 0) for index in range(clients)]
    for one in loads:
        one.start()
    wait_until(lambda: all(one.versions.total() > 5 for one in loads), what="the load")
    return loads


def end(loads: list[Load]) -> None:
    for one in loads:
        one.stopping.set()
    for one in loads:
        one.join(20)


def children(running: Running) -> list[int]:
    return [one.pid for one in psutil.Process(running.process.pid).children()]


def test_a_killed_worker_costs_its_requests_in_flight_only_and_comes_back_with_the_same_version(
    running: Running,
) -> None:
    loads = start_load(running, 6)
    victim = running.pids()[0]
    os.kill(victim, signal.SIGKILL)
    killed_at = time.monotonic()
    known = set(children(running))
    wait_until(lambda: bool(set(children(running)) - known), timeout_s=3, what="the start of another")
    wait_until(lambda: victim not in running.pids(), what="the death being known")
    status, table = running.get("/v2/health/ready")
    assert (status, table["ready"]) == (200, True), "the others answer"
    assert re.fullmatch(r"worker 0 of 3 is (dead|starting)", table["degraded"])
    wait_until(lambda: running.is_whole(1), timeout_s=60, what="the worker's return")
    print(f"whole again after {time.monotonic() - killed_at:.2f} s")
    wait_until(lambda: len(running.pids()) == WORKERS and "degraded" not in running.get("/v2/health/ready")[1])
    end(loads)
    assert [text for one in loads for text in one.refused] == []
    assert all(one.broken <= 1 for one in loads), "no connection broke twice"
    assert sum(one.broken for one in loads) < 6, "the connections of the other workers held"


def test_all_workers_swap_at_the_same_time_and_every_answer_is_that_of_its_version(running: Running) -> None:
    loads = start_load(running, 3)
    begin = running.log.stat().st_size
    running.project.promote("digits", 2)
    wait_until(lambda: running.is_whole(2), what="every worker at version 2")
    end(loads)
    assert [text for one in loads for text in one.refused] == []
    assert sum(one.broken for one in loads) == 0
    lines = [line for line in running.log.read_text()[begin:].splitlines() if "digits/1 -> digits/2" in line]
    moments = [datetime.fromisoformat(" ".join(line.split()[:2])).timestamp() for line in lines]
    assert len(moments) == WORKERS
    print(f"swapped within {(max(moments) - min(moments)) * 1000:.0f} ms")
    assert max(moments) - min(moments) < 1.0


def test_after_a_rollback_was_waited_for_no_worker_answers_with_the_newer_version(running: Running) -> None:
    with running.project.registry() as registry:
        for _ in range(3):
            registry.promote("digits", 2, reason="r", actor="ada")
            registry.endpoints.wait_until_served("digits", 2, alias="champion", timeout_s=60)
            registry.rollback("digits", reason="r", actor="ada")
            served = registry.endpoints.wait_until_served("digits", 1, alias="champion", timeout_s=60)
            assert len(served) == WORKERS
            assert running.is_whole(1)
            for _ in range(20):
                with Client(running.url) as client:
                    assert client.metadata("digits")["versions"] == ["1"]


def test_a_version_that_cannot_run_is_swapped_in_by_no_worker_and_the_wait_says_so(running: Running) -> None:
    bad = running.project.publish("digits", failing_model)
    answers: list[dict[str, Any]] = []

    def is_refused() -> bool:
        answers.append(running.get("/status")[1]["endpoints"]["digits"])
        return "refused" in answers[-1]

    wait_until(is_refused, what="the refusal")
    refused = answers[-1]["refused"]
    assert refused["version"] == bad.number
    assert re.match(r"worker \d: ", refused["reason"])
    assert running.is_whole(1)
    assert running.get("/v2/health/ready")[0] == 200
    with running.project.registry() as registry, pytest.raises(ServiceError, match="a server refuses it"):
        registry.endpoints.wait_until_served("digits", bad.number, alias="champion", timeout_s=30)
    os.kill(running.pids()[1], signal.SIGKILL)
    wait_until(lambda: len(running.pids()) < WORKERS, what="the death")
    wait_until(lambda: running.is_whole(1), timeout_s=60, what="the worker's return with what the others serve")


def test_a_worker_that_stands_still_holds_up_a_swap_for_seconds_only_and_the_wait_names_it(running: Running) -> None:
    stopped = next(row for row in running.workers() if row["worker"] == 2)["pid"]
    os.kill(stopped, signal.SIGSTOP)
    try:
        running.project.promote("digits", 2)
        wait_until(
            lambda: [row["versions"]["digits"] for row in running.workers()] == [2, 2, 1],
            timeout_s=60,
            what="the swap of the others",
        )
        assert [row["state"] for row in running.workers()] == ["serving", "serving", "silent"]
        assert running.get("/v2/health/ready")[0] == 200
        with running.project.registry() as registry, pytest.raises(ServiceError) as caught:
            registry.endpoints.wait_until_served("digits", 2, alias="champion", timeout_s=3)
        assert re.search(r"\.2:\w+` of endpoint `digits` serves digits/1", str(caught.value))
    finally:
        os.kill(stopped, signal.SIGCONT)
    wait_until(lambda: running.is_whole(2), timeout_s=60, what="the worker that goes on")


def test_workers_killed_at_random_during_swaps_end_with_one_version(running: Running) -> None:
    chance = random.Random(5)
    loads = start_load(running, 3)
    kills = 0
    for turn in range(4):
        running.project.promote("digits", 2 if turn % 2 == 0 else 1)
        time.sleep(chance.uniform(0.0, 0.3))
        pids = running.pids()
        if len(pids) > 1:
            os.kill(chance.choice(pids), signal.SIGKILL)
            kills += 1
        wanted = 2 if turn % 2 == 0 else 1
        wait_until(lambda wanted=wanted: running.is_whole(wanted), timeout_s=60, what=f"version {wanted} everywhere")
    end(loads)
    assert kills >= 3
    assert [text for one in loads for text in one.refused] == []
    with running.project.registry() as registry:
        assert len(registry.endpoints.wait_until_served("digits", 1, alias="champion", timeout_s=30)) == WORKERS


def test_idle_workers_take_next_to_no_time_for_each_other(running: Running) -> None:
    processes = [psutil.Process(pid) for pid in running.pids()]
    before = [sum(process.cpu_times()[:2]) for process in processes]
    time.sleep(2.0)
    used = [sum(process.cpu_times()[:2]) - start for process, start in zip(processes, before, strict=True)]
    print(f"idle workers used {[f'{one / 2.0:.2%}' for one in used]} of a core")
    assert max(used) < 0.2
