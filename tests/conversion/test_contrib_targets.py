"""Contrib bodies in the real targets: what is written over standard operators computes the same in PyTorch and JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
import test_contrib_attention as attention
import test_contrib_fused as fused
import test_contrib_quantised as quantised
from onnx_reference_kit import one_node_model, run_onnxruntime

from noa_conversion import import_onnx_to_jax, import_onnx_to_torch

Run = Callable[[onnx.ModelProto, Mapping[str, np.ndarray], tuple[str, ...]], list[Any]]


def in_torch(model: onnx.ModelProto, feed: Mapping[str, np.ndarray], bind: tuple[str, ...]) -> list[Any]:
    imported = import_onnx_to_torch(model.SerializeToString(), bind={name: feed[name] for name in bind})
    return list(imported.run({name: array for name, array in feed.items() if name not in bind}).values())


def in_jax(model: onnx.ModelProto, feed: Mapping[str, np.ndarray], bind: tuple[str, ...]) -> list[Any]:
    imported = import_onnx_to_jax(model.SerializeToString(), bind={name: feed[name] for name in bind})
    return list(imported.run({name: array for name, array in feed.items() if name not in bind}).values())


TARGETS = [pytest.param(in_torch, marks=pytest.mark.torch, id="torch"), pytest.param(in_jax, id="jax")]


def _lstm(direction: str) -> tuple[Any, ...]:
    count = 2 if direction == "bidirectional" else 1
    weights, recurrence = (quantised.weights(count, n, 16, seed=n) for n in (3, 4))
    scale, point = np.full(count, 0.004, np.float32), np.zeros(count, np.int8)
    inputs = [quantised.draw(5, 2, 3), weights, recurrence, quantised.draw(count, 32), None, None, None, None]
    return (
        "DynamicQuantizeLSTM",
        [*inputs, scale, point, scale, point],
        {"hidden_size": 4, "direction": direction},
        3,
    )


POINT = np.asarray(100, np.uint8)
ROTARY = [np.arange(5, dtype=np.int64)[None], quantised.draw(9, 2), quantised.draw(9, 2, seed=1)]
# Name: operator, inputs, attributes, number of outputs, inputs that are known, tolerance.
CASES: dict[str, tuple[Any, ...]] = {
    **{name: fused.CASES[name] for name in ("gelu", "fast gelu, bias", "quick gelu", "conv, sum", "gemm, leaky")},
    **{name: fused.CASES[name] for name in ("matmul, both", "skip, bias", "skip rms", "max pool", "distance")},
    "add": (
        "QLinearAdd",
        [*quantised.quantised(np.uint8, 2, 3), *quantised.quantised(np.uint8, 3, seed=1), quantised.OUT_SCALE, POINT],
        {},
        1,
        (),
        1,
    ),
    "concat": (
        "QLinearConcat",
        [quantised.OUT_SCALE, POINT, *quantised.quantised(np.uint8, 2, 3), *quantised.quantised(np.uint8, 2, 2)],
        {"axis": 1},
        1,
        (),
        1,
    ),
    "gemm": (
        "QGemm",
        [
            *quantised.quantised(np.uint8, 3, 4),
            quantised.weights(4, 5),
            quantised.SCALE,
            np.asarray(5, np.int8),
            np.arange(5, dtype=np.int32),
        ],
        {},
    ),
    "dynamic": (
        "DynamicQuantizeMatMul",
        [
            quantised.draw(2, 4),
            quantised.weights(4, 5),
            np.asarray([0.02], np.float32),
            np.asarray([3], np.int8),
        ],
        {},
        1,
        (),
        1e-4,
    ),
    "few bits": (
        "MatMulNBits",
        [quantised.draw(2, 40), quantised.whole(6, 3, 8), np.abs(quantised.draw(6, 3)), quantised.whole(6, 2)],
        {"K": 40, "N": 6, "bits": 4, "block_size": 16},
        1,
        (),
        1e-3,
    ),
    "inverse": ("Inverse", [quantised.draw(2, 3, 3) + 3 * np.eye(3, dtype=np.float32)], {}),
    "lstm": _lstm("forward"),
    "lstm, both ways": _lstm("bidirectional"),
    "attention": (
        "Attention",
        [fused.draw(2, 5, 6), fused.draw(6, 24), fused.draw(24), attention.PADDING],
        {"num_heads": 2, "unidirectional": 1},
    ),
    "multi head": (
        "MultiHeadAttention",
        [*(fused.draw(2, 5, 8, seed=seed) for seed in range(3)), None, attention.PADDING],
        {"num_heads": 2},
    ),
    "rotary": ("RotaryEmbedding", [fused.draw(1, 5, 8), *ROTARY], {"interleaved": 1}),
    "grouped, first": (
        "GroupQueryAttention",
        attention._grouped(5, 0, [5, 5], rotary=True),
        {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1},
        3,
        (6,),
    ),
    "grouped, next": (
        "GroupQueryAttention",
        attention._grouped(1, 8, [3, 5]),
        {"num_heads": 4, "kv_num_heads": 2},
        3,
        (6,),
    ),
}


@pytest.mark.parametrize("run", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_a_contrib_operator_computes_what_onnxruntime_does(name: str, run: Run) -> None:
    kind, inputs, attributes, outputs, known, atol = (*CASES[name], *({}, 1, (), 1e-5)[len(CASES[name]) - 2 :])
    model = one_node_model(kind, inputs, attributes, outputs, "com.microsoft")
    feed = {f"x{index}": array for index, array in enumerate(inputs) if array is not None}
    expected = run_onnxruntime(model, feed)
    received = run(model, feed, tuple(f"x{index}" for index in known))
    for got, want in zip(received, expected, strict=True):
        array = np.asarray(got)
        assert array.shape == want.shape
        np.testing.assert_allclose(array.astype(np.float64), want.astype(np.float64), rtol=1e-4, atol=atol)
