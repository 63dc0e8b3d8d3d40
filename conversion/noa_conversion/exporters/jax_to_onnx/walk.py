"""The walk over a jaxpr: every equation becomes nodes, a constant, or the equations inside it.

What depends on no input or weight is computed here and becomes a constant, unless that would make the file grow. Calls
(`jit`, `custom_jvp`, `remat`, ...) are written in place. An equation without a handler is refused by name, unless
nothing needs its result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from noa.errors import ConversionError
from noa_conversion.exporters.jax_to_onnx import (
    accumulations,
    bits,
    casting,
    comparisons,
    complex_numbers,
    contractions,
    control_flow,
    decompositions,
    elementwise,
    indexing,
    linear_algebra,
    random_keys,
    reductions,
    scattering,
    shaping,
    sorting,
    windows,
)
from noa_conversion.exporters.jax_to_onnx.builder import GraphBuilder, Operand, Value, is_number
from noa_conversion.exporters.jax_to_onnx.dtypes import is_complex, is_key, is_plain, onnx_type, stored_dtype
from noa_conversion.exporters.jax_to_onnx.handler import Call, Handler, scope_of

HANDLERS: Mapping[str, Handler] = {
    **elementwise.HANDLERS,
    **comparisons.HANDLERS,
    **bits.HANDLERS,
    **casting.HANDLERS,
    **shaping.HANDLERS,
    **reductions.HANDLERS,
    **accumulations.HANDLERS,
    **sorting.HANDLERS,
    **contractions.HANDLERS,
    **windows.HANDLERS,
    **indexing.HANDLERS,
    **scattering.HANDLERS,
    **control_flow.HANDLERS,
    **decompositions.HANDLERS,
    **linear_algebra.HANDLERS,
}
"""Every primitive of real tensors that can be exported, beside calls."""

COMPLEX_HANDLERS: Mapping[str, Handler] = {**control_flow.HANDLERS, **complex_numbers.HANDLERS}
"""Every primitive of complex tensors that can be exported."""

KEY_HANDLERS: Mapping[str, Handler] = {**control_flow.HANDLERS, **random_keys.HANDLERS}
"""Every primitive of random keys that can be exported."""

_INNER_JAXPR = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")
INLINED = (
    *("jit", "pjit", "closed_call", "core_call", "core_closed_call", "remat", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_vmap_call"),
)
_FOLDED_BYTES = 1 << 16
_NOT_FOLDED = ("platform_index",)


def walk(graph: GraphBuilder, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
    """Write one jaxpr's equations and return its outputs.

    Raises:
        ConversionError: a primitive has no ONNX form here; names it.
    """
    known: dict[Any, Value] = dict(zip(jaxpr.invars, arguments, strict=True))
    known.update({var: constant_value(const) for var, const in zip(jaxpr.constvars, consts, strict=True)})
    for equation in _needed(jaxpr):
        inputs = [_read(known, atom) for atom in equation.invars]
        known.update(zip(equation.outvars, _equation(graph, equation, inputs), strict=True))
    return [_read(known, atom) for atom in jaxpr.outvars]


def constant_value(value: Any) -> Value:
    """Return a known array as a value."""
    dtype = getattr(value, "dtype", None)
    if dtype is not None and is_key(dtype):
        import jax

        stored_dtype(dtype)
        return Value(shape=tuple(value.shape), dtype=dtype, constant=np.asarray(jax.random.key_data(value)))
    array = np.asarray(value)
    stored = np.stack([np.real(array), np.imag(array)], axis=-1) if is_complex(array.dtype) else array
    return Value(shape=array.shape, dtype=array.dtype, constant=stored)


def _equation(graph: GraphBuilder, equation: Any, inputs: list[Value]) -> list[Value]:
    primitive = str(equation.primitive.name)
    if primitive in INLINED:
        jaxpr, consts = _inner(equation.params)
        return walk(graph, jaxpr, consts, inputs)
    folded = _fold(equation, inputs)
    if folded is not None:
        return folded
    avals = [var.aval for var in equation.outvars]
    call = Call(
        graph=graph,
        primitive=primitive,
        params=equation.params,
        inputs=inputs,
        outputs=avals,
        walk=walk,
        bind=equation.primitive.bind,
    )
    dtypes = [item.dtype for item in (*inputs, *avals) if hasattr(item, "dtype")]
    for dtype in dtypes:
        onnx_type(stored_dtype(dtype))
    return [_named(operand, aval) for operand, aval in zip(_handler(call, dtypes)(call), avals, strict=True)]


def _handler(call: Call, dtypes: list[Any]) -> Handler:
    if any(is_key(dtype) for dtype in dtypes):
        return KEY_HANDLERS.get(call.primitive) or random_keys.moved
    if any(is_complex(dtype) for dtype in dtypes):
        return COMPLEX_HANDLERS.get(call.primitive) or complex_numbers.moved
    handler = HANDLERS.get(call.primitive)
    if handler is None:
        raise call.refuse("this exporter has no rule for it")
    return handler


def _named(operand: Operand, aval: Any) -> Value:
    name, constant = (operand, None) if isinstance(operand, str) else (operand.name, operand.constant)
    return Value(shape=tuple(aval.shape), dtype=aval.dtype, name=name, constant=constant)


def _fold(equation: Any, inputs: list[Value]) -> list[Value] | None:
    """Compute an equation now if all its inputs are known and the results are small, or no larger than the inputs."""
    avals = [var.aval for var in equation.outvars]
    if (
        equation.effects
        or equation.primitive.name in _NOT_FOLDED
        or any(value.constant is None or not is_plain(value.dtype) for value in inputs)
    ):
        return None
    if any(not is_plain(aval.dtype) for aval in avals):
        return None
    if not all(is_number(size) for aval in avals for size in aval.shape) or _has_free_size(equation.params):
        return None
    size = sum(int(np.prod(aval.shape)) * aval.dtype.itemsize for aval in avals)
    if size > max(_FOLDED_BYTES, sum(value.constant.nbytes for value in inputs if value.constant is not None)):
        return None
    with scope_of([*(value.dtype for value in inputs), *(aval.dtype for aval in avals)]):
        results = equation.primitive.bind(*(value.constant for value in inputs), **equation.params)
    return [constant_value(result) for result in (results if equation.primitive.multiple_results else [results])]


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
        return constant_value(np.asarray(atom.val, atom.aval.dtype) if is_plain(atom.aval.dtype) else atom.val)
    return known[atom]
