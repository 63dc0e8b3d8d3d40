"""Reductions on the way from PyTorch to ONNX, at the edges: NaN, nothing, another type, large numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch_export_kit import Function, check

from noa.errors import ConversionError
from samples import mostly

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("default")]

NAN, INF = np.nan, np.inf


def special() -> list[np.ndarray]:
    rows = [[1, NAN, INF, NAN], [-INF, -INF, NAN, 3], [INF, 2, INF, -INF], [0, 1, 1, -1], [-INF, -INF, -INF, -INF]]
    return [np.asarray(rows[:size], "f") for size in (2, 1, 5)]


def normal(dtype: str = "float32", *, scale: float = 1, empty: bool = False) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = (2, 1, 3, 0) if empty else (2, 1, 3)
    return [(rng.standard_normal((size, 4)) * scale).astype(dtype) for size in sizes]


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: (x.argmax(1), x.argmin(1, keepdim=True), x.argmax(), x.argmin()), id="places"),
        pytest.param(lambda x: (*x.max(1), *x.min(-1, keepdim=True), x.max(), x.min()), id="extremes"),
        pytest.param(lambda x: (x.amax(1), x.amin((0, 1)), x.amax(()), x.amin(-1, keepdim=True)), id="of axes"),
    ],
)
def test_a_nan_is_the_extreme(function: Function, tmp_path: Path) -> None:
    check(function, special(), tmp_path)


def test_extremes_of_integers_and_truth_are_pytorchs(tmp_path: Path) -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return *x.max(1), x.to(torch.int16).amin(1), (x > 0).amax(1), x.to(torch.uint8).argmax(1)

    check(function, normal("int64", scale=9), tmp_path)


def test_none_of_nothing_is_true(tmp_path: Path) -> None:
    check(lambda x: (x.any(), x.all(), x.any(1), (x > 9).any(0)), normal(empty=True), tmp_path)


def test_a_mean_in_another_type_is_computed_in_it(tmp_path: Path) -> None:
    check(lambda x: (x.mean(1, dtype=torch.float64),), normal(), tmp_path, tolerance=1e-14)


def test_a_variance_corrected_by_more_than_there_is_is_infinite(tmp_path: Path) -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.var(1, correction=7), x.var(1), x.std((0, 1), correction=0), x.var(correction=1), x.std(0)

    check(function, normal(empty=True), tmp_path)


def test_sums_of_exponentials_are_right_far_below_the_greatest(tmp_path: Path) -> None:
    check(lambda x: (x.logcumsumexp(1), x.logcumsumexp(-1)), [*normal(scale=300), *special()], tmp_path)


@pytest.mark.parametrize("reduction", mostly("conformance", ["none", "mean", "sum"], sample=["mean"]))
def test_the_cross_entropy_of_large_logits_with_weights_is_finite(reduction: str, tmp_path: Path) -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        weights = torch.arange(4.0)
        loss = functional.binary_cross_entropy_with_logits
        return (
            loss(x, x.sigmoid(), reduction=reduction),
            loss(x, (x > 0).float(), weights, pos_weight=weights, reduction=reduction),
        )

    check(function, normal(scale=100), tmp_path)


def test_a_divisor_of_a_pooling_is_kept(tmp_path: Path) -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        images = x.reshape(-1, 1, 6, 7)
        pool = functional.avg_pool2d
        return (
            pool(images, 2, divisor_override=3),
            pool(images, (3, 2), (2, 1), 1, count_include_pad=False, divisor_override=5),
            functional.avg_pool3d(images[:, :, :, None], (2, 1, 3), divisor_override=4),
            pool(images, 3, 2, 1),
        )

    check(function, [np.random.default_rng(0).standard_normal((size, 42)).astype("f") for size in (2, 1, 3)], tmp_path)


def test_a_divisor_of_a_pooling_with_a_window_over_the_edge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="avg_pool2d"):
        check(
            lambda x: (functional.avg_pool2d(x.reshape(-1, 1, 5, 5), 2, ceil_mode=True, divisor_override=3),),
            [np.ones((size, 25), "f") for size in (2, 1, 3)],
            tmp_path,
        )


def test_the_sign_of_nan_is_zero(tmp_path: Path) -> None:
    check(lambda x: (x.sign(),), special(), tmp_path)


def test_draws_without_replacement_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="multinomial"):
        check(lambda x: (torch.multinomial(x.softmax(1), 2),), normal(), tmp_path)
