"""One step of each recurrent operator, and the activations that a file may choose for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.nn import functional

from noa_conversion.importers.op import Op

Activation: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
Step: TypeAlias = Callable[[torch.Tensor, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]
"""Takes the input of one moment and the states, and gives the new states; the first is the output."""

_BOUND_ACTIVATIONS = 2
"""So many activations of a direction take what `clip` bounds; an LSTM's third one takes the cell, which has none."""
_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
# Activations with one or two settings, and their defaults.
_SETTINGS: dict[str, tuple[float, ...]] = {
    "Affine": (1.0, 0.0),
    "Elu": (1.0,),
    "HardSigmoid": (0.2, 0.5),
    "LeakyRelu": (0.01,),
    "ScaledTanh": (1.0, 1.0),
    "ThresholdedRelu": (1.0,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CellWeights:
    """The weights of one direction: of inputs, of states, biases (or None) and peepholes (or None)."""

    w: torch.Tensor
    r: torch.Tensor
    b: torch.Tensor | None = None
    p: torch.Tensor | None = None


def has_default_activations(op: Op) -> bool:
    """Tell whether all directions use the operator's own activations without a bound."""
    names = [str(name).capitalize() for name in op.attribute("activations", [])]
    own = [name.capitalize() for name in _DEFAULTS[op.kind]]
    is_own = not names or all(names[i : i + len(own)] == own for i in range(0, len(names), len(own)))
    return is_own and not op.has("clip")


def activations_of(op: Op, directions: int) -> list[list[Activation]]:
    """Return the activations of each direction."""
    own = _DEFAULTS[op.kind]
    names = op.attribute("activations", own * directions)
    if len(names) != len(own) * directions:
        op.refuse(f"it names {len(names)} activations and needs {len(own) * directions}")
    alphas, betas = iter(op.attribute("activation_alpha", [])), iter(op.attribute("activation_beta", []))
    made = [
        _activation(op, str(name), alphas, betas, is_bound=i % len(own) < _BOUND_ACTIVATIONS)
        for i, name in enumerate(names)
    ]
    return [made[i : i + len(own)] for i in range(0, len(made), len(own))]


def _activation(op: Op, name: str, alphas: Iterator[float], betas: Iterator[float], *, is_bound: bool) -> Activation:
    key = next((known for known in (*_SETTINGS, *_PLAIN) if known.lower() == name.lower()), None)
    if key is None:
        op.refuse(f"its activation `{name}` is unknown")
    limit = op.attribute("clip", None)
    if key in _PLAIN:
        function = _PLAIN[key]
    else:
        defaults = _SETTINGS[key]
        alpha = next(alphas, defaults[0])
        beta = next(betas, defaults[1]) if len(defaults) > 1 else 0.0
        function = _with_settings(key, alpha, beta)
    if limit is None or not is_bound:
        return function
    return lambda x: function(torch.clamp(x, -limit, limit))


_PLAIN: dict[str, Activation] = {
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Tanh": torch.tanh,
}


def _with_settings(name: str, alpha: float, beta: float) -> Activation:
    functions: dict[str, Activation] = {
        "Affine": lambda x: alpha * x + beta,
        "Elu": lambda x: functional.elu(x, alpha),
        "HardSigmoid": lambda x: torch.clamp(alpha * x + beta, 0.0, 1.0),
        "LeakyRelu": lambda x: functional.leaky_relu(x, alpha),
        "ScaledTanh": lambda x: alpha * torch.tanh(beta * x),
        "ThresholdedRelu": lambda x: torch.where(x > alpha, x, torch.zeros_like(x)),
    }
    return functions[name]


def rnn_step(op: Op, weights: CellWeights, functions: list[Activation]) -> Step:
    """`f(X W' + H R' + B)`."""
    (f,) = functions
    b_w, b_r = _biases(weights)

    def step(x: torch.Tensor, states: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (f(functional.linear(x, weights.w, b_w) + functional.linear(states[0], weights.r, b_r)),)

    return step


def gru_step(op: Op, weights: CellWeights, functions: list[Activation]) -> Step:
    """Gates update, reset, hidden; the reset is applied before or after the product with the state."""
    f, g = functions
    b_w, b_r = _biases(weights)
    size = weights.r.shape[-1]
    is_after = bool(op.attribute("linear_before_reset", 0))

    def step(x: torch.Tensor, states: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        (h,) = states
        own = functional.linear(x, weights.w, b_w)
        past = functional.linear(h, weights.r[: 2 * size], None if b_r is None else b_r[: 2 * size])
        z = f(own[:, :size] + past[:, :size])
        r = f(own[:, size : 2 * size] + past[:, size:])
        r_h, b_h = weights.r[2 * size :], None if b_r is None else b_r[2 * size :]
        inner = r * functional.linear(h, r_h, b_h) if is_after else functional.linear(r * h, r_h, b_h)
        hidden = g(own[:, 2 * size :] + inner)
        return ((1 - z) * hidden + z * h,)

    return step


def lstm_step(op: Op, weights: CellWeights, functions: list[Activation]) -> Step:
    """Gates input, output, forget, cell; peepholes let the gates see the cell."""
    f, g, h = functions
    b_w, b_r = _biases(weights)
    peepholes = (None, None, None) if weights.p is None else weights.p.chunk(3)
    is_coupled = bool(op.attribute("input_forget", 0))

    def step(x: torch.Tensor, states: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        past, cell = states
        gates = functional.linear(x, weights.w, b_w) + functional.linear(past, weights.r, b_r)
        i, o, forget, c = gates.chunk(4, -1)
        i = f(i if peepholes[0] is None else i + peepholes[0] * cell)
        forget = 1 - i if is_coupled else f(forget if peepholes[2] is None else forget + peepholes[2] * cell)
        cell = forget * cell + i * g(c)
        o = f(o if peepholes[1] is None else o + peepholes[1] * cell)
        return o * h(cell), cell

    return step


def _biases(weights: CellWeights) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    if weights.b is None:
        return None, None
    b_w, b_r = weights.b.chunk(2)
    return b_w, b_r
