"""The JAX backend: one jitted step with donated buffers; the epoch's rows and rates lie on the device.

A model is its params, its state (running statistics, which steps change and gradients do not) and a function of both.
A step sends nothing to the device: its number is part of the state there, and chooses rows, rate and random key (folded
in from the recipe's seed), so that a resumed job draws the same numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noa.errors import RecipeError
from noa.signatures import Signature
from noa_conversion import JaxModel
from noa_training.backends.interface import TrainerState
from noa_training.backends.jax_optimizers import clip_by_global_norm, first_moments, make_update, own_copy
from noa_training.backends.state_checks import check_arrays
from noa_training.datasets import NOT_COUNTED, Objective, Split
from noa_training.evaluation import predict
from noa_training.model_specs import Factories, ModelShape
from noa_training.models.jax.build import build_jax
from noa_training.models.jax.layers import Pass
from noa_training.models.weights import initial_weights, layout_of, state_dict_from_tree
from noa_training.recipes import Recipe


class JaxBackend:
    """Trains pure functions over nested dicts of arrays."""

    def trainer(self, recipe: Recipe, shape: ModelShape, train: Split, *, threads: int) -> JaxTrainer:
        """Return a trainer with first weights. XLA reads its thread limit once, at start: the worker sets it."""
        del threads
        return JaxTrainer(recipe, _build(recipe, shape), train)

    def live_model(
        self, recipe: Recipe, shape: ModelShape, weights: Mapping[str, np.ndarray], signature: Signature
    ) -> JaxModel:
        """Rebuild the function and its weights; the state is part of them, as nothing changes it any more."""
        network = _build(recipe, shape)
        check_arrays(weights, network.shapes(), what="weight")
        return JaxModel(apply=_evaluation(network), params=unflatten_params(weights), signature=signature)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Network:
    """First params, first state by dotted name, and `apply(weights, *inputs, run=Pass)`."""

    params: Any
    state: Mapping[str, np.ndarray]
    apply: Callable[..., Any]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of params and state by dotted name."""
        arrays = state_dict_from_tree(self.params) | dict(self.state)
        return {name: tuple(value.shape) for name, value in arrays.items()}


