"""Two versions side by side: what was measured of each, how sure the differences are, and what they were made from.

Differences are those of B minus A, with the interval of the paired bootstrap (`gates.bootstrap`) where both have
predictions for the same test rows. What cannot be compared is shown for each, and `notes` say why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
    MetricsEvidence,
    SignatureComparison,
    compare_signatures,
    plain_json,
)
from noa_registry.gates import TEST_SPLIT, BootstrapPlan, Candidate, GateWork, is_lower_better
from noa_registry.registration import candidate_of
from noa_registry.versions import ModelVersion

if TYPE_CHECKING:
    from noa.settings import GateSettings
    from noa_registry.gates.bootstrap import PairedDifference

_T = TypeVar("_T")
DEFAULT_PLAN = BootstrapPlan()


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
        """Return `better` or `worse` (of B) if the interval leaves no doubt, `same` if it is 0, else `unclear`.

        Where nobody knows which direction is better, it is `higher` or `lower`. Of a single row, in which they differ,
        it is `unclear`: its interval has no width because there is nothing to resample.
        """
        if self.lower is None or self.upper is None or (self.drawn_rows == 1 and self.lower != 0):
            return "unclear"
        if self.lower == self.upper == 0:
            return "same"
        if self.lower > 0 or self.upper < 0:
            if self.larger_is_better is None:
                return "higher" if self.lower > 0 else "lower"
            return "better" if (self.lower > 0) == self.larger_is_better else "worse"
        return "unclear"


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
    """Two versions side by side. `same_rows`: their metrics were measured on the same test rows."""

    a: Side
    b: Side
    same_rows: bool
    plan: BootstrapPlan
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
            "bootstrap": {**asdict(self.plan), "method": "percentile paired bootstrap"},
            "metrics": [_metric_to_dict(entry) for entry in self.metrics],
            "slices": [_metric_to_dict(entry) for entry in self.slices],
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
    plan: BootstrapPlan = DEFAULT_PLAN,
    policy: GateSettings | None = None,
) -> Comparison:
    """Compare two versions by their evidence. Nothing is computed with the models themselves.

    `policy` is the model's gate: it may say in which direction a metric is better.
    """
    left, right = candidate_of(a, a_evidence), candidate_of(b, b_evidence)
    notes: list[str] = []
    common = _common_rows(left, right)
    old, new = (_metrics(side, common, notes) for side in (left, right))
    if common is None and old is not None and new is not None:
        notes.append(
            "they were measured on different test rows, so no difference is shown; "
            "`noa train --promote` measures the present holder on the new rows too"
        )
    drawn = _Drawn(GateWork(read_attachment), left, right, common, plan, policy, notes)
    metrics, slices = _compare_metrics(old, new, common, drawn)
    return Comparison(
        a=_side(a, left, old, notes),
        b=_side(b, right, new, notes),
        same_rows=common is not None,
        plan=plan,
        metrics=tuple(metrics),
        slices=tuple(slices),
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
            self.notes.append(f"no interval: {exc.what}{where}")
            return None
        if not math.isfinite(found.lower):
            self.notes.append(f"no interval of `{metric}`: it is not finite in every draw")
            return None
        return found


def _compare_metrics(
    old: MetricsEvidence | None, new: MetricsEvidence | None, common: str | None, drawn: _Drawn
) -> tuple[list[MetricComparison], list[MetricComparison]]:
    left = {} if old is None else old.metrics
    right = {} if new is None else new.metrics
    rows = new.rows if new is not None and common is not None else None
    metrics = [
        _compare_metric(metric, None, rows, left.get(metric), right.get(metric), common, drawn)
        for metric in dict.fromkeys((*right, *left))
    ]
    slices: list[MetricComparison] = []
    left_slices = {} if old is None else old.slices
    right_slices = {} if new is None else new.slices
    for name in dict.fromkeys((*right_slices, *left_slices)):
        first, second = left_slices.get(name), right_slices.get(name)
        values = ({} if first is None else first.metrics), ({} if second is None else second.metrics)
        count = second.rows if second is not None and common is not None else None
        slices += [
            _compare_metric(metric, name, count, values[0].get(metric), values[1].get(metric), common, drawn)
            for metric in dict.fromkeys((*values[1], *values[0]))
        ]
    return metrics, slices


def _compare_metric(
    metric: str,
    slice_name: str | None,
    rows: int | None,
    a: float | None,
    b: float | None,
    common: str | None,
    drawn: _Drawn,
) -> MetricComparison:
    interval = drawn.interval(metric, slice_name) if a is not None and b is not None else None
    difference = None if interval is None else interval.difference
    if difference is None and common is not None and a is not None and b is not None:
        difference = b - a
    lower_is_better = is_lower_better(metric, drawn.policy)
    return MetricComparison(
        metric=metric,
        slice=slice_name,
        rows=rows,
        a=a,
        b=b,
        difference=difference,
        lower=None if interval is None else interval.lower,
        upper=None if interval is None else interval.upper,
        larger_is_better=None if lower_is_better is None else not lower_is_better,
        drawn_rows=None if interval is None else interval.rows,
        differing_rows=None if interval is None else interval.differing_rows,
    )


def _common_rows(left: Candidate, right: Candidate) -> str | None:
    """Return the newest test rows on which both were measured; best those for which both have predictions."""
    for kind in (PREDICTIONS, METRICS):
        for evidence in reversed(right.evidence):
            rows = evidence.values.get("dataset_digest")
            if evidence.kind != kind or evidence.values.get("split") != TEST_SPLIT or not isinstance(rows, str):
                continue
            if all(side.on_test_rows(wanted, rows) for side in (left, right) for wanted in {kind, METRICS}):
                return rows
    return None


def _metrics(side: Candidate, rows: str | None, notes: list[str]) -> MetricsEvidence | None:
    evidence = side.test_metrics(rows)
    if evidence is None:
        notes.append(f"`{side.reference}` has no metrics on the test split")
        return None
    return _parsed(MetricsEvidence.from_evidence, evidence, notes)


def _side(version: ModelVersion, side: Candidate, metrics: MetricsEvidence | None, notes: list[str]) -> Side:
    rows = None if metrics is None else metrics.dataset_digest
    served = version.default_format
    calibration, latency = side.on_test_rows(CALIBRATION, rows), side.newest(LATENCY, served)
    return Side(
        reference=version.reference,
        digest=version.digest,
        served=served,
        dataset_digest=rows,
        size_bytes=version.formats[served].manifest.size_bytes,
        calibration=None if calibration is None else _parsed(CalibrationEvidence.from_evidence, calibration, notes),
        latency=None if latency is None else _parsed(LatencyEvidence.from_evidence, latency, notes),
    )


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


def _side_to_dict(side: Side) -> dict[str, object]:
    return {
        "reference": side.reference,
        "digest": side.digest,
        "served": side.served,
        "dataset_digest": side.dataset_digest,
        "size_bytes": side.size_bytes,
        "calibration": None if side.calibration is None else dict(side.calibration.to_evidence().values),
        "latency": None if side.latency is None else dict(side.latency.to_evidence().values),
    }
