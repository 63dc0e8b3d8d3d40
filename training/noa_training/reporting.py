"""Tell everyone how a job goes: the caller, `events.jsonl` and the MLflow run."""

from __future__ import annotations

import errno
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from noa.errors import NoaError
from noa_training.events import (
    CheckpointWritten,
    EarlyStopped,
    Epoch,
    Failed,
    Finished,
    JobEvent,
    Resumed,
    Started,
    Step,
    Warned,
)
from noa_training.schedules import Plan
from noa_training.tracked_values import values_of

if TYPE_CHECKING:
    from noa_training.tracking import RunTracking

EVENTS_FILE = "events.jsonl"


class Reporter:
    """Builds the events of one job and sends them on. A disk that is full costs the log lines, never the job."""

    def __init__(self, job_id: str, folder: Path, on_event: Callable[[JobEvent], None]) -> None:
        self._job_id = job_id
        self._log = folder / EVENTS_FILE
        self._on_event = on_event
        self._has_log = True
        self._handle: int | None = None  # kept open: opening it costs more than a line does
        self._lock = threading.Lock()  # the tracking thread warns while the training thread reports
        self._plan: Plan | None = None
        self._first_step = 0
        self._begun = self._last_report = time.perf_counter()
        self._last_step = 0
        self.tracking: RunTracking | None = None

    def started(self, folder: Path, *, backend: str, attempt: int, dataset_digest: str, plan: Plan) -> None:
        """The data is there and checked."""
        self._plan = plan
        self.send(
            Started(
                job_id=self._job_id,
                at=time.time(),
                folder=str(folder),
                backend=backend,
                attempt=attempt,
                dataset_digest=dataset_digest,
                rows=plan.rows,
                epochs=plan.epochs,
                total_steps=plan.total_steps,
            )
        )

    def resumed(self, step: int, checkpoint: str) -> None:
        """The job goes on from a checkpoint."""
        self.send(Resumed(job_id=self._job_id, at=time.time(), step=step, checkpoint=checkpoint))

    def begin(self, step: int) -> None:
        """Start the clock of rates and remaining time."""
        self._first_step = self._last_step = step
        self._begun = self._last_report = time.perf_counter()

    def step(self, step: int, epoch: int, *, loss: float, learning_rate: float) -> None:
        """Some steps are done."""
        assert self._plan is not None
        now = time.perf_counter()
        samples_per_s = (step - self._last_step) * self._plan.batch_size / max(1e-9, now - self._last_report)
        pace = (now - self._begun) / max(1, step - self._first_step)
        self._last_step, self._last_report = step, now
        event = Step(
            job_id=self._job_id,
            at=time.time(),
            step=step,
            epoch=epoch,
            total_steps=self._plan.total_steps,
            loss=loss,
            learning_rate=learning_rate,
            samples_per_s=samples_per_s,
            eta_s=pace * (self._plan.total_steps - step),
        )
        self.send(event)
        self._track(event)

    def epoch(self, step: int, epoch: int, metrics: Mapping[str, float], *, is_best: bool) -> None:
        """An epoch is validated."""
        assert self._plan is not None
        event = Epoch(
            job_id=self._job_id,
            at=time.time(),
            step=step,
            epoch=epoch,
            epochs=self._plan.epochs,
            metrics=dict(metrics),
            is_best=is_best,
        )
        self.send(event)
        self._track(event)

    def checkpoint(self, step: int, checkpoint: str, seconds: float) -> None:
        """A checkpoint is durable."""
        self.send(
            CheckpointWritten(job_id=self._job_id, at=time.time(), step=step, checkpoint=checkpoint, seconds=seconds)
        )

    def early_stopped(self, step: int, epoch: int, best_epoch: int) -> None:
        """The metric no longer improves."""
        self.send(EarlyStopped(job_id=self._job_id, at=time.time(), step=step, epoch=epoch, best_epoch=best_epoch))

    def warn(self, subject: str, message: str) -> None:
        """Something is wrong, and the job goes on."""
        self.send(Warned(job_id=self._job_id, at=time.time(), subject=subject, message=message))

    def finished(self, folder: Path, *, metrics: Mapping[str, float], steps: int, seconds: float) -> None:
        """The model is written."""
        self.send(
            Finished(
                job_id=self._job_id,
                at=time.time(),
                folder=str(folder),
                metrics=dict(metrics),
                steps=steps,
                seconds=seconds,
            )
        )

    def failed(self, state: str, error: NoaError) -> None:
        """The job ended without a model."""
        self.send(Failed(job_id=self._job_id, at=time.time(), state=state, message=str(error), error=error.to_dict()))

    def send(self, event: JobEvent) -> None:
        """Append the event to the job's log and give it to the caller."""
        with self._lock:
            if self._has_log:
                self._append(event)
            self._on_event(event)

    def _append(self, event: JobEvent) -> None:
        line = f"{event.to_json()}\n".encode()
        try:
            if self._handle is None:
                self._handle = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
                weakref.finalize(self, os.close, self._handle)
            if os.write(self._handle, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as exc:
            self._has_log = False
            message = f"events are no longer written: {exc.strerror}"
            self._on_event(Warned(job_id=self._job_id, at=time.time(), subject=self._log.name, message=message))

    def _track(self, event: JobEvent) -> None:
        values = None if self.tracking is None else values_of(event)
        if self.tracking is not None and values is not None:
            self.tracking.track(values)
