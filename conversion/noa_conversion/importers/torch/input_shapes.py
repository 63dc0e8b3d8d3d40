"""A module from ONNX refuses inputs of shapes that its graph was not recorded for, by the names of the file.

Axes of one name were recorded as one size, and fixed sizes as numbers: PyTorch would broadcast others without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from noa.errors import InvalidInputError
from noa_conversion.onnx_graph.model import OnnxValue


@dataclass(frozen=True, slots=True)
class ShapeCheck:
    """A hook that runs before the module's `forward`."""

    inputs: tuple[tuple[str, tuple[int | str | None, ...]], ...]
    """Name and shape of each input: a size, or the name of a free axis."""

    def __call__(self, module: torch.nn.Module, tensors: tuple[torch.Tensor, ...]) -> None:
        """Compare the inputs with the shapes.

        Raises:
            InvalidInputError: another rank or fixed size, or axes of one name have two sizes; names input and axis.
        """
        del module
        sizes: dict[str, tuple[int, str]] = {}
        for (name, shape), tensor in zip(self.inputs, tensors, strict=False):  # `forward` itself counts its arguments
            if tensor.ndim != len(shape):
                raise InvalidInputError(
                    f"input `{name}` has another number of axes than the model",
                    expected=f"{len(shape)} axes: {shape}",
                    received=f"shape {tuple(tensor.shape)}",
                    input=name,
                )
            for axis, wanted in enumerate(shape):
                found = tensor.shape[axis]
                if isinstance(wanted, str):
                    expected, source = sizes.setdefault(wanted, (found, name))
                    if found != expected:
                        raise InvalidInputError(
                            f"axis `{wanted}` has two sizes: {expected} in input `{source}`, {found} in input `{name}`",
                            expected="one size for all axes of a name",
                            input=name,
                            axis=wanted,
                        )
                elif wanted is not None and found != wanted:
                    raise InvalidInputError(
                        f"axis {axis} of input `{name}` is fixed in the model",
                        expected=wanted,
                        received=found,
                        input=name,
                    )


def shape_check(inputs: Sequence[OnnxValue]) -> ShapeCheck:
    """Return the check for the inputs of a module."""
    return ShapeCheck(tuple((value.name, tuple(value.shape or ())) for value in inputs))
