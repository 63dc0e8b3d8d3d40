"""Send a job's numbers to its MLflow run, off the training thread.

A database may be locked for longer than an epoch takes, or far away, so one background thread does everything: it
opens the tracker while training begins, starts the run as soon as `begin` says which, then writes what has gathered
every few seconds. A tracker that fails never ends the job; it is reported.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from noa.errors import NoaError, NotFoundError

if TYPE_CHECKING:
    from noa.settings import RegistrySettings
    from noa_registry.mlflow_tracking import Tracker

RunStatus: TypeAlias = Literal["FINISHED", "FAILED", "KILLED"]
_FLUSH_EVERY_S = 2.0
_FINISH_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What the run is started with. `run_id`: the run of an earlier part of the same job, to be continued."""

    name: str
    params: Mapping[str, object]
    tags: Mapping[str, str]
    run_id: str | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    key: str
    value: float
    step: int
    timestamp_ms: int


class RunTracking:
    """The run of one job. `on_run` gets the run's id once, `on_warning` each failure; both on the background thread."""

    def __init__(
        self,
        registry: RegistrySettings,
        *,
        project: str,
        on_run: Callable[[str], None],
        on_warning: Callable[[str], None],
    ) -> None:
        self._registry = registry
        self._project = project
        self._info: RunInfo | None = None
        self._on_run = on_run
        self._on_warning = on_warning
        self._rows: list[_Row] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._status: RunStatus | None = None
        self._run_id: str | None = None
        self._thread = threading.Thread(target=self._work, name="noa-tracking", daemon=True)
        self._thread.start()

    def begin(self, info: RunInfo) -> None:
        """Start the run, or continue `info.run_id`, as soon as the tracker is open."""
        self._info = info
        self._wake.set()

    def log(self, values: Mapping[str, float], *, step: int, now: float) -> None:
        """Keep metrics for the next flush."""
        rows = [_Row(key, value, step, int(now * 1000)) for key, value in values.items()]
        with self._lock:
            self._rows += rows

    def finish(self, status: RunStatus) -> str | None:
        """Write what is left, end the run with `status` and return its id, None if there is no run."""
        self._status = status
        self._wake.set()
        self._thread.join(_FINISH_TIMEOUT_S)
        if self._thread.is_alive():
            self._on_warning(f"the run was not written within {_FINISH_TIMEOUT_S:.0f} s and is left open")
        return self._run_id

    def _work(self) -> None:
        tracker: Tracker | None = None
        failure: str | None = None
        while True:
            self._wake.wait(0 if tracker is None and failure is None else _FLUSH_EVERY_S)
            self._wake.clear()
            is_last = self._status is not None
            try:
                if tracker is None:
                    tracker = self._open()
                run_id = self._start(tracker)
                if run_id is not None:
                    self._flush(tracker, run_id)
                if run_id is not None and is_last:
                    tracker.finish(run_id, self._status or "FAILED")
                failure = None
            except Exception as exc:  # noqa: BLE001  # the job must outlive whatever the tracking store raises
                if isinstance(exc, NotFoundError) and self._forget_run():
                    self._on_warning(f"the run is gone, a new one is started: {exc}")
                    self._wake.set()
                    continue
                reason = str(exc) if isinstance(exc, NoaError) else f"{type(exc).__name__}: {exc}"
                if reason != failure or is_last:
                    failure = reason
                    self._on_warning(f"metrics are not recorded: {reason}")
            if is_last:
                break
        if tracker is not None:
            tracker.close()

    def _open(self) -> Tracker:
        from noa_registry.mlflow_tracking import open_tracker

        return open_tracker(self._registry, self._project)

    def _start(self, tracker: Tracker) -> str | None:
        if self._run_id is None and self._info is not None:
            info = self._info
            self._run_id = info.run_id or tracker.start_run(info.name, dict(info.params), dict(info.tags))
            self._on_run(self._run_id)
        return self._run_id

    def _forget_run(self) -> bool:
        """Give up the run of an earlier part of the job, which somebody deleted; tell whether there was one."""
        if self._info is None or self._info.run_id is None:
            return False
        self._run_id, self._info = None, replace(self._info, run_id=None)
        return True

    def _flush(self, tracker: Tracker, run_id: str) -> None:
        from noa_registry.mlflow_runs import MetricRow

        with self._lock:
            rows = list(self._rows)
        if rows:
            tracker.log_metrics(
                run_id,
                [MetricRow(key=row.key, value=row.value, step=row.step, timestamp_ms=row.timestamp_ms) for row in rows],
            )
            with self._lock:  # after the write: rows of a failed flush are tried again
                del self._rows[: len(rows)]
