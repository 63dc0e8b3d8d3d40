"""PyTorch to ONNX, through PyTorch's own exporter (`torch.onnx.export(dynamo=True)`).

Weights keep their names: the exporter's optimiser renames and folds most of them, so it is left off; onnxruntime does
the same folding when it loads. Free axes get the names of the signature. What identifies the machine is left out.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noa.errors import ConversionError, DependencyMissingError
from noa.settings import ConversionSettings
from noa_conversion.exporters.onnx_kernels import element_types
from noa_conversion.exporters.onnx_model import write_model
from noa_conversion.exporters.onnx_names import name_tensors
from noa_conversion.exporters.onnx_ranges import count_in_whole_numbers
from noa_conversion.exporters.torch_division_onnx import translations as divisions
from noa_conversion.exporters.torch_doubles_onnx import keep_doubles
from noa_conversion.exporters.torch_doubles_onnx import translations as infinities
from noa_conversion.exporters.torch_edges_onnx import translations as edges
from noa_conversion.exporters.torch_quantisation_onnx import translations as quantisers
from noa_conversion.exporters.torch_reductions_onnx import translations as reductions
from noa_conversion.exporters.torch_scattering_onnx import translations as scatterings
from noa_conversion.formats.torch_format import (
    dynamic_axes,
    example_inputs,
    export_mode,
    first_line,
    import_torch,
    on_cpu,
    quiet_torch,
)
from noa_conversion.models import TorchModel

if TYPE_CHECKING:
    import onnx

_PLACE = "noa.place."
"""Begins the names that inputs and outputs have until `name_tensors`: the exporter itself looks for no clash."""
_REGISTRATION_LOG = "torch.onnx._internal.exporter._registration"


def export(model: TorchModel, folder: Path, settings: ConversionSettings) -> None:
    """Write `model.onnx` and `signature.json` into an empty folder.

    Raises:
        ConversionError: an operation has no ONNX form, or the graph does not have the opset or tensors asked for.
        DependencyMissingError: torch, onnx or onnxscript is not installed.
    """
    import_torch()
    try:
        import onnxscript
    except ImportError as exc:
        raise DependencyMissingError("onnxscript", extra="torch", purpose="torch to ONNX") from exc
    del onnxscript
    model = dataclasses.replace(model, module=on_cpu(model.module))
    with export_mode(model.module):
        proto = _export_proto(model, settings)
    if len(proto.graph.output) == len(model.signature.outputs):  # else `write_model` says what differs
        specs = model.signature
        name_tensors(proto.graph, [spec.name for spec in specs.inputs], [spec.name for spec in specs.outputs])
    keep_doubles(proto.graph, element_types(proto))
    count_in_whole_numbers(proto.graph)
    for node in proto.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    write_model(proto, folder, signature=model.signature, source="torch", settings=settings)


def _export_proto(model: TorchModel, settings: ConversionSettings) -> onnx.ModelProto:
    torch = import_torch()
    signature = model.signature
    try:
        with quiet_torch(), _without_torchvision_notes(), np.errstate(over="ignore"):  # `keep_doubles` comes after
            program: Any = torch.onnx.export(
                model.module,
                example_inputs(signature),
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=settings.opset,
                input_names=[f"{_PLACE}input_{i}" for i in range(len(signature.inputs))],
                dynamic_shapes=_per_argument(model),
                custom_translation_table=_translations(),
            )
            _place_outputs(program.model.graph)
            _keep_apart(program.model)
            return program.model_proto
    except Exception as exc:  # tracing runs the user's forward, which may raise anything
        raise ConversionError(
            f"PyTorch's exporter cannot express the module in ONNX: {first_line(_innermost(exc))}",
            where=type(model.module).__name__,
            expected=f"ONNX opset {settings.opset}",
            remedy="Replace the operation it names, or serve the format `torch`",
        ) from exc


def _translations() -> dict[Any, Any]:
    """Return the operators that PyTorch's exporter has no rule for, or one that gives other numbers."""
    return {**divisions(), **edges(), **infinities(), **quantisers(), **reductions(), **scatterings()}


def _place_outputs(graph: Any) -> None:
    """Give each output a value of its own: the exporter would rename an input, a weight, or the first of two."""
    import onnx_ir as ir

    taken: set[int] = {id(value) for value in (*graph.inputs, *graph.initializers.values())}
    for at, value in enumerate(graph.outputs):
        name = f"{_PLACE}output_{at}"
        if id(value) in taken:
            node = ir.node("Identity", [value], name=name)
            (copy,) = node.outputs
            copy.name, copy.type, copy.shape = name, value.type, value.shape
            graph.append(node)
            graph.outputs[at] = copy
        else:
            taken.add(id(value))
            value.name = name


def _keep_apart(model: Any) -> None:
    """Give values between the nodes names that no weight and no other value has, while they are still objects.

    The exporter counts its own (`val_6`) and looks for no clash with a weight of that name, which a graph that it once
    wrote itself has. In the file the two would be one.
    """
    taken = {*model.graph.initializers, *(value.name for value in model.graph.inputs)}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if not value.name:
                continue
            name, count = value.name, 2
            while name in taken:
                name, count = f"{value.name}_{count}", count + 1
            if name != value.name:
                value.name = name
            taken.add(name)


def _per_argument(model: TorchModel) -> tuple[Any, ...]:
    """Return the free axes as the exporter wants them: `*inputs` counts as one argument."""
    axes = dynamic_axes(model.signature)
    kinds = [parameter.kind for parameter in inspect.signature(model.module.forward).parameters.values()]
    return (axes,) if kinds and kinds[0] is inspect.Parameter.VAR_POSITIONAL else axes


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def _without_torchvision_notes() -> Generator[None]:
    """Drop the exporter's notes that torchvision is not installed, and only those."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("torchvision is not installed")

    logger = logging.getLogger(_REGISTRATION_LOG)
    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)
