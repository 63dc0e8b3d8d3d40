"""Everything that is measured of a model on a split from one pass over its rows, as evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from noa.formats import Runnable
from noa_registry.evidence import (
    CalibrationEvidence,
    Evidence,
    MetricsEvidence,
    Predictions,
    SliceMetrics,
    predictions_evidence,
)
from noa_registry.evidence.predictions import CLASS_PREFIX
from noa_training.calibration import BINNING, measure_calibration
from noa_training.datasets import MAX_SLICES, Split, SplitName
from noa_training.evaluation import checked_predictions, evaluate_outputs
from noa_training.metrics import ROW_METRICS, compute_metrics

if TYPE_CHECKING:
    from noa_training.recipes import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The metrics of the whole split, and the facts to attach: metrics with slices and, if asked for, the rest."""

    metrics: Mapping[str, float]
    evidence: tuple[Evidence, ...]


def measure(
    recipe: Recipe,
    runnable: Runnable,
    split: Split,
    *,
    subject: str,
    digest: str,
    dataset_digest: str | None = None,
    split_name: SplitName = "test",
    with_predictions: bool = True,
) -> Measurement:
    """Measure format `subject`, whose bytes are `digest`, on a split.

    `with_predictions` adds what it answered for each row, and the calibration of a classifier: what is needed to
    compare versions. `dataset_digest` saves hashing the split again where it is known.

    Raises:
        InvalidInputError: the model's inputs or outputs do not fit the split.
    """
    outputs = checked_predictions(runnable, split)
    metrics = evaluate_outputs(recipe, outputs, split)
    rows = dataset_digest or split.digest
    slices = slice_metrics(recipe, outputs, split)
    facts = [
        MetricsEvidence(
            subject=subject,
            digest=digest,
            dataset_digest=rows,
            split=split_name,
            metrics=metrics,
            rows=split.rows,
            slices=slices,
        ).to_evidence()
    ]
    if with_predictions:
        facts += _predictions(recipe, runnable, outputs, split, subject, digest, rows, split_name)
        calibration = measure_calibration(outputs, split.targets, objective=recipe.objective)
        if calibration is not None:
            facts.append(
                CalibrationEvidence(
                    subject=subject,
                    digest=digest,
                    dataset_digest=rows,
                    split=split_name,
                    rows=split.rows,
                    binning=BINNING,
                    ece=calibration.ece,
                    brier=calibration.brier,
                    bins=calibration.bins,
                ).to_evidence()
            )
    return Measurement(metrics=metrics, evidence=tuple(facts))


def slice_metrics(recipe: Recipe, outputs: np.ndarray, split: Split) -> dict[str, SliceMetrics]:
    """Return the metrics of every slice that has rows: those of the split, and each class of a classifier.

    Of a class only means over rows are measured: the others compare classes. More than `MAX_SLICES` classes are not
    measured one by one.
    """
    names = tuple(dict.fromkeys(("loss", *recipe.metrics)))
    found = {name: (mask, names) for name, mask in split.slices.items() if mask.any()}
    if recipe.objective in ("cross_entropy", "binary_cross_entropy"):
        classes = np.unique(split.targets)
        of_rows = tuple(name for name in names if name in ROW_METRICS[recipe.objective])
        for label in classes if len(classes) <= MAX_SLICES else ():
            found.setdefault(f"{CLASS_PREFIX}{int(label)}", (split.targets == label, of_rows))
    return {
        name: SliceMetrics(
            rows=int(mask.sum()),
            metrics=compute_metrics(chosen, outputs[mask], split.targets[mask], objective=recipe.objective),
        )
        for name, (mask, chosen) in found.items()
    }


def _predictions(
    recipe: Recipe,
    runnable: Runnable,
    outputs: np.ndarray,
    split: Split,
    subject: str,
    digest: str,
    dataset_digest: str,
    split_name: SplitName,
) -> list[Evidence]:
    fact = predictions_evidence(
        Predictions(outputs=outputs, targets=split.targets, slices=split.slices),
        subject=subject,
        digest=digest,
        dataset_digest=dataset_digest,
        split=split_name,
        objective=recipe.objective,
        output=runnable.signature.outputs[0].name,
    )
    return [] if fact is None else [fact]  # None: one row alone is larger than an attachment may be
