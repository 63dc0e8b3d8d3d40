"""Metrics in numpy, from model outputs and targets: the same numbers for every backend and format.

A classifier's output is `logits`: (rows, classes) for `cross_entropy`, (rows,) or (rows, 1) for `binary_cross_entropy`,
where a positive logit means class 1. `precision`, `recall` and `f1` are those of class 1 there, and unweighted means
over the classes that occur in targets or predictions for `cross_entropy` (scikit-learn's `average="macro",
zero_division=0`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from noa.errors import InvalidInputError
from noa_training.datasets import Objective


def compute_metrics(
    names: Sequence[str], outputs: np.ndarray, targets: np.ndarray, *, objective: Objective
) -> dict[str, float]:
    """Return the named metrics. `outputs` are a model's raw outputs for the rows of `targets`.

    Raises:
        InvalidInputError: the outputs do not fit the targets.
    """
    outputs = np.asarray(outputs, np.float64)
    if objective == "cross_entropy":
        return _of_classes(names, outputs, targets)
    expected = targets.reshape(len(targets), -1)
    values = outputs.reshape(len(outputs), -1)
    if values.shape != expected.shape:
        raise InvalidInputError(
            "outputs do not fit the targets", expected=str(expected.shape), received=str(tuple(outputs.shape))
        )
    if objective == "binary_cross_entropy":
        return _of_binary(names, values[:, 0], expected[:, 0].astype(bool))
    errors = values - expected.astype(np.float64)
    known = {"loss": np.mean(errors**2), "mse": np.mean(errors**2), "mae": np.mean(np.abs(errors))}
    return {name: float(known[name]) for name in names}


def area_under_roc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the area under the ROC curve, by mid-ranks (ties count half); 0.5 where only one class is present.

    Source: Mann and Whitney 1947; Hanley and McNeil 1982, section II.
    """
    count = int(positive.sum())
    others = len(positive) - count
    if count == 0 or others == 0:
        return 0.5
    _, inverse, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    ranks = ((last - sizes + 1 + last) / 2)[inverse]
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))


def _of_classes(names: Sequence[str], logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    if logits.ndim != 2 or len(logits) != len(targets) or int(targets.max()) >= logits.shape[1]:
        raise InvalidInputError(
            "outputs do not fit the targets",
            expected=f"({len(targets)}, at least {int(targets.max()) + 1} classes)",
            received=str(tuple(logits.shape)),
        )
    predicted = logits.argmax(axis=1)
    values: dict[str, float] = {}
    if "loss" in names:
        peak = logits.max(axis=1)
        log_sum = np.log(np.exp(logits - peak[:, None]).sum(axis=1)) + peak
        values["loss"] = float(np.mean(log_sum - logits[np.arange(len(targets)), targets]))
    if "accuracy" in names:
        values["accuracy"] = float(np.mean(predicted == targets))
    if {"precision", "recall", "f1"} & set(names):
        size = logits.shape[1]
        hits = np.bincount(targets[predicted == targets], minlength=size).astype(np.float64)
        wanted, given = np.bincount(targets, minlength=size), np.bincount(predicted, minlength=size)
        present = (wanted + given) > 0
        values |= _macro(hits[present], wanted[present], given[present])
    return {name: values[name] for name in names}


def _of_binary(names: Sequence[str], logits: np.ndarray, positive: np.ndarray) -> dict[str, float]:
    predicted = logits > 0
    hits = np.asarray([np.sum(predicted & positive)], np.float64)
    values = _macro(hits, np.asarray([positive.sum()]), np.asarray([predicted.sum()]))
    # log(1 + exp(-|x|)) keeps large logits finite.
    losses = np.maximum(logits, 0) - logits * positive + np.log1p(np.exp(-np.abs(logits)))
    chances = np.where(logits >= 0, 1, np.exp(-np.abs(logits))) / (1 + np.exp(-np.abs(logits)))
    values |= {
        "loss": float(losses.mean()),
        "accuracy": float(np.mean(predicted == positive)),
        "brier": float(np.mean((chances - positive) ** 2)),
    }
    if "auc" in names:
        values["auc"] = area_under_roc(logits, positive)
    return {name: values[name] for name in names}


def _macro(hits: np.ndarray, wanted: np.ndarray, given: np.ndarray) -> dict[str, float]:
    return {
        "precision": float(np.mean(hits / np.maximum(given, 1))),
        "recall": float(np.mean(hits / np.maximum(wanted, 1))),
        "f1": float(np.mean(2 * hits / np.maximum(wanted + given, 1))),
    }
