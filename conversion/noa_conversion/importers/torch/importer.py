"""`import_onnx_to_torch`: an ONNX model as a PyTorch module.

The interpreter's walk over the graph is recorded with `make_fx`, above autograd and on fake tensors, so that the result
is a graph of ATen calls (`linear`, `layer_norm`, `scaled_dot_product_attention`, ...) with symbolic sizes for the free
axes that the file names. Weights are attributes under their original names.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from noa.errors import ConversionError
from noa.settings import ConversionSettings
from noa.signatures import Signature, TensorSpec
from noa_conversion.importers.free_sizes import fixing
from noa_conversion.importers.interpreter import Watch, run_graph
from noa_conversion.importers.target import Value
from noa_conversion.importers.torch import handlers
from noa_conversion.importers.torch.dtypes import dtype_of, is_held, to_numpy, to_torch
from noa_conversion.importers.torch.free_axes import FakeInputs, Fixers, make_inputs
from noa_conversion.importers.torch.fusion import fuse
from noa_conversion.importers.torch.input_names import with_inputs
from noa_conversion.importers.torch.input_shapes import shape_check
from noa_conversion.importers.torch.quiet import without_log
from noa_conversion.importers.torch.target import TorchTarget, Weights, set_attribute
from noa_conversion.importers.torch.weights import ModelWeights, weights_of
from noa_conversion.models import TorchModel
from noa_conversion.onnx_graph.model import OnnxModel, OnnxValue
from noa_conversion.onnx_graph.reading import read_model

del handlers  # importing it fills the table


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedTorch:
    """A model from ONNX in PyTorch. `module` takes the inputs by position and gives one tensor or a tuple."""

    module: torch.fx.GraphModule
    names: Mapping[str, str]
    """Attribute paths of the weights by their names in the file."""
    inputs: tuple[OnnxValue, ...]
    """What the module takes: the file's inputs without those that were bound. A free axis has a name."""
    outputs: tuple[OnnxValue, ...]

    @property
    def signature(self) -> Signature:
        """The inputs and outputs as a signature.

        Raises:
            ConversionError: a type or shape cannot be written in one; names the tensor.
        """
        return Signature(
            inputs=tuple(_spec(value) for value in self.inputs), outputs=tuple(_spec(value) for value in self.outputs)
        )

    def to_model(self) -> TorchModel:
        """Return the module with its signature, as formats and converters take it.

        Raises:
            ConversionError: a type or shape cannot be written in a signature.
        """
        return TorchModel(module=self.module, signature=self.signature)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Compute all outputs by name from arrays; types that PyTorch lacks are converted on the way in and out."""
        tensors = [to_torch(np.asarray(inputs[value.name])) for value in self.inputs]
        with torch.no_grad():
            results = self.module(*tensors)
        results = results if len(self.outputs) != 1 else (results,)
        return {value.name: _array_of(result, value.dtype) for value, result in zip(self.outputs, results, strict=True)}


def import_onnx_to_torch(
    path: Path | str | bytes,
    *,
    bind: Mapping[str, np.ndarray] | None = None,
    sizes: Mapping[str, int] | None = None,
    dynamic: bool = True,
) -> ImportedTorch:
    """Import an ONNX model: a file, or its bytes.

    `bind` gives inputs their values for good: those that decide shapes must be. `sizes` fixes free axes by name;
    without `dynamic` the others have the size 1.

    Raises:
        ConversionError: something in the model cannot be computed in PyTorch; names operator, node, opset and reason.
        InvalidInputError: the file is no ONNX model, or not a safe and consistent one.
    """
    model = read_model(path)
    bound = _checked_bind(model, bind or {})
    free = [value for value in model.graph.inputs if value.name not in bound]
    fakes = make_inputs(free, sizes or {}, dynamic=dynamic)
    weights = weights_of(model)
    fixers = Fixers(fakes)
    traced, outputs = _trace(model, bound, fakes, weights, fixers.watch)
    for name, size in fakes.fixed_axes().items():
        raise ConversionError(
            f"the free {'axis' if name.isidentifier() else 'size'} `{name}` can only be one number in this graph",
            where=fixers.place_of(name),
            expected="nodes that take any size of it",
            received=f"one that was taken down for {size} only",
            remedy=fixing(name),
            axis=name,
        )
    module = _finished(traced, weights, free)
    module.register_forward_pre_hook(shape_check(fakes.values))
    return ImportedTorch(module=module, names=dict(weights.paths), inputs=fakes.values, outputs=outputs)


def convert_onnx_to_torch(source: Path, folder: Path, settings: ConversionSettings) -> None:
    """Write the `torch` format into an empty folder from a folder of the format `onnx`.

    Raises:
        ConversionError: something in the model cannot be computed in PyTorch, or the module cannot be exported.
    """
    del settings
    from noa_conversion.formats.torch_format import save

    imported = import_onnx_to_torch(source / "model.onnx")
    declared = Signature.load(source) if (source / "signature.json").is_file() else imported.signature
    save(TorchModel(module=imported.module, signature=_with_known_sizes(declared, imported.outputs)), folder)


def _with_known_sizes(declared: Signature, computed: Sequence[OnnxValue]) -> Signature:
    """Fix what the file leaves free in outputs, that no input has, and that the graph computes as one number."""
    free = {size for spec in declared.inputs for size in spec.shape if isinstance(size, str)}
    outputs: list[TensorSpec] = []
    for spec, value in zip(declared.outputs, computed, strict=True):
        known = value.shape if value.shape is not None and len(value.shape) == len(spec.shape) else spec.shape
        shape = tuple(
            size if not isinstance(size, str) or size in free or not isinstance(found, int) else found
            for size, found in zip(spec.shape, known, strict=True)
        )
        outputs.append(replace(spec, shape=shape))
    return replace(declared, outputs=tuple(outputs))


def _checked_bind(model: OnnxModel, bind: Mapping[str, Any]) -> dict[str, Any]:
    known = {value.name: value for value in model.graph.inputs}
    for name in bind:
        if name not in known:
            raise ConversionError(
                f"`bind` names `{name}`, which is no input", expected=", ".join(f"`{n}`" for n in known), received=name
            )
    return {
        name: value if isinstance(value, list) or value is None else np.asarray(value) for name, value in bind.items()
    }


def _trace(
    model: OnnxModel, bound: Mapping[str, Any], fakes: FakeInputs, weights: ModelWeights, watch: Watch
) -> tuple[torch.fx.GraphModule, tuple[OnnxValue, ...]]:
    target = TorchTarget(fakes.mode, fakes.in_words)
    outputs: list[OnnxValue] = []

    def attach(name: str) -> torch.Tensor:
        return target.attach(weights.paths[name], weights.tensors[name])

    target.weights = Weights(weights.traced, attach)

    def forward(*tensors: torch.Tensor) -> Any:
        given = iter(tensors)
        inputs = [bound[value.name] if value.name in bound else next(given) for value in model.graph.inputs]
        results = run_graph(model.graph, target, inputs, weights=target.weights, watch=watch)
        results = [_result(target, value) for value in results]
        outputs.extend(
            _described(value, result, fakes) for value, result in zip(model.graph.outputs, results, strict=True)
        )
        return results[0] if len(results) == 1 else tuple(results)

    with fakes.mode, torch.enable_grad(), without_log(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = make_fx(forward, tracing_mode="real", pre_dispatch=True)(*fakes.tensors)
    return module, tuple(outputs)


def _result(target: TorchTarget, value: Value) -> Any:
    if isinstance(value, np.ndarray):
        return target.from_symbols(value) if value.dtype == object else target.constant(value)
    return [_result(target, item) for item in value] if isinstance(value, list) else value


def _described(declared: OnnxValue, result: Any, fakes: FakeInputs) -> OnnxValue:
    if not isinstance(result, torch.Tensor):
        return declared
    names = tuple(fakes.name_of(size) for size in result.shape)
    dtype = declared.dtype if declared.dtype is not None and is_held(declared.dtype) else dtype_of(result)
    return replace(declared, dtype=dtype, shape=names)


def _finished(traced: torch.fx.GraphModule, weights: ModelWeights, inputs: Sequence[OnnxValue]) -> torch.fx.GraphModule:
    """Name the inputs, drop what is not used and what belongs to the trace, and add the weights that no node reads."""
    traced.graph = with_inputs(traced.graph, [value.name for value in inputs])
    traced.graph.eliminate_dead_code()
    fuse(traced)
    graph = traced.graph
    for node in graph.nodes:
        node.meta = {}
    module = torch.fx.GraphModule(traced, graph, class_name="ImportedModule")
    module.meta = {}
    for name, path in weights.paths.items():
        set_attribute(module, path, weights.tensors[name])
    return module.eval()


def _spec(value: OnnxValue) -> TensorSpec:
    if value.kind != "tensor" or value.dtype is None or value.shape is None or value.dtype.kind == "V":
        raise ConversionError(
            f"tensor `{value.name}` cannot be written in a signature",
            expected="a tensor of a type that numpy has",
            received=f"{value.kind} of {value.dtype}",
            field=value.name,
        )
    shape = tuple(size if size is not None else f"{value.name}_axis{axis}" for axis, size in enumerate(value.shape))
    name: Any = value.dtype.name
    return TensorSpec(name=value.name, dtype=name, shape=shape)


def _array_of(result: Any, dtype: np.dtype | None) -> Any:
    if isinstance(result, (list, tuple)):
        return [_array_of(item, dtype) for item in result]
    return to_numpy(result, dtype) if isinstance(result, torch.Tensor) else result
