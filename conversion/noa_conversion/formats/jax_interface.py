"""What an exported JAX function says that it takes and gives: without JAX, weights or a run.

`jax.export` serialises a FlatBuffers table. Of it are read the tensors that go in (the weights first, then the inputs)
and come out, each by position, with dtype and sizes. Every offset is followed inside the file's bytes only.

Source: https://flatbuffers.dev/internals; jax/_src/export/serialization.fbs of JAX 0.8 to 0.10: before version 10 each
tensor is written where it is used, since then once, with its number where it is used. A file of a newer version is left
to JAX itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from noa.errors import InvalidInputError
from noa.signatures import Signature, TensorSpec
from noa_conversion.formats.program_differences import check_count, differing_tensor
from noa_conversion.whole_numbers import is_narrowed

_NEWEST: Final = 11
_VERSION, _IN, _OUT, _UNIQUE, _IN_NUMBERS, _OUT_NUMBERS = 0, 3, 5, 19, 22, 23
"""Fields of the table of a function."""
_SHAPE, _DTYPE = 1, 2
"""Fields of the table of a tensor."""
_DTYPES: Final[Mapping[int, str]] = {
    0: "bool",
    1: "int8",
    2: "int16",
    3: "int32",
    4: "int64",
    5: "uint8",
    6: "uint16",
    7: "uint32",
    8: "uint64",
    9: "float16",
    10: "float32",
    11: "float64",
    14: "bfloat16",
}
_MOST_TENSORS: Final = 1_000_000
_MOST_AXES: Final = 64


@dataclass(frozen=True, slots=True)
class _Tensor:
    dtype: str | None
    shape: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.dtype or '?'}({', '.join(self.shape)})"


def check_interface(data: bytes, weights: int, signature: Signature, path: Path) -> None:
    """Compare the program with a signature; it takes as many `weights`, and then the inputs.

    Raises:
        InvalidInputError: another number of tensors, or one has another dtype, rank or size; `facts["field"]` names it.
    """
    try:
        root = _Table.at(data, 0)
        if root.number(_VERSION, "<H") > _NEWEST:
            return
        given = _tensors(root, _IN, _IN_NUMBERS)[weights:]
        made = _tensors(root, _OUT, _OUT_NUMBERS)
    except (struct.error, ValueError, IndexError, UnicodeDecodeError) as exc:
        raise InvalidInputError(f"`{path.name}` is no exported function of JAX: {exc}", where=str(path)) from exc
    for side, found, specs in (("inputs", given, signature.inputs), ("outputs", made, signature.outputs)):
        check_count(path, side, specs, len(found))
        for tensor, spec in zip(found, specs, strict=True):
            _check_tensor(tensor, spec, path)


def _check_tensor(tensor: _Tensor, spec: TensorSpec, path: Path) -> None:
    held = replace(spec, dtype=tensor.dtype) if is_narrowed(spec, tensor.dtype) else spec
    if tensor.dtype not in (None, held.dtype) or tensor.shape != tuple(map(str, spec.shape)):
        raise differing_tensor(path, spec, str(tensor))


def _tensors(root: _Table, field: int, numbers: int) -> list[_Tensor]:
    """Return the tensors of one side; where they are numbered, the numbers are what JAX follows."""
    numbered = [root.number_at(position, "<I") for position in root.vector(numbers, _MOST_TENSORS)]
    if not numbered:
        return [_tensor(root.follow(position)) for position in root.vector(field, _MOST_TENSORS)]
    unique = [_tensor(root.follow(position)) for position in root.vector(_UNIQUE, _MOST_TENSORS)]
    return [unique[number] for number in numbered]


def _tensor(table: _Table) -> _Tensor:
    shape = tuple(table.text_at(position) for position in table.vector(_SHAPE, _MOST_AXES))
    return _Tensor(_DTYPES.get(table.number(_DTYPE, "<b")), shape)


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of FlatBuffers: its fields are found through a second table, which may be shared."""

    data: bytes
    position: int
    vtable: int
    fields: int

    @classmethod
    def at(cls, data: bytes, position: int) -> _Table:
        """Return the table to which the offset at `position` leads."""
        start = position + _read(data, position, "<I")
        vtable = start - _read(data, start, "<i")
        return cls(data, start, vtable, (_read(data, vtable, "<H") - 4) // 2)

    def follow(self, position: int) -> _Table:
        return _Table.at(self.data, position)

    def number(self, field: int, kind: str) -> int:
        """Return a number of the table; what is not written is 0."""
        place = self._place(field)
        return 0 if place is None else _read(self.data, place, kind)

    def number_at(self, position: int, kind: str) -> int:
        return _read(self.data, position, kind)

    def vector(self, field: int, most: int) -> Iterator[int]:
        """Give the position of each element, of four bytes; nothing where the field is not written."""
        place = self._place(field)
        if place is None:
            return
        start = place + _read(self.data, place, "<I")
        count = _read(self.data, start, "<I")
        if count > most:
            raise ValueError(f"{count} elements where {most} are the most")
        yield from range(start + 4, start + 4 + 4 * count, 4)

    def text_at(self, position: int) -> str:
        """Return the text to which the offset at `position` leads, without blanks at its ends."""
        start = position + _read(self.data, position, "<I")
        count = _read(self.data, start, "<I")
        if count > len(self.data) - start - 4:
            raise ValueError("a text goes on behind the end")
        return self.data[start + 4 : start + 4 + count].decode().strip()

    def _place(self, field: int) -> int | None:
        if field >= self.fields:
            return None
        offset = _read(self.data, self.vtable + 4 + 2 * field, "<H")
        return self.position + offset if offset else None


def _read(data: bytes, position: int, kind: str) -> int:
    if position < 0:
        raise ValueError("an offset leads to before the beginning")
    return int(struct.unpack_from(kind, data, position)[0])
