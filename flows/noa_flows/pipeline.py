"""The whole way of a recipe, per backend and in parallel: train -> evaluate -> convert -> verify -> register; then time
for all, and for the one that is better on the validation split: gate -> promote -> deploy.

`run_pipeline` is plain Python with one thread per backend; the Prefect flow calls the same steps as tasks.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import filelock

from noa.atomic_write import translate_disk_errors
from noa.current_user import current_user
from noa.errors import ConflictError, InvalidInputError, NotFoundError, TrainingError
from noa.settings import RecipeSettings, Settings
from noa_flows import steps
from noa_flows.deployment import deploy
from noa_flows.pipeline_values import Candidate, OnEvent, PipelineEvent, PipelineResult, StepName
from noa_flows.recipe_process import ask_recipe, end_recipe_processes, keep_recipe_processes
from noa_flows.selection import choose_best, explain_tie
from noa_flows.training_job import train_job
from noa_registry import check_signing
from noa_training import BACKENDS, BackendName, JobEvent, JobRequest, is_larger_better

_T = TypeVar("_T")
_WAIT_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelinePlan:
    """What a pipeline will do, checked before anything starts. `model` is the name of what it registers."""

    model: str
    recipe: RecipeSettings
    requests: tuple[JobRequest, ...]


def plan_pipeline(
    settings: Settings,
    recipe_name: str,
    *,
    backends: Sequence[BackendName] | None = None,
    overrides: Mapping[str, object] | None = None,
    seed: int | None = None,
    promote: bool = False,
) -> PipelinePlan:
    """Find and check a recipe with its overrides; `recipe_name` is a name in `noa.toml`, or a path such as `recipe.py`.

    Raises:
        NotFoundError: no such recipe or backend; lists those that there are.
        RecipeError: the recipe or an override is not valid.
        InvalidInputError: the primary metric is none that the recipe measures, or the key that signs cannot be used.
    """
    name, found = find_recipe_settings(settings, recipe_name)
    check_signing(settings.registry.signing)
    chosen = tuple(dict.fromkeys(backends or found.backends))
    threads = settings.training.threads or max(1, (os.cpu_count() or 1) // len(chosen))
    requests = tuple(
        JobRequest(
            recipe=found.path,
            root=settings.root,
            backend=backend,
            name=name,
            overrides=dict(overrides or {}),
            seed=seed,
            threads=threads,
            project=settings.project.name,
        )
        for backend in chosen
    )
    asked = {"requests": [json.loads(request.to_json()) for request in requests]}
    planned = ask_recipe(requests[0], "plan", asked)
    model = str(planned["name"])
    if promote:
        _check_metric(model, planned["metrics"], found.primary_metric)
    return PipelinePlan(model=model, recipe=found, requests=requests)


def run_pipeline(
    settings: Settings,
    recipe_name: str,
    *,
    backends: Sequence[BackendName] | None = None,
    overrides: Mapping[str, object] | None = None,
    seed: int | None = None,
    promote: bool = False,
    on_event: OnEvent | None = None,
    actor: str | None = None,
) -> PipelineResult:
    """Train a recipe on its backends in parallel and register each model; with `promote`, put the better one live.

    `on_event` is called from the backends' threads, one call at a time. If a backend fails, the other is stopped.

    Raises:
        NoaError: whatever a step found; versions that were registered before stay, and no alias has moved.
        ConflictError: with `promote`, another pipeline of this model is under way.
    """
    with keep_recipe_processes(settings.root):
        plan = plan_pipeline(settings, recipe_name, backends=backends, overrides=overrides, seed=seed, promote=promote)
        return _run_plan(settings, plan, StepRunner(on_event or _say_nothing), actor or current_user(), promote=promote)


def _run_plan(settings: Settings, plan: PipelinePlan, runner: StepRunner, who: str, *, promote: bool) -> PipelineResult:
    begun = time.monotonic()
    if not promote:
        candidates = _run_lanes(plan, settings, runner, who)
        return _result(plan, candidates, begun)
    with pipeline_lock(settings, plan.model):
        alias = plan.recipe.promote_to
        holder = steps.find_holder(settings, plan.model, alias)
        candidates = _run_lanes(plan, settings, runner, who)
        best = choose_best(candidates, plan.recipe.primary_metric)
        report = runner.run("gate", None, lambda: steps.check_gate(settings, best, alias, actor=who))
        reason = promotion_reason(plan, best, candidates)
        promotion = runner.run(
            "promote",
            None,
            lambda: steps.promote_best(settings, best, alias, expect=holder, reason=reason, actor=who),
        )
        deployment = runner.run("deploy", None, lambda: deploy(settings, best.version, alias))
    return PipelineResult(
        model=plan.model,
        candidates=tuple(candidates),
        best=best,
        tie_break=explain_tie(candidates, plan.recipe.primary_metric),
        gate=report,
        promotion=promotion,
        deployment=deployment,
        seconds=time.monotonic() - begun,
    )


def promotion_reason(plan: PipelinePlan, best: Candidate, candidates: Sequence[Candidate]) -> str:
    """Return why the ledger says that a candidate was promoted: what chose it, and what the test split says of it."""
    metric = plan.recipe.primary_metric
    told = f"{metric} {best.metrics[metric]:.6g} on the test split ({best.backend}"
    if len(plan.requests) == 1:
        return f"{told})"
    tie = explain_tie(candidates, metric)
    by = f"best of {len(plan.requests)} backends by {best.validation[metric]:.6g} on the validation split"
    return f"{told}, {by}{f'; of equals {tie}' if tie else ''})"


class StepRunner:
    """Runs steps and reports each one's beginning, end and time; safe to use from several threads.

    `cancel`: once set, training is stopped and no further step begins.
    """

    def __init__(self, on_event: OnEvent) -> None:
        self.cancel = threading.Event()
        self._on_event = on_event
        self._lock = threading.Lock()

    def run(self, step: StepName, backend: str | None, work: Callable[[], _T]) -> _T:
        """Run one step.

        Raises:
            TrainingError: the pipeline was cancelled before.
        """
        if self.cancel.is_set():
            raise TrainingError(f"cancelled before the step `{step}`")
        begun = time.monotonic()
        self.tell(PipelineEvent(step=step, phase="started", backend=backend))
        try:
            value = work()
        except BaseException as exc:
            seconds = time.monotonic() - begun
            self.tell(PipelineEvent(step=step, phase="failed", backend=backend, message=str(exc), seconds=seconds))
            raise
        self.tell(PipelineEvent(step=step, phase="done", backend=backend, seconds=time.monotonic() - begun))
        return value

    def hear(self, backend: str) -> Callable[[JobEvent], None]:
        """Return what takes the events of a backend's training job."""
        return lambda job: self.tell(PipelineEvent(step="train", phase="progress", backend=backend, job=job))

    def tell(self, event: PipelineEvent) -> None:
        """Hand on one event."""
        with self._lock:
            self._on_event(event)


