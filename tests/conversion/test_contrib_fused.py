"""Fused operators of `com.microsoft` through their bodies, compared with onnxruntime's own kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_reference_kit import check_against_onnxruntime, compute, one_node_model

from noa.errors import ConversionError
from noa_conversion.onnx_graph.reading import read_model


def draw(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(dtype)


X, BIAS = draw(2, 3, 8), draw(8)
IMAGE, KERNEL = draw(1, 2, 6, 6), draw(3, 2, 3, 3)
CASES: dict[str, tuple[Any, ...]] = {
    "gelu": ("Gelu", [X]),
    "bias gelu": ("BiasGelu", [X, BIAS]),
    "fast gelu": ("FastGelu", [X]),
    "fast gelu, bias": ("FastGelu", [X, BIAS]),
    "quick gelu": ("QuickGelu", [X], {"alpha": 1.3}),
    "quick gelu, default": ("QuickGelu", [X]),
    "conv": ("FusedConv", [IMAGE, KERNEL, draw(3)], {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}),
    "conv, relu": ("FusedConv", [IMAGE, KERNEL], {"activation": "Relu", "strides": [2, 1]}),
    "conv, sum": ("FusedConv", [IMAGE, KERNEL, draw(3), draw(1, 3, 4, 4)], {"activation": "Relu"}),
    "conv, leaky": ("FusedConv", [IMAGE, KERNEL], {"activation": "LeakyRelu", "activation_params": [0.2]}),
    "conv, clip": ("FusedConv", [IMAGE, KERNEL], {"activation": "Clip", "activation_params": [-1.0, 1.5]}),
    "conv, hard sigmoid": (
        "FusedConv",
        [IMAGE, KERNEL],
        {"activation": "HardSigmoid", "activation_params": [0.3, 0.4]},
    ),
    "conv, tanh": ("FusedConv", [IMAGE, KERNEL], {"activation": "Tanh"}),
    "conv, sigmoid": ("FusedConv", [IMAGE, KERNEL], {"activation": "Sigmoid"}),
    "gemm": ("FusedGemm", [draw(3, 4), draw(4, 5), draw(5)], {"activation": "Relu", "alpha": 0.5}),
    "gemm, leaky": (
        "FusedGemm",
        [draw(4, 3), draw(5, 4), draw(3, 5)],
        {"activation": "LeakyRelu", "activation_alpha": 0.3, "transA": 1, "transB": 1},
    ),
    "matmul": ("FusedMatMul", [draw(2, 3, 4), draw(2, 4, 5)], {"alpha": 0.25}),
    "matmul, transposed": ("FusedMatMul", [draw(2, 4, 3), draw(2, 5, 4)], {"transA": 1, "transB": 1}),
    "matmul, batch transposed": ("FusedMatMul", [draw(3, 2, 4), draw(2, 4, 5)], {"transBatchA": 1}),
    "matmul, both": (
        "FusedMatMul",
        [draw(3, 2, 6, 4), draw(5, 2, 6, 4)],
        {"transBatchA": 1, "transBatchB": 1, "transB": 1, "transA": 0},
    ),
    "matmul, all": (
        "FusedMatMul",
        [draw(3, 2, 6, 4), draw(4, 2, 6, 3)],
        {"transBatchA": 1, "transBatchB": 1, "transB": 0, "transA": 0},
    ),
    "skip": ("SkipLayerNormalization", [X, X[::-1].copy(), BIAS, draw(8, seed=1)], {"epsilon": 1e-5}),
    "skip, bias": ("SkipLayerNormalization", [X, X + 1, BIAS, None, draw(8, seed=1)], {"epsilon": 1e-5}),
    "skip, broadcast": ("SkipLayerNormalization", [X, draw(1, 3, 8), BIAS, BIAS], {}),
    "skip, two axes": ("SkipLayerNormalization", [X, draw(3, 8), BIAS, BIAS], {}),
    "skip rms": ("SkipSimplifiedLayerNormalization", [X, X + 1, BIAS], {"epsilon": 1e-5}),
    "skip rms, bias": ("SkipSimplifiedLayerNormalization", [X, X + 1, BIAS, draw(8, seed=1)], {"epsilon": 1e-5}),
    "trilu": ("Trilu", [draw(2, 4, 5), np.asarray(1, np.int64)], {"upper": 0}),
    "pad": ("Pad", [draw(2, 3), np.asarray([0, 1, 2, 0], np.int64), np.asarray([7], np.float32)], {"mode": "constant"}),
    "expand dims": ("ExpandDims", [draw(2, 3), np.asarray(1, np.int32)], {}),
    "gather nd": ("GatherND", [draw(3, 4), np.asarray([[0, 1], [2, 3]], np.int64)], {}),
    "grid sample": ("GridSample", [IMAGE, np.tanh(draw(1, 3, 3, 2))], {"mode": "bilinear", "align_corners": 1}),
    "distance": ("CDist", [draw(3, 4), draw(5, 4)], {"metric": "euclidean"}),
    "squared distance": ("CDist", [draw(3, 4), draw(5, 4)], {"metric": "sqeuclidean"}),
    "max pool": (
        "NhwcMaxPool",
        [np.random.default_rng(0).integers(0, 255, (1, 6, 6, 2), np.uint8)],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
    ),
}
KNOWN = {"trilu": (1,), "pad": (1, 2), "expand dims": (1,)}


@pytest.mark.parametrize("name", CASES)
def test_a_fused_operator_computes_what_onnxruntime_does(name: str) -> None:
    kind, inputs, *rest = CASES[name]
    check_against_onnxruntime(kind, inputs, rest[0] if rest else {}, known=KNOWN.get(name, ()))


def test_skip_normalisation_returns_the_sum() -> None:
    inputs = [X, X + 1, BIAS, None, draw(8, seed=1)]
    check_against_onnxruntime("SkipLayerNormalization", inputs, {"epsilon": 1e-5}, outputs=4, unwanted=(1, 2))
    check_against_onnxruntime(
        "SkipSimplifiedLayerNormalization", inputs[:3], {"epsilon": 1e-5}, outputs=4, unwanted=(1, 2)
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_root_mean_square_normalisation(dtype: Any) -> None:
    atol = 1e-5 if dtype == np.float32 else 5e-3
    inputs = [X.astype(dtype), BIAS.astype(dtype)]
    check_against_onnxruntime("SimplifiedLayerNormalization", inputs, {"axis": -1}, domain="", atol=atol)


@pytest.mark.parametrize("has_segments", [True, False])
@pytest.mark.parametrize("has_mask", [True, False])
def test_embedding_with_normalisation(has_segments: bool, has_mask: bool) -> None:
    ids = np.asarray([[1, 4, 2], [0, 3, 3]], np.int32)
    segments = np.asarray([[0, 1, 1], [0, 0, 1]], np.int32) if has_segments else None
    mask = np.asarray([[1, 1, 0], [1, 1, 1]], np.int32) if has_mask else None
    tables = [draw(6, 8), draw(5, 8), draw(2, 8) if has_segments else None]
    inputs = [ids, segments, *tables, BIAS, draw(8, seed=2), mask]
    check_against_onnxruntime("EmbedLayerNormalization", inputs, {"epsilon": 1e-5}, outputs=2)
    check_against_onnxruntime("EmbedLayerNormalization", inputs, {"epsilon": 1e-5}, outputs=3)


def test_unique_keeps_the_order_of_first_occurrence() -> None:
    values = np.asarray([3, 1, 3, 2, 1], np.float32)
    check_against_onnxruntime("Unique", [values], {}, outputs=3)


def test_operators_without_a_kernel_follow_their_description() -> None:
    y = _run("BiasSoftmax", [X, draw(1, 3, 8)], {"axis": 2, "is_inner_broadcast": 0})
    shifted = np.exp(X + draw(1, 3, 8))
    np.testing.assert_allclose(y, shifted / shifted.sum(-1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(_run("BiasDropout", [X, BIAS, X], {}), X + BIAS + X, rtol=1e-6)
    nhwc = _run("NhwcConv", [IMAGE.transpose(0, 2, 3, 1), KERNEL], {})
    np.testing.assert_allclose(nhwc.transpose(0, 3, 1, 2), _run("FusedConv", [IMAGE, KERNEL], {}), rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "reason"),
    [
        ("FusedConv", [IMAGE, KERNEL], {"activation": "Softplus"}, "activation `Softplus`"),
        ("BiasSoftmax", [X, draw(1, 3, 8)], {"axis": 1}, "last axis"),
        ("CDist", [draw(3, 4), draw(5, 4)], {"metric": "cosine"}, "metric `cosine`"),
        ("BiasDropout", [X, BIAS, None, np.asarray(0.5, np.float32), np.asarray(True)], {}, "training"),
    ],
)
def test_what_is_not_done_exactly_is_refused_by_name(
    kind: str, inputs: list[np.ndarray | None], attributes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConversionError, match=reason) as caught:
        _run(kind, inputs, attributes)
    assert caught.value.facts["op"] == kind


def _run(kind: str, inputs: list[np.ndarray | None], attributes: dict[str, Any]) -> Any:
    model = one_node_model(kind, inputs, attributes, 1, "com.microsoft")
    feed = {f"x{index}": array for index, array in enumerate(inputs) if array is not None}
    return compute(read_model(model.SerializeToString()), feed)[0]
