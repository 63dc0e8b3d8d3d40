"""The entry of the exporter: trace with free axes, walk, and put inputs, weights and outputs around the nodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noa.errors import DependencyMissingError
from noa.settings import ConversionSettings
from noa.signatures import Signature
from noa_conversion.exporters.jax_to_onnx.builder import GraphBuilder, Value
from noa_conversion.exporters.jax_to_onnx.control_flow import live_nodes, names_read
from noa_conversion.exporters.jax_to_onnx.dtypes import onnx_type
from noa_conversion.exporters.jax_to_onnx.walk import HANDLERS, INLINED, walk
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

__all__ = ["HANDLERS", "INLINED", "export"]

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
    weights = flat_params(model.params, also=("bfloat16",))
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
    initialisers = _initialisers(weights, names)
    graph = GraphBuilder(opset=settings.opset, axes=axes, taken=[*names, *initialisers])
    graph.initialisers.update(initialisers)
    arguments = [
        *(Value(shape=array.shape, dtype=array.dtype, name=name) for name, array in initialisers.items()),
        *(Value(shape=_abstract(v).shape, dtype=_abstract(v).dtype, name=spec.name)
          for v, spec in zip(closed.jaxpr.invars[len(initialisers) :], signature.inputs, strict=True)),
    ]  # fmt: skip
    results = walk(graph, closed.jaxpr, closed.consts, arguments)
    return _finish(graph, results, set(initialisers), signature, settings)


def _initialisers(weights: Mapping[str, np.ndarray], taken: list[str]) -> dict[str, np.ndarray]:
    """Return the weights under their names; one that an input or output has too is put under `params`."""
    named: dict[str, np.ndarray] = {}
    for name, array in weights.items():
        while name in taken or name in named:
            name = f"params.{name}"
        named[name] = array
    return named


def _abstract(var: Any) -> Any:
    return var.aval


def _finish(
    graph: GraphBuilder,
    results: list[Value],
    weights: set[str],
    signature: Signature,
    settings: ConversionSettings,
) -> onnx.ModelProto:
    from onnx import helper, numpy_helper

    for spec, value in zip(signature.outputs, results, strict=True):
        graph.add("Identity", [value], [spec.name])
    nodes = live_nodes(graph.nodes, [spec.name for spec in signature.outputs])
    used = set[str]().union(*(names_read(node) for node in nodes))
    kept = [name for name in graph.initialisers if name in used and name not in weights]
    initialisers = [numpy_helper.from_array(graph.initialisers[name], name) for name in (*sorted(weights), *kept)]
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
