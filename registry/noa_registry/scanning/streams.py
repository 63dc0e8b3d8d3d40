"""Unpacking within bounds: never more than was claimed, allowed, or than a compressed byte honestly becomes."""

from __future__ import annotations

import bz2
import lzma
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import IO, Protocol

from noa_registry.scanning.blobs import Blob, MalformedError, Unpacked
from noa_registry.scanning.state import ScanState

_STEP_BYTES = 1 << 16
_IN_MEMORY_BYTES = 4 << 20
_LZMA_BYTES = 96 << 20


class _Decompressor(Protocol):
    """What the decompressors of the standard library have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def unpack(
    scan: ScanState, blob: Blob, kind: str, *, claimed: int | None = None, checksum: int | None = None
) -> AbstractContextManager[Unpacked]:
    """Unpack `blob` (`deflate`, `zlib`, `gzip`, `bz2` or `xz`); the result lives as long as the `with` block.

    Raises:
        MalformedError: it is broken, a bomb, or not what was claimed.
        OverLimitError: the scan has unpacked enough.
    """
    return _Unpacking(scan, blob, kind, claimed, checksum)


class _Unpacking:
    def __init__(self, scan: ScanState, blob: Blob, kind: str, claimed: int | None, checksum: int | None) -> None:
        self._scan, self._blob, self._kind = scan, blob, kind
        self._claimed, self._checksum = claimed, checksum
        # The block of `unpack` closes it; its end is the end of the bytes.
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115

    def __enter__(self) -> Unpacked:
        size, crc = 0, 0
        try:
            for piece, consumed in _pieces(self._blob, self._kind):
                size += len(piece)
                crc = zlib.crc32(piece, crc)
                self._check(size, consumed)
                self._scan.spend_unpacked(len(piece))
                self._file.write(piece)
            if self._claimed not in (None, size) or self._checksum not in (None, crc):
                raise MalformedError(f"unpacks to {size} bytes that are not what it claims")
        except BaseException:
            self._file.close()
            raise
        return Unpacked(self._file, size)

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def _check(self, size: int, consumed: int) -> None:
        limits = self._scan.limits
        if self._claimed is not None and size > self._claimed:
            raise MalformedError(f"unpacks to more than the {self._claimed} bytes it claims")
        if size > limits.ratio_from_bytes and size > limits.ratio * max(consumed, 1):
            raise MalformedError(f"is a bomb: {consumed} bytes unpack to {size} and more")


def _pieces(blob: Blob, kind: str) -> Iterator[tuple[bytes, int]]:
    """Give what comes out in small pieces, with the number of bytes that went in so far."""
    offset, pending, worker = 0, b"", _decompressor(kind)
    while True:
        if not pending and getattr(worker, "needs_input", True):
            pending = blob.read(offset, _STEP_BYTES)
            offset += len(pending)
        is_last = not pending
        try:
            piece, pending = _step(worker, pending)
        except (zlib.error, OSError, lzma.LZMAError, EOFError, ValueError) as exc:
            raise MalformedError(f"is broken: {exc}") from exc
        yield piece, offset - len(pending)
        if worker.eof:
            pending = worker.unused_data + pending
            if not pending and offset >= blob.size:
                return
            if kind not in ("gzip", "bz2", "xz"):
                raise MalformedError("holds bytes behind its end")
            worker = _decompressor(kind)  # these may follow one another
        elif is_last and not piece:
            raise MalformedError("is cut off")


def _step(worker: _Decompressor, data: bytes) -> tuple[bytes, bytes]:
    """Return at most one step of output, and the input that was not taken."""
    piece = worker.decompress(data, _STEP_BYTES)
    return piece, getattr(worker, "unconsumed_tail", b"")


def _decompressor(kind: str) -> _Decompressor:
    if kind == "bz2":
        return bz2.BZ2Decompressor()
    if kind == "xz":
        return lzma.LZMADecompressor(memlimit=_LZMA_BYTES)
    return zlib.decompressobj({"deflate": -15, "zlib": 15, "gzip": 31}[kind])
