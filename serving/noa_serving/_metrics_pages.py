"""One page of metrics for all workers of a server, whichever of them is asked.

Each worker writes its own page into the server's private folder every second, under a temporary name that is changed
last; the one that is asked puts its own figures of this moment and the pages of the others together. No lock, nothing
on the way of a request, and nothing at all for a server of one worker. A page of a worker that has died is left out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

log = logging.getLogger("noa.serving")

WRITE_EVERY_S = 1.0


class MetricsPages:
    """The pages of one server's workers, seen by the one with number `slot`. Belongs to its event loop."""

    def __init__(self, folder: Path, slot: int) -> None:
        self._folder = folder
        self._slot = slot
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[None] | None = None
        self._is_failing = False

    def start(self, render: Callable[[], bytes]) -> None:
        """Write what `render` gives now and every second from now on."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(WRITE_EVERY_S, self.start, render)
        if self._writing is None or self._writing.done():  # a disk may stand still for longer
            self._writing = loop.run_in_executor(None, self.write, render())

    def stop(self) -> None:
        """Write no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def write(self, page: bytes) -> None:
        """Replace this worker's page; a disk that refuses is told once, and the others show the page before."""
        temporary = self._path(self._slot).with_suffix(".part")
        try:
            temporary.write_bytes(page)
            temporary.replace(self._path(self._slot))
        except OSError as exc:
            if not self._is_failing:
                log.warning("the other workers cannot be told the metrics of this one: %s", exc.strerror)
            self._is_failing = True
        else:
            self._is_failing = False

    def read(self, slots: Iterable[int]) -> list[bytes]:
        """Return the pages of other workers that have written one."""
        pages: list[bytes] = []
        for slot in slots:
            with suppress(OSError):
                pages.append(self._path(slot).read_bytes())
        return pages

    def _path(self, slot: int) -> Path:
        return self._folder / f"metrics-{slot}.txt"


def merge(pages: Iterable[bytes]) -> bytes:
    """Return pages of the text format as one: each family once, with the samples of all."""
    families: dict[bytes, tuple[list[bytes], list[bytes]]] = {}
    for page in pages:
        heads: list[bytes] = []
        samples: list[bytes] = []
        for line in page.splitlines():
            if line.startswith(b"# HELP "):
                heads, samples = families.setdefault(line.split(b" ", 3)[2], ([], []))
            if not line.startswith(b"#"):
                samples.append(line)
            elif line not in heads:
                heads.append(line)
    lines = [line for heads, samples in families.values() for line in (*heads, *samples)]
    return b"\n".join(lines) + b"\n"
