"""Bodies of fused floating-point operators: activations, normalisations, products, and what is only named anew."""

from __future__ import annotations

import math

import numpy as np

from noa_conversion.onnx_graph.contrib_body import Body, Writer
from noa_conversion.onnx_graph.dtypes import code_of

_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


# --- activations ------------------------------------------------------------------------------------------------------


def _gelu(b: Body) -> str:
    return _erf_gelu(b, b.needed(0))


def _erf_gelu(b: Body, x: str) -> str:
    inner = b.op("Erf", b.op("Mul", x, b.number(math.sqrt(0.5))))
    return b.op("Mul", b.op("Mul", x, b.number(0.5)), b.op("Add", inner, b.number(1.0)))


def _bias_gelu(b: Body) -> str:
    return _erf_gelu(b, b.op("Add", b.needed(0), b.needed(1)))


def _fast_gelu(b: Body) -> str:
    x = b.needed(0) if b.input(1) is None else b.op("Add", b.needed(0), b.needed(1))
    square = b.op("Mul", x, x)
    factor = b.op(
        "Add", b.op("Mul", square, b.number(0.044715 * math.sqrt(2 / math.pi))), b.number(math.sqrt(2 / math.pi))
    )
    inner = b.op("Tanh", b.op("Mul", x, factor))
    return b.op("Mul", b.op("Mul", x, b.number(0.5)), b.op("Add", inner, b.number(1.0)))


def _quick_gelu(b: Body) -> str:
    x = b.needed(0)
    return b.op("Mul", x, b.op("Sigmoid", b.op("Mul", x, b.number(b.attribute("alpha", 1.702)))))


def activate(b: Body, x: str, name: str, params: list[float]) -> str:
    """Apply the activation of a fused operator."""
    if name in ("Relu", "Tanh", "Sigmoid"):
        return b.op(name, x)
    if name == "LeakyRelu":
        return b.op(name, x, alpha=params[0] if params else 0.01)
    if name == "Clip" and len(params) == 2:
        return b.op(name, x, b.number(params[0]), b.number(params[1]))
    if name == "HardSigmoid" and len(params) == 2:
        return b.op(name, x, alpha=params[0], beta=params[1])
    return b.refuse(f"its activation `{name}` with {len(params)} parameters is not implemented")


# --- products ---------------------------------------------------------------------------------------------------------


def _fused_conv(b: Body) -> str:
    y = b.op("Conv", b.needed(0), b.needed(1), b.input(2), **b.passed_on(*_CONV))
    if (z := b.input(3)) is not None:
        y = b.op("Add", y, z)
    if not b.has("activation"):
        return y
    return activate(b, y, b.attribute("activation"), b.attribute("activation_params", []))


def _fused_gemm(b: Body) -> str:
    y = b.op("Gemm", b.needed(0), b.needed(1), b.input(2), **b.passed_on("alpha", "beta", "transA", "transB"))
    if not b.has("activation"):
        return y
    names = ("activation_alpha", "activation_beta", "activation_gamma")
    return activate(b, y, b.attribute("activation"), [b.attribute(name) for name in names if b.has(name)])


def _fused_matmul(b: Body) -> str:
    left = _transposed(b, 0, bool(b.attribute("transA", 0)), bool(b.attribute("transBatchA", 0)))
    right = _transposed(b, 1, bool(b.attribute("transB", 0)), bool(b.attribute("transBatchB", 0)))
    y = b.op("MatMul", left, right)
    alpha = b.attribute("alpha", 1.0)
    return y if alpha == 1.0 else b.op("Mul", y, b.number(alpha))


def _transposed(b: Body, index: int, matrix: bool, batch: bool) -> str:
    rank = b.rank(index)
    perm = list(range(rank))
    if batch:
        if rank < 3:
            b.refuse("it transposes the batch of a matrix")
        perm = [*perm[1:-1], 0, perm[-1]]
    if matrix and rank > 1:
        perm[-2:] = perm[:-3:-1]
    x = b.needed(index)
    return x if perm == list(range(rank)) else b.op("Transpose", x, perm=perm)


