"""Fixtures of the registry's tests: drafts with a real ONNX graph, and a database that is built once and copied."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from noa.digests import build_manifest
from noa.settings import RegistrySettings
from noa.signatures import Signature, TensorSpec
from noa_registry import (
    Evidence,
    ModelVersion,
    Registry,
    VersionDraft,
    equivalence_evidence,
    metrics_evidence,
)

DATASET = "sha256:" + "d" * 64


@dataclass(frozen=True)
class Formats:
    """Prepared format folders of one linear model, `logits = x @ weights`."""

    folder: Path
    signature: Signature
    weights: np.ndarray

    @property
    def torch(self) -> Path:
        return self.folder / "torch"

    @property
    def onnx(self) -> Path:
        return self.folder / "onnx"

    def digest(self, name: str) -> str:
        return build_manifest(self.folder / name).digest

    def equivalence(self, *, passed: bool = True, target: str = "onnx", **changes: str) -> Evidence:
        facts = {
            "source": "torch",
            "source_digest": self.digest("torch"),
            "target": target,
            "target_digest": self.digest(target),
        }
        return equivalence_evidence(**{**facts, **changes}, passed=passed, values={"max_difference": 0.0})

    def metrics(
        self, *, format_name: str = "onnx", dataset: str = DATASET, split: str = "test", **values: float
    ) -> Evidence:
        return metrics_evidence(
            format=format_name, digest=self.digest(format_name), dataset_digest=dataset, split=split, values=values
        )

    def draft(
        self, *, name: str = "digits", evidence: Sequence[Evidence] | None = None, **changes: object
    ) -> VersionDraft:
        draft = VersionDraft(
            name=name,
            formats={"torch": self.torch, "onnx": self.onnx},
            native="torch",
            input_example={"x": np.arange(8, dtype=np.float32).reshape(2, 4)},
            dataset_digest=DATASET,
            evidence=(self.equivalence(),) if evidence is None else tuple(evidence),
            git_commit="0" * 40,
            environment={"python": "3.11.7"},
            params={"epochs": 3},
        )
        return replace(draft, **changes)  # type: ignore[arg-type]


def write_formats(folder: Path, seed: int) -> Formats:
    weights = np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 3)),),
    )
    formats = Formats(folder=folder, signature=signature, weights=weights)
    for path in (formats.torch, formats.onnx):
        path.mkdir(parents=True)
        signature.save(path)
    save_file({"weights": weights}, formats.torch / "weights.safetensors")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weights"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, formats.onnx / "model.onnx")
    return formats


@pytest.fixture
def make_formats(tmp_path: Path) -> Callable[[int], Formats]:
    def make(seed: int) -> Formats:
        return write_formats(tmp_path / f"formats-{seed}", seed)

    return make


@pytest.fixture
def formats(make_formats: Callable[[int], Formats]) -> Formats:
    return make_formats(0)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registry-template")
    settings = settings_in(folder)
    Registry.open(settings).close()
    return folder / "noa.db"


def settings_in(folder: Path) -> RegistrySettings:
    return RegistrySettings(
        database_url=f"sqlite:///{folder / 'noa.db'}", artifact_dir=folder / "artifacts", lock_timeout_s=60.0
    )


@pytest.fixture
def settings(tmp_path: Path, empty_database: Path) -> RegistrySettings:
    """Settings of an initialised, empty registry."""
    folder = tmp_path / "state"
    folder.mkdir()
    shutil.copyfile(empty_database, folder / "noa.db")
    return settings_in(folder)


@pytest.fixture
def fresh_settings(tmp_path: Path) -> RegistrySettings:
    """Settings of a folder in which nothing is yet."""
    return settings_in(tmp_path / "fresh")


@pytest.fixture
def registry(settings: RegistrySettings) -> Iterator[Registry]:
    with Registry.open(settings) as opened:
        yield opened


@pytest.fixture
def version(registry: Registry, formats: Formats) -> ModelVersion:
    """`digits/1`, ready to be promoted."""
    return registry.register(formats.draft(), actor="ada")


@pytest.fixture
def promoted(registry: Registry, formats: Formats) -> list[ModelVersion]:
    """`digits/1` to `digits/3`, promoted to champion in this order."""
    made = [registry.register(formats.draft(), actor="ada") for _ in range(3)]
    for entry in made:
        registry.promote("digits", entry.number, reason=f"release {entry.number}", actor="ada")
    return made
