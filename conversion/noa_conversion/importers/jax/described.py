"""Signatures of imported models. Shapes of outputs come from a trace with symbolic axes, not from the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import jax
import jax.export

from noa.errors import ConversionError
from noa.signatures import Axis, DType, Signature, TensorSpec
from noa_conversion.importers.axis_names import axis_name, identifier
from noa_conversion.importers.jax.dtypes import held_as
from noa_conversion.models import LARGEST_AXIS
from noa_conversion.onnx_graph.model import OnnxValue
from noa_conversion.signature_match import NARROWED


def name_axes(values: tuple[OnnxValue, ...]) -> tuple[OnnxValue, ...]:
    """Give every free axis a name that is an identifier. Unnamed first axes share `batch`, others get their own.

    Raises:
        ConversionError: a value is no tensor, or its type or rank is not declared.
    """
    named: dict[str, str] = {}
    result: list[OnnxValue] = []
    for value in values:
        if value.kind != "tensor" or value.dtype is None or value.shape is None:
            raise ConversionError(
                f"tensor `{value.name}` cannot be written in a signature",
                expected="a tensor of a declared type and rank",
                received=f"{value.kind} of {value.dtype}",
                field=value.name,
            )
        shape = tuple(_axis(size, axis, value.name, named) for axis, size in enumerate(value.shape))
        result.append(replace(value, shape=shape))
    return tuple(result)


def _axis(size: int | str | None, axis: int, value: str, named: dict[str, str]) -> Axis:
    if size is None or isinstance(size, int):
        return axis_name(size, axis, value)
    if size not in named:
        plain = identifier(size)
        while plain in named.values():
            plain += "_"
        named[size] = plain
    return named[size]


def describe_outputs(
    apply: Callable[..., Any], params: Mapping[str, Any], inputs: tuple[OnnxValue, ...], outputs: tuple[OnnxValue, ...]
) -> tuple[OnnxValue, ...]:
    """Return the outputs with the shapes that a trace over the inputs' free axes gives.

    Raises:
        ConversionError: the function cannot be traced with free axes, or an output is no tensor.
    """
    named = name_axes(inputs)
    free = dict.fromkeys(size for value in named for size in value.shape or () if isinstance(size, str))
    scope = jax.export.SymbolicScope([f"{name} <= {LARGEST_AXIS}" for name in free])
    arguments: list[Any] = []
    for value in named:
        shape = value.shape or ()
        text = ", ".join(map(str, shape))
        symbolic = jax.export.symbolic_shape(text, scope=scope) if any(isinstance(n, str) for n in shape) else shape
        arguments.append(jax.ShapeDtypeStruct(symbolic, held_as(value.dtype)))
    results = jax.eval_shape(apply, dict(params), *arguments)
    results = (results,) if len(outputs) == 1 else results
    described: list[OnnxValue] = []
    for value, result in zip(outputs, results, strict=True):
        if not hasattr(result, "shape"):
            raise ConversionError(f"output `{value.name}` is no tensor", field=value.name)
        dtype = value.dtype if value.dtype is not None and held_as(value.dtype) == result.dtype else result.dtype
        sizes = tuple(size if isinstance(size, int) else str(size) for size in result.shape)
        described.append(replace(value, kind="tensor", dtype=dtype, shape=sizes))
    return tuple(described)


def signature_of(inputs: tuple[OnnxValue, ...], outputs: tuple[OnnxValue, ...]) -> Signature:
    """Return a signature in the types of the file.

    Raises:
        ConversionError: a type is not one of numpy's own, or there are no inputs.
    """
    if not inputs:
        raise ConversionError("a model without inputs has no signature")
    return Signature(inputs=tuple(map(_spec, name_axes(inputs))), outputs=tuple(map(_spec, outputs)))


def _spec(value: OnnxValue) -> TensorSpec:
    if value.dtype is None or value.shape is None or value.dtype.kind not in "biuf":
        raise ConversionError(
            f"tensor `{value.name}` cannot be written in a signature",
            expected="a type that numpy has",
            received=str(value.dtype),
            field=value.name,
        )
    return TensorSpec(
        name=value.name, dtype=cast("DType", value.dtype.name), shape=cast("tuple[Axis, ...]", value.shape)
    )


def narrow_signature(signature: Signature) -> Signature:
    """Return the signature with 64-bit types declared as the 32-bit ones that JAX computes them in."""

    def narrow(spec: TensorSpec) -> TensorSpec:
        return replace(spec, dtype=NARROWED.get(spec.dtype, spec.dtype))

    return Signature(inputs=tuple(map(narrow, signature.inputs)), outputs=tuple(map(narrow, signature.outputs)))
