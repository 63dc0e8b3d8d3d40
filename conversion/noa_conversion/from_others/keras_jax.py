"""A Keras model on JAX as a pure function of its variables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp


def as_function(model: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return `apply(params, *inputs)` in inference mode, and the variables by their paths in the model."""
    trained = [(variable.path, variable.value) for variable in model.trainable_variables]
    fixed = [(variable.path, variable.value) for variable in model.non_trainable_variables]
    params = {path.replace("/", "."): jnp.asarray(value) for path, value in (*trained, *fixed) if _is_float(value)}
    held = {path: value for path, value in fixed if not _is_float(value)}  # states of random layers: nobody draws now

    def apply(params: dict[str, Any], *inputs: Any) -> Any:
        def value(path: str) -> Any:
            return held[path] if path in held else params[path.replace("/", ".")]

        found, _ = model.stateless_call(
            [value(path) for path, _ in trained],
            [value(path) for path, _ in fixed],
            inputs[0] if len(inputs) == 1 else list(inputs),
            training=False,
        )
        return tuple(found) if isinstance(found, (list, tuple)) else found

    return apply, params


def _is_float(value: Any) -> bool:
    return bool(jnp.issubdtype(value.dtype, jnp.floating))
