"""Recipes: what to train, the same for both backends.

A recipe is a frozen value in a user's Python file. `check_recipe` (in `recipe_checks.py`) refuses a wrong one before
any work, `override` (in `overrides.py`) makes a changed copy from dotted names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from noa_training.datasets import Dataset, Objective
from noa_training.models.library import ModelSpec, model_named

Scalar: TypeAlias = str | int | float | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay on every parameter. The defaults are PyTorch's, on both backends.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2, with the decay scaled by the learning rate as in
    PyTorch.
    """

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class SGD:
    """Stochastic gradient descent; `weight_decay` is added to the gradient (L2), momentum has no dampening, as in
    PyTorch."""

    learning_rate: float = 1e-2
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """The optimizer's learning rate at every step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupCosine:
    """Linear warm-up over `warmup_steps`, then a half cosine down to `final_fraction` of the rate at the last step."""

    warmup_steps: int = 0
    final_fraction: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyStopping:
    """End when the recipe's `best_by` metric has not improved by more than `min_delta` for `patience` epochs."""

    patience: int = 5
    min_delta: float = 0.0


Optimizer: TypeAlias = AdamW | SGD
Schedule: TypeAlias = Constant | WarmupCosine


def _no_params() -> dict[str, Scalar]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to train.

    `data` is called with `data_params` as keyword arguments and gives a `Dataset`; it must give the same rows each
    time. The metric `best_by` on the validation split chooses the epoch whose weights become the model. `gradient_clip`
    is the largest global norm of the gradient (None: no limit). The last incomplete batch of an epoch is left out; rows
    are shuffled anew each epoch, so other rows are left out then. `model` is a value as `resnet(...)` gives it, the
    name of a built-in model with `model_params` for its fields, or `Factories`.
    """

    name: str
    data: Callable[..., Dataset]
    model: ModelSpec | str
    objective: Objective
    metrics: tuple[str, ...] = ()
    optimizer: Optimizer = field(default_factory=AdamW)
    schedule: Schedule = field(default_factory=Constant)
    epochs: int = 10
    batch_size: int = 64
    seed: int = 0
    gradient_clip: float | None = None
    best_by: str = "loss"
    early_stopping: EarlyStopping | None = None
    data_params: Mapping[str, Scalar] = field(default_factory=_no_params)
    model_params: Mapping[str, object] = field(default_factory=dict[str, object])

    @property
    def spec(self) -> ModelSpec:
        """The model; where it is named, with its fields as `model_params` sets them.

        Raises:
            RecipeError: the name or a field is not valid.
        """
        if isinstance(self.model, str):
            return model_named(self.model, self.model_params, where=self.name)
        return self.model
