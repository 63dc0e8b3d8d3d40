"""Attention operators of `com.microsoft` through their bodies, compared with onnxruntime's own kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_reference_kit import check_against_onnxruntime, compute, one_node_model

from noa.errors import ConversionError
from noa_conversion.onnx_graph.reading import read_model

BATCH, SEQ, HEADS, DIM = 2, 5, 2, 4
HIDDEN = HEADS * DIM


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


PADDING = np.asarray([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
LEFT_PADDING = PADDING[:, ::-1].copy()
SQUARE = np.broadcast_to(PADDING[:, None], (BATCH, SEQ, SEQ)).copy()
MASKS: dict[str, np.ndarray | None] = {
    "no mask": None,
    "right": PADDING,
    "left": LEFT_PADDING,
    "per query": SQUARE,
    "lengths": np.asarray([3, 5], np.int32),
}


@pytest.mark.parametrize("unidirectional", [0, 1])
@pytest.mark.parametrize("mask", MASKS)
def test_attention(mask: str, unidirectional: int) -> None:
    inputs = [draw(BATCH, SEQ, 6), draw(6, 3 * HIDDEN), draw(3 * HIDDEN), MASKS[mask]]
    attributes = {"num_heads": HEADS, "unidirectional": unidirectional}
    check_against_onnxruntime("Attention", inputs, attributes)


def test_attention_with_a_past_a_bias_and_a_scale() -> None:
    past = draw(2, BATCH, HEADS, 3, DIM)
    mask = np.concatenate([np.ones((BATCH, 3), np.int32), PADDING], 1)
    weights = [draw(BATCH, SEQ, 6), draw(6, 3 * HIDDEN), draw(3 * HIDDEN)]
    for unidirectional in (0, 1):
        attributes = {"num_heads": HEADS, "unidirectional": unidirectional, "scale": 0.3}
        check_against_onnxruntime("Attention", [*weights, mask, past], attributes, outputs=2)
    bias = draw(1, HEADS, SEQ, SEQ)
    check_against_onnxruntime("Attention", [*weights, None, None, bias], {"num_heads": HEADS})


def test_attention_with_values_of_another_size() -> None:
    inputs = [draw(BATCH, SEQ, 6), draw(6, 2 * HIDDEN + 4), draw(2 * HIDDEN + 4)]
    check_against_onnxruntime("Attention", inputs, {"num_heads": HEADS, "qkv_hidden_sizes": [HIDDEN, HIDDEN, 4]})


@pytest.mark.parametrize("unidirectional", [0, 1])
@pytest.mark.parametrize("mask", ["no mask", "right", "lengths"])
def test_quantised_attention(mask: str, unidirectional: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 255, (BATCH, SEQ, 6)).astype(np.uint8)
    weights = rng.integers(-64, 64, (6, 3 * HIDDEN)).astype(np.int8)  # 7 bits: exact without VNNI too
    scales = [np.asarray(0.02, np.float32), np.asarray(0.01, np.float32)]
    points = [np.asarray(120, np.uint8), np.asarray(0, np.int8)]
    inputs = [x, weights, draw(3 * HIDDEN), *scales, MASKS[mask], *points]
    check_against_onnxruntime("QAttention", inputs, {"num_heads": HEADS, "unidirectional": unidirectional})


@pytest.mark.parametrize("unidirectional", [0, 1])
@pytest.mark.parametrize("mask", MASKS)
def test_multi_head_attention(mask: str, unidirectional: int) -> None:
    query, keys, values = (draw(BATCH, SEQ, HIDDEN, seed=seed) for seed in range(3))
    inputs = [query, keys, values, draw(3 * HIDDEN), MASKS[mask]]
    attributes = {"num_heads": HEADS, "unidirectional": unidirectional, "scale": 0.4}
    check_against_onnxruntime("MultiHeadAttention", inputs, attributes)


def test_multi_head_attention_with_a_past_and_a_bias() -> None:
    query, keys, values = (draw(BATCH, SEQ, HIDDEN, seed=seed) for seed in range(3))
    past = [draw(BATCH, HEADS, 3, DIM, seed=seed) for seed in (4, 5)]
    bias = draw(1, HEADS, SEQ, SEQ + 3)
    inputs = [query, keys, values, None, None, bias, *past]
    check_against_onnxruntime("MultiHeadAttention", inputs, {"num_heads": HEADS}, outputs=3)


def test_multi_head_cross_attention() -> None:
    query, keys, values = draw(BATCH, SEQ, HIDDEN), draw(BATCH, HEADS, 7, DIM), draw(BATCH, HEADS, 7, DIM, seed=1)
    check_against_onnxruntime("MultiHeadAttention", [query, keys, values], {"num_heads": HEADS})
    flat = [draw(BATCH, 7, HIDDEN, seed=seed) for seed in range(2)]
    check_against_onnxruntime("MultiHeadAttention", [query, *flat], {"num_heads": HEADS})


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("shape", [(BATCH, SEQ, HIDDEN), (BATCH, HEADS, SEQ, DIM)])
@pytest.mark.parametrize("is_offset", [True, False])
def test_rotary_embedding(shape: tuple[int, ...], interleaved: int, is_offset: bool) -> None:
    places = np.asarray([2], np.int64) if is_offset else np.tile(np.arange(SEQ, dtype=np.int64), (BATCH, 1)) + 1
    inputs = [draw(*shape), places, draw(9, DIM // 2), draw(9, DIM // 2, seed=1)]
    check_against_onnxruntime("RotaryEmbedding", inputs, {"interleaved": interleaved})


def test_rotary_embedding_of_a_part_of_the_channels() -> None:
    places = np.asarray([0], np.int64)
    inputs = [draw(BATCH, SEQ, 16), places, draw(9, 2), draw(9, 2, seed=1)]
    check_against_onnxruntime("RotaryEmbedding", inputs, {"rotary_embedding_dim": 4, "num_heads": 2})


def _grouped(length: int, past: int, totals: list[int], *, packed: bool = False, rotary: bool = False) -> list[Any]:
    heads, kv_heads, dim = 4, 2, 16
    sizes = (heads * dim, kv_heads * dim, kv_heads * dim)
    parts: list[Any] = [draw(BATCH, length, size, seed=seed) for seed, size in enumerate(sizes)]
    if packed:
        parts = [np.concatenate(parts, -1), None, None]
    old = [draw(BATCH, kv_heads, past, dim, seed=seed) for seed in (5, 6)] if past else [None, None]
    lengths = np.asarray(totals, np.int32) - 1
    total = np.asarray(max(totals), np.int32)
    caches = [draw(32, dim // 2, seed=seed) for seed in (7, 8)] if rotary else [None, None]
    return [*parts, *old, lengths, total, *caches]


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("length", "past", "totals"), [(5, 0, [5, 5]), (1, 4, [5, 5]), (1, 4, [3, 5]), (1, 8, [3, 5])])
def test_grouped_attention(length: int, past: int, totals: list[int], packed: bool, rotary: bool) -> None:
    inputs = _grouped(length, past, totals, packed=packed, rotary=rotary)
    attributes = {"num_heads": 4, "kv_num_heads": 2, "do_rotary": int(rotary)}
    check_against_onnxruntime("GroupQueryAttention", inputs, attributes, outputs=3, known=(6,))


@pytest.mark.parametrize("attributes", [{"local_window_size": 3}, {"softcap": 2.0}, {"scale": 0.3}])
@pytest.mark.parametrize(("length", "past", "totals"), [(6, 0, [6, 6]), (1, 6, [7, 5])])
def test_grouped_attention_with_a_window_a_cap_or_a_scale(
    attributes: dict[str, Any], length: int, past: int, totals: list[int]
) -> None:
    inputs = _grouped(length, past, totals)
    common = {"num_heads": 4, "kv_num_heads": 2}
    check_against_onnxruntime("GroupQueryAttention", inputs, {**common, **attributes}, outputs=3, known=(6,))


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "reason"),
    [
        ("GroupQueryAttention", _grouped(5, 0, [5, 5]), {"num_heads": 4, "kv_num_heads": 2}, "total length"),
        ("MultiHeadAttention", [draw(2, 5, 8), draw(2, 5, 2, 2, 4)], {"num_heads": 2}, "packed keys"),
        ("Attention", [draw(2, 5, 6), draw(6, 24), draw(24)], {"num_heads": 2, "do_rotary": 1}, "do_rotary"),
    ],
)
def test_a_variant_that_is_not_implemented_is_refused(
    kind: str, inputs: list[Any], attributes: dict[str, Any], reason: str
) -> None:
    model = one_node_model(kind, inputs, attributes, 1, "com.microsoft")
    feed = {f"x{index}": array for index, array in enumerate(inputs) if array is not None}
    with pytest.raises(ConversionError, match=reason):
        compute(read_model(model.SerializeToString()), feed)
