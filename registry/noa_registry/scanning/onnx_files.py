"""ONNX graphs, read field by field without a parser that would take the whole file into memory.

Weights are skipped, so a graph of any size costs the same little memory. What is checked: that all of it is well
formed, where tensors keep their bytes, that they have as many as they claim, and that no operator is foreign code.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from noa_registry.scanning.blobs import Blob, Cursor, MalformedError, Slice, part_of
from noa_registry.scanning.state import ScanState, check_part

_MOST_DEEP = 24
_MOST_TEXT = 1 << 16
_MOST_CLAIMED_BYTES = 1 << 36
_MOST_FUNCTIONS = 10_000
"""Most functions of a file that are remembered; one more than that, and some operator is not found among them."""
_KNOWN_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_MODEL_FIELDS: Final = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
# Bits of one element by ONNX's number of its type; 8 is text, which has no fixed size.
_BITS: Final = {
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((7, 11, 13, 14), 64),
    **dict.fromkeys((21, 22, 23), 4),
    **dict.fromkeys((25, 26), 2),
    15: 128,
}
_TEXT_TYPE = 8
_TYPED: Final = {4: 4, 5: 1, 7: 1, 10: 8, 11: 1}  # field -> least bytes of one packed element


@dataclass(slots=True)
class _Tensor:
    name: str = ""
    dims: list[int] = field(default_factory=list[int])
    kind: int = 0
    external: dict[str, str] = field(default_factory=dict[str, str])
    is_external: bool = False
    raw: int | None = None
    held: int = 0
    texts: int = 0


def looks_like_onnx(head: bytes) -> bool:
    """Tell whether bytes begin like an ONNX model: its version, and then another of its fields."""
    if len(head) < 4 or head[0] != 8 or not 1 <= head[1] <= 64:
        return False
    number, wire = head[2] >> 3, head[2] & 7
    return _MODEL_FIELDS.get(number) == wire or head[2:4] in (b"\xa2\x01", b"\xca\x01", b"\xd2\x01")


def inspect_onnx(scan: ScanState, blob: Blob, file: str, folder: Path | None) -> None:
    """Check a graph. `folder` is where it lies, None inside an archive, where it can have no files beside it.

    Raises:
        MalformedError: it is broken, or claims what it does not hold.
    """
    walker = _Walker(scan, file, folder)
    seen: set[int] = set()
    for number, wire, value in _fields(blob):
        if _MODEL_FIELDS.get(number) != wire:
            raise MalformedError(f"is an ONNX file with the unknown field {number}")
        seen.add(number)
        if isinstance(value, Slice):
            if number == 7:
                walker.graph(value, 0)
            elif number == 25:
                walker.function(value)
            elif number == 20:
                raise MalformedError("is an ONNX file with a graph for training, which nothing here runs")
    if 7 not in seen or 8 not in seen:
        raise MalformedError("is an ONNX file without a graph or without its operator sets")
    walker.check_operators()


class _Walker:
    def __init__(self, scan: ScanState, file: str, folder: Path | None) -> None:
        self._scan, self._file, self._folder = scan, file, folder
        self._count = 0
        self._foreign: dict[tuple[str, str], str] = {}
        self._functions: set[tuple[str, str]] = set()

    def check_operators(self) -> None:
        """Refuse operators of unknown domains that are no functions of the file. That it names a domain says nothing.

        Raises:
            MalformedError: names the domain, the operator and a node.
        """
        for (domain, kind), node in self._foreign.items():
            if (domain, kind) not in self._functions:
                raise MalformedError(
                    f"is an ONNX file with operators of {domain!a}, which would be foreign code: "
                    f"{kind!a} of node {node!a}"
                )

    def graph(self, blob: Blob, deep: int) -> None:
        if deep > _MOST_DEEP:
            raise MalformedError(f"is an ONNX file with graphs in graphs, more than {_MOST_DEEP} deep")
        for number, _, value in _fields(blob):
            if not isinstance(value, Slice):
                continue
            if number == 1:
                self.node(value, deep)
            elif number == 5:
                self.tensor(value)
            elif number == 15:
                self._sparse(value)

    def function(self, blob: Blob) -> None:
        domain = name = ""
        for number, _, value in _fields(blob):
            if isinstance(value, Slice):
                if number == 1:
                    name = _text(value)
                elif number == 7:
                    self.node(value, 1)
                elif number == 10:
                    domain = _text(value)
                elif number == 11:
                    self._attribute(value, 1)
        if domain not in _KNOWN_DOMAINS and len(self._functions) < _MOST_FUNCTIONS:
            self._functions.add((domain, name))

    def node(self, blob: Blob, deep: int) -> None:
        self._tick()
        domain = kind = name = ""
        for number, _, value in _fields(blob):
            if isinstance(value, Slice):
                if number == 3:
                    name = _text(value)
                elif number == 4:
                    kind = _text(value)
                elif number == 5:
                    self._attribute(value, deep)
                elif number == 7:
                    domain = _text(value)
        if domain not in _KNOWN_DOMAINS and len(self._foreign) <= _MOST_FUNCTIONS:
            self._foreign.setdefault((domain, kind), name or kind)

    def tensor(self, blob: Blob) -> None:
        self._tick()
        found = _Tensor()
        for number, wire, value in _fields(blob):
            _note(found, number, wire, value)
        _check_claim(found)
        if found.is_external:
            self._external(found)

    def _attribute(self, blob: Blob, deep: int) -> None:
        for number, _, value in _fields(blob):
            if isinstance(value, Slice):
                if number in (5, 10):
                    self.tensor(value)
                elif number in (6, 11):
                    self.graph(value, deep + 1)
                elif number in (22, 23):
                    self._sparse(value)

    def _sparse(self, blob: Blob) -> None:
        for number, _, value in _fields(blob):
            if number in (1, 2) and isinstance(value, Slice):
                self.tensor(value)

    def _external(self, tensor: _Tensor) -> None:
        location = tensor.external.get("location", "")
        who = f"is an ONNX file whose tensor {tensor.name!a} keeps its data in {location!a}"
        if self._folder is None:
            raise MalformedError(f"{who}, outside of the archive")
        path, mode = self._folder, 0
        for part in location.split("/") if location else [""]:
            try:
                check_part(part)
            except MalformedError as exc:
                raise MalformedError(f"{who}, outside of its folder") from exc
            path = path / part
            try:
                mode = path.lstat().st_mode
            except OSError as exc:
                raise MalformedError(f"{who}, which is missing") from exc
            if stat.S_ISLNK(mode):
                raise MalformedError(f"{who}, which is a link")
        if not stat.S_ISREG(mode) or ":" in location.split("/", 1)[0]:
            raise MalformedError(f"{who}, which is no file")
        try:
            offset = int(tensor.external.get("offset") or 0)
            claimed = _claimed_bytes(tensor)
            length = int(tensor.external.get("length") or claimed)
        except ValueError as exc:
            raise MalformedError(f"{who}, at an unreadable place") from exc
        size = os.lstat(path).st_size
        if offset < 0 or length != claimed or offset + length > size:
            raise MalformedError(f"{who}, {claimed} bytes at {offset}; that file has {size}")
        self._scan.tensor_data.add(path)

    def _tick(self) -> None:
        self._count += 1
        if self._count > self._scan.limits.tensors:
            raise MalformedError(f"is an ONNX file with more than {self._scan.limits.tensors} nodes and tensors")
        if self._count % 256 == 0:
            self._scan.check_time()


def _note(tensor: _Tensor, number: int, wire: int, value: int | Slice) -> None:
    """Take over one field of a tensor."""
    if number == 1:
        tensor.dims += [value] if isinstance(value, int) else list(_varints(value))
        if len(tensor.dims) > 64:
            raise MalformedError("is an ONNX file whose tensor has more than 64 axes")
    elif number == 2 and isinstance(value, int):
        tensor.kind = value
    elif number == 8 and isinstance(value, Slice):
        tensor.name = _text(value)
    elif number == 9 and isinstance(value, Slice):
        tensor.raw = value.size
    elif number == 6:
        tensor.texts += 1
    elif number == 13 and isinstance(value, Slice):
        entry = {key: _text(part) for key, _, part in _fields(value) if isinstance(part, Slice)}
        tensor.external[entry.get(1, "")] = entry.get(2, "")
    elif number == 14 and isinstance(value, int):
        tensor.is_external = value == 1
    elif number in _TYPED:
        tensor.held += value.size // _TYPED[number] if isinstance(value, Slice) else 1


def _check_claim(tensor: _Tensor) -> None:
    """Compare what a tensor claims with what it holds."""
    who = f"is an ONNX file whose tensor {tensor.name!a}"
    if any(not 0 <= size < 1 << 62 for size in tensor.dims):
        raise MalformedError(f"{who} claims a negative size")
    elements = math.prod(tensor.dims)
    if tensor.kind == _TEXT_TYPE:
        if tensor.texts != elements or tensor.is_external:
            raise MalformedError(f"{who} claims {elements} texts and holds {tensor.texts}")
        return
    if tensor.kind not in _BITS:
        raise MalformedError(f"{who} has the unknown type {tensor.kind}")
    claimed = _claimed_bytes(tensor)
    if claimed > _MOST_CLAIMED_BYTES:
        raise MalformedError(f"{who} claims {claimed} bytes")
    if tensor.is_external:
        return
    if tensor.raw is not None and tensor.raw != claimed:
        raise MalformedError(f"{who} claims {claimed} bytes and holds {tensor.raw}")
    # Typed fields pack numbers in one to ten bytes each, and small types several to a number.
    if tensor.raw is None and elements > 8 * tensor.held:
        raise MalformedError(f"{who} claims {elements} elements and holds {tensor.held} bytes of them")


def _claimed_bytes(tensor: _Tensor) -> int:
    return (math.prod(tensor.dims) * _BITS.get(tensor.kind, 0) + 7) // 8


def _fields(blob: Blob) -> Iterator[tuple[int, int, int | Slice]]:
    """Give every field of a protobuf message: its number, its kind, and a number or the place of its bytes."""
    cursor = Cursor(blob)
    while cursor.left:
        key = _varint(cursor)
        number, wire = key >> 3, key & 7
        if number == 0 or number > 1 << 20:
            raise MalformedError(f"is an ONNX file with a broken field at {cursor.position}")
        if wire == 0:
            yield number, wire, _varint(cursor)
        elif wire == 2:
            length = _varint(cursor)
            start = cursor.position
            cursor.skip(length)
            yield number, wire, part_of(blob, start, length)
        elif wire in (1, 5):
            cursor.skip(8 if wire == 1 else 4)
            yield number, wire, 0
        else:
            raise MalformedError(f"is an ONNX file with a broken field at {cursor.position}")


def _varints(blob: Blob) -> Iterator[int]:
    cursor = Cursor(blob)
    while cursor.left:
        yield _varint(cursor)
        if cursor.position > 1024:
            raise MalformedError("is an ONNX file whose tensor has an endless shape")


def _varint(cursor: Cursor) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = cursor.byte()
        if byte < 0:
            raise MalformedError("is an ONNX file that ends too early")
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
    raise MalformedError(f"is an ONNX file with a broken number at {cursor.position}")


def _text(part: Slice) -> str:
    if part.size > _MOST_TEXT:
        raise MalformedError(f"is an ONNX file with a name of {part.size} bytes")
    return part.read(0, part.size).decode("utf-8", "backslashreplace")
