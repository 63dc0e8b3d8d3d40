"""`If`, `Loop` and `Scan` as `lax.cond`, `lax.scan` and `lax.while_loop`.

A loop is unrolled only where `lax` cannot express it (its carried values change shape or are sequences, or its body
needs numbers that are carried) and the number of rounds is known. `while_loop`, which serves conditions that are known
only at run time, has no reverse-mode gradient in JAX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from noa.errors import ConversionError
from noa_conversion.importers.jax.dtypes import held_as
from noa_conversion.importers.jax.handlers import Tensor, register

if TYPE_CHECKING:
    from noa_conversion.importers.op import Op
    from noa_conversion.onnx_graph.model import OnnxGraph

_MOST_ROUNDS = 4096


class _NotExpressible(Exception):  # noqa: N818  # a turn in the search for a form, never seen outside
    """This form of loop cannot hold what the body does."""


@register("If", tensors=True)
def if_(op: Op, condition: Tensor) -> tuple[Any, ...]:
    """Compute one of two graphs; both are compiled, so both must be computable and give alike values."""
    then_branch, else_branch = (
        lambda graph=graph: _tensors(op, op.run(graph, []))
        for graph in (op.attribute("then_branch"), op.attribute("else_branch"))
    )
    remedy = 'Bind the input that decides: bind={"NAME": array}'
    try:
        return tuple(lax.cond(condition.reshape(()).astype(bool), then_branch, else_branch))
    except ConversionError as exc:
        place = f" ({exc.where})" if exc.where else ""
        reason = f"one of its branches cannot be computed: {exc.what}{place}"
        remedy = exc.remedy or remedy
    except TypeError as exc:
        reason = f"its branches give different values: {_first_line(exc)}"
    return op.refuse(
        f"the condition is known only at run time, and {reason}",
        remedy=remedy,
    )


def _tensors(op: Op, value: Any) -> Any:
    """Make tensors of known numbers, through lists."""
    if isinstance(value, list | tuple):
        return [_tensors(op, part) for part in value]
    return None if value is None else op.tensor(value)


@register("Loop")
def loop(op: Op, most: Any, condition: Any, *initial: Any) -> tuple[Any, ...]:
    """Repeat a graph that carries values, gathering one slice of each scan output per round."""
    body: OnnxGraph = op.attribute("body")
    rounds = None if most is None else (int(most.reshape(-1)[0]) if op.is_known(most) else most)
    if condition is not None and op.is_known(condition) and not bool(condition.reshape(-1)[0]):
        rounds = 0
    goes_on = None if condition is None or op.is_known(condition) else op.tensor(condition).reshape(()).astype(bool)
    reasons: list[str] = []
    for form in (_scanned, _unrolled, _while):
        try:
            return form(op, body, rounds, goes_on, list(initial))
        except _NotExpressible as exc:
            reasons.append(str(exc))
        except ConversionError as exc:
            reasons.append(exc.what)
    return op.refuse("; ".join(dict.fromkeys(reason for reason in reasons if reason)))


def _scanned(op: Op, body: OnnxGraph, rounds: Any, goes_on: Any, initial: list[Any]) -> tuple[Any, ...]:
    """Run a known number of rounds whose condition never ends the loop, as `lax.scan`."""
    if not isinstance(rounds, int) or goes_on is not None or rounds == 0:
        raise _NotExpressible("")
    carried = _carry(op, initial)
    ends: list[Any] = []

    def step(carry: list[Any], index: Any) -> tuple[list[Any], list[Any]]:
        keeps, *rest = op.run(body, [index, np.asarray(True), *carry])
        ends.append(keeps)
        after = [_as(op, value, like) for value, like in zip(rest, carry, strict=False)]
        return after, [op.tensor(value) for value in rest[len(carry) :]]

    counter = jnp.arange(rounds, dtype=held_as(np.int64))
    last, slices = _traced(lambda: lax.scan(step, carried, counter))
    if not all(op.is_known(keeps) and bool(keeps.reshape(-1)[0]) for keeps in ends):
        raise _NotExpressible("")
    return (*last, *slices)


def _unrolled(op: Op, body: OnnxGraph, rounds: Any, goes_on: Any, initial: list[Any]) -> tuple[Any, ...]:
    """Walk the body once per round; the number of rounds must be known."""
    if goes_on is not None:
        raise _NotExpressible("its condition is known only at run time")
    if rounds is not None and not isinstance(rounds, int):
        raise _NotExpressible("the number of rounds is known only at run time")
    carry = initial
    gathered: list[list[Any]] = [[] for _ in body.outputs[1 + len(initial) :]]
    for index in range(_MOST_ROUNDS if rounds is None else rounds):
        if index >= _MOST_ROUNDS:
            raise _NotExpressible(f"it takes more than {_MOST_ROUNDS} rounds to unroll")
        keeps, *rest = op.run(body, [np.asarray(index, np.int64), np.asarray(True), *carry])
        carry = rest[: len(initial)]
        for slices, value in zip(gathered, rest[len(initial) :], strict=True):
            slices.append(op.tensor(value))
        if not op.is_known(keeps):
            raise _NotExpressible("whether it goes on is known only at run time")
        if not bool(keeps.reshape(-1)[0]):
            break
    else:
        if rounds is None:
            raise _NotExpressible(f"it takes more than {_MOST_ROUNDS} rounds to unroll")
    return (*carry, *(_joined(op, body, i + 1 + len(initial), slices) for i, slices in enumerate(gathered)))


def _joined(op: Op, body: OnnxGraph, index: int, slices: list[Any]) -> Any:
    if slices:
        if any(part.shape != slices[0].shape for part in slices):
            op.refuse("the slices of a scan output differ in shape")
        return jnp.stack(slices)
    declared = body.outputs[index]
    if declared.dtype is None or declared.shape is None or not all(isinstance(n, int) for n in declared.shape):
        op.refuse(f"no round gives the scan output `{declared.name}`, whose shape is not declared")
    return jnp.zeros((0, *declared.shape), held_as(declared.dtype))


def _while(op: Op, body: OnnxGraph, rounds: Any, goes_on: Any, initial: list[Any]) -> tuple[Any, ...]:
    """Go on as long as the condition holds at run time, as `lax.while_loop`."""
    if len(body.outputs) > 1 + len(initial):
        raise _NotExpressible("how many slices a scan output has is known only at run time")
    counter = held_as(np.int64)
    limit = None if rounds is None else jnp.asarray(rounds, counter).reshape(())

    def proceeds(state: tuple[Any, Any, list[Any]]) -> Any:
        index, keeps, _ = state
        return keeps if limit is None else keeps & (index < limit)

    def step(state: tuple[Any, Any, list[Any]]) -> tuple[Any, Any, list[Any]]:
        index, keeps, carry = state
        after, *rest = op.run(body, [index, keeps, *carry])
        values = [_as(op, value, like) for value, like in zip(rest, carry, strict=True)]
        return index + 1, op.tensor(after).reshape(()).astype(bool), values

    begins = jnp.asarray(True) if goes_on is None else goes_on
    start = (jnp.zeros((), counter), begins, _carry(op, initial))
    _, _, last = _traced(lambda: lax.while_loop(proceeds, step, start))
    return tuple(last)


def _carry(op: Op, initial: list[Any]) -> list[Any]:
    if any(value is None or isinstance(value, list) for value in initial):
        raise _NotExpressible("it carries a sequence or an optional value")
    return [op.tensor(value) for value in initial]


def _as(op: Op, value: Any, like: Tensor) -> Tensor:
    """Return a carried value, which must keep the shape and type that it began with."""
    tensor = op.tensor(value)
    if tensor.shape != like.shape or tensor.dtype != like.dtype:
        raise _NotExpressible(f"a carried value changes from {like.dtype}{like.shape} to {tensor.dtype}{tensor.shape}")
    return tensor


def _traced(compute: Any) -> Any:
    try:
        return compute()
    except (TypeError, ValueError) as exc:
        raise _NotExpressible(_first_line(exc)) from exc


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


@register("Scan")
def scan(op: Op, *values: Any) -> tuple[Any, ...]:
    """Run a graph over slices of its scanned inputs, carrying state."""
    if op.version < 9:
        return _scan_8(op, values)
    body: OnnxGraph = op.attribute("body")
    count = op.attribute("num_scan_inputs")
    states, scanned = values[: len(values) - count], [op.tensor(value) for value in values[len(values) - count :]]
    axes = op.attribute("scan_input_axes", [0] * count)
    turned = op.attribute("scan_input_directions", [0] * count)
    slices = [
        _turned(jnp.moveaxis(value, op.axis(axis, value.ndim), 0), turn)
        for value, axis, turn in zip(scanned, axes, turned, strict=True)
    ]
    last, gathered = _scan(op, body, [op.tensor(value) for value in states], slices)
    out_axes = op.attribute("scan_output_axes", [0] * len(gathered))
    out_turned = op.attribute("scan_output_directions", [0] * len(gathered))
    outputs = [
        jnp.moveaxis(_turned(value, turn), 0, op.axis(axis, value.ndim))
        for value, axis, turn in zip(gathered, out_axes, out_turned, strict=True)
    ]
    return (*last, *outputs)


def _turned(value: Tensor, turn: int) -> Tensor:
    return jnp.flip(value, 0) if turn else value


def _scan(op: Op, body: OnnxGraph, states: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
    def step(carry: list[Any], parts: list[Any]) -> tuple[list[Any], list[Any]]:
        results = op.run(body, [*carry, *parts])
        try:
            after = [_as(op, value, like) for value, like in zip(results, carry, strict=False)]
        except _NotExpressible as exc:
            op.refuse(str(exc))
        return after, [op.tensor(value) for value in results[len(carry) :]]

    return lax.scan(step, states, slices)


def _scan_8(op: Op, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run opset 8's form: a batch axis in front of everything, and lengths of the sequences."""
    lengths, *rest = values
    if lengths is not None:
        op.refuse("sequence lengths of `Scan` at opset 8")
    body: OnnxGraph = op.attribute("body")
    count = op.attribute("num_scan_inputs")
    turned = op.attribute("directions", [0] * count)
    states = [op.tensor(value) for value in rest[: len(rest) - count]]
    scanned = [op.tensor(value) for value in rest[len(rest) - count :]]

    def one(states: list[Any], scanned: list[Any]) -> tuple[list[Any], list[Any]]:
        return _scan(op, body, states, [_turned(v, turn) for v, turn in zip(scanned, turned, strict=True)])

    last, gathered = jax.vmap(one)(states, scanned)
    return (*last, *gathered)
