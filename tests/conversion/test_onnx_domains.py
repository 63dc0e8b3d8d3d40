"""Which operators a file may have is judged by its nodes: domains that it only names say nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, parser

from noa.settings import ConversionSettings
from noa_conversion import convert_folder, load_format
from noa_conversion.model_files import open_model
from noa_conversion.optimise.onnx_files import read_graph

# What onnxruntime 1.32 writes into every file that it saves, used or not.
DECLARED = ("ai.onnx.training", "ai.onnx.preview.training", "com.microsoft.nchwc", "com.ms.internal.nhwc")
TEXT = """
<ir_version: 10, opset_import: ["": 20, "own": 1]>
g (float[batch, 3] x, bool[1] flag) => (float[batch, 3] y)
<float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}>
{
    h = own.twice <factor = 0.5> (x, w)
    y = If (flag) <then_branch = a () => (float[batch, 3] t) { t = own.scaled <factor = 2.0> (h) },
                   else_branch = b () => (float[batch, 3] e) { e = Identity (h) } >
}
<domain: "own", opset_import: ["": 20, "own": 1]>
twice <factor> (a, m) => (c) { b = MatMul (a, m)  c = own.scaled <factor: float = @factor> (b) }
<domain: "own", opset_import: ["": 20]>
scaled <factor> (a) => (c) { k = Constant <value_float: float = @factor> ()  c = Mul (a, k) }
"""


def save(path: Path) -> Path:
    model = parser.parse_model(TEXT)
    model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in DECLARED)
    onnx.save(model, path)
    return path


def test_a_file_with_functions_and_unused_domains_is_run(tmp_path: Path) -> None:
    with open_model(save(tmp_path / "a.onnx")) as files:
        result = load_format("onnx", files.folder).run({"x": np.eye(3, dtype=np.float32), "flag": np.asarray([True])})
    np.testing.assert_array_equal(result["y"], np.arange(1, 10, dtype=np.float32).reshape(3, 3))


@pytest.mark.parametrize(
    "target", [pytest.param("torch", marks=pytest.mark.torch), pytest.param("jax", marks=pytest.mark.jax)]
)
def test_a_file_with_functions_and_unused_domains_is_converted(tmp_path: Path, target: str) -> None:
    settings = ConversionSettings()  # pyright: ignore[reportCallIssue]  # pydantic fills the defaults
    bind = {"flag": np.asarray([True])}
    with open_model(save(tmp_path / "a.onnx"), bind=bind) as files:
        convert_folder("onnx", files.folder, target, tmp_path / "out", settings=settings)
    result = load_format(target, tmp_path / "out").run({"x": np.eye(3, dtype=np.float32)})
    np.testing.assert_allclose(result["y"], np.arange(1, 10, dtype=np.float32).reshape(3, 3), rtol=1e-6)


def test_optimisers_see_the_nodes_of_functions(tmp_path: Path) -> None:
    with open_model(save(tmp_path / "a.onnx")) as files:
        graph = read_graph(files.folder)
    assert not graph.functions
    assert "MatMul" in [node.op_type for node in graph.graph.node]
