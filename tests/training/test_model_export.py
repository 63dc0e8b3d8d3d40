"""Every model of the library goes to ONNX from both backends, and the copy computes the same."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from library_kit import BACKENDS, CASES, recipe_of, run_steps, shape_of, trainer_of

from noa.settings import ConversionSettings
from noa.signatures import Signature, TensorSpec
from noa_conversion import convert, describe_failure, measure_equivalence, save_native
from noa_training.backends.interface import find_backend
from samples import mostly

pytestmark = [pytest.mark.torch, pytest.mark.jax]
SAMPLE = (("resnet", "torch"), ("decoder", "jax"))


@pytest.mark.parametrize(("name", "backend"), mostly("conformance", product(CASES, BACKENDS), sample=SAMPLE))
def test_the_exported_model_computes_the_same(name: str, backend: str, tmp_path: Path) -> None:
    """After some steps, so that running statistics are not what they were; with batches of several sizes."""
    trainer = trainer_of(backend, name)
    run_steps(trainer, name, 3)
    split = CASES[name].split
    outputs = trainer.predict(split)
    output = TensorSpec(name="logits", dtype="float32", shape=("batch", *outputs.shape[1:]))
    signature = Signature(inputs=shape_of(name).inputs, outputs=(output,))
    live = find_backend(backend).live_model(recipe_of(name), shape_of(name), trainer.state().weights, signature)
    settings = ConversionSettings()
    save_native(live, tmp_path / backend)
    convert(live, tmp_path / "onnx", to="onnx", settings=settings)
    evidence = measure_equivalence(
        source=backend,
        source_folder=tmp_path / backend,
        target="onnx",
        target_folder=tmp_path / "onnx",
        samples=dict(split.inputs),
        settings=settings,
    )
    assert evidence.passed, describe_failure(evidence.values)
