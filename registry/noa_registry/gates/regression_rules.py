"""Rules about the present holder: how much worse than it a version may be, in all and per slice.

Both are compared on every set of test rows that they share, and it takes one where the version is worse to refuse it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from noa.errors import IntegrityError, InvalidInputError, NotFoundError
from noa_registry.evidence.facts import PREDICTIONS
from noa_registry.gates.candidate import Candidate, GateInput
from noa_registry.gates.counted_values import describe_value, is_lower_better, unknown_direction
from noa_registry.gates.recorded_metrics import ChosenValue, RecordedMetrics
from noa_registry.gates.report import RuleVerdict, recorded_of
from noa_registry.gates.row_sets import OTHER_ROWS_REMEDY, RowSets

if TYPE_CHECKING:
    from noa.settings import GateSettings
    from noa_registry.gates.bootstrap import PairedDifference
    from noa_registry.gates.work import GateWork


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """Judges a version (`mine`) against the present holder (`theirs`, None: there is none) on the rows of both."""

    gate_input: GateInput
    policy: GateSettings
    work: GateWork
    mine: RecordedMetrics
    theirs: RecordedMetrics | None
    rows: RowSets

    def verdict(self, slice_name: str | None, metric: str, allowed: float) -> RuleVerdict:
        """Return the verdict on all sets of rows that both share: that of the first where the version is worse."""
        rule = f"max_regression.{metric}" if slice_name is None else f"slice_regression.{slice_name}.{metric}"
        rival = self.gate_input.rival
        if rival is None or self.theirs is None:
            return RuleVerdict(
                rule=rule, passed=True, expected="not worse than the present holder", received="no other holder"
            )
        lower = is_lower_better(metric, self.policy)
        if lower is None:
            return unknown_direction(rule, metric)
        try:
            verdicts = [
                self._on(dataset, rule, rival, self.theirs, metric, allowed, slice_name, lower)
                for dataset in self._shared(rival, self.theirs, metric, slice_name)
            ]
        except (InvalidInputError, NotFoundError, IntegrityError) as exc:
            return RuleVerdict(
                rule=rule,
                passed=False,
                expected=exc.expected or "what both answered for the same rows",
                received=exc.received or exc.what,
                remedy=exc.remedy,
            )
        return next((one for one in verdicts if not one.passed), verdicts[-1])

    def _shared(
        self, rival: Candidate, theirs: RecordedMetrics, metric: str, slice_name: str | None
    ) -> tuple[str, ...]:
        """Return the test rows on which both were measured, those that are known best last.

        Raises:
            InvalidInputError: there are none, or none of those that are known best.
        """
        candidate = self.gate_input.candidate
        if not self.mine.facts:
            raise InvalidInputError(
                "not measured",
                expected=f"`{metric}` of `{candidate.reference}` on the test split",
                received=self.mine.problem or "no test metrics of these bytes",
            )
        if theirs.problem is not None and rival.test_metrics() is not None:
            raise InvalidInputError("not measured", expected=f"metrics of `{rival.reference}`", received=theirs.problem)
        shared = [digest for digest in self.mine.datasets if digest in theirs.datasets or self._is_paired(digest)]
        if self.rows.lack(shared):
            best = self.rows.describe_best()
            raise InvalidInputError(
                "measured on other rows",
                expected=f"`{rival.reference}` measured on the same dataset, {best}",
                received="measured on " + (f"{', '.join(theirs.datasets)} only" if theirs.datasets else "none"),
                remedy=OTHER_ROWS_REMEDY,
            )
        tell = [digest for digest in shared if self._tells(digest, theirs, metric, slice_name)]
        if self.rows.lack(tell):  # say of the known rows what is missing, instead of judging by others
            tell = [digest for digest in shared if digest in self.rows.best]
        return tuple(sorted(tell, key=lambda digest: digest in self.rows.best))

    def _tells(self, digest: str, theirs: RecordedMetrics, metric: str, slice_name: str | None) -> bool:
        """Tell whether something can be compared on these rows."""
        if self.policy.confidence is not None and slice_name is None and self._is_paired(digest):
            return True
        sides = (self.mine.on(digest), theirs.on(digest))
        return all(side.choose(metric, slice_name, largest=True) is not None for side in sides)

    def _is_paired(self, digest: str) -> bool:
        """Tell whether both have kept predictions for these rows, where it matters."""
        sides = (self.gate_input.candidate, self.gate_input.rival)
        return self.policy.confidence is not None and all(
            side is not None and side.on_test_rows(PREDICTIONS, digest) is not None for side in sides
        )

    def _on(
        self,
        dataset: str,
        rule: str,
        rival: Candidate,
        theirs: RecordedMetrics,
        metric: str,
        allowed: float,
        slice_name: str | None,
        lower: bool,
    ) -> RuleVerdict:
        """Judge on one set of rows. Of rows that are not the best known ones, what there is must do."""
        recorded = self.mine.on(dataset), theirs.on(dataset)
        is_drawn = self._is_paired(dataset) or (  # where nothing is paired, the interval's error says what is missing
            self.policy.confidence is not None
            and dataset in self.rows.best
            and not any(map(self._is_paired, self.rows.best))
        )
        if not is_drawn:
            return _by_values(rule, recorded, dataset, metric, allowed, slice_name, lower)
        found = _by_bootstrap(
            rule,
            self.gate_input.candidate,
            rival,
            dataset,
            metric,
            allowed,
            slice_name,
            lower,
            self.policy,
            self.work,
        )
        if found.passed and any(_is_disputed(side, metric, slice_name) for side in recorded):
            by_values = _by_values(rule, recorded, dataset, metric, allowed, slice_name, lower)
            return found if by_values.passed else by_values
        return found


def _is_disputed(side: RecordedMetrics, metric: str, slice_name: str | None) -> bool:
    """Tell whether several measurements of the same bytes say different things; the interval is of the newest alone."""
    chosen = side.choose(metric, slice_name, largest=True)
    return chosen is not None and chosen.is_disputed


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
    text = (
        f"{found.challenger:.4g} against {found.holder:.4g}, a difference of {found.difference:+.4g} "
        f"[{found.lower:+.4g}, {found.upper:+.4g}] on {found.rows} rows"
    )
    if found.is_same:
        return f"{text}; they are the same bytes"
    if found.differing_rows == 0:
        return f"{text}; no difference seen in these rows, which rules out no more than the interval says"
    return text


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
            received=recorded.describe_missing(metric, slice_name) if chosen is None else describe_value(chosen.value),
        )
    return chosen


def _exact(value: float) -> Decimal:
    return Decimal(repr(float(value)))
