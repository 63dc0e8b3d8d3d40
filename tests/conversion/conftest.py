"""Small seeded models in plain torch and plain JAX, and each of their formats written once per session."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parent))  # pytest imports test files by path, so a helper beside them needs this

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax

from noa.settings import ConversionSettings
from noa.signatures import Signature, TensorSpec
from noa_conversion import JaxModel, TorchModel, convert, save_native

SETTINGS = ConversionSettings()
IMAGE = Signature(
    inputs=(TensorSpec(name="image", dtype="float32", shape=("batch", 1, 8, 8)),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 10)),),
)
ROWS = Signature(
    inputs=(
        TensorSpec(name="numbers", dtype="float32", shape=("batch", 6)),
        TensorSpec(name="kind", dtype="int32", shape=("batch", 2)),
    ),
    outputs=(
        TensorSpec(name="score", dtype="float32", shape=("batch",)),
        TensorSpec(name="logits", dtype="float32", shape=("batch", 3)),
        TensorSpec(name="choice", dtype="int32", shape=("batch",)),
    ),
)
TOKENS = Signature(
    inputs=(TensorSpec(name="tokens", dtype="int32", shape=("batch", 5)),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 5, 11)),),
)


class TorchCnn(torch.nn.Module):
    """Convolutions, batch normalisation, dropout, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
        self.dropout = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(4 * 16, 10)
        self.register_buffer("shift", torch.linspace(0, 1, 10), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = torch.nn.functional.max_pool2d(self.stem(image), 2)
        return self.head(self.dropout(hidden).flatten(1)) + self.shift


class TorchRows(torch.nn.Module):
    """Two inputs of two dtypes, three outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds = torch.nn.Embedding(5, 4)
        self.hidden = torch.nn.Linear(14, 8)
        self.out = torch.nn.Linear(8, 3)

    def forward(self, numbers: torch.Tensor, kind: torch.Tensor) -> tuple[torch.Tensor, ...]:
        joined = torch.cat([numbers, self.kinds(kind).flatten(1)], dim=1)
        logits = self.out(torch.nn.functional.gelu(self.hidden(joined)))
        return logits.sum(1), logits, logits.argmax(1).to(torch.int32)


def _draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)


def _cnn_params() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        "stem": {"weight": _draw(rng, 4, 1, 3, 3), "bias": _draw(rng, 4)},
        "depthwise": {"weight": _draw(rng, 8, 1, 3, 3)},
        "norm": {
            "scale": 1 + _draw(rng, 8),
            "bias": _draw(rng, 8),
            "mean": _draw(rng, 8),
            "var": 1 + _draw(rng, 8) ** 2,
        },
        "head": {"weight": _draw(rng, 128, 10), "bias": _draw(rng, 10)},
    }


def _cnn(params: dict[str, Any], image: Any) -> Any:
    dims = ("NCHW", "OIHW", "NCHW")
    hidden = lax.conv_general_dilated(image, params["stem"]["weight"], (1, 1), "SAME", dimension_numbers=dims)
    hidden = jax.nn.relu(hidden + params["stem"]["bias"][:, None, None])
    weight = params["depthwise"]["weight"]
    hidden = lax.conv_general_dilated(hidden, weight, (1, 1), "SAME", dimension_numbers=dims, feature_group_count=4)
    norm = {name: value[:, None, None] for name, value in params["norm"].items()}
    hidden = (hidden - norm["mean"]) * lax.rsqrt(norm["var"] + 1e-5) * norm["scale"] + norm["bias"]
    hidden = lax.reduce_window(jax.nn.silu(hidden), -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    return hidden.reshape(hidden.shape[0], -1) @ params["head"]["weight"] + params["head"]["bias"]


def _rows_params() -> dict[str, Any]:
    rng = np.random.default_rng(2)
    return {
        "kinds": _draw(rng, 5, 4),
        "hidden": {"weight": _draw(rng, 14, 8), "bias": _draw(rng, 8), "scale": 1 + _draw(rng, 8)},
        "out": {"weight": _draw(rng, 8, 3)},
    }


def _rows(params: dict[str, Any], numbers: Any, kind: Any) -> tuple[Any, ...]:
    joined = jnp.concatenate([numbers, jnp.take(params["kinds"], kind, axis=0).reshape(numbers.shape[0], -1)], axis=1)
    hidden = joined @ params["hidden"]["weight"] + params["hidden"]["bias"]
    centred = hidden - hidden.mean(-1, keepdims=True)
    hidden = centred / jnp.sqrt(centred.var(-1, keepdims=True) + 1e-5) * params["hidden"]["scale"]
    logits = jax.nn.gelu(hidden, approximate=False) @ params["out"]["weight"]
    return logits.sum(1), logits, jnp.argmax(logits, axis=1)


def _block_params() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    return {
        "embed": {"tokens": _draw(rng, 11, 8), "places": _draw(rng, 5, 8)},
        "attention": {name: _draw(rng, 8, 2, 4) for name in ("query", "key", "value")} | {"out": _draw(rng, 2, 4, 8)},
        "mlp": {"up": _draw(rng, 8, 16), "down": _draw(rng, 16, 8)},
    }


def _block(params: dict[str, Any], tokens: Any) -> Any:
    """A causal transformer block with tied embeddings."""
    hidden = params["embed"]["tokens"][tokens] + params["embed"]["places"]
    attention = params["attention"]
    normed = _rms(hidden)
    query, key, value = (jnp.einsum("btc,chd->bthd", normed, attention[name]) for name in ("query", "key", "value"))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / jnp.sqrt(4.0)
    scores = jnp.where(jnp.tril(jnp.ones((5, 5), bool)), scores, -jnp.inf)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)
    hidden = hidden + jnp.einsum("bqhd,hdc->bqc", mixed, attention["out"])
    hidden = hidden + jax.nn.gelu(_rms(hidden) @ params["mlp"]["up"]) @ params["mlp"]["down"]
    return hidden @ params["embed"]["tokens"].T


def _rms(value: Any) -> Any:
    return value * lax.rsqrt(jnp.mean(jnp.square(value), -1, keepdims=True) + 1e-6)


def _as_jax(params: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _as_jax(value) if isinstance(value, Mapping) else jnp.asarray(value) for key, value in params.items()}


def torch_model(name: str) -> TorchModel:
    """Return the seeded torch model `image` or `rows`, with running statistics that are not the defaults."""
    torch.manual_seed(0)
    module: torch.nn.Module = TorchCnn() if name == "image" else TorchRows()
    if name == "image":
        module.train()
        with torch.no_grad():
            module(torch.rand(16, 1, 8, 8))
    return TorchModel(module=module.eval(), signature=IMAGE if name == "image" else ROWS)


def jax_model(name: str) -> JaxModel:
    """Return the seeded JAX model `image`, `rows` or `tokens`."""
    table: dict[str, tuple[Callable[..., Any], dict[str, Any], Signature]] = {
        "image": (_cnn, _cnn_params(), IMAGE),
        "rows": (_rows, _rows_params(), ROWS),
        "tokens": (_block, _block_params(), TOKENS),
    }
    apply, params, signature = table[name]
    return JaxModel(apply=apply, params=_as_jax(params), signature=signature)


def live_outputs(model: TorchModel | JaxModel, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute the outputs with the live model itself."""
    names = [spec.name for spec in model.signature.outputs]
    values = [inputs[spec.name] for spec in model.signature.inputs]
    if isinstance(model, TorchModel):
        with torch.no_grad():
            given = model.module(*(torch.from_numpy(value.copy()) for value in values))
    else:
        given = model.apply(model.params, *(jnp.asarray(value) for value in values))
    outputs = given if isinstance(given, tuple) else (given,)
    return {name: np.asarray(output) for name, output in zip(names, outputs, strict=True)}


def draw_inputs(signature: Signature, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw inputs that fit a signature; integers are small enough to index the models' tables."""
    rng = np.random.default_rng(seed)
    inputs: dict[str, np.ndarray] = {}
    for spec in signature.inputs:
        shape = [batch if isinstance(axis, str) else axis for axis in spec.shape]
        is_float = spec.dtype.startswith("float")
        inputs[spec.name] = (rng.normal(size=shape) if is_float else rng.integers(0, 5, shape)).astype(spec.dtype)
    return inputs


class Zoo:
    """The models, what they compute, and the folder of each format, written when it is first asked for."""

    settings = SETTINGS
    torch_model = staticmethod(torch_model)
    jax_model = staticmethod(jax_model)
    live_outputs = staticmethod(live_outputs)
    draw_inputs = staticmethod(draw_inputs)

    def __init__(self, root: Path) -> None:
        self._root = root
        self._done: dict[tuple[str, str, str], Path] = {}

    def live(self, backend: str, name: str) -> TorchModel | JaxModel:
        return torch_model(name) if backend == "torch" else jax_model(name)

    def folder(self, backend: str, name: str, format_name: str) -> Path:
        key = (backend, name, format_name)
        if key not in self._done:
            folder = self._root / "-".join(key)
            if format_name == backend:
                assert save_native(self.live(backend, name), folder) == backend
            else:
                convert(self.live(backend, name), folder, to=format_name, settings=SETTINGS)
            self._done[key] = folder
        return self._done[key]

    def copy(self, folder: Path, target: Path) -> Path:
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(folder, target))


@pytest.fixture(scope="module")
def unoptimised_jax() -> Iterator[None]:
    """Compile for XLA what graphs are compared with as it stands: its optimisations are a third of such tests' time.

    They change no number beyond rounding, and exporting compiles nothing.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("formats"))


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_functions() -> Iterator[None]:
    """Free what JAX keeps of every function that it compiled: thousands of small graphs add up to gigabytes."""
    yield
    jax.clear_caches()
    if "torch._dynamo" in sys.modules:  # to import it takes seconds
        torch.compiler.reset()
