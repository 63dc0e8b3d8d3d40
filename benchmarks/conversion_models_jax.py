"""The same models as `conversion_models_torch`, as one writes them in JAX, over the same weights by the same names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks.conversion_models_torch import HEADS, LAYERS, MODEL, WIDTHS

Params = Mapping[str, Array]


def linear(params: Params, name: str, x: Array) -> Array:
    return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]


def mlp(params: Params, x: Array) -> Array:
    return linear(params, "4", jax.nn.relu(linear(params, "2", jax.nn.relu(linear(params, "0", x)))))


def conv(params: Params, name: str, x: Array, *, stride: int = 1, padding: int = 1) -> Array:
    return jax.lax.conv_general_dilated(x, params[f"{name}.weight"], (stride, stride), [(padding, padding)] * 2)


def batch_norm(params: Params, name: str, x: Array) -> Array:
    scale = params[f"{name}.weight"] * jax.lax.rsqrt(params[f"{name}.running_var"] + 1e-5)
    shift = params[f"{name}.bias"] - params[f"{name}.running_mean"] * scale
    return x * scale[:, None, None] + shift[:, None, None]


def resnet(params: Params, x: Array) -> Array:
    x = conv(params, "stem", x)
    for at in range(len(WIDTHS)):
        name, stride = f"blocks.{at}", 1 + (at > 0)
        inner = jax.nn.relu(batch_norm(params, f"{name}.bn1", conv(params, f"{name}.conv1", x, stride=stride)))
        inner = batch_norm(params, f"{name}.bn2", conv(params, f"{name}.conv2", inner))
        x = jax.nn.relu(inner + conv(params, f"{name}.shortcut", x, stride=stride, padding=0))
    return linear(params, "head", x.mean((2, 3)))


def layer_norm(params: Params, name: str, x: Array) -> Array:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * params[f"{name}.weight"] + params[f"{name}.bias"]


def attention(params: Params, name: str, x: Array) -> Array:
    batch, seq, _ = x.shape
    query, key, value = (
        part.reshape(batch, seq, HEADS, MODEL // HEADS).transpose(0, 2, 1, 3)
        for part in jnp.split(linear(params, f"{name}.qkv", x), 3, axis=-1)
    )
    weights = jax.nn.softmax(query @ key.transpose(0, 1, 3, 2) / math.sqrt(MODEL // HEADS))
    return linear(params, f"{name}.out", (weights @ value).transpose(0, 2, 1, 3).reshape(batch, seq, MODEL))


def transformer(params: Params, x: Array) -> Array:
    for at in range(LAYERS):
        x = x + attention(params, str(at), layer_norm(params, f"{at}.norm1", x))
        inner = linear(params, f"{at}.up", layer_norm(params, f"{at}.norm2", x))
        x = x + linear(params, f"{at}.down", jax.nn.gelu(inner, approximate=False))
    return layer_norm(params, str(LAYERS), x)


MODELS: dict[str, Callable[[Params, Array], Array]] = {"MLP": mlp, "ResNet": resnet, "transformer": transformer}