class JaxTrainer:
    """Params, state, moments and the training rows on the device, and the compiled step."""

    def __init__(self, recipe: Recipe, network: _Network, train: Split) -> None:
        inputs = [own_copy(array) for array in train.inputs.values()]
        kind = np.int32 if recipe.objective in ("cross_entropy", "token_cross_entropy") else np.float32
        self._data = (*inputs, own_copy(train.targets.astype(kind)))
        # Copies: donated buffers must be this trainer's own.
        self._params = jax.tree.map(own_copy, network.params)
        self._state = {name: own_copy(value) for name, value in network.state.items()}
        self._optimizer = recipe.optimizer
        self._moments = first_moments(recipe.optimizer, self._params)
        self._counters = _counters(0, 0, 0)
        self._compiled = jax.jit(_make_step(recipe, network), donate_argnums=(0, 1, 2, 3))
        self._predict = jax.jit(_evaluation(network))
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
        self._params, self._state, self._moments, self._counters = self._compiled(
            self._params, self._state, self._moments, self._counters, self._plan, self._data
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
        weights = _joined(self._params, self._state)
        return predict(lambda inputs: np.asarray(self._predict(weights, *inputs.values())), split)

    def state(self) -> TrainerState:
        """Return copies of weights, state and moments."""
        moments = {
            f"{kind}/{name}": value
            for kind, tree in self._moments.items()
            for name, value in state_dict_from_tree(tree).items()
            if self._step
        }
        state = {name: np.array(value) for name, value in self._state.items()}
        return TrainerState(step=self._step, weights=state_dict_from_tree(self._params) | state, moments=moments)

    def restore(self, state: TrainerState) -> None:
        """Continue from `state`."""
        shapes = {name: tuple(value.shape) for name, value in state_dict_from_tree(self._params).items()}
        states = {name: tuple(value.shape) for name, value in self._state.items()}
        expected = {f"{kind}/{name}": size for kind in self._moments for name, size in shapes.items() if state.step}
        check_arrays(state.weights, shapes | states, what="weight")
        check_arrays(state.moments, expected, what="optimizer state")
        self._params = unflatten_params({name: state.weights[name] for name in shapes})
        self._state = {name: own_copy(state.weights[name]) for name in states}
        self._moments = first_moments(self._optimizer, self._params)
        for kind in self._moments if state.step else ():
            of_kind = {name: state.moments[f"{kind}/{name}"] for name in shapes}
            self._moments[kind] = unflatten_params(of_kind)
        self._step = state.step
        self._counters = _counters(state.step, 0, 0)
        self._taken = self._position = 0
        self._kept = np.zeros(0, np.float32)


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


def _make_step(recipe: Recipe, network: _Network) -> Callable[..., Any]:
    loss_of, update, clip = _loss_of(recipe.objective), make_update(recipe.optimizer), recipe.gradient_clip

    def step(params: Any, state: Any, moments: Any, counters: Any, plan: Any, data: Any) -> Any:
        order, rates = plan
        done, position, losses = counters
        rows, rate = order[position], rates[position]
        *inputs, targets = [array.at[rows].get(mode="promise_in_bounds") for array in data]
        key = jax.random.fold_in(jax.random.key(recipe.seed), done)

        def loss_and_updates(tree: Any) -> Any:
            run = Pass(key=key)
            loss = loss_of(network.apply(_joined(tree, state), *inputs, run=run), targets)
            return loss, run.updates

        (loss, updates), gradients = jax.value_and_grad(loss_and_updates, has_aux=True)(params)
        if clip is not None:
            gradients = clip_by_global_norm(gradients, clip)
        params, moments = update(params, gradients, moments, rate, done + 1)
        return params, {**state, **updates}, moments, (done + 1, position + 1, losses.at[position].set(loss))

    return step


def _loss_of(objective: Objective) -> Callable[[Any, Any], Any]:
    def classes(logits: Any, targets: Any) -> Any:
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], axis=1)
        return -jnp.mean(chosen)

    def tokens(logits: Any, targets: Any) -> Any:
        counted = targets != NOT_COUNTED
        wanted = jnp.where(counted, targets, 0)[:, :, None]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), wanted, axis=2)[:, :, 0]
        return -jnp.sum(jnp.where(counted, chosen, 0.0)) / jnp.maximum(jnp.sum(counted), 1)

    def binary(logits: Any, targets: Any) -> Any:
        values = logits.reshape(targets.shape)
        return jnp.mean(jnp.maximum(values, 0) - values * targets + jnp.log1p(jnp.exp(-jnp.abs(values))))

    def squared(outputs: Any, targets: Any) -> Any:
        return jnp.mean(jnp.square(outputs.reshape(targets.shape) - targets))

    losses = {"cross_entropy": classes, "token_cross_entropy": tokens, "binary_cross_entropy": binary, "mse": squared}
    return losses[objective]


def _build(recipe: Recipe, shape: ModelShape) -> _Network:
    model = recipe.spec
    if not isinstance(model, Factories):
        first = initial_weights(model, shape, seed=recipe.seed)
        states = [parameter.name for parameter in layout_of(model, shape) if parameter.is_state]
        params = unflatten_params({name: value for name, value in first.items() if name not in states})
        return _Network(params=params, state={name: first[name] for name in states}, apply=build_jax(model))
    if model.jax is None:
        raise RecipeError("`model` has no factory for the backend `jax`", expected="Factories(jax=...)")
    init, apply = model.jax(shape)
    params = init(recipe.seed)
    if not isinstance(params, Mapping):
        raise RecipeError(
            "`init` returned no params", expected="nested dicts of arrays", received=type(params).__name__
        )
    takes_key = "key" in inspect.signature(apply).parameters

    def keyed(tree: Any, *inputs: Any, run: Pass) -> Any:
        return apply(tree, *inputs, key=run.key) if takes_key else apply(tree, *inputs)

    return _Network(params=params, state={}, apply=keyed)


def _evaluation(network: _Network) -> Callable[..., Any]:
    def run(weights: Any, *inputs: Any) -> Any:
        return network.apply(weights, *inputs, run=Pass())

    return run


def _joined(params: Any, state: Mapping[str, Any]) -> Any:
    """Return one tree of params and state, without changing either."""
    if not state:
        return params
    tree = jax.tree.map(lambda leaf: leaf, params)  # new dicts, the same arrays
    for name, value in state.items():
        *branches, leaf = name.split(".")
        place = tree
        for branch in branches:
            place = place.setdefault(branch, {})
        place[leaf] = value
    return tree


def _counters(step: int, position: int, steps: int) -> tuple[Any, Any, Any]:
    """Return steps done, position in the epoch, and room for the losses of its `steps`."""
    return own_copy(np.int32(step)), own_copy(np.int32(position)), own_copy(np.zeros(steps, np.float32))
