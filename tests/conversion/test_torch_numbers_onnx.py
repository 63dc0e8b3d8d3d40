"""Numbers on the way from PyTorch to ONNX: doubles stay double, and what divides and rounds is PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, product
from pathlib import Path

import numpy as np
import pytest
import torch

from noa.errors import ConversionError
from noa.settings import ConversionSettings
from noa.signatures import Signature, TensorSpec
from noa_conversion import TorchModel, convert, load_format
from samples import mostly, one_in

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("default")]

Function = Callable[[torch.Tensor], torch.Tensor]
SPECIAL = np.asarray([0.0, -0.0, 1.0, -1.0, 2.0, 0.1, -0.1, 5.0, -7.5, 6e4, np.inf, -np.inf, np.nan])


class _Module(torch.nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def through_onnx(function: Function, x: np.ndarray, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return what the function gives, and what its ONNX file does."""
    module = _Module(function)
    expected = module(torch.from_numpy(x)).numpy()
    tensors = [
        TensorSpec(name=name, dtype=array.dtype.name, shape=("batch", *array.shape[1:]))  # pyright: ignore[reportArgumentType]  # a numpy name is one of ours
        for name, array in (("x", x), ("y", expected))
    ]
    signature = Signature(inputs=(tensors[0],), outputs=(tensors[1],))
    convert(TorchModel(module=module, signature=signature), folder / "onnx", settings=ConversionSettings())
    return expected, load_format("onnx", folder / "onnx").run({"x": x})["y"]


@pytest.mark.parametrize(
    "function",
    one_in(3, "conformance", [
        pytest.param(lambda x: x * 0.1, id="product"),
        pytest.param(lambda x: 0.3 / x, id="quotient"),
        pytest.param(lambda x: 0.3**x, id="power of a number"),
        pytest.param(lambda x: x * 1e300, id="a number beyond float32"),
        pytest.param(lambda x: torch.add(x, x, alpha=0.1), id="alpha"),
        pytest.param(lambda x: x.clamp(-0.1, 0.3), id="bounds"),
        pytest.param(lambda x: torch.where(x > 0, x, 0.1), id="choice"),
        pytest.param(lambda x: x.masked_fill(x > 0, 0.1), id="filled"),
        pytest.param(lambda x: x + torch.full_like(x, 0.1), id="full"),
        pytest.param(lambda x: torch.addcmul(x, x, x, value=0.1), id="value"),
        pytest.param(lambda x: torch.addmm(x[0], x, x.new_ones(4, 4), beta=0.1, alpha=0.3), id="factors of Gemm"),
        pytest.param(lambda x: x + torch.arange(0, 0.4, 0.1, dtype=torch.float64), id="steps of a range"),
        pytest.param(lambda x: x + torch.linspace(0, 0.3, 4, dtype=torch.float64), id="linspace"),
        pytest.param(torch.rad2deg, id="a constant of mathematics"),
        pytest.param(lambda x: x.norm(p=0.3, dim=1, keepdim=True), id="an exponent and its inverse"),
        pytest.param(lambda x: torch.isinf(x * 1e300) | (x > 0), id="large is not infinite"),
    ]),
)  # fmt: skip
def test_a_float64_module_keeps_the_numbers_of_python_double(function: Function, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4))
    expected, received = through_onnx(function, x, tmp_path)
    assert received.dtype == expected.dtype
    np.testing.assert_allclose(received, expected, rtol=1e-15, atol=1e-16)


def test_numbers_that_the_module_itself_puts_in_32_bits_stay_so(tmp_path: Path) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x + torch.scalar_tensor(0.1, dtype=torch.float32).to(torch.float64) + x.to(torch.float32).double()

    expected, received = through_onnx(function, np.random.default_rng(0).standard_normal((3, 4)), tmp_path)
    np.testing.assert_allclose(received, expected, rtol=1e-15)


def test_an_operation_that_the_exporter_computes_in_32_bits_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"aten\.celu.* in 32 bits"):
        through_onnx(lambda x: torch.nn.functional.celu(x, 0.3), np.ones((3, 4)), tmp_path)


DIVISIONS: dict[str, Function] = {
    "floor": lambda x: torch.div(x[:, 0], x[:, 1], rounding_mode="floor"),
    "trunc": lambda x: torch.div(x[:, 0], x[:, 1], rounding_mode="trunc"),
    "whole": lambda x: x[:, 0] // x[:, 1],
    "remainder": lambda x: x[:, 0] % x[:, 1],
    "fmod": lambda x: torch.fmod(x[:, 0], x[:, 1]),
    "floor by a number": lambda x: torch.div(x, 2, rounding_mode="floor"),
    "a number divided": lambda x: 7.3 // x,
    "quotients that are rounded up": lambda x: x // 0.1,
    "remainder of infinity": lambda x: x % float("inf"),
}
DTYPES = ("float32", "float64")


@pytest.mark.parametrize(
    ("name", "dtype"),
    mostly(
        "conformance",
        product(DIVISIONS, DTYPES),
        sample=[*zip(DIVISIONS, cycle(DTYPES), strict=False)],  # each in one of them
    ),
)
def test_rounded_division_gives_what_pytorch_gives_for_infinities_too(name: str, dtype: str, tmp_path: Path) -> None:
    pairs = np.stack(np.meshgrid(SPECIAL, SPECIAL), -1).reshape(-1, 2).astype(dtype)
    expected, received = through_onnx(DIVISIONS[name], pairs, tmp_path)
    np.testing.assert_array_equal(received, expected)
