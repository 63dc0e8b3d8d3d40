"""`RNN`, `GRU` and `LSTM`: PyTorch's own operators where they do the same, else written out step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from noa_conversion.importers.op import Op
from noa_conversion.importers.recurrent_inputs import RecurrentInputs, read_recurrent
from noa_conversion.importers.target import Size, Value
from noa_conversion.importers.torch.checks import checked
from noa_conversion.importers.torch.free_time import scanned, whole_lstm
from noa_conversion.importers.torch.operands import is_static
from noa_conversion.importers.torch.recurrent_cells import (
    Activation,
    CellWeights,
    Step,
    activations_of,
    gru_step,
    has_default_activations,
    lstm_step,
    rnn_step,
)
from noa_conversion.importers.torch.table import register

_STEPS: dict[str, Callable[[Op, CellWeights, list[Activation]], Step]] = {
    "RNN": rnn_step,
    "GRU": gru_step,
    "LSTM": lstm_step,
}
_FAR_OUT = 1e4
# Where ONNX's gates lie in PyTorch's order.
_GATES = {"RNN": [0], "GRU": [1, 0, 2], "LSTM": [0, 2, 3, 1]}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A layer's tensors with time first; `lengths` is None if all sequences are whole."""

    x: torch.Tensor
    weights: list[CellWeights]
    states: list[torch.Tensor]
    lengths: torch.Tensor | None
    direction: str


@register("RNN", "GRU", "LSTM")
def recurrent(op: Op, *inputs: Value) -> tuple[torch.Tensor, ...]:
    """A layer with one state, or with a state and a cell."""
    given = read_recurrent(op, inputs)
    layer = _layer(op, given)
    y, *states = _run(op, layer)
    if layer.lengths is not None and not op.is_known(given.lengths):
        raw = op.tensor(given.lengths)
        y, *states = (_marked(part, raw, layer.x.shape[0]) for part in (y, *states))
    if given.is_batch_first:
        return y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in states)
    return y, *states


def _layer(op: Op, given: RecurrentInputs) -> _Layer:
    image, kernels, recurrent = op.tensor(given.x), op.tensor(given.w), op.tensor(given.r)
    image = image.transpose(0, 1) if given.is_batch_first else image
    biases, peepholes = (None if value is None else op.tensor(value) for value in (given.b, given.peepholes))
    weights = [
        CellWeights(
            w=kernels[i],
            r=recurrent[i],
            b=None if biases is None else biases[i],
            p=None if peepholes is None else peepholes[i],
        )
        for i in range(given.directions)
    ]
    shape = [given.directions, image.shape[1], recurrent.shape[-1]]
    states = [
        torch.zeros(shape, dtype=image.dtype)
        if value is None
        else (op.tensor(value).transpose(0, 1) if given.is_batch_first else op.tensor(value))
        for value in given.states
    ]
    names = ("initial_h", "initial_c")
    states = [_of_batch(op, name, state, image.shape[1]) for name, state in zip(names, states, strict=False)]
    return _Layer(
        x=image, weights=weights, states=states, lengths=_lengths(op, given, image.shape[0]), direction=given.direction
    )


def _of_batch(op: Op, name: str, state: torch.Tensor, batch: Size) -> torch.Tensor:
    """Return a state that is checked at run time if it may have another batch: PyTorch would read past its end."""
    own = state.shape[1]
    if statically_known_true(own == batch):
        return state
    is_right = torch.scalar_tensor(own, dtype=torch.int64) == torch.scalar_tensor(batch, dtype=torch.int64)
    words = f"`{op.kind}` `{op.name}` has sequences and initial states of two batch sizes: "
    words += f"`X` has `{batch}`, `{name}` `{own}`"
    in_words: Callable[[str], str] = getattr(op.target, "in_words", str)
    (same,) = checked(is_right, in_words(words), [state])
    return same


