"""There and back: PyTorch and JAX to ONNX, imported again, equal in values and gradients, and exported once more.

The suite takes some of each kind there and back, and a third of all through a second export of PyTorch or a gradient of
JAX, which take longest; `make conformance` takes all.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
import torch
from round_trip_functions_jax import FUNCTIONS
from round_trip_models_torch import ARCHITECTURES

from noa.settings import ConversionSettings
from noa_conversion import JaxModel, TorchModel, convert, import_onnx_to_jax, import_onnx_to_torch, load_format
from noa_conversion.formats.jax_format import flat_params
from samples import mostly

# One or two of each kind: convolutions, recurrent cells, attention, control flow, and weights of other types.
TORCH_SAMPLE = (
    "resnet",
    "lstm",
    "embedding bag",
    "conditional",
    "loop",
    "bf16 storage",
    "grouped attention",
    "quantised",
)
TORCH_AGAIN = ("resnet", "conditional", "grouped attention", "quantised")
# One of each library of models and of each kind of primitive.
JAX_SAMPLE = (
    "mlp",
    "flax nnx attention",
    "equinox scan",
    "while",
    "fft",
    "gather and scatter",
    "cumulative",
    "conv",
    "attention",
    "batch norm",
    "segment sum",
    "vmap",
)
JAX_GRADIENTS = ("mlp", "equinox scan", "while", "conv", "attention", "segment sum")
TORCH = pytest.mark.parametrize("name", mostly("conformance", ARCHITECTURES, sample=TORCH_SAMPLE))
JAX = pytest.mark.parametrize("name", mostly("conformance", FUNCTIONS, sample=JAX_SAMPLE))
pytestmark = pytest.mark.usefixtures("unoptimised_jax")


@functools.cache
def torch_trip(name: str) -> tuple[TorchModel, Path, Any]:
    """Return the live model, its ONNX folder, and what was imported from it; each is made once."""
    architecture = ARCHITECTURES[name]
    model = architecture.model()
    folder = _folder() / "onnx"
    convert(model, folder, settings=ConversionSettings(opset=architecture.opset))
    return model, folder, import_onnx_to_torch(folder / "model.onnx")


@functools.cache
def jax_trip(name: str) -> tuple[JaxModel, Path, Any]:
    model = FUNCTIONS[name].model()
    folder = _folder() / "onnx"
    convert(model, folder, settings=ConversionSettings())
    return model, folder, import_onnx_to_jax(folder / "model.onnx")


def _folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="noa-round-trip-")
    _KEPT.append(folder)
    return Path(folder.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _close(given: Any, expected: Any, tolerance: float, what: str) -> None:
    expected = np.asarray(expected)
    assert given.shape == expected.shape, what
    scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)))
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=tolerance * scale, err_msg=what)


@TORCH
def test_a_torch_architecture_computes_the_same_after_onnx(name: str) -> None:
    model, folder, imported = torch_trip(name)
    architecture = ARCHITECTURES[name]
    stored = load_format("onnx", folder, threads=1)
    for sizes in architecture.sizes:
        inputs = architecture.draw(sizes)
        with torch.no_grad():
            expected = _tuple(model.module(*map(torch.from_numpy, inputs.values())))
        between, back = stored.run(inputs), imported.run(inputs)
        for spec, value in zip(model.signature.outputs, expected, strict=True):
            _close(between[spec.name], value.numpy(), architecture.tolerance, f"{spec} in ONNX at {sizes}")
            _close(back[spec.name], value.numpy(), architecture.tolerance, f"{spec} at {sizes}")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # PyTorch's own scan asks for it
@TORCH
def test_all_weights_of_a_torch_architecture_keep_their_names_and_gradients(name: str) -> None:
    model, folder, imported = torch_trip(name)
    architecture = ARCHITECTURES[name]
    stored = {tensor.name for tensor in onnx.load(folder / "model.onnx").graph.initializer}
    weights = dict(model.module.named_parameters())
    assert set(weights) <= stored
    assert set(weights) <= set(imported.names)
    inputs = architecture.draw(architecture.sizes[1])
    expected, expected_of_inputs = _torch_gradients(model.module, weights, inputs)
    back = {key: imported.module.get_parameter(imported.names[key]) for key in weights}
    given, given_of_inputs = _torch_gradients(imported.module, back, inputs)
    for key, value in expected.items():
        tolerance = 2e-2 if weights[key].dtype == torch.bfloat16 else 10 * architecture.tolerance
        _close(given[key], value, tolerance, f"gradient of {key}")
    for key, value in expected_of_inputs.items():
        _close(given_of_inputs[key], value, 10 * architecture.tolerance, f"gradient of the input {key}")


def _torch_gradients(
    module: torch.nn.Module, weights: Mapping[str, torch.Tensor], inputs: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    tensors = {key: torch.from_numpy(value.copy()) for key, value in inputs.items()}
    floats = {key: value.requires_grad_() for key, value in tensors.items() if value.is_floating_point()}
    outputs = [value for value in _tuple(module(*tensors.values())) if value.is_floating_point()]
    loss = sum((value * _weights_of(value)).sum() for value in outputs)
    assert isinstance(loss, torch.Tensor)
    wanted = {key: value for key, value in {**weights, **floats}.items() if value.requires_grad}
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    arrays = {
        key: np.zeros(value.shape, np.float32) if gradient is None else gradient.float().numpy()
        for (key, value), gradient in zip(wanted.items(), found, strict=True)
    }
    return {key: arrays[key] for key in weights}, {key: arrays[key] for key in floats}


def _weights_of(value: torch.Tensor) -> torch.Tensor:
    """Weights of a loss that does not vanish where outputs sum to a constant."""
    return torch.cos(torch.arange(value.numel(), dtype=value.dtype)).reshape(value.shape)


@pytest.mark.parametrize("name", mostly("conformance", ARCHITECTURES, sample=TORCH_AGAIN))
def test_an_imported_torch_architecture_is_exported_again(name: str, tmp_path: Path) -> None:
    model, _, imported = torch_trip(name)
    architecture = ARCHITECTURES[name]
    convert(imported.to_model(), tmp_path / "again", settings=ConversionSettings(opset=architecture.opset))
    again = load_format("onnx", tmp_path / "again", threads=1)
    inputs = architecture.draw(architecture.sizes[1])
    with torch.no_grad():
        expected = _tuple(model.module(*map(torch.from_numpy, inputs.values())))
    outputs = again.run(inputs)
    for spec, value in zip(model.signature.outputs, expected, strict=True):
        _close(outputs[spec.name], value.numpy(), architecture.tolerance, f"{spec} after two exports")


@JAX
def test_a_jax_function_computes_the_same_after_onnx(name: str) -> None:
    model, folder, imported = jax_trip(name)
    function = FUNCTIONS[name]
    stored = load_format("onnx", folder, threads=1)
    for sizes in function.sizes:
        inputs = function.draw(sizes)
        expected = _tuple(jax.jit(model.apply)(model.params, *inputs.values()))
        between, back = stored.run(inputs), imported.run(inputs)
        for spec, value in zip(model.signature.outputs, expected, strict=True):
            _close(between[spec.name], value, function.tolerance, f"{spec} in ONNX at {sizes}")
            _close(back[spec.name], value, function.tolerance, f"{spec} at {sizes}")


@pytest.mark.parametrize("name", mostly("conformance", FUNCTIONS, sample=JAX_GRADIENTS))
def test_all_params_of_a_jax_function_keep_their_names_and_gradients(name: str) -> None:
    model, _, imported = jax_trip(name)
    function = FUNCTIONS[name]
    flat = flat_params(model.params)
    assert set(flat) <= set(imported.params)
    inputs = function.draw(function.sizes[1])
    if not function.has_gradient:
        with pytest.raises(ValueError, match=r"[Rr]everse-mode differentiation"):  # nothing to compare with
            jax.grad(lambda p: _jax_loss(model.apply, p, inputs))(model.params)
        return
    # Compiled as a whole: primitive by primitive a gradient takes several times as long.
    expected = flat_params(jax.jit(jax.grad(lambda p: _jax_loss(model.apply, p, inputs)))(model.params))
    given = jax.jit(jax.grad(lambda p: _jax_loss(imported.apply, {**imported.params, **p}, inputs)))(
        {key: imported.params[key] for key in flat}
    )
    for key, value in expected.items():
        _close(given[key], value, 10 * function.tolerance, f"gradient of {key}")


def _jax_loss(apply: Any, params: Any, inputs: Mapping[str, np.ndarray]) -> Any:
    outputs = [value for value in _tuple(apply(params, *inputs.values())) if value.dtype == np.float32]
    return sum((value * jnp.cos(jnp.arange(value.size, dtype="f")).reshape(value.shape)).sum() for value in outputs)


@JAX
def test_an_imported_jax_function_is_exported_again(name: str, tmp_path: Path) -> None:
    model, _, imported = jax_trip(name)
    function = FUNCTIONS[name]
    convert(imported.to_model(), tmp_path / "again", settings=ConversionSettings())
    again = load_format("onnx", tmp_path / "again", threads=1)
    stored = {tensor.name for tensor in onnx.load(tmp_path / "again" / "model.onnx").graph.initializer}
    assert set(flat_params(model.params)) <= stored
    inputs = function.draw(function.sizes[1])
    expected = _tuple(jax.jit(model.apply)(model.params, *inputs.values()))
    outputs = again.run(inputs)
    for spec, value in zip(model.signature.outputs, expected, strict=True):
        _close(outputs[spec.name], value, function.tolerance, f"{spec} after two exports")
