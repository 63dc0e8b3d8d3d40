"""The residual convolutional network with batch normalisation: its fields and its parameter tree."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

from noa_training.model_specs import ModelShape
from noa_training.models.checks import MOST_LAYERS, FieldChecks
from noa_training.models.inputs import image_size
from noa_training.models.layout import Layout, batch_norm, convolution, linear

KERNEL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One residual block by its name in the tree. `stride` is that of its first convolution."""

    name: str
    inputs: int
    outputs: int
    stride: int

    @property
    def has_projection(self) -> bool:
        """Whether the shortcut needs a convolution of its own, because the block changes the shape."""
        return self.stride > 1 or self.inputs != self.outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNet:
    """A 3x3 stem, one stage of `blocks` residual blocks per entry of `channels`, global mean, and the output.

    Each stage but the first halves height and width. Batch normalisation is after each convolution; its running
    statistics belong to the model's state. With channels (16, 32, 64) and n blocks it is the network of 6n + 2 layers
    for small images.

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", arXiv:1512.03385, section 4.2, with the
    projections of option B (section 3.3, eq. 2) where the paper pads with zeros (option A). `dropout` before the output
    is ours.
    """

    channels: tuple[int, ...] = (16, 32, 64)
    blocks: int = 2
    dropout: float = 0.0
    outputs: int = 0

    normalises_batches: ClassVar[bool] = True

    def check(self, fields: FieldChecks) -> None:
        """Refuse a field that cannot be built.

        Raises:
            RecipeError: names the field.
        """
        fields.sizes("channels", self.channels, least_count=1)
        fields.size("blocks", self.blocks, most=MOST_LAYERS)
        fields.chance("dropout", self.dropout)
        fields.size("outputs", self.outputs, least=0)

    def plan(self) -> tuple[Block, ...]:
        """Return all blocks in the order in which they are computed."""
        stages = itertools.pairwise((self.channels[0], *self.channels))
        return tuple(
            Block(
                name=f"stages.{stage}.{index}",
                inputs=before if index == 0 else after,
                outputs=after,
                stride=2 if stage > 0 and index == 0 else 1,
            )
            for stage, (before, after) in enumerate(stages)
            for index in range(self.blocks)
        )

    def layout(self, shape: ModelShape) -> Layout:
        """Return the parameters in the order in which they are drawn."""
        stem = (
            *convolution("stem.convolution", self.channels[0], image_size(shape, model="resnet")[0], KERNEL),
            *batch_norm("stem.norm", self.channels[0]),
        )
        blocks = itertools.chain.from_iterable(_block(block) for block in self.plan())
        return (*stem, *blocks, *linear("output", shape.outputs, self.channels[-1]))


def resnet(
    *, channels: tuple[int, ...] = (16, 32, 64), blocks: int = 2, dropout: float = 0.0, outputs: int = 0
) -> ResNet:
    """Choose the built-in residual network for images; see `ResNet`."""
    return ResNet(channels=tuple(channels), blocks=blocks, dropout=dropout, outputs=outputs)


def _block(block: Block) -> Layout:
    main = (
        *convolution(f"{block.name}.convolution1", block.outputs, block.inputs, KERNEL),
        *batch_norm(f"{block.name}.norm1", block.outputs),
        *convolution(f"{block.name}.convolution2", block.outputs, block.outputs, KERNEL),
        *batch_norm(f"{block.name}.norm2", block.outputs),
    )
    if not block.has_projection:
        return main
    shortcut = (
        *convolution(f"{block.name}.shortcut.convolution", block.outputs, block.inputs, 1),
        *batch_norm(f"{block.name}.shortcut.norm", block.outputs),
    )
    return (*main, *shortcut)
