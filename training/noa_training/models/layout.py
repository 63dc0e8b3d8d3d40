"""The parameter trees of the built-in models without a framework: names, shapes and how first values are drawn.

Names and layouts are those of PyTorch's `state_dict`: a linear weight is (outputs, inputs), a convolution's (outputs,
inputs, height, width). So weights go from one backend to the other unchanged, and both start from equal numbers. What
is no parameter but state that training changes (running statistics) is part of the same tree, marked as such.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

NORM_EPSILON = 1e-5
"""Of layer, batch and RMS normalisation, on both backends: PyTorch's default (Flax has 1e-6)."""
BATCH_NORM_MOMENTUM = 0.1
"""Share of the newest batch in running statistics, in PyTorch's sense (Flax says 0.99 for a share of 0.01)."""
EMBEDDING_SPREAD = 0.02


@dataclass(frozen=True, slots=True)
class Uniform:
    """Uniform in +-bound."""

    bound: float


@dataclass(frozen=True, slots=True)
class Normal:
    """Normal with mean 0."""

    deviation: float


@dataclass(frozen=True, slots=True)
class Filled:
    """One value everywhere; draws no random number."""

    value: float


First: TypeAlias = Uniform | Normal | Filled


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One float32 array of a model. `is_state`: no gradient changes it, each training step does."""

    name: str
    shape: tuple[int, ...]
    first: First
    is_state: bool = False

    @property
    def elements(self) -> int:
        """Number of its values."""
        return math.prod(self.shape)


Layout: TypeAlias = tuple[Parameter, ...]


def linear(name: str, outputs: int, inputs: int, *, scale: float = 1.0, zero_bias: bool = False) -> Layout:
    """Return weight (outputs, inputs) and bias (outputs,), uniform in +-scale/sqrt(inputs).

    Source: He et al. 2015, arXiv:1502.01852, with a = sqrt(5), which is what `torch.nn.Linear` uses. `zero_bias` is
    the transformers' way.
    """
    first = Uniform(scale / math.sqrt(inputs))
    bias = Parameter(name=f"{name}.bias", shape=(outputs,), first=Filled(0.0) if zero_bias else first)
    return (Parameter(name=f"{name}.weight", shape=(outputs, inputs), first=first), bias)


def projection(name: str, outputs: int, inputs: int, *, scale: float = 1.0) -> Layout:
    """Return the weight of a linear layer without bias, drawn as that of `linear`."""
    return linear(name, outputs, inputs, scale=scale)[:1]


def norm(name: str, size: int) -> Layout:
    """Return weight and bias (size,) of a normalisation that changes nothing at first."""
    return (
        Parameter(name=f"{name}.weight", shape=(size,), first=Filled(1.0)),
        Parameter(name=f"{name}.bias", shape=(size,), first=Filled(0.0)),
    )


def batch_norm(name: str, size: int) -> Layout:
    """Return weight and bias, and the running statistics as state.

    PyTorch's `num_batches_tracked` is left out: with a fixed momentum nothing reads it.
    """
    return (
        *norm(name, size),
        Parameter(name=f"{name}.running_mean", shape=(size,), first=Filled(0.0), is_state=True),
        Parameter(name=f"{name}.running_var", shape=(size,), first=Filled(1.0), is_state=True),
    )


def convolution(name: str, outputs: int, inputs: int, kernel: int) -> Layout:
    """Return the weight (outputs, inputs, kernel, kernel) of a convolution without bias, for a ReLU after it.

    Source: He et al. 2015, arXiv:1502.01852, eq. 14 (variance 2 over the fan-out), as torchvision's ResNet has it.
    """
    deviation = math.sqrt(2 / (outputs * kernel * kernel))
    return (Parameter(name=f"{name}.weight", shape=(outputs, inputs, kernel, kernel), first=Normal(deviation)),)


def embedding(name: str, count: int, width: int) -> Layout:
    """Return a table (count, width) of vectors.

    Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", section 4.1: N(0, 0.02).
    """
    return (Parameter(name=f"{name}.weight", shape=(count, width), first=Normal(EMBEDDING_SPREAD)),)


def positions(name: str, count: int, width: int) -> Layout:
    """Return learned vectors (count, width) that are added to a sequence, drawn as those of `embedding`."""
    return (Parameter(name=name, shape=(count, width), first=Normal(EMBEDDING_SPREAD)),)
