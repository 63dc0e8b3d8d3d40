"""The walk over a jaxpr: every equation becomes nodes, a constant, or the equations inside it.

What depends on no input or weight is computed here and becomes a constant, unless that would make the file grow. Calls
(`jit`, `custom_jvp`, `remat`, ...) are written in place; a short `scan` is unrolled. An equation without a handler is
refused by name, unless nothing needs its result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noa.errors import ConversionError, DependencyMissingError
from noa.settings import ConversionSettings
from noa.signatures import Signature
from noa_conversion.exporters.jax_to_onnx import contractions, elementwise, indexing, reductions, shaping, windows
from noa_conversion.exporters.jax_to_onnx.builder import GraphBuilder, Operand, Value, is_number, onnx_type
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler
from noa_conversion.exporters.onnx_model import PRODUCER, write_model
from noa_conversion.formats.jax_format import (
    abstract_arguments,
    check_outputs,
    flat_function,
    flat_params,
    import_jax,
    untraceable,
)
from noa_conversion.models import JaxModel

if TYPE_CHECKING:
    import onnx

HANDLERS: Mapping[str, Handler] = {
    **elementwise.HANDLERS,
    **shaping.HANDLERS,
    **reductions.HANDLERS,
    **contractions.HANDLERS,
    **windows.HANDLERS,
    **indexing.HANDLERS,
}
"""Every primitive that can be exported, beside calls and short scans."""

_INNER_JAXPR = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")
INLINED = (
    *("jit", "pjit", "closed_call", "core_call", "core_closed_call", "remat", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_vmap_call"),
)
_FOLDED_BYTES = 1 << 16
_UNROLLED_STEPS = 64
_IR_VERSION = 10
"""Read by every onnxruntime since 1.18; opsets up to 23 need no newer one for plain operators."""


def export(model: JaxModel, folder: Path, settings: ConversionSettings) -> None:
    """Write `model.onnx` and `signature.json` into an empty folder.

    Raises:
        ConversionError: a primitive has no ONNX form here; names it.
        DependencyMissingError: jax or onnx is not installed.
    """
    jax = import_jax()
    try:
        import onnx
    except ImportError as exc:
        raise DependencyMissingError("onnx", extra="onnx", purpose="JAX to ONNX") from exc
    del onnx
    weights = flat_params(model.params)
    try:
        closed = jax.make_jaxpr(flat_function(model))(*abstract_arguments(model, weights))
    except Exception as exc:  # tracing runs the user's function, which may raise anything
        raise untraceable(exc) from exc
    check_outputs(model.signature, closed.out_avals)
    proto = _build(closed, weights, model.signature, settings)
    write_model(proto, folder, signature=model.signature, source="jax", settings=settings)


def _build(
    closed: Any, weights: Mapping[str, np.ndarray], signature: Signature, settings: ConversionSettings
) -> onnx.ModelProto:
    names = [spec.name for spec in (*signature.inputs, *signature.outputs)]
    axes: dict[str, tuple[str, int]] = {}
    for spec in signature.inputs:
        for index, axis in enumerate(spec.shape):
            if isinstance(axis, str):
                axes.setdefault(axis, (spec.name, index))
    initialisers = {f"params.{name}" if name in names else name: array for name, array in weights.items()}
    graph = GraphBuilder(opset=settings.opset, axes=axes, taken=[*names, *initialisers])
    graph.initialisers.update(initialisers)
    arguments = [
        *(Value(shape=array.shape, dtype=array.dtype, name=name) for name, array in initialisers.items()),
        *(Value(shape=_abstract(v).shape, dtype=_abstract(v).dtype, name=spec.name)
          for v, spec in zip(closed.jaxpr.invars[len(initialisers) :], signature.inputs, strict=True)),
    ]  # fmt: skip
    results = _walk(graph, closed.jaxpr, closed.consts, arguments)
    return _finish(graph, results, signature, settings)


def _walk(graph: GraphBuilder, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
    """Write one jaxpr's equations and return its outputs."""
    known: dict[Any, Value] = dict(zip(jaxpr.invars, arguments, strict=True))
    known.update({var: _constant(const) for var, const in zip(jaxpr.constvars, consts, strict=True)})
    for equation in _needed(jaxpr):
        inputs = [_read(known, atom) for atom in equation.invars]
        known.update(zip(equation.outvars, _equation(graph, equation, inputs), strict=True))
    return [_read(known, atom) for atom in jaxpr.outvars]


