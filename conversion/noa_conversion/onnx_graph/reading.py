"""Reads an ONNX file into an `OnnxModel`, safely and without copying its weights.

The bytes are read once. Large tensors stay in them (`wire.py`), the rest is parsed and checked
(`formats/onnx_check.py`), then built with unique names and inlined functions (`building.py`). Initialisers are
read-only views of the bytes, or of the files beside the model, which must lie inside its folder.
"""

from __future__ import annotations

from pathlib import Path

from noa.errors import InvalidInputError, NotFoundError, StorageError
from noa_conversion.formats.onnx_check import EMBEDDED, has_external_data, parse_model
from noa_conversion.onnx_graph.building import Builder, opsets_of
from noa_conversion.onnx_graph.limits import check_inputs
from noa_conversion.onnx_graph.model import OnnxModel
from noa_conversion.onnx_graph.protos import TensorReader
from noa_conversion.onnx_graph.wire import without_large_tensors


def read_model(source: Path | str | bytes) -> OnnxModel:
    """Read an ONNX model from its file or from its bytes (which then have no files beside them).

    Raises:
        NotFoundError: there is no such file.
        InvalidInputError: it is not a whole ONNX model, or not one that is safe and consistent; names what is wrong.
        StorageError: the file cannot be read.
    """
    path, data = _bytes_of(source)
    slim = without_large_tensors(data, EMBEDDED)
    proto = parse_model(slim, path, any_domain=True)
    if isinstance(source, bytes) and has_external_data(proto, path):
        raise InvalidInputError("a model given as bytes keeps tensors in other files", remedy="Give its path")
    builder = Builder(path, TensorReader(data, path), proto.functions)
    try:
        graph = builder.model(proto)
    except RecursionError as exc:
        raise InvalidInputError("the model is nested too deeply", where=str(path)) from exc
    check_inputs(graph.inputs, str(path))
    return OnnxModel(
        graph=graph,
        opsets=opsets_of(proto),
        ir_version=int(proto.ir_version),
        producer=f"{proto.producer_name} {proto.producer_version}".strip(),
        metadata={entry.key: entry.value for entry in proto.metadata_props},
    )


def _bytes_of(source: Path | str | bytes) -> tuple[Path, bytes]:
    if isinstance(source, bytes):
        return Path("model.onnx"), source
    path = Path(source)
    try:
        return path, path.read_bytes()
    except FileNotFoundError as exc:
        raise NotFoundError(f"there is no file `{path}`") from exc
    except IsADirectoryError as exc:
        raise InvalidInputError(f"`{path}` is a folder", expected="an ONNX file") from exc
    except OSError as exc:
        raise StorageError(f"`{path}` cannot be read: {exc}") from exc
