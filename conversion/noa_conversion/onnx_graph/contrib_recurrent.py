"""Bodies of quantised recurrent operators."""

from __future__ import annotations

import numpy as np

from noa_conversion.onnx_graph.contrib_body import Body, Writer
from noa_conversion.onnx_graph.contrib_quantised import integer_product

_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
_USUAL = ("sigmoid", "tanh", "tanh")


def _dynamic_quantize_lstm(b: Body) -> tuple[str, str, str]:
    """An LSTM whose products are those of 8-bit numbers: the inputs are rounded once, the hidden state at every step.

    So does onnxruntime; with several threads it rounds the rows of a batch apart from each other, for slightly other
    results.
    """
    b.refuse_inputs(sequence_lens=4, P=7)
    b.allow(clip=0.0, input_forget=0)
    directions = _DIRECTIONS.get(b.attribute("direction", "forward")) or b.refuse("its direction is unknown")
    names = tuple(name.lower() for name in b.attribute("activations", list(_USUAL) * len(directions)))
    if names != _USUAL * len(directions):
        b.refuse(f"the activations {names} are not implemented")
    x, x_scale, x_zero = b.several("DynamicQuantizeLinear", b.needed(0), outputs=3)
    runs = [_one_direction(b, (x, x_scale, x_zero), at, is_backward) for at, is_backward in enumerate(directions)]
    hidden, cell = (b.op("Concat", *(run[part] for run in runs), axis=0) for part in (1, 2))
    return b.op("Concat", *(run[0] for run in runs), axis=1), hidden, cell


def _one_direction(b: Body, x: tuple[str, str, str], at: int, is_backward: bool) -> tuple[str, str, str]:
    """Return what one direction gives: all hidden states, the last one and the last cell, with an axis for it."""
    hidden_size = b.attribute("hidden_size")
    weights, weight_scale, weight_zero = (_part(b, index, at) for index in (1, 8, 9))
    product = b.op("Cast", integer_product(b, x[0], weights, x[2], weight_zero), to=1)
    gates = b.op("Mul", product, b.op("Mul", x[1], weight_scale))
    if b.input(3) is not None:
        halves = b.several("Split", _part(b, 3, at), outputs=2, axis=0)
        gates = b.op("Add", gates, b.op("Add", *halves))
    gates = _reversed(b, gates) if is_backward else gates
    start = [_initial(b, index, at, hidden_size) for index in (5, 6)]
    step = _step(b, at)
    hidden, cell, every = b.several("Scan", *start, gates, outputs=3, num_scan_inputs=1, body=step)
    every = _reversed(b, every) if is_backward else every
    return b.op("Unsqueeze", every, b.ints(1)), b.op("Unsqueeze", hidden, b.ints(0)), b.op("Unsqueeze", cell, b.ints(0))


def _step(b: Body, at: int) -> object:
    """Return the graph of one step: (hidden, cell, gates of the input) to (hidden, cell, hidden)."""
    recurrence, scale, zero = (_part(b, index, at) for index in (2, 10, 11))
    inner = Body(b.node, (), prefix=f"step{at}_")
    hidden, cell, gates = f"step{at}_hidden", f"step{at}_cell", f"step{at}_gates"
    h, h_scale, h_zero = inner.several("DynamicQuantizeLinear", hidden, outputs=3)
    product = inner.op("Cast", integer_product(inner, h, recurrence, h_zero, zero), to=1)
    total = inner.op("Add", gates, inner.op("Mul", product, inner.op("Mul", h_scale, scale)))
    i, o, f, c = inner.several("Split", total, outputs=4, axis=-1)
    kept = inner.op("Mul", inner.op("Sigmoid", f), cell)
    new_cell = inner.op("Add", kept, inner.op("Mul", inner.op("Sigmoid", i), inner.op("Tanh", c)))
    new_hidden = inner.op("Mul", inner.op("Sigmoid", o), inner.op("Tanh", new_cell))
    return inner.graph([hidden, cell, gates], [new_hidden, new_cell, new_hidden])


def _part(b: Body, index: int, at: int) -> str:
    """Return what an input holds for one direction."""
    return b.op("Gather", b.needed(index), b.constant(at, np.int64), axis=0)


def _initial(b: Body, index: int, at: int, hidden_size: int) -> str:
    if b.input(index) is not None:
        return _part(b, index, at)
    shape = b.op("Concat", b.op("Shape", b.needed(0), start=1, end=2), b.ints(hidden_size), axis=0)
    return b.op("Expand", b.constant(0.0, np.float32), shape)


def _reversed(b: Body, x: str) -> str:
    """Turn the steps around."""
    return b.op("Slice", x, b.ints(-1), b.ints(-(1 << 31)), b.ints(0), b.ints(-1))


RECURRENT: dict[str, Writer] = {"DynamicQuantizeLSTM": _dynamic_quantize_lstm}
