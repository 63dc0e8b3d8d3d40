"""Arms of real servers: clients stay where they are over workers and restarts, and swaps under load drop nothing."""

from __future__ import annotations

import http.client
import json
import threading
from collections import Counter
from pathlib import Path

import httpx
import pytest
from serving_kit import Project, affine_model, make_project, wait_until

from noa.settings import EndpointSettings
from noa_serving import Client, ServerProcess, running_servers, start_server
from noa_serving.live import compare, look

SCALES = {1: 2.0, 2: 3.0, 3: 5.0}
USERS = 60
CLIENTS = 4
SWAPS = 6
RULE = EndpointSettings.model_validate(
    {
        "model": "digits@champion",
        "sticky": "x-user-id",
        "arms": {"candidate": {"model": "digits@candidate", "share": 0.4}},
    }
)


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Project:
    project = make_project(tmp_path_factory.mktemp("arms"), empty_state, workers=2)
    for scale in SCALES.values():
        project.publish("digits", affine_model(scale), alias=None)
    project.promote("digits", 1)
    return project


def start(project: Project, log: Path) -> ServerProcess:
    return start_server(project.settings, endpoints={"digits": RULE}, log_file=log)


def url_of(process: ServerProcess) -> str:
    address = process.command.read_address()
    assert address is not None
    return address.url


