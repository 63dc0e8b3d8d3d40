"""Two versions side by side: what was measured of each, how sure the differences are, and what they were made from.

What is shown is what a gate would judge that compares B with A: of several measurements of the same thing the worst of
B, and of A the best metrics. Differences are those of B minus A, with the interval of the paired bootstrap
(`gates.bootstrap`) where both have predictions for the same test rows. What cannot be compared is shown for each, and
`notes` say why; also where measurements say different things.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, TypeVar

from noa.errors import IntegrityError, InvalidInputError, NotFoundError
from noa_registry.evidence import (
    CALIBRATION,
    LATENCY,
    METRICS,
    PREDICTIONS,
    CalibrationEvidence,
    Evidence,
    LatencyEvidence,
    SignatureComparison,
    compare_signatures,
    measurements_of,
    plain_json,
    worst_calibration,
)
from noa_registry.gates import TEST_SPLIT, BootstrapPlan, Candidate, GateWork, is_lower_better
from noa_registry.gates.bootstrap import METHOD, plan_of
from noa_registry.gates.counted_values import counted_value
from noa_registry.gates.recorded_latency import RecordedLatency
from noa_registry.gates.recorded_metrics import ChosenValue, RecordedMetrics
from noa_registry.registration import candidate_of
from noa_registry.versions import ModelVersion

if TYPE_CHECKING:
    from noa.settings import GateSettings
    from noa_registry.gates.bootstrap import PairedDifference

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricComparison:
    """One metric of both; `difference` is B minus A, and None where they were measured on different rows.

    `lower` and `upper` bound the difference with the confidence of the plan; None where there are no predictions to
    draw from. `slice` is None for all test rows. `drawn_rows` are the rows that were resampled, `differing_rows` those
    of them in which the two differ.
    """

    metric: str
    slice: str | None
    rows: int | None
    a: float | None
    b: float | None
    difference: float | None
    lower: float | None
    upper: float | None
    larger_is_better: bool | None
    """None: nobody knows whether more or less of it is better."""
    drawn_rows: int | None = None
    differing_rows: int | None = None

    @property
    def why_no_width(self) -> str | None:
        """Return why the interval is a single number, None if it is none or there is no interval.

        Such an interval does not say that the difference is known exactly, but that these rows cannot tell.
        """
        if self.lower is None or self.lower != self.upper:
            return None
        if self.drawn_rows == 1:
            return "a single row, nothing to resample"
        if self.differing_rows == 0:
            return "no row differs, nothing to resample"
        return "the same in every draw"

    @property
    def verdict(self) -> str:
        """Return `better` or `worse` (of B) if the interval leaves no doubt, `same` if no row differs, else `unclear`.

        Where nobody knows which direction is better, it is `higher` or `lower`. Of a single row, in which they differ,
        it is `unclear`: its interval has no width because there is nothing to resample.
        """
        if self.lower is None or self.upper is None or (self.drawn_rows == 1 and self.lower != 0):
            return "unclear"
        if self.lower == self.upper == 0 or self.differing_rows == 0:
            return "same"
        if self.lower > 0 or self.upper < 0:
            if self.larger_is_better is None:
                return "higher" if self.lower > 0 else "lower"
            return "better" if (self.lower > 0) == self.larger_is_better else "worse"
        return "unclear"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSetComparison:
    """What was measured of both on one set of test rows. `is_judged`: the gate judges by it, or there is no gate.

    `rows` is None where no measurement says how many there are.
    """

    dataset_digest: str
    rows: int | None
    is_judged: bool
    metrics: tuple[MetricComparison, ...]
    slices: tuple[MetricComparison, ...]
    a_calibration: CalibrationEvidence | None
    b_calibration: CalibrationEvidence | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueDifference:
    """A value that is not the same in both; None where one has none."""

    key: str
    a: object
    b: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What is known of one version, of its served format."""

    reference: str
    digest: str
    served: str
    dataset_digest: str | None
    """Digest of the test rows of the metrics that are shown."""
    size_bytes: int
    calibration: CalibrationEvidence | None
    latency: LatencyEvidence | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two versions side by side. `same_rows`: their metrics were measured on the same test rows.

    `row_sets` has every set of test rows that both were measured on: what the gate names first, then those for which
    both have predictions, the newest first. `metrics` and `slices` are those of the first one; where there is none,
    what each has on rows of its own.
    """

    a: Side
    b: Side
    same_rows: bool
    plan: BootstrapPlan
    is_gates_plan: bool
    """The gate judges by intervals, and by this plan."""
    row_sets: tuple[RowSetComparison, ...]
    metrics: tuple[MetricComparison, ...]
    slices: tuple[MetricComparison, ...]
    signature: SignatureComparison
    params: tuple[ValueDifference, ...]
    data: tuple[ValueDifference, ...]
    environment: tuple[ValueDifference, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "a": _side_to_dict(self.a),
            "b": _side_to_dict(self.b),
            "same_rows": self.same_rows,
            "bootstrap": {**asdict(self.plan), "method": METHOD, "is_gates_plan": self.is_gates_plan},
            "metrics": [_metric_to_dict(entry) for entry in self.metrics],
            "slices": [_metric_to_dict(entry) for entry in self.slices],
            "row_sets": [_row_set_to_dict(entry) for entry in self.row_sets],
            "signature": {"level": self.signature.level, "differences": list(self.signature.differences)},
            "params": [plain_json(asdict(entry)) for entry in self.params],
            "data": [plain_json(asdict(entry)) for entry in self.data],
            "environment": [plain_json(asdict(entry)) for entry in self.environment],
            "notes": list(self.notes),
        }


def compare_versions(
    a: ModelVersion,
    a_evidence: Sequence[Evidence],
    b: ModelVersion,
    b_evidence: Sequence[Evidence],
    *,
    read_attachment: Callable[[str], bytes],
    plan: BootstrapPlan | None = None,
    policy: GateSettings | None = None,
) -> Comparison:
    """Compare two versions by their evidence. Nothing is computed with the models themselves.

    `policy` is the model's gate: it may say in which direction a metric is better, and its plan is taken where none is
    given.
    """
    plan = plan_of(policy) if plan is None else plan
    left, right = candidate_of(a, a_evidence), candidate_of(b, b_evidence)
    notes: list[str] = []
    work = GateWork(read_attachment)
    found = _common_rows(left, right, policy)
    row_sets: list[RowSetComparison] = []
    for rows in found:
        where = f" on {rows[:19]}" if len(found) > 1 else ""
        drawn = _Drawn(work, left, right, rows, plan, policy, notes, where)
        row_sets.append(_compare_on(drawn, rows, policy))
    if row_sets:
        first = row_sets[0]
        metrics, slices, digests = first.metrics, first.slices, (first.dataset_digest, first.dataset_digest)
        calibrations = first.a_calibration, first.b_calibration
    else:
        drawn = _Drawn(work, left, right, None, plan, policy, notes)
        metrics, slices, digests = _compare_apart(drawn)
        calibrations = _calibration(left, digests[0], drawn), _calibration(right, digests[1], drawn)
    return Comparison(
        a=_side(a, left, digests[0], calibrations[0], notes),
        b=_side(b, right, digests[1], calibrations[1], notes),
        same_rows=bool(row_sets),
        plan=plan,
        is_gates_plan=policy is not None and policy.confidence is not None and plan == plan_of(policy),
        row_sets=tuple(row_sets),
        metrics=metrics,
        slices=slices,
        signature=compare_signatures(a.signature, b.signature),
        params=_differences(a.params, b.params),
        data=_differences(_origin(a), _origin(b)),
        environment=_differences(a.environment, b.environment),
        notes=tuple(dict.fromkeys(notes)),
    )


@dataclass(slots=True)
class _Drawn:
    """Draws the intervals; the first reason why there are none becomes a note, once."""

    work: GateWork
    left: Candidate
    right: Candidate
    dataset: str | None
    plan: BootstrapPlan
    policy: GateSettings | None
    notes: list[str]
    where: str = ""
    """The rows, for a note, where there are several sets."""

    def interval(self, metric: str, slice_name: str | None) -> PairedDifference | None:
        """Return the difference with its bounds, None if they cannot be drawn."""
        if self.dataset is None:
            return None
        try:
            found = self.work.paired(
                self.right, self.left, self.dataset, metric=metric, slice_name=slice_name, plan=self.plan
            )
        except (InvalidInputError, NotFoundError, IntegrityError) as exc:
            where = "" if isinstance(exc, NotFoundError) else f"; expected {exc.expected}, received {exc.received}"
            self.notes.append(f"no interval{self.where}: {exc.what}{where}")
            return None
        if not math.isfinite(found.lower):
            self.notes.append(f"no interval of `{metric}`{self.where}: it is not finite in every draw")
            return None
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counted:
    """The values of one version that count, by metric, of all rows (None) and per slice."""

    metrics: Mapping[tuple[str | None, str], ChosenValue] = field(
        default_factory=dict[tuple[str | None, str], ChosenValue]
    )
    rows_digest: str | None = None
    rows: int | None = None

    def of(self, slice_name: str | None) -> dict[str, ChosenValue]:
        """Return the values of all rows, or of a slice."""
        return {metric: chosen for (name, metric), chosen in self.metrics.items() if name == slice_name}


def _compare_metrics(
    old: _Counted, new: _Counted, common: str | None, drawn: _Drawn
) -> tuple[list[MetricComparison], list[MetricComparison]]:
    names = dict.fromkeys(name for side in (new, old) for name, _ in side.metrics)
    compared = {
        name: [
            _compare_metric(metric, name, new, old, common, drawn)
            for metric in dict.fromkeys((*new.of(name), *old.of(name)))
        ]
        for name in names
    }
    return compared.pop(None, []), [entry for entries in compared.values() for entry in entries]


def _compare_metric(
    metric: str, slice_name: str | None, new: _Counted, old: _Counted, common: str | None, drawn: _Drawn
) -> MetricComparison:
    a, b = old.of(slice_name).get(metric), new.of(slice_name).get(metric)
    is_disputed = any(chosen is not None and chosen.is_disputed for chosen in (a, b))
    # The interval is that of the newest predictions alone: beside other values it would say something else than they.
    interval = None if a is None or b is None or is_disputed else drawn.interval(metric, slice_name)
    difference = None if interval is None else interval.difference
    if difference is None and common is not None and a is not None and b is not None:
        difference = b.value - a.value
    lower_is_better = is_lower_better(metric, drawn.policy)
    measured_rows = new.rows if slice_name is None else None if b is None else b.rows
    return MetricComparison(
        metric=metric,
        slice=slice_name,
        rows=None if common is None else measured_rows,
        a=None if a is None else a.value,
        b=None if b is None else b.value,
        difference=difference,
        lower=None if interval is None else interval.lower,
        upper=None if interval is None else interval.upper,
        larger_is_better=None if lower_is_better is None else not lower_is_better,
        drawn_rows=None if interval is None else interval.rows,
        differing_rows=None if interval is None else interval.differing_rows,
    )


def _common_rows(left: Candidate, right: Candidate, policy: GateSettings | None) -> list[str]:
    """Return the sets of test rows on which both were measured, in the order in which they are shown."""
    found: list[str] = []
    for kind in (PREDICTIONS, METRICS):
        for evidence in reversed(right.evidence):
            rows = evidence.values.get("dataset_digest")
            if evidence.kind != kind or evidence.values.get("split") != TEST_SPLIT or not isinstance(rows, str):
                continue
            if all(side.on_test_rows(wanted, rows) for side in (left, right) for wanted in {kind, METRICS}):
                found.append(rows)
    named = [] if policy is None else list(policy.datasets)
    return sorted(dict.fromkeys(found), key=lambda rows: named.index(rows) if rows in named else len(named))


def _compare_on(drawn: _Drawn, rows: str, policy: GateSettings | None) -> RowSetComparison:
    """Compare both on one set of test rows."""
    old = _metrics(drawn.left, rows, drawn, as_holder=True)
    new = _metrics(drawn.right, rows, drawn, as_holder=False)
    metrics, slices = _compare_metrics(old, new, rows, drawn)
    return RowSetComparison(
        dataset_digest=rows,
        rows=new.rows if new.rows is not None else old.rows,
        is_judged=policy is None or not policy.datasets or rows in policy.datasets,
        metrics=tuple(metrics),
        slices=tuple(slices),
        a_calibration=_calibration(drawn.left, rows, drawn),
        b_calibration=_calibration(drawn.right, rows, drawn),
    )


def _compare_apart(
    drawn: _Drawn,
) -> tuple[tuple[MetricComparison, ...], tuple[MetricComparison, ...], tuple[str | None, str | None]]:
    """Return what each has on its own newest test rows, without differences, and the digests of these rows."""
    old = _metrics(drawn.left, None, drawn, as_holder=True)
    new = _metrics(drawn.right, None, drawn, as_holder=False)
    if old.metrics and new.metrics:
        drawn.notes.append(
            "they were measured on different test rows, so no difference is shown; "
            "`noa train --promote` measures the present holder on the new rows too"
        )
    metrics, slices = _compare_metrics(old, new, None, drawn)
    return tuple(metrics), tuple(slices), (old.rows_digest, new.rows_digest)


def _metrics(side: Candidate, rows: str | None, drawn: _Drawn, *, as_holder: bool) -> _Counted:
    """Return the values by which the gate judges."""
    newest = side.test_metrics(rows)
    if newest is None:
        drawn.notes.append(f"`{side.reference}` has no metrics on the test split")
        return _Counted()
    recorded = RecordedMetrics.of(side, rows)
    if recorded.problem is not None:
        drawn.notes.append(recorded.problem)
        return _Counted()
    counted: dict[tuple[str | None, str], ChosenValue] = {}
    for name in (None, *recorded.slices):
        for metric in recorded.names(name):
            chosen = counted_value(recorded, metric, name, policy=drawn.policy, as_holder=as_holder)
            if chosen is not None:
                counted[name, metric] = chosen
                _note_dispute(side, metric, name, chosen, drawn)
    _, measured = recorded.facts[-1]
    return _Counted(metrics=counted, rows_digest=measured.dataset_digest, rows=measured.rows)


def _note_dispute(side: Candidate, metric: str, slice_name: str | None, chosen: ChosenValue, drawn: _Drawn) -> None:
    if chosen.is_disputed:
        where = ("" if slice_name is None else f" of slice `{slice_name}`") + drawn.where
        drawn.notes.append(
            f"`{metric}`{where} of `{side.reference}` is {chosen.value:g}{chosen.describe_others()}; hence no interval"
        )


def _side(
    version: ModelVersion,
    side: Candidate,
    rows: str | None,
    calibration: CalibrationEvidence | None,
    notes: list[str],
) -> Side:
    served = version.default_format
    latency = RecordedLatency.of(side, served)
    if len(latency.measured) > 1:
        notes.append(
            f"latency of `{side.reference}`: the slowest of {len(latency.measured)} measurements on this machine"
        )
    if latency.measured == () and side.newest(LATENCY, served) is not None:
        notes.append(str(latency.problem))
    return Side(
        reference=version.reference,
        digest=version.digest,
        served=served,
        dataset_digest=rows,
        size_bytes=version.formats[served].manifest.size_bytes,
        calibration=calibration,
        latency=latency.slowest,
    )


def _calibration(side: Candidate, rows: str | None, drawn: _Drawn) -> CalibrationEvidence | None:
    newest = side.on_test_rows(CALIBRATION, rows)
    if newest is None:
        return None
    facts = measurements_of(side.evidence, newest)
    read = [_parsed(CalibrationEvidence.from_evidence, fact, drawn.notes) for fact in facts]
    measured = [entry for entry in read if entry is not None]
    if len({(entry.ece, entry.brier) for entry in measured}) > 1:
        drawn.notes.append(f"calibration of `{side.reference}`{drawn.where}: the worst of {len(measured)} measurements")
    return worst_calibration(measured) if measured else None


def _parsed(parse: Callable[[Evidence], _T], evidence: Evidence, notes: list[str]) -> _T | None:
    try:
        return parse(evidence)
    except InvalidInputError as exc:
        notes.append(str(exc))
        return None


def _origin(version: ModelVersion) -> dict[str, object]:
    return {
        "dataset": version.dataset_digest,
        "git commit": version.git_commit,
        "native format": version.native,
        "formats": ", ".join(version.formats),
        "run": version.run_id,
    }


def _differences(a: Mapping[str, object], b: Mapping[str, object]) -> tuple[ValueDifference, ...]:
    return tuple(
        ValueDifference(key=key, a=a.get(key), b=b.get(key))
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    )


def _metric_to_dict(entry: MetricComparison) -> dict[str, object]:
    table = {name: plain_json(value) for name, value in asdict(entry).items()}
    return {**table, "verdict": entry.verdict, "why_no_width": entry.why_no_width}


def _row_set_to_dict(entry: RowSetComparison) -> dict[str, object]:
    return {
        "dataset_digest": entry.dataset_digest,
        "rows": entry.rows,
        "is_judged": entry.is_judged,
        "metrics": [_metric_to_dict(metric) for metric in entry.metrics],
        "slices": [_metric_to_dict(metric) for metric in entry.slices],
        "calibration": {"a": _calibration_to_dict(entry.a_calibration), "b": _calibration_to_dict(entry.b_calibration)},
    }


def _calibration_to_dict(calibration: CalibrationEvidence | None) -> dict[str, object] | None:
    return None if calibration is None else dict(calibration.to_evidence().values)


def _side_to_dict(side: Side) -> dict[str, object]:
    return {
        "reference": side.reference,
        "digest": side.digest,
        "served": side.served,
        "dataset_digest": side.dataset_digest,
        "size_bytes": side.size_bytes,
        "calibration": _calibration_to_dict(side.calibration),
        "latency": None if side.latency is None else dict(side.latency.to_evidence().values),
    }
