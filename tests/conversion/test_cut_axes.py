"""A graph that cuts a free axis at a number no batch reaches leaves it free."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from noa.settings import load_settings
from noa.signatures import Signature, TensorSpec
from noa_conversion import convert_folder, load_format


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    folder = tmp_path / "onnx"
    folder.mkdir()
    graph = helper.make_graph(
        [
            helper.make_node("Slice", ["x", "start", "end", "axis"], ["first"]),
            helper.make_node("Sub", ["first", "x"], ["zero"]),
            helper.make_node("Add", ["zero", "x"], ["y"]),
        ],
        "cut",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [
            numpy_helper.from_array(np.array([value], np.int64), name)
            for name, value in (("start", 0), ("end", 1_000_000_000), ("axis", 0))
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), folder / "model.onnx")
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 4))
    Signature(inputs=(spec,), outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 4)),)).save(folder)
    return folder


@pytest.mark.parametrize("target", ["torch", "jax"])
def test_an_axis_that_is_cut_beyond_any_batch_stays_free(cut: Path, tmp_path: Path, target: str) -> None:
    folder = tmp_path / target
    convert_folder("onnx", cut, target, folder, settings=load_settings(tmp_path).settings.conversion)
    model = load_format(target, folder)
    assert model.signature.inputs[0].shape == ("batch", 4)
    for rows in (1, 3, 8):
        x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
        np.testing.assert_array_equal(model.run({"x": x})["y"], x)
