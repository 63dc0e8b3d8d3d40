"""The lane in which shadows compute: bounded, behind what answers, and harmed by no arm."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_kit import wait_until

from noa.settings import VerdictSettings
from noa.signatures import Signature, TensorSpec
from noa_serving._comparing import Comparison, Pair, Rule
from noa_serving._crash_mark import CrashMark
from noa_serving._generation import Generation, build_generation
from noa_serving._shadow_lane import Match, ShadowLane, is_lasting, match_of
from noa_serving._shadow_pages import Settled, ShadowPages
from noa_serving._verdict import judge

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 2)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 2)),),
)
RULES = {"y": Rule("tolerance", 1e-4, 1e-3)}


@dataclass(frozen=True)
class _Model:
    compute: Run
    signature: Signature = SIGNATURE

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.compute(inputs)


def _generation(run: Run, number: int) -> Generation:
    return build_generation(
        _Model(run),
        endpoint="digits",
        model="digits",
        number=number,
        digest=f"sha256:{number:064x}",
        format="onnx",
        example={"x": np.ones((2, 2), np.float32)},
    )


def _double(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"y": inputs["x"] * np.float32(2.0)}


def _match(arm: Run, number: int = 2) -> Match:
    """Compare `_double` with `arm`, which is warmed as `_double` would be."""
    calls: list[Run] = [_double]

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return calls[0](inputs)

    main, other = _generation(_double, 1), _generation(run, number)
    calls[0] = arm
    return match_of("digits", "candidate", main, other, rules=RULES, most_ratio=1.5)


@contextmanager
def _lane(
    *matches: Match,
    has_room: Callable[[], bool] = lambda: True,
    mark: CrashMark | None = None,
    most: int = 256,
    most_bytes: int = 1 << 20,
) -> Generator[ShadowLane]:
    lane = ShadowLane(has_room, mark=mark, most=most, most_bytes=most_bytes)
    lane.open_only([one.pair for one in matches])
    lane.start()
    try:
        yield lane
    finally:
        lane.stop(0.1)


def _offer(lane: ShadowLane, match: Match, count: int = 1, rows: int = 1) -> None:
    for index in range(count):
        x = np.full((rows, 2), index, np.float32)
        lane.offer(match, {"x": x}, _double({"x": x}), rows)


def _of(lane: ShadowLane, match: Match) -> Comparison:
    return lane.counts().get(match.pair, Comparison())


def test_requests_are_computed_once_more_and_compared() -> None:
    match = _match(lambda inputs: {"y": np.where(inputs["x"] >= 3, 7.0, inputs["x"] * 2).astype(np.float32)})
    with _lane(match) as lane:
        _offer(lane, match, 6)
        wait_until(lambda: _of(lane, match).compared == 6)
        counts = _of(lane, match)
    assert counts.agreed == 3.0
    assert (counts.offered, counts.dropped, counts.failed) == (6, 0, 0)
    assert counts.timed == 2
    assert counts.outputs["y"].difference_max == 3.0
    assert match.main.statistics.run.count == 0


def test_runs_for_comparing_are_in_no_statistics_of_the_main_version() -> None:
    main, arm = _generation(_double, 1), _generation(_double, 2)
    before = main.statistics.run.count
    match = match_of("digits", "candidate", main, arm, rules=RULES, most_ratio=1.5)
    with _lane(match) as lane:
        _offer(lane, match, 8)
        wait_until(lambda: _of(lane, match).timed == 2)
    assert main.statistics.run.count == before


def test_what_an_arm_raises_is_counted_and_said_without_its_text() -> None:
    def fail(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise ValueError(f"/secret/path {inputs}")

    match = _match(fail)
    with _lane(match) as lane:
        _offer(lane, match, 3)
        wait_until(lambda: _of(lane, match).failed == 3)
        counts = _of(lane, match)
    assert counts.problem == "the server failed (ValueError)"
    assert (counts.compared, counts.tried) == (0, 3)


def test_a_full_queue_drops_and_counts_and_never_waits() -> None:
    release = threading.Event()

    def stand_still(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert release.wait(20.0)
        return _double(inputs)

    match = _match(stand_still)
    with _lane(match, most=4) as lane:
        _offer(lane, match)
        wait_until(lambda: lane.waiting == 0)
        started = time.perf_counter()
        _offer(lane, match, 10)
        assert time.perf_counter() - started < 1.0
        assert lane.waiting == 4
        counts = _of(lane, match)
        assert (counts.offered, counts.dropped) == (11, 6)
        release.set()
        wait_until(lambda: _of(lane, match).compared == 5)


def test_the_queue_is_bounded_in_bytes_and_what_is_too_large_is_not_copied() -> None:
    match = _match(_double)
    with _lane(match, has_room=lambda: False, most_bytes=1000) as lane:
        _offer(lane, match, 3, rows=25)  # 400 bytes each, inputs and outputs
        assert lane.waiting == 2
        _offer(lane, match, 1, rows=1)
        assert lane.waiting == 3
        assert _of(lane, match).dropped == 1


def test_nothing_is_computed_while_there_is_no_room() -> None:
    room = threading.Event()
    match = _match(_double)
    with _lane(match, has_room=room.is_set) as lane:
        _offer(lane, match, 3)
        time.sleep(0.2)
        assert _of(lane, match).tried == 0
        room.set()
        wait_until(lambda: _of(lane, match).compared == 3)


def test_an_arm_that_hangs_is_given_up_and_others_go_on() -> None:
    release = threading.Event()

    def hang(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        release.wait(20.0)
        return _double(inputs)

    bad, good = _match(hang), _match(_double, number=3)
    with _lane(bad, good) as lane:
        _offer(lane, bad, 3)
        wait_until(lambda: lane.waiting == 2)
        lane.watch(30.0)
        assert _of(lane, bad).hangs == 0
        time.sleep(0.06)
        lane.watch(0.05)
        assert not lane.is_open(bad.pair)
        _offer(lane, good, 2)
        wait_until(lambda: _of(lane, good).compared == 2)
        _offer(lane, bad, 1)
        assert lane.waiting == 0
        release.set()
        time.sleep(0.1)
        counts = _of(lane, bad)
        assert (counts.hangs, counts.failed, counts.compared) == (1, 1, 0)
        assert judge(counts, VerdictSettings()).reason == "it hung: it did not compute a request within 0.05 s"


def test_a_pair_that_is_not_open_is_dropped_even_without_room() -> None:
    match = _match(_double)
    with _lane(match, has_room=lambda: False) as lane:
        _offer(lane, match, 5)
        lane.open_only(())
        wait_until(lambda: lane.waiting == 0)
        assert _of(lane, match).tried == 0


def test_inputs_are_copied_only_where_somebody_else_owns_their_memory() -> None:
    body = np.arange(8, dtype=np.float32).tobytes()
    shared = bytearray(body)
    lasting = [np.frombuffer(body, np.float32).reshape(4, 2), np.ones((2, 2)), np.ones((4, 2))[1:]]
    assert all(map(is_lasting, lasting))
    assert is_lasting(np.frombuffer(memoryview(body)[8:], np.float32))
    assert not is_lasting(np.frombuffer(shared, np.float32))
    assert not is_lasting(np.frombuffer(memoryview(shared), np.float32)[2:])


def test_a_worker_that_dies_while_an_arm_computes_tells_the_next_one(tmp_path: Path) -> None:
    match = _match(_double)
    mark = CrashMark(tmp_path / "mark")
    mark.set(json.dumps(match.pair).encode())
    lane = ShadowLane(lambda: True, mark=CrashMark(tmp_path / "mark"))
    assert _of(lane, match).deaths == 1
    assert CrashMark(tmp_path / "mark").left_by_another == ""


def test_a_worker_that_ends_as_asked_leaves_no_mark(tmp_path: Path) -> None:
    match = _match(_double)
    with _lane(match, mark=CrashMark(tmp_path / "mark")) as lane:
        _offer(lane, match, 4)
        wait_until(lambda: _of(lane, match).compared == 4)
    assert CrashMark(tmp_path / "mark").left_by_another == ""


@given(st.text(max_size=3000))
def test_a_mark_is_read_as_it_was_set_and_damage_harms_nobody(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mark"
        CrashMark(path).set(text.encode())
        found = CrashMark(path)
        assert found.left_by_another.encode()[:4000] == text.encode()[:4000] or len(text.encode()) > 4000
        CrashMark(path).set(text.encode())
        assert ShadowLane(lambda: True, mark=CrashMark(path)).waiting == 0


def test_workers_add_up_and_one_that_is_replaced_goes_on(tmp_path: Path) -> None:
    pair = Pair("digits", "candidate", 1, "sha256:a", 2, "sha256:b")
    first, second = ShadowPages(tmp_path, 0, 2), ShadowPages(tmp_path, 1, 2)
    first.write_own({pair: Comparison(compared=3, agreed=2.5)})
    second.write_own({pair: Comparison(compared=4, agreed=4.0)})
    total = first.sum_up({pair: Comparison(compared=3, agreed=2.5)})
    assert (total[pair].compared, total[pair].agreed) == (7, 6.5)
    assert first.read_own()[pair].compared == 3
    (tmp_path / "shadow-1.json").write_text('[{"pair": [1], "counts": {}}, 7')
    assert first.sum_up({}) == {}


def test_decisions_are_read_as_they_were_written(tmp_path: Path) -> None:
    pair = Pair("digits", "candidate", 1, "sha256:a", 2, "sha256:b")
    counts = Comparison(compared=200, agreed=100.0)
    settled = Settled(
        pair=pair, verdict=judge(counts, VerdictSettings()), counts=counts.describe(), decided_at=5.0, done="told"
    )
    pages = ShadowPages(tmp_path, 0, 1)
    pages.write_decisions({pair: settled})
    assert pages.read_decisions() == {pair: settled}


def test_a_full_disk_is_told_once_and_harms_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pages = ShadowPages(tmp_path / "gone", 0, 1)
    pages.write_own({})
    pages.write_own({})
    assert len(caplog.records) == 1
