"""An ONNX file as a format folder: checked, with its signature read from the graph, and inputs bound to constants."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from noa.atomic_write import write_file
from noa.errors import InvalidInputError
from noa.signatures import Signature
from noa_conversion.files import MAX_GRAPH_BYTES, read_bytes
from noa_conversion.formats.onnx_check import has_external_data, parse_model, read_external_data
from noa_conversion.formats.onnx_format import MODEL_FILE
from noa_conversion.onnx_zip_maps import leave_out_zip_maps

if TYPE_CHECKING:
    import numpy as np
    import onnx


def stage_onnx(
    source: Path, folder: Path, *, bind: Mapping[str, np.ndarray], sizes: Mapping[str, int] | None = None
) -> tuple[str, ...]:
    """Write `model.onnx` and `signature.json` into `folder`. Weights beside the file are brought into it.

    `sizes` fixes free axes by the names that the signature gives them. What the folder's graph gives in another form
    than the file is returned, in words.

    Raises:
        InvalidInputError: not safe to load, larger than one file may be, an input or output that is no tensor of
            numbers, or a value in `bind` that does not fit its input.
    """
    from noa_conversion.imports.onnx_import import read_inputs, read_signature
    from noa_conversion.imports.onnx_outputs import complete_outputs

    model = parse_model(read_bytes(source.parent, source.name), source)
    if has_external_data(model, source):
        read_external_data(model, source)
    for name, value in bind.items():
        _bind(model, name, value, source)
    notes = leave_out_zip_maps(model)
    complete_outputs(model, read_inputs(model, source))
    signature = read_signature(model, source)
    if sizes:
        _fix_axes(model, signature, sizes, source)
        signature = read_signature(model, source)
    if model.ByteSize() > MAX_GRAPH_BYTES:
        raise InvalidInputError(
            "the graph and its weights do not fit into one ONNX file",
            where=str(source),
            expected=f"at most {MAX_GRAPH_BYTES} bytes",
            received=f"{model.ByteSize()} bytes",
        )
    write_file(folder / MODEL_FILE, model.SerializeToString(deterministic=True))
    signature.save(folder)
    return notes


def _bind(model: onnx.ModelProto, name: str, value: np.ndarray, source: Path) -> None:
    """Replace an input by an initialiser of the same name."""
    import onnx

    inputs = {entry.name: entry for entry in model.graph.input}
    if name not in inputs or any(tensor.name == name for tensor in model.graph.initializer):
        raise InvalidInputError(
            f"the graph has no input `{name}` to bind",
            where=str(source),
            expected=f"one of {', '.join(f'`{known}`' for known in inputs)}",
            received=name,
            field=name,
        )
    tensor = inputs[name].type.tensor_type
    wanted = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    shaped = value.reshape(()) if not dims and value.size == 1 else value
    fits = len(dims) == shaped.ndim and all(
        size in (None, given) for size, given in zip(dims, shaped.shape, strict=True)
    )
    cast = shaped.astype(wanted)
    if (tensor.HasField("shape") and not fits) or not bool((cast == shaped).all()):
        raise InvalidInputError(
            f"the value for `{name}` does not fit the input",
            where=str(source),
            expected=f"{wanted.name}{tuple('?' if size is None else size for size in dims)}",
            received=f"{value.dtype.name}{value.shape}",
            field=name,
        )
    model.graph.initializer.append(onnx.numpy_helper.from_array(cast, name))
    model.graph.input.remove(inputs[name])


def _fix_axes(model: onnx.ModelProto, signature: Signature, sizes: Mapping[str, int], source: Path) -> None:
    """Give free axes a size wherever their name stands among the inputs, and where the file has it in the outputs.

    An output's axis without a name in the file is another one, whatever it is called for want of a better name.
    """
    inputs = {value.name for value in model.graph.input}
    specs = {spec.name: spec for spec in (*signature.inputs, *signature.outputs)}
    known = {axis for spec in signature.inputs for axis in spec.shape if isinstance(axis, str)}
    for axis in sizes:
        if axis not in known:
            raise InvalidInputError(
                f"the graph has no free axis `{axis}`",
                where=str(source),
                expected=", ".join(f"`{name}`" for name in sorted(known)) or "none: all sizes are fixed",
                received=axis,
            )
    for value in (*model.graph.input, *model.graph.output):
        spec = specs.get(value.name)
        for dim, axis in zip(value.type.tensor_type.shape.dim, () if spec is None else spec.shape, strict=False):
            if isinstance(axis, str) and axis in sizes and (value.name in inputs or dim.dim_param == axis):
                dim.dim_value = sizes[axis]
