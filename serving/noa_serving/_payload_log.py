"""The payload log: inputs and outputs of a share of the requests, in Parquet files for whoever watches the model.

Rows are gathered in memory and become a file when they are large or old enough: written under a temporary name,
fsynced, and given their name last, so that every file that can be seen is whole. Old files go where all together would
be too large. A file that the disk does not take is lost with its rows, which are counted.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from noa.atomic_write import write_file
from noa.errors import NoaError
from noa_serving._off_loop import RecordsLostError
from noa_serving._payload_table import Redactor, shape_key, write_table

if TYPE_CHECKING:
    from noa.settings import PayloadLogSettings
    from noa_serving._observer import PayloadRow

_OURS = re.compile(r"\d{8}T\d{12}Z-v\d+-\d+-[0-9a-f]{8}\.parquet")
_ROW_BYTES = 256
"""What a row takes beside its tensors."""
_KEY_BYTES = 32


@dataclass(slots=True)
class _Group:
    """Rows that will be one file."""

    begun_at: float
    rows: list[PayloadRow] = field(default_factory=list["PayloadRow"])
    num_bytes: int = 0


class PayloadLog:
    """Writes files; belongs to one thread. `clock` is monotonic, seconds."""

    def __init__(
        self, settings: PayloadLogSettings, folder: Path, key: bytes, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._redactor = Redactor(names=settings.redact, key=key)
        self._clock = clock
        self._groups: dict[object, _Group] = {}
        self._lost = 0
        self._reason = ""

    def write(self, rows: Sequence[PayloadRow]) -> int:
        """Take rows, and write the files that are due.

        Raises:
            RecordsLostError: a file could not be written; how many rows were in it, and why.
        """
        for row in rows:
            self._add(row)
        now, most = self._clock(), self._settings.max_file_bytes
        due = [key for key, group in self._groups.items() if now - group.begun_at >= self._settings.max_file_s]
        left = {key: group.num_bytes for key, group in self._groups.items() if key not in due}
        for key in sorted(left, key=lambda one: left[one], reverse=True):  # the largest, until the rest is no file
            if sum(left.values()) < most:
                break
            due.append(key)
            del left[key]
        self._roll(due)
        self._tell_losses()
        return 0

    def finish(self) -> int:
        """Write all that was taken. Errors as in `write`."""
        self._roll(list(self._groups))
        self._tell_losses()
        return 0

    def _add(self, row: PayloadRow) -> None:
        keep = self._redactor.keep
        row = row._replace(inputs=keep(row.inputs), outputs=keep(row.outputs))
        key = shape_key(row)
        size = row.num_bytes + _ROW_BYTES
        group = self._groups.get(key)
        if group is not None and group.num_bytes + size > self._settings.max_file_bytes:
            self._roll([key])
            group = None
        if group is None:
            group = self._groups[key] = _Group(self._clock())
        group.rows.append(row)
        group.num_bytes += size

    def _roll(self, keys: Sequence[object]) -> None:
        for key in keys:
            rows = self._groups.pop(key).rows
            try:
                self._write_file(rows)
            except (NoaError, OSError, ValueError, OverflowError) as exc:
                self._lost += len(rows)
                self._reason = f"{type(exc).__name__}: {exc}"

    def _tell_losses(self) -> None:
        lost, self._lost = self._lost, 0
        if lost:
            raise RecordsLostError(lost, self._reason)

    def _write_file(self, rows: Sequence[PayloadRow]) -> None:
        record = rows[0].record
        assert record.version is not None
        payload = write_table(rows, self._redactor)
        most = self._settings.max_total_bytes
        if payload.size > most:
            raise OverflowError(f"a file of {payload.size} bytes is more than `max_total_bytes`")
        make_room(self._folder, most - payload.size)
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
        name = f"{now}-v{record.version.number}-{os.getpid()}-{secrets.token_hex(4)}.parquet"
        write_file(self._folder / record.target / name, payload.to_pybytes(), private=True)


def make_room(folder: Path, most_bytes: int) -> None:
    """Remove the oldest files of the log, of all endpoints, until the rest takes at most `most_bytes`.

    Other workers may do the same at this moment; files that are none of the log's are left alone.
    """
    found: list[tuple[str, int, Path]] = []
    for path in folder.glob("*/*.parquet"):
        if _OURS.fullmatch(path.name):
            with suppress(FileNotFoundError):
                found.append((path.name, path.stat().st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size


def load_key(path: Path) -> bytes:
    """Return the project's key for hashes in the log; it is made at the first time, and stays."""
    with suppress(FileNotFoundError):
        return bytes.fromhex(path.read_text())
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    write_file(made, secrets.token_hex(_KEY_BYTES), private=True)
    with suppress(FileExistsError):  # another worker was first
        os.link(made, path)
    made.unlink()
    return bytes.fromhex(path.read_text())
