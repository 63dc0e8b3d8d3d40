"""How long a model may be worked on, and how much memory it may take meanwhile: a graph may ask for endless work.

`work_limit` puts the settings `conversion.max_work_s` and `max_work_bytes` in force for what happens inside it: the
walk over a graph while it is imported, and runs of onnxruntime while models are compared. Outside of it nothing is
watched, so that serving pays nothing. onnxruntime looks between two operators whether it is to stop, also in a `Loop`.
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from noa.errors import ConversionError
from noa.settings import ConversionSettings

if TYPE_CHECKING:
    import onnxruntime

_FIELDS: Final = ConversionSettings.model_fields
_DEFAULT_SECONDS: Final = float(_FIELDS["max_work_s"].default)
_DEFAULT_BYTES: Final = int(_FIELDS["max_work_bytes"].default)
_LOOK_EVERY_S: Final = 0.05
_SHARE_OF_FREE: Final = 0.9
_STATUS: Final = Path("/proc/self/status")
_MEMORY: Final = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limit:
    """What is left to the work in force: until when, and how much more than at its beginning the process may hold."""

    seconds: float
    deadline: float
    memory_bytes: int


_limit: ContextVar[_Limit | None] = ContextVar("work_limit", default=None)


@contextmanager
def work_limit(seconds: float = _DEFAULT_SECONDS, memory_bytes: int = _DEFAULT_BYTES) -> Generator[None]:
    """Bound all imports and runs in this block, together. Within another such block the sooner end holds."""
    outer = _limit.get()
    deadline = time.monotonic() + seconds
    if outer is not None and outer.deadline < deadline:
        seconds, deadline = outer.seconds, outer.deadline
    memory_bytes = memory_bytes if outer is None else min(memory_bytes, outer.memory_bytes)
    token = _limit.set(_Limit(seconds=seconds, deadline=deadline, memory_bytes=memory_bytes))
    try:
        yield
    finally:
        _limit.reset(token)


def check_time(where: str) -> None:
    """Refuse to go on after the time of the block is over.

    Raises:
        ConversionError: names where the work was, and the setting.
    """
    limit = _limit.get()
    if limit is not None and time.monotonic() > limit.deadline:
        raise _too_long(limit, where)


def run_session(
    session: onnxruntime.InferenceSession, outputs: Sequence[str], inputs: Mapping[str, Any], *, where: str
) -> list[Any]:
    """Run onnxruntime; within a `work_limit` it is stopped when its time or memory is used up.

    Raises:
        ConversionError: it was stopped; names the setting. What onnxruntime itself raises goes through.
    """
    limit = _limit.get()
    if limit is None:
        return list(session.run(outputs, inputs))
    import onnxruntime as ort

    check_time(where)
    options = ort.RunOptions()
    options.log_severity_level = 4  # what fails is raised
    watch = _Watch(limit, options, where)
    watch.start()
    try:
        return list(session.run(outputs, inputs, options))
    except Exception as exc:  # onnxruntime's have no common base; all but those of the stop go on
        if watch.stopped_for is None:
            raise
        raise watch.stopped_for from exc
    finally:
        watch.done.set()
        watch.join()


class _Watch(threading.Thread):
    """Looks at the clock and the memory while a run goes on, and tells it to stop."""

    def __init__(self, limit: _Limit, options: Any, where: str) -> None:
        super().__init__(name="noa-work-limit", daemon=True)
        self.done = threading.Event()
        self.stopped_for: ConversionError | None = None
        self._limit, self._options, self._where = limit, options, where
        self._before = _held_bytes()
        self._most = min(limit.memory_bytes, _free_bytes(limit.memory_bytes))

    def run(self) -> None:
        while not self.done.wait(_LOOK_EVERY_S):
            if time.monotonic() > self._limit.deadline:
                self.stopped_for = _too_long(self._limit, self._where)
            elif _held_bytes() - self._before > self._most:
                self.stopped_for = ConversionError(
                    f"the model needs more memory than it may: {self._most >> 20} MiB",
                    where=self._where,
                    expected="a `Loop` that ends, or results that stay small",
                    remedy="If it needs that much, raise `conversion.max_work_bytes`",
                )
            if self.stopped_for is not None:
                self._options.terminate = True
                return


def _too_long(limit: _Limit, where: str) -> ConversionError:
    return ConversionError(
        f"the model was not done in {limit.seconds:g} seconds",
        where=where,
        expected="a `Loop` that ends",
        remedy="If it needs longer, raise `conversion.max_work_s`",
    )


def _held_bytes() -> int:
    """Return the memory that this process holds (where the system does not say: has held at the most)."""
    found = _kibibytes(_STATUS, "VmRSS:")
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if found is None else found) << 10


def _free_bytes(otherwise: int) -> int:
    """Return what can be taken of the machine's memory before others suffer."""
    found = _kibibytes(_MEMORY, "MemAvailable:")
    return otherwise if found is None else int((found << 10) * _SHARE_OF_FREE)


def _kibibytes(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), None)
