"""Bodies of quantised recurrent operators."""

from __future__ import annotations

from noa_conversion.onnx_graph.contrib_body import Body, Writer

_ATTRIBUTES = ("activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "input_forget")


def _dynamic_quantize_lstm(b: Body) -> tuple[str, str, str]:
    """An LSTM whose weights are stored in 8 bits.

    onnxruntime rounds the inputs of each product to 8 bits as well; here they keep their precision, so that the results
    differ by that rounding.
    """
    weights, recurrence = (_dequantised(b, at, scale) for at, scale in ((1, 8), (2, 10)))
    y, hidden, cell = b.several(
        "LSTM",
        b.needed(0),
        weights,
        recurrence,
        *(b.input(index) for index in range(3, 8)),
        outputs=3,
        **{name: b.node.attributes.get(name) for name in _ATTRIBUTES},
    )
    return y, hidden, cell


def _dequantised(b: Body, at: int, scale: int) -> str:
    """Return weights stored as `direction input gate` as floats in the order of the standard operator."""
    scales, zeros = b.needed(scale), b.needed(scale + 1)
    if b.rank(scale) == 1:
        scales, zeros = (b.op("Unsqueeze", x, b.ints(1)) for x in (scales, zeros))
    scales, zeros = (b.op("Unsqueeze", x, b.ints(1)) for x in (scales, zeros))
    values = b.op("Sub", b.op("Cast", b.needed(at), to=1), b.op("Cast", zeros, to=1))
    return b.op("Transpose", b.op("Mul", values, scales), perm=[0, 2, 1])


RECURRENT: dict[str, Writer] = {"DynamicQuantizeLSTM": _dynamic_quantize_lstm}