def _lengths(op: Op, given: RecurrentInputs, steps: Any) -> torch.Tensor | None:
    """Return lengths that can be computed with, or None if all sequences are whole."""
    if given.lengths is None or (op.is_known(given.lengths) and bool(np.all(given.lengths == steps))):
        return None
    lengths = op.tensor(given.lengths)
    return lengths if op.is_known(given.lengths) else lengths.clamp(0, steps)


def _marked(part: torch.Tensor, lengths: torch.Tensor, steps: Any) -> torch.Tensor:
    """Make all of a sequence NaN whose steps are said to be negative, or more than there are: (..., batch, hidden)."""
    is_right = ((lengths >= 0) & (lengths <= steps)).unsqueeze(1)
    return torch.where(is_right, part, torch.full_like(part, torch.nan))


def _run(op: Op, layer: _Layer) -> tuple[torch.Tensor, ...]:
    is_native = has_default_activations(op) and layer.weights[0].p is None
    if op.kind == "GRU":
        is_native = is_native and bool(op.attribute("linear_before_reset", 0))
    if op.kind == "LSTM":
        is_native = is_native and not op.attribute("input_forget", 0)
    else:
        is_native = is_native and is_static(layer.x.shape[0])  # PyTorch unrolls its own when it is exported
    compute = _written_out if not is_native else _native if layer.lengths is None else _native_with_lengths
    y, states = compute(op, layer)
    return y, *states


def _native(op: Op, layer: _Layer) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Run PyTorch's operator; the gates of the weights are put in its order within the graph."""
    x = torch.flip(layer.x, [0]) if layer.direction == "reverse" else layer.x
    order = _GATES[op.kind]
    has_biases = layer.weights[0].b is not None
    flat: list[torch.Tensor] = []
    for weights in layer.weights:
        parts = [weights.w, weights.r, *(weights.b.chunk(2) if weights.b is not None else ())]
        flat += [_reordered(part, order) for part in parts]
    is_both = layer.direction == "bidirectional"
    # A state that one element was spread to has no strides, and PyTorch's exporter makes loops that want them.
    initial = [state.clone(memory_format=torch.contiguous_format) for state in layer.states]
    if op.kind == "LSTM":
        y, *states = whole_lstm(x, initial, flat, has_biases=has_biases, is_both=is_both)
    else:
        compute = torch.gru if op.kind == "GRU" else torch.rnn_tanh
        y, *states = compute(x, initial[0], flat, has_biases, 1, 0.0, False, is_both, False)
    if layer.direction == "reverse":
        y = torch.flip(y, [0])
    directions = len(layer.weights)
    return y.reshape(y.shape[0], y.shape[1], directions, -1).transpose(1, 2), states


def _native_with_lengths(op: Op, layer: _Layer) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Run PyTorch's operator over whole sequences, each direction by itself, and leave out what is past an end.

    Nothing past an end reaches an output before it. The last output is picked out at each end; a cell, of which
    PyTorch gives the last one only, is kept as it is past the end by an input that closes one gate and opens another.
    """
    lengths = layer.lengths
    assert lengths is not None
    is_inside = (torch.arange(layer.x.shape[0]).unsqueeze(1) < lengths.unsqueeze(0)).unsqueeze(2)
    ends = (lengths.to(torch.int64) - 1).clamp(min=0).reshape(1, -1, 1)
    outputs: list[torch.Tensor] = []
    finals: list[list[torch.Tensor]] = []
    for i, weights in enumerate(layer.weights):
        is_backward = layer.direction == "reverse" or i == 1
        x = _reversed(layer.x, lengths) if is_backward else layer.x
        holds = op.kind == "LSTM" and op.wants(2)
        initial = [state[i : i + 1] for state in layer.states]
        one = _Layer(
            x=torch.cat([x, (~is_inside).to(x.dtype)], 2) if holds else x,
            weights=[_held_past_the_end(weights) if holds else weights],
            states=initial,
            lengths=None,
            direction="forward",
        )
        found, states = _native(op, one)
        y = found.squeeze(1)
        last = torch.gather(y, 0, ends.expand(1, y.shape[1], y.shape[2]))
        finals.append(list(_zero_where_empty((last, *states[1:]), lengths)))
        y = torch.where(is_inside, y, torch.zeros_like(y))
        outputs.append(_reversed(y, lengths) if is_backward else y)
    return torch.stack(outputs, 1), [torch.cat(parts) for parts in zip(*finals, strict=True)]


def _held_past_the_end(weights: CellWeights) -> CellWeights:
    """Return an LSTM's weights with one more input: where it is 1, the cell stays, for sigmoid(+-1e4) is 1 or 0."""
    size = weights.r.shape[-1]
    by_gate = (-_FAR_OUT, 0.0, _FAR_OUT, 0.0)  # input, output, forget, cell
    column = torch.cat([torch.full([size, 1], number, dtype=weights.w.dtype) for number in by_gate])
    return CellWeights(w=torch.cat([weights.w, column], 1), r=weights.r, b=weights.b)


