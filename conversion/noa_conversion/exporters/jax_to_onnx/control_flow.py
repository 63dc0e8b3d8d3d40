"""Loops and branches: `scan` becomes Scan, `while` becomes Loop, `cond` becomes If; a very short `scan` is unrolled.

The subgraphs read what is around them by name, so that constants of a body are no state of its loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from noa_conversion.exporters.jax_to_onnx.builder import GraphBuilder, Operand, Value, is_number
from noa_conversion.exporters.jax_to_onnx.dtypes import onnx_type, stored_dtype, stored_shape
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler

if TYPE_CHECKING:
    import onnx

_UNROLLED_STEPS = 2


def _scan(call: Call) -> list[Operand]:
    params = call.params
    fixed, carried = int(params["num_consts"]), int(params["num_carry"])
    constants, carry, sequences = (
        list(call.inputs[:fixed]),
        list(call.inputs[fixed : fixed + carried]),
        list(call.inputs[fixed + carried :]),
    )
    length = params["length"]
    if is_number(length) and length <= _UNROLLED_STEPS:
        return _unroll(call, int(length), constants, carry, sequences)
    graph = call.graph
    given: list[Operand] = [*sequences]
    if not given:  # Scan counts its steps by what it scans
        given = [graph.node("Expand", graph.constant(np.int32(0)), graph.shape([length]))]
    body = _body(
        graph,
        "scan",
        [*carry, *(_step(value) for value in sequences)],
        [(var.shape, var.dtype) for var in call.outputs[:carried]]
        + [(var.shape[1:], var.dtype) for var in call.outputs[carried:]],
        lambda values: call.inline(params["jaxpr"], [*constants, *values]),
        extra=[] if sequences else [((), "int32")],
    )
    attributes: dict[str, Any] = {"body": body, "num_scan_inputs": len(given)}
    if params["reverse"]:
        attributes["scan_input_directions"] = [1] * len(given)
        if len(call.outputs) > carried:
            attributes["scan_output_directions"] = [1] * (len(call.outputs) - carried)
    return list(graph.node_outputs("Scan", *carry, *given, outputs=len(call.outputs), **attributes))


def _unroll(
    call: Call, length: int, constants: list[Value], carry: list[Value], sequences: list[Value]
) -> list[Operand]:
    """Write the steps of a very short loop one after the other."""
    graph = call.graph
    stacked: dict[int, list[Value]] = {}
    steps = range(length - 1, -1, -1) if call.params["reverse"] else range(length)
    for step in steps:
        taken = [_step_at(graph, value, step) for value in sequences]
        results = call.inline(call.params["jaxpr"], [*constants, *carry, *taken])
        carry, stacked[step] = results[: len(carry)], results[len(carry) :]
    outputs: list[Operand] = list(carry)
    for index, aval in enumerate(call.outputs[len(carry) :]):
        if length == 0:
            outputs.append(_empty(call, aval))
            continue
        parts = [graph.node("Unsqueeze", stacked[step][index], graph.integers([0])) for step in range(length)]
        outputs.append(graph.node("Concat", *parts, axis=0))
    return outputs


def _empty(call: Call, aval: Any) -> Operand:
    shape = stored_shape(aval.shape, aval.dtype)
    zero = call.graph.constant(np.zeros((), stored_dtype(aval.dtype)))
    return call.graph.node("Expand", zero, call.graph.shape(shape))


def _step(value: Value) -> Value:
    return Value(shape=tuple(value.shape[1:]), dtype=value.dtype, name="")


def _step_at(graph: GraphBuilder, value: Value, step: int) -> Value:
    if value.constant is not None:
        return Value(shape=tuple(value.shape[1:]), dtype=value.dtype, constant=value.constant[step])
    name = graph.node("Gather", value, graph.constant(np.int64(step)), axis=0)
    return Value(shape=tuple(value.shape[1:]), dtype=value.dtype, name=name)


def _while(call: Call) -> list[Operand]:
    params, graph = call.params, call.graph
    num_test, num_body = int(params["cond_nconsts"]), int(params["body_nconsts"])
    test_constants = list(call.inputs[:num_test])
    body_constants = list(call.inputs[num_test : num_test + num_body])
    carry = list(call.inputs[num_test + num_body :])

    def each_is_on(values: Sequence[Value]) -> Value:
        return call.inline(params["cond_jaxpr"], [*test_constants, *values])[0]

    def is_on(values: Sequence[Value]) -> Value:
        """Go on while any is on: `vmap` gives each of a batch its own end."""
        each = each_is_on(values)
        if not each.rank:
            return each
        found = graph.node("ReduceMax", call.cast(each, "int32"), keepdims=0)
        return Value(shape=(), dtype=each.dtype, name=call.cast(found, "bool"))

    def step(values: Sequence[Value]) -> list[Value]:
        results = call.inline(params["body_jaxpr"], [*body_constants, *values])
        each = each_is_on(values) if params["cond_jaxpr"].out_avals[0].shape else None
        if each is not None:
            results = [_where(call, each, new, old) for new, old in zip(results, values, strict=True)]
        return [is_on(results), *results]

    states = [(value.shape, value.dtype) for value in carry]
    body = _body(
        graph,
        "loop",
        carry,
        [((), "bool"), *states],
        step,
        before=[((), "int64"), ((), "bool")],
    )
    return list(graph.node_outputs("Loop", "", is_on(carry), *carry, outputs=len(carry), body=body))


def _where(call: Call, mask: Value, new: Value, old: Value) -> Value:
    """Take the new value where a mask over its leading axes is true."""
    rank = len(stored_shape(new.shape, new.dtype))
    wide = call.node("Unsqueeze", mask, call.graph.integers(range(mask.rank, rank))) if rank > mask.rank else mask
    return Value(shape=new.shape, dtype=new.dtype, name=call.node("Where", wide, new, old))


def _cond(call: Call) -> list[Operand]:
    index, *operands = call.inputs
    branches = call.params["branches"]
    if index.constant is not None:
        chosen = min(max(int(index.constant), 0), len(branches) - 1)
        return list(call.inline(branches[chosen], operands))
    return list(_branch(call, index, operands, 0))


def _branch(call: Call, index: Value, operands: list[Value], first: int) -> list[str]:
    """Write the choice among the branches from `first` on; JAX's index is in range, or else the nearest is meant."""
    graph, branches = call.graph, call.params["branches"]
    outputs = [(aval.shape, aval.dtype) for aval in call.outputs]
    rest = len(branches) - first

    def later(_: Sequence[Value]) -> list[Value]:
        if rest == 2:
            return call.inline(branches[first + 1], operands)
        names = _branch(call, index, operands, first + 1)
        return [
            Value(shape=aval.shape, dtype=aval.dtype, name=name) for name, aval in zip(names, call.outputs, strict=True)
        ]

    if index.dtype == np.bool_:
        is_first: Operand = graph.node("Not", index)
    else:
        is_first = graph.node("LessOrEqual", call.cast(index, "int32"), graph.constant(np.int32(first)))
    return graph.node_outputs(
        "If",
        is_first,
        outputs=len(outputs),
        then_branch=_body(graph, "branch", [], outputs, lambda _: call.inline(branches[first], operands)),
        else_branch=_body(graph, "branch", [], outputs, later),
    )


