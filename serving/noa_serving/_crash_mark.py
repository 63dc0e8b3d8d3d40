"""A mark that outlives its process: what a worker was about to compute when it ended.

A page of a file that is mapped into memory, so that setting it costs no system call, and a process that is killed or
crashes in native code leaves it as it was. The worker that takes the place of a dead one reads it.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

_PAGE = 4096
_LENGTH = 2


class CrashMark:
    """One page. `left_by_another` is what a process before this one had set and not cleared; empty for nothing."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, _PAGE)
            self._page = mmap.mmap(descriptor, _PAGE)
        finally:
            os.close(descriptor)
        length = min(int.from_bytes(self._page[:_LENGTH], "little"), _PAGE - _LENGTH)
        self.left_by_another = self._page[_LENGTH : _LENGTH + length].decode(errors="replace")
        self.clear()

    def set(self, text: bytes) -> None:
        """Leave `text` to whoever comes after, unless it is cleared first."""
        text = text[: _PAGE - _LENGTH]
        self._page[_LENGTH : _LENGTH + len(text)] = text
        self._page[:_LENGTH] = len(text).to_bytes(_LENGTH, "little")  # last: what it says is whole

    def clear(self) -> None:
        """Leave nothing."""
        self._page[:_LENGTH] = bytes(_LENGTH)