def _equation(graph: GraphBuilder, equation: Any, inputs: list[Value]) -> list[Value]:
    primitive = str(equation.primitive.name)
    if primitive in INLINED:
        jaxpr, consts = _inner(equation.params)
        return _walk(graph, jaxpr, consts, inputs)
    folded = _fold(equation, inputs)
    if folded is not None:
        return folded
    if primitive == "scan":
        return _unroll(graph, equation, inputs)
    avals = [var.aval for var in equation.outvars]
    call = Call(graph=graph, primitive=primitive, params=equation.params, inputs=inputs, outputs=avals)
    handler = HANDLERS.get(primitive)
    if handler is None:
        raise call.refuse("this exporter has no rule for it")
    for value in inputs:
        onnx_type(value.dtype)
    return [_named(operand, aval) for operand, aval in zip(handler(call), avals, strict=True)]


def _named(operand: Operand, aval: Any) -> Value:
    if isinstance(operand, Value) and tuple(operand.shape) == tuple(aval.shape):
        return operand
    if isinstance(operand, Value):
        return Value(shape=tuple(aval.shape), dtype=np.dtype(aval.dtype), name=operand.name, constant=operand.constant)
    return Value(shape=tuple(aval.shape), dtype=np.dtype(aval.dtype), name=operand)


def _fold(equation: Any, inputs: list[Value]) -> list[Value] | None:
    """Compute an equation now if all its inputs are known and the results are small, or no larger than the inputs."""
    if any(value.constant is None for value in inputs) or equation.effects:
        return None
    avals = [var.aval for var in equation.outvars]
    if not all(is_number(size) for aval in avals for size in aval.shape) or _has_free_size(equation.params):
        return None
    if any(not isinstance(aval.dtype, np.dtype) for aval in avals):
        return None
    size = sum(int(np.prod(aval.shape)) * aval.dtype.itemsize for aval in avals)
    if size > max(_FOLDED_BYTES, sum(value.constant.nbytes for value in inputs if value.constant is not None)):
        return None
    results = equation.primitive.bind(*(value.constant for value in inputs), **equation.params)
    return [_constant(result) for result in (results if equation.primitive.multiple_results else [results])]


def _has_free_size(params: Mapping[str, Any]) -> bool:
    """Tell whether some size in `params` is symbolic: such an equation cannot be computed now."""
    import jax

    stack = list(params.values())
    while stack:
        item = stack.pop()
        if isinstance(item, tuple | list):
            stack += item
        elif hasattr(item, "eqns") or hasattr(item, "jaxpr"):
            inner = getattr(item, "jaxpr", item)
            stack += [equation.params for equation in inner.eqns]
            stack += [tuple(var.aval.shape) for equation in inner.eqns for var in equation.outvars]
        elif isinstance(item, dict):
            stack += item.values()
        elif jax.export.is_symbolic_dim(item):
            return True
    return False


