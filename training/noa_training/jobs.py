"""Run a job from request to model: check, lock, resume, train, write the native format, and tell the truth about it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load, save

from noa.atomic_write import translate_disk_errors, write_file
from noa.errors import IntegrityError, NoaError, NotFoundError, RecipeError, StorageError, TrainingError
from noa.settings import RegistrySettings, TrainingSettings
from noa.signatures import SIGNATURE_FILE, DType, Signature, TensorSpec
from noa_training.backends.interface import Backend, find_backend
from noa_training.checkpoints import CheckpointStore
from noa_training.datasets import Dataset, check_dataset
from noa_training.events import JobEvent
from noa_training.git_state import read_git_state
from noa_training.input_checks import check_inputs
from noa_training.job_folder import JobLock, attempt_folder, current_attempt, job_id_of, read_state, write_state
from noa_training.loading import LoadedRecipe, describe_exception, find_recipe, user_location, user_text
from noa_training.loop import JobCancelledError, LoopResult, TrainingLoop
from noa_training.model_specs import BACKENDS, Factories, ModelShape
from noa_training.overrides import describe, override
from noa_training.recipe_warnings import ProjectFiles, check_outputs, warn_of_unseen_classes
from noa_training.recipes import Recipe
from noa_training.reporting import EVENTS_FILE, Reporter
from noa_training.requests import JobRequest, TrainedJob
from noa_training.schedules import make_plan
from noa_training.user_code import user_code

if TYPE_CHECKING:
    from noa_conversion import JaxModel, TorchModel
    from noa_training.tracking import RunInfo, RunStatus, RunTracking

WEIGHTS_FILE = "weights.safetensors"
RESULT_FILE = "result.json"
_MODEL_DIR = "model"
_NATIVE_DIR = "native"
_RUN_FILE = "run.json"
_TRACEBACK_FILE = "traceback.txt"
_MOST_TRACEBACK = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    request: JobRequest
    loaded: LoadedRecipe
    recipe: Recipe
    job_id: str
    attempt: int
    folder: Path


def _never() -> bool:
    return False


def run_job(
    request: JobRequest,
    settings: TrainingSettings,
    *,
    registry: RegistrySettings | None,
    on_event: Callable[[JobEvent], None],
    should_stop: Callable[[], bool] = _never,
) -> TrainedJob:
    """Train in this process and return the finished job; an unfinished job with the same arguments is continued.

    `registry` None: the job is not tracked. `should_stop` is asked before every step.

    Raises:
        RecipeError: the recipe, an override or the dataset cannot be used; nothing was trained.
        NotFoundError: there is no such recipe or backend.
        ConflictError: the job is already running; names the process.
        TrainingError: the loss is not finite, or the user's model failed. `JobCancelledError`: asked to stop.
        StorageError: the disk refused; the job can be continued.
    """
    loaded, recipe = _recipe_of(request)
    job_id = _job_id(request, loaded, recipe)
    jobs = _jobs_folder(request, settings)
    with JobLock(jobs / job_id):
        attempt = current_attempt(jobs / job_id)
        folder = attempt_folder(jobs / job_id, attempt)
        job = _Job(request=request, loaded=loaded, recipe=recipe, job_id=job_id, attempt=attempt, folder=folder)
        reporter = Reporter(job_id, folder, on_event)
        write_state(folder, "running", now=time.time())
        return _run_to_an_end(job, settings, registry, reporter, should_stop)


def recipe_of(request: JobRequest) -> Recipe:
    """Return the request's recipe with its overrides, seed and name applied.

    Raises:
        RecipeError, NotFoundError: as `run_job`.
    """
    return _recipe_of(request)[1]


def load_dataset(recipe: Recipe, *, root: Path) -> Dataset:
    """Call the recipe's `data` and check what it returns. `root` is the project's folder, to name lines of user code.

    Raises:
        RecipeError: `data` failed (names file and line) or returned something that cannot be trained on.
    """
    code = getattr(recipe.data, "__code__", None)
    where = f"{code.co_filename}:{code.co_firstlineno}" if code is not None else recipe.name
    try:
        with user_code():
            value = recipe.data(**recipe.data_params)
    except (Exception, SystemExit) as exc:
        raise _user_error(exc, "`data` failed", root=root, fallback=where) from exc
    return check_dataset(value, objective=recipe.objective, where=where)


def load_trained(job: TrainedJob) -> TorchModel | JaxModel:
    """Rebuild the live model of a finished job from its recipe and best weights, for evaluation and conversion.

    Raises:
        NotFoundError: the job's folder no longer holds its weights.
        IntegrityError: the weights do not belong to the model that the recipe describes now.
    """
    recipe = recipe_of(job.request)
    path = job.folder / _MODEL_DIR / WEIGHTS_FILE
    try:
        weights = dict(sorted(load(path.read_bytes()).items()))  # the library's order is another each time
    except OSError as exc:
        raise NotFoundError("the job's weights are gone", where=str(path), remedy="Train it again") from exc
    except Exception as exc:  # safetensors raises its own types, which are no ValueError in every version
        raise IntegrityError("the job's weights are not readable", where=str(path), file=path.name) from exc
    signature = Signature.load(job.folder / _MODEL_DIR)
    backend = find_backend(job.backend)
    with user_code():
        return backend.live_model(recipe, job.shape, weights, signature)


def load_result(folder: Path) -> TrainedJob:
    """Return the finished job of a job folder.

    Raises:
        NotFoundError: the job is not finished.
    """
    try:
        return TrainedJob.from_json((folder / RESULT_FILE).read_text())
    except OSError as exc:
        raise NotFoundError("the job is not finished", where=str(folder), expected=RESULT_FILE) from exc


def finished_job(request: JobRequest, settings: TrainingSettings) -> TrainedJob | None:
    """Return the newest attempt of this very job if it has finished, None if it is to be trained or continued.

    Raises:
        RecipeError, NotFoundError: as `run_job`.
    """
    loaded, recipe = _recipe_of(request)
    job = _jobs_folder(request, settings) / _job_id(request, loaded, recipe)
    newest = current_attempt(job) - 1
    if newest < 1 or read_state(attempt_folder(job, newest)).state != "finished":
        return None
    return load_result(attempt_folder(job, newest))


def _job_id(request: JobRequest, loaded: LoadedRecipe, recipe: Recipe) -> str:
    backend_settings = {"backend": request.backend, "overrides": dict(request.overrides)}
    return job_id_of(
        name=recipe.name,
        backend=request.backend,
        source_digest=loaded.source_digest,
        description=describe(recipe) | backend_settings,
        seed=recipe.seed,
    )


def _jobs_folder(request: JobRequest, settings: TrainingSettings) -> Path:
    return request.root.absolute() / ".noa" / "jobs" if settings.jobs_dir == Path() else settings.jobs_dir


def _recipe_of(request: JobRequest) -> tuple[LoadedRecipe, Recipe]:
    if request.backend not in BACKENDS:
        raise NotFoundError(f"no backend `{request.backend}`", expected=", ".join(BACKENDS), received=request.backend)
    loaded = find_recipe(request.recipe, root=request.root)
    changed = loaded.recipe if request.name is None else replace(loaded.recipe, name=request.name)
    overrides = dict(request.overrides) | ({} if request.seed is None else {"seed": request.seed})
    return loaded, override(changed, overrides, where=loaded.where)


def _run_to_an_end(
    job: _Job,
    settings: TrainingSettings,
    registry: RegistrySettings | None,
    reporter: Reporter,
    should_stop: Callable[[], bool],
) -> TrainedJob:
    """Run, and record how it ended in `state.json`, the events and the run."""
    status: RunStatus = "FAILED"
    try:
        trained = _train(job, settings, registry, reporter, should_stop)
        status = "FINISHED"
    except JobCancelledError as exc:
        status = "KILLED"
        _end(job, reporter, "cancelled", exc)
        raise
    except NoaError as exc:
        _keep_traceback(job, exc)
        _end(job, reporter, "failed", exc)
        raise
    except Exception as exc:
        error = _training_error(exc, job)
        error.__cause__ = exc
        _keep_traceback(job, error)
        _end(job, reporter, "failed", error)
        raise error from exc
    except BaseException as exc:
        _end(job, reporter, "cancelled", TrainingError(f"the job was interrupted: {type(exc).__name__}"))
        raise
    finally:
        tracking = reporter.tracking
        run_id = None if tracking is None else tracking.finish(status, files=_kept_files(job))
    trained = replace(trained, run_id=run_id)
    try:
        write_file(job.folder / RESULT_FILE, trained.to_json())
        write_state(job.folder, "finished", now=time.time())
    except NoaError as exc:
        _end(job, reporter, "failed", exc)
        raise
    reporter.finished(job.folder, metrics=trained.metrics, steps=trained.steps, seconds=trained.seconds)
    CheckpointStore(job.folder / "checkpoints", keep=settings.keep_checkpoints).discard()
    return trained


def _end(job: _Job, reporter: Reporter, state: str, error: NoaError) -> None:
    with suppress(StorageError):  # the disk may be what ended the job; a stale `running` reads as interrupted
        write_state(job.folder, "cancelled" if state == "cancelled" else "failed", now=time.time(), message=str(error))
    reporter.failed(state, error)


def _keep_traceback(job: _Job, error: NoaError) -> None:
    """Write where in the user's code it happened, and all that it said, beside the job's events."""
    if error.__cause__ is None or not isinstance(error, RecipeError | TrainingError):
        return
    path = job.folder / _TRACEBACK_FILE
    try:
        text = "".join(traceback.format_exception(error.__cause__))
        write_file(path, text.encode(errors="backslashreplace")[:_MOST_TRACEBACK])
    except Exception:  # noqa: BLE001  # the user's exception may not print; the disk may be what ended the job
        return
    if error.remedy is None:
        error.remedy = f"The traceback is in {path}"


def _train(
    job: _Job,
    settings: TrainingSettings,
    registry: RegistrySettings | None,
    reporter: Reporter,
    should_stop: Callable[[], bool],
) -> TrainedJob:
    begun = time.perf_counter()
    request, recipe = job.request, job.recipe
    commit = git_commit(request.root)
    files = ProjectFiles(request.root.absolute(), job.loaded.file, job.loaded.source_digest)
    if registry is not None:  # first: the database is opened while the data is read
        reporter.tracking = _open_tracking(job, registry, settings, reporter)
    dataset = load_dataset(recipe, root=request.root.absolute())
    if reporter.tracking is not None:
        reporter.tracking.begin(_run_info(job, dataset, commit, settings))
    shape = model_shape(recipe, dataset)
    check_inputs(recipe, shape, dataset, where=job.loaded.where)
    backend = find_backend(request.backend)
    plan = make_plan(recipe, dataset.train.rows)
    with user_code():
        trainer = backend.trainer(recipe, shape, dataset.train, threads=request.threads or settings.threads)
    check_outputs(recipe, shape, dataset, trainer, backend=request.backend, where=job.loaded.where)
    reporter.started(job.folder, backend=request.backend, attempt=job.attempt, dataset_digest=dataset.digest, plan=plan)
    warn_of_unseen_classes(recipe, dataset, reporter.warn)
    loop = TrainingLoop(
        recipe,
        dataset,
        plan,
        trainer,
        settings=settings,
        store=CheckpointStore(job.folder / "checkpoints", keep=settings.keep_checkpoints),
        reporter=reporter,
        should_stop=should_stop,
    )
    resumed_from = loop.resume()
    result = loop.run()
    _write_model(job, backend, shape, result)
    for name, message in files.changed():
        reporter.warn(name, message)
    return TrainedJob(
        job_id=job.job_id,
        attempt=job.attempt,
        request=request,
        name=recipe.name,
        folder=job.folder,
        native_folder=job.folder / _NATIVE_DIR,
        shape=shape,
        run_id=None,
        dataset_digest=dataset.digest,
        metrics=dict(result.progress.best_metrics or {}),
        epochs=result.progress.epochs_done,
        steps=result.progress.step,
        seconds=time.perf_counter() - begun,
        resumed_from_step=resumed_from,
        git_commit=commit,
        params=describe(recipe),
        provenance=_provenance(job, dataset, settings),
    )


def _provenance(job: _Job, dataset: Dataset, settings: TrainingSettings) -> dict[str, str]:
    """Return all that decides what comes out, beside the commit, the data and the environment themselves."""
    request = job.request
    state = read_git_state(request.root)
    found = {
        "recipe_digest": job.loaded.source_digest,
        "overrides": json.dumps(dict(request.overrides), sort_keys=True),
        "seed": str(job.recipe.seed),
        "threads": str(request.threads or settings.threads),
        **{f"data.{name}": digest for name, digest in dataset.split_digests.items()},
    }
    if state is not None:
        found |= {"git.path": state.path, "git.dirty": str(state.diff_digest is not None).lower()}
        found |= {} if state.diff_digest is None else {"git.diff": state.diff_digest}
    return found


def model_shape(recipe: Recipe, dataset: Dataset) -> ModelShape:
    """Return the model's inputs and number of outputs: the recipe's, or what the targets need."""
    train = dataset.train
    inputs = tuple(
        TensorSpec(name=name, dtype=_dtype(array), shape=("batch", *array.shape[1:]))
        for name, array in train.inputs.items()
    )
    given = 0 if isinstance(recipe.spec, Factories) else recipe.spec.outputs
    if given:
        return ModelShape(inputs=inputs, outputs=given)
    if recipe.objective in ("cross_entropy", "token_cross_entropy"):
        splits = (train, dataset.validation, dataset.test)
        return ModelShape(inputs=inputs, outputs=1 + max(int(split.targets.max()) for split in splits))
    return ModelShape(inputs=inputs, outputs=int(np.prod(train.targets.shape[1:], dtype=np.int64)))


def git_commit(root: Path) -> str | None:
    """Return the commit checked out at `root`, with `-dirty` for changed files; None outside of a repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _open_tracking(
    job: _Job, registry: RegistrySettings, settings: TrainingSettings, reporter: Reporter
) -> RunTracking:
    from noa_training.run_facts import gather_facts
    from noa_training.tracking import RunTracking

    path = job.folder / _RUN_FILE
    return RunTracking(
        registry,
        project=job.request.project,
        on_run=lambda run: write_file(path, json.dumps({"run_id": run})),
        on_warning=lambda message: reporter.warn("tracking", message),
        gather=lambda: gather_facts(job.request, job.request.threads or settings.threads),
        log=job.folder / EVENTS_FILE,
    )


