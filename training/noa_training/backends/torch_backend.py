"""The PyTorch backend: an eager loop on one CPU device with fused optimizers and no host synchronisation per step.

Dropout and whatever else draws random numbers uses torch's default generator, seeded anew for each step from (seed,
step), so that a resumed job draws the same numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from noa.errors import RecipeError
from noa.signatures import Signature
from noa_conversion import TorchModel
from noa_training.backends.interface import TrainerState
from noa_training.backends.state_checks import check_arrays
from noa_training.datasets import NOT_COUNTED, Objective, Split
from noa_training.evaluation import predict
from noa_training.model_specs import Factories, ModelShape
from noa_training.models.torch.build import build_torch
from noa_training.models.weights import initial_weights
from noa_training.recipes import AdamW, Optimizer, Recipe

_MOMENTS = {"AdamW": {"exp_avg": "first_moment", "exp_avg_sq": "second_moment"}, "SGD": {"momentum_buffer": "momentum"}}
_SEED_STEP = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: neighbouring steps get distant seeds


class TorchBackend:
    """Trains `torch.nn.Module`s."""

    def trainer(self, recipe: Recipe, shape: ModelShape, train: Split, *, threads: int) -> TorchTrainer:
        """Return a trainer with first weights."""
        if threads:
            torch.set_num_threads(threads)
        return TorchTrainer(recipe, _build(recipe, shape), train)

    def live_model(
        self, recipe: Recipe, shape: ModelShape, weights: Mapping[str, np.ndarray], signature: Signature
    ) -> TorchModel:
        """Rebuild the module in evaluation mode."""
        module = _build(recipe, shape)
        _load_weights(module, weights)
        return TorchModel(module=module.eval(), signature=signature)


class TorchTrainer:
    """A module, its optimizer and the training rows as tensors."""

    def __init__(self, recipe: Recipe, module: nn.Module, train: Split) -> None:
        self._module = module
        self._inputs = [_tensor(array) for array in train.inputs.values()]
        self._targets = _targets(train.targets, recipe.objective)
        self._loss = _loss_of(recipe.objective)
        self._optimizer = _make_optimizer(recipe.optimizer, module)
        self._group: dict[str, Any] = self._optimizer.param_groups[0]
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._clip = recipe.gradient_clip
        self._generator = torch.default_generator
        self._seed = recipe.seed
        self._step = 0
        self._losses: list[torch.Tensor] = []
        self._order: tuple[torch.Tensor, ...] = ()
        self._rates: list[float] = []
        self._position = 0

    def begin_epoch(self, order: np.ndarray, rates: np.ndarray, position: int) -> None:
        """Set rows and rates of an epoch."""
        self._order = torch.from_numpy(order).unbind()
        self._rates = rates.astype(np.float64).tolist()
        self._position = position
        self._module.train()

    def step(self) -> None:
        """Do one step."""
        position = self._position
        rows = self._order[position]
        self._group["lr"] = self._rates[position]
        self._generator.manual_seed((self._seed + (self._step + 1) * _SEED_STEP) & 0x7FFF_FFFF_FFFF_FFFF)
        outputs = self._module(*[array.index_select(0, rows) for array in self._inputs])
        loss = self._loss(outputs, self._targets.index_select(0, rows))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self._optimizer.step()
        self._losses.append(loss.detach())
        self._position = position + 1
        self._step += 1

    def take_losses(self) -> np.ndarray:
        """Return the losses since the last call."""
        if not self._losses:
            return np.zeros(0, np.float32)
        losses = torch.stack(self._losses).numpy()
        self._losses = []
        return losses

    def predict(self, split: Split) -> np.ndarray:
        """Return the outputs for all rows, in evaluation mode."""
        self._module.eval()

        def run(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
            return cast("np.ndarray", self._module(*[_tensor(array) for array in inputs.values()]).numpy())

        with torch.inference_mode():
            outputs = predict(run, split)
        self._module.train()
        return outputs

    def state(self) -> TrainerState:
        """Return copies of weights and moments."""
        kinds = _MOMENTS[type(self._optimizer).__name__]
        moments: dict[str, np.ndarray] = {}
        for name, parameter in self._module.named_parameters():
            stored = cast("dict[str, Any]", self._optimizer.state.get(parameter, {}))
            for key, kind in kinds.items():
                if isinstance(stored.get(key), torch.Tensor):
                    moments[f"{kind}/{name}"] = stored[key].numpy().copy()
        weights = {name: value.detach().numpy().copy() for name, value in self._module.state_dict().items()}
        return TrainerState(step=self._step, weights=weights, moments=moments)

    def restore(self, state: TrainerState) -> None:
        """Continue from `state`."""
        kinds = _MOMENTS[type(self._optimizer).__name__]
        named = {name: value for name, value in self._module.named_parameters() if value.requires_grad}
        is_fresh = state.step == 0 or (isinstance(self._optimizer, torch.optim.SGD) and not self._group["momentum"])
        shapes = {
            f"{kind}/{name}": tuple(value.shape)
            for kind in kinds.values()
            for name, value in named.items()
            if not is_fresh
        }
        check_arrays(state.moments, shapes, what="optimizer state")
        _load_weights(self._module, state.weights)
        self._optimizer.state.clear()
        for name, parameter in named.items() if shapes else ():
            entry: dict[str, Any] = {
                key: torch.from_numpy(state.moments[f"{kind}/{name}"].copy()) for key, kind in kinds.items()
            }
            if isinstance(self._optimizer, torch.optim.AdamW):
                entry["step"] = torch.tensor(float(state.step))
            self._optimizer.state[parameter] = entry
        self._step = state.step
        self._losses = []


def _build(recipe: Recipe, shape: ModelShape) -> nn.Module:
    model = recipe.spec
    if not isinstance(model, Factories):
        module = build_torch(model, shape)
        _load_weights(module, initial_weights(model, shape, seed=recipe.seed))
        return module
    if model.torch is None:
        raise RecipeError("`model` has no factory for the backend `torch`", expected="Factories(torch=...)")
    torch.manual_seed(recipe.seed)
    module = model.torch(shape)
    if not isinstance(module, nn.Module):
        name = getattr(inspect.unwrap(model.torch), "__qualname__", "torch")
        raise RecipeError(f"`{name}` returned no module", expected="torch.nn.Module", received=type(module).__name__)
    return module


def _load_weights(module: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    check_arrays(weights, expected, what="weight")
    # A copy: the arrays may be read-only views of a file, and torch trains in place.
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})


def _make_optimizer(optimizer: Optimizer, module: nn.Module) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if isinstance(optimizer, AdamW):
        return torch.optim.AdamW(
            parameters,
            lr=optimizer.learning_rate,
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.epsilon,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )
    return torch.optim.SGD(
        parameters,
        lr=optimizer.learning_rate,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
        weight_decay=optimizer.weight_decay,
        fused=True,
    )


def _loss_of(objective: Objective) -> Any:
    def binary(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.binary_cross_entropy_with_logits(outputs.reshape(targets.shape), targets)

    def tokens(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        flat = targets.flatten()
        total = functional.cross_entropy(outputs.flatten(0, 1), flat, ignore_index=NOT_COUNTED, reduction="sum")
        return total / (flat != NOT_COUNTED).sum().clamp(min=1)

    def squared(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.mse_loss(outputs.reshape(targets.shape), targets)

    losses = {
        "cross_entropy": functional.cross_entropy,
        "token_cross_entropy": tokens,
        "binary_cross_entropy": binary,
        "mse": squared,
    }
    return losses[objective]


def _targets(targets: np.ndarray, objective: Objective) -> torch.Tensor:
    return torch.from_numpy(
        targets.astype(np.int64 if objective in ("cross_entropy", "token_cross_entropy") else np.float32)
    )


def _tensor(array: np.ndarray) -> torch.Tensor:
    contiguous = np.ascontiguousarray(array)
    return torch.from_numpy(contiguous if contiguous.flags.writeable else contiguous.copy())
