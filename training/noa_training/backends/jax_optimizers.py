"""AdamW and SGD for JAX as plain functions, operation for operation as PyTorch computes them.

Written out instead of taken from optax: its defaults differ (AdamW decay 1e-4), and equal state names let a model that
was trained on one backend be continued on the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from noa_training.recipes import SGD, AdamW, Optimizer

Params: TypeAlias = Any
Moments: TypeAlias = dict[str, Params]
_CLIP_EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_


def first_moments(optimizer: Optimizer, params: Params) -> Moments:
    """Return the optimizer's state before the first step, by kind."""
    kinds = ("first_moment", "second_moment") if isinstance(optimizer, AdamW) else ("momentum",)
    if isinstance(optimizer, SGD) and not optimizer.momentum:
        kinds = ()
    return {kind: jax.tree.map(lambda leaf: own_copy(np.zeros(leaf.shape, leaf.dtype)), params) for kind in kinds}


def own_copy(array: Any) -> jax.Array:
    """Return a copy on the device that nobody else has, so that a step may be given its buffer.

    `jnp.array`, `jnp.zeros` and their like compile a program for every shape, for which a small job would wait.
    """
    # Twice: `may_alias` is heeded for what is on the device already; memory of numpy's is taken as it is, if aligned.
    return jax.device_put(jax.device_put(array), may_alias=False).block_until_ready()


def make_update(optimizer: Optimizer) -> Callable[..., tuple[Params, Moments]]:
    """Return `update(params, gradients, moments, rate, step)`; `step` counts from 1, `rate` is a float32 scalar."""
    return _adamw(optimizer) if isinstance(optimizer, AdamW) else _sgd(optimizer)


def clip_by_global_norm(gradients: Params, limit: float) -> Params:
    """Scale all gradients so that their joint Euclidean norm is at most `limit`."""
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients)))
    scale = jnp.minimum(1.0, limit / (norm + _CLIP_EPSILON))
    return jax.tree.map(lambda leaf: leaf * scale, gradients)


def _adamw(optimizer: AdamW) -> Callable[..., tuple[Params, Moments]]:
    beta1, beta2 = optimizer.beta1, optimizer.beta2

    def update(params: Params, gradients: Params, moments: Moments, rate: Any, step: Any) -> tuple[Params, Moments]:
        first = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, moments["first_moment"], gradients)
        second = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, moments["second_moment"], gradients)
        count = step.astype(jnp.float32)
        # -expm1(n * log(beta)) is 1 - beta**n without the cancellation that float32 would suffer in the first steps.
        # The logarithm is Python's: that of 0.999 in float32 is off by 1e-5, and with it every first step.
        correction1 = -jnp.expm1(count * math.log(beta1)) if beta1 else jnp.float32(1)
        correction2 = -jnp.expm1(count * math.log(beta2)) if beta2 else jnp.float32(1)

        def move(value: Any, m: Any, v: Any) -> Any:
            scale = jnp.sqrt(v) / jnp.sqrt(correction2) + optimizer.epsilon
            # PyTorch rounds the decayed value before it subtracts. Compilers make one fused operation of both, which is
            # off by one rounding in the same direction for many weights, unless a choice (always the first) is between.
            decayed = jnp.where(scale > 0, value * (1 - rate * optimizer.weight_decay), value)
            return decayed - (rate / correction1) * m / scale

        return jax.tree.map(move, params, first, second), {"first_moment": first, "second_moment": second}

    return update


def _sgd(optimizer: SGD) -> Callable[..., tuple[Params, Moments]]:
    def update(params: Params, gradients: Params, moments: Moments, rate: Any, step: Any) -> tuple[Params, Moments]:
        if optimizer.weight_decay:
            gradients = jax.tree.map(lambda g, p: g + optimizer.weight_decay * p, gradients, params)
        if optimizer.momentum:
            # torch's first buffer is the first gradient; zeros * momentum + gradient is the same.
            buffers = jax.tree.map(lambda b, g: optimizer.momentum * b + g, moments["momentum"], gradients)
            moments = {"momentum": buffers}
            if optimizer.nesterov:
                gradients = jax.tree.map(lambda g, b: g + optimizer.momentum * b, gradients, buffers)
            else:
                gradients = buffers
        return jax.tree.map(lambda p, g: p - rate * g, params, gradients), moments

    return update
