"""The bytes of an ONNX file without its large tensors, which are left where they are.

Protobuf copies every tensor when it parses and again when it is asked for one. Here the messages that hold a large
`raw_data` are rewritten to point at the file's own bytes, as ONNX points at other files, so that a model is parsed in
the memory of its structure and its weights are views of the bytes that were read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import TypeAlias

from noa.errors import InvalidInputError

LARGE_BYTES = 1 << 14
"""Tensors from this size on stay where they are."""
_BYTES_FIELD = 2
# Where tensors lie, by the field numbers of onnx.proto.
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
_MAX_TENSOR_FIELDS = 1000
_MAX_FIELDS = 1_000_000
_Field: TypeAlias = tuple[int, int, int, int, int]
"""Number, wire type, start of the field, start and end of its content."""


@dataclass(frozen=True, slots=True)
class _Message:
    """Which fields of a message are messages that may hold tensors; `tensor` marks the one that is a tensor."""

    fields: Mapping[int, _Message]
    is_tensor: bool = False


_TENSOR = _Message({}, is_tensor=True)
_MODEL = _Message({7: _Message({5: _TENSOR, 1: _Message({5: _Message({5: _TENSOR})})})})


def without_large_tensors(data: bytes, location: str) -> bytes:
    """Return `data` in which large tensors are kept in the file `location`: at their offsets within `data`.

    What is not a well-formed message is returned as it is, for the parser to refuse.

    Raises:
        InvalidInputError: the graph, or a large node, has more parts than any model; parsing them takes much memory.
    """
    if len(data) < LARGE_BYTES:
        return data
    try:
        return b"".join(_rewritten(data, 0, len(data), _MODEL, location))
    except (IndexError, ValueError):
        return data


def _rewritten(data: bytes, start: int, end: int, message: _Message, location: str) -> list[bytes | memoryview]:
    view = memoryview(data)
    parts: list[bytes | memoryview] = []
    done = start
    fields: Iterable[_Field] = read_fields(data, start, end)
    is_external = False
    if message.is_tensor:
        fields = list(itertools.islice(fields, _MAX_TENSOR_FIELDS))
        is_external = any(field[0] in (_EXTERNAL_DATA, _DATA_LOCATION) for field in fields)
        is_external |= len(fields) == _MAX_TENSOR_FIELDS
    for count, (number, wire, at, first, last) in enumerate(fields):
        if count > _MAX_FIELDS:
            raise InvalidInputError(f"the file holds a message of more than {_MAX_FIELDS} parts")
        if wire != _BYTES_FIELD or last - first < LARGE_BYTES:
            continue
        if message.is_tensor and number == _RAW_DATA and not is_external:
            new = [_pointer(location, first, last - first)]
        elif number in message.fields:
            inner = _rewritten(data, first, last, message.fields[number], location)
            new = [_varint(number << 3 | _BYTES_FIELD), _varint(sum(map(len, inner))), *inner]
        else:
            continue
        parts += [view[done:at], *new]
        done = last
    parts.append(view[done:end])
    return parts


def read_fields(data: bytes | mmap, start: int, end: int) -> Iterator[_Field]:
    """Give every field of a message, without reading what a field of bytes holds.

    Raises:
        ValueError, IndexError: it is not well formed.
    """
    at = start
    while at < end:
        begin = at
        key, at = _read_varint(data, at)
        wire = key & 7
        if wire == 0:
            first = at
            _, at = _read_varint(data, at)
        elif wire in (1, 5):
            first = at
            at += 8 if wire == 1 else 4
        elif wire == _BYTES_FIELD:
            length, first = _read_varint(data, at)
            at = first + length
        else:
            raise ValueError("a group, which no ONNX file has")
        if at > end:
            raise ValueError("a field ends outside its message")
        yield key >> 3, wire, begin, first, at


def _read_varint(data: bytes | mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number that does not end")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _pointer(location: str, offset: int, length: int) -> bytes:
    out = b""
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        entry = _text(1, key) + _text(2, value)
        out += _varint(_EXTERNAL_DATA << 3 | _BYTES_FIELD) + _varint(len(entry)) + entry
    return out + _varint(_DATA_LOCATION << 3) + _varint(1)


def _text(number: int, text: str) -> bytes:
    data = text.encode()
    return _varint(number << 3 | _BYTES_FIELD) + _varint(len(data)) + data
