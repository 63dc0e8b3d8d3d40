"""Which value of a metric counts, and what all rules about metrics ask: its direction, and the slices of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from noa.errors import NotFoundError
from noa.metric_directions import known_direction
from noa_registry.gates.recorded_metrics import ChosenValue, RecordedMetrics
from noa_registry.gates.report import RuleVerdict

if TYPE_CHECKING:
    from noa.settings import GateSettings

EVERY_SLICE = "*"


def is_lower_better(metric: str, policy: GateSettings | None = None) -> bool | None:
    """Tell the direction of a metric: as the policy says or limits it, as its adapter says, or by its name.

    None where nobody says it.
    """
    if policy is not None:
        if metric in policy.directions:
            return policy.directions[metric] == "lower"
        if (metric in policy.min_metrics) != (metric in policy.max_metrics):
            return metric in policy.max_metrics
    from noa.metrics import find_metric

    try:
        return not find_metric(metric).larger_is_better
    except NotFoundError:
        known = known_direction(metric)
        return None if known is None else known == "lower"


def counted_value(
    recorded: RecordedMetrics,
    metric: str,
    slice_name: str | None = None,
    *,
    policy: GateSettings | None,
    as_holder: bool = False,
) -> ChosenValue | None:
    """Return the value by which the gate judges: the worst of a version, or the best of the holder.

    Where nobody says which that is, the first measurement counts.
    """
    lower = is_lower_better(metric, policy)
    if lower is None:
        return recorded.first(metric, slice_name)
    return recorded.choose(metric, slice_name, largest=lower is not as_holder)


def unknown_direction(rule: str, metric: str) -> RuleVerdict:
    """Return the refusal to guess."""
    return RuleVerdict(
        rule=rule,
        passed=False,
        expected=f"that it is known whether more or less of `{metric}` is better",
        received="a name that does not tell",
        remedy=f'Say it in the gate: directions = {{ "{metric}" = "higher" }}, or "lower"',
    )


def by_slice(recorded: RecordedMetrics, table: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str, float]]:
    """Return (slice, metric, limit) of a table, with `*` spelled out; it stays where nothing is known of slices."""
    return [
        (chosen, metric, limit)
        for name, limits in sorted(table.items())
        for chosen in ((recorded.slices or (EVERY_SLICE,)) if name == EVERY_SLICE else (name,))
        for metric, limit in sorted(limits.items())
    ]


def describe_value(value: float) -> str:
    """Return a number for a sentence."""
    return f"{value:g}" if math.isfinite(value) else f"{value}, which is no measurement"
