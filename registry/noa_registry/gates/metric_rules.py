"""Rules about metrics: limits, in all and per slice, and that recorded values are what the predictions give."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from noa.errors import IntegrityError, InvalidInputError, NotFoundError
from noa_registry.gates.candidate import Candidate, GateInput
from noa_registry.gates.counted_values import by_slice, describe_value, is_lower_better, unknown_direction
from noa_registry.gates.recorded_metrics import RecordedMetrics
from noa_registry.gates.regression_rules import Regression
from noa_registry.gates.report import RuleVerdict, recorded_of
from noa_registry.gates.row_sets import OTHER_ROWS_REMEDY, RowSets

if TYPE_CHECKING:
    from noa.settings import GateSettings
    from noa_registry.gates.work import GateWork


def metric_verdicts(gate_input: GateInput, policy: GateSettings, work: GateWork) -> list[RuleVerdict]:
    """Return the verdicts of all rules about metrics."""
    recorded = RecordedMetrics.of(gate_input.candidate)
    rows = RowSets.of(gate_input, recorded)
    verdicts = _limit_verdicts(recorded, rows, policy) + _slice_verdicts(recorded, rows, policy)
    verdicts += _contradictions(gate_input, recorded, policy, work)
    asked: list[tuple[str | None, str, float]] = [(None, *limit) for limit in sorted(policy.max_regression.items())]
    asked += by_slice(recorded, policy.slice_regression)
    if asked:
        rival = gate_input.rival
        theirs = None if rival is None else RecordedMetrics.of(rival)
        judged = Regression(gate_input=gate_input, policy=policy, work=work, mine=recorded, theirs=theirs, rows=rows)
        verdicts += [judged.verdict(*one) for one in asked]
    return verdicts


def _contradictions(
    gate_input: GateInput, recorded: RecordedMetrics, policy: GateSettings, work: GateWork
) -> list[RuleVerdict]:
    """Refuse recorded values, of those that the policy judges, that are not what the predictions give.

    What is judged by a bootstrap is compared there. Nothing is said of values that do not contradict.
    """
    candidate, rival = gate_input.candidate, gate_input.rival
    compared: list[tuple[str, str | None]] = []
    if policy.confidence is None:
        compared += [(metric, None) for metric in policy.max_regression]
        compared += [(metric, name) for name, metric, _ in by_slice(recorded, policy.slice_regression)]
    limited: list[tuple[str, str | None]] = [(metric, None) for metric in (*policy.min_metrics, *policy.max_metrics)]
    limited += [(metric, name) for name, metric, _ in by_slice(recorded, policy.slices)]
    asked: list[tuple[Candidate, str, str, str | None]] = []
    for dataset in recorded.datasets:
        asked += [(candidate, dataset, *one) for one in dict.fromkeys((*limited, *compared))]
        if rival is not None:
            asked += [(rival, dataset, *one) for one in dict.fromkeys(compared)]
    verdicts = (_contradiction(work, *one) for one in asked)
    return [verdict for verdict in verdicts if verdict is not None]


def _contradiction(
    work: GateWork, side: Candidate, dataset: str, metric: str, slice_name: str | None
) -> RuleVerdict | None:
    try:
        work.check_recorded(side, dataset, metric=metric, slice_name=slice_name)
    except (InvalidInputError, NotFoundError, IntegrityError) as exc:
        place = metric if slice_name is None else f"{slice_name}.{metric}"
        return RuleVerdict(
            rule=f"recomputed.{place}",
            passed=False,
            expected=exc.expected or f"`{metric}` of `{side.reference}` as its predictions give it",
            received=exc.received or exc.what,
            remedy=exc.remedy,
        )
    return None


def _limit_verdicts(recorded: RecordedMetrics, rows: RowSets, policy: GateSettings) -> list[RuleVerdict]:
    return [
        _limit_verdict(f"{kind}.{metric}", recorded, rows, metric, None, limit, lower_is_better=kind == "max_metrics")
        for kind, limits in (("min_metrics", policy.min_metrics), ("max_metrics", policy.max_metrics))
        for metric, limit in sorted(limits.items())
    ]


def _slice_verdicts(recorded: RecordedMetrics, rows: RowSets, policy: GateSettings) -> list[RuleVerdict]:
    verdicts: list[RuleVerdict] = []
    for name, metric, limit in by_slice(recorded, policy.slices):
        rule, lower = f"slices.{name}.{metric}", is_lower_better(metric, policy)
        if lower is None:
            verdicts.append(unknown_direction(rule, metric))
        else:
            verdicts.append(_limit_verdict(rule, recorded, rows, metric, name, limit, lower_is_better=lower))
    return verdicts


def _limit_verdict(
    rule: str,
    recorded: RecordedMetrics,
    rows: RowSets,
    metric: str,
    slice_name: str | None,
    limit: float,
    *,
    lower_is_better: bool,
) -> RuleVerdict:
    chosen = recorded.choose(metric, slice_name, largest=lower_is_better)
    passed = False
    if chosen is None:
        received = recorded.describe_missing(metric, slice_name)
    elif rows.lack(chosen.datasets):
        received = f"{describe_value(chosen.value)} on {', '.join(chosen.datasets)} only, not on {rows.describe_best()}"
    else:
        value = chosen.value
        passed = math.isfinite(value) and (value <= limit if lower_is_better else value >= limit)
        received = describe_value(value) + ("" if chosen.rows is None else f" on {chosen.rows} rows")
        received += chosen.describe_others()
    return RuleVerdict(
        rule=rule,
        passed=passed,
        expected=f"{'at most' if lower_is_better else 'at least'} {limit:g} on the test split",
        received=received,
        remedy=recorded.missing_remedy(metric, slice_name)
        if chosen is None
        else OTHER_ROWS_REMEDY
        if rows.lack(chosen.datasets)
        else None,
        measured={"measurements": chosen.to_list()} if chosen is not None and chosen.is_disputed else {},
        recorded=() if chosen is None else recorded_of({"": chosen.chosen.fact}),
    )