def _body(
    graph: GraphBuilder,
    stem: str,
    inputs: Sequence[Value],
    outputs: Sequence[tuple[Any, Any]],
    write: Callable[[Sequence[Value]], list[Value]],
    *,
    before: Sequence[tuple[Any, Any]] = (),
    extra: Sequence[tuple[Any, Any]] = (),
) -> onnx.GraphProto:
    """Return a subgraph that takes `before`, `inputs`, `extra`; `write` gets only `inputs`, named for the subgraph."""
    from onnx import helper

    unread = [graph.fresh("unread") for _ in (*before, *extra)]
    given = [Value(shape=value.shape, dtype=value.dtype, name=graph.fresh("given")) for value in inputs]
    results = [graph.fresh("result") for _ in outputs]
    with graph.subgraph() as scope:
        for name, value in zip(results, write(given), strict=True):
            graph.add("Identity", [value], [name])
    infos = [
        *(_info(name, shape, dtype) for name, (shape, dtype) in zip(unread, before, strict=False)),
        *(_info(str(value.name), value.shape, value.dtype) for value in given),
        *(_info(name, shape, dtype) for name, (shape, dtype) in zip(unread[len(before) :], extra, strict=True)),
    ]
    given_out = [_info(name, shape, dtype) for name, (shape, dtype) in zip(results, outputs, strict=True)]
    return helper.make_graph(live_nodes(scope.nodes, results), graph.fresh(stem), infos, given_out)


def _info(name: str, shape: Any, dtype: Any) -> onnx.ValueInfoProto:
    from onnx import helper

    dtype = np.dtype(dtype) if isinstance(dtype, str) else dtype
    sizes = [int(size) if is_number(size) else None for size in stored_shape(shape, dtype)]
    return helper.make_tensor_value_info(name, onnx_type(stored_dtype(dtype)), sizes)


def live_nodes(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """Return the nodes that the outputs need, in order."""
    live = set(outputs)
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if any(name in live for name in node.output):
            kept.append(node)
            live.update(names_read(node))
    return kept[::-1]


def names_read(node: onnx.NodeProto) -> set[str]:
    """Return every name that a node reads, by its subgraphs too."""
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            names.update(*(names_read(inner) for inner in attribute.g.node), ())
    return names


def _platform_index(call: Call) -> list[Operand]:
    """A graph runs where its runtime does; of functions per platform the one for the CPU is written."""
    for index, platforms in enumerate(call.params["platforms"]):
        if platforms is None or "cpu" in platforms:
            return [Value(shape=(), dtype=np.dtype("int32"), constant=np.asarray(index, np.int32))]
    raise call.refuse("it has no branch for the CPU", received=call.params["platforms"])


HANDLERS: dict[str, Handler] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "platform_index": _platform_index,
}
