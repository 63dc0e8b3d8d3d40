"""The metrics by name: which objectives they belong to and in which direction they are better. Computed in
`metrics.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from noa.errors import NotFoundError

_CLASSES = "cross_entropy"
_BINARY = "binary_cross_entropy"
_NUMBERS = "mse"
_TOKENS = "token_cross_entropy"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricInfo:
    """One metric: for which objectives it is measured, and whether a larger value is better."""

    objectives: tuple[str, ...]
    larger_is_better: bool


METRICS: Mapping[str, MetricInfo] = MappingProxyType(
    {
        "loss": MetricInfo(objectives=(_CLASSES, _BINARY, _NUMBERS, _TOKENS), larger_is_better=False),
        "accuracy": MetricInfo(objectives=(_CLASSES, _BINARY, _TOKENS), larger_is_better=True),
        "precision": MetricInfo(objectives=(_CLASSES, _BINARY), larger_is_better=True),
        "recall": MetricInfo(objectives=(_CLASSES, _BINARY), larger_is_better=True),
        "f1": MetricInfo(objectives=(_CLASSES, _BINARY), larger_is_better=True),
        "auc": MetricInfo(objectives=(_BINARY,), larger_is_better=True),
        "brier": MetricInfo(objectives=(_BINARY,), larger_is_better=False),
        "mae": MetricInfo(objectives=(_NUMBERS,), larger_is_better=False),
        "mse": MetricInfo(objectives=(_NUMBERS,), larger_is_better=False),
    }
)


def metrics_of(objective: str) -> tuple[str, ...]:
    """Return the names of the metrics that are measured for an objective."""
    return tuple(name for name, info in METRICS.items() if objective in info.objectives)


def is_larger_better(metric: str) -> bool:
    """Tell in which direction a metric is better.

    Raises:
        NotFoundError: there is no such metric.
    """
    if metric not in METRICS:
        raise NotFoundError(f"no metric `{metric}`", expected=", ".join(METRICS), received=metric)
    return METRICS[metric].larger_is_better
