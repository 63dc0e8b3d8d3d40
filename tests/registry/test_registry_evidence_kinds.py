from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noa.digests import sha256_bytes
from noa.errors import IntegrityError, InvalidInputError
from noa.signatures import Axis, Signature, TensorSpec
from noa_registry import (
    BatchLatency,
    CalibrationEvidence,
    CompatibilityEvidence,
    Evidence,
    Hardware,
    LatencyEvidence,
    MetricsEvidence,
    ModelVersion,
    Predictions,
    PredictionsEvidence,
    Registry,
    ReliabilityBin,
    ScanEvidence,
    ScanFinding,
    SizeEvidence,
    SliceMetrics,
    compare_signatures,
    equivalence_evidence,
    metrics_evidence,
    predictions_evidence,
)
from noa_registry.evidence import check_evidence, decode_predictions
from noa_registry.evidence.describing import describe_evidence
from noa_registry.gates.known_policy import KnownPolicy, policy_in_evidence


def nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


pytestmark = pytest.mark.local_files  # rows only; where files are kept does not matter

ONE = "sha256:" + "1" * 64
numbers = st.floats(allow_nan=False)
share = st.floats(0, 1)
names = st.text(min_size=1, max_size=8)
subjects = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
measured = st.text("abcxyz019_.-/@= é", min_size=1, max_size=8).map(lambda name: f"m{name}".strip())
table = st.dictionaries(measured, numbers, max_size=3)
metrics = st.builds(
    MetricsEvidence,
    subject=subjects,
    digest=st.just(ONE),
    dataset_digest=st.just(ONE),
    split=names,
    metrics=table,
    rows=st.none() | st.integers(10**6, 10**9),
    slices=st.dictionaries(measured, st.builds(SliceMetrics, rows=st.integers(1, 10**6), metrics=table), max_size=3),
)
calibrations = st.lists(
    st.builds(ReliabilityBin, lower=share, upper=share, rows=st.integers(1, 1000), confidence=share, accuracy=share),
    min_size=1,
    max_size=4,
).flatmap(
    lambda bins: st.builds(
        CalibrationEvidence,
        subject=subjects,
        digest=st.just(ONE),
        dataset_digest=st.just(ONE),
        split=names,
        rows=st.just(sum(entry.rows for entry in bins)),
        binning=names,
        ece=share,
        brier=st.floats(0, 2),
        bins=st.just(tuple(bins)),
    )
)
positive = st.floats(0, 1e9)
latencies = st.builds(
    LatencyEvidence,
    subject=subjects,
    digest=st.just(ONE),
    hardware=st.builds(Hardware, cpu=names, cores=st.integers(1), threads=st.integers(1), runtime=names, load=positive),
    batches=st.lists(
        st.tuples(st.floats(1e-6, 1e9), st.floats(1e-6, 1e9))
        .map(sorted)
        .flatmap(
            lambda times: st.builds(
                BatchLatency,
                batch=st.integers(1),
                runs=st.integers(1),
                p50_ms=st.just(times[0]),
                p99_ms=st.just(times[1]),
            )
        ),
        min_size=1,
        max_size=3,
        unique_by=lambda row: row.batch,
    ).map(tuple),
)
sizes = st.builds(SizeEvidence, subject=subjects, digest=st.just(ONE), size_bytes=st.integers(0), files=st.integers(1))
scans = st.builds(
    ScanEvidence,
    subject=subjects,
    digest=st.just(ONE),
    scanner=names,
    version=names,
    files=st.integers(0),
    findings=st.lists(st.builds(ScanFinding, file=names, severity=names, what=names), max_size=3).map(tuple),
    allowed_by=st.none() | names,
)
compatibilities = st.builds(
    CompatibilityEvidence,
    digest=st.just(ONE),
    holder=names,
    holder_digest=names,
    level=st.sampled_from(["compatible", "widened", "breaking"]),
    differences=st.lists(names, max_size=3).map(tuple),
)


