"""Writing what requests leave behind without holding up a request: a bounded queue before a thread.

`put` never waits and never fails: what finds the queue full is lost, and counted. The thread looks a few times a
second, so that no request pays for waking it. What the disk or the other end refuses is lost and counted too; a reason
is logged when refusals begin and when they end.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")

log = logging.getLogger("noa.serving")

_LOOK_EVERY_S = 0.2
_MOST_AT_ONCE = 2048


class RecordsLostError(Exception):
    """So many items could not be written, for a reason."""

    def __init__(self, count: int, reason: str) -> None:
        super().__init__(reason)
        self.count = count


class OffLoop(Generic[ItemT]):
    """A queue before a thread that calls `write` with what has come, at times with nothing.

    `write` returns how many of these items it could not keep, or raises `RecordsLostError` if earlier ones that it held
    back are among them; any other exception means all of these. `finish` is called once, last. One thread puts items.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[Sequence[ItemT]], int],
        *,
        finish: Callable[[], int] | None = None,
        most: int = 16_384,
        most_bytes: int = 64 << 20,
    ) -> None:
        self.name = name
        self._write = write
        self._finish = finish
        self._most = most
        self._most_bytes = most_bytes
        self._queue: deque[tuple[ItemT, int]] = deque()
        self._put = 0
        self._put_bytes = 0
        self._taken_bytes = 0
        self._refused = 0
        self._failed = 0
        self._is_failing = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"noa-{name}", daemon=True)

    @property
    def offered(self) -> int:
        """Items that were to be written, the lost ones among them."""
        return self._put + self._refused

    @property
    def lost(self) -> int:
        """Items that were not written: the queue was full, or the other side refused."""
        return self._refused + self._failed

    def put(self, item: ItemT, num_bytes: int = 0) -> None:
        """Have an item written, or lose it. `num_bytes` is what it holds in memory until then."""
        waiting_bytes = self._put_bytes - self._taken_bytes
        if len(self._queue) >= self._most or waiting_bytes + num_bytes > self._most_bytes:
            self._refused += 1
            return
        self._put += 1
        self._put_bytes += num_bytes
        self._queue.append((item, num_bytes))

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Write what waits, and end; what takes longer is left to the end of the process."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_EVERY_S):
            self._drain()
        self._drain()
        if self._finish is not None:
            self._try(self._finish, 0)

    def _drain(self) -> None:
        while True:
            items: list[ItemT] = []
            num_bytes = 0
            while self._queue and len(items) < _MOST_AT_ONCE:
                item, size = self._queue.popleft()
                items.append(item)
                num_bytes += size
            self._try(lambda items=items: self._write(items), len(items))
            self._taken_bytes += num_bytes
            if not self._queue:
                return

    def _try(self, write: Callable[[], int], count: int) -> None:
        reason = "only part of it could be written"
        try:
            lost = write()
        except RecordsLostError as exc:
            lost, reason = exc.count, str(exc)
        except Exception as exc:  # noqa: BLE001  # whatever it is, the next items must find this thread alive
            lost, reason = count, f"{type(exc).__name__}: {exc}"
        if lost and not self._is_failing:
            log.warning("%s: what requests leave there is lost: %s", self.name, reason)
        elif self._is_failing and count and not lost:
            log.info("%s: it is written again", self.name)
        self._is_failing = lost > 0 or (self._is_failing and not count)
        self._failed += lost
