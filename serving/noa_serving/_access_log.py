"""The access log: a line of JSON for each request that is told of, in a file that all workers append to.

A batch of lines is one write to a file opened for appending, so lines of workers do not mix. A file that was moved away
(logrotate) is opened anew. What a full disk takes only in part ends with a line break at the next write.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from noa.regular_files import special_kind
from noa_serving._stages import STAGES

if TYPE_CHECKING:
    from noa_serving._observer import Record


class AccessLog:
    """Writes lines; belongs to one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._is_torn = False

    def write(self, records: Sequence[Record]) -> int:
        """Append a line for each record; returns how many were not written.

        Raises:
            OSError: none was.
        """
        if not records:
            return 0
        lines = [orjson.dumps(line_of(record), option=orjson.OPT_APPEND_NEWLINE) for record in records]
        payload = b"".join(lines)
        descriptor = self._open()
        if self._is_torn:
            payload = b"\n" + payload
        written = os.write(descriptor, payload)
        torn_before, self._is_torn = self._is_torn, written < len(payload) and payload[written - 1 : written] != b"\n"
        if written == len(payload):
            return 0
        return len(lines) - payload[torn_before:written].count(b"\n")

    def _open(self) -> int:
        """Return the open file; another one if that name has moved on to another file, or to none."""
        descriptor = self._descriptor
        if descriptor is not None:
            try:
                found = self._path.stat()
                if os.path.samestat(found, os.fstat(descriptor)):
                    return descriptor
            except FileNotFoundError:
                pass
            os.close(descriptor)
            self._descriptor = None
        if kind := special_kind(self._path):  # opening a pipe waits for whoever reads it
            raise OSError(errno.EINVAL, f"it is {kind}, and must be a regular file", str(self._path))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        self._is_torn = False
        return self._descriptor


def line_of(record: Record) -> dict[str, object]:
    """Return a record as its line tells it; what is not known is left out."""
    ended_at = datetime.fromtimestamp(record.ended_at / 1e9, UTC)
    line: dict[str, object] = {
        "time": ended_at.isoformat(timespec="microseconds"),
        "target": record.target,
        "route": record.route,
        "status": record.status,
        "seconds": record.taken / 1e9,
        "client": record.client,
        "worker": os.getpid(),
    }
    if record.version is not None:
        model, number, digest = record.version
        line |= {"model": model, "version": number, "digest": digest, "items": record.items}
    if record.arm:
        line["arm"] = record.arm
    if record.stream is not None:
        line |= {"steps": record.stream.steps, "ended": record.stream.reason}
    if record.stages is not None:
        line["stages"] = {stage: ns / 1e9 for stage, ns in zip(STAGES, record.stages, strict=False)}
    if record.trace_id is not None:
        line["trace_id"] = record.trace_id
    if record.request_id is not None:
        line["request_id"] = record.request_id
    return line
