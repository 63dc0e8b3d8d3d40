"""The residual network for tables in JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax

from noa_training.models.jax.layers import Pass, Weights, batch_norm, dropout, joined, linear

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Float, Shaped

    from noa_training.models.tabular_resnet import TabularResNet


def tabular_resnet(
    model: TabularResNet, weights: Weights, *inputs: Shaped[Array, "batch ..."], run: Pass
) -> Float[Array, "batch outputs"]:
    """Compute the outputs, float32."""
    values = linear(weights["input"], joined(inputs))
    for index in range(model.blocks):
        layers = weights["blocks"][str(index)]
        inner = batch_norm(layers["norm"], values, run, name=f"blocks.{index}.norm")
        inner = dropout(jax.nn.relu(linear(layers["linear1"], inner)), model.dropout, run, 2 * index)
        inner = dropout(linear(layers["linear2"], inner), model.residual_dropout, run, 2 * index + 1)
        values = values + inner
    return linear(weights["output"], jax.nn.relu(batch_norm(weights["norm"], values, run, name="norm")))
