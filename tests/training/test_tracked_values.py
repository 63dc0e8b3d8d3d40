"""What a killed job did not write into its run comes back from its log of events, and nothing else is read."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from noa_training import Epoch, Step, Warned, tracked_values
from noa_training.events import JobEvent
from noa_training.tracked_values import TrackedValues, first_moment, read_missing, values_of


def step(number: int) -> Step:
    return Step(
        job_id="j", at=1000.0 + number, step=number, epoch=1, total_steps=9, loss=0.5 * number, learning_rate=0.1,
        samples_per_s=9.0, eta_s=2.0,
    )  # fmt: skip


def test_a_best_epoch_is_tracked_as_such() -> None:
    epoch = Epoch(job_id="j", at=2.5, step=7, epoch=1, epochs=2, metrics={"loss": 0.5, "accuracy": 1.0}, is_best=True)
    expected = {"validation.loss": 0.5, "validation.accuracy": 1.0, "best.loss": 0.5, "best.accuracy": 1.0}
    assert values_of(epoch) == TrackedValues(7, 2500, expected)
    worse = Epoch(job_id="j", at=2.5, step=7, epoch=1, epochs=2, metrics={"loss": 0.5}, is_best=False)
    assert values_of(worse) == TrackedValues(7, 2500, {"validation.loss": 0.5})
    assert values_of(Warned(job_id="j", at=1.0, subject="s", message="m")) is None


def lines(count: int, noise: int) -> bytes:
    """A log of steps, with warnings of several lengths between them."""
    found: list[JobEvent] = []
    for number in range(count):
        if (number * 7 + noise) % 3 == 0:
            found.append(Warned(job_id="j", at=1.0, subject="s", message="ü" * (number * noise % 97)))
        found.append(step(number))
    return "".join(event.to_json() + "\n" for event in found).encode()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    count=strategies.integers(0, 40),
    known=strategies.integers(0, 40),
    block=strategies.integers(40, 3000),
    noise=strategies.integers(0, 9),
)
def test_of_any_log_all_that_is_missing_comes_back_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, known: int, block: int, noise: int
) -> None:
    monkeypatch.setattr(tracked_values, "_BLOCK_BYTES", block)
    log = tmp_path / "events.jsonl"
    log.write_bytes(lines(count, noise))
    asked: list[int] = []

    def is_known(values: TrackedValues) -> bool:
        asked.append(values.step)
        return values.step < known

    read = [one.step for part in read_missing(log, is_known) for one in part]
    assert read == list(range(count))[len(range(count)) - len(read) :], "a whole end of the log, in order"
    assert set(range(min(known, count), count)) <= set(read)
    assert asked == sorted(asked, reverse=True)
    if count and known == 0:
        assert read == list(range(count))


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracked_values, "_BLOCK_BYTES", 2000)
    log = tmp_path / "events.jsonl"
    log.write_bytes(lines(2000, 1))
    read = [one.step for part in read_missing(log, lambda values: values.step < 1990) for one in part]
    assert read[-1] == 1999 and len(read) < 40


def test_lines_that_are_torn_or_no_events_are_left_out(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    good = [step(number).to_json().encode() + b"\n" for number in range(3)]
    log.write_bytes(good[0] + b"\n" + b'{"kind": "step", "job' + good[1] + b"\xff\xfe\n" + good[2] + b'{"kind"')
    read = [one.step for part in read_missing(log, lambda _: False) for one in part]
    assert read == [0, 2]
    assert first_moment(log) == 1000.0
    log.write_bytes(b"")
    assert list(read_missing(log, lambda _: False)) == []
    assert first_moment(log) is None and first_moment(tmp_path / "none") is None
    assert list(itertools.chain(read_missing(tmp_path / "none", lambda _: False))) == []
