"""The flow `retrain`: the pipeline of one recipe as Prefect tasks. The worker started by `noa up` runs it.

The tasks are the functions of `steps`, `training_job` and `deployment`; this module only gives them to Prefect: names,
logs, the order of their futures, and an artifact with the summary. A step that fails fails the run with its own
message; the alias moves in `promote` alone, so that a run which fails before leaves the champion untouched. Nothing is
pickled: results stay in the memory of the run's process.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from noa.actors import flow_actor
from noa.settings import Settings
from noa_flows import steps
from noa_flows._environment import SETTINGS_VARIABLE, carried_settings
from noa_flows._run_log import describe_job_event, render_summary
from noa_flows.deployment import deploy
from noa_flows.pipeline import PipelinePlan, check_backends, pipeline_lock, plan_pipeline, promotion_reason
from noa_flows.pipeline_values import Candidate, Conversion, Deployment, Evaluation, Promotion, Verification
from noa_flows.recipe_process import end_recipe_processes, keep_recipe_processes
from noa_flows.selection import choose_best
from noa_flows.training_job import train_job
from noa_registry import GateReport, ModelVersion
from noa_training import JobEvent, JobRequest, TrainedJob

Future = PrefectFuture[Any]


class _Context:
    """What all tasks of a run share. A plain class: Prefect looks into dataclasses and models that tasks are given."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.actor = flow_actor(str(flow_run.get_name()))
        self.cancel = threading.Event()


def _run_name() -> str:
    recipe = str(flow_run.get_parameters().get("recipe", "recipe"))
    return f"{recipe}-{flow_run.get_scheduled_start_time():%Y%m%d-%H%M%S}"


@task(name="train", task_run_name="train-{backend}", persist_result=False, cache_policy=NO_CACHE)
def _train(context: _Context, request: JobRequest, backend: str) -> TrainedJob:
    logger = get_run_logger()

    def hear(event: JobEvent) -> None:
        line = describe_job_event(event)
        if line is not None:
            logger.info("%s: %s", backend, line)

    return train_job(request, context.settings, on_event=hear, cancel=context.cancel)


@task(name="evaluate", task_run_name="evaluate-{backend}", persist_result=False, cache_policy=NO_CACHE)
def _evaluate(context: _Context, job: TrainedJob, backend: str) -> Evaluation:
    evaluation = steps.evaluate_job(job, context.settings)
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in evaluation.metrics.items())
    get_run_logger().info("%s on %d test rows: %s", backend, evaluation.rows, metrics)
    return evaluation


@task(name="convert", task_run_name="convert-{backend}", persist_result=False, cache_policy=NO_CACHE)
def _convert(context: _Context, job: TrainedJob, backend: str) -> Conversion:
    conversion = steps.convert_job(job, context.settings)
    get_run_logger().info("%s written as %s: %s", backend, conversion.format, conversion.digest)
    return conversion


@task(name="verify", task_run_name="verify-{backend}", persist_result=False, cache_policy=NO_CACHE)
def _verify(context: _Context, job: TrainedJob, conversion: Conversion, backend: str, is_alone: bool) -> Verification:
    verification = steps.verify_job(job, conversion, context.settings, is_alone=is_alone)
    get_run_logger().info("%s computes what %s computes", conversion.format, backend)
    return verification


@task(name="register", task_run_name="register-{backend}", persist_result=False, cache_policy=NO_CACHE)
def _register(
    context: _Context,
    job: TrainedJob,
    evaluation: Evaluation,
    conversion: Conversion,
    verification: Verification,
    backend: str,
) -> Candidate:
    version = steps.register_job(job, evaluation, conversion, verification, context.settings, actor=context.actor)
    get_run_logger().info("%s is %s (%s)", backend, version.reference, version.digest)
    return Candidate(backend=backend, job=job, version=version, metrics=verification.evaluation.metrics)


@task(name="time", task_run_name="time", persist_result=False, cache_policy=NO_CACHE)
def _time(context: _Context, candidates: list[Candidate]) -> None:
    steps.time_candidates(context.settings, candidates, actor=context.actor)
    names = ", ".join(candidate.version.reference for candidate in candidates)
    get_run_logger().info("latency and size of %s are measured", names)


@task(name="gate", task_run_name="gate-{alias}", persist_result=False, cache_policy=NO_CACHE)
def _gate(context: _Context, best: Candidate, alias: str) -> GateReport:
    report = steps.check_gate(context.settings, best, alias, actor=context.actor)
    for verdict in report.warnings:
        get_run_logger().warning("%s: %s", verdict.rule, verdict.warning)
    for verdict in report.verdicts:
        get_run_logger().info("%s passed: %s", verdict.rule, verdict.received)
    return report


