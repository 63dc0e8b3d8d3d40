"""What the built-in models read of a dataset's inputs, and the refusal of inputs that a model cannot take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from noa.errors import RecipeError
from noa_training.model_specs import ModelShape

if TYPE_CHECKING:
    from noa.signatures import TensorSpec

_IMAGE_AXES = 3
_SERIES_AXES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceInput:
    """Sequences of `length` steps: token numbers (rows, length), or `features` numbers a step (rows, length, features).

    `has_mask`: a second input (rows, length) says which steps are real; the others are padding.
    """

    length: int
    features: int
    is_text: bool
    has_mask: bool


def flat_features(shape: ModelShape) -> int:
    """Return how many numbers a row has when all inputs are flattened and joined."""
    return sum(math.prod(_sizes(spec)) for spec in shape.inputs)


def image_size(shape: ModelShape, *, model: str) -> tuple[int, int, int]:
    """Return channels, height and width of the images that a model takes.

    Raises:
        RecipeError: the inputs are not one array (rows, channels, height, width).
    """
    sizes = [_sizes(spec) for spec in shape.inputs]
    if len(sizes) != 1 or len(sizes[0]) != _IMAGE_AXES:
        raise _refusal(model, "takes images", "one input shaped (rows, channels, height, width)", shape)
    return sizes[0][0], sizes[0][1], sizes[0][2]


def sequence_input(shape: ModelShape, *, model: str, vocabulary: int, takes_mask: bool = True) -> SequenceInput:
    """Return what a model of sequences is given. `vocabulary` 0: the model reads numbers, not tokens.

    Raises:
        RecipeError: the inputs are no sequences, or tokens without a vocabulary, or the other way round.
    """
    first, *others = shape.inputs
    sizes, is_integer = _sizes(first), first.dtype.startswith(("int", "uint"))
    is_text = vocabulary > 0
    if is_text and (len(sizes) != 1 or not is_integer):
        raise _refusal(model, "with a `vocabulary` takes tokens", "whole numbers shaped (rows, length)", shape)
    if not is_text and len(sizes) != _SERIES_AXES:
        remedy = "Name the number of tokens: `vocabulary=...`" if len(sizes) == 1 and is_integer else None
        raise _refusal(model, "takes sequences", "numbers shaped (rows, length, features)", shape, remedy=remedy)
    if others and not takes_mask:
        raise _refusal(model, "takes tokens alone", f"one input shaped (rows, {sizes[0]})", shape)
    if len(others) > 1 or any(
        _sizes(mask) != sizes[:1] or mask.dtype.startswith(("float", "bfloat")) for mask in others
    ):
        raise _refusal(model, "takes one input more, a mask", f"booleans shaped (rows, {sizes[0]})", shape)
    features = 0 if is_text else sizes[-1]
    return SequenceInput(length=sizes[0], features=features, is_text=is_text, has_mask=bool(others))


def _refusal(model: str, what: str, expected: str, shape: ModelShape, *, remedy: str | None = None) -> RecipeError:
    return RecipeError(
        f"`{model}` {what}",
        expected=expected,
        received=", ".join(f"{spec.name}: {spec.describe()}" for spec in shape.inputs),
        remedy=remedy,
        field="model",
    )


def _sizes(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(axis for axis in spec.shape if isinstance(axis, int))
