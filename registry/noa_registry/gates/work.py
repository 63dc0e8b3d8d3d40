"""What a gate computes itself, kept for one promotion.

A bootstrap takes a while and a project's own function may too. So a promotion is judged before it takes the database's
lock, and once more inside it: what is the same there (and it is, unless somebody attached evidence or moved the alias
in between) is looked up here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from noa.errors import InvalidInputError, NotFoundError
from noa_registry.evidence.facts import PREDICTIONS, Evidence
from noa_registry.evidence.metrics import MetricsEvidence
from noa_registry.evidence.predictions import Predictions, PredictionsEvidence, decode_predictions
from noa_registry.evidence.same_thing import measurements_of
from noa_registry.gates.bootstrap import BootstrapPlan, PairedDifference, metric_value, paired_difference, plan_of
from noa_registry.gates.candidate import Candidate, GateInput
from noa_registry.gates.report import GateReport

if TYPE_CHECKING:
    from noa.settings import GateSettings

_RECOMPUTED_TOLERANCE = 1e-6  # the recorded number was computed from the same outputs, in float64 too


def _no_attachments(digest: str) -> bytes:
    raise InvalidInputError("no attachments can be read here", expected=digest, received="a gate without a registry")


class GateWork:
    """Reads predictions and compares them; remembers reports and differences. For one thread."""

    def __init__(self, read_attachment: Callable[[str], bytes] = _no_attachments) -> None:
        self._read = read_attachment
        self._last: tuple[GateInput, GateReport] | None = None
        self._differences: dict[tuple[object, ...], PairedDifference] = {}
        self._decoded: dict[str, Predictions] = {}
        self._values: dict[tuple[str, str, str | None], float] = {}

    @property
    def can_read(self) -> bool:
        """Whether attachments can be read here."""
        return self._read is not _no_attachments

    def remember(self, gate_input: GateInput, judge: Callable[[], GateReport]) -> GateReport:
        """Return the report about these facts, and compute it only if it is not known."""
        if self._last is None or self._last[0] != gate_input:
            self._last = (gate_input, judge())
        return self._last[1]

    def difference(
        self,
        candidate: Candidate,
        rival: Candidate,
        dataset: str,
        *,
        metric: str,
        slice_name: str | None = None,
        policy: GateSettings,
        lower_is_better: bool,
    ) -> PairedDifference:
        """Return a metric's difference between two versions on the test rows that `dataset` names.

        Of several predictions for these rows, of either, those count that speak most against the candidate.

        Raises:
            InvalidInputError: predictions are missing, of other rows, or contradict the recorded metrics.
            NotFoundError: the metric cannot be computed from predictions.
            IntegrityError: predictions were changed.
        """
        plan = plan_of(policy)
        found = [
            self._paired(candidate, new, rival, old, metric=metric, slice_name=slice_name, plan=plan)
            for new in _all_described(candidate, dataset)
            for old in _all_described(rival, dataset)
        ]
        strange = next((one for one in found if not math.isfinite(one.upper if lower_is_better else one.lower)), None)
        if strange is not None:
            return strange
        return max(found, key=lambda one: one.upper) if lower_is_better else min(found, key=lambda one: one.lower)

    def paired(
        self,
        candidate: Candidate,
        rival: Candidate,
        dataset: str,
        *,
        metric: str,
        slice_name: str | None,
        plan: BootstrapPlan,
    ) -> PairedDifference:
        """Return a metric's difference between two versions by their newest predictions."""
        new, old = _described(candidate, dataset), _described(rival, dataset)
        return self._paired(candidate, new, rival, old, metric=metric, slice_name=slice_name, plan=plan)

    def _paired(
        self,
        candidate: Candidate,
        new: PredictionsEvidence,
        rival: Candidate,
        old: PredictionsEvidence,
        *,
        metric: str,
        slice_name: str | None,
        plan: BootstrapPlan,
    ) -> PairedDifference:
        from noa.metrics import find_metric

        _check_pair(candidate, new, rival, old)
        is_same = new.digest == old.digest
        key = (new.attachment, old.attachment, metric, slice_name, plan, is_same)
        if key not in self._differences:
            adapter = find_metric(metric)
            pair = self.predictions(old), self.predictions(new)
            if slice_name is not None:
                mask = pair[1].mask_of(slice_name)
                if mask is None or not mask.any():
                    raise _no_such_slice(candidate, new, slice_name)
                pair = pair[0].take(mask), pair[1].take(mask)
            found = paired_difference(adapter, *pair, objective=new.objective, plan=plan, is_same=is_same)
            _compare_recorded(candidate, new, metric, slice_name, found.challenger)
            _compare_recorded(rival, old, metric, slice_name, found.holder)
            self._differences[key] = found
        return self._differences[key]

    def check_recorded(
        self, candidate: Candidate, dataset: str | None, *, metric: str, slice_name: str | None = None
    ) -> None:
        """Compare a recorded test metric with the predictions for the same bytes and rows, where there are all of them.

        A metric that nobody can compute from predictions is believed.

        Raises:
            InvalidInputError: they contradict each other, or the predictions are no numbers.
            IntegrityError: the predictions were changed.
            NotFoundError: the predictions are gone.
        """
        evidence = candidate.test_metrics(dataset)
        described = None if evidence is None else _all_predictions(candidate, evidence)
        if described is None or not self.can_read:
            return
        found = self._value(described, metric, slice_name)
        if found is not None:
            _compare_recorded(candidate, described, metric, slice_name, found)

    def _value(self, described: PredictionsEvidence, metric: str, slice_name: str | None) -> float | None:
        """Return a metric of all predicted rows or of a slice, None where it cannot be computed from them."""
        from noa.metrics import find_metric

        key = (described.attachment, metric, slice_name)
        if key not in self._values:
            try:
                adapter = find_metric(metric)
            except NotFoundError:
                return None
            rows = self.predictions(described)
            if slice_name is not None:
                mask = rows.mask_of(slice_name)
                if mask is None or not mask.any():
                    return None
                rows = rows.take(mask)
            try:
                value = metric_value(adapter, rows.outputs, rows.targets, objective=described.objective)
            except InvalidInputError:  # not defined for this objective
                return None
            self._values[key] = value
        return self._values[key]

    def predictions(self, described: PredictionsEvidence) -> Predictions:
        """Return the rows of a fact."""
        if described.attachment not in self._decoded:
            found = decode_predictions(self._read(described.attachment), described)
            if found.has_nan:
                raise InvalidInputError(
                    "predictions that are no numbers",
                    expected=f"outputs of `{described.subject}` without NaN",
                    received="NaN",
                    remedy="Find out why the model gives NaN; such a version is never compared",
                )
            self._decoded[described.attachment] = found
        return self._decoded[described.attachment]