@pytest.mark.parametrize("kind", [metrics, calibrations, latencies, sizes, scans, compatibilities], ids=repr)
@settings(max_examples=40)
@given(data=st.data())
def test_every_kind_survives_being_stored(kind: st.SearchStrategy[object], data: st.DataObject) -> None:
    fact = data.draw(kind)
    evidence: Evidence = fact.to_evidence()  # type: ignore[attr-defined]
    check_evidence(evidence)
    stored = replace(evidence, values=json.loads(json.dumps(evidence.values, allow_nan=False)))
    assert type(fact).from_evidence(stored) == fact  # type: ignore[attr-defined]
    assert describe_evidence(stored)


CALIBRATION = CalibrationEvidence(
    subject="onnx",
    digest=ONE,
    dataset_digest=ONE,
    split="test",
    rows=4,
    binning="15 bins",
    ece=0.1,
    brier=0.2,
    bins=(ReliabilityBin(lower=0.5, upper=1, rows=4, confidence=0.9, accuracy=1.0),),
).to_evidence()
LATENCY = LatencyEvidence(
    subject="onnx",
    digest=ONE,
    hardware=Hardware(cpu="c", cores=1, threads=1, runtime="r", load=0),
    batches=(BatchLatency(batch=1, runs=1, p50_ms=1, p99_ms=1),),
).to_evidence()
METRICS = MetricsEvidence(
    subject="onnx", digest=ONE, dataset_digest=ONE, split="test", metrics={"a": 1.0}, rows=1
).to_evidence()
EQUAL = equivalence_evidence(
    source="torch",
    source_digest=ONE,
    target="onnx",
    target_digest=ONE,
    passed=True,
    values={"max_abs_error": 1e-6, "argmax_agreement": 1.0},
)
DIFFERENT = replace(EQUAL, passed=False)
SCAN = ScanEvidence(subject="version", digest=ONE, scanner="s", version="1", files=1).to_evidence()
SIZE = SizeEvidence(subject="onnx", digest=ONE, size_bytes=1, files=1).to_evidence()
PREDICTED = predictions_evidence(
    Predictions(outputs=np.zeros((4, 2), np.float32), targets=np.arange(4) % 2),
    subject="onnx",
    digest=ONE,
    dataset_digest=ONE,
    split="test",
    objective="cross_entropy",
    output="logits",
)
assert PREDICTED is not None


