"""Digests: names for bytes.

A file's digest is the SHA-256 of its bytes; a folder's is the SHA-256 of its canonical manifest (sorted paths, sizes,
file digests), so the same bytes have the same name on any machine. Digests are written `sha256:<64 hex digits>`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, cast

from noa.errors import IntegrityError, InvalidInputError

if TYPE_CHECKING:
    import numpy as np

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest:
    """One file of a manifest. `path` is relative to the folder, with forward slashes."""

    path: str
    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All files of a folder, sorted by path; `digest` names the folder's bytes for good."""

    files: tuple[FileDigest, ...]
    digest: str

    @property
    def size_bytes(self) -> int:
        """Sum of the sizes of all files."""
        return sum(file.size_bytes for file in self.files)

    def to_json(self) -> str:
        """Return the canonical JSON text whose SHA-256 is `digest`."""
        return canonical_json([asdict(file) for file in self.files]).decode()

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Parse what `to_json` wrote.

        Raises:
            IntegrityError: the text is not a manifest, or names a file outside the folder.
        """
        try:
            rows = cast("list[dict[str, object]]", json.loads(text))
            files = tuple(_file_from_row(row) for row in rows)
        except (ValueError, KeyError, TypeError) as exc:
            raise IntegrityError("a manifest is not readable", received=text[:80]) from exc
        return _manifest_of(files)


def sha256_bytes(data: bytes) -> str:
    """Return `sha256:...` of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return `sha256:...` of the file's bytes, streamed."""
    hasher = hashlib.sha256()
    buffer = bytearray(_BLOCK_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(view[:count])
    return "sha256:" + hasher.hexdigest()


def canonical_json(value: object) -> bytes:
    """Return JSON with sorted keys and no spaces. Refuses NaN and infinities: they are not JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_json(value: object) -> str:
    """Return the digest of the canonical JSON of `value`."""
    return sha256_bytes(canonical_json(value))


def digest_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """Return one digest of named arrays: names, dtypes, shapes and values (C order, little-endian)."""
    import numpy as np

    hasher = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        if array.dtype.hasobject:
            raise InvalidInputError(f"array `{name}` holds Python objects", expected="numbers, booleans or fixed text")
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        hasher.update(canonical_json([name, array.dtype.str, list(array.shape)]))
        hasher.update(array.reshape(-1).view(np.uint8).data if array.size else b"")
    return "sha256:" + hasher.hexdigest()


def build_manifest(folder: Path) -> Manifest:
    """Hash every file below `folder`.

    Raises:
        IntegrityError: the folder holds a symbolic link or another special file.
    """
    return _manifest_of(
        tuple(
            FileDigest(path=relative, size_bytes=path.stat().st_size, digest=sha256_file(path))
            for relative, path in _regular_files(folder)
        )
    )


def verify_folder(folder: Path, manifest: Manifest) -> None:
    """Re-hash `folder` and compare it with `manifest`.

    Raises:
        IntegrityError: a file differs, is missing or is extra; the message names all, `facts["file"]` the first.
    """
    if not folder.is_dir():
        raise IntegrityError("a sealed folder is missing", where=str(folder), file=str(folder))
    found = dict(_regular_files(folder))
    sealed = {file.path: file for file in manifest.files}
    problems = [f"`{path}` is missing" for path in sealed if path not in found]
    problems += [f"`{path}` was added" for path in found if path not in sealed]
    problems += [
        f"`{path}` was changed"
        for path, entry in sealed.items()
        if path in found
        and (found[path].stat().st_size != entry.size_bytes or sha256_file(found[path]) != entry.digest)
    ]
    if problems:
        raise IntegrityError(
            "sealed files are not what was sealed: " + ", ".join(sorted(problems)),
            where=str(folder),
            expected=manifest.digest,
            file=min(problems).split("`")[1],
        )


def _regular_files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise IntegrityError(
                f"`{path.name}` is a link or special file",
                where=str(path),
                expected="regular files only",
                file=str(path.relative_to(folder)),
            )
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def _manifest_of(files: tuple[FileDigest, ...]) -> Manifest:
    ordered = tuple(sorted(files, key=lambda file: file.path))
    return Manifest(files=ordered, digest=digest_json([asdict(file) for file in ordered]))


def _file_from_row(row: dict[str, object]) -> FileDigest:
    path = PurePosixPath(str(row["path"]))
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"path `{path}` leaves the folder")
    return FileDigest(path=str(path), size_bytes=int(str(row["size_bytes"])), digest=str(row["digest"]))
