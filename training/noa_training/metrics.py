"""Metrics in numpy, from model outputs and targets: the same numbers for every backend and format.

A classifier's output is `logits`: (rows, classes) for `cross_entropy`, (rows,) or (rows, 1) for `binary_cross_entropy`,
where a positive logit means class 1. `precision`, `recall` and `f1` are those of class 1 there, and unweighted means
over the classes that occur in targets or predictions for `cross_entropy` (scikit-learn's `average="macro",
zero_division=0`). For `token_cross_entropy` logits are (rows, length, classes), and a row contributes the mean over its
steps that count: sequences are what is drawn anew, as the steps of one depend on each other.

Each metric has one definition here, for rows that count any number of times: that is what a bootstrap needs, and a
metric of a split is the case in which each row counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from noa.errors import InvalidInputError
from noa_training.datasets import NOT_COUNTED, Objective

RowMetric = Callable[[np.ndarray, np.ndarray], np.ndarray]


def compute_metrics(
    names: Sequence[str], outputs: np.ndarray, targets: np.ndarray, *, objective: Objective
) -> dict[str, float]:
    """Return the named metrics. `outputs` are a model's raw outputs for the rows of `targets`.

    Raises:
        InvalidInputError: the outputs do not fit the targets.
    """
    outputs, targets = prepare(outputs, targets, objective=objective)
    once = np.ones((1, len(targets)), np.int64)
    values: dict[str, float] = {}
    for name in dict.fromkeys(names):
        rows = ROW_METRICS[objective].get(name)
        if rows is not None:
            values[name] = float(np.mean(rows(outputs, targets)))
        elif name == "auc":
            values[name] = float(weighted_auc(outputs, targets, once)[0])
        else:
            values[name] = float(weighted_class_means(name, outputs, targets, once)[0])
    return values


def prepare(outputs: np.ndarray, targets: np.ndarray, *, objective: str) -> tuple[np.ndarray, np.ndarray]:
    """Return outputs in float64 and targets as the metrics of an objective take them.

    These are logits (rows, classes) and class numbers; logits (rows,) and booleans; numbers (rows, outputs) twice; or
    logits (rows, length, classes), as they are, and class numbers (rows, length).

    Raises:
        InvalidInputError: the outputs do not fit the targets.
    """
    if objective == "token_cross_entropy":
        least = int(targets.max()) + 1
        if outputs.ndim != 3 or outputs.shape[:2] != targets.shape or outputs.shape[2] < least:
            raise InvalidInputError(
                "outputs do not fit the targets",
                expected=f"({', '.join(map(str, targets.shape))}, at least {least} classes)",
                received=str(tuple(outputs.shape)),
            )
        return outputs, targets  # in float64 they could be larger than what is free
    outputs = np.asarray(outputs, np.float64)
    if objective == "cross_entropy":
        if outputs.ndim != 2 or len(outputs) != len(targets) or int(targets.max()) >= outputs.shape[1]:
            raise InvalidInputError(
                "outputs do not fit the targets",
                expected=f"({len(targets)}, at least {int(targets.max()) + 1} classes)",
                received=str(tuple(outputs.shape)),
            )
        return outputs, targets
    expected, values = targets.reshape(len(targets), -1), outputs.reshape(len(outputs), -1)
    if values.shape != expected.shape:
        raise InvalidInputError(
            "outputs do not fit the targets", expected=str(expected.shape), received=str(tuple(outputs.shape))
        )
    if objective == "binary_cross_entropy":
        return values[:, 0], expected[:, 0].astype(bool)
    return values, expected.astype(np.float64)


def area_under_roc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the area under the ROC curve, by mid-ranks (ties count half); 0.5 where only one class is present.

    Source: Mann and Whitney 1947; Hanley and McNeil 1982, section II.
    """
    return float(weighted_auc(scores, positive, np.ones((1, len(scores)), np.int64))[0])


