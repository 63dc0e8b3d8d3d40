"""What comes of a search: its best trial is evaluated, converted, verified and registered as `noa train` does.

It is taken as it was trained, not trained again: its weights are in its job's folder. The version says of which search
it is the best, among how many trials and by which number. That number is the largest (or smallest) of many on the
validation split and flatters the winner; the test split, which the gate judges, has chosen nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from noa.digests import build_manifest, digest_json
from noa.errors import NotFoundError
from noa_flows import steps
from noa_flows.sweep.values import RegisteredTrial, TrialView, count_trials
from noa_flows.training_job import JOB_FOLDER_TAG
from noa_registry import Evidence, MetricsEvidence, Registry
from noa_registry.evidence import METRICS
from noa_training import load_result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from noa.settings import Settings
    from noa_flows.pipeline import StepRunner
    from noa_flows.sweep.plan import SweepPlan
    from noa_registry import ModelVersion
    from noa_training import TrainedJob

SWEEP: Final = "sweep"
"""The kind of evidence that says of which search a version is the best."""
SWEEP_TAG: Final = "noa.sweep"
TRIAL_TAG: Final = "noa.sweep_trial"
_RECENT_VERSIONS: Final = 200
_CHOSEN: Final = "best on the validation split, which flatters it; the test split chose nothing"


def register_best(
    plan: SweepPlan, settings: Settings, trials: Sequence[TrialView], best: TrialView, runner: StepRunner, *, actor: str
) -> RegisteredTrial:
    """Register the best trial's model; one that is registered already gets no second version, but the new evidence.

    Raises:
        NotFoundError: the trial's job folder is gone.
        IntegrityError: the recipe's data is not what the trial was trained on.
        ConversionError: its model cannot be expressed in ONNX, or computes something else there.
    """
    job = load_result(settings.training.jobs_dir / best.job)
    fact = sweep_evidence(plan, trials, best, job)
    known = _version_of(job, settings)
    if known is not None:
        return _attach(known, fact, best, settings, actor=actor)
    backend = job.backend
    evaluation = runner.run("evaluate", backend, lambda: steps.evaluate_job(job, settings))
    conversion = runner.run("convert", backend, lambda: steps.convert_job(job, settings))
    verification = runner.run("verify", backend, lambda: steps.verify_job(job, conversion, settings))
    tags = {SWEEP_TAG: plan.name, TRIAL_TAG: str(best.number)}
    version = runner.run(
        "register",
        backend,
        lambda: steps.register_job(
            job, evaluation, conversion, verification, settings, actor=actor, found_by=fact, tags=tags
        ),
    )
    return RegisteredTrial(
        reference=version.reference,
        digest=version.digest,
        trial=best.number,
        metrics=dict(verification.evaluation.metrics),
        is_new=True,
    )


def sweep_evidence(plan: SweepPlan, trials: Sequence[TrialView], best: TrialView, job: TrainedJob) -> Evidence:
    """Return the fact that a trial is the best of a search, about the bytes of its native format."""
    counts = count_trials(trials, planned=plan.search.trials)
    definition = plan.definition()
    values: Mapping[str, object] = {
        "sweep": plan.name,
        "trial": best.number,
        "trials": len(trials),
        "finished": counts.finished,
        "pruned": counts.pruned,
        "failed": counts.failed,
        "metric": plan.metric,
        "value": best.value,
        "split": "validation",
        "chosen": _CHOSEN,
        "validation_rows": best.rows,
        "sampler": plan.search.sampler,
        "pruner": plan.search.pruner,
        "seed": plan.search.seed,
        "definition": digest_json(definition),
        "space": definition["space"],
        "backends": list(plan.requests),
        "overrides": dict(best.overrides),
        "larger_is_better": plan.larger_is_better,
    }
    digest = build_manifest(job.native_folder).digest
    return Evidence(kind=SWEEP, subject=job.backend, digest=digest, values=values)


def _version_of(job: TrainedJob, settings: Settings) -> ModelVersion | None:
    """Return the version that this attempt of the job has become, if it has."""
    with Registry.open(settings.registry) as registry:
        try:
            known = registry.versions(job.name, limit=_RECENT_VERSIONS)
        except NotFoundError:
            return None
    return next((version for version in known if version.tags.get(JOB_FOLDER_TAG) == str(job.folder)), None)


def _attach(
    version: ModelVersion, fact: Evidence, best: TrialView, settings: Settings, *, actor: str
) -> RegisteredTrial:
    """Add what the search says now, if it says something else than before."""
    with Registry.open(settings) as registry:
        facts = registry.evidence(version.name, version.number)
        said = [dict(one.values) for one in facts if one.kind == SWEEP]
        if not any(_same(one, fact.values) for one in said):
            registry.attach(version.name, version.number, fact, actor=actor, by_pipeline=True)
        served = version.default_format
        measured = [one for one in facts if one.kind == METRICS and one.subject == served]
    metrics = MetricsEvidence.from_evidence(measured[0]).metrics if measured else {}
    return RegisteredTrial(
        reference=version.reference, digest=version.digest, trial=best.number, metrics=dict(metrics), is_new=False
    )


def _same(said: Mapping[str, object], fact: Mapping[str, object]) -> bool:
    return all(said.get(name) == fact[name] for name in ("sweep", "definition", "trial", "trials"))
