"""The access log: a line for each request, without inputs and keys, and never in the way of a request."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from observe_kit import RECORD, post, total
from serving_kit import Project, affine_model, endpoint, wait_until
from small_disk_kit import may_mount, server_on_small_disk

from noa_serving import Client, ServerProcess, start_server
from noa_serving._access_log import AccessLog, line_of
from noa_serving._off_loop import OffLoop

KEY = "a-key-of-many-characters"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ROWS = {"x": np.ones((1, 4), np.float32)}


def lines_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def with_log(project: Project, path: Path, **serving: object) -> Project:
    update = {"access_log": path, **serving}
    changed = project.settings.serving.model_copy(update=update)
    return Project(settings=project.settings.model_copy(update={"serving": changed}))


@pytest.fixture
def digits(project: Project) -> Project:
    project.publish("digits", affine_model(2.0))
    return project


@pytest.fixture
def logged(digits: Project, tmp_path: Path) -> Iterator[tuple[ServerProcess, str, Path]]:
    """A server that tells of errors only, with a key."""
    path = tmp_path / "logs" / "access.jsonl"
    serving = {"access_log_sample": 0.0, "api_keys": (KEY,)}
    settings = with_log(digits, path).settings
    table = settings.model_dump()
    table["serving"] |= serving
    checked = type(settings).model_validate(table)
    with start_server(checked, endpoints={"digits": endpoint("digits@champion")}) as process:
        yield process, process.wait_ready().url, path


@pytest.mark.bentoml
def test_a_line_tells_who_what_how_long_and_which_version(digits: Project, tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    settings = with_log(digits, path, grpc_port=0).settings
    with start_server(settings, endpoints={"digits": endpoint("digits@champion")}) as process:
        address = process.wait_ready()
        headers = {"traceparent": TRACEPARENT, "x-request-id": "order-7"}
        assert post(address.url, "/predict/digits", headers=headers) == 200
        assert post(address.url, "/predict/digits", headers={**headers, "connection": "close"}) == 200  # through ASGI
        assert post(address.url, "/predict/digits", body="{}") == 400
        assert post(address.url, "/predict/nothing") == 404
        x = triton.InferInput("x", [1, 4], "FP32")
        x.set_data_from_numpy(ROWS["x"])
        assert address.grpc_target is not None
        with triton.InferenceServerClient(address.grpc_target) as client:
            client.infer("digits", [x], headers=headers)
        wait_until(lambda: len(found(path)) == 5, what="five lines")
    first, asgi, bad, unknown, grpc = found(path)
    for line, route in ((first, "predict"), (asgi, "predict"), (grpc, "grpc")):
        assert (line["target"], line["route"], line["status"]) == ("digits", route, 200)
        assert (line["model"], line["version"], line["items"]) == ("digits", 1, 1)
        assert line["digest"].startswith("sha256:")
        assert (line["trace_id"], line["request_id"]) == ("0af7651916cd43dd8448eb211c80319c", "order-7")
        assert line["client"] == "127.0.0.1"
        assert list(line["stages"]) == ["parse", "queue", "batch", "run", "encode"]
        assert 0 < sum(line["stages"].values()) <= line["seconds"]
    assert (bad["status"], bad["target"], "stages" in bad) == (400, "digits", False)
    assert (unknown["status"], unknown["target"], unknown["route"]) == (404, "/predict/nothing", "control")
    assert "3.75" not in path.read_text(), "no input is in it"
    assert path.stat().st_mode & 0o077 == 0


def found(path: Path) -> list[dict[str, Any]]:
    """Return the lines but for those of the tests' own looks at the server."""
    return [line for line in lines_in(path) if not str(line["target"]).startswith(("/v2", "/health", "/metrics"))]


@pytest.mark.bentoml
def test_errors_are_always_told_and_no_key_is(logged: tuple[ServerProcess, str, Path]) -> None:
    _, url, path = logged
    bearer = {"authorization": f"Bearer {KEY}"}
    for _ in range(20):
        assert post(url, "/predict/digits", headers=bearer) == 200
    assert post(url, "/predict/digits", body='{"inputs": "secret-value"}', headers=bearer) == 400
    assert post(url, "/predict/digits", headers={"authorization": "Bearer wrong-secret"}) == 401
    wait_until(lambda: len(found(path)) == 2, what="both errors")
    assert [line["status"] for line in found(path)] == [400, 401]
    assert [line["client"] != "127.0.0.1" for line in found(path)] == [True, False], "the key's id, else the address"
    text = path.read_text()
    assert KEY not in text and "wrong-secret" not in text and "secret-value" not in text


