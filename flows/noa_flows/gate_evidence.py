"""What a gate needs beside the candidate's own measurements, measured and attached before it judges.

The present holder is measured on the candidate's test rows, so that the two can be compared row by row; the signatures
are compared; and where latency is judged, it is measured for the batch sizes that were not on this machine
(`latency_evidence`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from noa.errors import NotFoundError
from noa_flows._recipe_messages import job_to
from noa_flows.latency_evidence import ask_facts, attach_latency
from noa_flows.pipeline_values import Conversion
from noa_flows.recipe_process import ask_recipe
from noa_registry.evidence import METRICS, PREDICTIONS, CompatibilityEvidence, compare_signatures

if TYPE_CHECKING:
    from noa.settings import GateSettings, Settings
    from noa_flows.pipeline_values import Candidate
    from noa_registry import Evidence, ModelVersion, Registry


def attach_gate_evidence(
    registry: Registry, settings: Settings, candidate: Candidate, alias: str, *, actor: str | None = None
) -> None:
    """Attach to the candidate and to the holder of `alias` what the gate of the model asks for.

    Raises:
        InvalidInputError: the holder cannot be run on the candidate's test rows.
        IntegrityError: its files are not what was sealed.
    """
    version = candidate.version
    policy = settings.gates.get(version.name)
    holder = _holder(registry, version.name, alias)
    if holder is not None and holder.number != version.number:
        registry.attach(
            version.name, version.number, compare_with_holder(version, holder), actor=actor, by_pipeline=True
        )
        if policy is not None and _compares(policy):
            _measure_holder(registry, candidate, holder, actor)
    if policy is not None and policy.max_latency_ms:
        attach_latency(registry, settings, candidate, actor=actor)


def compare_with_holder(version: ModelVersion, holder: ModelVersion) -> Evidence:
    """Return whether clients of `holder` can go on with `version`, as a fact about `version`."""
    found = compare_signatures(holder.signature, version.signature)
    return CompatibilityEvidence(
        digest=version.digest,
        holder=holder.reference,
        holder_digest=holder.digest,
        level=found.level,
        differences=found.differences,
    ).to_evidence()


def _compares(policy: GateSettings) -> bool:
    return bool(policy.max_regression or policy.slice_regression or policy.check)


def _holder(registry: Registry, name: str, alias: str) -> ModelVersion | None:
    try:
        return registry.resolve(f"{name}@{alias}")
    except NotFoundError:
        return None


def _measure_holder(registry: Registry, candidate: Candidate, holder: ModelVersion, actor: str | None) -> None:
    """Attach the holder's measurements on the candidate's test split, unless they are known."""
    job = candidate.job
    test_digest = str(ask_recipe(job.request, "rows", {"job": job_to(job)}, folder=job.folder)["digest"])
    served = holder.default_format
    digest, rows = holder.formats[served].digest, test_digest
    known = {
        fact.kind
        for fact in registry.evidence(holder.name, holder.number)
        if fact.digest == digest and fact.values.get("dataset_digest") == rows
    }
    if {METRICS, PREDICTIONS} <= known:
        return
    written = Conversion(format=served, folder=registry.open_format(holder, served), digest=digest)
    facts = ask_facts(job, "measure", written)
    registry.attach(holder.name, holder.number, facts, actor=actor, by_pipeline=True)
