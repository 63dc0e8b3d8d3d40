"""Which of several candidates goes on: the best by the primary metric on the validation split.

Not on the test split: the larger of two numbers is no fair estimate of either, and the test split's are reported,
judged by the gate and kept as evidence. Of equals it is the one with the lower validation loss, then the one with the
smaller served format, then the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from noa.errors import InvalidInputError
from noa_flows.pipeline_values import Candidate
from noa_training import is_larger_better

_LOSS = "loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """One reason to prefer a candidate: the smallest `cost`. `say` tells it of the winner."""

    cost: Callable[[Candidate], float]
    say: Callable[[Candidate], str]


def choose_best(candidates: Sequence[Candidate], metric: str) -> Candidate:
    """Return the candidate with the best value of a metric on the validation split; see the module about equals.

    Raises:
        InvalidInputError: there is no candidate, or one has no such metric.
    """
    return _choose(candidates, metric)[0]


def explain_tie(candidates: Sequence[Candidate], metric: str) -> str:
    """Return what told the best candidate from its equals in the metric, "" if it has none.

    Raises:
        InvalidInputError: see `choose_best`.
    """
    return _choose(candidates, metric)[1]


def _choose(candidates: Sequence[Candidate], metric: str) -> tuple[Candidate, str]:
    for candidate in candidates:
        if metric not in candidate.validation:
            raise InvalidInputError(
                f"the primary metric `{metric}` was not measured",
                where=candidate.version.reference,
                expected=", ".join(f"`{name}`" for name in candidate.validation),
                received=f"`{metric}`",
                remedy="Set `primary_metric` of the recipe in `noa.toml`, or add it to the recipe's `metrics`",
            )
    if not candidates:
        raise InvalidInputError("there is no candidate to choose from")
    left = _best_by(_by_metric(metric), candidates)
    if len(left) == 1:
        return left[0], ""
    for rule in _tie_breaks(left):
        left = _best_by(rule, left)
        if len(left) == 1:
            return left[0], f"that with {rule.say(left[0])}"
    return left[0], f"that of the first backend, `{left[0].backend}`"


def _best_by(rule: _Rule, candidates: Sequence[Candidate]) -> list[Candidate]:
    costs = [rule.cost(candidate) for candidate in candidates]
    return [candidate for candidate, cost in zip(candidates, costs, strict=True) if cost == min(costs)]


def _tie_breaks(candidates: Sequence[Candidate]) -> list[_Rule]:
    size = _Rule(cost=_size_bytes, say=lambda best: f"the smaller `{_served(best)}`, {_size_bytes(best):,} bytes")
    has_loss = all(_LOSS in candidate.validation for candidate in candidates)
    return [*([_by_metric(_LOSS)] if has_loss else []), size]


def _by_metric(metric: str) -> _Rule:
    sign = -1.0 if is_larger_better(metric) else 1.0

    def cost(candidate: Candidate) -> float:
        value = sign * candidate.validation[metric]
        return math.inf if math.isnan(value) else value  # what is no number is better than nothing

    return _Rule(cost=cost, say=lambda best: f"the better validation {metric}, {best.validation[metric]:.6g}")


def _served(candidate: Candidate) -> str:
    return candidate.version.default_format


def _size_bytes(candidate: Candidate) -> int:
    return sum(file.size_bytes for file in candidate.version.sealed(_served(candidate)).manifest.files)
