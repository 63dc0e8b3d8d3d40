"""The JAX backend: one jitted step with donated buffers; the epoch's rows and rates lie on the device.

A step sends nothing to the device: its number is part of the state there, and chooses rows, rate and random key (folded
in from the recipe's seed), so that a resumed job draws the same numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from noa.errors import RecipeError
from noa.signatures import Signature
from noa_conversion import JaxModel
from noa_training.backends.interface import TrainerState
from noa_training.backends.jax_optimizers import clip_by_global_norm, first_moments, make_update, own_copy
from noa_training.backends.state_checks import check_arrays
from noa_training.datasets import Objective, Split
from noa_training.evaluation import predict
from noa_training.model_specs import Factories, ModelShape
from noa_training.models.jax_models import build_jax
from noa_training.models.layout import initial_weights
from noa_training.recipes import Recipe


class JaxBackend:
    """Trains pure functions over nested dicts of arrays."""

    def trainer(self, recipe: Recipe, shape: ModelShape, train: Split, *, threads: int) -> JaxTrainer:
        """Return a trainer with first weights. XLA reads its thread limit once, at start: the worker sets it."""
        del threads
        params, apply = _build(recipe, shape)
        return JaxTrainer(recipe, params, apply, train)

    def live_model(
        self, recipe: Recipe, shape: ModelShape, weights: Mapping[str, np.ndarray], signature: Signature
    ) -> JaxModel:
        """Rebuild the function and its params."""
        params, apply = _build(recipe, shape)
        expected = {name: tuple(value.shape) for name, value in flatten_params(params).items()}
        check_arrays(weights, expected, what="weight")
        return JaxModel(apply=_evaluation(apply), params=unflatten_params(weights), signature=signature)


class JaxTrainer:
    """Params, moments and the training rows on the device, and the compiled step."""

    def __init__(self, recipe: Recipe, params: Any, apply: Callable[..., Any], train: Split) -> None:
        inputs = [own_copy(array) for array in train.inputs.values()]
        kind = np.int32 if recipe.objective == "cross_entropy" else np.float32
        self._data = (*inputs, own_copy(train.targets.astype(kind)))
        # Copies: donated buffers must be this trainer's own.
        self._params = jax.tree.map(own_copy, params)
        self._moments = first_moments(recipe.optimizer, self._params)
        self._counters = _counters(0, 0, 0)
        self._compiled = jax.jit(_make_step(recipe, apply), donate_argnums=(0, 1, 2))
        self._predict = jax.jit(_evaluation(apply))
        self._step = 0
        # The epoch's losses lie on the device too: fetching them one by one would cost more than a small model's step.
        self._taken = 0
        self._position = 0
        self._kept = np.zeros(0, np.float32)
        self._plan: tuple[Any, Any] = (None, None)

    def begin_epoch(self, order: np.ndarray, rates: np.ndarray, position: int) -> None:
        """Put rows and rates of an epoch on the device."""
        self._kept = self.take_losses()
        self._plan = (own_copy(order), own_copy(rates))
        self._counters = _counters(self._step, position, len(order))
        self._taken = self._position = position

    def step(self) -> None:
        """Dispatch one step; it runs while Python goes on."""
        self._params, self._moments, self._counters = self._compiled(
            self._params, self._moments, self._counters, self._plan, self._data
        )
        self._position += 1
        self._step += 1

    def take_losses(self) -> np.ndarray:
        """Return the losses since the last call; waits for their steps."""
        fresh = np.asarray(self._counters[2])[self._taken : self._position]
        losses = np.concatenate([self._kept, fresh])  # a copy: the device's buffer is donated to the next step
        self._taken, self._kept = self._position, np.zeros(0, np.float32)
        return losses

    def predict(self, split: Split) -> np.ndarray:
        """Return the outputs for all rows, in evaluation mode."""
        return predict(lambda inputs: np.asarray(self._predict(self._params, *inputs.values())), split)

    def state(self) -> TrainerState:
        """Return copies of weights and moments."""
        moments = {
            f"{kind}/{name}": value
            for kind, tree in self._moments.items()
            for name, value in flatten_params(tree).items()
            if self._step
        }
        return TrainerState(step=self._step, weights=flatten_params(self._params), moments=moments)

    def restore(self, state: TrainerState) -> None:
        """Continue from `state`."""
        shapes = {name: tuple(value.shape) for name, value in flatten_params(self._params).items()}
        expected = {f"{kind}/{name}": size for kind in self._moments for name, size in shapes.items() if state.step}
        check_arrays(state.weights, shapes, what="weight")
        check_arrays(state.moments, expected, what="optimizer state")
        self._params = unflatten_params(state.weights)
        for kind in self._moments if state.step else ():
            of_kind = {name: state.moments[f"{kind}/{name}"] for name in shapes}
            self._moments[kind] = unflatten_params(of_kind)
        self._step = state.step
        self._counters = _counters(state.step, 0, 0)
        self._taken = self._position = 0
        self._kept = np.zeros(0, np.float32)


def flatten_params(params: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Return copies of the arrays of nested dicts by dotted name."""
    flat: dict[str, np.ndarray] = {}
    for name, value in cast("Mapping[str, Any]", params).items():
        if "." in name:
            raise RecipeError(f"the parameter name `{name}` holds a dot", expected="nested dicts of plain names")
        if isinstance(value, Mapping):
            flat |= flatten_params(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = np.array(value)
    return flat


def unflatten_params(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return nested dicts of device arrays from dotted names."""
    params: dict[str, Any] = {}
    for name, value in flat.items():
        *folders, leaf = name.split(".")
        place = params
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = own_copy(value)
    return params


def _make_step(recipe: Recipe, apply: Callable[..., Any]) -> Callable[..., Any]:
    loss_of, update, clip = _loss_of(recipe.objective), make_update(recipe.optimizer), recipe.gradient_clip

    def step(params: Any, moments: Any, counters: Any, plan: Any, data: Any) -> Any:
        order, rates = plan
        done, position, losses = counters
        rows, rate = order[position], rates[position]
        *inputs, targets = [array.at[rows].get(mode="promise_in_bounds") for array in data]
        key = jax.random.fold_in(jax.random.key(recipe.seed), done)
        loss, gradients = jax.value_and_grad(lambda tree: loss_of(apply(tree, *inputs, key=key), targets))(params)
        if clip is not None:
            gradients = clip_by_global_norm(gradients, clip)
        params, moments = update(params, gradients, moments, rate, done + 1)
        return params, moments, (done + 1, position + 1, losses.at[position].set(loss))

    return step


def _loss_of(objective: Objective) -> Callable[[Any, Any], Any]:
    def classes(logits: Any, targets: Any) -> Any:
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], axis=1)
        return -jnp.mean(chosen)

    def binary(logits: Any, targets: Any) -> Any:
        values = logits.reshape(targets.shape)
        return jnp.mean(jnp.maximum(values, 0) - values * targets + jnp.log1p(jnp.exp(-jnp.abs(values))))

    def squared(outputs: Any, targets: Any) -> Any:
        return jnp.mean(jnp.square(outputs.reshape(targets.shape) - targets))

    return {"cross_entropy": classes, "binary_cross_entropy": binary, "mse": squared}[objective]


def _build(recipe: Recipe, shape: ModelShape) -> tuple[Any, Callable[..., Any]]:
    """Return first params and `apply(params, *inputs, key)`."""
    model = recipe.model
    if not isinstance(model, Factories):
        return unflatten_params(initial_weights(model, shape, seed=recipe.seed)), build_jax(model, shape)
    if model.jax is None:
        raise RecipeError("`model` has no factory for the backend `jax`", expected="Factories(jax=...)")
    init, apply = model.jax(shape)
    params = init(recipe.seed)
    if not isinstance(params, Mapping):
        raise RecipeError(
            "`init` returned no params", expected="nested dicts of arrays", received=type(params).__name__
        )
    if "key" in inspect.signature(apply).parameters:
        return params, apply

    def keyless(tree: Any, *inputs: Any, key: Any = None) -> Any:
        del key
        return apply(tree, *inputs)

    return params, keyless


def _evaluation(apply: Callable[..., Any]) -> Callable[..., Any]:
    def run(params: Any, *inputs: Any) -> Any:
        return apply(params, *inputs, key=None)

    return run


def _counters(step: int, position: int, steps: int) -> tuple[Any, Any, Any]:
    """Return steps done, position in the epoch, and room for the losses of its `steps`."""
    return own_copy(np.int32(step)), own_copy(np.int32(position)), own_copy(np.zeros(steps, np.float32))