# --- normalisations ---------------------------------------------------------------------------------------------------


def _skip_layer_norm(b: Body) -> tuple[str | None, ...]:
    total = _skip_sum(b, 4)
    y, mean, inverse = b.several(
        "LayerNormalization",
        total,
        b.needed(2),
        b.input(3),
        outputs=3,
        axis=-1,
        epsilon=b.attribute("epsilon", 1e-12),
    )
    return y, mean, inverse, total


def _skip_sum(b: Body, bias: int) -> str:
    total = b.op("Add", b.needed(0), b.needed(1))
    return total if b.input(bias) is None else b.op("Add", total, b.needed(bias))


def _skip_rms_norm(b: Body) -> tuple[str | None, ...]:
    total = _skip_sum(b, 3)
    y, _ = root_mean_square(b, total, b.needed(2), b.attribute("epsilon", 1e-12))
    return y, None, None, total


def _rms_norm(b: Body) -> tuple[str, str]:
    if b.attribute("axis", -1) not in (-1, b.rank(0) - 1):
        b.refuse("only its last axis is implemented")
    b.allow(stash_type=1)
    return root_mean_square(b, b.needed(0), b.needed(1), b.attribute("epsilon", 1e-5))


def root_mean_square(b: Body, x: str, scale: str, epsilon: float) -> tuple[str, str]:
    """Divide by the root of the mean square along the last axis, in float32, and scale."""
    narrow = b.dtype() in (np.float16, np.dtype("float16")) or b.dtype().name == "bfloat16"
    wide = b.op("Cast", x, to=1) if narrow else x
    number = np.float32 if narrow else b.dtype()
    mean = b.op("ReduceMean", b.op("Mul", wide, wide), b.ints(-1), keepdims=1)
    inverse = b.op("Reciprocal", b.op("Sqrt", b.op("Add", mean, b.constant(epsilon, number))))
    y = b.op("Mul", wide, inverse)
    return b.op("Mul", b.op("Cast", y, to=code_of(b.dtype())) if narrow else y, scale), inverse


def _embed_layer_norm(b: Body) -> tuple[str, str, str]:
    ids, segments, words, places, kinds = (b.input(index) for index in range(5))
    total = b.op("Gather", words, ids)
    if (positions := b.input(8)) is not None:
        total = b.op("Add", total, b.op("Gather", places, positions))
    else:
        length = b.op("Shape", ids, start=1, end=2)
        total = b.op("Add", total, b.op("Slice", places, b.ints(0), length, b.ints(0)))
    if segments is not None:
        total = b.op("Add", total, b.op("Gather", kinds, segments))
    y = b.op(
        "LayerNormalization",
        total,
        b.needed(5),
        b.input(6),
        axis=-1,
        epsilon=b.attribute("epsilon", 1e-12),
    )
    return y, _mask_lengths(b), total


def _mask_lengths(b: Body) -> str:
    if (mask := b.input(7)) is None or not b.attribute("mask_index_type", 1):
        batch = b.op("Shape", b.needed(0), start=0, end=1)
        return b.op("ConstantOfShape", batch, value=np.zeros(1, np.int32))
    ones = b.op("Cast", b.op("Equal", mask, b.constant(1, np.int32)), to=6)
    return b.op("ReduceSum", ones, b.ints(1), keepdims=0)


# --- others -----------------------------------------------------------------------------------------------------------


def _bias_softmax(b: Body) -> str:
    rank = b.rank(0)
    if b.attribute("axis", 1) not in (-1, rank - 1) or b.rank(1) != rank:
        b.refuse("only the last axis, with a bias of the same rank, is implemented")
    return b.op("Softmax", b.op("Add", b.needed(0), b.needed(1)), axis=-1)


