"""Tar files, read header by header. Only plain files and folders may be in them."""

from __future__ import annotations

from collections.abc import Iterator

from noa_registry.scanning.blobs import Blob, MalformedError, Slice
from noa_registry.scanning.limits import ScanLimits
from noa_registry.scanning.state import check_part, same_name

_BLOCK = 512
_MOST_HEADER_BYTES = 64 << 10
_FILES, _FOLDER = (b"0", b"\0", b"7"), b"5"
_LONG_NAME, _PAX = b"L", (b"x", b"g")


def is_tar(head: bytes) -> bool:
    """Tell whether bytes begin with the header of a tar file: its checksum is right."""
    if len(head) < _BLOCK or not any(head[:100]):
        return False
    try:
        expected = _number(head[148:156])
    except MalformedError:
        return False
    return expected == sum(head[:148]) + 8 * 32 + sum(head[156:_BLOCK])


def read_tar(blob: Blob, limits: ScanLimits) -> Iterator[tuple[str, Slice]]:
    """Give all files with their bytes.

    Raises:
        MalformedError: the archive is broken, or holds a link, a device, a name that leads elsewhere or twice the same.
    """
    at, count, long_name = 0, 0, None
    names: set[str] = set()
    while True:
        header = blob.read(at, _BLOCK)
        if len(header) < _BLOCK:
            raise MalformedError("is a tar file that is cut off")
        if not any(header):
            return
        if not is_tar(header):
            raise MalformedError(f"is a tar file with a broken header at {at}")
        size, kind = _number(header[124:136]), header[156:157]
        if at + _BLOCK + size > blob.size:
            raise MalformedError(f"is a tar file that claims {size} bytes at {at}, more than it has")
        count += 1
        if count > limits.files:
            raise MalformedError(f"is a tar file with more than {limits.files} entries")
        data = Slice(blob, at + _BLOCK, size)
        at += _BLOCK + (size + _BLOCK - 1) // _BLOCK * _BLOCK
        if kind in (_LONG_NAME, *_PAX):
            long_name = _special_name(kind, data) or long_name
            continue
        name, long_name = long_name or _name(header), None
        _check(name, kind, names)
        if kind in _FILES:
            yield name, data


def _check(name: str, kind: bytes, names: set[str]) -> None:
    if kind not in (*_FILES, _FOLDER):
        raise MalformedError(f"is a tar file whose entry {name!a} is a link or special file")
    if name.startswith("/"):
        raise MalformedError(f"is a tar file with the absolute name {name!a}")
    parts = [part for part in name.rstrip("/").split("/") if part != "."]
    for part in parts:
        try:
            check_part(part)
        except MalformedError as exc:
            raise MalformedError(f"is a tar file with an entry that {exc}") from exc
    same = same_name("/".join(parts))
    if parts and same in names:
        raise MalformedError(f"is a tar file with two entries of one name: {name!a}")
    names.add(same)


def _special_name(kind: bytes, data: Slice) -> str | None:
    """Return the name in a header that only carries one."""
    if data.size > _MOST_HEADER_BYTES:
        raise MalformedError("is a tar file with an endless header")
    text = data.read(0, data.size)
    if kind == _LONG_NAME:
        return text.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    for record in text.split(b"\n"):
        _, _, pair = record.partition(b" ")
        key, _, value = pair.partition(b"=")
        if key in (b"size", b"linkpath", b"GNU.sparse.name", b"GNU.sparse.major"):
            raise MalformedError(f"is a tar file whose header sets `{key.decode()}` in a second place")
        if key == b"path":
            return value.decode("utf-8", "surrogateescape")
    return None


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    prefix = header[345:500].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    return f"{prefix}/{name}" if header[257:262] == b"ustar" and prefix else name


def _number(field: bytes) -> int:
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    text = field.strip(b" \0")
    try:
        return int(text, 8) if text else 0
    except ValueError as exc:
        raise MalformedError("is a tar file with a broken number") from exc