def _all_predictions(candidate: Candidate, metrics: Evidence) -> PredictionsEvidence | None:
    """Return the newest predictions of the bytes and rows that metrics are about, without those of a sample."""
    for fact in reversed(candidate.evidence):
        same = (fact.kind, fact.subject, fact.digest) == (PREDICTIONS, metrics.subject, metrics.digest)
        rows = all(fact.values.get(key) == metrics.values.get(key) for key in ("split", "dataset_digest"))
        if same and rows and fact.values.get("sample_seed") is None:
            return PredictionsEvidence.from_evidence(fact)
    return None


def _all_described(candidate: Candidate, dataset: str) -> list[PredictionsEvidence]:
    """Return all predictions of the same bytes and rows, oldest first; the same bytes of them once."""
    _described(candidate, dataset)  # says what is missing
    newest = candidate.on_test_rows(PREDICTIONS, dataset)
    facts = () if newest is None else measurements_of(candidate.evidence, newest)
    read = [PredictionsEvidence.from_evidence(fact) for fact in facts]
    return list({one.attachment: one for one in read}.values())


def _described(candidate: Candidate, dataset: str) -> PredictionsEvidence:
    evidence = candidate.on_test_rows(PREDICTIONS, dataset)
    if evidence is None:
        others = candidate.on_test_rows(PREDICTIONS)
        raise InvalidInputError(
            "no predictions to compare",
            expected=f"predictions of `{candidate.reference}` for the test rows {dataset}",
            received="none" if others is None else f"only for {others.values.get('dataset_digest')}",
            remedy="`noa train` records them, and `noa train --promote` those of the present holder too; or judge by "
            "the measured values: leave `confidence` out of the gate",
        )
    return PredictionsEvidence.from_evidence(evidence)


def _check_pair(candidate: Candidate, new: PredictionsEvidence, rival: Candidate, old: PredictionsEvidence) -> None:
    for what, mine, theirs in (
        ("rows in the same order", new.row_digest, old.row_digest),
        ("objective", new.objective, old.objective),
    ):
        if mine != theirs:
            raise InvalidInputError(
                "predictions that cannot be paired",
                expected=f"predictions of `{candidate.reference}` and `{rival.reference}` with the same {what}, {mine}",
                received=theirs,
                remedy="Measure both on the same test split: `noa train --promote` does",
            )


def _compare_recorded(
    candidate: Candidate, described: PredictionsEvidence, metric: str, slice_name: str | None, found: float
) -> None:
    """Compare with the recorded metric: numbers and predictions must tell of the same measurement."""
    evidence = candidate.test_metrics(described.dataset_digest)
    if evidence is None or described.sample_seed is not None or evidence.subject != described.subject:
        return
    measured = MetricsEvidence.from_evidence(evidence)
    part = measured if slice_name is None else measured.slices.get(slice_name)
    recorded = None if part is None else part.metrics.get(metric)
    if recorded is None:
        return
    if math.isnan(recorded) and math.isnan(found):
        return
    if not math.isclose(recorded, found, rel_tol=_RECOMPUTED_TOLERANCE, abs_tol=_RECOMPUTED_TOLERANCE):
        raise InvalidInputError(
            "evidence that contradicts itself",
            expected=f"`{metric}` {recorded:.6g} of `{candidate.reference}`, as its metrics say",
            received=f"{found:.6g} from its predictions",
            remedy="Measure it anew: `noa train --promote` does",
        )


def _no_such_slice(candidate: Candidate, described: PredictionsEvidence, name: str) -> InvalidInputError:
    return InvalidInputError(
        "no such slice",
        expected=f"rows of the slice `{name}` among the predictions of `{candidate.reference}`",
        received=", ".join(f"`{entry}`" for entry in described.slices) or "no slices",
        remedy="Name it in the `slices` of the test split that the recipe's `data` gives",
    )
