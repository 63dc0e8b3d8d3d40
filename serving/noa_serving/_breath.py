"""A breath for refused connections: after a 503 a connection is not read for a moment, so that refusing stays cheap.

A client that ignores `Retry-After` and asks again at once would have the event loop refuse it thousands of times a
second, and take that time from what is computed. So refused connections wait, in the order in which they were refused,
and are read again at no more than `REFUSALS_PER_S` a second. A client that waits as it was told never notices.

How long a connection waits grows with their number: 250 wait an eighth of a second, and none longer than `LONGEST_S`,
which is the shortest `Retry-After`. Refusing costs about 50 us beside a model that fills the core, so that the limit is
a tenth of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

REFUSALS_PER_S = 2000.0
LONGEST_S = 1.0
_TICK_S = 0.005
"""Connections that are due within this time are read again together: each waking of the loop has its price."""


class Breaths:
    """The connections of one event loop that take a breath."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[float, Callable[[], None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._last_at = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, loop: asyncio.AbstractEventLoop, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Call `pause` now and `resume` when the connection may be read again, unless that is at once."""
        now = loop.time()
        self._last_at = max(self._last_at + 1.0 / REFUSALS_PER_S, now)
        at = min(self._last_at, now + LONGEST_S)
        if at - now < _TICK_S:
            return
        pause()
        self._waiting.append((at, resume))
        if self._timer is None:
            self._timer = loop.call_at(at, self._end, loop)

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let all go whose time has come; those who are due within a tick go with them."""
        self._timer = None
        due = loop.time() + _TICK_S
        waiting = self._waiting
        while waiting and waiting[0][0] <= due:
            waiting.popleft()[1]()
        if waiting:
            self._timer = loop.call_at(waiting[0][0], self._end, loop)
