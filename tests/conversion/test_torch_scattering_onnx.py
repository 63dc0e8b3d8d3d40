"""Writing and combining at indices on the way from PyTorch to ONNX: the numbers are PyTorch's."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_export_kit import check

from samples import mostly

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("default")]

PLACES = torch.tensor([0, 0, 1, 1, 4])
NONE = torch.zeros(0, dtype=torch.int64)
DTYPES = ("float32", "float64", "float16", "int8", "int32", "int64")


def batches(dtype: str) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    drawn = [rng.integers(-9, 9, (size, 5)).astype(dtype) for size in (2, 1, 3, 0)]
    if np.dtype(dtype).kind == "f":
        drawn.append(np.asarray([[1, np.nan, -np.inf, -np.inf, np.inf]] * 2, dtype))
    return drawn


@pytest.mark.parametrize(
    ("reduce", "dtype"),
    mostly(
        "conformance",
        product(("sum", "prod", "mean", "amax", "amin"), DTYPES),
        # Each reduction in a type of floats and in one of whole numbers.
        sample=[
            *(("sum", "float64"), ("prod", "float32"), ("mean", "float16"), ("amax", "float32"), ("amin", "float16")),
            *(("sum", "int64"), ("prod", "int8"), ("mean", "int32"), ("amax", "int64"), ("amin", "int8")),
        ],
    ),
)
def test_a_reduction_at_indices_is_pytorchs(reduce: str, dtype: str, tmp_path: Path) -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        places, threes = PLACES.expand(x.shape[0], 5), torch.full_like(x, 3)
        return (
            threes.scatter_reduce(1, places, x, reduce),
            threes.scatter_reduce(-1, places, x, reduce, include_self=False),
            x.scatter_reduce(1, places[:, :2], x, reduce),
            x.scatter_reduce(1, NONE.expand(x.shape[0], 0), x, reduce, include_self=False),
        )

    check(function, batches(dtype), tmp_path)


@pytest.mark.parametrize("reduce", ["prod", "mean", "amax", "amin"])
def test_a_reduction_of_lines_at_indices_is_pytorchs(reduce: str, tmp_path: Path) -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            x.index_reduce(1, PLACES[1:4], x[:, :3], reduce),
            x.index_reduce(-1, PLACES[1:4], x[:, :3], reduce, include_self=False),
            x.index_reduce(1, NONE, x[:, :0], reduce),
        )

    check(function, batches("float32"), tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "bool"])
def test_sums_at_indices_are_pytorchs(dtype: str, tmp_path: Path) -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        places = PLACES.expand(x.shape[0], 5)
        return (
            x.index_add(1, PLACES[1:4], x[:, :3], alpha=1 if dtype == "bool" else 3),
            x.scatter_add(1, places[:, :3], x),
            x.scatter(1, places[:, 2:3], x),
        )

    check(function, batches(dtype), tmp_path)
