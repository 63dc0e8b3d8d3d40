"""The workers of one server agree on what they serve: on the board, apart from any server process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serving_kit import Project, affine_model, endpoint, wait_until

from noa.errors import ConflictError, ServiceError
from noa.settings import EndpointSettings
from noa_serving._application import Application
from noa_serving._board import create_board, open_board, private_board
from noa_serving._catch_up import catch_up
from noa_serving._crew import SILENT_S, Ballot, Content, Crew, join_crew
from noa_serving._endpoint import Endpoint
from noa_serving._follower import Follower
from noa_serving._grpc_server import GrpcServer
from noa_serving._memory import free_bytes, require_memory
from noa_serving._traffic import make_endpoints

ONE, TWO = Content(1, "sha256:1"), Content(2, "sha256:2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "server"
    place.mkdir()
    create_board(place, size=2, endpoints=1)
    return place


def crew_of(folder: Path) -> Crew:
    return join_crew(folder, ["digits"], size=2, timeout_s=60)


def agree(crew: Crew, content: Content, now: float = 0.0) -> None:
    ballot, _ = crew.open_ballot("digits", content, now)
    crew.vote("digits", ballot.id)
    crew.decide("digits", now)


def serving(folder: Path, content: Content = ONE) -> tuple[Crew, Crew]:
    """Return two workers that both serve `content`."""
    pair = crew_of(folder), crew_of(folder)
    agree(pair[0], content)
    assert all(crew.join("digits", content) for crew in pair)
    return pair


def one_has_voted(folder: Path) -> tuple[Crew, Crew, Ballot]:
    """Return two workers of which the first has opened a ballot on `TWO` and voted, and the ballot."""
    a, b = serving(folder)
    ballot, _ = a.open_ballot("digits", TWO, 0.0)
    a.vote("digits", ballot.id)
    return a, b, ballot


def test_what_is_withdrawn_is_agreed_no_more_unless_something_else_is(folder: Path) -> None:
    a, b = serving(folder)
    a.withdraw("digits", TWO)
    assert a.agreement("digits").content == ONE, "it was agreed meanwhile"
    assert not a.served
    assert a.others_serve("digits")
    ballot, _ = b.open_ballot("digits", TWO, 0.0)
    a.withdraw("digits", ONE)
    left = b.agreement("digits")
    assert (left.content, left.ballot) == (None, ballot), "what is being voted on goes on"
    b.withdraw("digits", None)
    b.vote("digits", ballot.id)
    assert b.decide("digits", 0.0).content == TWO
    assert b.join("digits", TWO)
    assert not a.others_serve("nothing")


def test_an_arm_begins_when_all_workers_that_are_up_have_it(folder: Path) -> None:
    place = folder / "arms"
    place.mkdir()
    create_board(place, size=3, endpoints=2)
    a, b = (join_crew(place, ["digits", "digits~candidate"], size=3, timeout_s=60) for _ in range(2))
    ballot, _ = a.open_ballot("digits~candidate", ONE, 0.0)
    a.vote("digits~candidate", ballot.id)
    assert a.decide("digits~candidate", 1.0).content is None, "the other one serves nothing yet, and is waited for"
    b.vote("digits~candidate", ballot.id)
    assert a.decide("digits~candidate", 1.0).content == ONE
    late, _ = a.open_ballot("digits~candidate", TWO, 2.0)
    a.vote("digits~candidate", late.id)
    b.close()
    assert a.decide("digits~candidate", 3.0).content == TWO, "one that has died is not"


def test_a_worker_does_not_wait_for_an_arm_that_it_cannot_load(project: Project, folder: Path) -> None:
    names = ["digits", "digits~candidate"]
    place = folder / "arms"
    place.mkdir()
    create_board(place, size=2, endpoints=2)
    other, mine = (join_crew(place, names, size=2, timeout_s=60) for _ in range(2))
    ballot, _ = other.open_ballot("digits~candidate", TWO, 0.0)
    for crew in (other, mine):
        crew.vote("digits~candidate", ballot.id)
    other.decide("digits~candidate", 0.0)
    assert other.join("digits~candidate", TWO)
    project.publish("digits", affine_model(2.0))
    rule = EndpointSettings.model_validate(
        {"model": "digits@champion", "arms": {"candidate": {"model": "digits@candidate", "share": 0.1}}}
    )
    (digits,) = make_endpoints({"digits": rule}, threads=1, crew=mine)
    follower = Follower([digits], project.registry, poll_interval_s=1)
    follower.poll()
    started = time.monotonic()
    asyncio.run(asyncio.wait_for(catch_up([digits], mine, patience_s=0.2), 20))
    assert digits.current is not None
    assert time.monotonic() - started >= 0.2, "for a moment it does"


def test_a_value_survives_a_writer_that_dies_in_the_middle() -> None:
    board = private_board(endpoints=1)
    cell = board.cells[0]
    cell.write(b"first")
    cell.write(b"second")
    number, _ = cell.read()
    start = cell._halves[(number + 1) % 2]
    board._memory[start + 16 : start + 20] = b"torn"
    assert cell.read() == (number, b"second")
    board._memory[start : start + 8] = (number + 1).to_bytes(8, "little")
    assert cell.read() == (number, b"second"), "a half whose checksum is wrong does not count"
    cell.write(b"third")
    assert cell.read()[1] == b"third"


def test_a_value_that_is_too_large_is_refused() -> None:
    with pytest.raises(ServiceError, match="too large"):
        private_board(endpoints=1).cells[0].write(bytes(1 << 20))


def test_a_place_is_free_again_when_its_process_is_killed_and_there_are_no_more_places_than_workers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom noa_serving._board import open_board\n"
        "print(open_board(Path(sys.argv[1]), size=2, endpoints=1).slot, flush=True)\ntime.sleep(600)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "0\n"
    mine = open_board(folder, size=2, endpoints=1)
    assert (mine.slot, mine.is_live(0)) == (1, True)
    monkeypatch.setattr("noa_serving._board._CLAIM_PATIENCE_S", 0.05)
    with pytest.raises(ConflictError, match="at most 2 workers"):
        open_board(folder, size=2, endpoints=1)
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    other.stdout.close()
    assert not mine.is_live(0)
    again = open_board(folder, size=2, endpoints=1)
    assert (again.slot, mine.is_live(0)) == (0, True)
    mine.close()
    again.close()


def test_the_lock_of_a_process_that_is_killed_is_free(folder: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom noa_serving._board import open_board\n"
        "board = open_board(Path(sys.argv[1]), size=2, endpoints=1)\n"
        "with board.locked():\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    other.stdout.readline()
    crew = crew_of(folder)
    with pytest.raises(ServiceError, match="does not let go"):
        crew.open_ballot("digits", ONE, 0.0)
    other.kill()
    other.wait()
    other.stdout.close()
    agree(crew, ONE)
    assert crew.agreement("digits").content == ONE
    crew.close()


def test_a_version_is_agreed_on_when_the_last_worker_has_it_ready(folder: Path) -> None:
    a, b = serving(folder)
    ballot, is_new = a.open_ballot("digits", TWO, 0.0)
    assert is_new
    assert b.open_ballot("digits", TWO, 0.0) == (ballot, False)
    a.vote("digits", ballot.id)
    assert a.decide("digits", 0.0).content == ONE
    b.vote("digits", ballot.id)
    assert a.decide("digits", 0.0).content == TWO
    assert not b.join("digits", ONE), "what is agreed has moved on"
    assert a.join("digits", TWO)
    assert not a.all_serve("digits")
    assert b.join("digits", TWO)
    assert a.all_serve("digits")
    a.close()
    b.close()


def test_one_worker_that_cannot_load_a_version_ends_the_ballot_for_all(folder: Path) -> None:
    a, b, ballot = one_has_voted(folder)
    b.vote("digits", ballot.id, "no room")
    found = a.decide("digits", 0.0)
    assert found.content == ONE
    assert found.ballot is not None
    assert found.ballot.reason == "worker 1: no room"
    assert b.open_ballot("digits", TWO, 0.5) == (found.ballot, False)
    assert b.open_ballot("digits", TWO, 1.0)[1], "after a pause it is tried again"
    a.close()
    b.close()


def test_votes_for_a_version_are_void_once_the_alias_has_moved_on(folder: Path) -> None:
    a, b = serving(folder)
    old, _ = a.open_ballot("digits", TWO, 0.0)
    a.vote("digits", old.id)
    new, _ = b.open_ballot("digits", Content(3, "sha256:3"), 0.0)
    b.vote("digits", old.id)
    assert a.decide("digits", 0.0).content == ONE
    assert new.id != old.id
    a.close()
    b.close()


def test_a_worker_that_dies_does_not_hold_up_the_others(folder: Path) -> None:
    a, b, _ = one_has_voted(folder)
    assert a.decide("digits", 0.0).content == ONE
    b.close()
    assert a.decide("digits", 0.0).content == TWO
    a.close()


def test_a_worker_that_stands_still_does_not_hold_up_the_others(folder: Path) -> None:
    a, b, _ = one_has_voted(folder)
    start = b._board._beats[1]
    b._board._memory[start : start + 8] = bytes(8)  # its last beat was when the machine started
    assert a._board.silent_s(1) > SILENT_S
    assert a.decide("digits", 0.0).content == TWO
    assert a.join("digits", TWO)
    assert a.shortfall() == "worker 1 of 2 is silent"
    a.close()
    b.close()


def test_a_worker_that_takes_too_long_is_named(folder: Path) -> None:
    a, b, ballot = one_has_voted(folder)
    assert a.decide("digits", 59.0).ballot == ballot
    found = a.decide("digits", 61.0).ballot
    assert found is not None
    assert found.reason == "worker 1 did not have it ready within 60 s"
    a.close()
    b.close()


def test_ready_is_first_all_workers_and_then_those_that_take_connections(folder: Path) -> None:
    a = crew_of(folder)
    agree(a, ONE)
    a.join("digits", ONE)
    a.accept()
    assert not a.is_ready("digits"), "the other worker is not up yet"
    b = crew_of(folder)
    assert not a.is_ready("digits")
    b.join("digits", ONE)
    b.accept()
    assert a.is_ready("digits")
    assert b.is_ready("digits")
    assert a.shortfall() is None
    b.close()
    assert a.is_ready("digits"), "the one that is left answers for all"
    assert a.shortfall() == "worker 1 of 2 is dead"
    again = crew_of(folder)
    assert a.is_ready("digits")
    assert a.shortfall() == "worker 1 of 2 is starting"
    again.accept()
    assert not a.is_ready("digits"), "connections would reach a worker that serves nothing"
    a.close()
    again.close()


def test_rest_and_grpc_say_ready_for_the_whole_server_and_what_it_lacks(project: Project, folder: Path) -> None:
    project.publish("digits", affine_model(2.0))
    one = Endpoint("digits", endpoint("digits@champion"), threads=1, crew=crew_of(folder))
    follower = Follower([one], project.registry, poll_interval_s=1)
    follower.poll()
    application = Application(project.settings.serving, [one], follower, crew=one.crew)
    grpc = GrpcServer(application, host="127.0.0.1", port=0)

    def ask(path: str) -> tuple[int, dict[str, object]]:
        answer = application.answer("GET", path, {}, b"")
        return answer.status, json.loads(answer.body)

    def statuses() -> list[int]:
        paths = ("/health/startup", "/v2/health/ready", "/ping", "/v2/models/digits/ready", "/v2/health/live")
        return [ask(path)[0] for path in paths]

    assert statuses() == [503, 503, 503, 503, 200], "this worker answers, the other one is not up yet"
    assert ask("/v2/health/ready")[1]["degraded"] == "worker 1 of 2 is not up yet"
    assert [grpc._health(name) for name in ("", "digits")] == ["NOT_SERVING", "NOT_SERVING"]
    other = crew_of(folder)
    content = other.agreement("digits").content
    assert content is not None
    other.join("digits", content)
    other.mark_tried()
    assert statuses() == [200] * 5
    assert [grpc._health(name) for name in ("", "digits")] == ["SERVING", "SERVING"]
    assert ask("/v2/health/ready")[1] == {"ready": True, "live": True}
    other.close()
    assert statuses() == [200] * 5
    assert ask("/v2/health/ready")[1]["degraded"] == "worker 1 of 2 is dead"
    status = ask("/status")[1]
    assert (status["ready"], status["degraded"]) == (True, "worker 1 of 2 is dead")
    assert status["workers"] == [
        {"worker": 0, "state": "serving", "pid": os.getpid(), "versions": {"digits": 1}},
        {"worker": 1, "state": "dead"},
    ]
    application.close()
    one.crew.close()


def test_started_is_when_every_worker_has_tried_every_endpoint_once(folder: Path) -> None:
    a, b = crew_of(folder), crew_of(folder)
    a.mark_tried()
    assert not a.is_started()
    b.mark_tried()
    assert a.is_started()
    b.close()
    assert a.is_started(), "it does not begin anew when a worker dies"
    a.close()


def test_a_version_is_loaded_by_all_swapped_in_by_all_and_then_announced(project: Project, folder: Path) -> None:
    project.publish("digits", affine_model(2.0))
    pair = [Endpoint("digits", endpoint("digits@champion"), threads=1, crew=crew_of(folder)) for _ in range(2)]
    with project.registry() as registry:
        assert [one.follow(registry) for one in pair] == [True, True]
        project.publish("digits", affine_model(3.0))
        assert not pair[0].follow(registry)
        assert (pair[0].require().number, pair[0].is_unsettled) == (1, True)
        assert pair[1].follow(registry)
        assert pair[1].announced is not None
        assert pair[1].announced.number == 1, "the other one still serves version 1"
        assert pair[0].settle()
        assert pair[1].settle() is False
        assert [(one.require().number, one.announced and one.announced.number) for one in pair] == [(2, 2), (2, 2)]
        assert not any(one.is_unsettled for one in pair)
    for one in pair:
        one.crew.close()


def test_a_worker_that_comes_back_serves_what_is_agreed_and_not_what_was_refused(
    project: Project, folder: Path
) -> None:
    project.publish("digits", affine_model(2.0))
    pair = [Endpoint("digits", endpoint("digits@champion"), threads=1, crew=crew_of(folder)) for _ in range(2)]
    with project.registry() as registry:
        for one in pair:
            one.follow(registry)
        second = project.publish("digits", affine_model(3.0))
        (second.formats["onnx"].folder / "model.onnx").chmod(0o644)
        (second.formats["onnx"].folder / "model.onnx").write_bytes(b"not what was sealed")
        assert not any(one.follow(registry) for one in pair)
        for one in pair:
            assert one.failure is not None
            assert "model.onnx" in one.failure.reason
            assert one.failure.reason.startswith("worker ")
        pair[1].crew.close()
        again = Endpoint("digits", endpoint("digits@champion"), threads=1, crew=crew_of(folder))
        assert again.follow(registry)
        assert again.require().number == 1
        project.publish("digits", affine_model(5.0))
        assert not again.follow(registry)
        assert pair[0].follow(registry)
        wait_until(again.settle)
        assert (again.require().number, pair[0].require().number) == (3, 3)
    again.crew.close()
    pair[0].crew.close()


def test_a_version_that_does_not_fit_into_memory_is_refused_by_name_and_nothing_is_loaded(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.publish("digits", affine_model(2.0))
    one = Endpoint("digits", endpoint("digits@champion"), threads=1)
    with project.registry() as registry:
        one.follow(registry)
        project.publish("digits", affine_model(3.0))
        monkeypatch.setattr("noa_serving._memory.free_bytes", lambda: 100)
        assert not one.follow(registry)
    assert one.require().number == 1
    assert one.failure is not None
    assert "not enough memory for `digits/2`" in one.failure.reason


def test_free_memory_is_that_of_the_machine_or_of_the_container_where_that_is_less(tmp_path: Path) -> None:
    machine = tmp_path / "meminfo"
    machine.write_text("MemTotal: 4096 kB\nMemAvailable: 2048 kB\n")
    assert free_bytes(machine=machine, container=tmp_path) == 2 << 20
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1\n")
    assert free_bytes(machine=machine, container=tmp_path) == 2 << 20
    (tmp_path / "memory.max").write_text("1048576\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 500000\n")
    assert free_bytes(machine=machine, container=tmp_path) == 548576
    assert free_bytes(machine=tmp_path / "no", container=tmp_path / "no") is None
    with pytest.raises(ServiceError, match=r"`big/1`.*in each of 3 workers"):
        require_memory(1 << 60, workers=3, reference="big/1")
