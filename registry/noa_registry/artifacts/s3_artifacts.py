"""Model files in S3: written under the unit's uid, which nobody looks for before the database has its row.

    <prefix>/<model name>/<uid>/<path>     one unit
    <prefix>/_registry.json                whose store it is (`ownership.py`)
    <prefix>/_leases/<uid>.json            a writer is at this unit; written anew all the time while it lives

S3 has no locks that end with a process, so a writer is alive while its lease is young by the clock of S3. One that was
not heard of for `lease_s` is taken for dead: inside a write transaction of the database, so that nobody seals the unit
meanwhile, its objects are removed, the first one first. A writer that was only asleep asks for that first object inside
its own transaction, and gives up if it is gone.

Equal bytes are not shared between units in S3; they are in the local cache.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from noa.atomic_write import write_file
from noa.digests import FileDigest, FileProblem, Manifest
from noa.errors import IntegrityError, NoaError, StorageError
from noa.references import check_name
from noa_registry.artifacts.copying import file_digest, regular_files
from noa_registry.artifacts.marks import S3Marks
from noa_registry.artifacts.ownership import Ownership
from noa_registry.artifacts.s3_client import S3Client, StoredObject
from noa_registry.artifacts.s3_errors import is_missing
from noa_registry.artifacts.store import (
    RUNS_FOLDER,
    CachedUnit,
    Part,
    Seals,
    UnitFacts,
    UnitKey,
    UnitLeftover,
    require_same,
)
from noa_registry.artifacts.unit_cache import UnitCache
from noa_registry.faults import Checkpoint

if TYPE_CHECKING:
    from noa.settings import S3Settings

_LEASES = "_leases"
_RENEWALS_PER_LEASE = 4


@dataclass(slots=True, kw_only=True)
class S3StagedUnit:
    """A unit that is being uploaded to `prefix`."""

    uid: str
    prefix: str
    client: S3Client
    parallel: int
    _keys: list[str] = field(default_factory=list[str])
    _sources: dict[str, Path] = field(default_factory=dict[str, Path])

    @property
    def uri(self) -> str:
        """Where MLflow's clients will find it."""
        return self.client.url(self.prefix.rstrip("/"))

    def add_folder(self, source: Path, prefix: str) -> Manifest:
        """Upload all files of a folder, hashing what is sent. See `StagedUnit`."""
        paths = {path.relative_to(source).as_posix(): path for path in regular_files(source)}
        inner = {name: f"{prefix}/{name}" if prefix else name for name in paths}
        with ThreadPoolExecutor(self.parallel, thread_name_prefix="noa-s3-file") as pool:
            files = list(pool.map(lambda name: self._put(inner[name], paths[name], name), paths))
        return Manifest.of(files)

    def add_link(self, existing: FileDigest, prefix: str, name: str) -> FileDigest:
        """Upload a file once more under another name: S3 has no links. See `StagedUnit`."""
        source = self._sources[f"{prefix}/{existing.path}" if prefix else existing.path]
        file = self._put(name, source, name)
        if file.digest != existing.digest:
            raise StorageError(
                f"`{source.name}` was changed while it was registered",
                where=str(source),
                expected=existing.digest,
                received=file.digest,
                remedy="Run the same command again when nothing writes to it; nothing was lost",
            )
        return file

    def publish(self) -> None:
        """Check that everything is in place; every upload was confirmed on its own."""
        expected, found = set(self._keys), {one.key for one in self.client.list(self.prefix)}
        if expected != found:
            raise StorageError(
                "S3 does not list what was uploaded",
                where=self.uri,
                expected=f"{len(expected)} objects",
                received=f"{len(found)} objects",
                remedy="Run the same command again; nothing was lost",
            )

    def confirm(self) -> None:
        """Check, inside the sealing transaction, that nobody took this writer for dead. See `StagedUnit`."""
        if not self.client.exists(min(self._keys)):
            raise StorageError(
                "this writer was not heard of for too long, and its unit was removed",
                where=self.uri,
                remedy="Run the same command again, or raise `registry.s3.lease_s`; nothing was lost",
            )

    def _put(self, inner: str, path: Path, name: str) -> FileDigest:
        file = self.client.put_file(self.prefix + inner, path, name=name)
        self._keys.append(self.prefix + inner)
        self._sources[inner] = path
        return file