@pytest.mark.parametrize(
    ("fact", "changes", "field"),
    [
        (CALIBRATION, {"ece": "nan"}, "ece"),
        (CALIBRATION, {"ece": 1.5}, "ece"),
        (CALIBRATION, {"brier": -0.1}, "brier"),
        (CALIBRATION, {"rows": 5}, "bins"),
        (CALIBRATION, {"rows": True}, "rows"),
        (CALIBRATION, {"bins": [1]}, "bins"),
        (CALIBRATION, {"bins": "none"}, "bins"),
        (LATENCY, {"hardware": {}}, "cpu"),
        (LATENCY, {"hardware": []}, "hardware"),
        (LATENCY, {"batches": [{"batch": 0, "runs": 1, "p50_ms": 1, "p99_ms": 1}]}, "batch"),
        (LATENCY, {"batches": [{"batch": 1, "runs": 1, "p50_ms": "inf", "p99_ms": 1}]}, "p50_ms"),
        (LATENCY, {"batches": [{"batch": 1, "runs": 1, "p50_ms": "fast", "p99_ms": 1}]}, "p50_ms"),
        (METRICS, {"metrics": {"a": "good"}}, "a"),
        (METRICS, {"metrics": {"a": True}}, "a"),
        (METRICS, {"dataset_digest": ""}, "dataset_digest"),
        (METRICS, {"rows": -1}, "rows"),
        (METRICS, {"rows": 0}, "rows"),
        (METRICS, {"dataset_digest": "zzz"}, "dataset_digest"),
        (METRICS, {"metrics": {"": 1.0}}, ""),
        (METRICS, {"metrics": {" ": 1.0}}, " "),
        (METRICS, {"metrics": {" accuracy": 1.0}}, " accuracy"),
        (METRICS, {"metrics": {"accuracy\u00a0": 1.0}}, "accuracy\u00a0"),
        (METRICS, {"rows": 3, "slices": {"x": {"rows": 4, "metrics": {}}}}, "rows"),
        (METRICS, {"slices": {"x": {"rows": 1, "metrics": {"accuracy ": 1.0}}}}, "accuracy "),
        (EQUAL, {"max_abs_error": math.inf}, "max_abs_error"),
        (EQUAL, {"max_abs_error": "nan"}, "max_abs_error"),
        (EQUAL, {"max_abs_error": -0.5}, "max_abs_error"),
        (EQUAL, {"max_abs_error": "small"}, "max_abs_error"),
        (EQUAL, {"argmax_agreement": 5.0}, "argmax_agreement"),
        (EQUAL, {"argmax_agreement": -0.1}, "argmax_agreement"),
        (EQUAL, {"argmax_agreement": math.nan}, "argmax_agreement"),
        (DIFFERENT, {"max_abs_error": -math.inf}, "max_abs_error"),
        (DIFFERENT, {"argmax_agreement": 5.0}, "argmax_agreement"),
        (METRICS, {"metrics": {"a\x1b[2J": 1.0}}, "a\x1b[2J"),
        (METRICS, {"metrics": {"accuracy": "inf"}}, "accuracy"),
        (METRICS, {"slices": {"x\n": {"rows": 1, "metrics": {}}}}, "x\n"),
        (METRICS, {"slices": {"x": {"rows": 1, "metrics": {"": 1.0}}}}, ""),
        (CALIBRATION, {"dataset_digest": "zzz"}, "dataset_digest"),
        (PREDICTED, {"dataset_digest": "zzz"}, "dataset_digest"),
        (LATENCY, {"batches": []}, "batches"),
        (LATENCY, {"batches": [{"batch": 1, "runs": 1, "p50_ms": 1, "p99_ms": 1}] * 2}, "batch"),
        (LATENCY, {"batches": [{"batch": 1, "runs": 1, "p50_ms": 0, "p99_ms": 1}]}, "p50_ms"),
        (LATENCY, {"batches": [{"batch": 1, "runs": 1, "p50_ms": -1, "p99_ms": 1}]}, "p50_ms"),
        (LATENCY, {"batches": [{"batch": 1, "runs": 1, "p50_ms": 2, "p99_ms": 1}]}, "p99_ms"),
        (METRICS, {"slices": {"x": {"rows": 0, "metrics": {}}}}, "rows"),
        (METRICS, {"slices": {"x": 3}}, "x"),
        (SCAN, {"findings": [{"file": "a", "severity": "high", "what": "runs"}]}, "findings"),
        (SCAN, {"findings": [{}]}, "file"),
        (SCAN, {"scanner": 3}, "scanner"),
        (SIZE, {"size_bytes": -1}, "size_bytes"),
        (SIZE, {"files": 0}, "files"),
        (PREDICTED, {"rows": 5}, "rows"),
        (PREDICTED, {"attachment": None}, "attachment"),
        (PREDICTED, {"row_digest": 3}, "row_digest"),
        (PREDICTED, {"slices": [1]}, "slices"),
    ],
)
def test_a_part_that_cannot_be_is_refused_and_named(fact: Evidence, changes: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_evidence(replace(fact, values={**fact.values, **changes}))
    assert caught.value.facts["field"] == field


@pytest.mark.parametrize("error", [math.nan, math.inf, 3.0, None])
def test_a_comparison_that_failed_says_what_it_found(error: float | None) -> None:
    found = {"max_abs_error": error, "argmax_agreement": None}
    check_evidence(replace(DIFFERENT, values={**DIFFERENT.values, **found}))


@pytest.mark.parametrize("value", [{"accuracy": math.nan}, {"loss": math.inf}])
def test_a_metric_of_training_that_diverged_is_kept(value: dict[str, float]) -> None:
    check_evidence(
        MetricsEvidence(subject="onnx", digest=ONE, dataset_digest=ONE, split="t", metrics=value).to_evidence()
    )


@pytest.mark.parametrize(
    "value",
    [
        *("0.99", b"1", [0.9], None, True, 1j, 10**400, 10**5000, nested(3000)),
        *(np.array([0.99]), np.array("x"), np.array("nan"), np.longdouble("0.99"), np.ma.masked),
        *(np.ma.masked_array(0.5, mask=True), np.timedelta64(1), np.timedelta64(1, "ns"), np.datetime64(1, "ns")),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("name", ["accuracy", "loss"])
def test_a_metric_that_is_no_number_is_refused_with_its_name_and_what_it_is(name: str, value: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        metrics_evidence(format="onnx", digest=ONE, dataset_digest=ONE, split="test", values={name: value})
    assert caught.value.what == f"`{name}` has a value that is no number"
    assert caught.value.facts["field"] == name
    assert str(caught.value.received).startswith(f"{type(value).__name__}: ")
    assert len(str(caught.value.received)) < 100


@pytest.mark.parametrize("key", [1, 1.5, None, True, ("a",), b"a"])
def test_a_metric_whose_name_is_no_text_is_refused_with_what_was_given(key: Any) -> None:
    measured = MetricsEvidence(
        subject="onnx",
        digest=ONE,
        dataset_digest=ONE,
        split="t",
        metrics={"loss": 0.5},
        slices={"cats": SliceMetrics(rows=1, metrics={key: 0.5})},
    )
    with pytest.raises(InvalidInputError) as caught:
        metrics_evidence(format="onnx", digest=ONE, dataset_digest=ONE, split="test", values={key: 0.5})
    assert caught.value.what == "a metric has a name that is no text"
    assert caught.value.received == f"{type(key).__name__}: {key}"
    with pytest.raises(InvalidInputError, match="a metric of slice `cats` has a name that is no text"):
        measured.to_evidence()


@pytest.mark.parametrize("values", [None, 1, "accuracy", [("accuracy", 0.5)], np.array([0.5]), nested(3000)])
def test_metrics_that_are_no_table_are_refused_with_what_was_given(values: Any) -> None:
    with pytest.raises(InvalidInputError, match="the metrics are no table") as caught:
        metrics_evidence(format="onnx", digest=ONE, dataset_digest=ONE, split="test", values=values)
    assert str(caught.value.received).startswith(f"{type(values).__name__}: ")


@pytest.mark.parametrize("part", ["kind", "subject", "digest", "passed", "values", "created_at"])
def test_a_part_of_evidence_that_is_nested_too_deep_is_refused_with_its_name(part: str) -> None:
    with pytest.raises(InvalidInputError, match=f"`{part}` of evidence cannot be stored so") as caught:
        check_evidence(replace(DIFFERENT, **{part: nested(3000)}))
    assert caught.value.received == "list: nested too deep to be shown"


def test_a_value_of_evidence_that_is_nested_too_deep_is_named() -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_evidence(replace(DIFFERENT, kind="audit", values={"x": 1, "y": nested(3000)}))
    assert caught.value.received == "'y': nested too deep"


@pytest.mark.parametrize("value", [np.float32(0.5), np.array(0.5), np.int64(1), 0.5, math.nan])
def test_numbers_of_numpy_are_metrics(value: Any) -> None:
    fact = metrics_evidence(format="onnx", digest=ONE, dataset_digest=ONE, split="test", values={"loss": value})
    assert type(cast("Any", fact.values["metrics"])["loss"]) in (float, int, str)


def test_a_number_of_numpy_without_a_plain_form_is_refused_in_any_evidence(registry: Registry, formats: Any) -> None:
    fact = Evidence(kind="review", subject="version", digest=ONE, values={"score": [np.longdouble("0.99")]})
    with pytest.raises(InvalidInputError, match="a value cannot be stored") as caught:
        registry.register(formats.draft(evidence=[formats.equivalence(), fact]), actor="ada")
    assert caught.value.received == "longdouble: 0.99"


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"subject": "jax"}, "subject"), ({"digest": ONE}, "digest"), ({"subject": "version", "digest": ONE}, "digest")],
)
@pytest.mark.parametrize("fact", [METRICS, LATENCY])
def test_a_measurement_of_no_format_of_the_version_is_refused_and_named(
    registry: Registry, version: ModelVersion, fact: Evidence, changes: dict[str, str], field: str
) -> None:
    real = replace(fact, digest=version.formats["onnx"].digest)
    with pytest.raises(InvalidInputError) as caught:
        registry.attach("digits", 1, replace(real, **changes))  # type: ignore[arg-type]
    error = caught.value
    assert error.facts["field"] == field
    assert None not in (error.where, error.expected, error.received, error.remedy)
    assert [one.kind for one in registry.evidence("digits", 1)] == ["equivalence"]
    registry.attach("digits", 1, real)


