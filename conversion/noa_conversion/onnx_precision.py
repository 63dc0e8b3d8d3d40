"""Which floats the weights of an ONNX graph are stored in."""

from __future__ import annotations

from pathlib import Path

from noa_conversion.files import read_bytes


def dtypes_of_initialisers(path: Path) -> set[str]:
    """Return the dtypes of floats among the initialisers of a model file; `""` stands for all others."""
    import onnx

    from noa_conversion.formats.onnx_check import parse_model

    names: dict[int, str] = {
        onnx.TensorProto.DOUBLE: "float64",
        onnx.TensorProto.FLOAT: "float32",
        onnx.TensorProto.FLOAT16: "float16",
        onnx.TensorProto.BFLOAT16: "bfloat16",
    }
    graph = parse_model(read_bytes(path.parent, path.name), path).graph
    return {names.get(tensor.data_type, "") for tensor in graph.initializer if tensor.dims}
