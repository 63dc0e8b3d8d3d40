"""How fast a format answers, on which machine, and how large it is."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Final

from noa_registry.evidence.facts import LATENCY, SIZE, Evidence
from noa_registry.evidence.reading import Reader

ENOUGH_RUNS: Final = {"p50": 20, "p99": 1000}
"""Ten runs beyond the percentile: 10 / (1 - q). Of fewer it hangs on one or two of them."""
FEWEST_RUNS: Final = {"p50": 5, "p99": 299}
"""The slowest of so many is above the percentile with a confidence of 95 %, whatever the times are like: 1 - q^n."""
MOST_SECONDS: Final = 3600
"""How long a batch size may be measured at most."""
_BUSY_BELOW: Final = 0.9
_LEAST_SECONDS: Final = 20
_SPARE: Final = 1.5  # runs differ, and the machine may be slower then


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """The machine of a measurement. `load` is its load average over the minute before: others may have computed too."""

    cpu: str
    cores: int
    threads: int
    runtime: str
    load: float

    def describe(self) -> str:
        """Return e.g. `AMD EPYC 7763, 2 cores, 1 thread, onnxruntime 1.32.0`."""
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        return f"{self.cpu}, {self.cores} core{'' if self.cores == 1 else 's'}, {threads}, {self.runtime}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLatency:
    """Times of `runs` calls with `batch` rows each, milliseconds. The 99th percentile of few runs is the slowest."""

    batch: int
    runs: int
    p50_ms: float
    p99_ms: float
    max_ms: float | None = None
    """The slowest run; older measurements do not say it."""
    cpu_share: float | None = None
    """Processor time of the process by the time that the runs took; below 1 it waited for a processor."""

    @property
    def was_busy(self) -> bool:
        """Whether others had the processor meanwhile: then times are longer than the model takes, never shorter."""
        return self.cpu_share is not None and self.cpu_share < _BUSY_BELOW

    def judged_ms(self, percentile: str) -> float | None:
        """Return what a limit of `p50` or `p99` is judged by, None if too few runs were made to say anything.

        With enough runs it is the percentile, with fewer the slowest of them, which is above it (95 % confidence).
        """
        if self.runs >= ENOUGH_RUNS[percentile]:
            return self._measured(percentile)
        return self._slowest if self.runs >= FEWEST_RUNS[percentile] else None

    def seconds_needed(self, percentile: str) -> int | None:
        """Return how long to measure for runs that are enough to judge `p50` or `p99` by; None: longer than may be."""
        runs_s = FEWEST_RUNS[percentile] * self.p50_ms / 1000
        seconds = max(_LEAST_SECONDS, math.ceil(_SPARE * runs_s / 10) * 10)
        return seconds if seconds <= MOST_SECONDS else None

    def describe(self, percentile: str | None = None) -> str:
        """Return on what it stands, e.g. `1000 runs`; for a limit of `p50` or `p99` maybe `the slowest of 412 runs`."""
        is_enough = percentile is None or self.runs >= ENOUGH_RUNS[percentile] or self.judged_ms(percentile) is None
        runs = f"{self.runs} run{'' if self.runs == 1 else 's'}"
        busy = f", busy with others: it had {self.cpu_share:.0%} of the time" if self.was_busy else ""
        return f"{runs if is_enough else f'the slowest of {runs}'}{busy}"

    @property
    def _slowest(self) -> float | None:
        if self.max_ms is None and self.runs < ENOUGH_RUNS["p99"] // 10:
            return self.p99_ms  # of less than 100 runs the 99th percentile was the slowest
        return self.max_ms

    def _measured(self, percentile: str) -> float:
        return {"p50": self.p50_ms, "p99": self.p99_ms}[percentile]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyEvidence:
    """How long a format computes per batch size, in this process, without a server in between."""

    subject: str
    digest: str
    hardware: Hardware
    batches: tuple[BatchLatency, ...]

    def value(self, percentile: str, batch: int) -> float | None:
        """Return `p50` or `p99` of a batch size in milliseconds, None if it was not measured."""
        for entry in self.batches:
            if entry.batch == batch:
                return {"p50": entry.p50_ms, "p99": entry.p99_ms}.get(percentile)
        return None

    def to_evidence(self) -> Evidence:
        """Return it as a fact to attach."""
        return Evidence(
            kind=LATENCY,
            subject=self.subject,
            digest=self.digest,
            values={
                "hardware": asdict(self.hardware),
                "batches": [_without_none(asdict(entry)) for entry in self.batches],
            },
        )

    @staticmethod
    def from_evidence(evidence: Evidence) -> LatencyEvidence:
        """Read a fact back.

        Raises:
            InvalidInputError: it is of another kind, or a part is missing or impossible.
        """
        reader = Reader.of(evidence, LATENCY)
        machine = reader.table("hardware")
        return LatencyEvidence(
            subject=evidence.subject,
            digest=evidence.digest,
            hardware=Hardware(
                cpu=machine.text("cpu"),
                cores=machine.integer("cores", minimum=1),
                threads=machine.integer("threads", minimum=1),
                runtime=machine.text("runtime"),
                load=machine.finite("load", minimum=0),
            ),
            batches=tuple(
                BatchLatency(
                    batch=row.integer("batch", minimum=1),
                    runs=row.integer("runs", minimum=1),
                    p50_ms=row.finite("p50_ms", minimum=0),
                    p99_ms=row.finite("p99_ms", minimum=0),
                    max_ms=row.optional_finite("max_ms", minimum=0),
                    cpu_share=row.optional_finite("cpu_share", minimum=0),
                )
                for row in reader.rows("batches")
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeEvidence:
    """Bytes and number of the files of a format."""

    subject: str
    digest: str
    size_bytes: int
    files: int

    def to_evidence(self) -> Evidence:
        """Return it as a fact to attach."""
        values = {"size_bytes": self.size_bytes, "files": self.files}
        return Evidence(kind=SIZE, subject=self.subject, digest=self.digest, values=values)

    @staticmethod
    def from_evidence(evidence: Evidence) -> SizeEvidence:
        """Read a fact back.

        Raises:
            InvalidInputError: it is of another kind, or a part is missing or impossible.
        """
        reader = Reader.of(evidence, SIZE)
        return SizeEvidence(
            subject=evidence.subject,
            digest=evidence.digest,
            size_bytes=reader.integer("size_bytes"),
            files=reader.integer("files", minimum=1),
        )


def _without_none(values: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in values.items() if value is not None}
