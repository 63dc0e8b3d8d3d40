"""A project with a registered model that costs no training."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from noa.digests import build_manifest
from noa.settings import load_settings
from noa.signatures import Signature, TensorSpec
from noa_registry import Registry, VersionDraft, equivalence_evidence
from warm_client import WarmProcess
from without_rights import bind

RunBound: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]
# `numbers` is an endpoint whose name is not its model's; `recipe.py` writes to standard output in two ways.
PROJECT = """
[project]
name = "mine"
[endpoints.numbers]
model = "digits/1"
[recipes.noisy]
path = "recipe.py"
backends = ["torch"]
"""
RECIPE = """
import os

import numpy as np

from noa_training import AdamW, Dataset, Recipe, Split, mlp

print("noise of Python")
os.write(1, b"noise of the system\\n")


def data() -> Dataset:
    split = Split(inputs={"x": np.zeros((8, 4), np.float32)}, targets=np.zeros(8, np.int64))
    return Dataset(train=split, validation=split, test=split)


recipe = Recipe(
    name="noisy",
    data=data,
    model=mlp(hidden=(4,)),
    objective="cross_entropy",
    metrics=("accuracy",),
    optimizer=AdamW(learning_rate=0.1),
    epochs=1,
    batch_size=4,
)
"""


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, add_empty_registry: Callable[[Path], None]) -> Path:
    """A project with `digits/1` to `digits/3`: the champion was 1 and is 2; `in.json` is an input of theirs."""
    root = tmp_path_factory.mktemp("registered")
    (root / "noa.toml").write_text(PROJECT)
    (root / "recipe.py").write_text(RECIPE)
    (root / "in.json").write_text(json.dumps({"x": [[1, 2, 3, 4]]}))
    add_empty_registry(root)
    settings = load_settings(root).settings
    with Registry.open(settings.registry) as registry:
        for number in (1, 2, 3):
            registry.register(_draft(root / "formats" / str(number)), actor="ada")
        for number in (1, 2):
            registry.promote("digits", number, reason="release", actor="ada")
    return root


@pytest.fixture(scope="session")
def warm_noa() -> Iterator[WarmProcess]:
    """Runs short commands of noa, each in a process of its own."""
    process = WarmProcess()
    yield process
    process.close()


@pytest.fixture(scope="session")
def run_bound() -> Iterator[RunBound]:
    """Runs `noa ...` in a `project`, bound by the permissions of files even if the tests run as root."""
    process = WarmProcess(bind)

    def run(*words: str, project: Path) -> subprocess.CompletedProcess[str]:
        return process.noa(*words, "--directory", str(project), folder=Path.cwd())

    yield run
    process.close()


def _draft(folder: Path) -> VersionDraft:
    weights = np.arange(12, dtype=np.float32).reshape(4, 3)
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 3)),),
    )
    for name in ("torch", "onnx"):
        (folder / name).mkdir(parents=True)
        signature.save(folder / name)
    save_file({"weights": weights}, folder / "torch" / "weights.safetensors")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weights"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "onnx" / "model.onnx")
    proof = equivalence_evidence(
        source="torch",
        source_digest=build_manifest(folder / "torch").digest,
        target="onnx",
        target_digest=build_manifest(folder / "onnx").digest,
        passed=True,
        values={"max_difference": 0.0},
    )
    return VersionDraft(
        name="digits",
        formats={"torch": folder / "torch", "onnx": folder / "onnx"},
        native="torch",
        input_example={"x": np.ones((2, 4), np.float32)},
        dataset_digest="sha256:" + "d" * 64,
        evidence=(proof,),
        environment={"python": "3.11.7"},
    )
