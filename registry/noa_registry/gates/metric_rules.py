"""Rules about metrics: limits, and how much worse than the present holder a version may be, in all and per slice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING

from noa.errors import IntegrityError, InvalidInputError, NotFoundError
from noa.metric_directions import known_direction
from noa_registry.evidence.facts import PREDICTIONS
from noa_registry.gates.candidate import Candidate, GateInput
from noa_registry.gates.recorded_metrics import ChosenValue, RecordedMetrics
from noa_registry.gates.report import RuleVerdict, recorded_of

if TYPE_CHECKING:
    from noa.settings import GateSettings
    from noa_registry.gates.bootstrap import PairedDifference
    from noa_registry.gates.work import GateWork

EVERY_SLICE = "*"
_MEASURE_BOTH = "`noa flows run` and `noa train --promote` measure both on the same rows"


def metric_verdicts(gate_input: GateInput, policy: GateSettings, work: GateWork) -> list[RuleVerdict]:
    """Return the verdicts of all rules about metrics."""
    recorded = RecordedMetrics.of(gate_input.candidate)
    verdicts = _limit_verdicts(recorded, policy) + _slice_verdicts(recorded, policy)
    verdicts += _contradictions(gate_input, recorded, policy, work)
    asked: list[tuple[str | None, str, float]] = [(None, *limit) for limit in sorted(policy.max_regression.items())]
    asked += _by_slice(recorded, policy.slice_regression)
    if asked:
        before = _rivals_metrics(gate_input)
        verdicts += [_regression(gate_input, policy, work, (recorded, before), *one) for one in asked]
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
        compared += [(metric, name) for name, metric, _ in _by_slice(recorded, policy.slice_regression)]
    limited: list[tuple[str, str | None]] = [(metric, None) for metric in (*policy.min_metrics, *policy.max_metrics)]
    limited += [(metric, name) for name, metric, _ in _by_slice(recorded, policy.slices)]
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


def _limit_verdicts(recorded: RecordedMetrics, policy: GateSettings) -> list[RuleVerdict]:
    return [
        _limit_verdict(f"{kind}.{metric}", recorded, metric, None, limit, lower_is_better=kind == "max_metrics")
        for kind, limits in (("min_metrics", policy.min_metrics), ("max_metrics", policy.max_metrics))
        for metric, limit in sorted(limits.items())
    ]


def _slice_verdicts(recorded: RecordedMetrics, policy: GateSettings) -> list[RuleVerdict]:
    verdicts: list[RuleVerdict] = []
    for name, metric, limit in _by_slice(recorded, policy.slices):
        rule, lower = f"slices.{name}.{metric}", is_lower_better(metric, policy)
        if lower is None:
            verdicts.append(_unknown_direction(rule, metric))
        else:
            verdicts.append(_limit_verdict(rule, recorded, metric, name, limit, lower_is_better=lower))
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
    recorded: RecordedMetrics,
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
    else:
        value = chosen.value
        passed = math.isfinite(value) and (value <= limit if lower_is_better else value >= limit)
        received = _describe(value) + ("" if chosen.rows is None else f" on {chosen.rows} rows")
        received += chosen.describe_others()
    return RuleVerdict(
        rule=rule,
        passed=passed,
        expected=f"{'at most' if lower_is_better else 'at least'} {limit:g} on the test split",
        received=received,
        remedy=None if chosen is not None else f"Measure it: add `{metric}` to the recipe's `metrics` and train again",
        measured={"measurements": chosen.to_list()} if chosen is not None and chosen.is_disputed else {},
        recorded=() if chosen is None else recorded_of({"": chosen.chosen.fact}),
    )


def _by_slice(recorded: RecordedMetrics, table: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str, float]]:
    """Return (slice, metric, limit) of a table, with `*` spelled out; it stays where nothing is known of slices."""
    return [
        (chosen, metric, limit)
        for name, limits in sorted(table.items())
        for chosen in ((recorded.slices or (EVERY_SLICE,)) if name == EVERY_SLICE else (name,))
        for metric, limit in sorted(limits.items())
    ]


def _rivals_metrics(gate_input: GateInput) -> RecordedMetrics:
    """Return what is recorded of the present holder on the rows by which the version is judged."""
    rival, newest = gate_input.rival, gate_input.candidate.test_metrics()
    if rival is None or newest is None:
        return RecordedMetrics(reference="" if rival is None else rival.reference)
    return RecordedMetrics.of(rival, str(newest.values.get("dataset_digest")))


def _regression(
    gate_input: GateInput,
    policy: GateSettings,
    work: GateWork,
    recorded: tuple[RecordedMetrics, RecordedMetrics],
    slice_name: str | None,
    metric: str,
    allowed: float,
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
    try:
        dataset = _common_dataset(gate_input.candidate, rival, metric)
        if policy.confidence is None:
            return _by_values(rule, recorded, dataset, metric, allowed, slice_name, lower)
        found = _by_bootstrap(
            rule, gate_input.candidate, rival, dataset, metric, allowed, slice_name, lower, policy, work
        )
        if found.passed and any(_is_disputed(side, metric, slice_name) for side in recorded):
            by_values = _by_values(rule, recorded, dataset, metric, allowed, slice_name, lower)
            return found if by_values.passed else by_values
        return found
    except (InvalidInputError, NotFoundError, IntegrityError) as exc:
        return RuleVerdict(
            rule=rule,
            passed=False,
            expected=exc.expected or "what both answered for the same rows",
            received=exc.received or exc.what,
            remedy=exc.remedy,
        )


def _is_disputed(side: RecordedMetrics, metric: str, slice_name: str | None) -> bool:
    """Tell whether several measurements of the same bytes say different things; the interval is of the newest alone."""
    chosen = side.choose(metric, slice_name, largest=True)
    return chosen is not None and chosen.is_disputed


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
    recorded: tuple[RecordedMetrics, RecordedMetrics],
    dataset: str,
    metric: str,
    allowed: float,
    slice_name: str | None,
    lower: bool,
) -> RuleVerdict:
    """Judge by the measured values. Limits are decimal numbers and compared as such: 0.94 is 0.95 - 0.01."""
    mine, theirs = recorded
    worst = _chosen(mine, metric, slice_name, largest=lower)
    best = _chosen(theirs, metric, slice_name, largest=not lower)
    new, old = worst.value, best.value
    limit = _exact(old) + _exact(allowed) if lower else _exact(old) - _exact(allowed)
    measured: dict[str, object] = {
        "holder": old,
        "challenger": new,
        "difference": new - old,
        "dataset_digest": dataset,
    }
    for name, chosen in (("holder_measurements", best), ("challenger_measurements", worst)):
        if chosen.is_disputed:
            measured[name] = chosen.to_list()
    return RuleVerdict(
        rule=rule,
        passed=_exact(new) <= limit if lower else _exact(new) >= limit,
        expected=f"{'at most' if lower else 'at least'} {limit:g} "
        f"(`{theirs.reference}` has {old:g}{best.describe_others()}, {allowed:g} worse is allowed)",
        received=f"{new:g}{worst.describe_others()}",
        measured=measured,
        recorded=recorded_of({"": worst.chosen.fact, theirs.reference: best.chosen.fact}),
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
    found = work.difference(
        candidate, rival, dataset, metric=metric, slice_name=slice_name, policy=policy, lower_is_better=lower
    )
    answered = {
        "": candidate.on_test_rows(PREDICTIONS, dataset),
        rival.reference: rival.on_test_rows(PREDICTIONS, dataset),
    }
    facts = {side: fact for side, fact in answered.items() if fact is not None}
    bound = found.upper if lower else found.lower
    passed = math.isfinite(bound) and (_exact(bound) <= _exact(allowed) if lower else _exact(bound) >= _exact(-allowed))
    return RuleVerdict(
        rule=rule,
        passed=passed,
        expected=f"with {found.plan.confidence:.4g} confidence at most {allowed:g} worse than `{rival.reference}`",
        received=_describe_difference(found),
        remedy=None if passed else "Train a better model, or measure on more test rows: they narrow the interval",
        measured={**found.to_dict(), "dataset_digest": dataset},
        recorded=recorded_of(facts),
    )


def _describe_difference(found: PairedDifference) -> str:
    return (
        f"{found.challenger:.4g} against {found.holder:.4g}, a difference of {found.difference:+.4g} "
        f"[{found.lower:+.4g}, {found.upper:+.4g}] on {found.rows} rows"
    )


def _chosen(recorded: RecordedMetrics, metric: str, slice_name: str | None, *, largest: bool) -> ChosenValue:
    """Return a finite metric.

    Raises:
        InvalidInputError: it was not measured, or is not finite.
    """
    chosen = recorded.choose(metric, slice_name, largest=largest)
    if chosen is None or not math.isfinite(chosen.value):
        where = f"`{metric}` of `{recorded.reference}` on the test split"
        raise InvalidInputError(
            "not measured",
            expected=where if slice_name is None else f"{where}, slice `{slice_name}`",
            received=recorded.describe_missing(metric, slice_name) if chosen is None else _describe(chosen.value),
        )
    return chosen


def _describe(value: float) -> str:
    return f"{value:g}" if math.isfinite(value) else f"{value}, which is no measurement"


def _exact(value: float) -> Decimal:
    return Decimal(repr(float(value)))
