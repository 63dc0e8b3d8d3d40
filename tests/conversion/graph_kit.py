"""Small ONNX graphs for tests, written as text of operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def value(name: str, dtype: int, shape: Sequence[int | str | None]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, list(shape))


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 20,
) -> onnx.ModelProto:
    initialisers = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "test", list(inputs), list(outputs), initialisers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(proto)
    return proto


def tokens_model(*, shift: float = 0.0) -> onnx.ModelProto:
    """Embedding of 50 tokens, places of at most 12, a head; `shift` changes the head's weights."""
    rng = np.random.default_rng(0)
    weights = {
        "table": rng.normal(size=(50, 8)).astype(np.float32),
        "places": rng.normal(size=(12, 8)).astype(np.float32),
        "head.weight": rng.normal(size=(8, 3)).astype(np.float32) + np.float32(shift),
        "zero": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["embedded"], name="embed"),
        helper.make_node("Shape", ["ids"], ["length"], name="length", start=1),
        helper.make_node("Slice", ["places", "zero", "length"], ["chosen_places"], name="choose_places"),
        helper.make_node("Add", ["embedded", "chosen_places"], ["hidden"], name="add_places"),
        helper.make_node("Tanh", ["hidden"], ["active"], name="activate"),
        helper.make_node("MatMul", ["active", "head.weight"], ["scores"], name="head"),
        helper.make_node("ArgMax", ["scores"], ["best"], name="choose", axis=-1, keepdims=0),
    ]
    return model(
        nodes,
        [value("ids", INT64, ["batch", "seq"])],
        [value("scores", FLOAT, ["batch", "seq", 3]), value("best", INT64, ["batch", "seq"])],
        weights,
    )


def save(proto: onnx.ModelProto, path: Path) -> Path:
    onnx.save(proto, path)
    return path