def test_metrics_keep_what_is_not_finite() -> None:
    fact = MetricsEvidence(
        subject="onnx", digest=ONE, dataset_digest=ONE, split="test", metrics={"a": math.nan, "b": -math.inf}
    )
    found = MetricsEvidence.from_evidence(fact.to_evidence()).metrics
    assert math.isnan(found["a"])
    assert found["b"] == -math.inf


def describe(
    outputs: np.ndarray, targets: np.ndarray, masks: dict[str, np.ndarray], **limits: int
) -> tuple[PredictionsEvidence, bytes] | None:
    fact = predictions_evidence(
        Predictions(outputs=outputs, targets=targets, slices=masks),
        subject="onnx",
        digest=ONE,
        dataset_digest=ONE,
        split="test",
        objective="mse",
        output="y",
        **limits,
    )
    if fact is None:
        return None
    check_evidence(fact)
    return PredictionsEvidence.from_evidence(fact), fact.attachments[0].content


@settings(max_examples=40)
@given(
    rows=st.integers(1, 50),
    width=st.integers(1, 4),
    dtype=st.sampled_from(["float32", "float64", "float16", "int64", "uint8", "bool", ">f4"]),
    limit=st.integers(1, 60),
)
def test_predictions_survive_being_stored_and_a_sample_says_which_rows_it_holds(
    rows: int, width: int, dtype: str, limit: int
) -> None:
    outputs = np.arange(rows * width).reshape(rows, width).astype(dtype)
    targets, mask = np.arange(rows), np.arange(rows) % 2 == 0
    stored = describe(outputs, targets, {"even": mask}, max_rows=limit)
    assert stored is not None
    fact, content = stored
    found = decode_predictions(content, fact)
    assert (fact.rows, fact.total_rows) == (min(rows, limit), rows)
    assert (fact.sample_seed is None) == (rows <= limit)
    assert np.array_equal(found.outputs, outputs[found.targets])
    assert np.array_equal(found.slices["even"], mask[found.targets])
    assert list(found.targets) == sorted(set(found.targets))
    again = describe(outputs, targets, {"even": mask}, max_rows=limit)
    assert again == stored


