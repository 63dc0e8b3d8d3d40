"""What the dataset fixes of a model, and the user's own model as factories per backend.

Input shapes and the number of outputs come from the dataset (`ModelShape`), so a recipe names only what is a choice.
The built-in models are in `models/`, listed in `models/library.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from noa.errors import InvalidInputError
from noa.signatures import DType, TensorSpec

Activation: TypeAlias = Literal["relu", "gelu"]
BackendName: TypeAlias = Literal["torch", "jax"]
BACKENDS: tuple[BackendName, ...] = ("torch", "jax")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What the dataset fixes: the model's inputs (free axis `batch` first) and how many numbers it gives per row."""

    inputs: tuple[TensorSpec, ...]
    outputs: int

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {"inputs": [spec.to_dict() for spec in self.inputs], "outputs": self.outputs}

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> ModelShape:
        """Parse what `to_dict` wrote.

        Raises:
            InvalidInputError: a part is missing or has the wrong type.
        """
        try:
            rows = cast("list[dict[str, Any]]", value["inputs"])
            inputs = tuple(
                TensorSpec(name=str(row["name"]), dtype=cast("DType", row["dtype"]), shape=tuple(row["shape"]))
                for row in rows
            )
            return ModelShape(inputs=inputs, outputs=int(value["outputs"]))
        except (KeyError, TypeError, ValueError) as exc:
            raise InvalidInputError("a model shape is not readable", received=str(value)[:120]) from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Factories:
    """The user's own model, per backend.

    `torch(shape)` gives a `torch.nn.Module` whose `forward` takes the inputs in order and returns one tensor.
    `jax(shape)` gives `(init, apply)`: `init(seed) -> params`, a nested dict of arrays, and `apply(params, *inputs)` or
    `apply(params, *inputs, key=None)`, which gets a random key in training and None otherwise; it returns one array.
    Factories are found again by their recipe, so they must not depend on anything but `shape`.
    """

    torch: Callable[[ModelShape], Any] | None = None
    jax: Callable[[ModelShape], tuple[Callable[..., Any], Callable[..., Any]]] | None = None
