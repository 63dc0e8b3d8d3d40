"""Our metrics as the entry point group `noa.metrics` offers them: a gate computes them anew from predictions, by name.

A mean over rows costs a bootstrap one pass over the drawn rows. `precision`, `recall`, `f1` and `auc` are computed from
how often each row was drawn: per draw one pass over the rows, which are sorted once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from noa.errors import InvalidInputError
from noa_training.metric_names import METRICS
from noa_training.metrics import ROW_METRICS, prepare, weighted_auc, weighted_class_means


@dataclass(frozen=True, slots=True)
class NamedMetric:
    """One metric of `metric_names.METRICS`, as `noa.metrics.MetricAdapter`."""

    name: str

    @property
    def larger_is_better(self) -> bool:
        """The direction."""
        return METRICS[self.name].larger_is_better

    def row_values(self, outputs: np.ndarray, targets: np.ndarray, *, objective: str) -> np.ndarray | None:
        """Return one number per row whose mean is the metric; None if it is no mean over rows.

        Raises:
            InvalidInputError: the metric is not defined for the objective, or the outputs do not fit the targets.
        """
        self._check(objective)
        rows = ROW_METRICS[objective].get(self.name)
        return None if rows is None else np.asarray(rows(*prepare(outputs, targets, objective=objective)), np.float64)

    def weighted(self, outputs: np.ndarray, targets: np.ndarray, counts: np.ndarray, *, objective: str) -> np.ndarray:
        """Return the metric (draws,) where row i counts `counts[draw, i]` times.

        Raises:
            InvalidInputError: the metric is not defined for the objective, or the outputs do not fit the targets.
        """
        rows = self.row_values(outputs, targets, objective=objective)
        if rows is not None:
            return counts @ rows / np.maximum(counts.sum(axis=1), 1)
        values, expected = prepare(outputs, targets, objective=objective)
        if self.name == "auc":
            return weighted_auc(values, expected, counts)
        return weighted_class_means(self.name, values, expected, counts)

    def _check(self, objective: str) -> None:
        if objective not in METRICS[self.name].objectives:
            raise InvalidInputError(
                f"the metric `{self.name}` is not defined for this objective",
                expected=", ".join(METRICS[self.name].objectives),
                received=objective,
            )


LOSS, ACCURACY, PRECISION, RECALL, F1, AUC, BRIER, MAE, MSE = (NamedMetric(name) for name in METRICS)