def arm_of(url: str, user: int) -> tuple[str, str]:
    """Ask over a connection of its own, which any worker may take; return the arm and the worker."""
    headers = {"x-user-id": f"user-{user}", "content-type": "application/json"}
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    try:
        connection.request("POST", "/predict/digits", json.dumps({"inputs": [[1.0, 2.0, 3.0, 4.0]]}), headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
        connection.request("GET", "/status")
        return answer.headers.get("noa-arm", "main"), json.loads(connection.getresponse().read())["worker"]
    finally:
        connection.close()


def is_on(url: str, arm: str) -> bool:
    """Tell whether somebody is on an arm."""
    return any(arm_of(url, user)[0] == arm for user in range(USERS))


def add_taking(url: str, taking: set[str]) -> set[str]:
    """Add the worker that answers, if its arm takes requests."""
    table = httpx.get(f"{url}/status").json()
    if table["endpoints"]["digits"]["arms"]["candidate"]["takes"]:
        taking.add(table["worker"])
    return taking


class Caller(threading.Thread):
    """Sends requests of many users over one kept-alive connection, and checks each answer against its version."""

    def __init__(self, url: str, seed: int) -> None:
        super().__init__(daemon=True)
        self.stopping = threading.Event()
        self.seen: Counter[tuple[str, int]] = Counter()
        self.failures: list[str] = []
        self._url = url
        self._seed = seed

    def run(self) -> None:
        user = self._seed
        try:
            with httpx.Client(base_url=self._url, timeout=20) as client:
                while not self.stopping.is_set():
                    user += 1
                    self._ask(client, user % USERS)
        except Exception as exc:  # noqa: BLE001  # every kind of failure is what this test looks for
            self.failures.append(repr(exc))

    def _ask(self, client: httpx.Client, user: int) -> None:
        row = [float(user), 1.0, 2.0, 3.0]
        answer = client.post("/predict/digits", json={"inputs": [row]}, headers={"x-user-id": f"user-{user}"})
        table = json.loads(answer.content)
        if answer.status_code != 200:
            self.failures.append(f"{answer.status_code}: {table}")
            return
        version = table["version"]
        self.seen[answer.headers.get("noa-arm", "main"), version] += 1
        if table["outputs"]["y"] != [[SCALES[version] * value for value in row]]:
            self.failures.append(f"version {version} did not compute {table['outputs']} of {row}")


def seen_by(callers: list[Caller]) -> Counter[tuple[str, int]]:
    return sum((caller.seen for caller in callers), Counter())


@pytest.mark.bentoml
def test_clients_stay_on_their_arm_over_workers_and_restarts_and_the_alias_ends_it_everywhere(
    moving: Project, tmp_path: Path
) -> None:
    moving.promote("digits", 1)
    moving.promote("digits", 2, alias="candidate")
    found: list[list[str]] = []
    for turn in range(2):
        with start(moving, tmp_path / f"server-{turn}.log") as process:
            process.wait_ready()
            url = url_of(process)
            taking: set[str] = set()
            wait_until(lambda url=url, taking=taking: len(add_taking(url, taking)) == 2, what="the arm in both")
            workers: set[str] = set()
            rows: list[set[str]] = [set() for _ in range(USERS)]
            for _ in range(2):
                for user in range(USERS):
                    arm, worker = arm_of(url, user)
                    rows[user].add(arm)
                    workers.add(worker)
            assert all(len(row) == 1 for row in rows), "every worker puts a user on the same arm"
            assert len(workers) == 2, "both workers were asked"
            found.append([row.pop() for row in rows])
            if turn == 1:
                moving.promote("digits", 1, alias="candidate")  # what the endpoint serves anyway
                wait_until(lambda url=url: not is_on(url, "candidate"), timeout_s=60, what="the end")
    assert found[0] == found[1]
    share = found[0].count("candidate") / USERS
    assert 0.1 < share < 0.7


@pytest.mark.bentoml
def test_swaps_of_the_main_version_and_of_an_arm_under_load_drop_nothing(moving: Project, tmp_path: Path) -> None:
    moving.promote("digits", 1)
    moving.promote("digits", 2, alias="candidate")
    with start(moving, tmp_path / "server.log") as process:
        process.wait_ready()
        url = url_of(process)
        wait_until(lambda: is_on(url, "candidate"), what="the arm")
        callers = [Caller(url, seed * 7) for seed in range(CLIENTS)]
        for caller in callers:
            caller.start()
        # The arm moves, the candidate becomes the champion and ends with that, a new one begins.
        moves = [
            ("candidate", 3),
            ("champion", 3),
            ("candidate", 2),
            ("champion", 1),
            ("candidate", 3),
            ("champion", 2),
        ]
        champion, candidate = 1, 2
        for alias, number in moves[:SWAPS]:
            moving.promote("digits", number, alias=alias)
            champion, candidate = (champion, number) if alias == "candidate" else (number, candidate)
            wanted = {("main", champion)} | ({("candidate", candidate)} if candidate != champion else set())
            before = seen_by(callers)
            wait_until(
                lambda wanted=wanted, before=before: (
                    all(seen_by(callers)[one] > before[one] + 20 for one in wanted)
                    or any(caller.failures for caller in callers)
                ),
                what=f"answers of {wanted}",
            )
        server = next(one for one in running_servers(moving.settings.state_dir) if one.address.url == url)
        first = look(server)
        wait_until(lambda: "noa_arm_share" in httpx.get(f"{url}/metrics").text)
        before = seen_by(callers).total()
        wait_until(lambda: seen_by(callers).total() > before + 200, what="more answers")
        (row,) = compare(first, look(server))
        for caller in callers:
            caller.stopping.set()
            caller.join(20)
        with Client(url) as client:
            table = client.status()["endpoints"]["digits"]
    assert [failure for caller in callers for failure in caller.failures] == []
    assert table["arms"]["candidate"]["version"] == 3
    arms = {arm.name: arm for arm in row.arms}
    assert (arms["main"].version, arms["candidate"].version) == (2, 3)
    assert (arms["main"].share, arms["candidate"].share) == (pytest.approx(0.6), 0.4)
    rates = [arms["main"].requests_per_s, arms["candidate"].requests_per_s]
    assert all(rate > 0 for rate in rates)
    assert sum(rates) == pytest.approx(row.requests_per_s, rel=1e-6)
    assert arms["candidate"].p50_ms is not None
