"""The rule about the rows that metrics were measured on: are they rows that somebody named, or that are known here?

A digest alone says nothing: whoever attaches metrics may name any. A policy can name the digests that count
(`datasets`), or refuse those that nothing explains (`known_dataset`); without either, the verdict passes and warns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from noa_registry.evidence.facts import PREDICTIONS
from noa_registry.gates.candidate import Candidate, GateInput
from noa_registry.gates.report import RuleVerdict

if TYPE_CHECKING:
    from noa.settings import GateSettings

_RULE = "dataset"
_WARNING = "the metrics are believed on rows that nobody here knows: {digest}"


def measured_rows_verdicts(gate_input: GateInput, policy: GateSettings) -> list[RuleVerdict]:
    """Return the verdict about the test rows; none where no metric is judged, or where the rows are known anyway."""
    if not _judges_metrics(policy):
        return []
    if policy.datasets:
        return [_named_verdict(gate_input.candidate, policy)]
    measured = gate_input.candidate.test_metrics()
    if measured is None:  # the rules about the metrics say so
        return []
    digest = str(measured.values.get("dataset_digest"))
    is_known = any(_explains(side, digest) for side in (gate_input.candidate, gate_input.rival) if side is not None)
    if is_known and not policy.known_dataset:
        return []
    remedy = "Measure it with `noa train`, which keeps the predictions; or name the digest in the gate's `datasets`"
    received = f"{digest}, " + ("which is known" if is_known else "of which nothing else is known here")
    return [
        RuleVerdict(
            rule=_RULE,
            passed=is_known or not policy.known_dataset,
            expected="test rows that kept predictions, the version's own data or the holder explain",
            received=received,
            remedy=None if is_known else remedy,
            warning=None if is_known or policy.known_dataset else _WARNING.format(digest=digest),
            measured={"dataset_digest": digest, "is_known": is_known},
        )
    ]


def _named_verdict(candidate: Candidate, policy: GateSettings) -> RuleVerdict:
    counted = candidate.test_metrics()
    if counted is not None:
        received = str(counted.values.get("dataset_digest"))
    else:
        other = candidate.on_all_rows().test_metrics()
        received = "no test metrics" if other is None else f"measured on {other.values.get('dataset_digest')} only"
    return RuleVerdict(
        rule=_RULE,
        passed=counted is not None,
        expected="test rows that the gate names in `datasets`: " + ", ".join(policy.datasets),
        received=received,
        remedy=None if counted is not None else "Measure it on one of these datasets",
    )


def _judges_metrics(policy: GateSettings) -> bool:
    rules = (policy.min_metrics, policy.max_metrics, policy.max_regression, policy.slices, policy.slice_regression)
    return any(rules)


def _explains(side: Candidate, digest: str) -> bool:
    """Tell whether a version was made from these rows, or its answers for them are kept."""
    return digest == side.dataset_digest or side.on_test_rows(PREDICTIONS, digest) is not None
