"""The rule about the rows that metrics were measured on: are they rows that somebody named, or that are known here?

A digest alone says nothing: whoever attaches metrics may name any. A policy can name the digests that count
(`datasets`), or refuse those that nothing explains (`known_dataset`); without either, the verdict passes and warns.

Kept predictions explain rows, and they are compared with all that the record says of these rows: the number that the
metrics name, and the targets in the holder's predictions for the same digest. Inputs are not kept, so that is all: the
digest itself cannot be computed anew, and the first predictions for it are believed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from noa.errors import IntegrityError, InvalidInputError, NotFoundError
from noa_registry.evidence.facts import PREDICTIONS
from noa_registry.evidence.metrics import MetricsEvidence
from noa_registry.evidence.predictions import PredictionsEvidence
from noa_registry.gates.candidate import Candidate, GateInput
from noa_registry.gates.report import RuleVerdict
from noa_registry.gates.row_sets import is_explained

if TYPE_CHECKING:
    from noa.settings import GateSettings
    from noa_registry.gates.work import GateWork

_RULE = "dataset"
_WARNING = "the metrics are believed on rows that nobody here knows: {digest}"


def measured_rows_verdicts(
    gate_input: GateInput, policy: GateSettings, work: GateWork | None = None
) -> list[RuleVerdict]:
    """Return the verdict about the test rows; none where no metric is judged, or where the rows are known anyway.

    With `work`, the predictions that explain them are read.
    """
    if not _judges_metrics(policy):
        return []
    contradiction = _contradiction(gate_input, work)
    return [contradiction] if contradiction is not None else _row_verdicts(gate_input, policy)


def _row_verdicts(gate_input: GateInput, policy: GateSettings) -> list[RuleVerdict]:
    if policy.datasets:
        return [_named_verdict(gate_input.candidate, policy)]
    unknown, known = _by_knowledge(gate_input)
    if not unknown and not (known and policy.known_dataset):
        return []
    digests = unknown or known
    remedy = "Measure it with `noa train`, which keeps the predictions; or name the digest in the gate's `datasets`"
    told = ", ".join(digests)
    refused = policy.known_dataset and bool(unknown)
    return [
        RuleVerdict(
            rule=_RULE,
            passed=not refused,
            expected="test rows that kept predictions, the version's own data or the holder explain",
            received=told + (", of which nothing else is known here" if unknown else ", which is known"),
            remedy=remedy if unknown else None,
            warning=_WARNING.format(digest=told) if unknown and not refused else None,
            measured={"dataset_digest": digests[-1], "is_known": not unknown},
        )
    ]


def _by_knowledge(gate_input: GateInput) -> tuple[list[str], list[str]]:
    """Return the test rows of the version that nothing explains, and those that something does."""
    facts = gate_input.candidate.all_test_metrics()
    digests = dict.fromkeys(str(fact.values.get("dataset_digest")) for fact in facts)
    parts: tuple[list[str], list[str]] = ([], [])
    for digest in digests:
        parts[is_explained(gate_input, digest)].append(digest)
    return parts


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


def _contradiction(gate_input: GateInput, work: GateWork | None) -> RuleVerdict | None:
    """Return the refusal of predictions that are not of the rows that the record says, None if nothing speaks against
    them."""
    for fact in gate_input.candidate.all_test_metrics():
        try:
            found = _compare_rows(gate_input, MetricsEvidence.from_evidence(fact), work)
        except (InvalidInputError, IntegrityError, NotFoundError) as exc:
            found = _refusal(exc.expected or "predictions that can be read", exc.received or exc.what)
        if found is not None:
            return found
    return None


def _compare_rows(gate_input: GateInput, measured: MetricsEvidence, work: GateWork | None) -> RuleVerdict | None:
    candidate, rival = gate_input.candidate, gate_input.rival
    ours = _predictions(candidate, measured.dataset_digest)
    if ours is None:
        return None
    if measured.rows is not None and measured.rows != ours.total_rows:
        expected = f"predictions for the {measured.rows} rows that the metrics of `{candidate.reference}` name"
        return _refusal(expected, f"predictions for {ours.total_rows} rows")
    if work is not None and work.can_read:
        work.predictions(ours)
    theirs = None if rival is None else _predictions(rival, measured.dataset_digest)
    if rival is None or theirs is None or None not in (ours.sample_seed, theirs.sample_seed):
        return None
    if ours.sample_seed != theirs.sample_seed or ours.row_digest == theirs.row_digest:
        return None
    expected = f"predictions for {measured.dataset_digest} with the same targets in `{candidate.reference}` as in "
    return _refusal(f"{expected}`{rival.reference}`, {theirs.row_digest}", ours.row_digest)


def _predictions(side: Candidate, digest: str) -> PredictionsEvidence | None:
    fact = side.on_test_rows(PREDICTIONS, digest)
    return None if fact is None else PredictionsEvidence.from_evidence(fact)


def _refusal(expected: str, received: str) -> RuleVerdict:
    return RuleVerdict(
        rule=_RULE,
        passed=False,
        expected=expected,
        received=received,
        remedy="One of the two was not measured on these rows: measure it anew with `noa train --promote`",
    )


def _judges_metrics(policy: GateSettings) -> bool:
    rules = (policy.min_metrics, policy.max_metrics, policy.max_regression, policy.slices, policy.slice_regression)
    return any(rules)
