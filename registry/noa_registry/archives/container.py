"""The container of an archive: an uncompressed tar file that has exactly one form for the same members.

The first member, `INDEX.json`, lists all others with size and SHA-256 in their order, which is that of their names.
Every header is the one that noa writes (owner 0, mode 0644, time 0, plain file), so reading needs no parser: the bytes
at each place must be the header that belongs there. A link, a path out of the folder, a size that lies, a member too
many, too few or twice cannot be written down in this form. `tar tf FILE` lists an archive for people.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

from noa.digests import FileDigest, canonical_json, digest_json, sha256_bytes
from noa.errors import IntegrityError, InvalidInputError

FORMAT: Final = "noa-archive"
FORMAT_VERSION: Final = 1
INDEX_FILE: Final = "INDEX.json"
MAX_INDEX_BYTES: Final = 8 << 20
_BLOCK: Final = 512
_END_BYTES: Final = 2 * _BLOCK
_CHUNK: Final = 1 << 20
_MAX_PATH: Final = 99  # what one header holds
OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """What an archive holds. `head` says what it is an archive of; `digest` names all of its content."""

    head: Mapping[str, object]
    members: tuple[FileDigest, ...]

    @property
    def digest(self) -> str:
        """The digest of head and members: of everything, for each member's digest is in it."""
        return digest_json([dict(self.head), [asdict(member) for member in self.members]])

    @property
    def size_bytes(self) -> int:
        """Size of the whole file."""
        index = self.to_json()
        return _padded(len(index)) + sum(_padded(member.size_bytes) for member in self.members) + _END_BYTES

    def to_json(self) -> bytes:
        """Return the bytes of `INDEX.json`."""
        return canonical_json(
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "head": dict(self.head),
                "members": [asdict(member) for member in self.members],
                "digest": self.digest,
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A member to write: `open` gives its bytes, which must be those that `file` names."""

    file: FileDigest
    open: Callable[[], IO[bytes]]


def write_container(target: IO[bytes], head: Mapping[str, object], members: Iterable[Member], tell: OnBytes) -> Index:
    """Write an archive; `tell` gets the number of bytes written each time.

    Raises:
        IntegrityError: a member's bytes are not what its digest names; what was written is worth nothing.
    """
    ordered = sorted(members, key=lambda member: member.file.path)
    index = Index(head=head, members=tuple(member.file for member in ordered))
    text = index.to_json()
    if len(text) > MAX_INDEX_BYTES:
        raise InvalidInputError("the version has too many files for an archive", received=f"{len(ordered)} files")
    target.write(_header(INDEX_FILE, len(text)) + text + _padding(len(text)))
    tell(_padded(len(text)))
    for member in ordered:
        _write_member(target, member, tell)
    target.write(bytes(_END_BYTES))
    tell(_END_BYTES)
    return index


def read_index(source: IO[bytes], where: str) -> Index:
    """Read the index at the beginning of an archive and check that the file has the size that it says.

    Raises:
        InvalidInputError: this is no archive of noa, or one of a newer noa.
        IntegrityError: it is damaged, cut off, or longer than it should be.
    """
    header = source.read(_BLOCK)
    length = _size_in(header)
    if length is None or header != _header(INDEX_FILE, length):
        raise InvalidInputError(
            "this is no archive of noa", where=where, expected=f"a file that begins with `{INDEX_FILE}`"
        )
    if length > MAX_INDEX_BYTES:
        raise _damaged(where, f"its index claims {length} bytes", INDEX_FILE)
    text = _take(source, length, where, INDEX_FILE)
    _take_padding(source, length, where, INDEX_FILE)
    index = _parse_index(text, where)
    found = os.fstat(source.fileno()).st_size
    if found != index.size_bytes:
        what = "it is cut off" if found < index.size_bytes else "something was added at its end"
        raise _damaged(where, f"{what}: {found} bytes instead of {index.size_bytes}", INDEX_FILE)
    return index


def iterate_members(source: IO[bytes], index: Index, where: str) -> Iterator[tuple[FileDigest, Iterator[bytes]]]:
    """Give each member with its bytes in pieces, which must be read to their end before the next.

    `source` stands behind the index. A member's digest is checked at the end of its bytes.

    Raises:
        IntegrityError: the archive is damaged; names the member.
    """
    for member in index.members:
        if source.read(_BLOCK) != _header(member.path, member.size_bytes):
            raise _damaged(where, f"the header of `{member.path}` is not what belongs there", member.path)
        yield member, _pieces(source, member, where)
        _take_padding(source, member.size_bytes, where, member.path)
    if any(source.read(_END_BYTES)) or source.read(1):
        raise _damaged(where, "it does not end where its index says", INDEX_FILE)


def bytes_member(path: str, content: bytes) -> Member:
    """Return a member whose bytes are at hand."""
    from io import BytesIO

    file = FileDigest(path=path, size_bytes=len(content), digest=sha256_bytes(content))
    return Member(file=file, open=lambda: BytesIO(content))


def file_member(path: str, file: FileDigest, place: Path) -> Member:
    """Return a member, called `path`, of the bytes that `file` names and that are at `place`."""
    renamed = FileDigest(path=path, size_bytes=file.size_bytes, digest=file.digest)
    return Member(file=renamed, open=lambda: place.open("rb", buffering=0))


def _write_member(target: IO[bytes], member: Member, tell: OnBytes) -> None:
    file = member.file
    target.write(_header(file.path, file.size_bytes))
    hasher, size = hashlib.sha256(), 0
    with member.open() as source:
        while piece := source.read(_CHUNK):
            size += len(piece)
            if size > file.size_bytes:
                break
            hasher.update(piece)
            target.write(piece)
            tell(len(piece))
    if size != file.size_bytes or "sha256:" + hasher.hexdigest() != file.digest:
        raise IntegrityError(
            f"`{file.path}` changed while it was read",
            expected=f"{file.size_bytes} bytes, {file.digest}",
            received=f"{size} bytes, sha256:{hasher.hexdigest()}",
            file=file.path,
        )
    target.write(_padding(size))
    tell(_BLOCK + len(_padding(size)))


def _pieces(source: IO[bytes], member: FileDigest, where: str) -> Iterator[bytes]:
    hasher, left = hashlib.sha256(), member.size_bytes
    while left:
        piece = source.read(min(left, _CHUNK))
        if not piece:
            raise _damaged(where, f"it is cut off in `{member.path}`", member.path)
        hasher.update(piece)
        left -= len(piece)
        yield piece
    if "sha256:" + hasher.hexdigest() != member.digest:
        raise _damaged(where, f"`{member.path}` is not what the index names", member.path)


def _parse_index(text: bytes, where: str) -> Index:
    try:
        values = cast("dict[str, Any]", json.loads(text))
        kind, number = values["format"], values["format_version"]
        if kind == FORMAT and type(number) is int and number > FORMAT_VERSION:
            raise InvalidInputError(
                "the archive was written by a newer noa",
                where=where,
                expected=f"format version {FORMAT_VERSION} or older",
                received=f"format version {number}",
                remedy="Install the newer noa: pip install --upgrade noa",
            )
        if kind != FORMAT or number != FORMAT_VERSION:
            raise ValueError(f"format {kind!r} {number!r}")
        members = tuple(_member(row) for row in values["members"])
        index = Index(head=cast("dict[str, object]", values["head"]), members=members)
        if index.to_json() != text:
            raise ValueError("its digest is another")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise _damaged(where, f"its index is not readable: {str(exc)[:80]}", INDEX_FILE) from exc
    _check_paths(members, where)
    return index


def _member(row: Mapping[str, Any]) -> FileDigest:
    path, size, digest = row["path"], row["size_bytes"], row["digest"]
    if not isinstance(path, str) or type(size) is not int or not 0 <= size < 1 << 60 or not isinstance(digest, str):
        raise ValueError("a member is malformed")
    return FileDigest(path=path, size_bytes=size, digest=digest)


def _check_paths(members: Sequence[FileDigest], where: str) -> None:
    paths = [member.path for member in members]
    if paths != sorted(set(paths)):
        raise _damaged(where, "its members are not in order, or one is there twice", INDEX_FILE)
    for path in paths:
        parts = path.split("/")
        if not path.isascii() or not path.isprintable() or len(path) > _MAX_PATH or {"", ".", ".."} & set(parts):
            raise _damaged(where, f"a member has an impossible name: {ascii(path)[:80]}", INDEX_FILE)


def _header(path: str, size: int) -> bytes:
    info = tarfile.TarInfo(path)
    info.size = size
    info.mode, info.mtime, info.uid, info.gid, info.uname, info.gname = 0o644, 0, 0, 0, "", ""
    # GNU's form holds sizes over 8 GiB in the header itself.
    return info.tobuf(format=tarfile.GNU_FORMAT, encoding="ascii", errors="strict")


def _size_in(header: bytes) -> int | None:
    """Return the size that a header claims, None if it is none of ours; the rest of it is compared as a whole."""
    digits = header[124:135]
    if len(header) != _BLOCK or not digits.isdigit():
        return None
    try:
        return int(digits, 8)
    except ValueError:
        return None


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _padded(size: int) -> int:
    return _BLOCK + size + len(_padding(size))


def _take(source: IO[bytes], size: int, where: str, path: str) -> bytes:
    data = source.read(size)
    if len(data) != size:
        raise _damaged(where, f"it is cut off in `{path}`", path)
    return data


def _take_padding(source: IO[bytes], size: int, where: str, path: str) -> None:
    expected = _padding(size)
    if source.read(len(expected)) != expected:
        raise _damaged(where, f"there is something between `{path}` and the next member", path)


def _damaged(where: str, what: str, path: str) -> IntegrityError:
    return IntegrityError(
        f"the archive is damaged: {what}",
        where=where,
        remedy="Copy it again from where it was made; nothing was imported",
        file=path,
    )
