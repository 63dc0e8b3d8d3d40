"""What an ONNX file says it takes and gives, read past its nodes and weights: a few pages of a file of any size."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from noa.errors import InvalidInputError
from noa_conversion.onnx_graph.wire import read_fields

if TYPE_CHECKING:
    import onnx

# By the field numbers of onnx.proto.
_GRAPH: Final = 7
_INITIALISER, _INPUT, _OUTPUT, _SPARSE = 5, 11, 12, 15
_TENSOR_NAME, _SPARSE_VALUES = 8, 1
_BYTES_FIELD: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphInterface:
    """The inputs that a caller gives, and the outputs."""

    inputs: tuple[onnx.ValueInfoProto, ...]
    outputs: tuple[onnx.ValueInfoProto, ...]


def read_interface(path: Path) -> GraphInterface:
    """Read inputs and outputs of the graph in a file.

    Raises:
        InvalidInputError: it is no ONNX file.
    """
    from google.protobuf.message import DecodeError

    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(data)
    except (OSError, ValueError, IndexError, DecodeError) as exc:
        raise InvalidInputError(f"`{path.name}` is no ONNX file: {exc}", where=str(path)) from exc


def _read(data: mmap.mmap) -> GraphInterface:
    import onnx

    graphs = [(first, last) for number, _, _, first, last in read_fields(data, 0, len(data)) if number == _GRAPH]
    if len(graphs) != 1:
        raise ValueError(f"it has {len(graphs)} graphs")
    found: dict[int, list[onnx.ValueInfoProto]] = {_INPUT: [], _OUTPUT: []}
    held: set[str] = set()
    for number, wire, _, first, last in read_fields(data, *graphs[0]):
        if wire != _BYTES_FIELD:
            continue
        if number in found:
            found[number].append(onnx.ValueInfoProto.FromString(data[first:last]))
        elif number == _INITIALISER:
            held.update(_names(data, first, last))
        elif number == _SPARSE:
            for inner, _, _, start, end in read_fields(data, first, last):
                held.update(_names(data, start, end) if inner == _SPARSE_VALUES else ())
    inputs = tuple(value for value in found[_INPUT] if value.name not in held)
    return GraphInterface(inputs=inputs, outputs=tuple(found[_OUTPUT]))


def _names(data: mmap.mmap, first: int, last: int) -> list[str]:
    return [
        data[start:end].decode()
        for number, _, _, start, end in read_fields(data, first, last)
        if number == _TENSOR_NAME
    ]