def test_predictions_that_are_too_large_are_sampled_and_a_row_that_is_too_large_is_left_out() -> None:
    stored = describe(np.zeros((1000, 100), np.float32), np.arange(1000), {}, max_bytes=200_000)
    assert stored is not None
    assert 200 < stored[0].rows < 1000
    assert len(stored[1]) <= 200_000
    assert describe(np.zeros((2, 100_000), np.float32), np.arange(2), {}, max_bytes=200_000) is None


def test_the_rows_and_their_order_have_a_name() -> None:
    outputs, targets = np.zeros((6, 1), np.float32), np.arange(6)
    digests = [
        describe(outputs, values, {}, max_rows=limit)
        for values, limit in ((targets, 9), (targets[::-1].copy(), 9), (targets, 5), (targets + 1, 9))
    ]
    assert len({entry[0].row_digest for entry in digests if entry is not None}) == 4
    other_answers = describe(outputs + 1, targets, {})
    assert other_answers is not None
    assert digests[0] is not None
    assert other_answers[0].row_digest == digests[0][0].row_digest


@pytest.mark.parametrize(
    "predictions",
    [
        Predictions(outputs=np.zeros((3, 1)), targets=np.zeros(4)),
        Predictions(outputs=np.zeros((0, 1)), targets=np.zeros(0)),
        Predictions(outputs=np.zeros(()), targets=np.zeros(3)),
        Predictions(outputs=np.asarray(["a"]), targets=np.zeros(1)),
        Predictions(outputs=np.asarray([None]), targets=np.zeros(1)),
        Predictions(outputs=np.zeros((3, 1)), targets=np.zeros(3), slices={"a": np.ones(2, bool)}),
        Predictions(outputs=np.zeros((3, 1)), targets=np.zeros(3), slices={"a": np.ones(3)}),
        Predictions(outputs=np.zeros((3, 1)), targets=np.zeros(3), slices={"": np.ones(3, bool)}),
        Predictions(outputs=np.zeros((3, 1)), targets=np.zeros(3), slices={"a\nb": np.ones(3, bool)}),
    ],
)
def test_predictions_that_contradict_themselves_are_refused(predictions: Predictions) -> None:
    with pytest.raises(InvalidInputError):
        predictions_evidence(
            predictions, subject="o", digest=ONE, dataset_digest=ONE, split="t", objective="mse", output="y"
        )


