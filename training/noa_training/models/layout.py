"""The parameters of the built-in models: names, shapes and first values, the same on both backends.

Names and layouts are those of PyTorch's `state_dict`: a linear weight is (outputs, inputs), a convolution's (outputs,
inputs, height, width). So weights go from one backend to the other unchanged, and both start from equal numbers.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from noa.errors import RecipeError
from noa_training.model_specs import Cnn, Mlp, ModelShape

KERNEL = 3
POOL = 2
# Separates the stream of first weights from the streams of the batch order, which are seeded with (seed, epoch).
_WEIGHTS_STREAM = 0x57656967


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer with weight and bias. `weight` is its shape, outputs first; a convolution's has four axes."""

    name: str
    weight: tuple[int, ...]

    @property
    def fan_in(self) -> int:
        """Numbers that one output is computed from."""
        return math.prod(self.weight[1:])


def layers_of(model: Mlp | Cnn, shape: ModelShape) -> tuple[Layer, ...]:
    """Return the layers in the order in which they are computed.

    Raises:
        RecipeError: the model cannot take the dataset's inputs.
    """
    if isinstance(model, Mlp):
        features = sum(math.prod(_sizes(spec.shape)) for spec in shape.inputs)
        widths = (features, *model.hidden)
        hidden = [
            Layer(name=f"layers.{index}", weight=(after, before))
            for index, (before, after) in enumerate(itertools.pairwise(widths))
        ]
        return (*hidden, Layer(name="output", weight=(shape.outputs, widths[-1])))
    height, width = image_size(shape)
    channels = (_sizes(shape.inputs[0].shape)[0], *model.channels)
    convolutions = [
        Layer(name=f"convolutions.{index}", weight=(after, before, KERNEL, KERNEL))
        for index, (before, after) in enumerate(itertools.pairwise(channels))
    ]
    for index in range(len(model.channels)):
        if min(height, width) < POOL:
            raise RecipeError(
                "`model.channels` has more stages than the images allow",
                expected=f"at most {index} for {shape.inputs[0].describe()}: each halves height and width",
                received=str(len(model.channels)),
            )
        height, width = height // POOL, width // POOL
    features = channels[-1] * height * width
    return (
        *convolutions,
        Layer(name="hidden", weight=(model.hidden, features)),
        Layer(name="output", weight=(shape.outputs, model.hidden)),
    )


def image_size(shape: ModelShape) -> tuple[int, int]:
    """Return height and width of the images that a `cnn` takes.

    Raises:
        RecipeError: the inputs are not one array (rows, channels, height, width).
    """
    sizes = [_sizes(spec.shape) for spec in shape.inputs]
    if len(sizes) != 1 or len(sizes[0]) != 3:
        raise RecipeError(
            "`cnn` takes images",
            expected="one input shaped (rows, channels, height, width)",
            received=", ".join(f"{spec.name}: {spec.describe()}" for spec in shape.inputs),
        )
    return sizes[0][1], sizes[0][2]


def initial_weights(model: Mlp | Cnn, shape: ModelShape, *, seed: int) -> dict[str, np.ndarray]:
    """Return first values of all parameters, float32, uniform in +-1/sqrt(fan_in) for weights and biases.

    Source: He et al. 2015, arXiv:1502.01852, with a = sqrt(5), which is what `torch.nn.Linear` and `torch.nn.Conv2d`
    use. The random numbers are numpy's (PCG64), not torch's.
    """
    random = np.random.default_rng([seed, _WEIGHTS_STREAM])
    weights: dict[str, np.ndarray] = {}
    for layer in layers_of(model, shape):
        bound = 1 / math.sqrt(layer.fan_in)
        weights[f"{layer.name}.weight"] = random.uniform(-bound, bound, layer.weight).astype(np.float32)
        weights[f"{layer.name}.bias"] = random.uniform(-bound, bound, layer.weight[:1]).astype(np.float32)
    return weights


def _sizes(axes: tuple[int | str, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in axes if isinstance(axis, int))
