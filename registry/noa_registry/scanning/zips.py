"""Zip files, read by their directory and checked against what is really there.

The directory is bounded before it is read, and each entry must lie where it says, alone, under the same name in both
places. Stored entries are looked at where they are; compressed ones are unpacked within bounds, to a temporary file
that has no name. Nothing is ever written under a name from the archive.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass

from noa_registry.scanning.blobs import Blob, MalformedError, Slice
from noa_registry.scanning.limits import ScanLimits
from noa_registry.scanning.state import check_part, same_name

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MOST_COMMENT = 1 << 16
_FULL32, _FULL16 = 0xFFFFFFFF, 0xFFFF
STORED, DEFLATED = 0, 8
_DESCRIPTOR_BYTES = 24  # sizes and checksum once more, behind an entry that was written as a stream


@dataclass(frozen=True, slots=True, kw_only=True)
class ZipEntry:
    """One entry. `data` are its bytes as they are stored; `size` is what it claims to unpack to."""

    name: str
    method: int
    size: int
    checksum: int
    data: Slice


def find_zip_end(blob: Blob) -> int | None:
    """Return where the end record of a zip file is, None if the bytes do not end like one."""
    length = min(blob.size, _END.size + _MOST_COMMENT)
    tail = blob.read(blob.size - length, length)
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0:
        if len(tail) - at >= _END.size:
            (comment,) = struct.unpack_from("<H", tail, at + 20)
            if at + _END.size + comment == len(tail):
                return blob.size - length + at
        at = tail.rfind(b"PK\x05\x06", 0, at)
    return None


def read_zip(blob: Blob, limits: ScanLimits) -> list[ZipEntry]:
    """Return all entries that are files.

    Raises:
        MalformedError: the archive is broken, or built to mean different things to different readers.
    """
    end = find_zip_end(blob)
    if end is None:
        raise MalformedError("is a zip file without an end, so it is cut off or no zip file")
    count, size, start, limit = _directory(blob, end)
    if size > limits.directory_bytes or count > limits.files:
        raise MalformedError(f"is a zip file that claims {count} entries in a list of {size} bytes")
    if start + size != limit:
        raise MalformedError(
            "is a zip file with something between its list of entries and its end, or before its start"
        )
    entries, at, directory = list[ZipEntry](), 0, blob.read(start, size)
    spans: list[tuple[int, int, str]] = []
    names: dict[str, str] = {}
    while at < size:
        entry, header, length = _entry(blob, directory, at, start)
        at += length
        _check_name(entry.name, names)
        spans.append((header, entry.data.start + entry.data.size, entry.name))
        if not entry.name.endswith("/"):
            entries.append(entry)
        elif entry.data.size:
            raise MalformedError(f"is a zip file whose folder {entry.name!a} holds bytes")
    if len(spans) != count:
        raise MalformedError(f"is a zip file that claims {count} entries and lists {len(spans)}")
    _check_spans(spans)
    return entries


def _directory(blob: Blob, end: int) -> tuple[int, int, int, int]:
    """Return count, size and start of the list of entries, and where it must end."""
    _, disk, first_disk, on_disk, count, size, start, _ = _END.unpack(blob.read(end, _END.size))
    limit = end
    locator = blob.read(end - _LOCATOR.size, _LOCATOR.size) if end >= _LOCATOR.size else b""
    if locator.startswith(b"PK\x06\x07"):
        _, _, place, disks = _LOCATOR.unpack(locator)
        record = blob.read(place, _END64.size)
        if len(record) < _END64.size or record[:4] != b"PK\x06\x06" or disks > 1 or place + 12 > end:
            raise MalformedError("is a zip file with a broken end")
        _, length, _, _, disk, first_disk, on_disk, count, size, start = _END64.unpack(record)
        if place + 12 + length != end - _LOCATOR.size:
            raise MalformedError("is a zip file with a broken end")
        limit = place
    if disk or first_disk or on_disk != count:
        raise MalformedError("is a part of a zip file on several disks")
    if start + size > limit:
        raise MalformedError("is a zip file whose list of entries lies outside of it")
    return count, size, start, limit


def _entry(blob: Blob, directory: bytes, at: int, directory_start: int) -> tuple[ZipEntry, int, int]:
    """Return the entry at `at` of the directory, where its header is, and how long its row is."""
    if len(directory) - at < _CENTRAL.size or directory[at : at + 4] != b"PK\x01\x02":
        raise MalformedError("is a zip file with a broken list of entries")
    row = _CENTRAL.unpack_from(directory, at)
    _, _, _, flags, method, _, _, checksum, packed, size, name_length, extra_length, comment_length = row[:13]
    attributes, header = row[15], row[16]
    name_start = at + _CENTRAL.size
    raw_name = directory[name_start : name_start + name_length]
    extra = directory[name_start + name_length : name_start + name_length + extra_length]
    length = _CENTRAL.size + name_length + extra_length + comment_length
    size, packed, header = _wide(extra, size, packed, header)
    try:
        name = raw_name.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise MalformedError(f"is a zip file with a name that is no text: {raw_name[:80]!r}") from exc
    if flags & 0x2041:
        raise MalformedError(f"is a zip file whose entry {name!a} is encrypted")
    if method not in (STORED, DEFLATED):
        raise MalformedError(f"is a zip file whose entry {name!a} is packed in a way that is not looked into")
    kind = stat.S_IFMT(attributes >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise MalformedError(f"is a zip file whose entry {name!a} is a link or special file")
    local = blob.read(header, _LOCAL.size)
    if len(local) < _LOCAL.size or local[:4] != b"PK\x03\x04":
        raise MalformedError(f"is a zip file whose entry {name!a} is not where the list says")
    _, _, local_flags, local_method, _, _, _, _, _, local_name_length, local_extra_length = _LOCAL.unpack(local)
    data = header + _LOCAL.size + local_name_length + local_extra_length
    if blob.read(header + _LOCAL.size, local_name_length) != raw_name or local_method != method or local_flags & 0x2041:
        raise MalformedError(f"is a zip file that names the entry {name!a} differently in its two places")
    if data + packed > directory_start or (method == STORED and packed != size):
        raise MalformedError(f"is a zip file whose entry {name!a} claims {size} bytes that are not there")
    entry = ZipEntry(name=name, method=method, size=size, checksum=checksum, data=Slice(blob, data, packed))
    return entry, header, length


def _wide(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """Return the sizes and the place of an entry, from its 64-bit fields where the short ones are full."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            values = list(struct.unpack_from(f"<{min(length, len(extra) - at - 4) // 8}Q", extra, at + 4))
            try:
                size = values.pop(0) if size == _FULL32 else size
                packed = values.pop(0) if packed == _FULL32 else packed
                header = values.pop(0) if header == _FULL32 else header
            except IndexError as exc:
                raise MalformedError("is a zip file with broken sizes") from exc
        at += 4 + length
    return size, packed, header


def _check_name(name: str, names: dict[str, str]) -> None:
    if name.startswith("/") or len(name) > 1024:
        raise MalformedError(f"is a zip file with the absolute or endless name {name[:80]!a}")
    parts = name.removesuffix("/").split("/")
    if ":" in parts[0]:
        raise MalformedError(f"is a zip file with the name {name!a}, which begins with a drive")
    for part in parts:
        try:
            check_part(part)
        except MalformedError as exc:
            raise MalformedError(f"is a zip file with an entry that {exc}") from exc
    if (other := names.setdefault(same_name(name), name)) is not name:
        raise MalformedError(f"is a zip file with two entries of one name: {other!a} and {name!a}")


def _check_spans(spans: list[tuple[int, int, str]]) -> None:
    """Check that the entries lie one behind the other from the start, with no room for what no list names."""
    end, before = 0, ""
    for start, stop, name in sorted(spans):
        if start < end:
            raise MalformedError(f"is a zip file whose entries {before!a} and {name!a} lie over each other")
        if start > end + _DESCRIPTOR_BYTES or (not before and start):
            raise MalformedError(f"is a zip file with {start - end} bytes before {name!a} that its list does not name")
        end, before = stop, name
