"""Recurrent layers whose number of steps is a free axis, recorded without walking through its steps.

PyTorch's stand-in for `lstm` unrolls it as soon as its input depends on a weight that is trained, which fixes the
number of steps and takes long; so the call is recorded as it is, and its results are described here. `gru` and
`rnn_tanh` are unrolled always: they, and cells that are written out, become a `scan`, which PyTorch runs,
differentiates and exports for any number of steps. `torch.export` (2.13) unrolls an `lstm` too, also one of
`torch.nn.LSTM`: it is kept for its speed, and wants its number of steps fixed there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from noa_conversion.importers.torch.recurrent_cells import CellWeights, Step
from noa_conversion.importers.torch.target import record_call


def whole_lstm(
    x: torch.Tensor, initial: Sequence[torch.Tensor], flat: Sequence[torch.Tensor], *, has_biases: bool, is_both: bool
) -> tuple[torch.Tensor, ...]:
    """Record `torch.lstm` of (time, batch, inputs), one layer: outputs, last states and last cells."""
    steps, batch = x.shape[0], x.shape[1]
    directions, hidden = initial[0].shape[0], initial[0].shape[-1]
    state = [directions, batch, hidden]
    arguments = (x, list(initial), list(flat), has_biases, 1, 0.0, False, is_both, False)
    return record_call(torch.ops.aten.lstm.input, arguments, [[steps, batch, directions * hidden], state, state], x)


def scanned(
    make_step: Callable[[CellWeights], Step],
    weights: CellWeights,
    x: torch.Tensor,
    states: tuple[torch.Tensor, ...],
    lengths: torch.Tensor | None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Step through time as often as there are steps; past a sequence's end its states stay and its output is zero."""
    held = {name: tensor for name in ("w", "r", "b", "p") if (tensor := getattr(weights, name)) is not None}
    count = len(states)
    moments = [x]
    if lengths is not None:
        is_inside = torch.arange(x.shape[0]).unsqueeze(1) < lengths.unsqueeze(0)
        moments.append(is_inside.unsqueeze(2).to(x.dtype))

    def step(*given: torch.Tensor) -> list[torch.Tensor]:
        old, now, rest = given[:count], given[count : count + len(moments)], given[count + len(moments) :]
        cell: Any = dict(zip(held, rest, strict=True))
        new = make_step(CellWeights(**cell))(now[0], old)
        output = new[0]
        if lengths is not None:
            is_running = now[1] > 0
            new = tuple(torch.where(is_running, after, before) for after, before in zip(new, old, strict=True))
            output = torch.where(is_running, output, torch.zeros_like(output))
        return [*new, output.clone()]  # no two results may be one tensor

    initial = [state.clone() for state in states]
    *final, y = torch.ops.higher_order.scan(step, initial, moments, tuple(held.values()))
    return y, tuple(final)