def _bias_dropout(b: Body) -> tuple[str, str | None]:
    if b.input(4) is not None:
        training = b.type(4).array
        if training is None or training.any():
            b.refuse("it drops values, as in training")
    y = b.op("Add", b.needed(0), b.needed(1))
    y = y if b.input(2) is None else b.op("Add", y, b.needed(2))
    mask = b.op("Expand", b.constant(True, np.bool_), b.op("Shape", y)) if b.wants(1) else None
    return y, mask


def _bias_add(b: Body) -> str:
    return b.op("Add", b.op("Add", b.needed(0), b.needed(1)), b.needed(2))


def _trilu(b: Body) -> str:
    return b.op("Trilu", b.needed(0), b.input(1), upper=b.attribute("upper", 1))


def _pad(b: Body) -> str:
    return b.op("Pad", b.needed(0), b.needed(1), b.input(2), mode=b.attribute("mode", "constant"))


def _unique(b: Body) -> tuple[str, str, str]:
    y, _, inverse, counts = b.several("Unique", b.needed(0), outputs=4, sorted=0)
    return y, inverse, counts


def _expand_dims(b: Body) -> str:
    return b.op("Unsqueeze", b.needed(0), b.op("Cast", b.op("Reshape", b.needed(1), b.ints(1)), to=7))


def _gather_nd(b: Body) -> str:
    return b.op("GatherND", b.needed(0), b.op("Cast", b.needed(1), to=7))


def _grid_sample(b: Body) -> str:
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(b.attribute("mode", "bilinear"), b.attribute("mode", ""))
    return b.op("GridSample", b.needed(0), b.needed(1), mode=mode, **b.passed_on("align_corners", "padding_mode"))


def _pairwise_distance(b: Body) -> str:
    metric = b.attribute("metric", "sqeuclidean")
    if metric not in ("euclidean", "sqeuclidean"):
        b.refuse(f"the metric `{metric}` is not implemented")
    difference = b.op("Sub", b.op("Unsqueeze", b.needed(0), b.ints(1)), b.op("Unsqueeze", b.needed(1), b.ints(0)))
    square = b.op("ReduceSum", b.op("Mul", difference, difference), b.ints(-1), keepdims=0)
    return square if metric == "sqeuclidean" else b.op("Sqrt", square)


def channels_last(b: Body, kind: str, x: str, rank: int, *others: str | None) -> str:
    """Apply an operator that wants its channels second to a tensor that has them last."""
    attributes = b.passed_on(*_CONV, "ceil_mode", "storage_order", "count_include_pad")
    first = b.op("Transpose", x, perm=[0, rank - 1, *range(1, rank - 1)])
    return b.op("Transpose", b.op(kind, first, *others, **attributes), perm=[0, *range(2, rank), 1])


def _nhwc_max_pool(b: Body) -> str:
    return channels_last(b, "MaxPool", b.needed(0), b.rank(0))


def _nhwc_conv(b: Body) -> str:
    return channels_last(b, "Conv", b.needed(0), b.rank(0), b.needed(1), b.input(2))


FUSED: dict[str, Writer] = {
    "BiasAdd": _bias_add,
    "BiasDropout": _bias_dropout,
    "BiasGelu": _bias_gelu,
    "BiasSoftmax": _bias_softmax,
    "CDist": _pairwise_distance,
    "EmbedLayerNormalization": _embed_layer_norm,
    "ExpandDims": _expand_dims,
    "FastGelu": _fast_gelu,
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "GatherND": _gather_nd,
    "Gelu": _gelu,
    "GridSample": _grid_sample,
    "NhwcConv": _nhwc_conv,
    "NhwcMaxPool": _nhwc_max_pool,
    "Pad": _pad,
    "QuickGelu": _quick_gelu,
    "SimplifiedLayerNormalization": _rms_norm,
    "SkipLayerNormalization": _skip_layer_norm,
    "SkipSimplifiedLayerNormalization": _skip_rms_norm,
    "TransposeMatMul": _fused_matmul,
    "Trilu": _trilu,
    "Unique": _unique,
}
