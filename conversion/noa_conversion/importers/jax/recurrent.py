"""`RNN`, `GRU` and `LSTM` as `lax.scan` over time; what does not depend on the state is one product before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from noa_conversion.importers.free_sizes import fixing
from noa_conversion.importers.jax.handlers import Tensor, register
from noa_conversion.importers.recurrent_inputs import read_recurrent

if TYPE_CHECKING:
    from noa_conversion.importers.op import Op

Activation: TypeAlias = Callable[[Any], Any]
Step: TypeAlias = Callable[[Any, Any], Any]

# Name: (function of x, alpha, beta; default alpha; default beta). None: not used; "must": no default.
_ACTIVATIONS: dict[str, tuple[Callable[[Any, Any, Any], Any], float | str | None, float | str | None]] = {
    "sigmoid": (lambda x, a, b: jax.nn.sigmoid(x), None, None),
    "tanh": (lambda x, a, b: jnp.tanh(x), None, None),
    "relu": (lambda x, a, b: jnp.maximum(x, 0), None, None),
    "softsign": (lambda x, a, b: x / (1 + jnp.abs(x)), None, None),
    "softplus": (lambda x, a, b: jax.nn.softplus(x), None, None),
    "hardsigmoid": (lambda x, a, b: jnp.clip(a * x + b, 0, 1), 0.2, 0.5),
    "leakyrelu": (lambda x, a, b: jnp.where(x < 0, a * x, x), 0.01, None),
    "thresholdedrelu": (lambda x, a, b: jnp.where(x > a, x, 0), 1.0, None),
    "elu": (lambda x, a, b: jax.nn.elu(x, a), 1.0, None),
    "affine": (lambda x, a, b: a * x + b, "must", "must"),
    "scaledtanh": (lambda x, a, b: a * jnp.tanh(b * x), "must", "must"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    """What one direction needs: its weights, initial states and activations."""

    w: Tensor
    r: Tensor
    bias_w: Tensor
    bias_r: Tensor
    states: tuple[Tensor, ...]
    activations: list[Activation]
    clip: Callable[[Any], Any]
    peephole: Tensor | None = None


@register("RNN", "GRU", "LSTM")
def recurrent(op: Op, *inputs: Any) -> tuple[Tensor, ...]:
    """Run the simple recurrent network, gated recurrent units, or the long short-term memory."""
    make_step, defaults = _KINDS[op.kind]
    given = read_recurrent(op, inputs)
    x, w, r = (op.tensor(part) for part in (given.x, given.w, given.r))
    b, lengths, peephole = (
        None if part is None else op.tensor(part) for part in (given.b, given.lengths, given.peepholes)
    )
    initial = tuple(None if state is None else op.tensor(state) for state in given.states)
    _check_batches(op, x, initial, 0 if given.is_batch_first else 1)
    count = w.shape[0]
    if count != given.directions:
        op.refuse(f"direction {given.direction!r} with {count} sets of weights")
    if given.is_batch_first:
        x = jnp.swapaxes(x, 0, 1)
        initial = tuple(None if s is None else jnp.swapaxes(s, 0, 1) for s in initial)
    hidden = r.shape[-1]
    if op.has("hidden_size") and op.attribute("hidden_size") != hidden:
        op.refuse(f"`hidden_size` is not the {hidden} of the weights")
    activations = _activations(op, defaults, count)
    gates = w.shape[1]
    sequences: list[Tensor] = []
    finals: list[tuple[Tensor, ...]] = []
    for i in range(count):
        zeros = jnp.zeros((x.shape[1], hidden), x.dtype)
        cell = _Cell(
            w=w[i],
            r=r[i],
            bias_w=jnp.zeros(gates, x.dtype) if b is None else b[i, :gates],
            bias_r=jnp.zeros(gates, x.dtype) if b is None else b[i, gates:],
            states=tuple(zeros if s is None else s[i] for s in initial),
            activations=activations[i],
            clip=_clip(op),
            peephole=None if peephole is None else peephole[i],
        )
        backwards = given.direction == "reverse" or i == 1
        final, sequence = _direction(op, x, cell, make_step, lengths, backwards)
        if lengths is not None:
            final = _zero_where_empty(final, lengths)
            sequence, *final = _marked((sequence, *final), lengths, x.shape[0])
        sequences.append(sequence)
        finals.append(tuple(final))
    return _outputs(op, sequences, finals, given.is_batch_first)


def _check_batches(op: Op, x: Tensor, initial: tuple[Tensor | None, ...], axis: int) -> None:
    """Refuse two free axes where one size is needed: with one fixed to 1, JAX would spread it."""
    for name, state in zip(("initial_h", "initial_c"), initial, strict=False):
        if state is not None and state.shape[axis] != x.shape[axis]:
            own, batch = state.shape[axis], x.shape[axis]
            op.refuse(
                f"axis {axis} of `X` has the size `{batch}`, of `{name}` `{own}`, and they must be one size",
                remedy=fixing(f"{batch}, {own}"),
            )


def _outputs(
    op: Op, sequences: list[Tensor], finals: list[tuple[Tensor, ...]], batch_first: bool
) -> tuple[Tensor, ...]:
    y = jnp.stack(sequences, axis=1)  # (seq, direction, batch, hidden)
    states = [jnp.stack(parts) for parts in zip(*finals, strict=True)]
    if batch_first:
        y = jnp.transpose(y, (2, 0, 1, 3))
        states = [jnp.swapaxes(state, 0, 1) for state in states]
    return (y, *states)[: max(op.num_outputs, 1)]


def _direction(
    op: Op,
    x: Tensor,
    cell: _Cell,
    make_step: Callable[[Op, _Cell], tuple[Tensor, Step]],
    lengths: Tensor | None,
    backwards: bool,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return the last states and the output of every step; a step past a sequence's end changes nothing."""
    bias, advance = make_step(op, cell)
    projected = jnp.einsum("tbi,gi->tbg", x, cell.w) + bias

    def step(states: tuple[Tensor, ...], now: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
        inputs, time = now
        after = advance(states, inputs)
        if lengths is None:
            return after, after[0]
        runs = (time < lengths)[:, None]
        kept = tuple(jnp.where(runs, new, old) for new, old in zip(after, states, strict=True))
        return kept, jnp.where(runs, after[0], 0)

    times = jnp.arange(x.shape[0], dtype=jnp.int32)
    return lax.scan(step, cell.states, (projected, times), reverse=backwards)


def _zero_where_empty(states: tuple[Tensor, ...], lengths: Tensor) -> tuple[Tensor, ...]:
    """Give a sequence without steps the last state zero, whatever it began with.

    As onnxruntime does it. ONNX's text is silent, and its reference computes as if all sequences were whole.
    """
    return tuple(jnp.where((lengths > 0)[:, None], state, 0) for state in states)


def _marked(parts: tuple[Tensor, ...], lengths: Tensor, steps: Any) -> list[Tensor]:
    """Make all of a sequence NaN whose steps are said to be negative, or more than there are."""
    is_right = ((lengths >= 0) & (lengths <= jnp.asarray(steps, lengths.dtype)))[:, None]
    return [jnp.where(is_right, part, jnp.asarray(jnp.nan, part.dtype)) for part in parts]


def _rnn_step(op: Op, cell: _Cell) -> tuple[Tensor, Step]:
    (f,) = cell.activations

    def advance(states: tuple[Tensor, ...], inputs: Tensor) -> tuple[Tensor, ...]:
        return (f(cell.clip(inputs + states[0] @ cell.r.T)),)

    return cell.bias_w + cell.bias_r, advance


def _gru_step(op: Op, cell: _Cell) -> tuple[Tensor, Step]:
    f, g = cell.activations
    size = cell.r.shape[-1]
    linear = bool(op.attribute("linear_before_reset", 0))
    r_gates, r_new = cell.r[: 2 * size].T, cell.r[2 * size :].T
    bias_new = cell.bias_r[2 * size :]

    def advance(states: tuple[Tensor, ...], inputs: Tensor) -> tuple[Tensor, ...]:
        (h,) = states
        z, r = jnp.split(f(cell.clip(inputs[:, : 2 * size] + h @ r_gates)), 2, axis=-1)
        recurrent = r * (h @ r_new + bias_new) if linear else (r * h) @ r_new
        new = g(cell.clip(inputs[:, 2 * size :] + recurrent))
        return ((1 - z) * new + z * h,)

    keep = jnp.concatenate([cell.bias_r[: 2 * size], jnp.zeros_like(bias_new) if linear else bias_new])
    return cell.bias_w + keep, advance


def _lstm_step(op: Op, cell: _Cell) -> tuple[Tensor, Step]:
    f, g, h = cell.activations
    coupled = bool(op.attribute("input_forget", 0))
    p_in, p_out, p_forget = (None,) * 3 if cell.peephole is None else jnp.split(cell.peephole, 3)

    def peek(gate: Tensor, weight: Tensor | None, c: Tensor) -> Tensor:
        return f(cell.clip(gate if weight is None else gate + weight * c))

    def advance(states: tuple[Tensor, ...], inputs: Tensor) -> tuple[Tensor, ...]:
        hidden, c = states
        i, o, forget, new = jnp.split(inputs + hidden @ cell.r.T, 4, axis=-1)
        i = peek(i, p_in, c)
        forget = 1 - i if coupled else peek(forget, p_forget, c)
        c = forget * c + i * g(cell.clip(new))
        return peek(o, p_out, c) * h(c), c

    return cell.bias_w + cell.bias_r, advance


_KINDS: dict[str, tuple[Callable[[Any, _Cell], tuple[Tensor, Step]], list[str]]] = {
    "RNN": (_rnn_step, ["Tanh"]),
    "GRU": (_gru_step, ["Sigmoid", "Tanh"]),
    "LSTM": (_lstm_step, ["Sigmoid", "Tanh", "Tanh"]),
}


def _clip(op: Op) -> Callable[[Any], Any]:
    if not op.has("clip"):
        return lambda x: x
    limit = op.attribute("clip")
    return lambda x: jnp.clip(x, -limit, limit)


def _activations(op: Op, defaults: list[str], count: int) -> list[list[Activation]]:
    """Return the activations of each direction; alphas and betas are used up by those that take one, in order."""
    names = op.attribute("activations", defaults * count)
    if len(names) != len(defaults) * count:
        op.refuse(f"{len(names)} activations for {count} directions")
    alphas, betas = (
        list(op.attribute("activation_alpha", list[float]())),
        list(op.attribute("activation_beta", list[float]())),
    )
    made: list[Activation] = []
    for name in names:
        entry = _ACTIVATIONS.get(name.lower())
        if entry is None:
            op.refuse(f"the activation {name!r}")
        function, alpha, beta = entry
        made.append(_bound(op, name, function, _next(alpha, alphas), _next(beta, betas)))
    return [made[i * len(defaults) : (i + 1) * len(defaults)] for i in range(count)]


def _next(default: float | str | None, given: list[float]) -> float | str | None:
    return given.pop(0) if default is not None and given else default


def _bound(op: Op, name: str, function: Callable[[Any, Any, Any], Any], alpha: Any, beta: Any) -> Activation:
    if "must" in (alpha, beta):
        op.refuse(f"the activation {name!r} without its alpha and beta")
    return lambda x: function(x, alpha, beta)
