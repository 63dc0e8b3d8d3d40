"""One trial: an ordinary job in a process of its own, whose metric after each epoch decides whether it goes on.

A trial that was interrupted continues its job from its checkpoint. What the job had said before is read in its
`events.jsonl`, so that a continued trial is judged by the same numbers as one that was never interrupted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from noa.errors import ConflictError, InvalidInputError, NoaError, RecipeError, TrainingError
from noa_flows.sweep.slots import hold_slots
from noa_flows.training_job import train_job
from noa_training import Epoch, Resumed, Started, parse_event
from noa_training.checkpoints import CheckpointStore
from noa_training.job_folder import JobLock

if TYPE_CHECKING:
    from noa.settings import Settings
    from noa_flows.sweep.optuna_study import SweepStudy
    from noa_flows.sweep.values import TrialView
    from noa_training import JobEvent, JobRequest, TrainedJob

_GRACE_S: Final = 10.0
_LEFT_S: Final = 15.0
"""So long the process of a killed search may hold a job that is to be continued; its end is on its way."""
_RETRY_S: Final = 0.2
_EVENTS_FILE: Final = "events.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOutcome:
    """How a trial ended in this process. `interrupted`: it is to be continued. `job` is its attempt's folder.

    `error` is what it failed of; `is_fatal` if that is no matter of this trial, so that the search cannot go on.
    """

    number: int
    state: Literal["finished", "pruned", "failed", "interrupted"]
    job: Path | None
    seconds: float
    trained: TrainedJob | None = None
    error: NoaError | None = None
    is_fatal: bool = False


@dataclass(slots=True, kw_only=True)
class TrialRun:
    """A trial that runs. `on_epoch` gets epoch, epochs and the metric; `on_wait` is called while others have the cores.

    `run` is called once, in a thread that lives as long as the job; `stop` by any thread.
    """

    trial: TrialView
    request: JobRequest
    settings: Settings
    study: SweepStudy
    metric: str
    cores: int
    on_epoch: Callable[[int, int, float], None]
    on_wait: Callable[[], None]
    _cancel: threading.Event = field(default_factory=threading.Event)
    _is_stopped: bool = False
    _is_pruned: bool = False
    _heard: int = 0
    _folder: Path | None = None

    def stop(self) -> None:
        """End the trial soon; it can be continued."""
        self._is_stopped = True
        self._cancel.set()

    def run(self) -> TrialOutcome:
        """Train until the job has ended, is pruned or is stopped; its processes are gone when this returns."""
        begun = time.monotonic()
        slots = self.settings.state_dir / "locks" / "cores"
        try:
            with hold_slots(
                slots,
                count=self.request.threads,
                cores=self.cores,
                should_stop=self._cancel.is_set,
                on_wait=self.on_wait,
            ) as has_cores:
                begun = time.monotonic()
                if not has_cores:
                    return self._outcome("interrupted", begun)
                job = self._train()
        except NoaError as exc:
            return self._ended_without_model(exc, begun)
        self._folder = job.folder
        self._hear_again(None)
        if self._is_pruned:  # it ended before it could be stopped; what was decided counts
            return self._outcome("pruned", begun)
        return self._outcome("finished", begun, trained=job)

    def _train(self) -> TrainedJob:
        give_up_at = time.monotonic() + _LEFT_S
        while True:
            try:
                return train_job(
                    self.request, self.settings, on_event=self._hear, cancel=self._cancel, grace_s=_GRACE_S
                )
            except ConflictError:
                if time.monotonic() > give_up_at or self._cancel.wait(_RETRY_S):
                    raise

    def _hear(self, event: JobEvent) -> None:
        if isinstance(event, Started):
            self._folder = Path(event.folder)
            job = job_name(self.settings, self._folder)
            self.study.pause(self.trial.number, job=job, seconds=self.trial.seconds)
        elif isinstance(event, Resumed):
            self._hear_again(event.step)
        elif isinstance(event, Epoch):
            self._judge(event)

    def _hear_again(self, until_step: int | None) -> None:
        """Judge the epochs that this process was not told of; None: all that there are."""
        if self._folder is not None:
            for event in read_epochs(self._folder):
                if until_step is None or event.step <= until_step:
                    self._judge(event)

    def _judge(self, event: Epoch) -> None:
        if self._is_pruned or event.epoch <= self._heard:
            return
        value, self._heard = event.metrics[self.metric], event.epoch
        is_over = self.study.report(self.trial.number, event.epoch, value)
        self.on_epoch(event.epoch, event.epochs, value)
        if is_over and event.epoch < event.epochs:  # after the last epoch there is nothing to save
            self._is_pruned = True
            self._cancel.set()

    def _ended_without_model(self, error: NoaError, begun: float) -> TrialOutcome:
        is_of_trial = isinstance(error, TrainingError | RecipeError)  # else its processes may not even be gone
        if self._is_pruned and is_of_trial:
            self._drop_checkpoints()
            return self._outcome("pruned", begun)
        if self._is_stopped and is_of_trial:
            return self._outcome("interrupted", begun)
        return self._outcome("failed", begun, error=error, is_fatal=not is_of_trial)

    def _drop_checkpoints(self) -> None:
        """Free the disk: a pruned trial is not continued. Its events and its log stay."""
        if self._folder is not None:
            with suppress(NoaError, OSError), JobLock(self._folder.parent):
                CheckpointStore(self._folder / "checkpoints", keep=1).discard()

    def _outcome(
        self,
        state: Literal["finished", "pruned", "failed", "interrupted"],
        begun: float,
        *,
        trained: TrainedJob | None = None,
        error: NoaError | None = None,
        is_fatal: bool = False,
    ) -> TrialOutcome:
        return TrialOutcome(
            number=self.trial.number,
            state=state,
            job=self._folder,
            seconds=self.trial.seconds + time.monotonic() - begun,
            trained=trained,
            error=error,
            is_fatal=is_fatal,
        )


def job_name(settings: Settings, folder: Path | None) -> str:
    """Return an attempt's folder as seen from that of the jobs, which may be moved with the project; "" for none."""
    if folder is None:
        return ""
    jobs = settings.training.jobs_dir
    return str(folder.relative_to(jobs)) if folder.is_relative_to(jobs) else str(folder)


def read_epochs(folder: Path) -> Iterator[Epoch]:
    """Return the validated epochs that a job's folder tells of, in order, each as it was last."""
    found: dict[int, Epoch] = {}
    with suppress(OSError), (folder / _EVENTS_FILE).open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            with suppress(InvalidInputError):
                event = parse_event(line)
                if isinstance(event, Epoch):
                    found[event.epoch] = event
    for epoch in sorted(found):
        yield found[epoch]
