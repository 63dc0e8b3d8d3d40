"""`import_onnx_to_jax`: an ONNX model as a pure function of its weights and inputs.

`apply` walks the graph while JAX traces it, so that nothing of ONNX is left in the compiled program. It may be called
inside `jit`, `grad`, `vmap` and `jax.export` (also with symbolic axes).

64 bits: the graph is always traced inside `jax.enable_x64`, so that what ONNX declares as int64, uint64 or float64 is
that in between, whatever the scope around. What goes in and comes out follows that scope, in which JAX may have no 64
bits: then params and inputs have 32, and outputs are brought to 32 (`narrowing.py`), unless `precision="64"` asks for
the 64 of the file. The importer sets no switch of the process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from noa.errors import ConversionError, InvalidInputError
from noa.signatures import Signature
from noa_conversion.importers.axis_names import with_sizes
from noa_conversion.importers.interpreter import run_graph
from noa_conversion.importers.jax import operators
from noa_conversion.importers.jax.described import describe_outputs, narrow_signature, signature_of
from noa_conversion.importers.jax.dtypes import held_as
from noa_conversion.importers.jax.narrowing import has_64_bits, narrowed
from noa_conversion.importers.jax.target import TARGET, parameter
from noa_conversion.jax_compiling import compiler_options
from noa_conversion.models import JaxModel
from noa_conversion.onnx_graph.demand import demanded_initialisers
from noa_conversion.onnx_graph.dtypes import TEXT, is_float
from noa_conversion.onnx_graph.model import OnnxGraph, OnnxModel, OnnxValue
from noa_conversion.onnx_graph.names import attribute_paths
from noa_conversion.onnx_graph.reading import read_model

if TYPE_CHECKING:
    from flax import nnx

del operators  # importing it fills the table

# Inputs that are settings where they hold one number: a power by a known exponent is a product.
_SETTINGS: Mapping[str, tuple[int, ...]] = {"Pow": (1,)}
_RESERVED = ("apply", "signature", "inputs", "outputs")


@dataclass(frozen=True, kw_only=True)
class ImportedJax:
    """An ONNX model in JAX. `apply(params, *inputs)` gives the one output, or a tuple of the outputs in order."""

    model: OnnxModel
    params: dict[str, jax.Array]
    """All float initialisers by their names in the file."""
    inputs: tuple[OnnxValue, ...]
    """What `apply` takes: the file's inputs without those that were bound."""
    bound: Mapping[str, Any]
    numbers: frozenset[str]
    """Names of params that are settings (scales of a `Resize`, exponents): the function holds their values itself."""
    precision: Literal["64"] | None = None

    @property
    def outputs(self) -> tuple[OnnxValue, ...]:
        """What the file declares about its outputs."""
        return self.model.graph.outputs

    @cached_property
    def names(self) -> dict[str, str]:
        """Dotted attribute paths of the params, as the NNX module has them, by their names in the file."""
        return attribute_paths(self.params, reserved=_RESERVED)

    @cached_property
    def signature(self) -> Signature:
        """What `apply` takes and gives, in the types of the file; free axes have names.

        Raises:
            ConversionError: a type or shape cannot be written in a signature; names the tensor.
        """
        return signature_of(self.inputs, describe_outputs(self.apply, self.params, self.inputs, self.outputs))

    def apply(self, params: Mapping[str, Any], *inputs: Any) -> Any:
        """Compute the one output, or a tuple of the outputs. A sequence is a list, an absent optional value None.

        Raises:
            ConversionError: an operator cannot be computed for these shapes; names operator, node, opset and reason.
            InvalidInputError: params or inputs are missing.
        """
        if len(inputs) != len(self.inputs):
            raise InvalidInputError(
                "the function gets another number of inputs than it takes",
                expected=", ".join(f"`{value.name}`" for value in self.inputs),
                received=f"{len(inputs)} inputs",
            )
        narrows = not (self.precision == "64" or has_64_bits())
        with jax.enable_x64(True):
            given = dict(self.bound)
            for declared, value in zip(self.inputs, inputs, strict=True):
                given[declared.name] = _as_declared(_to_tensors(value), declared.dtype)
            ordered = [given[value.name] for value in self.model.graph.inputs]
            results = run_graph(self.model.graph, TARGET, ordered, weights=self._weights(params))
            tensors = [_to_tensors(value) for value in results]
            tensors = [narrowed(value) for value in tensors] if narrows else tensors
        return tensors[0] if len(tensors) == 1 else tuple(tensors)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Compute all outputs by name from arrays, compiled once per shape; outputs have the types of the file.

        Raises:
            InvalidInputError: an input is missing, or JAX has no tensors of its type.
            ConversionError: XLA does not take the program.
        """
        with jax.enable_x64(True):
            given = [_checked(value, inputs) for value in self.inputs]
            try:
                results = self._compiled(self.params, *given)
            except ValueError as exc:
                if not str(exc).startswith("Cannot lower jaxpr"):
                    raise
                raise ConversionError(
                    f"the model cannot be compiled in JAX: {' '.join(str(exc).split())[:300]}"
                ) from exc
        results = (results,) if len(self.outputs) == 1 else results
        return {
            value.name: _to_arrays(result, value.dtype) for value, result in zip(self.outputs, results, strict=True)
        }

    def to_model(self) -> JaxModel:
        """Return the function with its signature, as formats and converters take it.

        64-bit tensors are declared as 32. Params of a type that noa has no files for (bfloat16, 8-bit floats) become
        float32, which holds them exactly, and are cast back inside.

        Raises:
            ConversionError: a type or shape cannot be written in a signature.
        """
        types = {name: array.dtype for name, array in self.params.items() if np.dtype(array.dtype).kind == "V"}
        params = {name: array.astype(jnp.float32) if name in types else array for name, array in self.params.items()}

        def apply(params: Mapping[str, Any], *inputs: Any) -> Any:
            cast = {name: jnp.asarray(params[name]).astype(dtype) for name, dtype in types.items()}
            return self.apply({**params, **cast}, *inputs)

        function = apply if types else self.apply
        return JaxModel(apply=function, params=params, signature=narrow_signature(self.signature))

    def to_nnx(self) -> nnx.Module:
        """Return a Flax NNX module that computes the same; its `nnx.Param`s have the paths of `names`.

        Raises:
            DependencyMissingError: flax is not installed.
        """
        from noa_conversion.importers.jax.nnx_module import make_module

        return make_module(self)

    @cached_property
    def _types(self) -> dict[str, np.dtype]:
        arrays = self.model.graph.all_initialisers()
        return {name: arrays[name].dtype for name in self.params}

    @cached_property
    def _compiled(self) -> Any:
        return jax.jit(self.apply, compiler_options=compiler_options())

    def _weights(self, params: Mapping[str, Any]) -> dict[str, Any]:
        missing = self.params.keys() - params.keys()
        if missing:
            raise InvalidInputError(
                "a param is missing", expected=f"`{min(missing)}`", received=f"{len(params)} params"
            )
        return {
            name: _as_declared(jnp.asarray(params[name]), self._types[name])
            for name in self.params
            if name not in self.numbers
        }


def import_onnx_to_jax(
    path: Path | str | bytes,
    *,
    bind: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
    precision: Literal["64"] | None = None,
) -> ImportedJax:
    """Import a model; see `noa_conversion.importers.jax.import_onnx_to_jax`."""
    model = read_model(path)
    bound = _checked_bind(model, bind or {})
    with _scope(precision):
        params = {
            name: parameter(array) for name, array in model.graph.all_initialisers().items() if is_float(array.dtype)
        }
        imported = ImportedJax(
            model=model,
            params=params,
            inputs=with_sizes([value for value in model.graph.inputs if value.name not in bound], sizes or {}),
            bound=bound,
            numbers=frozenset(params) & (demanded_initialisers(model) | _settings(model.graph)),
            precision=precision,
        )
        _check(imported)
    return imported


def _scope(precision: Literal["64"] | None) -> contextlib.AbstractContextManager[Any]:
    return jax.enable_x64(True) if precision == "64" else contextlib.nullcontext()


def _checked_bind(model: OnnxModel, bind: Mapping[str, Any]) -> dict[str, Any]:
    known = [value.name for value in model.graph.inputs]
    for name in bind:
        if name not in known:
            raise InvalidInputError(
                f"`bind` names `{name}`, which is no input",
                expected=", ".join(f"`{each}`" for each in known),
                received=name,
            )
    return {
        name: value if isinstance(value, list) or value is None else np.asarray(value) for name, value in bind.items()
    }


def _settings(graph: OnnxGraph) -> frozenset[str]:
    """Return the initialisers of one number that are used as settings only."""
    uses: dict[str, list[bool]] = {}
    for inner in graph.walk():
        for node in inner.nodes:
            for place, name in enumerate(node.inputs):
                uses.setdefault(name, []).append(place in _SETTINGS.get(node.kind, ()))
        for value in inner.outputs:
            uses.setdefault(value.name, []).append(False)
    arrays = graph.all_initialisers()
    return frozenset(name for name, array in arrays.items() if array.size == 1 and all(uses.get(name, [False])))


def _check(imported: ImportedJax) -> None:
    """Trace once without computing where all sizes are numbers, so that what cannot be imported is refused now."""
    arguments: list[Any] = []
    for value in imported.inputs:
        if value.dtype == TEXT:
            raise ConversionError(f"input `{value.name}` holds texts, and JAX has no tensors of them", field=value.name)
    for value in imported.inputs:
        if value.kind != "tensor" or value.dtype is None or value.shape is None:
            return
        if not all(isinstance(size, int) for size in value.shape):
            return
        arguments.append(jax.ShapeDtypeStruct(value.shape, held_as(value.dtype)))
    jax.eval_shape(imported.apply, imported.params, *arguments)


def _to_tensors(value: Any) -> Any:
    """Make tensors of arrays (sizes computed from symbols too), through lists."""
    if isinstance(value, list | tuple):
        return [_to_tensors(part) for part in value]
    if value is None:
        return None
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        return TARGET.from_symbols(array) if array.dtype == object else TARGET.constant(array)
    return jnp.asarray(value)


def _as_declared(value: Any, dtype: np.dtype | None) -> Any:
    """Widen what came through a scope of 32 bits into one of 64; any other type is the caller's will."""
    if dtype is None or isinstance(value, list) or value is None:
        return value
    is_narrowed = dtype.name in ("int64", "uint64", "float64") and value.dtype.name == dtype.name.replace("64", "32")
    return value.astype(held_as(dtype)) if is_narrowed else value


def _checked(declared: OnnxValue, inputs: Mapping[str, Any]) -> Any:
    if declared.name not in inputs:
        raise InvalidInputError(
            f"input `{declared.name}` is missing", received=", ".join(f"`{name}`" for name in inputs)
        )
    try:
        return _to_tensors(inputs[declared.name])
    except ConversionError as exc:
        raise InvalidInputError(
            f"input `{declared.name}`: {exc.what}", expected=exc.expected, received=exc.received, remedy=exc.remedy
        ) from exc


def _to_arrays(value: Any, dtype: np.dtype | None) -> Any:
    if isinstance(value, list | tuple):
        parts: Sequence[Any] = value
        return [_to_arrays(part, dtype) for part in parts]
    return None if value is None else np.asarray(value, dtype)
