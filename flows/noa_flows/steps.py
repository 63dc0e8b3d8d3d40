"""The steps of a pipeline as plain functions: typed values in, a typed value out, an error with its reason if it fails.

`noa train`, the Prefect flow and the tests call these same functions; `train_job` is in `training_job`, `deploy` in
`deployment`. Each step opens what it needs itself, so that it can run in any thread of the project's processes. What
needs the recipe (its data, its model) is asked of the recipe's own process, `recipe_process`: no user's code runs here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from noa.atomic_write import translate_disk_errors
from noa.digests import build_manifest
from noa.errors import GateRefusedError
from noa.settings import Settings
from noa_flows._recipe_messages import (
    EXAMPLE_FILE,
    Message,
    conversion_from,
    conversion_to,
    evaluation_from,
    job_to,
    verification_from,
)
from noa_flows._timed_batches import measured_tails, timed_batches
from noa_flows.gate_evidence import attach_gate_evidence
from noa_flows.latency_evidence import attach_latency
from noa_flows.pipeline_values import Candidate, Conversion, Evaluation, Promotion, Verification
from noa_flows.provenance import capture_environment
from noa_flows.recipe_process import ask_recipe, keep_recipe_processes
from noa_flows.training_job import JOB_FOLDER_TAG
from noa_registry import Evidence, GateReport, ModelVersion, Registry, VersionDraft

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from noa_training import TrainedJob


def evaluate_job(job: TrainedJob, settings: Settings) -> Evaluation:
    """Measure the native format of a finished job on the test split.

    Raises:
        IntegrityError: the recipe's data is not what the job was trained on.
        RecipeError: the recipe cannot be loaded any more.
    """
    native = Conversion(format=job.backend, folder=job.native_folder, digest=build_manifest(job.native_folder).digest)
    asked = {"written": conversion_to(native), "threads": settings.training.threads or None}
    return evaluation_from(_ask(job, "evaluate", asked))


def convert_job(job: TrainedJob, settings: Settings) -> Conversion:
    """Write the job's model as ONNX beside its native format, in place of an earlier attempt.

    Raises:
        ConversionError: the model cannot be expressed in ONNX.
        StorageError: the disk refused.
    """
    return conversion_from(_ask(job, "convert", {"settings": settings.conversion.model_dump(mode="json")}))


def verify_job(job: TrainedJob, conversion: Conversion, settings: Settings, *, is_alone: bool = True) -> Verification:
    """Prove on the test split's inputs that the converted format computes what the native one does, and measure it.

    With another job beside it (`is_alone` false) no times are taken: `time_candidates` does when all jobs have ended.

    Raises:
        ConversionError: it computes something else; names the worst output.
    """
    asked = {
        "conversion": conversion_to(conversion),
        "settings": settings.conversion.model_dump(mode="json"),
        "threads": settings.training.threads or None,
        "batches": timed_batches(settings, job.name) if is_alone else (),
        **measured_tails(settings, job.name),
    }
    return verification_from(_ask(job, "verify", asked))


def register_job(
    job: TrainedJob,
    evaluation: Evaluation,
    conversion: Conversion,
    verification: Verification,
    settings: Settings,
    *,
    actor: str,
    found_by: Evidence | None = None,
    tags: Mapping[str, str] | None = None,
) -> ModelVersion:
    """Seal a job's formats with all that was measured as the next version of its model.

    `found_by` says of what search the job is the outcome, `tags` are kept with the version beside noa's own.

    Raises:
        InvalidInputError: the parts contradict each other; nothing was written.
        StorageError: the disk or database refused; nothing is left.
    """
    draft = VersionDraft(
        name=job.name,
        formats={job.backend: job.native_folder, conversion.format: conversion.folder},
        native=job.backend,
        input_example=_input_example(job),
        dataset_digest=job.dataset_digest,
        evidence=(
            *evaluation.evidence,
            *verification.evaluation.evidence,
            verification.evidence,
            *(() if found_by is None else (found_by,)),
        ),
        run_id=job.run_id,
        git_commit=job.git_commit,
        environment=capture_environment(job.backend),
        params={**job.params, "backend": job.backend},
        tags={
            **(tags or {}),
            "noa.backend": job.backend,
            "noa.job_id": job.job_id,
            JOB_FOLDER_TAG: str(job.folder),
            "noa.recipe": job.recipe,
            **{f"noa.{key}": value for key, value in job.provenance.items()},
        },
    )
    with Registry.open(settings) as registry:
        return registry.register(draft, actor=actor)


def find_holder(settings: Settings, model: str, alias: str) -> int | None:
    """Return the number of the version that holds an alias now, None if nobody does."""
    with Registry.open(settings.registry) as registry:
        found = registry.resolve_digest(model, alias)
    return None if found is None else found[0]


def time_candidates(settings: Settings, candidates: Sequence[Candidate], *, actor: str) -> None:
    """Attach latency and size to all registered versions that lack them, one after the other: each has the machine.

    Raises:
        IntegrityError: the files of one are not what was sealed.
        RecipeError: the recipe cannot be loaded any more.
    """
    with keep_recipe_processes(settings.root), Registry.open(settings) as registry:
        for candidate in candidates:
            attach_latency(registry, settings, candidate, actor=actor)


def check_gate(settings: Settings, candidate: Candidate, alias: str, *, actor: str | None = None) -> GateReport:
    """Let the gate judge a candidate, after measuring what it needs: also the holder, on the same rows.

    `actor` is who measures and is judged by, the user of this process if nobody is named.

    Raises:
        GateRefusedError: the gate refuses it; `facts["report"]` holds the verdicts, the message those that refuse.
    """
    version = candidate.version
    with keep_recipe_processes(settings.root), Registry.open(settings) as registry:
        attach_gate_evidence(registry, settings, candidate, alias, actor=actor)
        report = registry.check(version.name, version.number, alias=alias, actor=actor)
    if not report.passed:
        reasons = "; ".join(f"{v.rule}: expected {v.expected}, received {v.received}" for v in report.refusals)
        raise GateRefusedError(
            f"the gate refuses `{version.reference}` as `{alias}`: {reasons}",
            remedy=f"`{version.name}@{alias}` is as it was; see `noa models check {version.reference}`",
            report=report,
        )
    return report


def promote_best(
    settings: Settings, best: Candidate, alias: str, *, expect: int | None, reason: str, actor: str
) -> Promotion:
    """Point the alias at a candidate, if the gate allows it and the holder is still the one seen at the start.

    Raises:
        GateRefusedError: the gate refuses it; the alias stays.
        ConflictError: somebody else moved the alias meanwhile; it stays where they put it.
    """
    version = best.version
    with Registry.open(settings) as registry:
        entry = registry.promote(version.name, version.number, alias=alias, reason=reason, actor=actor, expect=expect)
    return Promotion(
        alias=alias,
        reference=version.reference,
        digest=version.digest,
        previous=entry.from_number,
        sequence=entry.sequence,
    )


def _input_example(job: TrainedJob) -> dict[str, np.ndarray]:
    """Return the first rows of the test split, which the recipe's process lays into the job's folder."""
    import numpy as np

    names: list[str] = _ask(job, "example", {})["names"]
    path = job.folder / EXAMPLE_FILE
    with translate_disk_errors(path), np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[f"arr_{position}"] for position, name in enumerate(names)}


def _ask(job: TrainedJob, step: str, values: Message) -> Any:
    return ask_recipe(job.request, step, {"job": job_to(job), **values}, folder=job.folder)
