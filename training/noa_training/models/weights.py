"""Weights of the built-in models as numpy arrays: first values, and the way between a `state_dict` and a pytree.

A `state_dict` is flat, with dotted names; a pytree here is nested dicts. The mapping renames nothing and computes
nothing, so it loses nothing: arrays keep dtype, shape and bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from noa.errors import InvalidInputError, RecipeError
from noa_training.model_specs import ModelShape
from noa_training.models.layout import Filled, Layout, Parameter, Uniform
from noa_training.models.library import BuiltIn

# Separates the stream of first weights from the streams of the batch order, which are seeded with (seed, epoch).
_WEIGHTS_STREAM = 0x57656967
MOST_ELEMENTS = 1 << 31
"""Parameters that a built-in model may have: 8 GiB in float32, and AdamW keeps three times that."""


def layout_of(model: BuiltIn, shape: ModelShape) -> Layout:
    """Return a model's parameter tree for the shapes of a dataset.

    Raises:
        RecipeError: the model cannot take the inputs, or would have more than `MOST_ELEMENTS` parameters.
    """
    layout = model.layout(shape)
    elements = sum(parameter.elements for parameter in layout)
    if elements > MOST_ELEMENTS:
        largest = max(layout, key=lambda parameter: parameter.elements)
        raise RecipeError(
            "`model` has more parameters than can be trained here",
            expected=f"at most {MOST_ELEMENTS:,}",
            received=f"{elements:,}, the largest is `{largest.name}` {largest.shape}",
            field="model",
        )
    return layout


def initial_weights(model: BuiltIn, shape: ModelShape, *, seed: int) -> dict[str, np.ndarray]:
    """Return first values of all parameters and states, float32, as the layout says; equal on both backends.

    The random numbers are numpy's (PCG64), drawn in the order of the layout.

    Raises:
        RecipeError: as `layout_of`.
    """
    random = np.random.default_rng([seed, _WEIGHTS_STREAM])
    return {parameter.name: _draw(parameter, random) for parameter in layout_of(model, shape)}


def tree_from_state_dict(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dicts of numpy arrays from dotted names; tensors may be numpy's or PyTorch's.

    Raises:
        InvalidInputError: a name is both an array and a branch, e.g. `a` and `a.b`, or a part of it is empty.
    """
    tree: dict[str, Any] = {}
    for name, value in state.items():
        *branches, leaf = name.split(".")
        place = tree
        for branch in branches:
            place = place.setdefault(branch, {})
            if not isinstance(place, dict):
                raise _no_tree(name)
        if leaf in place or not all((*branches, leaf)):
            raise _no_tree(name)
        place[leaf] = _array(value)
    return tree


def state_dict_from_tree(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return copies of the arrays of nested dicts by dotted name; `torch.from_numpy` makes tensors of them.

    Raises:
        RecipeError: a name holds a dot, so that it could not be told from a branch.
    """
    flat: dict[str, np.ndarray] = {}
    _flatten(tree, "", flat)
    return flat


def _flatten(tree: Mapping[str, Any], prefix: str, flat: dict[str, np.ndarray]) -> None:
    for name, value in tree.items():
        if "." in name or not name:
            raise RecipeError(
                f"the parameter name `{name}` holds a dot" if name else "a parameter has no name",
                expected="nested dicts of plain names",
                received=prefix + name,
            )
        if isinstance(value, Mapping):
            _flatten(cast("Mapping[str, Any]", value), f"{prefix}{name}.", flat)
        else:
            flat[prefix + name] = np.array(value)


def _array(value: Any) -> np.ndarray:
    detach = getattr(value, "detach", None)  # a parameter of PyTorch's that wants a gradient gives no array
    return np.array(value if detach is None else detach().cpu().numpy())


def _no_tree(name: str) -> InvalidInputError:
    return InvalidInputError("names of weights make no tree", expected="parts of names, or arrays", received=name)


def _draw(parameter: Parameter, random: np.random.Generator) -> np.ndarray:
    first = parameter.first
    if isinstance(first, Filled):
        return np.full(parameter.shape, first.value, np.float32)
    if isinstance(first, Uniform):
        return random.uniform(-first.bound, first.bound, parameter.shape).astype(np.float32)
    return random.normal(0.0, first.deviation, parameter.shape).astype(np.float32)
