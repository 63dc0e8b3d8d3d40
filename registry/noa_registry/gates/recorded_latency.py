"""What is recorded of the latency of a format: of all measurements on one machine the slowest.

It is judged on the machine on which it was measured last; `elsewhere` are the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from noa.errors import InvalidInputError
from noa_registry.evidence.facts import LATENCY, Evidence
from noa_registry.evidence.performance import BatchLatency, LatencyEvidence
from noa_registry.evidence.same_thing import by_thing
from noa_registry.gates.candidate import Candidate
from noa_registry.gates.recorded_metrics import ChosenValue, RecordedValue


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedLatency:
    """All measurements on the machine of the newest one, oldest first; `problem` says why there is none to judge by."""

    measured: tuple[tuple[Evidence, LatencyEvidence], ...] = ()
    elsewhere: tuple[LatencyEvidence, ...] = ()
    problem: str | None = None

    @staticmethod
    def of(candidate: Candidate, subject: str) -> RecordedLatency:
        """Read what is recorded of the sealed bytes of a format."""
        newest = candidate.newest(LATENCY, subject)
        if newest is None:
            return RecordedLatency(problem=f"no latency of `{subject}` for these bytes")
        about = [f for f in candidate.evidence if (f.subject, f.digest) == (newest.subject, newest.digest)]
        try:
            machines = [
                [(fact, LatencyEvidence.from_evidence(fact)) for fact in group] for group in by_thing(about, LATENCY)
            ]
        except InvalidInputError as exc:
            return RecordedLatency(problem=str(exc))
        here = next(group for group in machines if any(fact is newest for fact, _ in group))
        others = [[latency for _, latency in group] for group in machines if group is not here]
        return RecordedLatency(measured=tuple(here), elsewhere=tuple(map(slowest, others)))

    @property
    def slowest(self) -> LatencyEvidence | None:
        """The measurements as one, by the slowest of each number; None if there is none."""
        return slowest([latency for _, latency in self.measured]) if self.measured else None

    def choose(self, percentile: str, batch: int) -> ChosenValue | None:
        """Return the slowest `p50` or `p99` of a batch size in milliseconds, None if it was not measured."""
        values = [(fact, latency.value(percentile, batch)) for fact, latency in self.measured]
        among = tuple(RecordedValue(value=value, fact=fact) for fact, value in values if value is not None)
        if not among:
            return None
        return ChosenValue(chosen=max(among, key=lambda entry: entry.value), among=among, which="largest")


def slowest(measured: Sequence[LatencyEvidence]) -> LatencyEvidence:
    """Return several measurements on one machine as one: of each batch size the slowest of each number."""
    by_batch: dict[int, list[BatchLatency]] = {}
    for latency in measured:
        for entry in latency.batches:
            by_batch.setdefault(entry.batch, []).append(entry)
    batches = tuple(
        replace(
            max(entries, key=lambda entry: entry.p99_ms),
            p50_ms=max(entry.p50_ms for entry in entries),
            p99_ms=max(entry.p99_ms for entry in entries),
        )
        for _, entries in sorted(by_batch.items())
    )
    return replace(measured[-1], batches=batches)
