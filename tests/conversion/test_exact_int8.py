"""Products of uint8 and int8 are the same on every processor; by default onnxruntime saturates without VNNI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from noa.signatures import Signature, TensorSpec
from noa_conversion import load_format

SCALE, OUT_SCALE = np.asarray(0.02, np.float32), np.asarray(3.0, np.float32)
POINT, WEIGHT_POINT = np.asarray(100, np.uint8), np.asarray(0, np.int8)
# Two neighbours of the largest values: their sum is beyond 16 bits.
ROWS = np.full((3, 64), 255, np.uint8)
MATRIX = np.full((64, 5), 127, np.int8)
IMAGES, KERNELS = np.full((2, 16, 6, 6), 255, np.uint8), np.full((4, 16, 3, 3), -128, np.int8)
CASES: dict[str, tuple[np.ndarray, str, list[np.ndarray], str]] = {
    "MatMulInteger": (ROWS, "MatMulInteger", [MATRIX, POINT, WEIGHT_POINT], "int32"),
    "ConvInteger": (IMAGES, "ConvInteger", [KERNELS, POINT], "int32"),
    "QLinearMatMul": (
        ROWS,
        "QLinearMatMul",
        [SCALE, POINT, MATRIX, SCALE, WEIGHT_POINT, OUT_SCALE, POINT],
        "uint8",
    ),
    "QLinearConv": (
        IMAGES,
        "QLinearConv",
        [SCALE, POINT, KERNELS, SCALE, WEIGHT_POINT, OUT_SCALE, POINT],
        "uint8",
    ),
}


def write_format(folder: Path, x: np.ndarray, kind: str, constants: list[np.ndarray], dtype: str) -> onnx.ModelProto:
    names = [f"c{index}" for index in range(len(constants))]
    taken = [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)]
    given = [onnx.ValueInfoProto(name="y")]
    stored = [numpy_helper.from_array(value, name) for name, value in zip(names, constants, strict=True)]
    graph = helper.make_graph([helper.make_node(kind, ["x", *names], ["y"])], "one", taken, given, stored)
    model = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    )
    shape = tuple(int(size.dim_value) for size in model.graph.output[0].type.tensor_type.shape.dim)
    onnx.save(model, folder / "model.onnx")
    found: Any = dtype
    Signature(
        inputs=(TensorSpec(name="x", dtype="uint8", shape=x.shape),),
        outputs=(TensorSpec(name="y", dtype=found, shape=shape),),
    ).save(folder)
    return model


@pytest.mark.parametrize("case", CASES)
def test_a_product_of_uint8_and_int8_is_exact_on_every_processor(case: str, tmp_path: Path) -> None:
    x, kind, constants, dtype = CASES[case]
    model = write_format(tmp_path, x, kind, constants, dtype)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    received = load_format("onnx", tmp_path, threads=1).run({"x": x})["y"]
    np.testing.assert_array_equal(received, expected)
