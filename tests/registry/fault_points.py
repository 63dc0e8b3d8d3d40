"""The points of an operation at which a process can die, and a way to die at one of them.

A point is passed before each SQL statement, before each commit and each return of a connection (so: after a commit),
before each file-system call that changes something below one folder, before each request to S3, and at each call of
the registry's `checkpoint`. Killing a process at every point shows it every state that a crash can leave behind, but
for those inside one system call or inside the database, which are theirs to survive.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from sqlalchemy import Connection, Engine, Pool, event

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Which arguments of an audited call are paths, and which the folders that they are relative to.
_PATHS: dict[str, Sequence[tuple[int, int | None]]] = {
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.remove": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.chmod": ((0, 2),),
    "os.truncate": ((0, None),),
    "os.utime": ((0, 3),),
    "shutil.rmtree": ((0, 1),),
    "shutil.copyfile": ((0, None), (1, None)),
    "shutil.move": ((0, None), (1, None)),
    "fcntl.flock": ((0, None),),
}
_RANDOM = re.compile(r"[0-9a-f]{64}|[0-9a-f]{32}|[0-9a-f]{12,24}")
AfterCommit: TypeAlias = Callable[[int], None]


class Points:
    """Counts the points that this process passes between `start` and `stop`.

    At point number `kill_at` the process writes a line of JSON to `report` (an open file: the label of the point and
    the number of commits before it) and kills itself. `after_commit` is called with the number of commits so far, after
    each commit and before anything else happens.
    """

    def __init__(
        self, folder: Path, *, kill_at: int | None = None, report: int = -1, after_commit: AfterCommit | None = None
    ) -> None:
        self.labels: list[str] = []
        self.commits = 0
        self._folder = f"{folder}/"
        self._kill_at = kill_at
        self._report = report
        self._after_commit = after_commit
        self._is_new_commit = False
        self._running = False
        self._turn = threading.RLock()
        self._own = threading.local()
        self._write = os.write

    def install(self) -> None:
        """Listen to everything, for the rest of this process's life."""
        event.listen(Engine, "before_cursor_execute", self._on_statement)
        event.listen(Engine, "commit", self._on_commit)
        event.listen(Pool, "checkin", lambda *_: self.passed("connection returned"))
        sys.addaudithook(self._on_audit)
        # These have no audit event; the registry calls them by these names.
        os.write = self._before(os.write, "write")
        os.fsync = self._before(os.fsync, "fsync")

    def start(self) -> None:
        self._running = True

    def stop(self) -> None:
        """Pass the last point, and listen no more."""
        self.passed("done")
        self._running = False

    def checkpoint(self, step: str) -> None:
        """Take a step of the registry."""
        self.passed(f"step {step}")

    def passed(self, label: str) -> None:
        if not self._running or getattr(self._own, "is_busy", False):
            return
        with self._turn:
            self._own.is_busy = True
            try:
                self._tell_of_commit()
                self.labels.append(_RANDOM.sub("*", label))
                if len(self.labels) == self._kill_at:
                    line = json.dumps({"label": self.labels[-1], "commits": self.commits}) + "\n"
                    self._write(self._report, line.encode())
                    os.kill(os.getpid(), signal.SIGKILL)
            finally:
                self._own.is_busy = False

    def _tell_of_commit(self) -> None:
        if self._is_new_commit:
            self._is_new_commit = False
            if self._after_commit is not None:
                self._after_commit(self.commits)

    def _on_statement(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self.passed("sql " + " ".join(statement.split())[:70])

    def _on_commit(self, connection: Connection) -> None:
        self.passed("commit")
        if self._running and not getattr(self._own, "is_busy", False):
            self.commits += 1
            self._is_new_commit = True

    def _on_audit(self, name: str, arguments: tuple[Any, ...]) -> None:
        if not self._running or getattr(self._own, "is_busy", False):
            return
        if name == "http.client.send":
            head = bytes(arguments[1][:200]).split(b" HTTP/", 1)[0] if isinstance(arguments[1], bytes) else b"body"
            self.passed("s3 " + head.decode(errors="replace"))
        elif name == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
            self._touch("open", arguments[0], None)
        elif name in _PATHS:
            for path, base in _PATHS[name]:
                if self._touch(name, arguments[path], None if base is None else arguments[base]):
                    break

    def _before(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def passing(handle: int, *rest: Any) -> Any:
            self._touch(name, handle, None)
            return call(handle, *rest)

        return passing

    def _touch(self, name: str, path: Any, base: int | None) -> bool:
        """Pass a point if `path` is below the folder; tell whether it is."""
        if not self._running or getattr(self._own, "is_busy", False):
            return False
        place = _place(path, base)
        if not place.startswith(self._folder):
            return False
        self.passed(f"{name} {place.removeprefix(self._folder)}")
        return True


def _place(path: Any, base: int | None) -> str:
    """Return the whole path of a path, an open file, or a path relative to an open folder."""
    if isinstance(path, int):
        try:
            return str(Path(f"/proc/self/fd/{path}").readlink())
        except OSError:
            return ""
    text = os.fsdecode(path)
    if text.startswith("/"):
        return text
    folder = _place(base, None) if isinstance(base, int) and base >= 0 else str(Path.cwd())
    return f"{folder}/{text}"
