"""The multi-layer perceptron: its fields and its parameter tree."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import get_args

from noa_training.model_specs import Activation, ModelShape
from noa_training.models.checks import FieldChecks
from noa_training.models.inputs import flat_features
from noa_training.models.layout import Layout, linear


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """Fully connected layers; all inputs are flattened and joined. `outputs` 0: derived from the targets."""

    hidden: tuple[int, ...] = (128,)
    dropout: float = 0.0
    activation: Activation = "relu"
    outputs: int = 0

    def check(self, fields: FieldChecks) -> None:
        """Refuse a field that cannot be built.

        Raises:
            RecipeError: names the field.
        """
        fields.sizes("hidden", self.hidden)
        fields.chance("dropout", self.dropout)
        fields.choice("activation", self.activation, get_args(Activation))
        fields.size("outputs", self.outputs, least=0)

    def widths(self, shape: ModelShape) -> tuple[int, ...]:
        """Return the sizes between which the layers are, from the inputs' to the outputs'."""
        return (flat_features(shape), *self.hidden, shape.outputs)

    def layout(self, shape: ModelShape) -> Layout:
        """Return the parameters in the order in which they are drawn."""
        *hidden, output = itertools.pairwise(self.widths(shape))
        layers = [linear(f"layers.{index}", after, before) for index, (before, after) in enumerate(hidden)]
        return (*itertools.chain.from_iterable(layers), *linear("output", output[1], output[0]))


def mlp(
    *, hidden: tuple[int, ...] = (128,), dropout: float = 0.0, activation: Activation = "relu", outputs: int = 0
) -> Mlp:
    """Choose the built-in multi-layer perceptron; see `Mlp`."""
    return Mlp(hidden=tuple(hidden), dropout=dropout, activation=activation, outputs=outputs)
