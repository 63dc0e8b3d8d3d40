"""What the engine needs of a backend, and what both of them exchange: `TrainerState`, plain numpy arrays by name.

The state of one backend is the state of the other: the same parameter names, the same moments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from noa.errors import DependencyMissingError, NotFoundError
from noa_training.datasets import Split
from noa_training.model_specs import BACKENDS, ModelShape
from noa_training.recipes import Recipe

if TYPE_CHECKING:
    from noa.signatures import Signature
    from noa_conversion import JaxModel, TorchModel


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerState:
    """`weights` by dotted name; `moments` are the optimizer's arrays by `<kind>/<name>`; `step` counts finished
    steps."""

    step: int
    weights: Mapping[str, np.ndarray]
    moments: Mapping[str, np.ndarray]


class Trainer(Protocol):
    """One model in training. Steps are asynchronous where the framework allows it; `take_losses` waits for them."""

    def begin_epoch(self, order: np.ndarray, rates: np.ndarray, position: int) -> None:
        """Set the rows (steps, batch) and learning rates (steps,) of an epoch; the next step is number `position` of
        it."""
        ...

    def step(self) -> None:
        """Do one step."""
        ...

    def take_losses(self) -> np.ndarray:
        """Return the losses of the steps since the last call, float32 (steps,)."""
        ...

    def predict(self, split: Split) -> np.ndarray:
        """Return the model's outputs for all rows, in evaluation mode."""
        ...

    def state(self) -> TrainerState:
        """Return a copy of everything that changes."""
        ...

    def restore(self, state: TrainerState) -> None:
        """Continue from `state`.

        Raises:
            IntegrityError: its arrays are not those of this model and optimizer.
        """
        ...


class Backend(Protocol):
    """One framework."""

    def trainer(self, recipe: Recipe, shape: ModelShape, train: Split, *, threads: int) -> Trainer:
        """Return a trainer with first weights."""
        ...

    def live_model(
        self, recipe: Recipe, shape: ModelShape, weights: Mapping[str, np.ndarray], signature: Signature
    ) -> TorchModel | JaxModel:
        """Rebuild the model for evaluation and conversion."""
        ...


def find_backend(name: str) -> Backend:
    """Return a backend by name, importing its framework.

    Raises:
        NotFoundError: there is no such backend.
        DependencyMissingError: its framework is not installed.
    """
    if name not in BACKENDS:
        raise NotFoundError(f"no backend `{name}`", expected=", ".join(BACKENDS), received=name)
    try:
        if name == "torch":
            from noa_training.backends.torch_backend import TorchBackend

            return TorchBackend()
        from noa_training.backends.jax_backend import JaxBackend

        return JaxBackend()
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] not in (name, "optax", "jaxlib"):
            raise
        raise DependencyMissingError(name, extra=name, purpose=f"the backend `{name}`") from exc
