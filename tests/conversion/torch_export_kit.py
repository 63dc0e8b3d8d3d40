"""A function of PyTorch against its ONNX file, at several batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from noa.settings import ConversionSettings
from noa.signatures import Signature, TensorSpec
from noa_conversion import TorchModel, convert, load_format

Function = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


class _Module(torch.nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.function(x)


def check(function: Function, inputs: list[np.ndarray], folder: Path, *, tolerance: float | None = None) -> None:
    """Export at the batch of the first input, and compare with PyTorch at those of the others.

    An axis of an output is free where its size is the batch in both of the first two.
    """
    module = _Module(function)
    shapes = [[tuple(value.shape) for value in module(torch.from_numpy(x.copy()))] for x in inputs[:2]]
    dtypes = [value.numpy().dtype.name for value in module(torch.from_numpy(inputs[0].copy()))]
    outputs = tuple(
        TensorSpec(
            name=f"y{at}",
            dtype=dtype,  # pyright: ignore[reportArgumentType]  # a numpy name is one of ours
            shape=tuple("batch" if one != other else one for one, other in zip(*both, strict=True)),
        )
        for at, (dtype, *both) in enumerate(zip(dtypes, *shapes, strict=True))
    )
    given = TensorSpec(name="x", dtype=inputs[0].dtype.name, shape=("batch", *inputs[0].shape[1:]))  # pyright: ignore[reportArgumentType]
    signature = Signature(inputs=(given,), outputs=outputs)
    convert(TorchModel(module=module, signature=signature), folder / "onnx", settings=ConversionSettings())
    stored = load_format("onnx", folder / "onnx")
    for x in inputs[1:]:
        received = stored.run({"x": x})
        for at, value in enumerate(module(torch.from_numpy(x.copy()))):
            expected, found = value.numpy(), received[f"y{at}"]
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            close = tolerance or (1e-5 if x.itemsize > 2 else 2e-3)
            np.testing.assert_allclose(found, expected, rtol=close, atol=close / 100, err_msg=f"y{at} of {x.shape}")
