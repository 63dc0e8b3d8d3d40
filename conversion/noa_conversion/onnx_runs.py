"""Runs of onnxruntime that end: within a `work_limit`, a thread looks at the clock and at the memory meanwhile.

onnxruntime looks between two operators whether it is to stop, also in a `Loop`.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from noa.errors import ConversionError
from noa_conversion.work_limits import WorkLimit, check_time, current_limit

if TYPE_CHECKING:
    import onnxruntime

    from noa_conversion.onnx_bfloat import BfloatSession

_LOOK_EVERY_S: Final = 0.05
_SHARE_OF_FREE: Final = 0.9
_STATUS: Final = Path("/proc/self/status")
_MEMORY: Final = Path("/proc/meminfo")


def run_session(
    session: onnxruntime.InferenceSession | BfloatSession,
    outputs: Sequence[str],
    inputs: Mapping[str, Any],
    *,
    where: str,
) -> list[Any]:
    """Run onnxruntime; within a `work_limit` it is stopped when its time or memory is used up.

    Raises:
        ConversionError: it was stopped; names the setting. What onnxruntime itself raises goes through.
    """
    limit = current_limit()
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

    def __init__(self, limit: WorkLimit, options: Any, where: str) -> None:
        super().__init__(name="noa-work-limit", daemon=True)
        self.done = threading.Event()
        self.stopped_for: ConversionError | None = None
        self._limit, self._options, self._where = limit, options, where
        self._before = _held_bytes()
        self._most = min(limit.memory_bytes, _free_bytes(limit.memory_bytes))

    def run(self) -> None:
        while not self.done.wait(_LOOK_EVERY_S):
            if self._limit.is_over:
                self.stopped_for = self._limit.too_long(self._where)
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
