"""Rules about metrics: limits, and how much worse than the present holder a version may be, in all and per slice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING

from noa.errors import IntegrityError, InvalidInputError, NotFoundError
from noa.metric_directions import known_direction
from noa_registry.evidence.facts import Evidence
from noa_registry.evidence.metrics import MetricsEvidence, SliceMetrics
from noa_registry.gates.candidate import Candidate, GateInput
from noa_registry.gates.report import RuleVerdict

if TYPE_CHECKING:
    from noa.settings import GateSettings
    from noa_registry.gates.bootstrap import PairedDifference
    from noa_registry.gates.work import GateWork

EVERY_SLICE = "*"
_MEASURE_BOTH = "`noa flows run` and `noa train --promote` measure both on the same rows"


def metric_verdicts(gate_input: GateInput, policy: GateSettings, work: GateWork) -> list[RuleVerdict]:
    """Return the verdicts of all rules about metrics."""
    verdicts = _limit_verdicts(gate_input.candidate, policy) + _slice_verdicts(gate_input.candidate, policy)
    verdicts += _contradictions(gate_input, policy, work)
    for metric, allowed in sorted(policy.max_regression.items()):
        verdicts.append(_regression(gate_input, policy, work, metric, allowed, None))
    for name, metric, allowed in _by_slice(gate_input.candidate, policy.slice_regression):
        verdicts.append(_regression(gate_input, policy, work, metric, allowed, name))
    return verdicts


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


def _contradictions(gate_input: GateInput, policy: GateSettings, work: GateWork) -> list[RuleVerdict]:
    """Refuse recorded values, of those that the policy judges, that are not what the predictions give.

    What is judged by a bootstrap is compared there. Nothing is said of values that do not contradict.
    """
    candidate, rival = gate_input.candidate, gate_input.rival
    compared: list[tuple[str, str | None]] = []
    if policy.confidence is None:
        compared += [(metric, None) for metric in policy.max_regression]
        compared += [(metric, name) for name, metric, _ in _by_slice(candidate, policy.slice_regression)]
    limited: list[tuple[str, str | None]] = [(metric, None) for metric in (*policy.min_metrics, *policy.max_metrics)]
    limited += [(metric, name) for name, metric, _ in _by_slice(candidate, policy.slices)]
    asked = [(candidate, None, *one) for one in dict.fromkeys((*limited, *compared))]
    measured = candidate.test_metrics()
    if rival is not None and measured is not None:
        dataset = str(measured.values.get("dataset_digest"))
        asked += [(rival, dataset, *one) for one in dict.fromkeys(compared)]
    verdicts = (_contradiction(work, *one) for one in asked)
    return [verdict for verdict in verdicts if verdict is not None]


def _contradiction(
    work: GateWork, side: Candidate, dataset: str | None, metric: str, slice_name: str | None
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


def _limit_verdicts(candidate: Candidate, policy: GateSettings) -> list[RuleVerdict]:
    evidence = candidate.test_metrics()
    measured, problem = _read(evidence)
    values = {} if measured is None else measured.metrics
    return [
        _limit_verdict(f"{kind}.{metric}", metric, limit, values, problem, lower_is_better=kind == "max_metrics")
        for kind, limits in (("min_metrics", policy.min_metrics), ("max_metrics", policy.max_metrics))
        for metric, limit in sorted(limits.items())
    ]


def _slice_verdicts(candidate: Candidate, policy: GateSettings) -> list[RuleVerdict]:
    measured, problem = _read(candidate.test_metrics())
    verdicts: list[RuleVerdict] = []
    for name, metric, limit in _by_slice(candidate, policy.slices):
        lower = is_lower_better(metric, policy)
        if lower is None:
            verdicts.append(_unknown_direction(f"slices.{name}.{metric}", metric))
            continue
        part = None if measured is None else measured.slices.get(name)
        verdicts.append(
            _limit_verdict(
                f"slices.{name}.{metric}",
                metric,
                limit,
                {} if part is None else part.metrics,
                _no_slice(measured, name) if part is None and problem is None else problem,
                lower_is_better=lower,
                rows=None if part is None else part.rows,
            )
        )
    return verdicts


def _unknown_direction(rule: str, metric: str) -> RuleVerdict:
    return RuleVerdict(
        rule=rule,
        passed=False,
        expected=f"that it is known whether more or less of `{metric}` is better",
        received="a name that does not tell",
        remedy=f'Say it in the gate: directions = {{ "{metric}" = "higher" }}, or "lower"',
    )


def _limit_verdict(
    rule: str,
    metric: str,
    limit: float,
    values: Mapping[str, float],
    problem: str | None,
    *,
    lower_is_better: bool,
    rows: int | None = None,
) -> RuleVerdict:
    value = values.get(metric)
    passed = value is not None and math.isfinite(value) and (value <= limit if lower_is_better else value >= limit)
    return RuleVerdict(
        rule=rule,
        passed=passed,
        expected=f"{'at most' if lower_is_better else 'at least'} {limit:g} on the test split",
        received=_describe(value, metric, values, problem) + ("" if rows is None else f" on {rows} rows"),
        remedy=None if value is not None else f"Measure it: add `{metric}` to the recipe's `metrics` and train again",
    )


def _by_slice(candidate: Candidate, table: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str, float]]:
    """Return (slice, metric, limit) of a table, with `*` spelled out; it stays where nothing is known of slices."""
    measured, _ = _read(candidate.test_metrics())
    known = sorted(measured.slices) if measured is not None else []
    return [
        (chosen, metric, limit)
        for name, limits in sorted(table.items())
        for chosen in ((known or [EVERY_SLICE]) if name == EVERY_SLICE else [name])
        for metric, limit in sorted(limits.items())
    ]


def _regression(
    gate_input: GateInput, policy: GateSettings, work: GateWork, metric: str, allowed: float, slice_name: str | None
) -> RuleVerdict:
    rule = f"max_regression.{metric}" if slice_name is None else f"slice_regression.{slice_name}.{metric}"
    rival = gate_input.rival
    if rival is None:
        return RuleVerdict(
            rule=rule, passed=True, expected="not worse than the present holder", received="no other holder"
        )
    lower = is_lower_better(metric, policy)
    if lower is None:
        return _unknown_direction(rule, metric)
    judge: Callable[..., RuleVerdict] = _by_values if policy.confidence is None else _by_bootstrap
    try:
        dataset = _common_dataset(gate_input.candidate, rival, metric)
        if policy.confidence is None:
            return judge(rule, gate_input.candidate, rival, dataset, metric, allowed, slice_name, lower)
        return judge(rule, gate_input.candidate, rival, dataset, metric, allowed, slice_name, lower, policy, work)
    except (InvalidInputError, NotFoundError, IntegrityError) as exc:
        return RuleVerdict(
            rule=rule,
            passed=False,
            expected=exc.expected or "what both answered for the same rows",
            received=exc.received or exc.what,
            remedy=exc.remedy,
        )


def _common_dataset(candidate: Candidate, rival: Candidate, metric: str) -> str:
    """Return the digest of the test rows on which both were measured.

    Raises:
        InvalidInputError: there are none.
    """
    mine = candidate.test_metrics()
    if mine is None:
        raise InvalidInputError(
            "not measured",
            expected=f"`{metric}` of `{candidate.reference}` on the test split",
            received="no test metrics of these bytes",
        )
    dataset = str(mine.values.get("dataset_digest"))
    if rival.test_metrics(dataset) is None and (other := rival.test_metrics()) is not None:
        raise InvalidInputError(
            "measured on other rows",
            expected=f"`{rival.reference}` measured on the same dataset, {dataset}",
            received=f"measured on {other.values.get('dataset_digest')} only; {_MEASURE_BOTH}",
        )
    return dataset


def _by_values(
    rule: str,
    candidate: Candidate,
    rival: Candidate,
    dataset: str,
    metric: str,
    allowed: float,
    slice_name: str | None,
    lower: bool,
) -> RuleVerdict:
    """Judge by the measured values. Limits are decimal numbers and compared as such: 0.94 is 0.95 - 0.01."""
    new = _value(candidate, candidate.test_metrics(dataset), metric, slice_name)
    old = _value(rival, rival.test_metrics(dataset), metric, slice_name)
    limit = _exact(old) + _exact(allowed) if lower else _exact(old) - _exact(allowed)
    return RuleVerdict(
        rule=rule,
        passed=_exact(new) <= limit if lower else _exact(new) >= limit,
        expected=f"{'at most' if lower else 'at least'} {limit:g} "
        f"(`{rival.reference}` has {old:g}, {allowed:g} worse is allowed)",
        received=f"{new:g}",
        measured={"holder": old, "challenger": new, "difference": new - old, "dataset_digest": dataset},
    )


def _by_bootstrap(
    rule: str,
    candidate: Candidate,
    rival: Candidate,
    dataset: str,
    metric: str,
    allowed: float,
    slice_name: str | None,
    lower: bool,
    policy: GateSettings,
    work: GateWork,
) -> RuleVerdict:
    found = work.difference(candidate, rival, dataset, metric=metric, slice_name=slice_name, policy=policy)
    bound = found.upper if lower else found.lower
    passed = math.isfinite(bound) and (_exact(bound) <= _exact(allowed) if lower else _exact(bound) >= _exact(-allowed))
    return RuleVerdict(
        rule=rule,
        passed=passed,
        expected=f"with {found.plan.confidence:.4g} confidence at most {allowed:g} worse than `{rival.reference}`",
        received=_describe_difference(found),
        remedy=None if passed else "Train a better model, or measure on more test rows: they narrow the interval",
        measured={**found.to_dict(), "dataset_digest": dataset},
    )


def _describe_difference(found: PairedDifference) -> str:
    return (
        f"{found.challenger:.4g} against {found.holder:.4g}, a difference of {found.difference:+.4g} "
        f"[{found.lower:+.4g}, {found.upper:+.4g}] on {found.rows} rows"
    )


def _value(candidate: Candidate, evidence: Evidence | None, metric: str, slice_name: str | None) -> float:
    """Return a finite metric.

    Raises:
        InvalidInputError: it was not measured, or is not finite.
    """
    measured, problem = _read(evidence)
    part: MetricsEvidence | SliceMetrics | None = measured
    where = f"`{metric}` of `{candidate.reference}` on the test split"
    if slice_name is not None:
        part = None if measured is None else measured.slices.get(slice_name)
        problem = _no_slice(measured, slice_name) if part is None and problem is None else problem
        where += f", slice `{slice_name}`"
    values = {} if part is None else part.metrics
    value = values.get(metric)
    if value is None or not math.isfinite(value):
        raise InvalidInputError("not measured", expected=where, received=_describe(value, metric, values, problem))
    return value


def _read(evidence: Evidence | None) -> tuple[MetricsEvidence | None, str | None]:
    """Return what a fact measured, or why there is nothing to judge by."""
    if evidence is None:
        return None, "no test metrics of these bytes"
    try:
        return MetricsEvidence.from_evidence(evidence), None
    except InvalidInputError as exc:
        return None, str(exc)


def _no_slice(measured: MetricsEvidence | None, name: str) -> str:
    known = [] if measured is None else sorted(measured.slices)
    return f"no slice `{name}`; there are " + (", ".join(f"`{entry}`" for entry in known) or "none")


def _describe(value: float | None, metric: str, values: Mapping[str, float], problem: str | None) -> str:
    if value is not None:
        return f"{value:g}" if math.isfinite(value) else f"{value}, which is no measurement"
    return problem or f"no `{metric}`; there are " + ", ".join(f"`{name}`" for name in sorted(values))


def _exact(value: float) -> Decimal:
    return Decimal(repr(float(value)))