@contextmanager
def pipeline_lock(settings: Settings, model: str) -> Generator[None]:
    """Hold the right to move a model through the pipeline; given back by the kernel if the process dies.

    Raises:
        ConflictError: another pipeline of this model is under way; names its process.
    """
    file = settings.state_dir / "locks" / f"pipeline-{model}.lock"
    with translate_disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(file)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as exc:
            holder = file.with_suffix(".pid")
            pid = holder.read_text() if holder.exists() else "unknown"
            raise ConflictError(
                f"a pipeline of `{model}` is already under way in process {pid}",
                where=str(file),
                remedy="Wait for it to end, or cancel it",
                pid=pid,
            ) from exc
        file.with_suffix(".pid").write_text(str(os.getpid()))
    try:
        yield
    finally:
        lock.release()


def run_lane(
    request: JobRequest, settings: Settings, runner: StepRunner, actor: str, *, is_alone: bool = True
) -> Candidate:
    """Take one backend from training to a registered version; `is_alone`: no other one is trained beside it."""
    backend = request.backend
    job = runner.run(
        "train", backend, lambda: train_job(request, settings, on_event=runner.hear(backend), cancel=runner.cancel)
    )
    evaluation = runner.run("evaluate", backend, lambda: steps.evaluate_job(job, settings))
    conversion = runner.run("convert", backend, lambda: steps.convert_job(job, settings))
    verification = runner.run("verify", backend, lambda: steps.verify_job(job, conversion, settings, is_alone=is_alone))
    version = runner.run(
        "register",
        backend,
        lambda: steps.register_job(job, evaluation, conversion, verification, settings, actor=actor),
    )
    return Candidate(backend=backend, job=job, version=version, metrics=verification.evaluation.metrics)


