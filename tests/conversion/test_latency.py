"""Latency and size of a format, on named hardware."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noa.digests import build_manifest
from noa.errors import InvalidInputError, SignatureError
from noa.signatures import Signature
from noa_conversion import measure_performance
from noa_conversion.latency import measure_performance as measure_within
from noa_registry import LatencyEvidence, SizeEvidence
from noa_registry.evidence import check_evidence


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
        assert 0 < row.p50_ms <= row.p99_ms
        assert row.runs >= 5
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


def test_samples_that_do_not_fit_are_refused(zoo: Any) -> None:
    folder = zoo.folder("torch", "image", "onnx")
    with pytest.raises(SignatureError):
        measure_performance("onnx", folder, {"image": np.zeros((1, 1, 8, 7), np.float32)})
    with pytest.raises(InvalidInputError, match="at least one sample"):
        measure_performance("onnx", folder, {"image": np.zeros((0, 1, 8, 8), np.float32)})
