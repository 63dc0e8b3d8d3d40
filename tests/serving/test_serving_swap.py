"""Following the registry: swaps under load drop nothing; what cannot be served is refused while the old one goes on."""

from __future__ import annotations

import http.client
import json
import logging
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from serving_kit import Project, affine_model, build_app, endpoint, make_project, wait_until

from noa_registry import ModelVersion, Registry
from noa_registry.database_url import parse_database_url
from noa_serving import Client, ServerProcess, start_server
from noa_serving._endpoint import Endpoint
from noa_serving._follower import Follower
from noa_serving._generation import load_generation
from noa_serving._http import RequestRefusedError
from noa_serving._leases import LeaseKeeper

SCALES = {1: 2.0, 2: 3.0, 3: 5.0}
SWAPS = 8
CLIENTS = 4


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory, empty_state: Path) -> Project:
    project = make_project(tmp_path_factory.mktemp("moving"), empty_state)
    for scale in SCALES.values():
        project.publish("digits", affine_model(scale), alias=None)
    project.promote("digits", 1)
    return project


@pytest.fixture(scope="module")
def moving_server(moving: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    endpoints = {
        "digits": endpoint("digits@champion"),
        "pinned": endpoint("digits/1"),
        "later": endpoint("late@champion"),
    }
    log = tmp_path_factory.mktemp("log") / "server.log"
    with start_server(moving.settings, endpoints=endpoints, log_file=log) as process:
        process.wait_started()
        yield process


@pytest.fixture(scope="module")
def moving_url(moving_server: ServerProcess) -> str:
    address = moving_server.command.read_address()
    assert address is not None
    return address.url


class Hammer(threading.Thread):
    """Sends requests over one kept-alive connection until stopped, and checks each answer against its named version."""

    def __init__(self, url: str, seed: int, digests: dict[int, str]) -> None:
        super().__init__(daemon=True)
        self.host = url.removeprefix("http://")
        self.stopping = threading.Event()
        self.seen: Counter[int] = Counter()
        self.failures: list[str] = []
        self._random = np.random.default_rng(seed)
        self._digests = digests

    def run(self) -> None:
        connection = http.client.HTTPConnection(self.host, timeout=20)
        connection.connect()
        socket = connection.sock
        try:
            while not self.stopping.is_set():
                self._request(connection)
                if connection.sock is not socket:
                    self.failures.append("the connection was closed")
        except Exception as exc:  # noqa: BLE001  # every kind of failure is what this test looks for
            self.failures.append(repr(exc))
        finally:
            connection.close()

    def _request(self, connection: http.client.HTTPConnection) -> None:
        row = self._random.integers(0, 100, 4).astype(float).tolist()
        connection.request(
            "POST", "/predict/digits", json.dumps({"inputs": [row]}), {"content-type": "application/json"}
        )
        response = connection.getresponse()
        answer = json.loads(response.read())
        if response.status != 200:
            self.failures.append(f"{response.status}: {answer}")
            return
        version = answer["version"]
        self.seen[version] += 1
        if answer["outputs"]["y"] != [[SCALES[version] * value for value in row]]:
            self.failures.append(f"version {version} did not compute {answer['outputs']} of {row}")
        if not answer["digest"] == response.headers["noa-digest"] == self._digests[version]:
            self.failures.append(f"version {version} came with the digest {answer['digest']}")


def version_of(client: Client) -> object:
    return client.status()["endpoints"]["digits"]["version"]


@pytest.mark.bentoml
def test_a_swap_under_load_drops_no_request_and_every_answer_is_that_of_its_version(
    moving: Project, moving_url: str
) -> None:
    with moving.registry() as registry:
        digests = {version.number: version.digest for version in registry.versions("digits")}
    hammers = [Hammer(moving_url, seed, digests) for seed in range(CLIENTS)]
    for hammer in hammers:
        hammer.start()
    with Client(moving_url) as client:
        for turn in range(SWAPS):
            number = (2, 3, 1)[turn % 3]
            moving.promote("digits", number)
            wait_until(lambda number=number: version_of(client) == number, what=f"swap to {number}")
            before = sum(hammer.seen[number] for hammer in hammers)
            wait_until(
                lambda number=number, before=before: (
                    sum(one.seen[number] for one in hammers) > before + 20 or any(one.failures for one in hammers)
                ),
                what=f"answers of version {number}",
            )
    for hammer in hammers:
        hammer.stopping.set()
        hammer.join(20)
    assert [failure for hammer in hammers for failure in hammer.failures] == []
    assert set(sum((hammer.seen for hammer in hammers), Counter())) == {1, 2, 3}


@pytest.mark.bentoml
def test_a_pinned_endpoint_never_moves(moving: Project, moving_url: str) -> None:
    moving.promote("digits", 3)
    with Client(moving_url) as client:
        wait_until(lambda: version_of(client) == 3)
        assert client.predict("pinned", np.ones((1, 4), np.float32)).version == 1


@pytest.mark.bentoml
def test_an_endpoint_becomes_ready_when_its_alias_is_promoted(moving: Project, moving_url: str) -> None:
    with Client(moving_url, timeout_s=20) as client:
        assert not client.ready()
        assert client.status()["endpoints"]["later"]["state"] == "waiting"
        moving.publish("late", affine_model(7.0))
        wait_until(client.ready)
        assert client.predict("later", np.ones((1, 4), np.float32)).outputs["total"].tolist() == [28.0]


def tamper(version: ModelVersion) -> None:
    """Flip one byte of a sealed file."""
    path = version.formats["onnx"].folder / "model.onnx"
    path.parent.chmod(0o755)
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def follow(project: Project, one: Endpoint, now: float = 0.0) -> bool:
    with project.registry() as registry:
        return one.follow(registry, clock=lambda: now)


def test_a_corrupt_version_is_refused_reported_and_the_old_one_goes_on(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    project.publish("digits", affine_model(2.0))
    one = Endpoint("digits", endpoint("digits@champion"), threads=1)
    assert follow(project, one)
    second = project.publish("digits", affine_model(3.0))
    tamper(second)
    with caplog.at_level(logging.ERROR, logger="noa.serving"):
        assert not follow(project, one)
    assert one.require().number == 1
    assert one.failure is not None
    assert (one.failure.number, one.failure.digest) == (2, second.digest)
    assert "model.onnx" in one.failure.reason
    assert str(project.settings.root) not in one.failure.reason
    assert "digits/1 goes on" in caplog.text


def test_the_same_bad_version_is_tried_again_only_after_a_growing_pause(project: Project) -> None:
    project.publish("digits", affine_model(2.0))
    one = Endpoint("digits", endpoint("digits@champion"), threads=1)
    follow(project, one)
    tamper(project.publish("digits", affine_model(3.0)))
    attempts: list[int] = []
    for now in (0.0, 0.5, 1.1, 2.0, 3.2):
        follow(project, one, now)
        attempts.append(0 if one.failure is None else one.failure.attempts)
    assert attempts == [1, 1, 2, 2, 3]


def test_a_good_version_after_a_bad_one_is_swapped_in_and_clears_the_failure(project: Project) -> None:
    project.publish("digits", affine_model(2.0))
    one = Endpoint("digits", endpoint("digits@champion"), threads=1)
    follow(project, one)
    tamper(project.publish("digits", affine_model(3.0)))
    follow(project, one)
    project.publish("digits", affine_model(5.0))
    assert follow(project, one)
    assert (one.require().number, one.failure) == (3, None)


def test_moving_the_alias_back_clears_the_failure(project: Project) -> None:
    project.publish("digits", affine_model(2.0))
    one = Endpoint("digits", endpoint("digits@champion"), threads=1)
    follow(project, one)
    tamper(project.publish("digits", affine_model(3.0)))
    follow(project, one)
    project.promote("digits", 1)
    assert not follow(project, one)
    assert (one.require().number, one.failure) == (1, None)


def test_a_version_that_the_alias_has_left_while_it_was_loaded_is_not_swapped_in(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.publish("digits", affine_model(2.0))
    one = Endpoint("digits", endpoint("digits@champion"), threads=1)
    follow(project, one)
    project.publish("digits", affine_model(3.0))

    def load(*args: object, **kwargs: object) -> object:
        project.promote("digits", 1)
        return load_generation(*args, **kwargs)

    monkeypatch.setattr("noa_serving._endpoint.load_generation", load)
    assert not follow(project, one)
    assert not one.settle(clock=lambda: 0.0)
    assert (one.require().number, one.failure) == (1, None)
    monkeypatch.undo()
    project.promote("digits", 2)
    assert follow(project, one)
    assert one.require().number == 2


def test_a_first_version_that_cannot_be_loaded_leaves_the_endpoint_failed_with_503(project: Project) -> None:
    tamper(project.publish("digits", affine_model(2.0)))
    one = Endpoint("digits", endpoint("digits@champion"), threads=1)
    follow(project, one)
    assert one.state == "failed"
    with pytest.raises(RequestRefusedError, match="could not be loaded") as caught:
        one.require()
    assert caught.value.status == 503


def test_a_missing_format_is_reported_and_the_endpoint_waits(project: Project) -> None:
    project.publish("digits", affine_model(2.0))
    settings = endpoint("digits@champion").model_copy(update={"format": "jax"})
    one = Endpoint("digits", settings, threads=1)
    follow(project, one)
    assert one.failure is not None
    assert "jax" in one.failure.reason


def test_an_unreachable_registry_leaves_serving_alone_and_is_reported(project: Project, tmp_path: Path) -> None:
    project.publish("digits", affine_model(2.0))
    app = build_app(project.settings, digits="digits@champion")
    application = app._application
    hidden = tmp_path / "hidden"
    project.settings.state_dir.rename(hidden)
    project.settings.state_dir.write_text("a file where the folder was")
    broken = Follower(
        list(application.endpoints.values()), lambda: Registry.open(project.settings.registry), poll_interval_s=1
    )
    broken.poll()
    assert broken.problem is not None
    assert application.endpoints["digits"].require().number == 1
    project.settings.state_dir.unlink()
    shutil.move(hidden, project.settings.state_dir)
    broken.poll()
    assert broken.problem is None


def test_an_old_generation_lives_as_long_as_a_request_holds_it(project: Project) -> None:
    project.publish("digits", affine_model(2.0))
    one = Endpoint("digits", endpoint("digits@champion"), threads=1)
    follow(project, one)
    held = one.require()
    project.publish("digits", affine_model(3.0))
    assert follow(project, one)
    x = {"x": np.ones((1, 4), np.float32)}
    assert held.run(x)["total"].tolist() == [8.0]
    assert one.require().run(x)["total"].tolist() == [12.0]


def test_a_database_that_was_put_back_from_a_backup_is_opened_again(
    tmp_path: Path, empty_state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever has the removed file open reads on in it for good: the server never followed again, and said nothing."""
    project = make_project(tmp_path, empty_state)
    project.publish("digits", affine_model(2.0))
    project.publish("digits", affine_model(3.0))
    endpoints = [Endpoint("digits", endpoint("digits@champion"), threads=1)]
    leases = LeaseKeeper(endpoints, project.registry, lease_s=30.0)
    follower = Follower(endpoints, project.registry, poll_interval_s=0.05)
    follower.poll()
    leases.write(0.0)
    assert endpoints[0].require().number == 2
    file = parse_database_url(project.settings.registry.database_url).file
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(file.with_name("backup"))) as target:
        source.backup(target)
    for path in (file, file.with_name(file.name + "-wal"), file.with_name(file.name + "-shm")):
        path.unlink(missing_ok=True)
    with caplog.at_level(logging.WARNING, logger="noa.serving"):
        follower.poll()
        leases.write(0.0)
    assert follower.problem is not None and "not there any more" in follower.problem
    assert leases.problem is not None and "not there any more" in leases.problem
    assert "serving goes on with what is loaded" in caplog.text
    assert endpoints[0].require().number == 2
    assert not file.exists(), "nobody made an empty one in its place"
    file.with_name("backup").rename(file)
    project.promote("digits", 1)
    follower.poll()
    leases.write(0.0)
    assert (follower.problem, leases.problem) == (None, None)
    assert endpoints[0].require().number == 1
    with project.registry() as registry:
        (replica,) = registry.endpoints.live_replicas(name="digits")
        assert replica.generation.number == 1
