"""`If`, `Loop` and `Scan`: decided and unrolled at import where that is possible, else `cond` and `while_loop`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from noa.errors import ConversionError
from noa_conversion.importers.free_sizes import fixing
from noa_conversion.importers.op import Op
from noa_conversion.importers.target import Value
from noa_conversion.importers.torch.checks import checked
from noa_conversion.importers.torch.dtypes import torch_dtype_of
from noa_conversion.importers.torch.operands import is_static
from noa_conversion.importers.torch.subgraphs import fresh, run_apart, surroundings_of
from noa_conversion.importers.torch.table import register
from noa_conversion.onnx_graph.model import OnnxGraph

_MOST_ROUNDS = 4096


@register("If")
def if_(op: Op, condition: Value) -> tuple[Any, ...]:
    """Compute one of two graphs, chosen at run time (a choice that is known is taken by the interpreter).

    A branch that the shapes around it do not fit cannot be recorded, and is an error once it is taken: the other one
    is computed, and what chooses is checked.
    """
    branches = (op.attribute("then_branch"), op.attribute("else_branch"))
    chosen = op.tensor(condition).reshape(()).to(torch.bool)
    misfits: dict[int, ConversionError] = {}
    try:
        return _either(op, chosen, branches, misfits)
    except ConversionError:
        if not misfits:
            raise
    ((index, misfit),) = misfits.items()
    try:
        results = op.run(branches[1 - index], [])
    except ConversionError as error:
        if error.facts.get("is_misfit"):
            words = f"neither branch fits the shapes around it: {_reason(misfit)}; {_reason(error)}"
            raise op.refusal(words, is_misfit=True) from error
        raise
    name = ("then", "else")[index]
    words = f"`If` `{op.name}` takes its {name} branch, which the shapes around it do not fit: {_reason(misfit)}"
    return checked(torch.logical_not(chosen) if index == 0 else chosen, words, _tensors(op, results))


def _either(
    op: Op, chosen: torch.Tensor, branches: tuple[OnnxGraph, OnnxGraph], misfits: dict[int, ConversionError]
) -> tuple[Any, ...]:
    """Record both branches as a `cond`; one that does not fit is put into `misfits`, and its error raised."""
    around = surroundings_of(op, branches)

    def branch(index: int) -> Any:
        def compute(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
            try:
                results = run_apart(op, branches[index], [], around, given)
            except ConversionError as error:
                if error.facts.get("is_misfit"):
                    misfits[index] = error
                raise
            return fresh(op, _tensors(op, results), given)

        return compute

    return tuple(torch.ops.higher_order.cond(chosen, branch(0), branch(1), around.tensors))


def _reason(misfit: ConversionError) -> str:
    return f"`{misfit.facts['op']}` `{misfit.facts['node']}`: {misfit.facts['reason']}"


def _tensors(op: Op, results: Sequence[Value]) -> list[torch.Tensor]:
    if any(value is None or isinstance(value, list) for value in results):
        op.refuse("a branch gives a sequence or an optional value, and the condition is known only at run time")
    return [op.tensor(value) for value in results]


@register("Loop")
def loop(op: Op, most: Value, condition: Value, *initial: Value) -> tuple[Any, ...]:
    """Repeat a graph that carries values; its scan outputs are gathered round by round."""
    body: OnnxGraph = op.attribute("body")
    if condition is not None and op.is_known(condition) and not bool(condition.reshape(-1)[0]):
        most, condition = np.asarray(0, np.int64), None
    is_open = condition is not None and not op.is_known(condition)
    if not is_open and (most is None or op.is_known(most)):
        done = _unrolled(op, body, None if most is None else int(most.reshape(-1)[0]), list(initial))
        if done is not None:
            return done
    return _while(op, body, most, condition, list(initial))


def _unrolled(op: Op, body: OnnxGraph, rounds: int | None, carry: list[Value]) -> tuple[Any, ...] | None:
    """Walk the body once per round; None if whether it goes on turns out to be known only at run time."""
    count = len(carry)
    gathered: list[list[Any]] = [[] for _ in body.outputs[1 + count :]]
    for index in range(_MOST_ROUNDS + 1 if rounds is None else rounds):
        if index >= _MOST_ROUNDS:
            op.refuse(f"it takes more than {_MOST_ROUNDS} rounds to unroll")
        keeps, *rest = op.run(body, [np.asarray(index, np.int64), np.asarray(True), *carry])
        if not op.is_known(keeps):
            return None
        carry = rest[:count]
        for slices, value in zip(gathered, rest[count:], strict=True):
            slices.append(op.tensor(value))
        if not bool(keeps.reshape(-1)[0]):
            break
    return (*carry, *(_joined(op, body, 1 + count + i, slices) for i, slices in enumerate(gathered)))


def _joined(op: Op, body: OnnxGraph, index: int, slices: list[torch.Tensor]) -> torch.Tensor:
    if slices:
        return torch.stack(slices)
    declared = body.outputs[index]
    if declared.dtype is None or declared.shape is None or not all(isinstance(size, int) for size in declared.shape):
        op.refuse(f"no round gives the scan output `{declared.name}`, whose shape is not declared")
    sizes = [size for size in declared.shape if isinstance(size, int)]
    return torch.zeros([0, *sizes], dtype=torch_dtype_of(declared.dtype))


def _while(op: Op, body: OnnxGraph, most: Value, condition: Value, initial: list[Value]) -> tuple[Any, ...]:
    """Go on as long as the condition holds at run time."""
    count = len(initial)
    if len(body.outputs) > 1 + count:
        op.refuse("how many slices its scan outputs have is known only at run time")
    if any(value is None or isinstance(value, list) for value in initial):
        op.refuse("it carries a sequence or an optional value, and its number of rounds is known only at run time")
    around = surroundings_of(op, [body])
    carry = [op.tensor(value) for value in initial]
    limit = (
        torch.full((), torch.iinfo(torch.int64).max) if most is None else op.tensor(most).reshape(()).to(torch.int64)
    )
    goes_on = torch.ones((), dtype=torch.bool) if condition is None else op.tensor(condition).reshape(()).to(torch.bool)

    def proceeds(index: torch.Tensor, keeps: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return keeps & (index < rest[count])

    def step(index: torch.Tensor, keeps: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values, given = rest[:count], rest[count + 1 :]
        after, *results = run_apart(op, body, [index, keeps, *values], around, given)
        new = [op.tensor(value) for value in results]
        for value, old in zip(new, values, strict=True):
            if value.dtype != old.dtype or value.ndim != old.ndim:
                op.refuse("a carried value changes its type or rank from round to round")
        ends = op.tensor(after).reshape(()).to(torch.bool)
        return fresh(op, [index + 1, ends, *new], [index, keeps, *rest])

    start = (torch.zeros((), dtype=torch.int64), goes_on.clone(), *(value.clone() for value in carry))
    result = torch.ops.higher_order.while_loop(proceeds, step, start, (limit, *around.tensors))
    return tuple(result[2:])


@register("Scan")
def scan(op: Op, *values: Value) -> tuple[Any, ...]:
    """Run a graph over slices of its scanned inputs, carrying state."""
    body: OnnxGraph = op.attribute("body")
    count = op.attribute("num_scan_inputs")
    if op.version < 9:
        return _scan_8(op, body, count, values)
    states = list(values[: len(values) - count])
    tensors = [op.tensor(value) for value in values[len(values) - count :]]
    axes = [op.axis(a, t.ndim) for a, t in zip(op.attribute("scan_input_axes", [0] * count), tensors, strict=True)]
    slices = [torch.movedim(tensor, axis, 0) for tensor, axis in zip(tensors, axes, strict=True)]
    turned = op.attribute("scan_input_directions", [0] * count)
    last, gathered = _scan(op, body, states, slices, turned)
    out_axes = op.attribute("scan_output_axes", [0] * len(gathered))
    out_turned = op.attribute("scan_output_directions", [0] * len(gathered))
    outputs: list[torch.Tensor] = []
    for parts, axis, turn in zip(gathered, out_axes, out_turned, strict=True):
        ordered = list(reversed(parts)) if turn else parts
        outputs.append(torch.stack(ordered, op.axis(axis, parts[0].ndim + 1)))
    return (*last, *outputs)


def _scan(
    op: Op, body: OnnxGraph, states: list[Value], slices: list[torch.Tensor], turned: list[int]
) -> tuple[list[Value], list[list[torch.Tensor]]]:
    rounds = slices[0].shape[0]
    if not is_static(rounds):
        op.refuse(
            f"it is unrolled, and its number of rounds is a free axis: {rounds}",
            remedy=fixing(rounds),
        )
    if rounds > _MOST_ROUNDS or rounds == 0:
        op.refuse(f"it is unrolled, which takes from 1 to {_MOST_ROUNDS} rounds, and has {rounds}")
    gathered: list[list[torch.Tensor]] = [[] for _ in body.outputs[len(states) :]]
    for index in range(rounds):
        parts = [part[rounds - 1 - index] if turn else part[index] for part, turn in zip(slices, turned, strict=True)]
        results = op.run(body, [*states, *parts])
        states = results[: len(states)]
        for found, value in zip(gathered, results[len(states) :], strict=True):
            found.append(op.tensor(value))
    return states, gathered


def _scan_8(op: Op, body: OnnxGraph, count: int, values: tuple[Value, ...]) -> tuple[Any, ...]:
    """Run opset 8's form: a batch axis in front of everything, and lengths of the sequences."""
    lengths, *rest = values
    if lengths is not None:
        op.refuse("sequence lengths of `Scan` at opset 8 are not supported")
    tensors = [op.tensor(value) for value in rest]
    batch = tensors[0].shape[0]
    if not isinstance(batch, int):
        op.refuse(f"its batch is written out, and is a free axis: {batch}", remedy=fixing(batch))
    split = len(tensors) - count
    turned = op.attribute("directions", [0] * count)
    runs = [
        _scan(op, body, [tensor[i] for tensor in tensors[:split]], [tensor[i] for tensor in tensors[split:]], turned)
        for i in range(batch)
    ]
    last = [torch.stack([op.tensor(states[k]) for states, _ in runs]) for k in range(split)]
    outputs = [torch.stack([torch.stack(found[k]) for _, found in runs]) for k in range(len(runs[0][1]))]
    return (*last, *outputs)
