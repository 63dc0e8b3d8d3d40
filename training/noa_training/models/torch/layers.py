"""Layers that several of the built-in models share, in PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn import functional

from noa.errors import RecipeError
from noa_training.models.layout import BATCH_NORM_MOMENTUM, NORM_EPSILON

if TYPE_CHECKING:
    from jaxtyping import Float, Integer
    from torch import Tensor

    from noa_training.model_specs import Activation


class BatchNorm(nn.Module):
    """Normalise each channel over the batch; in evaluation by running statistics.

    As `torch.nn.BatchNorm1d` and `BatchNorm2d`, without their counter of batches, which a fixed momentum does not read.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1 and 2: biased variance to normalise with, unbiased in
    the running one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean: torch.Tensor
        self.running_var: torch.Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, values: Float[Tensor, "batch channels ..."]) -> Float[Tensor, "batch channels ..."]:
        """Return the normalised values, and in training update the running statistics.

        Raises:
            RecipeError: in training with one value per channel, which has no variance.
        """
        if self.training and values.numel() == values.shape[1]:
            raise too_few_values()
        return functional.batch_norm(
            values,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training,
            momentum=BATCH_NORM_MOMENTUM,
            eps=NORM_EPSILON,
        )


class RmsNorm(nn.Module):
    """Divide by the root of the mean square of the last axis; no mean is taken away and no bias added.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4, with epsilon inside of the root.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, values: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """Return the normalised values."""
        return functional.rms_norm(values, self.weight.shape, self.weight, NORM_EPSILON)


def too_few_values() -> RecipeError:
    """Return the error of a batch that cannot be normalised."""
    return RecipeError(
        "`batch_size` is too small for batch normalisation",
        expected="at least 2 values per channel",
        received="1",
        field="batch_size",
    )


def joined(inputs: tuple[Tensor, ...]) -> Float[Tensor, "batch features"]:
    """Return all inputs (batch, ...) flattened and side by side, float32."""
    return torch.cat([value.flatten(1).to(torch.float32) for value in inputs], dim=1)


def embedded(table: nn.Embedding, tokens: Integer[Tensor, "batch length"]) -> Float[Tensor, "batch length width"]:
    """Return the vectors of tokens, whatever their integer dtype."""
    return cast("torch.Tensor", table(tokens.to(torch.int64)))


def linear(outputs: int, inputs: int, *, bias: bool = True) -> nn.Linear:
    """Return a linear layer, named in the order of its weight's axes."""
    return nn.Linear(inputs, outputs, bias=bias)


def activation(name: Activation) -> nn.Module:
    """Return ReLU or the exact GELU."""
    return nn.ReLU() if name == "relu" else nn.GELU(approximate="none")


def dropout(chance: float) -> nn.Module:
    """Return dropout, or nothing at all for chance 0."""
    return nn.Dropout(chance) if chance else nn.Identity()
