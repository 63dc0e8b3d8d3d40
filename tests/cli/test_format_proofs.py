"""A format that a version has without a proof is proven by `noa convert`, and served by `--format auto` only then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from noa.digests import build_manifest
from noa.settings import load_settings
from noa.signatures import Signature, TensorSpec
from noa_cli.__main__ import run
from noa_registry import Registry, VersionDraft
from noa_registry.gates.format_proofs import format_proofs

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 3)),),
)


def _format(folder: Path, weights: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    save(model, folder / "model.onnx")
    SIGNATURE.save(folder)
    return folder


@pytest.fixture
def unproven(tmp_path: Path, add_empty_registry: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with `digits/1` (an equal `onnx-slim`) and `digits/2` (another one), neither with evidence."""
    (tmp_path / "noa.toml").write_text('[project]\nname = "demo"\n')
    add_empty_registry(tmp_path)
    weights = np.arange(12, dtype=np.float32).reshape(4, 3)
    with Registry.open(load_settings(tmp_path).settings.registry) as registry:
        for number, shift in ((1, 0.0), (2, 1.0)):
            folder = tmp_path / "formats" / str(number)
            formats = {
                "onnx": _format(folder / "onnx", weights),
                "onnx-slim": _format(folder / "onnx-slim", weights + np.float32(shift)),
            }
            registry.register(
                VersionDraft(
                    name="digits",
                    formats=formats,
                    native="onnx",
                    input_example={"x": np.ones((2, 4), np.float32)},
                    dataset_digest="sha256:" + "d" * 64,
                ),
                actor="ada",
            )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _problem(root: Path, number: int) -> str | None:
    with Registry.open(load_settings(root).settings.registry) as registry:
        version = registry.resolve(f"digits/{number}")
        return format_proofs(version, registry.evidence("digits", number))["onnx-slim"].problem


def test_convert_proves_a_format_that_is_there_and_leaves_its_bytes_alone(
    unproven: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _problem(unproven, 1) == "no evidence for these bytes"
    digest = build_manifest(unproven / "formats" / "1" / "onnx-slim").digest
    assert run(["convert", "digits/1", "--to", "onnx-slim", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["digest"] == digest
    assert answer["place"] == "was in digits/1 and is proven now"
    assert _problem(unproven, 1) is None
    assert run(["convert", "digits/1", "--to", "onnx-slim"]) == 1
    assert "already has the format `onnx-slim`" in capsys.readouterr().err


def test_a_format_that_computes_something_else_is_not_proven(
    unproven: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", "digits/2", "--to", "onnx-slim"]) == 1
    assert "onnx-slim" in capsys.readouterr().err
    assert _problem(unproven, 2) == "no evidence for these bytes"


def test_auto_is_a_format_of_an_endpoint(unproven: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (unproven / "noa.toml").write_text(
        '[project]\nname = "demo"\n[endpoints.digits]\nmodel = "digits/1"\nformat = "auto"\n'
    )
    assert run(["config", "validate"]) == 0
    (unproven / "noa.toml").write_text(
        '[project]\nname = "demo"\n[endpoints.digits]\nmodel = "digits/1"\nformat = "autp"\n'
    )
    assert run(["config", "validate"]) == 1
    assert "`autp` is no format of a model" in capsys.readouterr().err
