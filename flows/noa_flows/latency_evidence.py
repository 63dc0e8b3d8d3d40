"""Latency and size of registered versions, where they are missing or say too little for the gate.

`attach_latency` asks the process of the recipe that made the version, with its test rows; `measure_version` takes any
version of the registry, with its input example.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from noa_conversion.batches import batch_axis
from noa_conversion.latency import describe_hardware, measure_performance
from noa_flows._recipe_messages import conversion_to, evidence_from, job_to
from noa_flows._timed_batches import measured_tails, tail_batches, timed_batches
from noa_flows.pipeline_values import Conversion
from noa_flows.recipe_process import ask_recipe
from noa_registry.evidence import SIZE, LatencyEvidence, thing_of
from noa_registry.gates.recorded_latency import RecordedLatency, latency_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from noa.settings import Settings
    from noa_flows.pipeline_values import Candidate
    from noa_registry import Evidence, ModelVersion, Registry
    from noa_training import TrainedJob


def attach_latency(registry: Registry, settings: Settings, candidate: Candidate, *, actor: str | None = None) -> None:
    """Measure what is not known of a candidate's latency on this machine, and attach it with the size.

    Raises:
        IntegrityError: its files are not what was sealed.
    """
    version = candidate.version
    served, threads = version.default_format, settings.training.threads or None
    known = registry.evidence(version.name, version.number)
    batches = _untimed(settings, version, known, threads)
    if not batches:
        return
    folder = registry.open_format(version, served)
    written = Conversion(format=served, folder=folder, digest=version.formats[served].digest)
    tails = measured_tails(settings, version.name)
    facts = ask_facts(candidate.job, "latency", written, threads=threads, batches=batches, **tails)
    registry.attach(version.name, version.number, _new(facts, known), actor=actor, by_pipeline=True)


def measure_version(
    registry: Registry,
    settings: Settings,
    version: ModelVersion,
    *,
    batches: Sequence[int] = (),
    seconds: float = 2.0,
    actor: str | None = None,
) -> LatencyEvidence:
    """Measure the latency and size of a registered version on this machine and attach them.

    `batches` are those of `noa train` if none is given; each is called 1,000 times, or for `seconds`.

    Raises:
        InvalidInputError: the version has no input example, or the format cannot be run here.
        IntegrityError: its files are not what was sealed.
    """
    served, sizes = version.default_format, tuple(batches) or timed_batches(settings, version.name)
    facts = measure_performance(
        served,
        registry.open_format(version, served),
        registry.input_example(version),
        threads=settings.training.threads or None,
        batches=sizes,
        seconds_per_batch=seconds,
        tails=tail_batches(settings, version.name),
        tail_seconds=max(seconds, settings.training.latency_s),
    )
    known = registry.evidence(version.name, version.number)
    registry.attach(version.name, version.number, _new(facts, known), actor=actor, by_pipeline=True)
    return LatencyEvidence.from_evidence(facts[0])


def ask_facts(job: TrainedJob, step: str, written: Conversion, **values: object) -> tuple[Evidence, ...]:
    """Let the recipe's process measure a format on the job's test rows."""
    asked = {"job": job_to(job), "written": conversion_to(written), **values}
    return tuple(map(evidence_from, ask_recipe(job.request, step, asked, folder=job.folder)))


def _new(facts: Sequence[Evidence], known: Sequence[Evidence]) -> list[Evidence]:
    """Return the facts without a size that is known of these bytes."""
    sized = {fact.digest for fact in known if fact.kind == SIZE}
    return [fact for fact in facts if fact.kind != SIZE or fact.digest not in sized]


def _untimed(
    settings: Settings, version: ModelVersion, known: Sequence[Evidence], threads: int | None
) -> tuple[int, ...]:
    """Return the batch sizes that were not measured on this machine, or not well enough for what the gate limits."""
    served = version.default_format
    here = LatencyEvidence(
        subject=served, digest=version.formats[served].digest, hardware=describe_hardware(served, threads), batches=()
    )
    thing = thing_of(here.to_evidence())
    measured = tuple((fact, LatencyEvidence.from_evidence(fact)) for fact in known if thing_of(fact) == thing)
    recorded = RecordedLatency(measured=measured)
    timed = {entry.batch for _, latency in measured for entry in latency.batches}
    policy = settings.gates.get(version.name)
    limits = {} if policy is None else policy.max_latency_ms
    undecided = {
        batch
        for name, limit in limits.items()
        for percentile, batch in [latency_name(name)]
        if batch in timed and not recorded.judge(percentile, batch, limit).is_decided
    }
    if measured and batch_axis(version.signature) is None:  # there is one size of batch
        return tuple(sorted(undecided))
    return tuple(batch for batch in timed_batches(settings, version.name) if batch not in timed or batch in undecided)
