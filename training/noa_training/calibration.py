"""Calibration of a classifier: are the rows that it is 90% sure of right in 90% of the cases?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from noa_registry.evidence import ReliabilityBin
from noa_training.metrics import binary_chances, class_chances, prepare

BINS = 15
BINNING = f"{BINS} equal-width bins of the predicted class's probability"


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Expected calibration error, Brier score and the bins that hold rows."""

    ece: float
    brier: float
    bins: tuple[ReliabilityBin, ...]


def measure_calibration(outputs: np.ndarray, targets: np.ndarray, *, objective: str) -> Calibration | None:
    """Return the calibration of a classifier's logits; None for a model that gives no probability of a row, or NaN.

    Source: Guo et al. 2017, arXiv:1706.04599, eq. 2 and 3, with their 15 bins; Brier 1950, eq. 2, for several classes,
    and the squared error of the probability of class 1 for two.
    """
    if objective not in ("cross_entropy", "binary_cross_entropy"):
        return None
    logits, truth = prepare(outputs, targets, objective=objective)
    if not np.isfinite(logits).all():
        return None
    if objective == "binary_cross_entropy":
        positive = binary_chances(logits)
        confidence, right = np.maximum(positive, 1 - positive), (logits > 0) == truth
        brier = float(np.mean((positive - truth) ** 2))
    else:
        chances = class_chances(logits)
        confidence, right = chances.max(axis=1), chances.argmax(axis=1) == truth
        brier = float(np.mean(((chances - np.eye(chances.shape[1])[truth]) ** 2).sum(axis=1)))
    bins = _bins(confidence, right)
    rows = len(truth)
    ece = sum(entry.rows / rows * abs(entry.accuracy - entry.confidence) for entry in bins)
    return Calibration(ece=float(ece), brier=brier, bins=bins)


def _bins(confidence: np.ndarray, right: np.ndarray) -> tuple[ReliabilityBin, ...]:
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    found: list[ReliabilityBin] = []
    for index in np.unique(place):
        inside = place == index
        found.append(
            ReliabilityBin(
                lower=float(index / BINS),
                upper=float((index + 1) / BINS),
                rows=int(inside.sum()),
                confidence=min(float(confidence[inside].mean()), 1.0),
                accuracy=float(right[inside].mean()),
            )
        )
    return tuple(found)