def test_predictions_of_other_rows_than_said_are_found_out() -> None:
    stored, other = (describe(np.zeros((3, 1)), np.arange(3) + shift, {}) for shift in (0, 1))
    assert stored is not None
    assert other is not None
    for content in (other[1], b"", b"\xff" * 100, stored[1][:-8], b"\x08" + b"\x00" * 7 + b"{}      "):
        with pytest.raises(IntegrityError):
            decode_predictions(content, stored[0])


def test_an_attachment_must_be_named_and_small_enough() -> None:
    assert PREDICTED is not None
    (attachment,) = PREDICTED.attachments
    assert attachment.digest == PREDICTED.values["attachment"] == sha256_bytes(attachment.content)
    with pytest.raises(InvalidInputError, match="does not name"):
        check_evidence(replace(PREDICTED, attachments=(replace(attachment, content=b"other"),)))
    huge = replace(attachment, content=bytes((16 << 20) + 1))
    with pytest.raises(InvalidInputError, match="too large"):
        check_evidence(replace(PREDICTED, values={**PREDICTED.values, "attachment": huge.digest}, attachments=(huge,)))


def signature(
    inputs: dict[str, tuple[str, tuple[Axis, ...]]], outputs: dict[str, tuple[str, tuple[Axis, ...]]]
) -> Signature:
    sides = [
        tuple(TensorSpec(name=name, dtype=dtype, shape=shape) for name, (dtype, shape) in side.items())  # type: ignore[arg-type]
        for side in (inputs, outputs)
    ]
    return Signature(inputs=sides[0], outputs=sides[1])


F, I = "float32", "int64"  # noqa: E741
X, Y = (F, ("n", 4)), (F, ("n", 3))


@pytest.mark.parametrize(
    ("inputs", "outputs", "level", "said"),
    [
        ({"x": X}, {"y": Y}, "compatible", ""),
        ({"x": (F, ("batch", 4))}, {"y": (F, ("batch", 3))}, "compatible", ""),
        ({"x": (F, ("n", "m"))}, {"y": Y}, "widened", "was float32(n, 4) and is float32(n, m)"),
        ({"x": X}, {"y": Y, "z": Y}, "widened", "output `z` float32(n, 3) is new"),
        ({"x": X}, {"y": (F, (8, 3))}, "widened", "is float32(8, 3)"),
        ({"x": (F, ("n", 5))}, {"y": Y}, "breaking", "is float32(n, 5)"),
        ({"x": (F, (1, 4))}, {"y": Y}, "breaking", "is float32(1, 4)"),
        ({"x": (F, ("n", 4, 1))}, {"y": Y}, "breaking", "is float32(n, 4, 1)"),
        ({"x": (I, ("n", 4))}, {"y": Y}, "breaking", "is int64(n, 4)"),
        ({"w": X}, {"y": Y}, "breaking", "input `x` is gone"),
        ({"x": X, "w": X}, {"y": Y}, "breaking", "input `w` float32(n, 4) is new and required"),
        ({"x": X}, {"y": (F, ("n", "m"))}, "breaking", "is float32(n, m)"),
        ({"x": X}, {"z": Y}, "breaking", "output `y` is gone"),
        ({"x": X}, {"z": Y, "y": Y}, "breaking", "the outputs are in another order"),
    ],
)
def test_what_a_change_of_the_signature_means_for_clients(
    inputs: dict[str, tuple[str, tuple[Axis, ...]]],
    outputs: dict[str, tuple[str, tuple[Axis, ...]]],
    level: str,
    said: str,
) -> None:
    found = compare_signatures(signature({"x": X}, {"y": Y}), signature(inputs, outputs))
    assert found.level == level
    assert said in "; ".join(found.differences)
    assert bool(found.differences) == (level != "compatible")


