"""Send a job's numbers to its MLflow run, off the training thread.

A database may be locked for longer than an epoch takes, or far away, so one background thread does everything: it
opens the tracker while training begins, starts the run as soon as `begin` says which, then writes what has gathered
twice a second (`run_writer.py`). A tracker that fails never ends the job; it is reported.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from noa.errors import NoaError, NotFoundError
from noa_training.run_writer import RunFacts, RunInfo, RunStatus, RunWriter, without_run
from noa_training.tracked_values import TrackedValues

if TYPE_CHECKING:
    from noa.settings import RegistrySettings

__all__ = ["RunFacts", "RunInfo", "RunStatus", "RunTracking"]

_FLUSH_EVERY_S = 0.5  # what a killed job may lose of its database, until it is started again
_RETRY_EVERY_S = 2.0
_FINISH_TIMEOUT_S = 60.0
_NO_FILES: Final[Mapping[str, Path]] = MappingProxyType({})


class RunTracking:
    """The run of one job. `on_run` gets the run's id once, `on_warning` each failure; both on the background thread.

    `gather` finds out, on that thread, where the job runs. `log` is the log of the job's events: what a killed job did
    not write comes back from it, and system metrics are tracked beside it; None: neither.
    """

    def __init__(
        self,
        registry: RegistrySettings,
        *,
        project: str,
        on_run: Callable[[str], None],
        on_warning: Callable[[str], None],
        gather: Callable[[], RunFacts] | None = None,
        log: Path | None = None,
    ) -> None:
        self._info: RunInfo | None = None
        self._on_warning = on_warning
        self._values: deque[TrackedValues] = deque()
        self._wake = threading.Event()
        self._status: RunStatus | None = None
        self._files = _NO_FILES
        self._writer = RunWriter(registry, project=project, on_run=on_run, warn=on_warning, gather=gather, log=log)
        self._thread = threading.Thread(target=self._work, name="noa-tracking", daemon=True)
        self._thread.start()

    def begin(self, info: RunInfo) -> None:
        """Start the run, or continue `info.run_id`, as soon as the tracker is open."""
        self._info = info
        self._wake.set()

    def log(self, values: Mapping[str, float], *, step: int, now: float) -> None:
        """Keep metrics for the next flush. `now` in seconds since the Unix epoch."""
        self.track(TrackedValues(step, int(now * 1000), dict(values)))

    def track(self, values: TrackedValues) -> None:
        """Keep the values of a moment for the next flush."""
        self._values.append(values)

    def finish(self, status: RunStatus, *, files: Mapping[str, Path] = _NO_FILES) -> str | None:
        """Write what is left, end the run with `status` and return its id, None if there is no run.

        `files` (by path) are kept with the run as they are now.
        """
        self._files = files
        self._status = status
        self._wake.set()
        self._thread.join(_FINISH_TIMEOUT_S)
        if self._thread.is_alive():
            self._on_warning(f"the run was not written within {_FINISH_TIMEOUT_S:.0f} s and is left open")
        return self._writer.run_id

    def _work(self) -> None:
        failure: str | None = None
        is_first = True
        while True:
            self._wake.wait(0 if is_first else _FLUSH_EVERY_S if failure is None else _RETRY_EVERY_S)
            self._wake.clear()
            is_first = False
            status = self._status  # before the values: those that were logged before the end are all taken
            self._writer.take(self._drained())
            try:
                self._writer.write(self._info, status=status, files=self._files)
                failure = None
            except Exception as exc:  # noqa: BLE001  # the job must outlive whatever the tracking store raises
                if isinstance(exc, NotFoundError) and self._forget_run():
                    self._on_warning(f"the run is gone, a new one is started: {exc}")
                    self._wake.set()
                    continue
                reason = str(exc) if isinstance(exc, NoaError) else f"{type(exc).__name__}: {exc}"
                if reason != failure or status is not None:
                    failure = reason
                    self._on_warning(f"metrics are not recorded: {reason}")
            if status is not None:
                break
        self._writer.close()

    def _drained(self) -> list[TrackedValues]:
        return [self._values.popleft() for _ in range(len(self._values))]

    def _forget_run(self) -> bool:
        """Give up the run of an earlier part of the job, which somebody deleted; tell whether there was one."""
        if self._info is None or self._info.run_id is None:
            return False
        self._info = without_run(self._info)
        self._writer.forget_run()
        return True
