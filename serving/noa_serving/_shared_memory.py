"""Triton's system shared-memory extension: clients on this machine pass tensors in `/dev/shm` instead of the socket.

A region is read and written with `pread` and `pwrite`, never mapped: a client that cuts its file short would kill a
process that has it mapped. What is registered stands in a folder of the server, a file per region, so that all workers
agree. Off unless `serving.shared_memory` is set: whoever may call can then name any object in `/dev/shm` that belongs
to the server's user.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from noa.atomic_write import write_file
from noa.errors import ConflictError, InvalidInputError, NotFoundError
from noa_serving._http import RequestRefusedError
from noa_serving._json_body import JsonObject, json_kind

SHARED_FOLDER = Path("/dev/shm")
MOST_REGIONS = 256

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
_MAX_SIZE = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A part of a region, as a tensor's parameters name it: bytes from `offset` on."""

    region: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Region:
    key: str
    offset: int
    size: int
    stamp: tuple[int, int]
    descriptor: int


class SharedRegions:
    """The regions of one server. `folder` holds what is registered; None: the extension is off."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._open: dict[str, _Region] = {}

    @property
    def is_on(self) -> bool:
        """Whether clients may use it."""
        return self._folder is not None

    def register(self, name: str, *, key: object, offset: object, size: object) -> None:
        """Let requests name `size` bytes at `offset` of the object `key` in `/dev/shm`.

        Raises:
            RequestRefusedError: 403, the extension is off; 429, there are too many regions.
            ConflictError: the name is taken.
            InvalidInputError: a name, size or offset is not allowed, or there is no such object.
        """
        path = self._file(name)
        table = {
            "key": _check_name(_text(key, "key").removeprefix("/"), "key"),
            "offset": _whole(0 if offset is None else offset, "offset"),
            "size": _whole(size, "byte_size"),
        }
        if table["size"] == 0:
            raise InvalidInputError("the region is empty", expected="`byte_size` of at least 1")
        if path.exists():
            raise ConflictError(f"the region `{name}` is registered already", remedy="Unregister it first")
        if len(self._names()) >= MOST_REGIONS:
            raise RequestRefusedError("too many regions", status=429, expected=f"at most {MOST_REGIONS}")
        os.close(_open_object(str(table["key"]), end=int(table["offset"]) + int(table["size"])))
        write_file(path, json.dumps(table), private=True)

    def unregister(self, name: str) -> None:
        """Forget a region, or all of them for an empty name; one that is not there is no error."""
        names = [name] if name else self._names()
        for one in names:
            self._file(one).unlink(missing_ok=True)
            self._close(one)

    def status(self, name: str = "") -> list[JsonObject]:
        """Return the registered regions.

        Raises:
            NotFoundError: there is none of that name.
        """
        if name:
            self._find(name)
        rows: list[JsonObject] = []
        for one in [name] if name else self._names():
            table = json.loads(self._file(one).read_text())
            rows.append({"name": one, "key": table["key"], "offset": table["offset"], "byte_size": table["size"]})
        return rows

    def read(self, part: Slice) -> bytearray:
        """Return a copy of a part.

        Raises:
            NotFoundError: no such region.
            InvalidInputError: the part is outside of it, or its file was cut short.
        """
        region = self._within(part)
        data = bytearray(part.size)
        if os.preadv(region.descriptor, [data], region.offset + part.offset) != part.size:
            raise InvalidInputError(f"the shared memory of region `{part.region}` was cut short")
        return data

    def write(self, part: Slice, array: np.ndarray) -> None:
        """Write an array, in C order, to the begin of a part.

        Raises:
            NotFoundError: no such region.
            InvalidInputError: the array does not fit.
        """
        region = self._within(part)
        if array.nbytes > part.size:
            raise InvalidInputError(
                f"the output does not fit into region `{part.region}`",
                expected=f"at least {array.nbytes} bytes",
                received=f"{part.size} bytes",
            )
        start = region.offset + part.offset
        if os.fstat(region.descriptor).st_size < start + array.nbytes:
            raise InvalidInputError(f"the shared memory of region `{part.region}` was cut short")
        try:
            os.pwrite(region.descriptor, array.tobytes(), start)
        except OSError as exc:
            raise InvalidInputError(f"the shared memory of region `{part.region}` cannot be written") from exc

    def _within(self, part: Slice) -> _Region:
        region = self._find(part.region)
        if part.offset + part.size > region.size:
            raise InvalidInputError(
                f"the tensor is outside of region `{part.region}`",
                expected=f"at most {region.size} bytes",
                received=f"{part.size} bytes from {part.offset} on",
            )
        return region

    def _find(self, name: str) -> _Region:
        path = self._file(name)
        try:
            found = path.stat()
        except FileNotFoundError:
            self._close(name)
            raise NotFoundError(f"no shared-memory region `{name}` is registered") from None
        stamp = (found.st_ino, found.st_mtime_ns)
        region = self._open.get(name)
        if region is None or region.stamp != stamp:
            self._close(name)
            table = json.loads(path.read_text())
            descriptor = _open_object(table["key"], end=table["offset"] + table["size"])
            region = _Region(
                key=table["key"], offset=table["offset"], size=table["size"], stamp=stamp, descriptor=descriptor
            )
            self._open[name] = region
        return region

    def _close(self, name: str) -> None:
        region = self._open.pop(name, None)
        if region is not None:
            os.close(region.descriptor)

    def _names(self) -> list[str]:
        return sorted(path.stem for path in self._require_folder().glob("*.json"))

    def _file(self, name: str) -> Path:
        return self._require_folder() / f"{_check_name(name, 'region name')}.json"

    def _require_folder(self) -> Path:
        if self._folder is None:
            raise RequestRefusedError(
                "shared memory is off on this server",
                status=403,
                remedy="Set `serving.shared_memory = true`; the server must listen on loopback",
            )
        return self._folder


def slice_of(parameters: Mapping[str, object], where: str) -> Slice | None:
    """Return the part of a region that a tensor's parameters name, None if they name none.

    Raises:
        InvalidInputError: they are malformed.
    """
    region = parameters.get("shared_memory_region")
    if region is None:
        return None
    if "binary_data_size" in parameters:
        raise InvalidInputError(f"{where} has both shared memory and `binary_data_size`", expected="one of them")
    return Slice(
        region=_check_name(_text(region, "shared_memory_region"), "region name"),
        offset=_whole(parameters.get("shared_memory_offset", 0), "shared_memory_offset"),
        size=_whole(parameters.get("shared_memory_byte_size"), "shared_memory_byte_size"),
    )


def _open_object(key: str, *, end: int) -> int:
    """Open an object in `/dev/shm` that holds at least `end` bytes and return its descriptor."""
    try:
        descriptor = os.open(SHARED_FOLDER / key, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise InvalidInputError(f"there is no shared memory `{key}` that this server may use") from exc
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_size < end:
        os.close(descriptor)
        raise InvalidInputError(
            f"the shared memory `{key}` is not what was said",
            expected=f"a plain object of the server's user with at least {end} bytes",
            received=f"{found.st_size} bytes" if found.st_uid == os.geteuid() else "another user's",
        )
    return descriptor


def _check_name(name: str, what: str) -> str:
    if not _NAME.fullmatch(name) or name.startswith("sem."):
        raise InvalidInputError(
            f"the {what} is not allowed",
            expected="up to 128 letters, digits, `_`, `.` and `-`, begun by one of the first three",
            received=f"`{name[:80]}`",
        )
    return name


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise InvalidInputError(f"`{what}` is not text", expected="text", received=json_kind(value))
    return value


def _whole(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MAX_SIZE:
        raise InvalidInputError(f"`{what}` is wrong", expected="a number of bytes", received=str(value)[:40])
    return value
