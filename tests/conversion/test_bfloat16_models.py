"""Models that take and give bfloat16: in every format, compared with a tolerance of their own, kept with examples."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from noa.digests import digest_arrays
from noa.settings import ConversionSettings, RegistrySettings
from noa.signatures import Signature, TensorSpec, is_float, numpy_dtype
from noa.tensor_files import load_tensors, save_tensors
from noa_conversion import JaxModel, TorchModel, convert, convert_folder, load_format, measure_equivalence, save_native
from noa_conversion.comparison import compare_output, tolerance_for
from noa_conversion.generated_inputs import generate_inputs, poison_inputs
from noa_registry import Registry, VersionDraft

BFLOAT = np.dtype(ml_dtypes.bfloat16)
SETTINGS = ConversionSettings()
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="bfloat16", shape=("batch", 4)),),
    outputs=(TensorSpec(name="y", dtype="bfloat16", shape=("batch", 3)),),
)
WEIGHTS = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
X = np.random.default_rng(0).normal(size=(7, 4)).astype(BFLOAT)


def torch_model() -> TorchModel:
    import torch

    layer = torch.nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(WEIGHTS.T.copy()))
    return TorchModel(module=layer.to(torch.bfloat16), signature=SIGNATURE)


def jax_model() -> JaxModel:
    import jax.numpy as jnp

    params = {"w": jnp.asarray(WEIGHTS)}  # weights of a JAX model are kept in float32
    return JaxModel(apply=lambda params, x: x @ params["w"].astype("bfloat16"), params=params, signature=SIGNATURE)


def right(y: np.ndarray, x: np.ndarray = X) -> None:
    assert y.dtype == BFLOAT
    wanted = x.astype(np.float32) @ WEIGHTS.astype(BFLOAT).astype(np.float32)
    np.testing.assert_allclose(y.astype(np.float32), wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.torch
@pytest.mark.jax
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [torch_model, jax_model])
def test_a_model_of_bfloat16_is_stored_exported_run_and_proven(
    tmp_path: Path, make: Callable[[], TorchModel | JaxModel]
) -> None:
    model = make()
    native = save_native(model, tmp_path / "native")
    convert(model, tmp_path / "onnx", to="onnx", settings=SETTINGS)
    for name, folder in ((native, "native"), ("onnx", "onnx")):
        runnable = load_format(name, tmp_path / folder)
        for rows in (X, X[:1], np.asfortranarray(X)):
            right(runnable.run({"x": rows})["y"], rows)
    evidence = measure_equivalence(
        source=native,
        source_folder=tmp_path / "native",
        target="onnx",
        target_folder=tmp_path / "onnx",
        samples={"x": X},
        settings=SETTINGS,
    )
    assert evidence.passed, evidence.values
    assert "bfloat16: 7 bits" in json.dumps(dict(evidence.values))


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_onnx_of_bfloat16_becomes_torch_again(tmp_path: Path) -> None:
    convert(torch_model(), tmp_path / "onnx", to="onnx", settings=SETTINGS)
    convert_folder("onnx", tmp_path / "onnx", "torch", tmp_path / "torch", settings=SETTINGS)
    right(load_format("torch", tmp_path / "torch").run({"x": X})["y"])


def test_its_tolerance_is_that_of_seven_bits() -> None:
    spec = SIGNATURE.outputs[0]
    left = np.ones((2, 3), BFLOAT)
    near, far = left * BFLOAT.type(1.01), left * BFLOAT.type(2.0)
    assert compare_output(spec, left, near, batch=2, settings=SETTINGS).passed
    found = compare_output(spec, left, far, batch=2, settings=SETTINGS)
    assert (found.passed, found.max_abs_error) == (False, 1.0)
    hidden = left.copy()
    hidden[0, 0] = np.nan
    assert not compare_output(spec, left, hidden, batch=2, settings=SETTINGS).passed
    assert tolerance_for("bfloat16", SETTINGS).relative == 8e-2


def test_inputs_are_made_up_and_poisoned() -> None:
    made = generate_inputs(SIGNATURE, {"batch": 5}, ranges={}, seed=0)
    assert made["x"].dtype == BFLOAT
    assert len(set(made["x"].reshape(-1).tolist())) > 10, "normal numbers"
    poisoned = poison_inputs(made, seed=0)
    assert poisoned is not None
    assert not np.isfinite(poisoned["x"]).all()


@pytest.fixture
def registry(tmp_path: Path, empty_sqlite_file: Path) -> Iterator[Registry]:
    shutil.copyfile(empty_sqlite_file, tmp_path / "noa.db")
    settings = RegistrySettings(database_url=f"sqlite:///{tmp_path / 'noa.db'}", artifact_dir=tmp_path / "artifacts")
    with Registry.open(settings) as opened:
        yield opened


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_the_registry_keeps_it_and_stock_mlflow_runs_it(registry: Registry, tmp_path: Path) -> None:
    from mlflow import pyfunc

    save_native(torch_model(), tmp_path / "torch")
    draft: Any = VersionDraft(
        name="bf",
        formats={"torch": tmp_path / "torch"},
        native="torch",
        input_example={"x": X},
        dataset_digest="sha256:" + "0" * 64,
    )
    version = registry.register(draft, actor="ada")
    assert registry.resolve("bf/1").signature == SIGNATURE
    kept = registry.input_example(version)["x"]
    assert kept.dtype == BFLOAT
    assert np.array_equal(kept, X)
    right(registry.load("bf/1").run({"x": X})["y"])
    model = pyfunc.load_model(str(registry.open_wrapper(version)))
    right(model.predict(X.astype(np.float32))["y"])


def test_names_files_and_digests(tmp_path: Path) -> None:
    assert numpy_dtype("bfloat16") == BFLOAT
    assert [is_float(name) for name in ("bfloat16", "float16", "int8", "string", "bool")] == [True, True] + [False] * 3
    save_tensors({"x": X}, tmp_path / "x")
    assert np.array_equal(load_tensors((tmp_path / "x").read_bytes())["x"], X)
    assert digest_arrays({"x": X}) == digest_arrays({"x": np.asfortranarray(X)})
    assert digest_arrays({"x": X}) != digest_arrays({"x": X.astype(np.float16)})