def _run_lanes(plan: PipelinePlan, settings: Settings, runner: StepRunner, actor: str) -> list[Candidate]:
    """Run all backends in parallel; what several measured in time would be each other, so that comes after them."""
    is_alone = len(plan.requests) == 1
    with ThreadPoolExecutor(max_workers=len(plan.requests), thread_name_prefix="noa-lane") as pool:
        lanes = [
            pool.submit(run_lane, request, settings, runner, actor, is_alone=is_alone) for request in plan.requests
        ]
        try:
            _wait_for_first_failure(lanes)
        except BaseException:
            runner.cancel.set()
            end_recipe_processes(plan.requests)
            raise
        candidates = [lane.result() for lane in lanes]
    if not is_alone:
        runner.run("time", None, lambda: steps.time_candidates(settings, candidates, actor=actor))
    return candidates


def _wait_for_first_failure(lanes: Sequence[Future[Candidate]]) -> None:
    """Wait for all, or raise the first error; short waits, so that Ctrl-C is seen."""
    todo: set[Future[Candidate]] = set(lanes)
    while todo:
        done, todo = wait(todo, timeout=_WAIT_S, return_when=FIRST_EXCEPTION)
        for lane in done:
            lane.result()


def find_recipe_settings(settings: Settings, text: str) -> tuple[str | None, RecipeSettings]:
    """Return the model's name (None: the recipe's own) and where the recipe is.

    Raises:
        NotFoundError: the text is neither a recipe of the settings nor a path; lists those that there are.
    """
    if text in settings.recipes:
        return text, settings.recipes[text]
    if ":" in text or text.endswith(".py"):
        return None, RecipeSettings(path=text)  # pyright: ignore[reportCallIssue]  # pydantic fills the defaults
    raise NotFoundError(
        f"no recipe `{text}`",
        where=str(settings.root / "noa.toml"),
        expected=", ".join(f"`{name}`" for name in settings.recipes) or "a table [recipes.NAME]",
        received=f"`{text}`",
        remedy="Add it to `noa.toml`, or name a file such as `recipe.py`",
    )


def _check_metric(model: str, metrics: Sequence[str], metric: str) -> None:
    measured = ("loss", *metrics)
    if metric not in measured:
        raise InvalidInputError(
            f"the primary metric `{metric}` is none that the recipe measures",
            where=f"recipes.{model}.primary_metric",
            expected=", ".join(measured),
            received=metric,
            remedy="Add it to the recipe's `metrics`, or set another `primary_metric` in `noa.toml`",
        )
    is_larger_better(metric)


def check_backends(names: Sequence[str]) -> tuple[BackendName, ...]:
    """Return the names as backends.

    Raises:
        NotFoundError: one is none.
    """
    for name in names:
        if name not in BACKENDS:
            raise NotFoundError(f"no backend `{name}`", expected=", ".join(BACKENDS), received=name)
    return cast("tuple[BackendName, ...]", tuple(names))


def _result(plan: PipelinePlan, candidates: Sequence[Candidate], begun: float) -> PipelineResult:
    wanted = plan.recipe.primary_metric
    metric = wanted if all(wanted in candidate.validation for candidate in candidates) else "loss"
    return PipelineResult(
        model=plan.model,
        candidates=tuple(candidates),
        best=choose_best(candidates, metric),
        tie_break=explain_tie(candidates, metric),
        gate=None,
        promotion=None,
        deployment=None,
        seconds=time.monotonic() - begun,
    )


def _say_nothing(event: PipelineEvent) -> None:
    del event
