"""Anchors: the ledger's newest row and hash, kept outside of the database.

Who may write the whole database can compute a new chain from any row on. A hash that was kept elsewhere shows it: the
row that it names must still be there and have that hash. An anchor file holds one JSON object a line, oldest first.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shlex
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import cast

from noa.atomic_write import sync_folder
from noa.digests import canonical_json
from noa.errors import ConflictError, IntegrityError, NotFoundError, StorageError
from noa_registry.ledger import LedgerEntry

_TAIL_BYTES = 4096
_MOST_ROWS = 2**63 - 1
_REGISTRY = re.compile(r"[0-9a-f]{32}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerHead:
    """The newest row of a ledger at some moment. `registry` is the registry's id."""

    registry: str | None
    sequence: int
    hash: str
    created_at: datetime

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "registry": self.registry,
            "sequence": self.sequence,
            "hash": self.hash,
            "created_at": self.created_at.isoformat(timespec="microseconds"),
        }


def head_of(entry: LedgerEntry, registry: str | None) -> LedgerHead:
    """Return the head of a ledger that ends with `entry`."""
    return LedgerHead(registry=registry, sequence=entry.sequence, hash=entry.hash, created_at=entry.created_at)


def read_anchors(path: Path) -> list[LedgerHead]:
    """Return what an anchor file holds. A last line that a crash cut off is left out.

    Raises:
        NotFoundError: there is no such file.
        IntegrityError: a line is no anchor.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as exc:
        raise NotFoundError(
            "there is no such anchor file", where=str(path), remedy="Write one with: noa ledger anchor --output FILE"
        ) from exc
    lines = data.split(b"\n")
    return [parse_head(line, f"{path}:{number}") for number, line in enumerate(lines[:-1], start=1) if line.strip()]


class AnchorFile:
    """A file to which every move appends the ledger's new head. Safe for many processes at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def gap(self) -> str | None:
        """Return what is there instead of a first anchor; None if there is one, or what no move gets past anyway."""
        try:
            with self.path.open("rb") as file:
                start = file.read(_TAIL_BYTES)
        except FileNotFoundError:
            return "no such file"
        except OSError:
            return None
        return (
            None if start[: start.rfind(b"\n") + 1].strip() or len(start) == _TAIL_BYTES else "a file without anchors"
        )

    @property
    def remedy(self) -> str:
        """Say what to do where anchors are missing."""
        return (
            "If there were anchors, somebody removed them: put the file back from a copy and verify the ledger. If "
            f"`registry.ledger_anchor` is new, begin with: noa ledger anchor --output {shlex.quote(str(self.path))}"
        )

    def refuse_gap(self, rows: int) -> None:
        """Refuse to begin an anchor file by itself after moves that must have been anchored.

        A ledger of one row is let through: the process that wrote it may have died before it wrote the anchor.

        Raises:
            ConflictError: nothing is anchored; nothing was moved.
        """
        gap = self.gap()
        if gap is not None and rows > 1:
            raise ConflictError(
                "no alias is moved: nothing of the ledger is anchored",
                where=str(self.path),
                expected=f"anchors of a ledger of {rows} rows, for `registry.ledger_anchor` is set",
                received=gap,
                remedy=self.remedy,
            )

    def require_writable(self) -> None:
        """Make sure, before an alias moves, that the move can be anchored.

        Raises:
            StorageError: the file cannot be written; nothing was moved.
        """
        with self._open():
            pass

    def append(self, head: LedgerHead) -> None:
        """Append a head durably; one that is not newer than the last is covered by it already.

        Raises:
            StorageError: the disk refused. The move that it tells of is in the ledger all the same.
        """
        line = canonical_json(head.to_dict()) + b"\n"
        with self._open() as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)  # released when the handle is closed
            last = _last_line(handle, self.path)
            if last is not None and last.sequence >= head.sequence:
                return
            try:
                if os.write(handle, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(handle)
            except OSError as exc:
                raise StorageError(
                    f"row {head.sequence} is in the ledger, but could not be anchored: {exc.strerror}",
                    where=str(self.path),
                    remedy="Make room, then promote the same version again: that only writes the anchor",
                    path=str(self.path),
                ) from exc

    @contextmanager
    def _open(self) -> Generator[int]:
        try:
            is_new = not self.path.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            raise StorageError(
                f"the ledger's anchor file cannot be written: {os.strerror(exc.errno or 0).lower()}",
                where=str(self.path),
                remedy="Correct `registry.ledger_anchor` or the rights of its folder; no alias moves until then",
                path=str(self.path),
            ) from exc
        try:
            if is_new:
                sync_folder(self.path.parent)
            yield handle
        finally:
            os.close(handle)


def _last_line(handle: int, path: Path) -> LedgerHead | None:
    """Return the last whole line; what a crash left of an unfinished one is cut off."""
    size = os.fstat(handle).st_size
    start = max(0, size - _TAIL_BYTES)
    tail = os.pread(handle, size - start, start)
    whole = tail.rfind(b"\n") + 1
    if start > 0 and whole == 0:
        return parse_head(tail, str(path))  # no line of ours is that long: says so, and cuts nothing off
    if whole < len(tail):
        os.ftruncate(handle, start + whole)
    lines = [line for line in tail[:whole].split(b"\n") if line.strip()]
    return parse_head(lines[-1], str(path)) if lines else None


def parse_head(line: bytes, where: str) -> LedgerHead:
    """Return what a line says; `where` names it.

    Raises:
        IntegrityError: it is no anchor.
    """
    try:
        value = cast("dict[str, object]", json.loads(line))
        registry, sequence = value["registry"], value["sequence"]
        if type(sequence) is not int or not 0 <= sequence <= _MOST_ROWS:
            raise ValueError(sequence)
        return LedgerHead(
            registry=None if registry is None else _text(_REGISTRY, registry),
            sequence=sequence,
            hash=_text(_HASH, value["hash"]),
            created_at=datetime.fromisoformat(str(value["created_at"])),
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as exc:
        raise IntegrityError(
            "a line of the anchor file is no anchor",
            where=where,
            expected="a JSON object with `registry`, `sequence`, `hash` and `created_at`",
            received=ascii(line[:80]),
            file=where,
        ) from exc


def _text(pattern: re.Pattern[str], value: object) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(value)
    return value
