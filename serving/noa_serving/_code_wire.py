"""What a worker and the process of a model that runs its own code say to each other, over one socket.

A frame is a kind, a length and so many bytes: tensors as safetensors, or a text. Nothing else is read from that
process, and nothing longer than was agreed, so that its code can hand the worker no object and no flood.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

import numpy as np

Kind: TypeAlias = Literal[b"r", b"o", b"e", b"k"]
READY: Final[Kind] = b"k"
INPUTS: Final[Kind] = b"r"
OUTPUTS: Final[Kind] = b"o"
ERROR: Final[Kind] = b"e"
MOST_TEXT_BYTES: Final = 4096

_HEAD: Final = struct.Struct("<cQ")
_PIECE: Final = 1 << 20


class WireError(Exception):
    """The other side is gone, is late (`is_late`), or does not keep to the rules."""

    def __init__(self, what: str, *, is_late: bool = False) -> None:
        super().__init__(what)
        self.is_late = is_late


def send(wire: socket.socket, kind: Kind, payload: bytes, *, deadline: float | None = None) -> None:
    """Send a frame by the deadline, on the monotonic clock.

    Raises:
        WireError: it could not be sent.
    """
    try:
        for part in (_HEAD.pack(kind, len(payload)), payload):
            _limit(wire, deadline)
            wire.sendall(part)
    except TimeoutError as exc:
        raise WireError("it did not read its inputs in time", is_late=True) from exc
    except OSError as exc:
        raise WireError("it ended") from exc


def receive(wire: socket.socket, *, most_bytes: int, deadline: float | None = None) -> tuple[Kind, bytes]:
    """Return the next frame; one that is longer than `most_bytes` is refused before any of it is read.

    Raises:
        WireError: there is none by the deadline, or never will be, or it is too long.
    """
    kind, length = _HEAD.unpack(_read(wire, _HEAD.size, deadline))
    if kind not in (READY, INPUTS, OUTPUTS, ERROR):
        raise WireError("it sent something else than an answer")
    if length > (MOST_TEXT_BYTES if kind in (READY, ERROR) else most_bytes):
        raise WireError(f"its answer of {length} bytes is larger than the {most_bytes} that are allowed")
    return kind, bytes(_read(wire, length, deadline))


def pack(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Return tensors as bytes."""
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()})


def unpack(payload: bytes) -> dict[str, np.ndarray]:
    """Return the tensors in bytes.

    Raises:
        WireError: they are not whole.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(payload)
    except (SafetensorError, ValueError, KeyError, TypeError) as exc:
        raise WireError("it sent something else than tensors") from exc


def _read(wire: socket.socket, size: int, deadline: float | None) -> bytearray:
    """Read so many bytes; room is made as they come, not as they are announced."""
    data = bytearray()
    try:
        while len(data) < size:
            _limit(wire, deadline)
            piece = wire.recv(min(size - len(data), _PIECE))
            if not piece:
                raise WireError("it ended")
            data += piece
    except TimeoutError as exc:
        raise WireError("it did not answer in time", is_late=True) from exc
    except OSError as exc:
        raise WireError("it ended") from exc
    return data


def _limit(wire: socket.socket, deadline: float | None) -> None:
    if deadline is None:
        wire.settimeout(None)
        return
    left_s = deadline - time.monotonic()
    if left_s <= 0.0:
        raise TimeoutError
    wire.settimeout(left_s)
