"""The convolutional network: its fields and its parameter tree."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import get_args

from noa.errors import RecipeError
from noa_training.model_specs import Activation, ModelShape
from noa_training.models.checks import FieldChecks
from noa_training.models.inputs import image_size
from noa_training.models.layout import Layout, Parameter, Uniform, linear

KERNEL = 3
POOL = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Cnn:
    """Per entry of `channels` a 3x3 convolution, activation and 2x2 max-pooling; then one hidden layer and the
    output."""

    channels: tuple[int, ...] = (32, 64)
    hidden: int = 128
    dropout: float = 0.0
    activation: Activation = "relu"
    outputs: int = 0

    def check(self, fields: FieldChecks) -> None:
        """Refuse a field that cannot be built.

        Raises:
            RecipeError: names the field.
        """
        fields.sizes("channels", self.channels)
        fields.size("hidden", self.hidden)
        fields.chance("dropout", self.dropout)
        fields.choice("activation", self.activation, get_args(Activation))
        fields.size("outputs", self.outputs, least=0)

    def features(self, shape: ModelShape) -> int:
        """Return how many numbers the last pooling leaves of an image.

        Raises:
            RecipeError: the inputs are no images, or too small for so many stages.
        """
        channels, height, width = image_size(shape, model="cnn")
        for index in range(len(self.channels)):
            if min(height, width) < POOL:
                raise RecipeError(
                    "`model.channels` has more stages than the images allow",
                    expected=f"at most {index} for {shape.inputs[0].describe()}: each halves height and width",
                    received=str(len(self.channels)),
                )
            height, width = height // POOL, width // POOL
        return (self.channels[-1] if self.channels else channels) * height * width

    def layout(self, shape: ModelShape) -> Layout:
        """Return the parameters in the order in which they are drawn."""
        features = self.features(shape)
        channels = (image_size(shape, model="cnn")[0], *self.channels)
        convolutions = [
            _convolution(f"convolutions.{index}", after, before)
            for index, (before, after) in enumerate(itertools.pairwise(channels))
        ]
        return (
            *itertools.chain.from_iterable(convolutions),
            *linear("hidden", self.hidden, features),
            *linear("output", shape.outputs, self.hidden),
        )


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


def _convolution(name: str, outputs: int, inputs: int) -> Layout:
    """Return weight and bias, uniform in +-1/sqrt(fan-in) as those of `torch.nn.Conv2d`."""
    first = Uniform(1 / math.sqrt(inputs * KERNEL * KERNEL))
    return (
        Parameter(name=f"{name}.weight", shape=(outputs, inputs, KERNEL, KERNEL), first=first),
        Parameter(name=f"{name}.bias", shape=(outputs,), first=first),
    )
