"""Bytes that are looked at in pieces: a file, a part of one, or what an entry of an archive unpacks to.

Nothing here reads more than it is asked for, and everything that reads by a claimed length compares it first with what
is really there.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

_BUFFER_BYTES = 1 << 16


class MalformedError(Exception):
    """A file is not what its beginning says. Its text continues a sentence: `FILE ...`."""


class Blob(Protocol):
    """Bytes with a known size."""

    @property
    def size(self) -> int:
        """How many bytes there are."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Return at most `length` bytes from `offset`; fewer only at the end."""
        ...


class FileBlob:
    """A regular file, opened so that neither a link is followed nor a pipe or device can block."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(self._handle)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._handle)
            raise MalformedError("is no regular file")
        self._size = status.st_size

    @property
    def size(self) -> int:
        """Size of the file when it was opened."""
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the file."""
        return os.pread(self._handle, max(0, min(length, self._size - offset)), offset)

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of another blob; it ends where the other ends, whatever was claimed."""

    whole: Blob
    start: int
    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the part."""
        return self.whole.read(self.start + offset, max(0, min(length, self.size - offset)))


def part_of(blob: Blob, start: int, size: int) -> Slice:
    """Return a part of `blob`; a part of a part is a part of the whole, so that reading stays direct."""
    if isinstance(blob, Slice):
        return Slice(blob.whole, blob.start + start, min(size, blob.size - start))
    return Slice(blob, start, min(size, blob.size - start))


class Unpacked:
    """What a compressed entry became, in a temporary file that has no name once it is large."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of what was unpacked."""
        self._file.seek(offset)
        return self._file.read(max(0, min(length, self.size - offset)))


class Cursor:
    """Reads a blob from front to back, buffered."""

    __slots__ = ("_at", "_blob", "_buffer", "_start")

    def __init__(self, blob: Blob, position: int = 0) -> None:
        self._blob = blob
        self._buffer = b""
        self._start = position
        self._at = 0

    @property
    def position(self) -> int:
        """Offset of the next byte."""
        return self._start + self._at

    @property
    def left(self) -> int:
        """How many bytes there are from here."""
        return self._blob.size - self.position

    def byte(self) -> int:
        """Return the next byte, -1 at the end."""
        if self._at >= len(self._buffer):
            self._fill(_BUFFER_BYTES)
            if not self._buffer:
                return -1
        value = self._buffer[self._at]
        self._at += 1
        return value

    def take(self, length: int) -> bytes:
        """Return exactly `length` bytes; for small lengths only.

        Raises:
            MalformedError: there are fewer.
        """
        if length < 0 or length > self.left:
            raise MalformedError(f"ends too early: {length} bytes are claimed at {self.position}, {self.left} are left")
        if self._at + length > len(self._buffer):
            self._fill(max(length, _BUFFER_BYTES))
        data = self._buffer[self._at : self._at + length]
        if len(data) != length:
            raise MalformedError(f"ends too early, at {self.position}")
        self._at += length
        return data

    def skip(self, length: int) -> None:
        """Go on by `length` bytes without reading them.

        Raises:
            MalformedError: there are fewer.
        """
        if length < 0 or length > self.left:
            raise MalformedError(f"ends too early: {length} bytes are claimed at {self.position}, {self.left} are left")
        if self._at + length <= len(self._buffer):
            self._at += length
        else:
            self._start, self._at, self._buffer = self.position + length, 0, b""

    def line(self, limit: int) -> bytes:
        """Return the bytes up to the next newline, without it.

        Raises:
            MalformedError: there is none within `limit` bytes.
        """
        while True:
            end = self._buffer.find(b"\n", self._at)
            if end >= 0:
                data = self._buffer[self._at : end]
                self._at = end + 1
                return data
            held = len(self._buffer) - self._at
            if held > limit or held >= self.left:
                raise MalformedError(f"has a line without an end at {self.position}")
            self._fill(max(2 * held, _BUFFER_BYTES))

    def _fill(self, length: int) -> None:
        self._start, self._at = self.position, 0
        self._buffer = self._blob.read(self._start, length)
