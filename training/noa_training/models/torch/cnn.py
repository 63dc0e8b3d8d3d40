"""The convolutional network in PyTorch."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from noa_training.model_specs import ModelShape
from noa_training.models.cnn import KERNEL, POOL, Cnn
from noa_training.models.inputs import image_size
from noa_training.models.torch.layers import activation, dropout, linear

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped
    from torch import Tensor


class TorchCnn(nn.Module):
    """Convolutions with activation and max-pooling, one hidden layer."""

    def __init__(self, model: Cnn, shape: ModelShape) -> None:
        super().__init__()
        channels = (image_size(shape, model="cnn")[0], *model.channels)
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(before, after, KERNEL, padding=KERNEL // 2) for before, after in itertools.pairwise(channels)]
        )
        self.hidden = linear(model.hidden, model.features(shape))
        self.output = linear(shape.outputs, model.hidden)
        self.activation = activation(model.activation)
        self.pool = nn.MaxPool2d(POOL)
        self.dropout = dropout(model.dropout)

    def forward(self, images: Shaped[Tensor, "batch channels height width"]) -> Float[Tensor, "batch outputs"]:
        """Compute the outputs, float32."""
        values = images.to(torch.float32)
        for convolution in self.convolutions:
            values = self.pool(self.activation(convolution(values)))
        values = self.dropout(values.flatten(1))
        return cast("torch.Tensor", self.output(self.dropout(self.activation(self.hidden(values)))))
