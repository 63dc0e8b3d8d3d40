"""What noa itself writes passes its own scan: an archive of it can be taken in elsewhere without permission."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from noa_registry.scanning.scan import scan_path

MODELS = {"torch": ("image", "rows"), "jax": ("image", "rows", "tokens")}


@pytest.mark.parametrize(
    ("backend", "format_name"), [("torch", "torch"), ("jax", "jax"), ("torch", "onnx"), ("jax", "onnx")]
)
def test_a_format_that_noa_wrote_holds_nothing_that_runs_code(zoo: Any, backend: str, format_name: str) -> None:
    for model in MODELS[backend]:
        report = scan_path(zoo.folder(backend, model, format_name))
        assert report.findings == ()
        assert "unknown" not in {file.kind for file in report.files}


@pytest.mark.parametrize("change", ["truncated", "vector too long", "root outside", "no byte code"])
def test_a_damaged_jax_program_is_not_taken_for_one(zoo: Any, tmp_path: Path, change: str) -> None:
    data = bytearray((zoo.folder("jax", "rows", "jax") / "program.stablehlo").read_bytes())
    start = data.index(b"ML\xefR")
    match change:
        case "truncated":
            del data[start + 100 :]
        case "vector too long":
            data[start - 4 : start] = (len(data)).to_bytes(4, "little")
        case "root outside":
            data[:4] = (len(data) + 8).to_bytes(4, "little")
        case _:
            data[start : start + 4] = b"nope"
    path = tmp_path / "program.stablehlo"
    path.write_bytes(data)
    (finding,) = scan_path(path).findings
    assert "not recognised" in str(finding)
