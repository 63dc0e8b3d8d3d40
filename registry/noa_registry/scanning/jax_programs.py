"""What `jax.export` serialises: a FlatBuffers table, one of whose fields is the function as StableHLO byte code.

The table has no file identifier, so it is known by its parts: a root table whose offsets stay inside the file, and a
byte vector of the claimed length that begins like MLIR byte code. Reading it runs nothing; which custom calls a program
may make is checked by who loads it.

Source: https://flatbuffers.dev/internals, "Format components"; MLIR byte code begins with `ML\\xefR`.
"""

from __future__ import annotations

import struct
from typing import Final

from noa_registry.scanning.blobs import Blob

_MLIR: Final = b"ML\xefR"
_SMALLEST_VTABLE: Final = 4
_LARGEST_VTABLE: Final = 256


def is_jax_program(blob: Blob) -> bool:
    """Tell whether a file is an exported JAX function; reads a few hundred bytes of it."""
    try:
        (root,) = struct.unpack("<I", blob.read(0, 4))
        (back,) = struct.unpack("<i", blob.read(root, 4))
        vtable = root - back
        (size,) = struct.unpack("<H", blob.read(vtable, 2))
        if vtable < 0 or size % 2 or not _SMALLEST_VTABLE < size <= _LARGEST_VTABLE:
            return False
        fields = struct.unpack(f"<{(size - 4) // 2}H", blob.read(vtable + 4, size - 4))
        return any(_is_byte_code(blob, root + field) for field in fields if field)
    except (struct.error, ValueError, OSError):
        return False


def _is_byte_code(blob: Blob, position: int) -> bool:
    """Tell whether the field at `position` is an offset to a vector of MLIR byte code that lies within the file."""
    raw = blob.read(position, 4)
    if len(raw) < 4:
        return False
    start = position + int.from_bytes(raw, "little")
    head = blob.read(start, 4 + len(_MLIR))
    if len(head) < 4 + len(_MLIR):
        return False
    return head[4:] == _MLIR and start + 4 + int.from_bytes(head[:4], "little") <= blob.size
