"""Small real models for the benchmarks."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from noa.digests import build_manifest
from noa.signatures import Signature, TensorSpec
from noa_registry import ModelVersion, Registry, VersionDraft, metrics_evidence

FEATURES, HIDDEN, CLASSES = 64, 64, 10
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", FEATURES)),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", CLASSES)),),
)


def write_mlp(folder: Path, *, seed: int) -> None:
    """Write an ONNX multi-layer perceptron (64 -> 64 -> 10) with its signature."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(seed)
    weights = {
        "w1": random.normal(size=(FEATURES, HIDDEN)).astype(np.float32) / 8,
        "b1": np.zeros(HIDDEN, np.float32),
        "w2": random.normal(size=(HIDDEN, CLASSES)).astype(np.float32) / 8,
        "b2": np.zeros(CLASSES, np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
            helper.make_node("Relu", ["h"], ["a"]),
            helper.make_node("Gemm", ["a", "w2", "b2"], ["logits"]),
        ],
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(folder / "model.onnx"))
    SIGNATURE.save(folder)


def register_version(registry: Registry, name: str, *, seed: int) -> ModelVersion:
    """Register one version of the perceptron with the evidence that a promotion needs."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "onnx"
        write_mlp(folder, seed=seed)
        return register_folder(
            registry, name, folder, example={"x": np.zeros((2, FEATURES), np.float32)}, params={"seed": seed}
        )


def register_folder(
    registry: Registry, name: str, folder: Path, *, example: Mapping[str, np.ndarray], params: Mapping[str, int]
) -> ModelVersion:
    """Register a folder in the format `onnx` with the evidence that a promotion needs."""
    dataset = "sha256:" + "0" * 64
    draft = VersionDraft(
        name=name,
        formats={"onnx": folder},
        native="onnx",
        input_example=dict(example),
        dataset_digest=dataset,
        evidence=(
            metrics_evidence(
                format="onnx",
                digest=build_manifest(folder).digest,
                dataset_digest=dataset,
                split="test",
                values={"accuracy": 1.0},
            ),
        ),
        run_id=None,
        git_commit=None,
        environment={},
        params=dict(params),
    )
    return registry.register(draft, actor="bench")
