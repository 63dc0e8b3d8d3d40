"""The last step of every exporter to ONNX: give the tensors the signature's form, confirm, check and write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from noa import __version__
from noa.atomic_write import write_file
from noa.errors import ConversionError
from noa.settings import ConversionSettings
from noa.signatures import Signature, TensorSpec
from noa_conversion.exporters.onnx_kernels import fit_kernels
from noa_conversion.files import MAX_GRAPH_BYTES
from noa_conversion.formats.onnx_format import MODEL_FILE

if TYPE_CHECKING:
    import onnx

PRODUCER = "noa"


def write_model(
    model: onnx.ModelProto, folder: Path, *, signature: Signature, source: str, settings: ConversionSettings
) -> None:
    """Write `model.onnx` and `signature.json`, once the graph is proven to be what was asked for.

    Raises:
        ConversionError: another opset than asked for, tensors that differ from the signature, an invalid graph, or one
            over the 2 GiB that a single file can hold.
    """
    import onnx

    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets.get("") != settings.opset:
        raise ConversionError(
            "the exporter wrote another opset than asked for",
            expected=f"opset {settings.opset}",
            received=f"opset {opsets.get('')}",
            remedy="Set `conversion.opset` to the one it wrote",
        )
    try:
        fit_kernels(model)
    except onnx.shape_inference.InferenceError as exc:
        raise ConversionError(f"the exported graph is not valid ONNX: {str(exc).splitlines()[0][:300]}") from exc
    _apply_signature(list(model.graph.input), signature.inputs, side="input")
    _apply_signature(list(model.graph.output), signature.outputs, side="output")
    model.producer_name = PRODUCER
    model.producer_version = __version__
    del model.metadata_props[:]
    onnx.helper.set_model_props(
        model, {"noa.source": source, "noa.signature": json.dumps(signature.to_dict(), separators=(",", ":"))}
    )
    if model.ByteSize() > MAX_GRAPH_BYTES:
        raise ConversionError(
            "the model is larger than one ONNX file can be",
            expected=f"at most {MAX_GRAPH_BYTES} bytes",
            received=f"{model.ByteSize()} bytes",
        )
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ConversionError(f"the exported graph is not valid ONNX: {str(exc).splitlines()[0][:300]}") from exc
    write_file(folder / MODEL_FILE, model.SerializeToString(deterministic=True))
    signature.save(folder)


def _apply_signature(values: list[onnx.ValueInfoProto], specs: tuple[TensorSpec, ...], *, side: str) -> None:
    """Check dtype and rank of each tensor, and give its axes the signature's sizes and names."""
    import onnx

    if [value.name for value in values] != [spec.name for spec in specs]:
        raise ConversionError(
            f"the exported graph has other {side}s than the signature",
            expected=str([spec.name for spec in specs]),
            received=str([value.name for value in values]),
        )
    for value, spec in zip(values, specs, strict=True):
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
        fits = len(sizes) == len(spec.shape) and all(
            (size is None) if isinstance(axis, str) else size in (None, axis)
            for size, axis in zip(sizes, spec.shape, strict=False)
        )
        if dtype != spec.dtype or not fits:
            raise ConversionError(
                f"{side} `{spec.name}` of the exported graph is not what the signature says",
                expected=spec.describe(),
                received=f"{dtype}({', '.join('?' if size is None else str(size) for size in sizes)})",
                field=spec.name,
            )
        value.ClearField("metadata_props")
        for dim, axis in zip(tensor.shape.dim, spec.shape, strict=True):
            if isinstance(axis, str):
                dim.dim_param = axis
            else:
                dim.dim_value = axis
