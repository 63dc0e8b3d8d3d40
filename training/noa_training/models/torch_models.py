"""The built-in models in PyTorch."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from noa_training.model_specs import Activation, Cnn, Mlp, ModelShape
from noa_training.models.layout import KERNEL, POOL, layers_of


class TorchMlp(nn.Module):
    """Linear layers with activation and dropout between them: inputs (batch, ...) each -> (batch, outputs), float32."""

    def __init__(self, model: Mlp, shape: ModelShape) -> None:
        super().__init__()
        *hidden, output = layers_of(model, shape)
        self.layers = nn.ModuleList([_linear(layer.weight) for layer in hidden])
        self.output = _linear(output.weight)
        self.activation = _activation(model.activation)
        self.dropout = nn.Dropout(model.dropout) if model.dropout else nn.Identity()
        self._is_plain = (
            len(shape.inputs) == 1 and len(shape.inputs[0].shape) == 2 and shape.inputs[0].dtype == "float32"
        )

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Compute the logits."""
        if self._is_plain:
            values = inputs[0]
        else:
            values = torch.cat([value.flatten(1).to(torch.float32) for value in inputs], dim=1)
        for layer in self.layers:
            values = self.dropout(self.activation(layer(values)))
        return cast("torch.Tensor", self.output(values))


class TorchCnn(nn.Module):
    """Convolutions with activation and max-pooling, one hidden layer: (batch, channels, height, width) -> (batch,
    outputs)."""

    def __init__(self, model: Cnn, shape: ModelShape) -> None:
        super().__init__()
        *convolutions, hidden, output = layers_of(model, shape)
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(layer.weight[1], layer.weight[0], KERNEL, padding=KERNEL // 2) for layer in convolutions]
        )
        self.hidden = _linear(hidden.weight)
        self.output = _linear(output.weight)
        self.activation = _activation(model.activation)
        self.pool = nn.MaxPool2d(POOL)
        self.dropout = nn.Dropout(model.dropout) if model.dropout else nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the logits."""
        values = images.to(torch.float32)
        for convolution in self.convolutions:
            values = self.pool(self.activation(convolution(values)))
        values = self.dropout(values.flatten(1))
        return cast("torch.Tensor", self.output(self.dropout(self.activation(self.hidden(values)))))


def build_torch(model: Mlp | Cnn, shape: ModelShape) -> nn.Module:
    """Return the module with torch's own random weights; the engine sets them from `initial_weights`."""
    return TorchMlp(model, shape) if isinstance(model, Mlp) else TorchCnn(model, shape)


def _linear(weight: tuple[int, ...]) -> nn.Linear:
    return nn.Linear(weight[1], weight[0])


def _activation(name: Activation) -> nn.Module:
    return nn.ReLU() if name == "relu" else nn.GELU(approximate="none")
