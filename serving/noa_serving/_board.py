"""The board: shared memory in which the workers of one server tell each other how they are.

One file of fixed size in the server's private folder, filled up when it is made, so that a disk that is full later
harms nothing. Each worker has a slot with a heartbeat and a cell; one more cell holds what all have agreed on. A slot
belongs to the process that holds its lock file, and the kernel gives that back however the process dies. A cell has two
halves, written in turn, each with a number and a checksum: a writer that is killed in the middle leaves the other half
whole.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from noa.errors import ConflictError, ServiceError

_BOARD_FILE = "board"
_LOCK_FILE = "agreement.lock"
_FLAG_BYTES = 4096
_BEAT = struct.Struct("<d")
_HEAD = struct.Struct("<QII")  # number, length, checksum over number and payload
_CELL_BYTES = 4096
_BYTES_PER_ENDPOINT = 2048
_CLAIM_PATIENCE_S = 10.0
_LOCK_PATIENCE_S = 2.0
_RETRY_S = 0.005


class Cell:
    """A value that one process writes at a time and all read, whole, without a lock."""

    def __init__(self, memory: mmap.mmap, offset: int, size: int) -> None:
        self._memory = memory
        self._halves = (offset, offset + size)
        self._room = size - _HEAD.size

    def read(self) -> tuple[int, bytes]:
        """Return the newest whole value with its number; (0, empty) before the first one."""
        while True:
            before = [self._number(half) for half in (0, 1)]
            found = max(self._read_half(0), self._read_half(1))
            if found[0] or before == [self._number(half) for half in (0, 1)]:
                return found

    def write(self, payload: bytes) -> None:
        """Replace the value.

        Raises:
            ServiceError: it is larger than the cell.
        """
        if len(payload) > self._room:
            raise ServiceError("the state of a worker is too large", expected=self._room, received=len(payload))
        number = self.read()[0] + 1
        start = self._halves[number % 2]
        self._memory[start + _HEAD.size : start + _HEAD.size + len(payload)] = payload
        _HEAD.pack_into(self._memory, start, number, len(payload), _checksum(number, payload))

    def _number(self, half: int) -> int:
        return _HEAD.unpack_from(self._memory, self._halves[half])[0]

    def _read_half(self, half: int) -> tuple[int, bytes]:
        start = self._halves[half]
        number, length, checksum = _HEAD.unpack_from(self._memory, start)
        if not number or length > self._room:
            return 0, b""
        payload = self._memory[start + _HEAD.size : start + _HEAD.size + length]
        return (number, payload) if _checksum(number, payload) == checksum else (0, b"")


class Board:
    """One worker's view of it. `slot` is its own; `size` is how many workers the server has."""

    def __init__(self, memory: mmap.mmap, *, size: int, endpoints: int, folder: Path | None) -> None:
        self.size = size
        half = _half_bytes(endpoints)
        starts = [_FLAG_BYTES + slot * (_BEAT.size + 2 * half) for slot in range(size)]
        self._memory = memory
        self._beats = starts
        self.cells = [Cell(memory, start + _BEAT.size, half) for start in starts]
        self.agreement = Cell(memory, _FLAG_BYTES + size * (_BEAT.size + 2 * half), half)
        self._slot_locks: list[int] = []
        self._lock: int | None = None
        self.slot = 0
        if folder is not None:
            self._slot_locks = [os.open(_slot_lock(folder, slot), os.O_RDWR) for slot in range(size)]
            self._lock = os.open(folder / _LOCK_FILE, os.O_RDWR)
            self.slot = self._claim()
        self.cells[self.slot].write(b"")
        self.beat()

    def is_live(self, slot: int) -> bool:
        """Tell whether a process holds that slot."""
        if slot == self.slot or not self._slot_locks:
            return True
        return not _try_lock(self._slot_locks[slot], fcntl.LOCK_SH, keep=False)

    def beat(self) -> None:
        """Say that this worker's event loop turns."""
        _BEAT.pack_into(self._memory, self._beats[self.slot], time.monotonic())

    def silent_s(self, slot: int) -> float:
        """Return for how long a worker has not beaten, seconds; the clock is that of the whole machine."""
        return time.monotonic() - _BEAT.unpack_from(self._memory, self._beats[slot])[0]

    def flag(self, index: int) -> bool:
        """Tell whether a flag is raised."""
        return self._memory[index] != 0

    def raise_flag(self, index: int) -> None:
        """Raise a flag for the life of the server."""
        self._memory[index] = 1

    @contextmanager
    def locked(self) -> Generator[None, None, None]:
        """Keep others from writing the agreement; for moments only.

        Raises:
            ServiceError: somebody held it for seconds, e.g. a process that is stopped.
        """
        if self._lock is None:
            yield
            return
        deadline = time.monotonic() + _LOCK_PATIENCE_S
        while not _try_lock(self._lock, fcntl.LOCK_EX, keep=True):
            if time.monotonic() > deadline:
                raise ServiceError("another worker of this server holds the lock and does not let go")
            time.sleep(_RETRY_S)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give the slot back."""
        for descriptor in [*self._slot_locks, *([] if self._lock is None else [self._lock])]:
            os.close(descriptor)
        self._slot_locks, self._lock = [], None

    def _claim(self) -> int:
        deadline = time.monotonic() + _CLAIM_PATIENCE_S
        while time.monotonic() < deadline:
            for slot, descriptor in enumerate(self._slot_locks):
                if _try_lock(descriptor, fcntl.LOCK_EX, keep=True):
                    return slot
            time.sleep(_RETRY_S)  # somebody looks whether a slot is held, or a worker is just ending
        raise ConflictError("every worker's place is taken", expected=f"at most {self.size} workers")


def create_board(folder: Path, *, size: int, endpoints: int) -> None:
    """Make the files of a board in a new private folder."""
    for path in (folder / _LOCK_FILE, *(_slot_lock(folder, slot) for slot in range(size))):
        path.touch(mode=0o600)
    descriptor = os.open(folder / _BOARD_FILE, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, _total_bytes(size, endpoints))
    finally:
        os.close(descriptor)


def open_board(folder: Path, *, size: int, endpoints: int) -> Board:
    """Open the board in `folder` and take a slot that nobody holds.

    Raises:
        ConflictError: there is none.
    """
    with (folder / _BOARD_FILE).open("r+b") as file:
        memory = mmap.mmap(file.fileno(), _total_bytes(size, endpoints))
    return Board(memory, size=size, endpoints=endpoints, folder=folder)


def private_board(*, endpoints: int) -> Board:
    """Return the board of a process that is a server of its own."""
    return Board(mmap.mmap(-1, _total_bytes(1, endpoints)), size=1, endpoints=endpoints, folder=None)


def _half_bytes(endpoints: int) -> int:
    return _CELL_BYTES + endpoints * _BYTES_PER_ENDPOINT


def _total_bytes(size: int, endpoints: int) -> int:
    return _FLAG_BYTES + size * _BEAT.size + (size + 1) * 2 * _half_bytes(endpoints)


def _slot_lock(folder: Path, slot: int) -> Path:
    return folder / f"worker-{slot}.lock"


def _checksum(number: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(number.to_bytes(8, "little")))


def _try_lock(descriptor: int, kind: int, *, keep: bool) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    if not keep:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    return True
