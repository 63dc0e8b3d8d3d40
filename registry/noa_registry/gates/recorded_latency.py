"""What is recorded of the latency of a format, and which of several measurements on one machine counts.

The slowest does, of those that were made well enough: with enough runs, by a process that had the processor. One that
was not says that a model is fast enough, because others on the machine only make it slower; that it is too slow it
does not say, so it yields to any that was made well. Which are well made hangs on no time that was found, so nobody
gets past a limit by measuring until the times are good.

It is judged on the machine on which it was measured last; `elsewhere` are the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from noa.errors import InvalidInputError
from noa_registry.evidence.facts import LATENCY, Evidence
from noa_registry.evidence.performance import ENOUGH_RUNS, FEWEST_RUNS, BatchLatency, LatencyEvidence
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

    def judge(self, percentile: str, batch: int, limit: float) -> JudgedLatency:
        """Judge `p50` or `p99` of a batch size by a limit in milliseconds."""
        taken = [
            _Taken(fact=fact, entry=entry, load=latency.hardware.load)
            for fact, latency in self.measured
            for entry in latency.batches
            if entry.batch == batch
        ]
        told = [one for one in taken if one.entry.judged_ms(percentile) is not None]
        if not told:
            longest = max(taken, key=lambda one: one.entry.runs, default=None)
            return JudgedLatency(percentile=percentile, limit=limit, taken=longest)
        calm = [one for one in told if not one.entry.was_busy]
        counted = calm or told
        among = tuple(RecordedValue(value=one.entry.judged_ms(percentile) or 0.0, fact=one.fact) for one in counted)
        pick = max if calm else min  # the least disturbed one is nearest to what the model takes
        chosen = pick(among, key=lambda entry: entry.value)
        return JudgedLatency(
            percentile=percentile,
            limit=limit,
            taken=counted[among.index(chosen)],
            chosen=ChosenValue(chosen=chosen, among=among, which="largest" if calm else "smallest"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taken:
    """The measurement of one batch size, in which fact it stands, and the load of the machine before."""

    fact: Evidence
    entry: BatchLatency
    load: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedLatency:
    """The measurement that counts for a limit. `taken`: None if there is none; `chosen`: None if it says too little."""

    percentile: str
    limit: float
    taken: _Taken | None = None
    chosen: ChosenValue | None = None

    @property
    def passed(self) -> bool:
        """Whether it is known to be within the limit."""
        return self.chosen is not None and self.chosen.value <= self.limit

    @property
    def is_decided(self) -> bool:
        """Whether another measurement could not turn the verdict into a better one."""
        return self.passed or (self.chosen is not None and self.taken is not None and not self.taken.entry.was_busy)

    def describe(self, machine: str) -> str:
        """Return the value and on what it stands, e.g. `0.35 ms on AMD EPYC, 2 cores (1000 runs, load 1.2)`."""
        if self.taken is None:
            return "not measured"
        entry = self.taken.entry
        about = f"{entry.describe(self.percentile)}, load {self.taken.load:.1f}"
        if self.chosen is not None:
            return f"{self.chosen.value:.4g} ms on {machine} ({about})"
        fewest, enough = FEWEST_RUNS[self.percentile], ENOUGH_RUNS[self.percentile]
        return (
            f"not measured well enough on {machine} ({about}): `{self.percentile}` needs {enough:,}, {fewest} at least"
        )

    def to_dict(self) -> dict[str, object]:
        """Return what it stands on as plain JSON values."""
        if self.taken is None:
            return {}
        entry = self.taken.entry
        found: dict[str, object] = {"runs": entry.runs, "load": self.taken.load}
        if entry.cpu_share is not None:
            found["cpu_share"] = entry.cpu_share
        if self.chosen is not None:
            found["latency_ms"] = self.chosen.value
        if self.chosen is not None and self.chosen.is_disputed:
            found["measurements"] = self.chosen.to_list()
        return found


def latency_name(name: str) -> tuple[str, int]:
    """Return percentile and batch size of a limit's name: `p99@32` is the 99th percentile of 32 rows."""
    percentile, _, batch = name.partition("@")
    return percentile, int(batch or 1)


def slowest(measured: Sequence[LatencyEvidence]) -> LatencyEvidence:
    """Return several measurements on one machine as one: of each batch size the slowest of each number.

    Those that were made well enough count, others only where there is none.
    """
    by_batch: dict[int, list[BatchLatency]] = {}
    for latency in measured:
        for entry in latency.batches:
            by_batch.setdefault(entry.batch, []).append(entry)
    batches = tuple(_slowest_of(by_batch[batch]) for batch in sorted(by_batch))
    return replace(measured[-1], batches=batches)


def _slowest_of(entries: Sequence[BatchLatency]) -> BatchLatency:
    def counted(percentile: str) -> Sequence[BatchLatency]:
        told = [entry for entry in entries if entry.judged_ms(percentile) is not None]
        return [entry for entry in told if not entry.was_busy] or told or entries

    p50 = max(entry.p50_ms for entry in counted("p50"))
    last = max(counted("p99"), key=lambda entry: entry.p99_ms)
    p99 = max(p50, last.p99_ms)
    return replace(last, p50_ms=p50, p99_ms=p99, max_ms=None if last.max_ms is None else max(p99, last.max_ms))