class S3Artifacts:
    """All units below `url`, with local copies in `cache`."""

    def __init__(self, url: str, settings: S3Settings, *, seals: Seals, cache: UnitCache) -> None:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
        self._settings = settings
        self._client = S3Client(bucket, settings)
        self._seals = seals
        self._cache = cache
        self._ownership = Ownership(S3Marks(self._client, self._prefix), seals, self.units)

    @property
    def root(self) -> Path:
        """The folder of local copies."""
        return self._cache.root

    @property
    def ownership(self) -> Ownership:
        """Whose store it is."""
        return self._ownership

    @property
    def runs_uri(self) -> str:
        """Where MLflow's runs put their artifacts."""
        return self._client.url(self._prefix + RUNS_FOLDER)

    def unit_uri(self, key: UnitKey) -> str:
        """Return MLflow's source of a unit."""
        return self._client.url(self._unit_prefix(key).rstrip("/"))

    @contextmanager
    def stage(self, name: str, *, checkpoint: Checkpoint) -> Generator[S3StagedUnit, None, None]:
        """Give a unit to upload. What was not sealed when the block ends is removed.

        Raises:
            ConflictError: the store belongs to another registry.
            StorageError: S3 refused; nothing is left, or what is left is removed at a later start.
        """
        self._ownership.claim()
        key = UnitKey(name=check_name(name), uid=os.urandom(16).hex())
        unit = S3StagedUnit(
            uid=key.uid, prefix=self._unit_prefix(key), client=self._client, parallel=self._settings.parallel
        )
        with self._leased(key) as stop_renewing:
            try:
                checkpoint("claimed")
                yield unit
            finally:
                stop_renewing()  # or a renewal that is on its way would write the lease again after it was removed
                # A commit that failed late happened or did not; the database knows. What cannot be removed now keeps
                # its lease and is removed at a later start.
                with suppress(NoaError):
                    if not self._seals.is_sealed(key.uid):
                        self._remove_objects(key)
                    self._client.delete([self._lease_key(key.uid)])

    def open_part(self, part: Part) -> Path:
        """Return the local folder of a part, fetching what is missing. See `ArtifactStore`."""
        return self._cache.open_part(part, self._download_of(part.unit))

    def open_file(self, unit: UnitKey, file: FileDigest) -> Path:
        """Return one verified file. See `ArtifactStore`."""
        return self._cache.open_file(unit, file, self._download_of(unit))

    def find_problems(self, *parts: Part) -> list[FileProblem]:
        """Read parts from S3 and hash them, with one listing per unit. See `ArtifactStore`."""
        problems: list[FileProblem] = []
        sealed: list[tuple[Part, FileDigest, StoredObject | None]] = []
        for part, found in self._objects_of(parts):
            known = {file.path for file in part.manifest.files}
            added = [path for path in found if path not in known and not part.ignores(path)]
            problems += [FileProblem(path=part.path_in_unit(path), change="added") for path in added]
            sealed += [(part, file, found.get(file.path)) for file in part.manifest.files]
        with ThreadPoolExecutor(self._settings.parallel, thread_name_prefix="noa-s3") as pool:
            checked = pool.map(lambda one: self._check(*one), sealed)
            problems += [problem for problem in checked if problem is not None]
        return sorted(problems, key=lambda problem: problem.path)

    def find_equal(self, file: FileDigest) -> Path | None:
        """Return the copy in the local cache, if it is whole. See `ArtifactStore`."""
        return self._cache.find_equal(file)

    def put_back(self, key: UnitKey, file: FileDigest, source: Path) -> None:
        """Upload a damaged or missing file anew. See `ArtifactStore`."""
        self._ownership.claim()
        require_same(file_digest(source, name=file.path), file, where=str(source))
        sent = self._client.put_file(f"{self._unit_prefix(key)}{file.path}", source, name=file.path)
        require_same(sent, file, where=str(source))

    def set_aside(self, key: UnitKey, path: str) -> str:
        """Move an added object below `_set_aside/`. See `ArtifactStore`."""
        source = f"{self._unit_prefix(key)}{path}"
        target = f"{self._prefix}_set_aside/{secrets.token_hex(4)}/{key.uid}/{path}"
        self._client.copy(source, target)
        self._client.delete([source])
        return self._client.url(target)

    def remove_unit(self, key: UnitKey) -> None:
        """Remove a unit's objects and its local copies.

        Raises:
            ConflictError: the store belongs to another registry.
            StorageError: S3 refused.
        """
        self._ownership.claim()
        self._remove_objects(key)
        with suppress(StorageError):  # a copy that cannot go now goes when room is needed
            self._cache.remove(key)

    def units(self) -> Iterator[UnitKey]:
        """Give every unit, sealed or not."""
        for name in self._client.folders(self._prefix):
            if not name.startswith("_"):
                for uid in self._client.folders(f"{self._prefix}{name}/"):
                    yield UnitKey(name=name, uid=uid)

    def unit_facts(self, key: UnitKey) -> UnitFacts | None:
        """Return how large and how old a unit is, None if there is none."""
        objects = list(self._client.list(self._unit_prefix(key)))
        if not objects:
            return None
        return UnitFacts(
            size_bytes=sum(one.size_bytes for one in objects),
            modified_at=max(one.modified_at for one in objects),
            is_claimed=self._client.exists(self._lease_key(key.uid)),
        )

    def leftovers(self) -> Iterator[UnitLeftover]:
        """Give what writers left that were not heard of for `lease_s`."""
        for uid, lease in self._leases():
            if lease.age_s > self._settings.lease_s:
                name = self._writer_of(uid)
                facts = None if name is None else self.unit_facts(UnitKey(name=name, uid=uid))
                yield UnitLeftover(uid=uid, size_bytes=0 if facts is None else facts.size_bytes)

    def remove_leftover(self, uid: str) -> bool:
        """Remove what a dead writer left, unless it is alive after all; tell whether nothing of it is left."""
        self._ownership.claim()
        for found, lease in self._leases():
            if found == uid:
                return lease.age_s > self._settings.lease_s and self._remove_leftover(uid)
        return True

    def cached(self) -> Iterator[CachedUnit]:
        """Give the local copies."""
        return self._cache.cached()

    def remove_cached(self, key: UnitKey) -> bool:
        """Remove the local copies of a unit unless somebody uses them."""
        return self._cache.remove(key)

    def remove_leftovers(self) -> int:
        """Remove what writers left that died, and return how many there were. S3 is asked once per `lease_s`."""
        mark = self._cache.root.parent / "swept"
        try:
            if time.time() - mark.stat().st_mtime < self._settings.lease_s:
                return 0
        except FileNotFoundError:
            pass
        removed = 0
        with suppress(NoaError):  # an S3 that is down must not keep anybody from reading the registry
            write_file(mark, "")
            found = list(self.leftovers())
            if found and self._ownership.may_write():
                removed = sum([self._remove_leftover(leftover.uid) for leftover in found])
        return removed

    def close(self) -> None:
        """Close all connections, and let go of the local copies."""
        self._client.close()
        self._cache.close()

    def _unit_prefix(self, key: UnitKey) -> str:
        return f"{self._prefix}{check_name(key.name)}/{key.uid}/"

    def _lease_key(self, uid: str) -> str:
        return f"{self._prefix}{_LEASES}/{uid}.json"

    def _leases(self) -> Iterator[tuple[str, StoredObject]]:
        prefix = f"{self._prefix}{_LEASES}/"
        for one in self._client.list(prefix):
            yield one.key.removeprefix(prefix).removesuffix(".json"), one

    def _writer_of(self, uid: str) -> str | None:
        """Return the model that a lease's writer wrote to, None if the lease is gone or unreadable."""
        try:
            return check_name(str(json.loads(self._client.read_bytes(self._lease_key(uid)))["name"]))
        except StorageError as exc:
            if not is_missing(exc):  # it would lose its lease without losing its objects
                raise
            return None
        except (NoaError, ValueError, KeyError, TypeError):
            return None

    @contextmanager
    def _leased(self, key: UnitKey) -> Generator[Callable[[], None], None, None]:
        """Renew a lease in the background as long as the block runs, or until it calls what this gives."""
        text = json.dumps({"name": key.name, "writer": f"{socket.gethostname()}:{os.getpid()}"}).encode()
        self._client.put_bytes(self._lease_key(key.uid), text)
        done = threading.Event()

        def renew() -> None:
            while not done.wait(self._settings.lease_s / _RENEWALS_PER_LEASE):
                with suppress(NoaError):  # the next time; if S3 stays away for long, `confirm` finds out
                    self._client.put_bytes(self._lease_key(key.uid), text)

        def stop() -> None:
            done.set()
            thread.join(self._settings.connect_timeout_s + self._settings.read_timeout_s)

        thread = threading.Thread(target=renew, name="noa-s3-lease", daemon=True)
        thread.start()
        try:
            yield stop
        finally:
            stop()

    def _remove_leftover(self, uid: str) -> bool:
        name = self._writer_of(uid)
        if name is not None:
            key = UnitKey(name=name, uid=uid)
            self._seals.unless_sealed(uid, lambda: self._remove_objects(key))
        self._client.delete([self._lease_key(uid)])
        return True

    def _remove_objects(self, key: UnitKey) -> None:
        prefix = self._unit_prefix(key)
        keys = [one.key for one in self._client.list(prefix)]
        if keys:
            self._client.delete(keys[:1])  # what `confirm` asks for
            self._client.delete(keys[1:])
        self._client.abort_uploads(prefix)

    def _download_of(self, unit: UnitKey) -> Callable[[str, FileDigest, BinaryIO], None]:
        prefix = self._unit_prefix(unit)
        return lambda inner, file, sink: self._client.download(prefix + inner, file, sink)

    def _objects_of(self, parts: Sequence[Part]) -> Iterator[tuple[Part, dict[str, StoredObject]]]:
        """Give each part with what lies below its prefix, by the path there."""
        by_unit: dict[UnitKey, list[Part]] = {}
        for part in parts:
            by_unit.setdefault(part.unit, []).append(part)
        for unit, own in by_unit.items():
            listed = self._part_prefix(own[0]) if len(own) == 1 else self._unit_prefix(unit)
            objects = list(self._client.list(listed))
            for part in own:
                prefix = self._part_prefix(part)
                yield part, {one.key.removeprefix(prefix): one for one in objects if one.key.startswith(prefix)}

    def _part_prefix(self, part: Part) -> str:
        return self._unit_prefix(part.unit) + (f"{part.prefix}/" if part.prefix else "")

    def _check(self, part: Part, file: FileDigest, found: StoredObject | None) -> FileProblem | None:
        path = part.path_in_unit(file.path)
        if found is None:
            return FileProblem(path=path, change="missing")
        if found.size_bytes == file.size_bytes:
            try:
                self._client.download(found.key, file, None)
            except IntegrityError as exc:
                change = "missing" if exc.facts.get("change") == "missing" else "changed"
                return FileProblem(path=path, change=change)
            return None
        return FileProblem(path=path, change="changed")
