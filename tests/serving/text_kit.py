"""Models that take and give texts, as ONNX graphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from noa.signatures import Signature, TensorSpec, numpy_dtype

COLOURS = ("red", "green", "blue")
"""What `texts_model` knows; every other text has the number -1."""


def texts_model(folder: Path) -> Mapping[str, np.ndarray]:
    """`words` string(batch, 2) and `scale` float32(batch): gives `echo`, `numbers`, `scaled` and `colour`.

    `echo` is `words`, `numbers` are their places in `COLOURS`, `scaled` is twice `scale`, `colour` is named by `scale`.
    """
    signature = Signature(
        inputs=(
            TensorSpec(name="words", dtype="string", shape=("batch", 2)),
            TensorSpec(name="scale", dtype="float32", shape=("batch",)),
        ),
        outputs=(
            TensorSpec(name="echo", dtype="string", shape=("batch", 2)),
            TensorSpec(name="numbers", dtype="int64", shape=("batch", 2)),
            TensorSpec(name="scaled", dtype="float32", shape=("batch",)),
            TensorSpec(name="colour", dtype="string", shape=("batch",)),
        ),
    )
    nodes = [
        helper.make_node("Identity", ["words"], ["echo"]),
        _encoder("words", "numbers", keys_strings=COLOURS, values_int64s=[0, 1, 2], default_int64=-1),
        helper.make_node("Add", ["scale", "scale"], ["scaled"]),
        helper.make_node("Cast", ["scale"], ["whole"], to=TensorProto.INT64),
        _encoder("whole", "colour", keys_int64s=[0, 1, 2], values_strings=COLOURS, default_string="none of them: é"),
    ]
    save_text_onnx(folder, signature, nodes)
    words = np.array([["red", "blue"], ["grün", ""]], dtype=object)
    return {"words": words, "scale": np.array([0, 2], dtype=np.float32)}


def echo_model(folder: Path) -> Mapping[str, np.ndarray]:
    """`text` string(batch): gives it back as `echo`."""
    signature = Signature(
        inputs=(TensorSpec(name="text", dtype="string", shape=("batch",)),),
        outputs=(TensorSpec(name="echo", dtype="string", shape=("batch",)),),
    )
    save_text_onnx(folder, signature, [helper.make_node("Identity", ["text"], ["echo"])])
    return {"text": np.array(["one", "two"], dtype=object)}


def save_text_onnx(folder: Path, signature: Signature, nodes: list[onnx.NodeProto]) -> None:
    """Write `model.onnx` and `signature.json`; operators of `ai.onnx.ml` may be used."""

    def value(spec: TensorSpec) -> onnx.ValueInfoProto:
        kind = helper.np_dtype_to_tensor_dtype(numpy_dtype(spec.dtype))
        return helper.make_tensor_value_info(spec.name, kind, list(spec.shape))

    graph = helper.make_graph(nodes, "texts", list(map(value, signature.inputs)), list(map(value, signature.outputs)))
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    signature.save(folder)


def _encoder(given: str, made: str, **table: object) -> onnx.NodeProto:
    return helper.make_node("LabelEncoder", [given], [made], domain="ai.onnx.ml", **table)
