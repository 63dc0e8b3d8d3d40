"""The paired bootstrap: how sure is it that one model is not worse than another on the same rows?

Rows are drawn with replacement, the same rows for both models, and the difference of their metrics is taken; of many
such draws the quantiles give the interval. It is never narrower than one that counts rows that did not come up
(`unseen_rows.py`): where few rows differ, a bootstrap alone is too sure. Quantiles are values that occurred (no
interpolation), and where the metric is a mean over rows the differences of the rows are averaged, so that whole and
decimal bounds come out exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from noa.errors import InvalidInputError
from noa_registry.evidence.facts import plain_json
from noa_registry.gates.unseen_rows import interval_of_rows, margin_of_metric

if TYPE_CHECKING:
    import numpy as np

    from noa.metrics import MetricAdapter
    from noa.settings import GateSettings
    from noa_registry.evidence import Predictions

METHOD = "percentile paired bootstrap, never narrower than a bound on rows that did not come up"
_BLOCK_CELLS = 1 << 21  # draws that are held in memory at once, times rows


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapPlan:
    """`confidence` of the two-sided interval, number of draws, and the seed of the random rows."""

    confidence: float = 0.95
    resamples: int = 1000
    seed: int = 0


def plan_of(policy: GateSettings | None) -> BootstrapPlan:
    """Return the plan by which a gate judges; what it leaves open, and all where there is no gate, is the default."""
    if policy is None:
        return BootstrapPlan()
    confidence = policy.confidence or BootstrapPlan().confidence
    return BootstrapPlan(confidence=confidence, resamples=policy.resamples, seed=policy.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """Metric of the challenger minus that of the holder on the same `rows` rows, and its interval.

    `differing_rows` are those in which the two differ: in what they add to the metric where it is a mean over rows,
    else in their outputs. Where there are none, the interval says what could differ all the same; only of two that are
    the same bytes (`is_same`) it has no width.
    """

    holder: float
    challenger: float
    difference: float
    lower: float
    upper: float
    rows: int
    differing_rows: int
    plan: BootstrapPlan
    is_same: bool = False

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        values: dict[str, object] = {
            "holder": self.holder,
            "challenger": self.challenger,
            "difference": self.difference,
            "lower": self.lower,
            "upper": self.upper,
            "rows": self.rows,
            "confidence": self.plan.confidence,
            "resamples": self.plan.resamples,
            "seed": self.plan.seed,
            "differing_rows": self.differing_rows,
            "method": METHOD,
        }
        return {key: plain_json(value) for key, value in values.items()}


def paired_difference(
    metric: MetricAdapter,
    holder: Predictions,
    challenger: Predictions,
    *,
    objective: str,
    plan: BootstrapPlan,
    is_same: bool = False,
) -> PairedDifference:
    """Return the difference of a metric between two models, with its interval.

    `holder` and `challenger` are predictions of the same rows in the same order; the holder's targets are not used.
    `is_same`: both are the same bytes, so that rows in which they answer alike prove that they always do.

    Raises:
        InvalidInputError: they do not have the same number of rows, or the metric is not defined for the objective.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3 (percentile interval) on the
    differences of pairs; the quantiles are the ordered draws k = floor((B + 1) alpha) and B + 1 - k, their eq. 12.20.
    For the bound on rows that did not come up: Tango 1998, Bonett and Price 2012, Wilson 1927, see `unseen_rows.py`.
    """
    if holder.rows != challenger.rows or challenger.rows < 1:
        raise InvalidInputError(
            "predictions of different rows cannot be paired",
            expected=f"{challenger.rows} rows",
            received=f"{holder.rows} rows",
        )
    targets = challenger.targets
    import numpy as np

    left = metric.row_values(holder.outputs, targets, objective=objective)
    right = metric.row_values(challenger.outputs, targets, objective=objective)
    if left is not None and right is not None:
        draws = _draw_means(right - left, plan)
        old, new, difference = float(left.mean()), float(right.mean()), float((right - left).mean())
        differing = np.count_nonzero(right != left)
    else:
        draws = _draw_metric(metric, holder.outputs, challenger.outputs, targets, objective, plan)
        old, new = (
            metric_value(metric, outputs, targets, objective=objective)
            for outputs in (holder.outputs, challenger.outputs)
        )
        difference = new - old
        differing = np.count_nonzero((holder.outputs != challenger.outputs).reshape(holder.rows, -1).any(axis=1))
    lower, upper = _interval(draws, plan)
    is_same = is_same and not differing
    if not is_same and math.isfinite(lower):
        if left is not None and right is not None:
            least, most = interval_of_rows(left, right, plan.confidence)
        else:
            moved = int(differing) if upper > lower else 0
            margin = margin_of_metric(moved, targets, plan.confidence)
            least, most = lower - margin, upper + margin
        lower, upper = min(lower, least), max(upper, most)
    return PairedDifference(
        holder=old,
        challenger=new,
        difference=difference,
        lower=lower,
        upper=upper,
        rows=challenger.rows,
        differing_rows=int(differing),
        plan=plan,
        is_same=is_same,
    )


def metric_value(metric: MetricAdapter, outputs: np.ndarray, targets: np.ndarray, *, objective: str) -> float:
    """Return a metric of all rows.

    Raises:
        InvalidInputError: it is not defined for the objective.
    """
    values = metric.row_values(outputs, targets, objective=objective)
    if values is not None:
        return float(values.mean())
    return float(metric.weighted(outputs, targets, _once(len(targets)), objective=objective)[0])


def _draw_means(differences: np.ndarray, plan: BootstrapPlan) -> np.ndarray:
    """Return the mean of the rows of each draw."""
    import numpy as np

    random, rows = np.random.default_rng(plan.seed), len(differences)
    means = np.empty(plan.resamples, np.float64)
    for start, stop in _blocks(plan.resamples, rows):
        drawn = random.integers(0, rows, size=(stop - start, rows), dtype=np.int32)
        means[start:stop] = differences[drawn].sum(axis=1) / rows
    return means


def _draw_metric(
    metric: MetricAdapter,
    holder: np.ndarray,
    challenger: np.ndarray,
    targets: np.ndarray,
    objective: str,
    plan: BootstrapPlan,
) -> np.ndarray:
    """Return the difference of the metric in each draw, from how often each row was drawn."""
    import numpy as np

    random, rows = np.random.default_rng(plan.seed), len(targets)
    differences = np.empty(plan.resamples, np.float64)
    for start, stop in _blocks(plan.resamples, rows):
        drawn = random.integers(0, rows, size=(stop - start, rows), dtype=np.int32)
        counts = np.stack([np.bincount(row, minlength=rows) for row in drawn])
        new = metric.weighted(challenger, targets, counts, objective=objective)
        old = metric.weighted(holder, targets, counts, objective=objective)
        differences[start:stop] = new - old
    return differences


def _blocks(resamples: int, rows: int) -> list[tuple[int, int]]:
    size = max(1, _BLOCK_CELLS // rows)
    return [(start, min(start + size, resamples)) for start in range(0, resamples, size)]


def _once(rows: int) -> np.ndarray:
    import numpy as np

    return np.ones((1, rows), np.int64)


def _interval(draws: np.ndarray, plan: BootstrapPlan) -> tuple[float, float]:
    import numpy as np

    if not np.isfinite(draws).all():
        return math.nan, math.nan  # a metric that is not defined for some draw proves nothing
    ordered = np.sort(draws)
    tail = (1 - plan.confidence) / 2
    place = max(1, math.floor((plan.resamples + 1) * tail + 1e-9))
    return float(ordered[place - 1]), float(ordered[plan.resamples - place])
