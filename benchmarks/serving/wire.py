"""What is sent to whom: requests of each protocol for a row of a model, and where its answer stands in the reply.

A `Way` is one protocol of one server. `plan` writes the rows of a model as the file that the load generator reads.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import orjson

if TYPE_CHECKING:
    from benchmarks.serving.served_models import ServedModel

Encoding = Literal["binary", "JSON", "gRPC"]
Row = Mapping[str, np.ndarray]
OCTETS, JSON = "application/octet-stream", "application/json"
RAW_TAIL, JSON_NUMBERS = 1, 2
_DATATYPES = {"float32": "FP32", "int64": "INT64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One protocol of one server: the whole request for a row, and what stands before the numbers of a JSON reply."""

    encoding: Encoding
    name: str
    encode: Callable[[ServedModel, Row], bytes]
    marker: Callable[[ServedModel], str] = lambda model: f'"{model.output}":'


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One request, how its reply is read, and the numbers that must stand there."""

    request: bytes
    mode: int
    marker: bytes
    answer: np.ndarray


def plan(model: ServedModel, way: Way, path: Path) -> Path:
    """Write all rows of `model` as requests of `way`; returns `path`."""
    mode = RAW_TAIL if way.encoding == "binary" else JSON_NUMBERS
    marker = b"" if way.encoding == "binary" else way.marker(model).encode()
    write_plan(
        (
            Planned(request=way.encode(model, row), mode=mode, marker=marker, answer=answer)
            for row, answer in zip(model.rows, model.answers, strict=True)
        ),
        path,
    )
    return path


def write_plan(requests: Iterable[Planned], path: Path) -> None:
    """Write the file of `load.c`: a count, and per request four lengths, its bytes, the marker and the numbers."""
    chunks: list[bytes] = []
    for one in requests:
        numbers = np.ascontiguousarray(one.answer, dtype=np.float32).reshape(-1)
        chunks.append(struct.pack("<4I", len(one.request), one.mode, len(one.marker), numbers.size))
        chunks += [one.request, one.marker, numbers.tobytes()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<I", len(chunks) // 4) + b"".join(chunks))


def http(path: str, body: bytes, kind: str, more: str = "") -> bytes:
    """Return a whole request of HTTP/1.1."""
    lines = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    )
    return lines.encode() + body


def raw(path: str) -> Callable[[ServedModel, Row], bytes]:
    """The row's bytes and nothing else; for models with one input."""
    return lambda _, row: http(path, b"".join(array.tobytes() for array in row.values()), OCTETS)


def named_json(path: str, *, key: str | None = None) -> Callable[[ServedModel, Row], bytes]:
    """`{input: rows}`, below `key` if one is given."""

    def encode(_: ServedModel, row: Row) -> bytes:
        table: object = {name: _numbers(array) for name, array in row.items()}
        return http(path, orjson.dumps(table if key is None else {key: table}), JSON)

    return encode


def oip_json(_: ServedModel, row: Row, *, path: str) -> bytes:
    """The Open Inference Protocol's JSON, its data flat."""
    inputs = [{**_tensor(name, array), "data": _numbers(array.reshape(-1))} for name, array in row.items()]
    return http(path, orjson.dumps({"inputs": inputs}), JSON)


def oip_binary(_: ServedModel, row: Row, *, path: str) -> bytes:
    """The Open Inference Protocol's binary extension, both ways."""
    inputs = [{**_tensor(name, array), "parameters": {"binary_data_size": array.nbytes}} for name, array in row.items()]
    head = orjson.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
    length = f"inference-header-content-length: {len(head)}\r\n"
    return http(path, head + b"".join(array.tobytes() for array in row.values()), OCTETS, length)


def grpc_message(model: ServedModel, row: Row) -> bytes:
    """The `ModelInferRequest` of gRPC with raw contents, written by hand: no peer's library encodes it for another."""
    message = _field(1, model.name.encode())
    for name, array in row.items():
        shape = b"".join(_varint(axis) for axis in array.shape)
        tensor = _field(1, name.encode()) + _field(2, _DATATYPES[array.dtype.name].encode()) + _field(3, shape)
        message += _field(5, tensor)
    for array in row.values():
        message += _field(7, array.tobytes())
    return message


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _tensor(name: str, array: np.ndarray) -> dict[str, object]:
    return {"name": name, "datatype": _DATATYPES[array.dtype.name], "shape": list(array.shape)}


def _numbers(array: np.ndarray) -> Sequence[object]:
    return orjson.loads(orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY))