def _reordered(part: torch.Tensor, order: list[int]) -> torch.Tensor:
    if order == [0]:
        return part
    gates = part.chunk(len(order))
    return torch.cat([gates[i] for i in order])


def _written_out(op: Op, layer: _Layer) -> tuple[torch.Tensor, list[torch.Tensor]]:
    functions = activations_of(op, len(layer.weights))
    outputs: list[torch.Tensor] = []
    finals: list[tuple[torch.Tensor, ...]] = []
    for i, weights in enumerate(layer.weights):
        is_backward = layer.direction == "reverse" or i == 1
        states = tuple(state[i] for state in layer.states)
        x = _reversed(layer.x, layer.lengths) if is_backward else layer.x
        make_step = _step_maker(op, functions[i])
        if is_static(layer.x.shape[0]):
            y, final = _unroll(make_step(weights), x, states, layer.lengths)
        else:
            y, final = scanned(make_step, weights, x, states, layer.lengths)
        outputs.append(_reversed(y, layer.lengths) if is_backward else y)
        finals.append(final if layer.lengths is None else _zero_where_empty(final, layer.lengths))
    return torch.stack(outputs, 1), [torch.stack(parts) for parts in zip(*finals, strict=True)]


def _step_maker(op: Op, functions: list[Activation]) -> Callable[[CellWeights], Step]:
    return lambda weights: _STEPS[op.kind](op, weights, functions)


def _unroll(
    step: Step, x: torch.Tensor, states: tuple[torch.Tensor, ...], lengths: torch.Tensor | None
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Step through time; after the end of a sequence its states stay and its output is zero."""
    outputs: list[torch.Tensor] = []
    for moment in range(x.shape[0]):
        new = step(x[moment], states)
        output = new[0]
        if lengths is not None:
            is_running = (lengths > moment).unsqueeze(1)
            new = tuple(torch.where(is_running, now, old) for now, old in zip(new, states, strict=True))
            output = torch.where(is_running, output, torch.zeros_like(output))
        states = new
        outputs.append(output)
    return torch.stack(outputs), states


def _zero_where_empty(states: tuple[torch.Tensor, ...], lengths: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Give a sequence without steps the last state zero, whatever it began with: as onnxruntime does, ONNX is silent.

    States are (..., batch, hidden).
    """
    return tuple(torch.where((lengths > 0).unsqueeze(1), state, torch.zeros_like(state)) for state in states)


def _reversed(x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Reverse in time, each sequence within its length."""
    if lengths is None:
        return torch.flip(x, [0])
    times = torch.arange(x.shape[0]).unsqueeze(1)
    ends = lengths.to(torch.int64).unsqueeze(0)
    places = torch.where(times < ends, ends - 1 - times, times)
    return torch.gather(x, 0, places.unsqueeze(2).expand(x.shape))
