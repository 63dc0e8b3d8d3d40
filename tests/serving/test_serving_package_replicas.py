"""Several replicas of a package behind nginx, replaced one by one by those of the next version under load."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from nginx_kit import Nginx
from packaged_kit import Packaged, begin, end, predict
from serving_kit import Project, endpoint

from noa_serving import Client
from noa_serving.packaging import make_package

SCALES = {1: 2.0, 2: 3.0}
ROW = [1.0, 2.0, 3.0, 4.0]


class Load:
    """Asks without a pause, over kept connections or a new one each time; every answer is checked."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._kept, self._kept, self._fresh)]
        self.failures: list[str] = []
        self.answers: list[tuple[float, int]] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def versions_since(self, moment: float) -> set[int]:
        return {version for when, version in list(self.answers) if when > moment}

    def _kept(self) -> None:
        with Client(f"http://127.0.0.1:{self._port}") as client:
            while not self._stopping.is_set():
                begun = time.monotonic()
                try:
                    answer = client.predict("digits", {"x": np.array([ROW], np.float32)})
                    self._check(begun, int(answer.version), answer.outputs["y"].tolist())
                except Exception as exc:  # noqa: BLE001  # whatever it is, the request failed
                    self.failures.append(f"{exc!r} from {exc.__cause__!r}")

    def _fresh(self) -> None:
        while not self._stopping.is_set():
            begun = time.monotonic()
            try:
                status, answer = predict(self._port, ROW)
                assert status == 200, answer
                self._check(begun, int(str(answer["version"])), answer["outputs"]["y"])  # pyright: ignore[reportIndexIssue]
            except Exception as exc:  # noqa: BLE001  # whatever it is, the request failed
                self.failures.append(f"{exc!r} from {exc.__cause__!r}")
            time.sleep(0.002)

    def _check(self, begun: float, version: int, rows: object) -> None:
        assert rows == [[SCALES[version] * value for value in ROW]]
        self.answers.append((begun, version))


@pytest.mark.bentoml
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_replicas_are_replaced_one_by_one_and_no_request_fails(content: Project, tmp_path: Path) -> None:
    packages = {number: tmp_path / f"digits-{number}" for number in SCALES}
    with content.registry() as registry:
        for number, folder in packages.items():
            made = make_package(registry, "digits", endpoint(f"digits/{number}"), content.settings.serving)
            made.write(folder)
    started: list[Packaged] = []

    def start(number: int) -> Packaged:
        started.append(begin(packages[number], tmp_path / f"run{len(started)}"))
        started[-1].wait_ready()
        return started[-1]

    nginx = None
    try:
        replicas = [start(1), start(1)]
        nginx = Nginx(tmp_path / "nginx", [one.port for one in replicas])
        with Load(nginx.port) as load:
            while len(load.answers) < 200 and not load.failures:
                time.sleep(0.01)
            assert load.failures == []
            for place, old in enumerate(list(replicas)):
                replicas[place] = start(2)
                nginx.use([one.port for one in replicas])
                assert old.stop() == 0  # what it began is finished
            replaced = time.monotonic()
            count = len(load.answers)
            while len(load.answers) < count + 200 and not load.failures:
                time.sleep(0.01)
            assert load.failures == [], nginx.log[-2000:]
            assert load.versions_since(0.0) == {1, 2}
            assert load.versions_since(replaced) == {2}
        # One that dies without a word costs nothing either: its requests go to the other.
        with Load(nginx.port) as load:
            while len(load.answers) < 100 and not load.failures:
                time.sleep(0.01)
            end(replicas[0])
            count = len(load.answers)
            while len(load.answers) < count + 100 and not load.failures:
                time.sleep(0.01)
            assert load.failures == [], nginx.log[-2000:]
    finally:
        if nginx is not None:
            nginx.stop()
        for one in started:
            end(one)