def _unroll(graph: GraphBuilder, equation: Any, inputs: list[Value]) -> list[Value]:
    """Write the steps of a short loop one after the other."""
    params = equation.params
    call = Call(graph=graph, primitive="scan", params=params, inputs=inputs, outputs=[v.aval for v in equation.outvars])
    length = params["length"]
    if not is_number(length) or length > _UNROLLED_STEPS or length == 0:
        raise call.refuse(f"only loops of 1 to {_UNROLLED_STEPS} steps are unrolled", received=f"{length} steps")
    fixed, carried = int(params["num_consts"]), int(params["num_carry"])
    constants, carry, sequences = inputs[:fixed], inputs[fixed : fixed + carried], inputs[fixed + carried :]
    stacked: dict[int, list[list[Value]]] = {}
    steps = range(length - 1, -1, -1) if params["reverse"] else range(length)
    for step in steps:
        taken = [_step_of(graph, value, step) for value in sequences]
        results = _walk(graph, params["jaxpr"].jaxpr, params["jaxpr"].consts, [*constants, *carry, *taken])
        carry, stacked[step] = results[:carried], [results[carried:]]
    outputs = list(carry)
    for index, var in enumerate(equation.outvars[carried:]):
        parts = [graph.node("Unsqueeze", stacked[step][0][index], graph.integers([0])) for step in range(length)]
        outputs.append(_named(graph.node("Concat", *parts, axis=0), var.aval))
    return outputs


def _step_of(graph: GraphBuilder, value: Value, step: int) -> Value:
    if value.constant is not None:
        return _constant(value.constant[step])
    name = graph.node("Gather", value, graph.constant(np.int64(step)), axis=0)
    return Value(shape=tuple(value.shape[1:]), dtype=value.dtype, name=name)


def _inner(params: Mapping[str, Any]) -> tuple[Any, Sequence[Any]]:
    for key in _INNER_JAXPR:
        if key in params:
            found = params[key]
            return (found.jaxpr, found.consts) if hasattr(found, "consts") else (found, ())
    raise ConversionError("a JAX call holds no function", where="JAX to ONNX", received=", ".join(params))


def _needed(jaxpr: Any) -> list[Any]:
    """Return the equations whose results are used, in order."""
    live = {atom for atom in jaxpr.outvars if not hasattr(atom, "val")}
    needed: list[Any] = []
    for equation in reversed(jaxpr.eqns):
        if any(var in live for var in equation.outvars):
            needed.append(equation)
            live.update(atom for atom in equation.invars if not hasattr(atom, "val"))
    return needed[::-1]


def _read(known: Mapping[Any, Value], atom: Any) -> Value:
    if hasattr(atom, "val"):
        return _constant(np.asarray(atom.val, atom.aval.dtype))
    return known[atom]


def _constant(value: Any) -> Value:
    array = np.asarray(value)
    return Value(shape=array.shape, dtype=array.dtype, constant=array)


def _abstract(var: Any) -> Any:
    return var.aval


def _finish(
    graph: GraphBuilder, results: list[Value], signature: Signature, settings: ConversionSettings
) -> onnx.ModelProto:
    from onnx import helper, numpy_helper

    for spec, value in zip(signature.outputs, results, strict=True):
        graph.nodes.append(
            helper.make_node("Identity", [graph.name_of(value)], [spec.name], name=f"output_{spec.name}")
        )
    nodes = _live_nodes(graph, [spec.name for spec in signature.outputs])
    used = {name for node in nodes for name in node.input}
    initialisers = [numpy_helper.from_array(array, name) for name, array in graph.initialisers.items() if name in used]
    sides = [
        [helper.make_tensor_value_info(spec.name, onnx_type(spec.dtype), list(spec.shape)) for spec in specs]
        for specs in (signature.inputs, signature.outputs)
    ]
    return helper.make_model(
        helper.make_graph(nodes, "model", sides[0], sides[1], initializer=initialisers),
        opset_imports=[helper.make_opsetid("", settings.opset)],
        ir_version=_IR_VERSION,
        producer_name=PRODUCER,
    )


def _live_nodes(graph: GraphBuilder, outputs: list[str]) -> list[onnx.NodeProto]:
    live = set(outputs)
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.nodes):
        if any(name in live for name in node.output):
            kept.append(node)
            live.update(node.input)
    return kept[::-1]
