"""The multi-layer perceptron in JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING

from noa_training.models.jax.layers import Pass, Weights, activate, dropout, joined, linear

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Float, Shaped

    from noa_training.models.mlp import Mlp


def mlp(model: Mlp, weights: Weights, *inputs: Shaped[Array, "batch ..."], run: Pass) -> Float[Array, "batch outputs"]:
    """Compute the outputs, float32."""
    values = joined(inputs)
    for index in range(len(model.hidden)):
        values = activate(linear(weights["layers"][str(index)], values), model.activation)
        values = dropout(values, model.dropout, run, index)
    return linear(weights["output"], values)