def weighted_auc(scores: np.ndarray, positive: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve (draws,) where row i counts `counts[draw, i]` times.

    The rows are sorted once for all draws: the share of pairs in which the positive row scores higher, ties half.
    """
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    drawn = counts[:, order]
    positives = np.add.reduceat(drawn * positive[order], starts, axis=1).astype(np.float64)
    negatives = np.add.reduceat(drawn * ~positive[order], starts, axis=1).astype(np.float64)
    lower = np.cumsum(negatives, axis=1) - negatives
    wins = (positives * (lower + negatives / 2)).sum(axis=1)
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    return np.where(pairs > 0, wins / np.maximum(pairs, 1), 0.5)


def weighted_class_means(name: str, outputs: np.ndarray, targets: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return `precision`, `recall` or `f1` (draws,) where row i counts `counts[draw, i]` times."""
    if outputs.ndim == 1:
        predicted, classes = outputs > 0, np.asarray([True])
    else:
        predicted = outputs.argmax(axis=1)
        classes = np.union1d(targets, predicted)
    wanted, given = _class_counts(targets, counts, classes), _class_counts(predicted, counts, classes)
    right = predicted == targets
    hits = _class_counts(targets[right], counts[:, right], classes)
    value = {
        "precision": hits / np.maximum(given, 1),
        "recall": hits / np.maximum(wanted, 1),
        "f1": 2 * hits / np.maximum(wanted + given, 1),
    }[name]
    if outputs.ndim == 1:
        return value[:, 0]
    present = (wanted + given) > 0
    return np.asarray((value * present).sum(axis=1) / np.maximum(present.sum(axis=1), 1))


def _class_counts(labels: np.ndarray, counts: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return how often each class was drawn, (draws, classes)."""
    found = np.zeros((len(counts), len(classes)), np.float64)
    if len(labels):
        order = np.argsort(labels, kind="stable")
        ordered = labels[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        sums = np.add.reduceat(counts[:, order], starts, axis=1)
        wanted = np.isin(ordered[starts], classes)
        found[:, np.searchsorted(classes, ordered[starts][wanted])] = sums[:, wanted]
    return found


def _class_loss(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    peak = logits.max(axis=1)
    log_sum = np.log(np.exp(logits - peak[:, None]).sum(axis=1)) + peak
    return log_sum - logits[np.arange(len(targets)), targets]


def _over_steps(step_metric: RowMetric) -> RowMetric:
    """Return the metric of a row as the mean over its steps that count."""

    def of_rows(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        values = np.zeros(len(targets), np.float64)
        for row, (scores, labels) in enumerate(zip(logits, targets, strict=True)):
            counted = labels != NOT_COUNTED
            values[row] = step_metric(np.asarray(scores[counted], np.float64), labels[counted]).mean()
        return values

    return of_rows


def _is_right(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return (logits.argmax(axis=1) == targets).astype(np.float64)


def _binary_loss(logits: np.ndarray, positive: np.ndarray) -> np.ndarray:
    # log(1 + exp(-|x|)) keeps large logits finite.
    return np.maximum(logits, 0) - logits * positive + np.log1p(np.exp(-np.abs(logits)))


def binary_chances(logits: np.ndarray) -> np.ndarray:
    """Return the probability of class 1."""
    return np.where(logits >= 0, 1, np.exp(-np.abs(logits))) / (1 + np.exp(-np.abs(logits)))


def class_chances(logits: np.ndarray) -> np.ndarray:
    """Return the probability of each class, (rows, classes)."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


ROW_METRICS: Mapping[str, Mapping[str, RowMetric]] = MappingProxyType(
    {
        "cross_entropy": {
            "loss": _class_loss,
            "accuracy": _is_right,
        },
        "binary_cross_entropy": {
            "loss": _binary_loss,
            "accuracy": lambda logits, positive: ((logits > 0) == positive).astype(np.float64),
            "brier": lambda logits, positive: (binary_chances(logits) - positive) ** 2,
        },
        "token_cross_entropy": {"loss": _over_steps(_class_loss), "accuracy": _over_steps(_is_right)},
        "mse": {
            "loss": lambda values, expected: ((values - expected) ** 2).mean(axis=1),
            "mse": lambda values, expected: ((values - expected) ** 2).mean(axis=1),
            "mae": lambda values, expected: np.abs(values - expected).mean(axis=1),
        },
    }
)
"""Those metrics that are means over rows, by objective: what each row contributes, from what `prepare` returns."""
