"""Digests: names for bytes.

A file's digest is the SHA-256 of its bytes; a folder's is the SHA-256 of its canonical manifest (sorted paths, sizes,
file digests), so the same bytes have the same name on any machine. Digests are written `sha256:<64 hex digits>`.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar, cast

from noa.errors import IntegrityError, InvalidInputError
from noa.regular_files import open_regular
from noa.text_tensors import check_texts, pack_texts

if TYPE_CHECKING:
    import numpy as np

_ResultT = TypeVar("_ResultT")

# Fits into a core's second-level cache together with its page-cache source: faster than 1 MiB and 64 KiB, measured.
_BLOCK_BYTES = 1 << 18
_PARALLEL_FROM_BYTES = 8 << 20
_MAX_THREADS = 4

Change: TypeAlias = Literal["changed", "missing", "added", "unreadable"]


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
    def of(files: Iterable[FileDigest]) -> Manifest:
        """Return the manifest of `files` in any order."""
        return _manifest_of(tuple(files))

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Parse what `to_json` wrote.

        Raises:
            IntegrityError: the text is not a manifest, or names a file outside the folder.
        """
        try:
            rows = cast("list[dict[str, object]]", json.loads(text))
            files = tuple(_file_from_row(row) for row in rows)
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise IntegrityError("a manifest is not readable", received=text[:80]) from exc
        return _manifest_of(files)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileProblem:
    """One file that is not what was sealed, or that cannot be read: then `why` says so, and it may be a whole folder.

    `path` is relative to the folder that was compared.
    """

    path: str
    change: Change
    why: str = ""

    def __str__(self) -> str:
        if self.change == "unreadable":
            return f"`{self.path}` cannot be read ({self.why})"
        return f"`{self.path}` {'was' if self.change != 'missing' else 'is'} {self.change}"


def short_digest(digest: str) -> str:
    """Return the first 12 digits of a digest, enough for people."""
    return digest.removeprefix("sha256:")[:12]


def sha256_bytes(data: bytes) -> str:
    """Return `sha256:...` of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return `sha256:...` of the bytes of a regular file, streamed."""
    with open_regular(path) as file:
        return sha256_handle(file.fileno())


def sha256_handle(handle: int) -> str:
    """Return `sha256:...` of what an open file holds from its position to its end, streamed."""
    hasher = hashlib.sha256()
    buffer = bytearray(_BLOCK_BYTES)
    view = memoryview(buffer)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    while count := os.readv(handle, [buffer]):
        hasher.update(view[:count])
    return "sha256:" + hasher.hexdigest()


def sha256_files(paths: Sequence[Path]) -> list[str]:
    """Return the digest of each file; several large ones are hashed on several cores."""
    return map_files(sha256_file, paths, [path.stat().st_size for path in paths])


def map_files(work: Callable[[Path], _ResultT], paths: Sequence[Path], sizes: Sequence[int]) -> list[_ResultT]:
    """Apply `work`, which hashes, to each file; on several threads where their sizes make that pay."""
    threads = min(_MAX_THREADS, os.cpu_count() or 1, sum(size >= _PARALLEL_FROM_BYTES for size in sizes))
    if threads < 2:
        return [work(path) for path in paths]
    with ThreadPoolExecutor(threads, thread_name_prefix="noa-hash") as pool:
        return list(pool.map(work, paths))