@pytest.mark.bentoml
def test_a_log_that_was_moved_away_is_begun_anew(digits: Project, tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    settings = with_log(digits, path).settings
    with start_server(settings, endpoints={"digits": endpoint("digits@champion")}) as process:
        url = process.wait_ready().url
        assert post(url, "/predict/digits") == 200
        wait_until(lambda: len(found(path)) == 1, what="the first line")
        path.rename(tmp_path / "access.jsonl.1")
        assert post(url, "/predict/digits") == 200
        wait_until(lambda: len(found(path)) == 1, what="a new file")
    assert len(found(tmp_path / "access.jsonl.1")) == 1


@pytest.mark.bentoml
def test_a_full_disk_loses_lines_that_are_counted_and_no_request(digits: Project, tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    settings = with_log(digits, folder / "access.jsonl").settings
    endpoints = {"digits": endpoint("digits@champion")}
    with server_on_small_disk(settings, endpoints, folder, tmp_path / "server.log") as (process, seen):
        address = process.command.read_address()
        assert address is not None
        sent = 0
        with Client(address.url) as client:

            def lost() -> float:
                return total(client.metrics(), "noa_records_lost_total", log="access_log")

            deadline = time.monotonic() + 60
            while not lost():
                assert time.monotonic() < deadline, "the disk was never full"
                for _ in range(50):
                    client.predict("digits", ROWS)
                    sent += 1
            for _ in range(20):
                client.predict("digits", ROWS)
            if may_mount():
                (seen / "access.jsonl").unlink()
                before = lost()
                client.predict("digits", ROWS)
                wait_until(lambda: bool(lines_in(seen / "access.jsonl")), what="a line where there is room again")
                assert lost() >= before
    assert "access_log: what requests leave there is lost" in (tmp_path / "server.log").read_text()


@pytest.mark.bentoml
def test_a_pipe_in_its_place_holds_nothing_up(digits: Project, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    settings = with_log(digits, tmp_path / "pipe").settings
    with start_server(settings, endpoints={"digits": endpoint("digits@champion")}) as process:
        with Client(process.wait_ready().url) as client:
            for _ in range(3):
                client.predict("digits", ROWS)
            wait_until(
                lambda: total(client.metrics(), "noa_records_lost_total", log="access_log") >= 3, what="the loss"
            )
        assert process.stop() == 0


def test_what_is_not_known_is_left_out_of_a_line() -> None:
    assert line_of(RECORD)["stages"] == {"parse": 1e-6, "queue": 2e-6, "batch": 3e-6, "run": 4e-6, "encode": 5e-6}
    bare = line_of(RECORD._replace(version=None, stages=None, trace_id=None, request_id=None))
    assert list(bare) == ["time", "target", "route", "status", "seconds", "client", "worker"]


def test_a_line_that_was_cut_by_a_full_disk_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AccessLog(tmp_path / "access.jsonl")
    assert log.write([RECORD]) == 0
    whole, size = os.write, len((tmp_path / "access.jsonl").read_bytes())
    monkeypatch.setattr(os, "write", lambda descriptor, data: whole(descriptor, data[: size + 10]))
    assert log.write([RECORD, RECORD, RECORD]) == 2
    monkeypatch.setattr(os, "write", whole)
    assert log.write([RECORD]) == 0
    rows = (tmp_path / "access.jsonl").read_text().splitlines()
    assert len(rows) == 4
    assert [json.loads(row)["status"] for row in (rows[0], rows[1], rows[3])] == [200, 200, 200]


def test_a_queue_that_is_full_loses_and_counts_and_never_waits() -> None:
    gate, written = threading.Event(), list[int]()

    def write(items: Sequence[int]) -> int:
        if items:
            gate.wait(20)
        written.extend(items)
        return 0

    queue = OffLoop("test", write, most=10, most_bytes=1000)
    queue.start()
    queue.put(0)
    wait_until(lambda: not queue._queue, what="the thread to stand still")
    started = time.monotonic()
    for number in range(1, 31):
        queue.put(number)
    queue.put(31, 2000)
    assert time.monotonic() - started < 1.0
    assert (queue.offered, queue.lost) == (32, 21)
    gate.set()
    queue.stop()
    assert written == list(range(11))


def test_a_writer_that_fails_goes_on_with_the_next() -> None:
    answers = iter([OSError("full"), 1, 0])
    written: list[int] = []

    def write(items: Sequence[int]) -> int:
        if not items:
            return 0
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        written.extend(items)
        return answer

    queue = OffLoop("test", write, most_bytes=100)
    queue.start()
    for number in range(3):
        queue.put(number, 100)
        wait_until(lambda number=number: queue._taken_bytes == 100 * (number + 1), what="the queue to be empty")
    queue.stop()
    assert (queue.offered, queue.lost, written) == (3, 2, [1, 2])