def test_axes_that_must_have_the_same_size_are_part_of_the_signature() -> None:
    together = signature({"x": (F, ("n",)), "w": (F, ("n",))}, {"y": Y})
    apart = signature({"x": (F, ("n",)), "w": (F, ("m",))}, {"y": Y})
    assert compare_signatures(together, apart).level == "widened"
    assert compare_signatures(apart, together).level == "breaking"
    assert "must have the same size now" in compare_signatures(apart, together).differences[0]
    fixed = signature({"x": (F, ("n",)), "w": (F, (3,))}, {"y": Y})
    assert compare_signatures(fixed, together).level == "breaking"
    assert compare_signatures(fixed, apart).level == "widened"
    both_fixed = signature({"x": (F, (3,)), "w": (F, (3,))}, {"y": Y})
    assert compare_signatures(both_fixed, together).level == "widened"


axes = st.lists(st.sampled_from([1, 2, "n", "m"]), max_size=3).map(tuple)
specs = st.tuples(st.sampled_from([F, I]), axes)
sides = st.dictionaries(st.sampled_from("abc"), specs, min_size=1, max_size=3)


@settings(max_examples=300)
@given(st.builds(signature, sides, sides), st.builds(signature, sides, sides))
def test_a_request_that_was_accepted_is_refused_only_by_a_breaking_signature(old: Signature, new: Signature) -> None:
    sizes = {"n": 3, "m": 5}
    request = {
        spec.name: np.zeros([sizes.get(axis, axis) for axis in spec.shape], spec.dtype)  # type: ignore[call-overload]
        for spec in old.inputs
    }
    old.validate(request)
    found = compare_signatures(old, new)
    if found.level != "breaking":
        new.validate(request)
        assert {spec.name for spec in old.outputs} <= {spec.name for spec in new.outputs}
    assert compare_signatures(old, old).level == "compatible"


@pytest.mark.parametrize("kind", ["gate", "origin", "history"])
def test_what_only_noa_writes_is_not_taken_from_anybody_else(registry: Registry, formats: Any, kind: str) -> None:
    version = registry.register(formats.draft(), actor="ada")
    made_up = Evidence(
        kind=kind,
        subject="version",
        digest=version.digest,
        passed=True,
        values={"alias": "champion", "policy": "sha256:" + "0" * 64},
    )

    with pytest.raises(InvalidInputError, match=f"`{kind}` is written by noa alone"):
        registry.attach("digits", 1, made_up)
    with pytest.raises(InvalidInputError, match=f"`{kind}` is written by noa alone"):
        registry.register(formats.draft(evidence=[formats.equivalence(), made_up]), actor="ada")
    assert [fact.kind for fact in registry.evidence("digits", 1)] == ["equivalence"]
    registry.check("digits", 1)
    assert [fact.kind for fact in registry.evidence("digits", 1)] == ["equivalence", "gate"]


def test_a_verdict_about_another_version_makes_no_policy_known() -> None:
    policy = "sha256:" + "0" * 64
    ours, other = "sha256:" + "1" * 64, "sha256:" + "2" * 64

    def check(digest: str, subject: str = "version") -> Evidence:
        return Evidence(kind="gate", subject=subject, digest=digest, values={"alias": "champion", "policy": policy})

    assert policy_in_evidence([check(ours)], ours, "champion") == KnownPolicy(digest=policy, where="its last check")
    assert policy_in_evidence([check(other), check(ours, "onnx")], ours, "champion") is None
