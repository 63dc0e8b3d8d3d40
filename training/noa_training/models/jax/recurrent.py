"""GRU and LSTM in JAX, one `lax.scan` over time per layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from noa_training.models.jax.layers import Pass, Weights, dropout, embed, linear

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Float, Shaped

    from noa_training.models.recurrent import Recurrent


def recurrent(
    model: Recurrent,
    weights: Weights,
    sequence: Shaped[Array, "batch length ..."],
    mask: Shaped[Array, "batch length"] | None = None,
    *,
    run: Pass,
) -> Float[Array, "batch outputs"]:
    """Compute the outputs, float32. `mask` is not 0 at real steps, which come first."""
    values = embed(weights["embedding"], sequence) if model.vocabulary else sequence.astype(jnp.float32)
    layer_of = _gru if model.cell == "gru" else _lstm
    for layer in range(model.layers):
        if layer:
            values = dropout(values, model.dropout, run, layer)
        values = layer_of(_cell(weights["recurrent"], layer), values)
    return linear(weights["output"], dropout(last_real(values, mask), model.dropout, run, 0))


def last_real(
    states: Float[Array, "batch length hidden"], mask: Shaped[Array, "batch length"] | None
) -> Float[Array, "batch hidden"]:
    """Return the state after the last real step of each row; after the first one where none is real."""
    if mask is None:
        return states[:, -1]
    last = jnp.maximum((mask != 0).sum(axis=1) - 1, 0)
    return jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]


def _gru(cell: Weights, values: Float[Array, "batch length features"]) -> Float[Array, "batch length hidden"]:
    """Compute one layer: r and z gate; n = tanh(W x + b + r * (U h + c)); h' = (1 - z) * n + z * h.

    Source: the equations of `torch.nn.GRU`; Cho et al. 2014, arXiv:1406.1078, eq. 5-8, but for where r is applied.
    """

    def step(hidden: Any, given: Any) -> Any:
        reset_x, update_x, new_x = jnp.split(given, 3, axis=1)
        reset_h, update_h, new_h = jnp.split(hidden @ cell["weight_hh"].T + cell["bias_hh"], 3, axis=1)
        update = jax.nn.sigmoid(update_x + update_h)
        new = jnp.tanh(new_x + jax.nn.sigmoid(reset_x + reset_h) * new_h)
        hidden = (1 - update) * new + update * hidden
        return hidden, hidden

    return _over_time(step, cell, values, _start(cell, values))


def _lstm(cell: Weights, values: Float[Array, "batch length features"]) -> Float[Array, "batch length hidden"]:
    """Compute one layer: c' = f * c + i * g; h' = o * tanh(c').

    Source: the equations of `torch.nn.LSTM`; Hochreiter and Schmidhuber 1997, Gers et al. 2000.
    """

    def step(state: Any, given: Any) -> Any:
        hidden, memory = state
        gates = given + hidden @ cell["weight_hh"].T + cell["bias_hh"]
        take, keep, content, show = jnp.split(gates, 4, axis=1)
        memory = jax.nn.sigmoid(keep) * memory + jax.nn.sigmoid(take) * jnp.tanh(content)
        hidden = jax.nn.sigmoid(show) * jnp.tanh(memory)
        return (hidden, memory), hidden

    start = _start(cell, values)
    return _over_time(step, cell, values, (start, start))


def _over_time(
    step: Any, cell: Weights, values: Float[Array, "batch length features"], start: Any
) -> Float[Array, "batch length hidden"]:
    """Project the inputs of all steps in one product, then go through time."""
    projected = values @ cell["weight_ih"].T + cell["bias_ih"]
    _, states = lax.scan(step, start, jnp.swapaxes(projected, 0, 1))
    return jnp.swapaxes(states, 0, 1)


def _start(cell: Weights, values: Float[Array, "batch length features"]) -> Float[Array, "batch hidden"]:
    return jnp.zeros((values.shape[0], cell["weight_hh"].shape[1]), jnp.float32)


def _cell(weights: Weights, layer: int) -> Weights:
    """Return a layer's arrays by their names without its number."""
    return {kind: weights[f"{kind}_l{layer}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