@task(name="promote", task_run_name="promote-{alias}", persist_result=False, cache_policy=NO_CACHE)
def _promote(context: _Context, best: Candidate, alias: str, holder: int | None, reason: str) -> Promotion:
    promotion = steps.promote_best(context.settings, best, alias, expect=holder, reason=reason, actor=context.actor)
    get_run_logger().info("%s is %s now, after %s", promotion.reference, alias, promotion.previous or "nobody")
    return promotion


@task(name="deploy", task_run_name="deploy-{alias}", persist_result=False, cache_policy=NO_CACHE)
def _deploy(context: _Context, version: ModelVersion, alias: str) -> Deployment:
    deployment = deploy(context.settings, version, alias)
    where = f"endpoints {', '.join(deployment.endpoints)} at {deployment.address}" if deployment.endpoints else "nobody"
    get_run_logger().info("%s is served by %s", version.reference, where)
    return deployment


@flow(
    name="retrain",
    flow_run_name=_run_name,
    description="train -> evaluate -> convert -> verify -> register -> time -> gate -> promote -> deploy",
    persist_result=False,
    task_runner=cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=8)),
)
def retrain(
    recipe: str,
    overrides: dict[str, Any] | None = None,
    backends: list[str] | None = None,
    root: str | None = None,
) -> None:
    """Train a recipe anew and put the better of its backends, by the validation split, live if the gate allows it.

    `overrides` are dotted keys of the recipe (`epochs`, `data.fraction`); `root` is the project's folder, where the
    worker starts its runs.
    """
    settings = carried_settings(Path(root) if root else Path.cwd(), os.environ.get(SETTINGS_VARIABLE))
    chosen = None if backends is None else check_backends(backends)
    with keep_recipe_processes(settings.root):
        plan = plan_pipeline(settings, recipe, backends=chosen, overrides=overrides, promote=True)
        _retrain(settings, plan)


def _retrain(settings: Settings, plan: PipelinePlan) -> None:
    context = _Context(settings)
    alias = plan.recipe.promote_to
    with pipeline_lock(settings, plan.model):
        holder = steps.find_holder(settings, plan.model, alias)
        candidates = _run_lanes(context, plan.requests)
        if len(candidates) > 1:  # of a single one they were taken while it was verified
            _time(context, candidates)
        best = choose_best(candidates, plan.recipe.primary_metric)
        report = _gate(context, best, alias)
        promotion = _promote(context, best, alias, holder, promotion_reason(plan, best, candidates))
        deployment = _deploy(context, best.version, alias)
    slug = re.sub(r"[^a-z0-9]+", "-", plan.model.lower()).strip("-")
    create_markdown_artifact(
        key=f"retrain-{slug}",
        markdown=render_summary(candidates, best, report, promotion, deployment, metric=plan.recipe.primary_metric),
        description=f"{best.version.reference} is {plan.model}@{alias}",
    )


def _run_lanes(context: _Context, requests: Sequence[JobRequest]) -> list[Candidate]:
    """Run all backends in parallel; the first step that fails stops the others and is what the run fails with."""
    futures: list[Future] = []
    lanes: list[Future] = []
    try:
        for request in requests:
            lane = _submit_lane(context, request, is_alone=len(requests) == 1)
            futures += lane
            lanes.append(lane[-1])
        for done in as_completed(futures):
            done.result()
        return [lane.result() for lane in lanes]
    except BaseException:  # also a cancellation, which Prefect raises in this thread: the threads must not go on
        context.cancel.set()
        end_recipe_processes(requests)
        raise


def _submit_lane(context: _Context, request: JobRequest, *, is_alone: bool) -> list[Future]:
    backend = request.backend
    train = _train.submit(context, request, backend)
    evaluate = _evaluate.submit(context, _value(train), backend)
    convert = _convert.submit(context, _value(train), backend)
    verify = _verify.submit(context, _value(train), _value(convert), backend, is_alone)
    register = _register.submit(context, _value(train), _value(evaluate), _value(convert), _value(verify), backend)
    return [train, evaluate, convert, verify, register]


def _value(future: Future) -> Any:
    """Return the future as the value that the task will see: Prefect waits for it and puts its result in its place."""
    return future


__all__ = ["retrain"]
