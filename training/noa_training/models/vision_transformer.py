"""The vision transformer: its fields and its parameter tree."""

from __future__ import annotations

from dataclasses import dataclass

from noa.errors import RecipeError
from noa_training.model_specs import ModelShape
from noa_training.models.checks import FieldChecks
from noa_training.models.inputs import image_size
from noa_training.models.layout import Layout, linear, norm, positions
from noa_training.models.transformer_blocks import check_blocks, encoder_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Vit:
    """Images cut into squares of `patch` pixels, one vector each, and a transformer encoder over them.

    A learned class token stands before the patches; what it has become gives the outputs. `feedforward` 0: four times
    the width.

    Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", arXiv:2010.11929, eq. 1-4. We differ: the epsilon
    of layer normalisation is 1e-5, as in PyTorch, where the authors' code has 1e-6; queries, keys and values have no
    biases; dropout is on the embedded patches and on each sub-layer's output, where theirs is within the last as well.
    """

    patch: int = 4
    width: int = 128
    depth: int = 4
    heads: int = 4
    feedforward: int = 0
    dropout: float = 0.0
    outputs: int = 0

    def check(self, fields: FieldChecks) -> None:
        """Refuse a field that cannot be built.

        Raises:
            RecipeError: names the field.
        """
        fields.size("patch", self.patch)
        check_blocks(
            fields,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            feedforward=self.feedforward,
            dropout=self.dropout,
        )
        fields.size("outputs", self.outputs, least=0)

    def grid(self, shape: ModelShape) -> tuple[int, int, int]:
        """Return channels, and how many patches lie below and beside each other.

        Raises:
            RecipeError: the inputs are no images, or cannot be cut into whole patches.
        """
        channels, height, width = image_size(shape, model="vit")
        if height % self.patch or width % self.patch:
            raise RecipeError(
                "`model.patch` does not divide the images",
                expected=f"a divisor of height and width of {shape.inputs[0].describe()}",
                received=str(self.patch),
                field="model.patch",
            )
        return channels, height // self.patch, width // self.patch

    def layout(self, shape: ModelShape) -> Layout:
        """Return the parameters in the order in which they are drawn."""
        channels, rows, columns = self.grid(shape)
        return (
            *linear("patches", self.width, channels * self.patch * self.patch, zero_bias=True),
            *positions("class_token", 1, self.width),
            *positions("positions", 1 + rows * columns, self.width),
            *encoder_blocks(width=self.width, depth=self.depth, feedforward=self.feedforward),
            *norm("norm", self.width),
            *linear("output", shape.outputs, self.width, zero_bias=True),
        )


def vit(
    *,
    patch: int = 4,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    feedforward: int = 0,
    dropout: float = 0.0,
    outputs: int = 0,
) -> Vit:
    """Choose the built-in vision transformer for images; see `Vit`."""
    return Vit(
        patch=patch, width=width, depth=depth, heads=heads, feedforward=feedforward, dropout=dropout, outputs=outputs
    )
