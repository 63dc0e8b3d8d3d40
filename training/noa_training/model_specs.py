"""What a recipe says about its model: a built-in one by name and sizes, or the user's factories per backend.

Input shapes and the number of outputs come from the dataset (`ModelShape`), so a recipe names only what is a choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from noa.errors import InvalidInputError, RecipeError
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
class Mlp:
    """Fully connected layers; all inputs are flattened and joined. `outputs` 0: derived from the targets."""

    hidden: tuple[int, ...] = (128,)
    dropout: float = 0.0
    activation: Activation = "relu"
    outputs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cnn:
    """Per entry of `channels` a 3x3 convolution, activation and 2x2 max-pooling; then one hidden layer and the
    output."""

    channels: tuple[int, ...] = (32, 64)
    hidden: int = 128
    dropout: float = 0.0
    activation: Activation = "relu"
    outputs: int = 0


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


ModelSpec: TypeAlias = Mlp | Cnn | Factories


def mlp(
    *, hidden: tuple[int, ...] = (128,), dropout: float = 0.0, activation: Activation = "relu", outputs: int = 0
) -> Mlp:
    """Choose the built-in multi-layer perceptron; see `Mlp`."""
    return Mlp(hidden=tuple(hidden), dropout=dropout, activation=activation, outputs=outputs)


def cnn(
    *,
    channels: tuple[int, ...] = (32, 64),
    hidden: int = 128,
    dropout: float = 0.0,
    activation: Activation = "relu",
    outputs: int = 0,
) -> Cnn:
    """Choose the built-in convolutional network; see `Cnn`."""
    return Cnn(channels=tuple(channels), hidden=hidden, dropout=dropout, activation=activation, outputs=outputs)


def check_model(model: object, *, where: str) -> ModelSpec:
    """Return `model` if it is well-formed.

    Raises:
        RecipeError: it is no model, or one of its fields has a value that cannot be built; names the field.
    """
    if isinstance(model, Factories):
        if not any(callable(factory) for factory in (model.torch, model.jax)):
            raise RecipeError("`model` has no factory", where=where, expected="Factories(torch=..., jax=...)")
        return model
    if not isinstance(model, (Mlp, Cnn)):
        raise RecipeError(
            "`model` is no model",
            where=where,
            expected="mlp(...), cnn(...) or Factories(...)",
            received=repr(model)[:80],
        )
    sizes = (*model.hidden,) if isinstance(model, Mlp) else (*model.channels, model.hidden)
    for size in sizes:
        if type(size) is not int or not 1 <= size <= 1 << 20:
            field = "hidden" if isinstance(model, Mlp) else "channels` or `model.hidden"
            raise RecipeError(
                f"`model.{field}` is not valid", where=where, expected="sizes from 1", received=repr(size)
            )
    dropout = cast("object", model.dropout)
    if not isinstance(dropout, (int, float)) or not 0.0 <= dropout < 1.0:
        raise RecipeError("`model.dropout` is not valid", where=where, expected="0 <= p < 1", received=repr(dropout))
    if model.activation not in ("relu", "gelu"):
        raise RecipeError(
            "`model.activation` is not known", where=where, expected="relu, gelu", received=model.activation
        )
    if type(model.outputs) is not int or model.outputs < 0:
        raise RecipeError(
            "`model.outputs` is not valid", where=where, expected="0 or more", received=repr(model.outputs)
        )
    return model
