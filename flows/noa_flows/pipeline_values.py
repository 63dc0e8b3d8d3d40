"""What passes between the steps of a pipeline: small frozen values, each with a JSON form for logs and artifacts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

if TYPE_CHECKING:
    from noa_registry import Evidence, GateReport, ModelVersion
    from noa_training import JobEvent, TrainedJob

StepName: TypeAlias = Literal["train", "evaluate", "convert", "verify", "register", "time", "gate", "promote", "deploy"]
STEPS: tuple[StepName, ...] = get_args(StepName)
StepPhase: TypeAlias = Literal["started", "progress", "done", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineEvent:
    """A step began, said something, or ended. `backend` is None for the steps after the backends have met.

    `job` is the training job's own event where the phase is `progress`; `seconds` is how long an ended step took.
    """

    step: StepName
    phase: StepPhase
    backend: str | None = None
    message: str = ""
    seconds: float | None = None
    job: JobEvent | None = None


OnEvent: TypeAlias = Callable[[PipelineEvent], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Metrics of one format, whose bytes are `digest`, on a test split of `rows` rows named by `dataset_digest`.

    `evidence` is all that was measured of it, to be attached to the version.
    """

    format: str
    digest: str
    dataset_digest: str
    rows: int
    metrics: Mapping[str, float]
    evidence: tuple[Evidence, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "format": self.format,
            "digest": self.digest,
            "dataset_digest": self.dataset_digest,
            "rows": self.rows,
            "metrics": dict(self.metrics),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A written format. `digest` names its bytes."""

    format: str
    folder: Path
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """A converted format that computes the same as the native one: the evidence, and its own metrics."""

    evidence: Evidence
    evaluation: Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A backend's registered model. `metrics` are those of the served format on the test split: told, not chosen by."""

    backend: str
    job: TrainedJob
    version: ModelVersion
    metrics: Mapping[str, float]

    @property
    def validation(self) -> Mapping[str, float]:
        """Metrics of its best epoch on the validation split, which choose among candidates as they chose the epoch."""
        return self.job.metrics

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "backend": self.backend,
            "reference": self.version.reference,
            "digest": self.version.digest,
            "metrics": dict(self.metrics),
            "validation": dict(self.validation),
            "job": self.job.job_id,
            "steps": self.job.steps,
            "train_seconds": self.job.seconds,
            "resumed_from_step": self.job.resumed_from_step,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """An alias that now points to `reference`; `previous` is the number it pointed to, `sequence` the ledger's row."""

    alias: str
    reference: str
    digest: str
    previous: int | None
    sequence: int

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "alias": self.alias,
            "reference": self.reference,
            "digest": self.digest,
            "previous": self.previous,
            "sequence": self.sequence,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Which endpoints answer with the promoted version now; none if nothing is serving."""

    reference: str
    endpoints: tuple[str, ...]
    address: str | None
    seconds: float

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "reference": self.reference,
            "endpoints": list(self.endpoints),
            "address": self.address,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineResult:
    """What a pipeline did. `best` is the candidate with the best primary metric on the validation split.

    `tie_break` says what told it from its equals in that metric, "" if it has none.
    """

    model: str
    candidates: tuple[Candidate, ...]
    best: Candidate
    tie_break: str
    gate: GateReport | None
    promotion: Promotion | None
    deployment: Deployment | None
    seconds: float

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "model": self.model,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "best": self.best.version.reference,
            "tie_break": self.tie_break,
            "gate": None if self.gate is None else self.gate.to_dict(),
            "promotion": None if self.promotion is None else self.promotion.to_dict(),
            "deployment": None if self.deployment is None else self.deployment.to_dict(),
            "seconds": self.seconds,
        }
