"""The command that measures real files: each has a process with bounds, and what was found is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.conformance.real_models import MODELS, find_model, read_record, run_model, write_record


def test_a_file_that_takes_too_long_loses_its_process() -> None:
    model = next(each for each in MODELS if each.name == "onnx/light_squeezenet.onnx")
    path = find_model(model, download=False)
    assert path is not None
    assert run_model(model, path, "torch", timeout_s=0.2) == {"category": "error", "reason": "took more than 0.2 s"}


@pytest.mark.parametrize("bound", ["cpu", "memory"])
def test_a_file_that_takes_too_much_is_an_error(bound: str) -> None:
    model = next(each for each in MODELS if each.name == "onnx/light_squeezenet.onnx")
    path = find_model(model, download=False)
    assert path is not None
    found = (
        run_model(model, path, "torch", cpu_s=1)
        if bound == "cpu"
        else run_model(model, path, "torch", memory_bytes=64 << 20)
    )
    assert found["category"] == "error", found


def test_what_was_found_is_read_again(tmp_path: Path) -> None:
    key = ("package/file.onnx", "torch", "compiled")
    row = {"model": key[0], "target": key[1], "mode": key[2], "category": "pass"}
    assert read_record(tmp_path / "record.json") == {}
    write_record(tmp_path / "record.json", {key: row})
    assert read_record(tmp_path / "record.json") == {key: row}
