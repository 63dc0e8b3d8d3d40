"""The residual network for tables: its fields and its parameter tree."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

from noa_training.model_specs import ModelShape
from noa_training.models.checks import MOST_LAYERS, FieldChecks
from noa_training.models.inputs import flat_features
from noa_training.models.layout import Layout, batch_norm, linear, projection


@dataclass(frozen=True, slots=True, kw_only=True)
class TabularResNet:
    """Residual blocks of two linear layers; all inputs are flattened and joined.

    A block is `x + dropout(linear(dropout(relu(linear(batch_norm(x))))))`, from `width` to `hidden` and back; before
    them is a linear layer, after them `linear(relu(batch_norm(x)))`. `dropout` is the inner one, `residual_dropout`
    the outer.

    Source: Gorishniy et al. 2021, "Revisiting Deep Learning Models for Tabular Data", arXiv:2106.11959, section 3.2.
    The paper embeds categories; here they come as numbers, e.g. one column per category. Linear layers whose sum every
    reader normalises (the first, and the second of a block) have no bias, as it would change nothing.
    """

    width: int = 128
    hidden: int = 256
    blocks: int = 2
    dropout: float = 0.0
    residual_dropout: float = 0.0
    outputs: int = 0

    normalises_batches: ClassVar[bool] = True

    def check(self, fields: FieldChecks) -> None:
        """Refuse a field that cannot be built.

        Raises:
            RecipeError: names the field.
        """
        fields.size("width", self.width)
        fields.size("hidden", self.hidden)
        fields.size("blocks", self.blocks, most=MOST_LAYERS)
        fields.chance("dropout", self.dropout)
        fields.chance("residual_dropout", self.residual_dropout)
        fields.size("outputs", self.outputs, least=0)

    def layout(self, shape: ModelShape) -> Layout:
        """Return the parameters in the order in which they are drawn."""
        blocks = [
            (
                *batch_norm(f"blocks.{index}.norm", self.width),
                *linear(f"blocks.{index}.linear1", self.hidden, self.width),
                *projection(f"blocks.{index}.linear2", self.width, self.hidden),
            )
            for index in range(self.blocks)
        ]
        return (
            *projection("input", self.width, flat_features(shape)),
            *itertools.chain.from_iterable(blocks),
            *batch_norm("norm", self.width),
            *linear("output", shape.outputs, self.width),
        )


def tabular_resnet(
    *,
    width: int = 128,
    hidden: int = 256,
    blocks: int = 2,
    dropout: float = 0.0,
    residual_dropout: float = 0.0,
    outputs: int = 0,
) -> TabularResNet:
    """Choose the built-in residual network for tables; see `TabularResNet`."""
    return TabularResNet(
        width=width, hidden=hidden, blocks=blocks, dropout=dropout, residual_dropout=residual_dropout, outputs=outputs
    )
