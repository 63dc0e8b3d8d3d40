"""The residual convolutional network in PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn import functional

from noa_training.model_specs import ModelShape
from noa_training.models.inputs import image_size
from noa_training.models.resnet import KERNEL, Block, ResNet
from noa_training.models.torch.layers import BatchNorm, dropout, linear

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped
    from torch import Tensor


class TorchResNet(nn.Module):
    """Stem, stages of residual blocks, global mean and output."""

    def __init__(self, model: ResNet, shape: ModelShape) -> None:
        super().__init__()
        self.stem = _Normalised(image_size(shape, model="resnet")[0], model.channels[0], KERNEL)
        plan = model.plan()
        stages = [plan[first : first + model.blocks] for first in range(0, len(plan), model.blocks)]
        self.stages = nn.ModuleList([nn.ModuleList([_Block(block) for block in stage]) for stage in stages])
        self.dropout = dropout(model.dropout)
        self.output = linear(shape.outputs, model.channels[-1])

    def forward(self, images: Shaped[Tensor, "batch channels height width"]) -> Float[Tensor, "batch outputs"]:
        """Compute the outputs, float32."""
        values = functional.relu(self.stem(images.to(torch.float32)))
        for stage in self.stages:
            for block in cast("nn.ModuleList", stage):
                values = block(values)
        return cast("torch.Tensor", self.output(self.dropout(values.mean(dim=(2, 3)))))


class _Block(nn.Module):
    """Two normalised convolutions beside a shortcut."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.convolution1 = _convolution(block.inputs, block.outputs, KERNEL, block.stride)
        self.norm1 = BatchNorm(block.outputs)
        self.convolution2 = _convolution(block.outputs, block.outputs, KERNEL, 1)
        self.norm2 = BatchNorm(block.outputs)
        if block.has_projection:
            self.shortcut = _Normalised(block.inputs, block.outputs, 1, block.stride)
        else:
            self.shortcut = nn.Identity()

    def forward(
        self, values: Float[Tensor, "batch inputs rows columns"]
    ) -> Float[Tensor, "batch outputs new_rows new_columns"]:
        """Compute the block."""
        inner = functional.relu(self.norm1(self.convolution1(values)))
        return functional.relu(self.norm2(self.convolution2(inner)) + self.shortcut(values))


class _Normalised(nn.Module):
    """A convolution without bias and its normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = _convolution(inputs, outputs, kernel, stride)
        self.norm = BatchNorm(outputs)

    def forward(
        self, values: Float[Tensor, "batch inputs rows columns"]
    ) -> Float[Tensor, "batch outputs new_rows new_columns"]:
        """Compute both."""
        return cast("torch.Tensor", self.norm(self.convolution(values)))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
