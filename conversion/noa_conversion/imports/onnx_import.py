"""ONNX from outside: the graph is checked, its signature read from it, and weights beside it brought into one file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from noa.atomic_write import write_file
from noa.errors import InvalidInputError
from noa.signatures import Axis, DType, Signature, TensorSpec, dtype_name
from noa_conversion.files import MAX_GRAPH_BYTES, read_bytes
from noa_conversion.formats.onnx_check import has_external_data, parse_model, read_external_data
from noa_conversion.formats.onnx_format import MODEL_FILE
from noa_conversion.imports.kept_signature import Prepared
from noa_conversion.imports.onnx_outputs import complete_outputs
from noa_conversion.onnx_zip_maps import maker_of

if TYPE_CHECKING:
    import onnx

_NO_TENSORS: Final = {
    "sequence_type": "a sequence",
    "map_type": "a dictionary",
    "optional_type": "an optional value",
    "sparse_tensor_type": "a sparse tensor",
}
_AXIS = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,63}")


def prepare(source: Path, folder: Path) -> Prepared:
    """Write `model.onnx` and `signature.json` into `folder`.

    Raises:
        InvalidInputError: the graph is not safe, larger than one file may be, or takes what noa has no tensors for.
    """
    data = read_bytes(source.parent, source.name)
    model = parse_model(data, source)
    is_split = has_external_data(model, source)
    if is_split:
        read_external_data(model, source)
        if model.ByteSize() > MAX_GRAPH_BYTES:
            raise InvalidInputError(
                "the graph and its weights do not fit into one ONNX file",
                where=str(source),
                expected=f"at most {MAX_GRAPH_BYTES} bytes",
                received=f"{model.ByteSize()} bytes",
            )
    is_completed = complete_outputs(model, read_inputs(model, source))
    signature = read_signature(model, source)
    if is_split or is_completed:
        data = model.SerializeToString(deterministic=True)
    write_file(folder / MODEL_FILE, data)
    signature.save(folder)
    return Prepared(signature=signature, unguessed=_without_guesses(model, signature))


def read_signature(model: onnx.ModelProto, path: Path) -> Signature:
    """Return what a graph takes and gives. Free axes keep their names; those without one get one.

    The first axis of inputs is called `batch` where it is free and has no name; any other `NAME_INDEX`. An output's
    first one is taken for the batch only as long as an input has such an axis.

    Raises:
        InvalidInputError: an input or output is no tensor of numbers or texts, or has no rank.
    """
    inputs = read_inputs(model, path)
    known = tuple(axis for spec in inputs for axis in spec.shape if isinstance(axis, str))
    return Signature(inputs=inputs, outputs=tuple(_spec(value, path, known, model) for value in model.graph.output))


def read_inputs(model: onnx.ModelProto, path: Path) -> tuple[TensorSpec, ...]:
    """Return what a graph takes.

    Raises:
        InvalidInputError: it takes nothing, or what `read_signature` refuses.
    """
    initialisers = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_spec(value, path, None, model) for value in model.graph.input if value.name not in initialisers)
    if not inputs:
        raise InvalidInputError(f"`{path.name}` takes no inputs", where=str(path))
    return inputs


def _spec(value: onnx.ValueInfoProto, path: Path, known: tuple[str, ...] | None, model: onnx.ModelProto) -> TensorSpec:
    import onnx

    kind = value.type.WhichOneof("value")
    if kind in _NO_TENSORS:
        maker = maker_of(model, value.name)
        made = "" if maker is None else f": {maker} makes it"
        raise InvalidInputError(
            f"`{value.name!a}` of `{path.name}` is {_NO_TENSORS[kind]}, and noa has tensors only{made}",
            where=str(path),
            expected="a tensor",
            received=kind,
            remedy="Convert it without: `options={'zipmap': False}` in skl2onnx, `zipmap=False` in onnxmltools"
            if maker is not None and maker.startswith("`ZipMap`")
            else "Cut the graph before it (onnx.utils.extract_model), so that it takes and gives tensors",
            field=value.name,
        )
    if kind != "tensor_type" or not value.name.isprintable() or not value.name:
        raise InvalidInputError(
            f"`{value.name!a}` of `{path.name}` is no tensor with a plain name", where=str(path), received=str(kind)
        )
    tensor = value.type.tensor_type
    try:
        dtype = dtype_name(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        if not tensor.HasField("shape"):
            raise InvalidInputError(
                f"tensor `{value.name}` of `{path.name}` does not say how many axes it has",
                where=str(path),
                expected="a rank in the file, or an output that can be inferred or seen in a run on made-up inputs",
                received="none",
                remedy="Write its shape into the file, or give inputs that decide shapes with --bind NAME=VALUES",
                field=value.name,
            )
        shape = tuple(_axis(dim, index, value.name, known) for index, dim in enumerate(tensor.shape.dim))
        return TensorSpec(name=value.name, dtype=_dtype(dtype), shape=shape)
    except (KeyError, ValueError) as exc:
        raise InvalidInputError(
            f"tensor `{value.name}` of `{path.name}` has a type that noa does not know", received=str(tensor.elem_type)
        ) from exc


def _without_guesses(model: onnx.ModelProto, signature: Signature) -> Signature:
    """Return the signature with an own axis wherever the file does not say that an output's first one is the batch."""
    outputs = tuple(
        replace(spec, shape=(_own_axis(spec.name, 0), *spec.shape[1:]))
        if spec.shape and not value.type.tensor_type.shape.dim[0].WhichOneof("value")
        else spec
        for spec, value in zip(signature.outputs, model.graph.output, strict=True)
    )
    return replace(signature, outputs=outputs)


def _axis(dim: onnx.TensorShapeProto.Dimension, index: int, name: str, known: tuple[str, ...] | None) -> Axis:
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return dim.dim_value
    if _AXIS.fullmatch(dim.dim_param):
        return dim.dim_param
    if index == 0 and (known is None or "batch" in known):
        return "batch"
    return _own_axis(name, index)


def _own_axis(name: str, index: int) -> str:
    safe = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return f"{safe}_{index}"


def _dtype(name: str) -> DType:
    return name  # pyright: ignore[reportReturnType]  # TensorSpec refuses what is none
