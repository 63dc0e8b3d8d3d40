"""The few requests to S3 that the registry needs, each with its errors translated. The only module that makes a client.

Uploads carry the SHA-256 of their bytes, which S3 compares with what arrived; a large file goes in parts, each with its
own. Downloads are hashed as they arrive; one that stops, is cut off or crawls goes on where it stopped, with growing
pauses. Memory is bounded by the parts that are on their way.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from noa.atomic_write import translate_disk_errors
from noa.digests import FileDigest
from noa.errors import DependencyMissingError, IntegrityError, StorageError
from noa_registry.artifacts.s3_errors import is_lasting, is_missing, translate_s3_errors

if TYPE_CHECKING:
    from noa.settings import S3Settings

_READ_BYTES = 1 << 20
_MAX_PARTS = 9_000  # S3 allows 10,000
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_DELETE_AT_ONCE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """One object of a listing. `age_s` is by the clock of S3."""

    key: str
    size_bytes: int
    modified_at: datetime
    age_s: float


class S3Client:
    """Requests to one bucket. Shared by threads; makes its connection on first use."""

    def __init__(self, bucket: str, settings: S3Settings) -> None:
        self.bucket = bucket
        self._settings = settings
        self._lock = threading.Lock()
        self._made: Any = None

    def url(self, key: str) -> str:
        """Return `s3://bucket/key`."""
        return f"s3://{self.bucket}/{key}"

    def put_bytes(self, key: str, data: bytes) -> None:
        """Write a small object; S3 compares it with its SHA-256."""
        checksum = _base64(hashlib.sha256(data).digest())
        with translate_s3_errors(self.url(key)):
            self._client.put_object(Bucket=self.bucket, Key=key, Body=data, ChecksumSHA256=checksum)

    def put_bytes_if_absent(self, key: str, data: bytes) -> None:
        """Write a small object unless there is one. An S3 without conditional writes is asked to write it anyway."""
        checksum = _base64(hashlib.sha256(data).digest())
        try:
            with translate_s3_errors(self.url(key)):
                self._client.put_object(
                    Bucket=self.bucket, Key=key, Body=data, ChecksumSHA256=checksum, IfNoneMatch="*"
                )
        except StorageError as exc:
            code = exc.facts.get("code")
            if code in _NO_CONDITION_CODES:
                self.put_bytes(key, data)
            elif code not in _TAKEN_CODES:
                raise

    def put_file(self, key: str, path: Path, *, name: str) -> FileDigest:
        """Upload a file in one pass: what is sent is what is hashed. Confirms that it arrived whole.

        Raises:
            StorageError: S3 refused, or has another size or checksum than was sent.
        """
        with path.open("rb", buffering=0) as file:
            part_bytes = self._part_bytes(os.fstat(file.fileno()).st_size)
            first = _read_up_to(file, part_bytes)
            rest = _read_up_to(file, 1)
            if rest:
                return self._put_parts(key, file, first, rest, part_bytes, name)
        digest = hashlib.sha256(first)
        self.put_bytes(key, first)
        self._confirm(key, len(first), _base64(digest.digest()))
        return FileDigest(path=name, size_bytes=len(first), digest="sha256:" + digest.hexdigest())

    def copy(self, key: str, target: str) -> None:
        """Copy an object of at most 5 GB inside S3."""
        with translate_s3_errors(self.url(key)):
            self._client.copy_object(Bucket=self.bucket, Key=target, CopySource={"Bucket": self.bucket, "Key": key})

    def read_bytes(self, key: str, *, most: int | None = None) -> bytes:
        """Return a small object, or its first `most` bytes."""
        with translate_s3_errors(self.url(key)):
            return self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read(most)

    def exists(self, key: str) -> bool:
        """Tell whether there is an object."""
        try:
            with translate_s3_errors(self.url(key)):
                self._client.head_object(Bucket=self.bucket, Key=key)
        except StorageError as exc:
            if is_missing(exc):
                return False
            raise
        return True

    def download(self, key: str, file: FileDigest, sink: BinaryIO | None) -> None:
        """Write an object to `sink` (None: only hash it), and check that it is `file`.

        Raises:
            IntegrityError: it has other bytes, or is not there; `facts["change"]` says which.
            StorageError: S3 did not give it whole in `max_attempts` attempts.
        """
        state = _Download(file=file, sink=sink)
        attempt = 0
        while True:
            attempt += 1
            try:
                with translate_s3_errors(self.url(key)):
                    self._read_into(key, state)
            except StorageError as exc:
                if is_missing(exc):
                    raise _damaged(self.url(key), file, "missing") from exc
                if attempt >= self._settings.max_attempts or is_lasting(exc):
                    raise
            else:
                if state.received == file.size_bytes and state.hexdigest() == file.digest:
                    return
                if state.has_ended and not state.may_restart():
                    raise _damaged(self.url(key), file, "changed")
            if attempt >= self._settings.max_attempts:
                raise StorageError(
                    "S3 ended a download too early, again and again",
                    where=self.url(key),
                    expected=f"{file.size_bytes} bytes",
                    received=f"{state.received} bytes",
                    remedy="Check the connection to S3 and run the same command again",
                )
            time.sleep(_pause_s(attempt))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Give all objects below a prefix, sorted by key."""
        token: dict[str, str] = {}
        while True:
            with translate_s3_errors(self.url(prefix)):
                page: Any = self._client.list_objects_v2(Bucket=self.bucket, Prefix=prefix, **token)
            now = _server_time(page)
            for row in page.get("Contents", ()):
                modified = row["LastModified"]
                yield StoredObject(
                    key=str(row["Key"]),
                    size_bytes=int(row["Size"]),
                    modified_at=modified,
                    age_s=(now - modified).total_seconds(),
                )
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": str(page["NextContinuationToken"])}

    def folders(self, prefix: str) -> Iterator[str]:
        """Give the names of the folders directly below a prefix, sorted."""
        token: dict[str, str] = {}
        while True:
            with translate_s3_errors(self.url(prefix)):
                page: Any = self._client.list_objects_v2(Bucket=self.bucket, Prefix=prefix, Delimiter="/", **token)
            for row in page.get("CommonPrefixes", ()):
                yield str(row["Prefix"])[len(prefix) :].rstrip("/")
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": str(page["NextContinuationToken"])}

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are gone already are no error."""
        for start in range(0, len(keys), _DELETE_AT_ONCE):
            batch = [{"Key": key} for key in keys[start : start + _DELETE_AT_ONCE]]
            with translate_s3_errors(self.url(keys[start])):
                answer: Any = self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": batch, "Quiet": True})
            for error in answer.get("Errors", ()):
                raise StorageError(
                    f"S3 did not delete an object: {error.get('Code')}",
                    where=self.url(str(error.get("Key"))),
                    remedy="Allow these credentials to delete below `registry.artifact_url`",
                    code=error.get("Code"),
                )

    def abort_uploads(self, prefix: str) -> None:
        """Give up uploads in parts that nobody will finish: their parts cost space and are in no listing."""
        with translate_s3_errors(self.url(prefix)):
            answer: Any = self._client.list_multipart_uploads(Bucket=self.bucket, Prefix=prefix)
            for upload in answer.get("Uploads", ()):
                self._client.abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            made, self._made = self._made, None
        if made is not None:
            made.close()

    @property
    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = _make_client(self._settings)
            return self._made

    def _part_bytes(self, size: int) -> int:
        return max(self._settings.part_bytes, -(-size // _MAX_PARTS))

    def _put_parts(self, key: str, file: BinaryIO, first: bytes, rest: bytes, part_bytes: int, name: str) -> FileDigest:
        with translate_s3_errors(self.url(key)):
            upload: Any = self._client.create_multipart_upload(Bucket=self.bucket, Key=key, ChecksumAlgorithm="SHA256")[
                "UploadId"
            ]
            try:
                sent = self._send_parts(key, upload, file, first, rest, part_bytes)
                self._client.complete_multipart_upload(
                    Bucket=self.bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": sent.parts}
                )
            except BaseException:
                self._abort(key, upload)
                raise
        # The checksum of the whole is the checksum of the parts' checksums.
        whole = hashlib.sha256(b"".join(base64.b64decode(part["ChecksumSHA256"]) for part in sent.parts))
        self._confirm(key, sent.size_bytes, _base64(whole.digest()))
        return FileDigest(path=name, size_bytes=sent.size_bytes, digest=sent.digest)

    def _send_parts(self, key: str, upload: str, file: BinaryIO, first: bytes, rest: bytes, part_bytes: int) -> _Sent:
        hasher = hashlib.sha256()
        size = 0
        parts: list[dict[str, Any]] = []
        waiting: deque[Future[dict[str, Any]]] = deque()
        block = first
        with ThreadPoolExecutor(self._settings.parallel, thread_name_prefix="noa-s3") as pool:
            while block:
                if len(waiting) == self._settings.parallel:  # as many parts in memory as are on their way, and one
                    parts.append(waiting.popleft().result())
                number = len(parts) + len(waiting) + 1
                waiting.append(pool.submit(self._send_part, key, upload, number, block))
                hasher.update(block)
                size += len(block)
                block = rest + _read_up_to(file, part_bytes - len(rest))
                rest = b""
            parts += [future.result() for future in waiting]
        return _Sent(parts=parts, size_bytes=size, digest="sha256:" + hasher.hexdigest())

    def _send_part(self, key: str, upload: str, number: int, block: bytes) -> dict[str, Any]:
        checksum = _base64(hashlib.sha256(block).digest())
        answer: Any = self._client.upload_part(
            Bucket=self.bucket, Key=key, UploadId=upload, PartNumber=number, Body=block, ChecksumSHA256=checksum
        )
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum}

    def _abort(self, key: str, upload: str) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload)
        except (BotoCoreError, ClientError):
            return  # the lease stays, and who removes the unit later gives up its uploads too

    def _confirm(self, key: str, size: int, checksum: str) -> None:
        with translate_s3_errors(self.url(key)):
            found: Any = self._client.head_object(Bucket=self.bucket, Key=key, ChecksumMode="ENABLED")
        # Not every S3 keeps checksums; all keep sizes. `-3` at the end says of how many parts it is.
        stored = (int(found["ContentLength"]), str(found.get("ChecksumSHA256") or checksum).split("-")[0])
        if stored != (size, checksum):
            raise StorageError(
                "S3 has other bytes than were sent",
                where=self.url(key),
                expected=f"{size} bytes with SHA-256 {checksum}",
                received=f"{stored[0]} bytes with SHA-256 {stored[1]}",
                remedy="Run the same command again; nothing was lost",
            )

    def _read_into(self, key: str, state: _Download) -> None:
        """Read from where the last attempt stopped; sets `has_ended` when S3 says that there is no more."""
        request: dict[str, Any] = {"Bucket": self.bucket, "Key": key}
        if state.received:
            request |= {"Range": f"bytes={state.received}-", "IfMatch": state.etag}
        try:
            answer: Any = self._client.get_object(**request)
        except Exception as exc:
            if state.received and getattr(exc, "response", {}).get("Error", {}).get("Code") in _CHANGED_CODES:
                state.restart()
                return
            raise
        state.etag = str(answer["ETag"])
        body = answer["Body"]
        expected = state.received + int(answer["ContentLength"])
        try:
            if expected > state.size_bytes:  # never more on the disk than was sealed
                state.has_ended = True
                return
            for block in self._blocks(body, key):
                state.add(block)
            state.has_ended = state.received == expected
        finally:
            body.close()

    def _blocks(self, body: Any, key: str) -> Iterator[bytes]:
        # What is there, not a whole block: `StreamingBody.read` would wait for the block however slowly it comes.
        read: Callable[[int], bytes] = body._raw_stream.read1
        window_started, window_bytes = time.monotonic(), 0
        while block := read(_READ_BYTES):
            yield block
            window_bytes += len(block)
            elapsed = time.monotonic() - window_started
            if elapsed < self._settings.read_timeout_s:
                continue
            if window_bytes < self._settings.min_bytes_per_s * elapsed:
                raise StorageError(
                    "S3 sends too slowly",
                    where=self.url(key),
                    expected=f"at least {self._settings.min_bytes_per_s} bytes/s",
                    received=f"{window_bytes / elapsed:.0f} bytes/s",
                    remedy="Check the connection to S3, or lower `registry.s3.min_bytes_per_s`",
                )
            window_started, window_bytes = time.monotonic(), 0


_TAKEN_CODES = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_NO_CONDITION_CODES = {"NotImplemented", "501"}
_CHANGED_CODES = {"PreconditionFailed", "412", "InvalidRange", "416"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    parts: list[dict[str, Any]]
    size_bytes: int
    digest: str


class _Download:
    """How far a download is."""

    def __init__(self, *, file: FileDigest, sink: BinaryIO | None) -> None:
        self._file = file
        self._sink = sink
        self._is_second = False
        self.restart()

    @property
    def size_bytes(self) -> int:
        """How many bytes were sealed."""
        return self._file.size_bytes

    def may_restart(self) -> bool:
        """Begin anew after wrong bytes, once: they may have changed on their way."""
        if self._is_second:
            return False
        self._is_second = True
        self.restart()
        return True

    def restart(self) -> None:
        """Forget everything: the object is another one now."""
        self.received = 0
        self.etag = ""
        self.has_ended = False
        self._hasher = hashlib.sha256()
        if self._sink is not None:
            self._sink.seek(0)
            self._sink.truncate()

    def add(self, block: bytes) -> None:
        """Take the next bytes."""
        self.received += len(block)
        self._hasher.update(block)
        if self._sink is not None:
            with translate_disk_errors(Path(str(self._sink.name))):
                self._sink.write(block)

    def hexdigest(self) -> str:
        """Return the digest of what came so far."""
        return "sha256:" + self._hasher.hexdigest()


def _damaged(where: str, file: FileDigest, change: str) -> IntegrityError:
    return IntegrityError(
        f"`{file.path}` {'is missing' if change == 'missing' else 'was changed'} in S3",
        where=where,
        expected=file.digest,
        file=file.path,
        change=change,
    )


def _make_client(settings: S3Settings) -> Any:
    try:
        from botocore.config import Config
        from botocore.session import Session
    except ImportError as exc:
        raise DependencyMissingError("boto3", extra="s3", purpose="keeping model files in S3") from exc
    config = Config(
        connect_timeout=settings.connect_timeout_s,
        read_timeout=settings.read_timeout_s,
        retries={"mode": "standard", "total_max_attempts": settings.max_attempts},
        max_pool_connections=settings.parallel + 2,
        # Buckets in the path: what is not AWS has no names for buckets.
        s3={"addressing_style": "path" if settings.endpoint_url else "auto"},
        # Our uploads carry SHA-256, and what arrives is hashed: a second checksum would only cost.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    with translate_s3_errors(settings.endpoint_url or "AWS"):
        session = Session()
        session.register_component("data_loader", _descriptions(session.get_config_variable("data_path")))
        return session.create_client(
            "s3",
            endpoint_url=settings.endpoint_url or None,
            region_name=settings.region or None,
            aws_access_key_id=settings.access_key.get_secret_value() or None,
            aws_secret_access_key=settings.secret_key.get_secret_value() or None,
            config=config,
        )


@cache
def _descriptions(data_path: str | None) -> Any:
    """Return what reads botocore's descriptions of S3 and of AWS's addresses, and keeps what it has read.

    One for all clients of the process: they take it as it is, and parsing it anew takes each most of its time.
    """
    from botocore.loaders import create_loader

    return create_loader(data_path)


def _read_up_to(file: BinaryIO, count: int) -> bytes:
    blocks: list[bytes] = []
    while count > 0 and (block := file.read(count)):
        blocks.append(block)
        count -= len(block)
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)


def _server_time(answer: Any) -> datetime:
    try:
        return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    except (KeyError, TypeError, ValueError):
        return datetime.now(UTC)


def _pause_s(attempt: int) -> float:
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt) * random.uniform(0.5, 1.0)


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
