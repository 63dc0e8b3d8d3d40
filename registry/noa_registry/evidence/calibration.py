"""Calibration: does a classifier's probability mean what it says?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from noa_registry.evidence.facts import CALIBRATION, Evidence
from noa_registry.evidence.reading import Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """The rows whose confidence is above `lower` and at most `upper` (the first bin holds its lower edge too)."""

    lower: float
    upper: float
    rows: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationEvidence:
    """Expected calibration error and Brier score of a classifier on a split; `bins` leaves out those without rows.

    `binning` says how rows were put into bins, since the error depends on it. `brier` is the mean over rows of the
    squared distance between the probabilities and the truth: over all classes for several (0 to 2), of class 1 for two.

    Source: Guo et al. 2017, arXiv:1706.04599, eq. 3 (ECE); Brier 1950, eq. 2.
    """

    subject: str
    digest: str
    dataset_digest: str
    split: str
    rows: int
    binning: str
    ece: float
    brier: float
    bins: tuple[ReliabilityBin, ...]

    def to_evidence(self) -> Evidence:
        """Return it as a fact to attach."""
        return Evidence(
            kind=CALIBRATION,
            subject=self.subject,
            digest=self.digest,
            values={
                "dataset_digest": self.dataset_digest,
                "split": self.split,
                "rows": self.rows,
                "binning": self.binning,
                "ece": self.ece,
                "brier": self.brier,
                "bins": [asdict(entry) for entry in self.bins],
            },
        )

    @staticmethod
    def from_evidence(evidence: Evidence) -> CalibrationEvidence:
        """Read a fact back.

        Raises:
            InvalidInputError: it is of another kind, or a part is missing or impossible.
        """
        reader = Reader.of(evidence, CALIBRATION)
        rows = reader.integer("rows", minimum=1)
        bins = tuple(_bin(entry) for entry in reader.rows("bins"))
        if sum(entry.rows for entry in bins) != rows:
            raise reader.wrong("bins", f"bins that hold {rows} rows together")
        return CalibrationEvidence(
            subject=evidence.subject,
            digest=evidence.digest,
            dataset_digest=reader.text("dataset_digest"),
            split=reader.text("split"),
            rows=rows,
            binning=reader.text("binning"),
            ece=reader.finite("ece", minimum=0, maximum=1),
            brier=reader.finite("brier", minimum=0, maximum=2),
            bins=bins,
        )


def worst_calibration(measured: Sequence[CalibrationEvidence]) -> CalibrationEvidence:
    """Return the one with the largest error, of those about the same thing."""
    return max(measured, key=lambda entry: (entry.ece, entry.brier))


def _bin(reader: Reader) -> ReliabilityBin:
    return ReliabilityBin(
        lower=reader.finite("lower", minimum=0, maximum=1),
        upper=reader.finite("upper", minimum=0, maximum=1),
        rows=reader.integer("rows", minimum=1),
        confidence=reader.finite("confidence", minimum=0, maximum=1),
        accuracy=reader.finite("accuracy", minimum=0, maximum=1),
    )
