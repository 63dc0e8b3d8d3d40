"""A model of bfloat16, as an ONNX graph that computes in float32 inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from noa.signatures import Signature, TensorSpec

BFLOAT = np.dtype(ml_dtypes.bfloat16)


def bfloat_model(folder: Path) -> Mapping[str, np.ndarray]:
    """`x` bfloat16(batch, 4): gives `y = 3 * x` as bfloat16 and `total` as float32."""
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="bfloat16", shape=("batch", 4)),),
        outputs=(
            TensorSpec(name="y", dtype="bfloat16", shape=("batch", 4)),
            TensorSpec(name="total", dtype="float32", shape=("batch",)),
        ),
    )
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "three"], ["tripled"]),
        helper.make_node("Cast", ["tripled"], ["y"], to=TensorProto.BFLOAT16),
        helper.make_node("ReduceSum", ["tripled", "axes"], ["total"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "bfloat",
        [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, ["batch", 4])],
        [
            helper.make_tensor_value_info("y", TensorProto.BFLOAT16, ["batch", 4]),
            helper.make_tensor_value_info("total", TensorProto.FLOAT, ["batch"]),
        ],
        [numpy_helper.from_array(np.array(3, np.float32), "three"), numpy_helper.from_array(np.array([1]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    signature.save(folder)
    return {"x": np.arange(8).reshape(2, 4).astype(BFLOAT)}
