"""How fast a format answers, on which machine, and how large it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from noa_registry.evidence.facts import LATENCY, SIZE, Evidence
from noa_registry.evidence.reading import Reader


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
            values={"hardware": asdict(self.hardware), "batches": [asdict(entry) for entry in self.batches]},
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
