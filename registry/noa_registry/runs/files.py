"""The files of runs, in the place where MLflow looks for them: a local folder, or S3 by the registry's own settings.

MLflow's client would do it too, and its import costs seconds; a run elsewhere (a tracking server's own store) is left
to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from noa.atomic_write import write_file
from noa.errors import InvalidInputError

if TYPE_CHECKING:
    from noa.settings import RegistrySettings
    from noa_registry.artifacts.s3_client import S3Client

_MOST_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFile:
    """A file of a run, by its path below the run's place."""

    path: str
    size_bytes: int


class RunFiles:
    """Writes and lists files of runs. Shared by threads; connects to S3 on first use."""

    def __init__(self, settings: RegistrySettings) -> None:
        self._settings = settings
        self._client: S3Client | None = None

    def put(self, location: str, path: str, data: bytes, *, replace: bool) -> None:
        """Write a file of the run whose files are at `location` (MLflow's `artifact_uri`), whole or not at all.

        `replace` False: one that is there already stays.

        Raises:
            InvalidInputError: the place is neither local nor in the registry's S3, or the path leads out of it.
            StorageError: the disk or S3 refused.
        """
        name = _checked(path)
        if len(data) > _MOST_BYTES:
            raise InvalidInputError("a file of a run is too large", expected=f"up to {_MOST_BYTES} bytes", where=name)
        folder = _folder(location)
        if folder is not None:
            target = folder / name
            if replace or not target.exists():
                write_file(target, data)
            return
        client, prefix = self._s3(location)
        if replace:
            client.put_bytes(f"{prefix}{name}", data)
        else:
            client.put_bytes_if_absent(f"{prefix}{name}", data)

    def list(self, location: str, *, most: int) -> Iterator[RunFile]:
        """Give the files of a run, sorted, at most so many.

        Raises:
            InvalidInputError: the place is neither local nor in the registry's S3.
            StorageError: S3 refused.
        """
        folder = _folder(location)
        if folder is None:
            client, prefix = self._s3(location)
            for count, stored in enumerate(client.list(prefix)):
                if count == most:
                    return
                yield RunFile(path=stored.key.removeprefix(prefix), size_bytes=stored.size_bytes)
            return
        yield from _local_files(folder, most)

    def close(self) -> None:
        """Close the connections to S3."""
        if self._client is not None:
            self._client.close()

    def _s3(self, location: str) -> tuple[S3Client, str]:
        """Return the client of a place in S3 and the beginning of its keys."""
        own = self._settings.artifact_url.rstrip("/")
        parts = urlsplit(location)
        if not own or not location.startswith(f"{own}/") or parts.scheme != "s3" or parts.query or parts.fragment:
            raise InvalidInputError(
                "the files of this run are in a place that only MLflow's client reaches",
                where=location[:200],
                expected="a local folder, or a place below `registry.artifact_url`",
            )
        if self._client is None:
            from noa_registry.artifacts.s3_client import S3Client

            self._client = S3Client(parts.netloc, self._settings.s3)
        return self._client, f"{parts.path.strip('/')}/"


def _local_files(folder: Path, most: int) -> Iterator[RunFile]:
    found = 0
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            if found == most:
                return
            found += 1
            yield RunFile(path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size)


def _folder(location: str) -> Path | None:
    """Return the local folder that a location names, None if it is elsewhere."""
    parts = urlsplit(location)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    return Path(location) if location.startswith("/") else None


def _checked(path: str) -> str:
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or str(pure) != path:
        raise InvalidInputError("this is no path of a file of a run", expected="e.g. `git/diff.patch`", received=path)
    return path
