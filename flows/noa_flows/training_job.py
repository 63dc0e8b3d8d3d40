"""Run a training job as a supervised child process and hand on what it says."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from noa.atomic_write import translate_disk_errors
from noa.errors import InvalidInputError, NoaError, NotFoundError, RecipeError, TrainingError
from noa.settings import Settings
from noa_flows._environment import recipe_environment
from noa_flows._process_tree import MARKER_VARIABLE
from noa_flows._recipe_messages import job_to, rebuild_error
from noa_flows._recipe_output import RecipeOutput, with_output
from noa_flows.child import ChildResult, run_child
from noa_flows.job_requests import request_file
from noa_flows.recipe_process import ask_recipe
from noa_registry import Registry
from noa_registry.artifacts import s3_environment
from noa_training import JobEvent, JobRequest, TrainedJob, WorkerRequest, load_result, parse_event
from noa_training.events import Failed, Finished, Started, Warned
from noa_training.job_folder import attempt_folder, current_attempt

JOB_FOLDER_TAG = "noa.job_folder"
"""The tag of a version that names the job it came from."""
_RECENT_VERSIONS = 200
_EVENT = '{"kind": '


def train_job(
    request: JobRequest,
    settings: Settings,
    *,
    on_event: Callable[[JobEvent], None],
    cancel: threading.Event | None = None,
    grace_s: float = 10.0,
) -> TrainedJob:
    """Train in a child process that cannot outlive this one; continues the job if it was interrupted before.

    `on_event` gets the job's events in this thread. `cancel`, set by another thread, stops the job; its checkpoint
    stays.

    Raises:
        RecipeError, NotFoundError, ConflictError, StorageError: as the child found them.
        TrainingError: the job ended without a model, or was cancelled.
    """
    ready = _finished_but_unregistered(request, settings)
    if ready is not None:
        message = "it finished before and was not registered; its model is used"
        on_event(Warned(job_id=ready.job_id, at=time.time(), subject="training", message=message))
        return ready
    return train_in_child(request, settings, on_event=on_event, cancel=cancel, grace_s=grace_s)


def train_in_child(
    request: JobRequest,
    settings: Settings,
    *,
    on_event: Callable[[JobEvent], None],
    cancel: threading.Event | None = None,
    grace_s: float = 10.0,
) -> TrainedJob:
    """Train without looking for a job that finished before: none of the user's code runs in this process.

    Raises:
        NoaError: as `train_job`.
    """
    heard, output = _Heard(on_event), RecipeOutput()
    with translate_disk_errors(settings.training.jobs_dir):
        settings.training.jobs_dir.mkdir(parents=True, exist_ok=True)
        worker = WorkerRequest(request=request, settings=settings.training, registry=settings.registry)
        with request_file(settings.training.jobs_dir, worker.to_json()) as file:
            try:
                result = run_child(
                    [sys.executable, "-P", "-m", "noa_training.worker", str(file)],
                    on_line=heard.take,
                    on_error_line=output.take,
                    environment=_job_environment(settings),
                    folder=settings.root,
                    cancel=cancel,
                    grace_s=grace_s,
                )
            finally:
                printed = output.append_to(heard.folder(settings.training.jobs_dir), "training")
    if heard.finished is not None and result.exit_code == 0:
        return load_result(Path(heard.finished.folder))
    raise _failure(request, heard, result, output.last_line(), printed)


def _finished_but_unregistered(request: JobRequest, settings: Settings) -> TrainedJob | None:
    """Return the model of a job that was killed between training and registration, if its data is still the same."""
    asked = {"request": json.loads(request.to_json()), "settings": settings.training.model_dump(mode="json")}
    found = ask_recipe(request, "finished", asked)
    if found is None:
        return None
    job = TrainedJob.from_json(json.dumps(found))
    with Registry.open(settings.registry) as registry:
        try:
            known = registry.versions(job.name, limit=_RECENT_VERSIONS)
        except NotFoundError:
            known = []
    if any(version.tags.get(JOB_FOLDER_TAG) == str(job.folder) for version in known):
        return None
    try:
        ask_recipe(request, "rows", {"job": job_to(job)}, folder=job.folder)
    except NoaError:
        return None
    return job


class _Heard:
    """What the child has said so far."""

    def __init__(self, on_event: Callable[[JobEvent], None]) -> None:
        self._on_event = on_event
        self.finished: Finished | None = None
        self.failed: Failed | None = None
        self._started: Started | None = None
        self._job_id = ""

    def folder(self, jobs: Path) -> Path | None:
        """Return the attempt's folder: as the job said, or its newest in `jobs` if that was not heard."""
        said = self._started or self.finished
        if said is not None:
            return Path(said.folder)
        job = jobs / self._job_id
        newest = current_attempt(job) if self._job_id else 0
        folders = (attempt_folder(job, number) for number in (newest, newest - 1) if number > 0)
        return next((folder for folder in folders if folder.is_dir()), None)

    def take(self, line: str) -> None:
        try:
            event = parse_event(line[max(line.find(_EVENT), 0) :])  # something without a newline may stand before it
        except InvalidInputError:  # something that the user's code printed past us; it is no event of the job
            return
        self._job_id = event.job_id or self._job_id
        if isinstance(event, Started):
            self._started = event
        elif isinstance(event, Finished):
            self.finished = event
        elif isinstance(event, Failed):
            self.failed = event
        self._on_event(event)


def _failure(request: JobRequest, heard: _Heard, result: ChildResult, last_line: str, printed: Path | None) -> NoaError:
    if result.was_cancelled:
        return TrainingError(
            f"the {request.backend} job was cancelled", remedy="Its checkpoint is kept; the same command continues it"
        )
    if heard.failed is not None:
        error = rebuild_error(heard.failed.error, fallback=heard.failed.message)
        if isinstance(error, RecipeError | TrainingError):
            error.remedy = with_output(error.remedy, printed)
        return error
    ending = f"signal {-result.exit_code}" if result.exit_code < 0 else f"exit code {result.exit_code}"
    return TrainingError(
        f"the {request.backend} job ended without a model",
        where=request.recipe,
        expected="a finished job",
        received=f"{ending}; {last_line}",
        remedy=with_output("Its checkpoint is kept; the same command continues it", printed),
    )


def _job_environment(settings: Settings) -> dict[str, str]:
    # The request is a file, and holds no secrets.
    environment = {**recipe_environment(), **s3_environment(settings.registry)}
    marker = os.environ.get(MARKER_VARIABLE)
    return environment if marker is None else {**environment, MARKER_VARIABLE: marker}