def canonical_json(value: object) -> bytes:
    """Return JSON with sorted keys and no spaces. Refuses NaN and infinities: they are not JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_json(value: object) -> str:
    """Return the digest of the canonical JSON of `value`."""
    return sha256_bytes(canonical_json(value))


def digest_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """Return one digest of named arrays: names, dtypes, shapes and values (C order, little-endian; texts packed).

    Raises:
        SignatureError, InvalidInputError: an array holds Python objects other than texts.
    """
    import numpy as np

    hasher = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        if array.dtype == object:
            if not all(isinstance(value, str) for value in array.reshape(-1).tolist()):
                raise InvalidInputError(f"array `{name}` holds Python objects", expected="numbers, booleans or texts")
            check_texts(array, field=name, name=f"array `{name}`")
            hasher.update(canonical_json([name, "string", list(array.shape)]))
            hasher.update(pack_texts(array))
            continue
        if array.dtype.hasobject:
            raise InvalidInputError(f"array `{name}` holds Python objects", expected="numbers, booleans or texts")
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        hasher.update(canonical_json([name, array.dtype.str, list(array.shape)]))
        hasher.update(array.reshape(-1).view(np.uint8).data if array.size else b"")
    return "sha256:" + hasher.hexdigest()


def build_manifest(folder: Path) -> Manifest:
    """Hash every file below `folder`.

    Raises:
        IntegrityError: the folder holds a symbolic link or another special file.
    """
    found = dict(_regular_files(folder))
    digests = sha256_files(list(found.values()))
    return Manifest.of(
        FileDigest(path=relative, size_bytes=path.stat().st_size, digest=digest)
        for (relative, path), digest in zip(found.items(), digests, strict=True)
    )


def verify_folder(folder: Path, manifest: Manifest) -> None:
    """Re-hash `folder` and compare it with `manifest`.

    Raises:
        IntegrityError: a file differs, is missing or is extra; the message names all, `facts["file"]` the first.
    """
    if not folder.is_dir():
        raise IntegrityError("a sealed folder is missing", where=str(folder), file=str(folder))
    problems = compare_folder(folder, manifest)
    if problems:
        raise IntegrityError(
            "sealed files are not what was sealed: " + ", ".join(str(problem) for problem in problems),
            where=str(folder),
            expected=manifest.digest,
            file=problems[0].path,
        )


def compare_folder(
    folder: Path,
    manifest: Manifest,
    *,
    has_digest: Callable[[Path, FileDigest], bool] | None = None,
    ignore: Callable[[str], bool] = lambda _path: False,
) -> list[FileProblem]:
    """Return every file that differs, is missing or is extra, by path. A link or special file counts as changed.

    A folder in which nothing is, and nothing was sealed, is extra too. What cannot be read is one problem of its own, a
    folder with all that is in it; the rest is compared.

    `has_digest` tells whether a file of the right size has its digest (default: by hashing it); `ignore` names files,
    by their path, that are no part of what was sealed.
    """
    walk = _Walk()
    walk.enter(folder, "", ignore)
    found, odd, empty = walk.files, walk.odd, walk.empty
    sealed = {file.path: file for file in manifest.files}
    problems = [FileProblem(path=path or ".", change="unreadable", why=why) for path, why in walk.closed.items()]
    problems += [FileProblem(path=path, change="changed" if path in sealed else "added") for path in odd]
    problems += [
        FileProblem(path=path, change="missing")
        for path in sealed
        if path not in found and path not in odd and not walk.is_behind_closed(path)
    ]
    problems += [FileProblem(path=path, change="added") for path in found if path not in sealed]
    problems += [
        FileProblem(path=path, change="added")
        for path in empty
        if not any(entry.startswith(f"{path}/") for entry in sealed)
    ]
    check = has_digest or _hashes_to
    both = [(path, entry) for path, entry in sealed.items() if path in found]
    by_path = {found[path]: entry for path, entry in both}
    looked = map_files(
        lambda path: _find_problem(path, by_path[path], check), list(by_path), [entry.size_bytes for _, entry in both]
    )
    problems += [problem for problem in looked if problem is not None]
    return sorted(problems, key=lambda problem: problem.path)


def _find_problem(path: Path, entry: FileDigest, has_digest: Callable[[Path, FileDigest], bool]) -> FileProblem | None:
    try:
        if path.stat().st_size == entry.size_bytes:
            if has_digest(path, entry):
                return None
            with path.open("rb"):  # who looks up digests takes a file that cannot be opened for a changed one
                pass
    except FileNotFoundError:  # removed since the folder was listed
        pass
    except OSError as exc:
        return FileProblem(path=entry.path, change="unreadable", why=reason_of(exc))
    return FileProblem(path=entry.path, change="changed")


def reason_of(error: OSError) -> str:
    """Return what the system says, e.g. `permission denied`."""
    return os.strerror(error.errno or 0).lower()


def _hashes_to(path: Path, entry: FileDigest) -> bool:
    return sha256_file(path) == entry.digest


@dataclass(slots=True)
class _Walk:
    """What is below a folder: regular files, what is neither a file nor a folder, empty folders, and closed ones."""

    files: dict[str, Path] = field(default_factory=dict[str, Path])
    odd: list[str] = field(default_factory=list[str])
    empty: list[str] = field(default_factory=list[str])
    closed: dict[str, str] = field(default_factory=dict[str, str])
    """Folders that cannot be read, and why; the uppermost is named ``."""

    def enter(self, folder: Path, place: str, ignore: Callable[[str], bool]) -> None:
        """Look at a folder and all below it."""
        try:
            names = sorted(path.name for path in folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):  # then nothing is in it
            return
        except OSError as exc:
            self.closed[place] = reason_of(exc)
            return
        if not names and place:
            self.empty.append(place)
        for name in names:
            path, relative = folder / name, f"{place}/{name}" if place else name
            if ignore(relative):
                continue
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # removed since the folder was listed
                continue
            except OSError as exc:
                self.closed[relative] = reason_of(exc)
                continue
            if stat.S_ISDIR(mode):
                self.enter(path, relative, ignore)
            elif stat.S_ISREG(mode):
                self.files[relative] = path
            else:
                self.odd.append(relative)

    def is_behind_closed(self, path: str) -> bool:
        """Tell whether a path is, or is below, what cannot be read."""
        return any(not place or path == place or path.startswith(f"{place}/") for place in self.closed)


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
