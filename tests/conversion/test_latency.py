"""Latency and size of a format, on named hardware."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from noa.digests import build_manifest
from noa.errors import InvalidInputError, SignatureError
from noa.signatures import Signature
from noa_conversion import measure_performance
from noa_conversion.latency import _Timing  # pyright: ignore[reportPrivateUsage]  # a clock that a test moves
from noa_conversion.latency import measure_performance as measure_within
from noa_registry import LatencyEvidence, SizeEvidence
from noa_registry.evidence import FEWEST_RUNS, BatchLatency, check_evidence

if TYPE_CHECKING:
    from noa.formats import Runnable


def samples_of(zoo: Any, folder: Path, rows: int) -> dict[str, np.ndarray]:
    return zoo.draw_inputs(Signature.load(folder), rows)


@pytest.mark.parametrize("format_name", ["onnx", "torch"])
def test_latency_names_bytes_machine_and_runtime(zoo: Any, format_name: str) -> None:
    folder = zoo.folder("torch", "image", format_name)
    facts = measure_performance(format_name, folder, samples_of(zoo, folder, 3), threads=1)
    for fact in facts:
        check_evidence(fact)
        assert (fact.subject, fact.digest) == (format_name, build_manifest(folder).digest)
    latency, size = LatencyEvidence.from_evidence(facts[0]), SizeEvidence.from_evidence(facts[1])
    assert [row.batch for row in latency.batches] == [1, 32]
    for row in latency.batches:
        assert row.max_ms is not None
        assert row.cpu_share is not None
        assert 0 < row.p50_ms <= row.p99_ms <= row.max_ms
        assert row.runs >= 5
        assert row.cpu_share > 0
    machine = latency.hardware
    assert machine.threads == 1
    assert machine.cores >= 1
    assert machine.cpu
    assert machine.runtime.startswith({"onnx": "onnxruntime ", "torch": "torch "}[format_name])
    assert size.size_bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_measurement_ends_when_its_time_is_up(zoo: Any) -> None:
    folder = zoo.folder("torch", "image", "onnx")
    facts = measure_within("onnx", folder, samples_of(zoo, folder, 3), batches=(1,), seconds_per_batch=0.0)
    (row,) = LatencyEvidence.from_evidence(facts[0]).batches
    assert row.runs == 5
    assert row.p99_ms >= row.p50_ms


def test_a_tail_that_is_judged_is_measured_until_the_runs_bound_it(zoo: Any) -> None:
    folder = zoo.folder("torch", "image", "onnx")
    facts = measure_within(
        "onnx", folder, samples_of(zoo, folder, 3), batches=(1, 2), seconds_per_batch=0.0, tails=(2,), tail_seconds=60
    )
    rows = LatencyEvidence.from_evidence(facts[0]).batches
    assert [(row.batch, row.runs) for row in rows] == [(1, 5), (2, FEWEST_RUNS["p99"])]


class _Scripted:
    """Takes as long as it is told to, by a clock that only it moves; it computes for `share` of that."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times_ms: list[float], share: float = 1.0) -> None:
        self.now, self.cpu, self.calls = 0, 0, 0
        self._times, self._share = times_ms, share
        monkeypatch.setattr("noa_conversion.latency.time.perf_counter_ns", lambda: self.now)
        monkeypatch.setattr("noa_conversion.latency.time.process_time_ns", lambda: self.cpu)

    def run(self, inputs: object) -> dict[str, np.ndarray]:
        taken = int(self._times[self.calls % len(self._times)] * 1e6)
        self.calls += 1
        self.now += taken
        self.cpu += int(taken * self._share)
        return {}


def _timed(scripted: _Scripted, *, seconds: float = 100.0) -> BatchLatency:
    timing = _Timing(runnable=cast("Runnable", scripted), batch=1, taken={})
    for _ in range(5):
        timing.run_round(200, seconds / 5)
    return timing.summarise()


def test_a_hiccup_of_the_machine_is_not_the_models_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = [0.2] * 1000
    hiccup = [*quiet[:300], *[50.0] * 60, *quiet[360:]]  # of 1,000 runs 6 % in a row: two rounds at most
    row = _timed(_Scripted(monkeypatch, hiccup))
    assert (row.runs, row.p50_ms, row.p99_ms, row.max_ms) == (1000, 0.2, 0.2, 50.0)


def test_a_tail_of_the_models_own_is_in_every_round_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    every_fiftieth = [*[0.2] * 49, 50.0]
    row = _timed(_Scripted(monkeypatch, every_fiftieth))
    assert (row.runs, row.p50_ms, row.p99_ms) == (1000, 0.2, 50.0)


def test_of_few_runs_the_99th_percentile_is_the_slowest_and_a_busy_machine_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = _timed(_Scripted(monkeypatch, [5.0] * 9 + [50.0], share=0.3), seconds=0.25)
    assert row.runs < 100
    assert row.p99_ms == row.max_ms == 50.0
    assert row.cpu_share == pytest.approx(0.3, abs=0.01)
    assert row.was_busy


def test_samples_that_do_not_fit_are_refused(zoo: Any) -> None:
    folder = zoo.folder("torch", "image", "onnx")
    with pytest.raises(SignatureError):
        measure_performance("onnx", folder, {"image": np.zeros((1, 1, 8, 7), np.float32)})
    with pytest.raises(InvalidInputError, match="at least one sample"):
        measure_performance("onnx", folder, {"image": np.zeros((0, 1, 8, 8), np.float32)})