def _run_info(job: _Job, dataset: Dataset, commit: str | None, settings: TrainingSettings) -> RunInfo:
    from noa_training.run_facts import run_info

    run_id = None
    with suppress(OSError, ValueError, KeyError):
        run_id = str(json.loads((job.folder / _RUN_FILE).read_text())["run_id"])
    tags = {
        "noa.job_id": job.job_id,
        "noa.attempt": str(job.attempt),
        "noa.recipe_digest": job.loaded.source_digest,
        "noa.overrides": json.dumps(dict(job.request.overrides), sort_keys=True),
        "noa.git_commit": commit or "none",
    }
    name = f"{job.job_id}-{job.attempt}"
    return run_info(
        job.request, job.recipe, name=name, job_tags=tags, dataset=dataset, settings=settings, run_id=run_id
    )


def _kept_files(job: _Job) -> dict[str, Path]:
    """Return what the run keeps of the job's folder at its end, as far as it is there."""
    names = (EVENTS_FILE, _TRACEBACK_FILE, f"{_MODEL_DIR}/{SIGNATURE_FILE}")
    return {name: job.folder / name for name in names}


def _write_model(job: _Job, backend: Backend, shape: ModelShape, result: LoopResult) -> None:
    from noa_conversion import save_native

    output = TensorSpec(
        name="prediction" if job.recipe.objective == "mse" else "logits",
        dtype=_dtype(result.outputs),
        shape=("batch", *result.outputs.shape[1:]),
    )
    signature = Signature(inputs=shape.inputs, outputs=(output,))
    with user_code():
        live = backend.live_model(job.recipe, shape, result.best, signature)
    arrays: Mapping[str, np.ndarray] = {name: np.ascontiguousarray(value) for name, value in result.best.items()}
    write_file(job.folder / _MODEL_DIR / WEIGHTS_FILE, save(dict(arrays)))
    write_file(job.folder / _MODEL_DIR / SIGNATURE_FILE, json.dumps(signature.to_dict(), indent=2) + "\n")
    native = job.folder / _NATIVE_DIR
    with translate_disk_errors(native):
        shutil.rmtree(native, ignore_errors=True)  # of an earlier process that died while it wrote
        save_native(live, native)


def _dtype(array: np.ndarray) -> DType:
    return array.dtype.name  # type: ignore[return-value]  # TensorSpec refuses a name that is no DType


def _user_error(exc: BaseException, what: str, *, root: Path, fallback: str) -> NoaError:
    where = user_location(exc, root=root) or fallback
    remedy = exc.remedy if isinstance(exc, NoaError) else None
    return RecipeError(f"{what}: {describe_exception(exc)}", where=where, remedy=remedy and user_text(remedy))


def _training_error(exc: Exception, job: _Job) -> TrainingError:
    first = describe_exception(exc).splitlines()[0]
    where = user_location(exc, root=job.request.root.absolute()) or job.loaded.where
    return TrainingError(f"the model failed on {job.request.backend}: {first}", where=where)
