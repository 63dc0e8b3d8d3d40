"""Layers that several of the built-in models share, in JAX.

Plain functions of a layer's dict of arrays and the values. A `Pass` says whether it is training; it takes up what
training changes without a gradient. No Flax: the tree of its modules and its defaults (epsilon, momentum, approximate
GELU) are not PyTorch's, and the mapping would be longer than the layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import jax
import jax.numpy as jnp
from jax import lax

from noa.errors import RecipeError
from noa_training.models.layout import BATCH_NORM_MOMENTUM, NORM_EPSILON

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Float, Integer, Shaped

    from noa_training.model_specs import Activation

Weights: TypeAlias = Any
"""Nested dicts of arrays: PyTorch's `state_dict`, its names cut at the dots."""
_CHANNEL = 1


@dataclass(slots=True)
class Pass:
    """One pass through a model. `key` None: evaluation. `updates` gathers new values of states by dotted name.

    It lives while a function is traced, so its dict holds tracers; it must not leave that trace, nor enter a loop.
    """

    key: Array | None = None
    updates: dict[str, Array] = field(default_factory=dict[str, "Array"])

    @property
    def is_training(self) -> bool:
        """Whether dropout drops and batches are normalised by their own statistics."""
        return self.key is not None


def linear(layer: Weights, values: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
    """Multiply by the weight (outputs, inputs), and add the bias if there is one."""
    product = values @ layer["weight"].T
    return cast("jax.Array", product + layer["bias"] if "bias" in layer else product)


def convolve(
    layer: Weights, values: Float[Array, "batch inputs height width"], *, stride: int = 1
) -> Float[Array, "batch outputs rows columns"]:
    """Convolve with the weight (outputs, inputs, kernel, kernel), padded by half of the kernel on all sides."""
    weight = layer["weight"]
    edge = weight.shape[2] // 2
    convolved = lax.conv_general_dilated(
        values,
        weight,
        window_strides=(stride, stride),
        padding=((edge, edge), (edge, edge)),
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
    )
    return convolved + layer["bias"][None, :, None, None] if "bias" in layer else convolved


def batch_norm(
    layer: Weights, values: Float[Array, "batch channels ..."], run: Pass, *, name: str
) -> Float[Array, "batch channels ..."]:
    """Normalise each channel over the batch, in evaluation by the running statistics; `name` is the layer's in the
    tree.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1 and 2; the momentum is in PyTorch's sense.

    Raises:
        RecipeError: in training with one value per channel, which has no variance.
    """
    axes = tuple(axis for axis in range(values.ndim) if axis != _CHANNEL)
    aligned = (1, -1, *[1] * (values.ndim - 2))
    if run.is_training:
        count = math.prod(values.shape[axis] for axis in axes)
        if count == 1:
            raise RecipeError(
                "`batch_size` is too small for batch normalisation",
                expected="at least 2 values per channel",
                received="1",
                field="batch_size",
            )
        mean = values.mean(axes)
        variance = jnp.square(values - mean.reshape(aligned)).mean(axes)
        kept = 1 - BATCH_NORM_MOMENTUM
        unbiased = variance * (count / (count - 1))
        run.updates[f"{name}.running_mean"] = kept * layer["running_mean"] + BATCH_NORM_MOMENTUM * mean
        run.updates[f"{name}.running_var"] = kept * layer["running_var"] + BATCH_NORM_MOMENTUM * unbiased
    else:
        mean, variance = layer["running_mean"], layer["running_var"]
    scale = layer["weight"] * lax.rsqrt(variance + NORM_EPSILON)
    return (values - mean.reshape(aligned)) * scale.reshape(aligned) + layer["bias"].reshape(aligned)


def layer_norm(layer: Weights, values: Float[Array, "... width"]) -> Float[Array, "... width"]:
    """Normalise the last axis (Ba et al. 2016, arXiv:1607.06450, eq. 4) with PyTorch's epsilon."""
    centred = values - values.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * lax.rsqrt(variance + NORM_EPSILON) * layer["weight"] + layer["bias"]


def rms_norm(layer: Weights, values: Float[Array, "... width"]) -> Float[Array, "... width"]:
    """Divide by the root of the mean square of the last axis (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4)."""
    return values * lax.rsqrt(jnp.square(values).mean(-1, keepdims=True) + NORM_EPSILON) * layer["weight"]


def embed(layer: Weights, tokens: Integer[Array, "batch length"]) -> Float[Array, "batch length width"]:
    """Return the vectors of tokens, whatever their integer dtype; what is outside of the table is its nearest end."""
    return jnp.take(layer["weight"], tokens.astype(jnp.int32), axis=0, mode="clip")


def joined(inputs: tuple[Shaped[Array, "batch ..."], ...]) -> Float[Array, "batch features"]:
    """Return all inputs flattened and side by side, float32."""
    flat = [value.reshape(value.shape[0], -1).astype(jnp.float32) for value in inputs]
    return flat[0] if len(flat) == 1 else jnp.concatenate(flat, axis=1)


def activate(values: Float[Array, "*shape"], name: Activation) -> Float[Array, "*shape"]:
    """Return ReLU or the exact GELU; JAX's default is the tanh approximation."""
    return jax.nn.relu(values) if name == "relu" else jax.nn.gelu(values, approximate=False)


def dropout(values: Float[Array, "*shape"], chance: float, run: Pass, place: int) -> Float[Array, "*shape"]:
    """In training set a share `chance` to 0 and scale the rest up; `place` tells the dropouts of a model apart."""
    if run.key is None or not chance:
        return values
    kept = jax.random.bernoulli(jax.random.fold_in(run.key, place), 1 - chance, values.shape)
    return jnp.where(kept, values / (1 - chance), 0.0)
