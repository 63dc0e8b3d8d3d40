"""Which formats of a version are proven to compute what the native one does, and how fast each was measured.

The proof is that of the gate: passed evidence of equivalence for exactly these bytes. Times compare only if they are
of one machine and as many threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from noa_registry.gates.candidate import Candidate
from noa_registry.gates.evidence_rules import equivalence_verdicts
from noa_registry.gates.recorded_latency import RecordedLatency, slowest

if TYPE_CHECKING:
    from noa_registry.evidence.facts import Evidence
    from noa_registry.evidence.performance import Hardware, LatencyEvidence
    from noa_registry.versions import ModelVersion

Machine: TypeAlias = tuple[str, int, int]
"""Processor, cores and threads of a measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatProof:
    """One format. `problem` is what it lacks to be proven, None if it is; `latency` its times by machine.

    `is_refuted`: it was compared, and computes something else.
    """

    name: str
    problem: str | None
    is_refuted: bool
    latency: Mapping[Machine, LatencyEvidence]

    def p50_ms(self, machine: Machine) -> float | None:
        """Return the median time of one row on a machine, None if that was not measured."""
        measured = self.latency.get(machine)
        return None if measured is None else measured.value("p50", 1)


def format_proofs(version: ModelVersion, evidence: Sequence[Evidence]) -> dict[str, FormatProof]:
    """Return the formats of a version by name; the native one needs no proof."""
    candidate = Candidate(
        reference=version.reference,
        native=version.native,
        formats={name: sealed.digest for name, sealed in version.formats.items()},
        evidence=evidence,
    )
    verdicts = {one.rule.partition(".")[2]: one for one in equivalence_verdicts(candidate)}
    proofs: dict[str, FormatProof] = {}
    for name in version.formats:
        verdict = verdicts.get(name)
        problem = None if verdict is None or verdict.passed else verdict.received
        proofs[name] = FormatProof(
            name=name,
            problem=problem,
            is_refuted=problem is not None and problem.startswith("failed"),
            latency=_latency(candidate, name),
        )
    return proofs


def machine_of(hardware: Hardware) -> Machine:
    """Return what two measurements must share to be compared."""
    return hardware.cpu, hardware.cores, hardware.threads


def _latency(candidate: Candidate, name: str) -> dict[Machine, LatencyEvidence]:
    """Return the slowest measurement on each machine, that of the newest one last."""
    recorded = RecordedLatency.of(candidate, name)
    here = [latency for _, latency in recorded.measured]
    by_machine: dict[Machine, list[LatencyEvidence]] = {}
    for latency in (*recorded.elsewhere, *here):
        by_machine.setdefault(machine_of(latency.hardware), []).append(latency)
    return {machine: slowest(latencies) for machine, latencies in by_machine.items()}
