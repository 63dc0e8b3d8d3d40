"""What a recipe prints, bounded: its first and its last part, kept in the job's folder."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path

OUTPUT_FILE = "output.txt"
_PART = 1 << 20
_LONGEST_LINE = 500


class RecipeOutput:
    """Collects the lines of a process until the job's folder is known; a reader's thread and another may use it."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._last = ""
        self._clear()

    def take(self, line: str | None) -> None:
        """Keep a line; None, the end, is nothing to keep."""
        if line is None:
            return
        content = line.encode(errors="replace") + b"\n"
        with self._lock:
            self._last = line.strip() or self._last
            self._lock.notify_all()
            if not self._tail and self._head_size + len(content) <= _PART:
                self._head.append(content)
                self._head_size += len(content)
                return
            self._tail.append(content)
            self._tail_size += len(content)
            while self._tail_size > _PART:
                gone = self._tail.popleft()
                self._tail_size -= len(gone)
                self._missing += len(gone)

    def wait_for_some(self, timeout_s: float) -> None:
        """Wait until there is something that is not yet in a file, at most so long."""
        with self._lock:
            self._lock.wait_for(lambda: bool(self._head or self._tail), timeout_s)

    def last_line(self) -> str:
        """Return the last line that says something."""
        return self._last[-_LONGEST_LINE:] if self._last else "it said nothing"

    def append_to(self, folder: Path | None, title: str) -> Path | None:
        """Add what came since the last time to the file of a job's folder; None if there is no such file.

        A disk that refuses costs what was printed and no more: the job's own files say how it went.
        """
        if folder is None:
            return None
        path = folder / OUTPUT_FILE
        with self._lock:
            if self._head or self._tail:
                gap = [f"[{self._missing} bytes are left out here]\n".encode()] if self._missing else []
                content = b"".join([f"[{title}]\n".encode(), *self._head, *gap, *self._tail])
                self._clear()
                try:
                    with path.open("ab") as file:
                        file.write(content)
                except OSError:
                    return None
        return path if path.is_file() else None

    def _clear(self) -> None:
        self._head: list[bytes] = []
        self._tail: deque[bytes] = deque()
        self._head_size = self._tail_size = self._missing = 0


def with_output(remedy: str | None, path: Path | None) -> str | None:
    """Return a remedy that also says where the output is."""
    if path is None:
        return remedy
    return f"What it printed is in {path}" if remedy is None else f"{remedy}; what it printed is in {path}"
