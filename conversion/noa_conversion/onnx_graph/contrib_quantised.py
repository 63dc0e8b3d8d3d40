"""Bodies of quantised operators: dequantise, compute, quantise again; products of integers are kept in integers."""

from __future__ import annotations

import numpy as np

from noa_conversion.onnx_graph.contrib_body import Body, Writer
from noa_conversion.onnx_graph.contrib_fused import channels_last
from noa_conversion.onnx_graph.dtypes import code_of

_POOL = ("auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "strides")
_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def dequantised(b: Body, at: int) -> str:
    """Return the input at `at` as numbers; its scale and zero point are the two inputs after it."""
    return b.op("DequantizeLinear", b.needed(at), b.needed(at + 1), b.input(at + 2))


def quantised(b: Body, y: str, scale: int, like: int = 0) -> str:
    """Quantise with the scale at `scale` and the zero point after it; without one, as the input `like` is typed."""
    zero = b.input(scale + 1) or b.constant(0, b.dtype(like))
    return b.op("QuantizeLinear", y, b.needed(scale), zero)


def _arithmetic(kind: str) -> Writer:
    def write(b: Body) -> str:
        return quantised(b, b.op(kind, dequantised(b, 0), dequantised(b, 3)), 6)

    return write


def _sigmoid(b: Body) -> str:
    return quantised(b, b.op("Sigmoid", dequantised(b, 0)), 3)


def _leaky_relu(b: Body) -> str:
    return quantised(b, b.op("LeakyRelu", dequantised(b, 0), alpha=b.attribute("alpha", 0.01)), 3)


def _softmax(b: Body) -> str:
    axis, rank, opset = b.attribute("axis", -1), b.rank(0), b.attribute("opset")
    x = dequantised(b, 0)
    if opset >= 13 or axis in (-1, rank - 1):
        return quantised(b, b.op("Softmax", x, axis=axis), 3)
    flat = b.op("Softmax", b.op("Flatten", x, axis=axis), axis=-1)
    return quantised(b, b.op("Reshape", flat, b.op("Shape", x)), 3)


def _average_pool(b: Body) -> str:
    if b.attribute("ceil_mode", 0) and b.attribute("count_include_pad", 0):
        b.refuse("with `ceil_mode` and `count_include_pad` the kernel divides by what no other pooling does")
    x = dequantised(b, 0)
    if b.attribute("channels_last", 0):
        return quantised(b, channels_last(b, "AveragePool", x, b.rank(0)), 3)
    return quantised(b, b.op("AveragePool", x, **b.passed_on(*_POOL)), 3)


def _global_average_pool(b: Body) -> str:
    rank = b.rank(0)
    axes = range(1, rank - 1) if b.attribute("channels_last", 0) else range(2, rank)
    return quantised(b, b.op("ReduceMean", dequantised(b, 0), b.ints(*axes), keepdims=1), 3)


def _concat(b: Body) -> str:
    parts = [dequantised(b, at) for at in range(2, b.num_inputs, 3)]
    return quantised(b, b.op("Concat", *parts, axis=b.attribute("axis")), 0, like=2)


def _where(b: Body) -> str:
    return quantised(b, b.op("Where", b.needed(0), dequantised(b, 1), dequantised(b, 4)), 7, like=1)


def _conv(b: Body) -> str:
    attributes = b.passed_on(*_CONV)
    rank = b.rank(0)
    x, inputs = b.needed(0), [b.input(index) for index in range(1, 9)]
    if not b.attribute("channels_last", 0):
        return b.op("QLinearConv", x, *inputs, **attributes)
    y = b.op("QLinearConv", b.op("Transpose", x, perm=[0, rank - 1, *range(1, rank - 1)]), *inputs, **attributes)
    return b.op("Transpose", y, perm=[0, *range(2, rank), 1])


def _quantize(b: Body) -> str:
    zero = b.input(2) or b.constant(0, np.uint8)
    return b.op("QuantizeLinear", b.needed(0), b.needed(1), zero, axis=b.attribute("axis", 1))


def _dequantize(b: Body) -> str:
    return b.op("DequantizeLinear", b.needed(0), b.needed(1), b.input(2), axis=b.attribute("axis", 1))


# --- products of integers ---------------------------------------------------------------------------------------------


def integer_product(b: Body, left: str, right: str, left_zero: str | None, right_zero: str | None) -> str:
    """Multiply matrices of 8-bit numbers into int32, exactly, whatever the signs of their types."""
    return b.op("MatMulInteger", left, right, left_zero, right_zero)


def _matmul_integer_to_float(b: Body) -> str:
    product = integer_product(b, b.needed(0), b.needed(1), b.input(4), b.input(5))
    scale = b.op("Mul", b.needed(2), b.needed(3))
    y = b.op("Mul", b.op("Cast", product, to=code_of(b.dtype(2))), scale)
    return y if b.input(6) is None else b.op("Add", y, b.needed(6))


def _dynamic_quantize_matmul(b: Body) -> str:
    x, scale, zero = b.several("DynamicQuantizeLinear", b.needed(0), outputs=3)
    product = integer_product(b, x, b.needed(1), zero, b.input(3))
    y = b.op("Mul", b.op("Cast", product, to=1), b.op("Mul", scale, b.needed(2)))
    return y if b.input(4) is None else b.op("Add", y, b.needed(4))


def _gemm(b: Body) -> str:
    left, right = b.needed(0), b.needed(3)
    left = b.op("Transpose", left, perm=[1, 0]) if b.attribute("transA", 0) else left
    is_transposed = bool(b.attribute("transB", 0))
    right = b.op("Transpose", right, perm=[1, 0]) if is_transposed else right
    total = integer_product(b, left, right, b.input(2), b.input(5))
    if (bias := b.input(6)) is not None:
        total = b.op("Add", total, bias)
    scale = b.op("Mul", b.op("Mul", b.needed(1), b.needed(4)), b.constant(b.attribute("alpha", 1.0), np.float32))
    y = b.op("Mul", b.op("Cast", total, to=1), scale)
    return y if b.input(7) is None else quantised(b, y, 7)


def _matmul_n_bits(b: Body) -> str:
    bits, block = b.attribute("bits", 4), b.attribute("block_size")
    rows, columns = b.attribute("N"), b.attribute("K")
    if bits not in (2, 4, 8):
        b.refuse(f"weights of {bits} bits are not implemented")
    blocks = -(-columns // block)
    weights = _unpacked(b, b.op("Reshape", b.needed(1), b.ints(rows, blocks, -1)), bits, (rows, blocks, block))
    weights = b.op("Cast", weights, to=code_of(b.dtype(2)))
    scales, zeros = b.op("Reshape", b.needed(2), b.ints(rows, blocks, 1)), _zero_points(b, bits, rows, blocks)
    if (groups := b.input(4)) is not None:
        # Each column names its block of scales and zero points, as GPTQ's activation order leaves them.
        if b.input(3) is not None and b.dtype(3) == np.uint8:
            b.refuse("packed zero points with `g_idx`, which onnxruntime 1.32 passes over, are not implemented")
        length = b.size(4, 0, "the number of columns")
        weights = b.op("Reshape", weights, b.ints(rows, blocks * block))
        weights = b.op("Slice", weights, b.ints(0), b.ints(length), b.ints(1))
        scales = _by_column(b, scales, groups)
        zeros = zeros if b.input(3) is None else _by_column(b, zeros, groups)
        blocks, block = 1, length
    dense = b.op("Reshape", b.op("Mul", b.op("Sub", weights, zeros), scales), b.ints(rows, blocks * block))
    if blocks * block != columns:
        dense = b.op("Slice", dense, b.ints(0), b.ints(columns), b.ints(1))
    y = b.op("MatMul", b.needed(0), b.op("Transpose", dense, perm=[1, 0]))
    return y if b.input(5) is None else b.op("Add", y, b.needed(5))


def _by_column(b: Body, blocks: str, groups: str) -> str:
    """Return one number for each row and column from one for each row and block."""
    return b.op("Squeeze", b.op("Gather", blocks, groups, axis=1), b.ints(2))


def _zero_points(b: Body, bits: int, rows: int, blocks: int) -> str:
    number = b.dtype(2)
    if (zeros := b.input(3)) is None:
        return b.constant(1 << (bits - 1), number)
    if b.dtype(3) != np.uint8:
        return b.op("Reshape", zeros, b.ints(rows, blocks, 1))
    padded = -(-blocks * bits // 8) * 8 // bits
    flat = _unpacked(b, b.op("Reshape", zeros, b.ints(rows, -1)), bits, (rows, padded))
    flat = b.op("Slice", flat, b.ints(0), b.ints(blocks), b.ints(1)) if padded != blocks else flat
    return b.op("Cast", b.op("Reshape", flat, b.ints(rows, blocks, 1)), to=code_of(number))


def _unpacked(b: Body, packed: str, bits: int, shape: tuple[int, ...]) -> str:
    """Return numbers of which several share a byte, the lowest bits first, one per byte."""
    if bits == 8:
        return b.op("Reshape", packed, b.ints(*shape))
    mask = b.constant((1 << bits) - 1, np.uint8)
    parts = [
        b.op("BitwiseAnd", b.op("BitShift", packed, b.constant(shift, np.uint8), direction="RIGHT"), mask)
        for shift in range(0, 8, bits)
    ]
    axis = b.ints(len(shape))
    return b.op("Reshape", b.op("Concat", *(b.op("Unsqueeze", part, axis) for part in parts), axis=-1), b.ints(*shape))


QUANTISED: dict[str, Writer] = {
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeMatMul": _dynamic_quantize_matmul,
    "MatMulIntegerToFloat": _matmul_integer_to_float,
    "MatMulNBits": _matmul_n_bits,
    "QGemm": _gemm,
    "QLinearAdd": _arithmetic("Add"),
    "QLinearAveragePool": _average_pool,
    "QLinearConcat": _concat,
    "QLinearConv": _conv,
    "QLinearGlobalAveragePool": _global_average_pool,
    "QLinearLeakyRelu": _leaky_relu,
    "QLinearMul": _arithmetic("Mul"),
    "QLinearSigmoid": _sigmoid,
    "QLinearSoftmax": _softmax,
    "QLinearWhere": _where,
    "QuantizeLinear": _quantize,
}
