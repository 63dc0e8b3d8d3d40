"""Each rule of a gate, both ways at its boundary, and without what it needs."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
from pydantic import ValidationError

from gate_kit import (
    NATIVE,
    ONNX,
    PASSED,
    VERSION,
    candidate,
    judge,
    logits_that_are_right,
    measured,
    verdict,
)
from noa.settings import GateSettings
from noa.signatures import Signature, TensorSpec
from noa_registry import BatchLatency, Evidence, Hardware, LatencyEvidence, RuleVerdict, ScanEvidence, ScanFinding
from noa_registry.evidence.describing import describe_evidence
from noa_registry.gates import ApprovalFact, Candidate
from noa_registry.gates.bootstrap import METHOD

TARGETS = np.arange(90) % 3
RIGHT = np.arange(90) >= 9  # 0.9 accuracy, 27 of 30 in each class
GOOD = measured(logits_that_are_right(TARGETS, RIGHT), TARGETS)
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 3)),),
)
MACHINE = Hardware(cpu="Imaginary 9000", cores=2, threads=1, runtime="onnxruntime 1", load=0.0)


def latency(*batches: tuple[int, float, float], digest: str = ONNX, subject: str = "onnx") -> Evidence:
    rows = tuple(BatchLatency(batch=batch, runs=1000, p50_ms=p50, p99_ms=p99) for batch, p50, p99 in batches)
    return LatencyEvidence(subject=subject, digest=digest, hardware=MACHINE, batches=rows).to_evidence()


def scan(*, findings: int = 0, allowed_by: str | None = None, digest: str = VERSION) -> Evidence:
    found = tuple(ScanFinding(file="a.pkl", severity="high", what="runs code") for _ in range(findings))
    return ScanEvidence(
        subject="version", digest=digest, scanner="s", version="1", files=1, findings=found, allowed_by=allowed_by
    ).to_evidence()


def found(subject: Candidate, rule: str, policy: GateSettings, holder: Candidate | None = None) -> RuleVerdict:
    report = judge(subject, policy, holder)
    chosen = verdict(report, rule)
    assert report.passed is all(entry.passed for entry in report.verdicts)
    return chosen


@pytest.mark.parametrize(("limit", "passed"), [(0.9, True), (0.9000001, False)])
def test_a_slice_has_its_own_least_value(limit: float, passed: bool) -> None:
    policy = GateSettings(slices={"class=2": {"accuracy": limit}})
    assert found(candidate(*GOOD), "slices.class=2.accuracy", policy).passed is passed
    assert found(candidate(*GOOD), "slices.class=2.accuracy", policy).received == "0.9 on 30 rows"


def test_a_loss_of_a_slice_is_limited_from_above() -> None:
    for limit, passed in ((10.0, True), (0.1, False)):
        policy = GateSettings(slices={"class=2": {"loss": limit}})
        assert found(candidate(*GOOD), "slices.class=2.loss", policy).passed is passed


def test_every_slice_is_meant_by_a_star() -> None:
    report = judge(candidate(*GOOD), GateSettings(slices={"*": {"accuracy": 0.9}}))
    assert report.passed
    assert [entry.rule for entry in report.verdicts if entry.rule.startswith("slices")] == [
        f"slices.class={label}.accuracy" for label in range(3)
    ]
    assert not judge(candidate(*GOOD), GateSettings(slices={"*": {"accuracy": 0.91}})).passed


@pytest.mark.parametrize("name", ["class=9", "region=north", "*"])
def test_a_slice_that_was_not_measured_is_refused_and_those_that_were_are_listed(name: str) -> None:
    without = measured(logits_that_are_right(TARGETS, RIGHT), TARGETS)
    if name == "*":
        values = {key: value for key, value in without[0].values.items() if key != "slices"}
        without[0] = replace(without[0], values=values)
    verdict_ = found(candidate(*without), f"slices.{name}.accuracy", GateSettings(slices={name: {"accuracy": 0.0}}))
    assert not verdict_.passed
    assert ("there are none" if name == "*" else "`class=0`, `class=1`, `class=2`") in verdict_.received


def test_a_slice_must_not_be_worse_than_the_holders() -> None:
    spoilt = RIGHT & ((TARGETS != 1) | (np.arange(90) < 60))  # ten rows of class 1 more are wrong
    worse = candidate(*measured(logits_that_are_right(TARGETS, spoilt), TARGETS))
    holder = candidate(*GOOD, reference="digits/1")
    for confidence in (None, 0.95):
        policy = GateSettings(slice_regression={"*": {"accuracy": 0.05}}, confidence=confidence, resamples=200)
        refused = [entry.rule for entry in judge(worse, policy, holder).refusals]
        assert refused == ["slice_regression.class=1.accuracy"]
        assert judge(candidate(*GOOD), policy, candidate(*worse.evidence[1:], reference="digits/1")).passed
        assert judge(candidate(*GOOD), policy, holder).passed


def test_a_slice_that_the_recipe_names_is_compared_on_its_own_rows() -> None:
    mask = np.arange(90) % 2 == 0
    spoilt = RIGHT & ~(mask & (np.arange(90) > 40))
    old, new = (
        measured(logits_that_are_right(TARGETS, right), TARGETS, slices={"even": mask}) for right in (RIGHT, spoilt)
    )
    policy = GateSettings(slice_regression={"even": {"accuracy": 0.01}}, confidence=0.95, resamples=200)
    refused = found(candidate(*new), "slice_regression.even.accuracy", policy, candidate(*old, reference="digits/1"))
    assert not refused.passed
    assert refused.measured["rows"] == 45


@pytest.mark.parametrize(("difference", "passed"), [(0.0, True), (0.0000001, False)])
def test_latency_at_the_limit_passes_and_above_is_refused(difference: float, passed: bool) -> None:
    policy = GateSettings(max_latency_ms={"p50": 2.0, "p99": 4.0, "p99@32": 8.0})
    fact = latency((1, 2.0, 4.0), (32, 5.0, 8.0 + difference))
    report = judge(candidate(fact), policy)
    assert report.passed is passed
    assert "Imaginary 9000, 2 cores, 1 thread, onnxruntime 1" in verdict(report, "max_latency_ms.p99@32").received


def test_a_slice_that_is_not_there_is_a_matter_of_names_and_a_metric_of_it_one_of_measuring() -> None:
    policy = GateSettings(slices={"nosuch": {"accuracy": 0.8}, "class=2": {"brier": 0.8}})
    unknown = found(candidate(*GOOD), "slices.nosuch.accuracy", policy)
    assert unknown.received == "no slice `nosuch`; there are `class=0`, `class=1`, `class=2`"
    assert unknown.remedy is not None
    assert "`Split(slices=...)`" in unknown.remedy
    assert "`metrics`" not in unknown.remedy
    missing = found(candidate(*GOOD), "slices.class=2.brier", policy)
    assert missing.remedy == "Measure it: add `brier` to the recipe's `metrics` and train again"


def test_a_batch_size_that_was_not_measured_says_what_measures_it() -> None:
    policy = GateSettings(max_latency_ms={"p99@64": 3.0})
    refused = found(candidate(latency((1, 1, 1), (32, 1, 1))), "max_latency_ms.p99@64", policy)
    assert refused.remedy is not None
    assert "noa models measure digits/2 --batch 64" in refused.remedy
    assert policy.latency_batches == (64,)


def test_latency_that_was_not_measured_with_this_batch_or_these_bytes_is_refused() -> None:
    policy = GateSettings(max_latency_ms={"p99@8": 1000.0})
    assert (
        "not measured with 8; with 1, 32"
        in found(candidate(latency((1, 1, 1), (32, 1, 1))), "max_latency_ms.p99@8", policy).received
    )
    for fact in (latency((8, 1, 1), digest="sha256:other"), latency((8, 1, 1), digest=NATIVE, subject="torch")):
        refused = found(candidate(fact), "max_latency_ms.p99@8", policy)
        assert not refused.passed
        assert refused.remedy is not None


@pytest.mark.parametrize("order", [1, -1])
def test_the_slowest_latency_on_the_same_machine_counts(order: int) -> None:
    facts = [latency((1, 9, 9)), latency((1, 1, 1))][::order]
    refused = found(candidate(*facts), "max_latency_ms.p50", GateSettings(max_latency_ms={"p50": 2.0}))
    assert not refused.passed
    assert "9 ms on Imaginary 9000" in refused.received
    assert "the largest of 2 measurements: " in refused.received
    assert len(refused.to_dict()["measured"]["measurements"]) == 2  # pyright: ignore[reportIndexIssue, reportUnknownArgumentType]


P99 = GateSettings(max_latency_ms={"p99@32": 50.0})
QUIET = BatchLatency(batch=32, runs=1000, p50_ms=0.22, p99_ms=0.4, max_ms=0.9, cpu_share=1.0)
BUSY = replace(QUIET, p99_ms=52.4, max_ms=90.0, cpu_share=0.3)


def timed(*rows: BatchLatency, load: float = 0.0) -> Evidence:
    machine = replace(MACHINE, load=load)
    return LatencyEvidence(subject="onnx", digest=ONNX, hardware=machine, batches=rows).to_evidence()


def test_a_percentile_of_a_few_runs_is_not_measured_well_enough_and_the_verdict_says_on_what_it_stands() -> None:
    few = timed(replace(QUIET, runs=38, p99_ms=52.4, max_ms=52.4), load=8.1)
    refused = found(candidate(few), "max_latency_ms.p99@32", P99)
    assert not refused.passed
    assert "not measured well enough" in refused.received
    assert "38 runs, load 8.1" in refused.received
    assert refused.remedy is not None
    assert "noa models measure digits/2 --batch 32 --seconds 20" in refused.remedy
    assert refused.to_dict()["measured"] == {"runs": 38, "load": 8.1, "cpu_share": 1.0}
    assert found(candidate(few), "max_latency_ms.p50@32", GateSettings(max_latency_ms={"p50@32": 0.3})).passed
    assert not found(candidate(timed(replace(QUIET, runs=298))), "max_latency_ms.p99@32", P99).passed  # however good


@pytest.mark.parametrize(
    ("p50_ms", "advice"), [(1490.0, "--batch 32 --seconds 670"), (20_000.0, "limit the `p50` of this batch size")]
)
def test_a_slow_model_is_to_be_measured_for_as_long_as_it_needs(p50_ms: float, advice: str) -> None:
    few = replace(QUIET, runs=14, p50_ms=p50_ms, p99_ms=2 * p50_ms, max_ms=2 * p50_ms)
    refused = found(candidate(timed(few)), "max_latency_ms.p99@32", P99)
    assert refused.remedy is not None
    assert refused.remedy.endswith(advice)


def test_of_too_few_runs_for_a_percentile_the_slowest_is_judged_if_they_bound_it() -> None:
    several = replace(QUIET, runs=299, max_ms=49.0)
    passed = found(candidate(timed(several)), "max_latency_ms.p99@32", P99)
    assert passed.passed
    assert "49 ms on Imaginary 9000" in passed.received
    assert "(the slowest of 299 runs, load 0.0)" in passed.received
    assert not found(candidate(timed(replace(several, max_ms=50.1))), "max_latency_ms.p99@32", P99).passed
    nobody_knows = timed(replace(several, max_ms=None))  # of an older noa
    assert not found(candidate(nobody_knows), "max_latency_ms.p99@32", P99).passed


def test_a_measurement_on_a_busy_machine_condemns_nothing_for_good() -> None:
    refused = found(candidate(timed(BUSY, load=8.1)), "max_latency_ms.p99@32", P99)
    assert not refused.passed
    assert "52.4 ms on" in refused.received
    assert "(1000 runs, busy with others: it had 30% of the time, load 8.1)" in refused.received
    assert refused.remedy is not None
    assert "noa models measure digits/2" in refused.remedy
    for facts in ([timed(BUSY), timed(QUIET)], [timed(QUIET), timed(BUSY)]):
        assert found(candidate(*facts), "max_latency_ms.p99@32", P99).passed


def test_no_measurement_hides_one_that_was_made_well() -> None:
    slow, few = replace(BUSY, cpu_share=1.0), replace(QUIET, runs=10)
    for other in (replace(QUIET, cpu_share=0.5), few, QUIET):
        for facts in ([timed(slow), timed(other)], [timed(other), timed(slow)]):
            refused = found(candidate(*facts), "max_latency_ms.p99@32", P99)
            assert (refused.passed, refused.received[:7], refused.remedy) == (False, "52.4 ms", None)
    disturbed = timed(replace(BUSY, p99_ms=49.0))  # slower than the model is, and fast enough
    assert found(candidate(disturbed), "max_latency_ms.p99@32", P99).passed


def test_latency_of_an_older_noa_is_read_and_judged() -> None:
    fact = timed(BUSY)
    old = [{"batch": 32, "runs": 1000, "p50_ms": 0.2, "p99_ms": 0.4}]
    fact = replace(fact, values={**fact.values, "batches": old})
    (row,) = LatencyEvidence.from_evidence(fact).batches
    assert (row.max_ms, row.cpu_share, row.was_busy) == (None, None, False)
    assert "p99 0.4 ms, 1000 runs on Imaginary 9000" in describe_evidence(fact)
    assert found(candidate(fact), "max_latency_ms.p99@32", P99).passed


def test_a_measurement_of_other_batches_hides_none_and_load_makes_no_other_machine() -> None:
    busy = latency((32, 1, 1))
    busy = replace(busy, values={**busy.values, "hardware": {**asdict(MACHINE), "load": 7.0}})
    refused = found(candidate(latency((1, 9, 9)), busy), "max_latency_ms.p50", GateSettings(max_latency_ms={"p50": 2}))
    assert (refused.passed, refused.received[:4]) == (False, "9 ms")


def test_a_machine_on_which_it_is_too_slow_is_a_warning_where_another_is_judged() -> None:
    fast = latency((1, 1, 1))
    fast = replace(fast, values={**fast.values, "hardware": {**asdict(MACHINE), "cpu": "Faster"}})
    verdict_ = found(candidate(latency((1, 9, 9)), fast), "max_latency_ms.p50", GateSettings(max_latency_ms={"p50": 2}))
    assert (verdict_.state, verdict_.received[:4]) == ("warning", "1 ms")
    assert verdict_.warning is not None
    assert "9 ms on Imaginary 9000" in verdict_.warning


def test_a_failed_comparison_of_the_same_bytes_is_not_undone_by_a_later_one() -> None:
    failed = replace(PASSED, passed=False, values={**PASSED.values, "max_abs_error": 3.0})
    for facts in ((failed, PASSED), (PASSED, failed)):
        side = replace(candidate(), evidence=facts)
        refused = verdict(judge(side, GateSettings()), "equivalence.onnx")
        assert not refused.passed
        assert "failed: max_abs_error 3.0; of " in refused.received
        assert "the worst of 2" in refused.received
    other = replace(failed, values={**failed.values, "source_digest": "sha256:other"})
    assert verdict(judge(replace(candidate(), evidence=(PASSED, other)), GateSettings()), "equivalence.onnx").passed


@pytest.mark.parametrize(("limit", "passed"), [(1000, True), (999, False)])
def test_the_served_format_has_a_largest_size(limit: int, passed: bool) -> None:
    assert found(candidate(), "max_size_bytes", GateSettings(max_size_bytes=limit)).passed is passed


def test_a_size_that_is_not_known_is_refused() -> None:
    assert not found(replace(candidate(), sizes={}), "max_size_bytes", GateSettings(max_size_bytes=10)).passed


@pytest.mark.parametrize(
    ("facts", "passed"),
    [
        ((), False),
        ((scan(),), True),
        ((scan(findings=1),), False),
        ((scan(findings=1, allowed_by="ada"),), True),
        ((scan(), scan(findings=1)), False),
        ((scan(findings=1), scan()), False),
        ((scan(digest="sha256:other"),), False),
    ],
)
def test_required_evidence_must_exist_for_these_bytes_and_have_passed(
    facts: tuple[Evidence, ...], passed: bool
) -> None:
    verdict_ = found(candidate(*facts), "require.scan", GateSettings(require=("scan",)))
    assert verdict_.passed is passed
    assert passed or verdict_.remedy is not None or "failed" in verdict_.received


def test_required_evidence_that_does_not_judge_only_has_to_exist() -> None:
    assert judge(candidate(*GOOD), GateSettings(require=("metrics", "predictions"))).passed
    assert not judge(candidate(*GOOD), GateSettings(require=("calibration",))).passed


def test_one_failed_format_fails_the_requirement() -> None:
    facts = [
        Evidence(kind="audit", subject="onnx", digest=ONNX, passed=True),
        Evidence(kind="audit", subject="torch", digest=NATIVE, passed=False),
    ]
    refused = found(candidate(*facts), "require.audit", GateSettings(require=("audit",)))
    assert not refused.passed
    assert "`torch`" in refused.received


@pytest.mark.parametrize(
    ("principals", "passed"),
    [((), False), (("bob",), False), (("bob", "bob"), False), (("bob", "eve"), True), (("bob", "ada"), False)],
)
def test_approvals_are_of_different_people_who_do_not_promote(principals: tuple[str, ...], passed: bool) -> None:
    facts = tuple(ApprovalFact(principal=name, digest=VERSION) for name in principals)
    report = judge(candidate(), GateSettings(approvals=2), approvals=facts, actor="ada")
    assert report.passed is passed


def test_an_approval_of_other_bytes_does_not_count() -> None:
    facts = (ApprovalFact(principal="bob", digest="sha256:other"),)
    assert not judge(candidate(), GateSettings(approvals=1), approvals=facts).passed
    assert not judge(replace(candidate(), digest=""), GateSettings(approvals=1), approvals=facts).passed


def test_a_signature_that_breaks_clients_is_refused_only_if_the_gate_says_so() -> None:
    other = Signature(inputs=SIGNATURE.inputs, outputs=(replace(SIGNATURE.outputs[0], name="scores"),))
    holder = candidate(reference="digits/1", signature=SIGNATURE)
    subject = candidate(signature=other)
    assert judge(subject, GateSettings(), holder).passed
    refused = found(subject, "compatible", GateSettings(compatible=True), holder)
    assert not refused.passed
    assert refused.received == "breaking: output `logits` is gone; output `scores` float32(batch, 3) is new"
    for same in (candidate(signature=SIGNATURE), holder):
        assert judge(same, GateSettings(compatible=True), holder).passed
    assert judge(subject, GateSettings(compatible=True)).passed  # nobody calls it yet
    assert not judge(candidate(), GateSettings(compatible=True), holder).passed


CONFIDENT = GateSettings(max_regression={"accuracy": 0.5}, confidence=0.95, resamples=100)


def refusal(subject: Candidate, holder: Candidate) -> str:
    refused = found(subject, "max_regression.accuracy", CONFIDENT, holder)
    assert not refused.passed
    return f"{refused.expected} | {refused.received} | {refused.remedy}"


def test_the_order_of_rows_matters() -> None:
    logits = logits_that_are_right(TARGETS, RIGHT)
    order = np.random.default_rng(0).permutation(90)
    shuffled = measured(logits[order], TARGETS[order])
    holder = candidate(*GOOD, reference="digits/1")
    assert "same rows in the same order" in refusal(candidate(*shuffled), holder)
    assert judge(candidate(*GOOD), CONFIDENT, holder).passed


def test_predictions_of_other_rows_are_not_paired() -> None:
    holder = candidate(*GOOD, reference="digits/1")
    other = measured(logits_that_are_right(TARGETS, RIGHT), TARGETS, dataset="sha256:other")
    assert "measured on sha256:rows only" in refusal(candidate(*other), holder)
    sampled = measured(logits_that_are_right(TARGETS, RIGHT), TARGETS, max_rows=50)
    assert "same rows in the same order" in refusal(candidate(*sampled), holder)
    assert judge(candidate(*sampled), CONFIDENT, candidate(*sampled, reference="digits/1")).passed


@pytest.mark.parametrize("side", ["candidate", "holder"])
def test_missing_predictions_are_refused_with_what_to_do(side: str) -> None:
    sides = {"candidate": (GOOD[:1], GOOD), "holder": (GOOD, GOOD[:1])}[side]
    subject, holder = candidate(*sides[0]), candidate(*sides[1], reference="digits/1")
    text = refusal(subject, holder)
    assert ("predictions of `digits/2`" if side == "candidate" else "predictions of `digits/1`") in text
    assert "noa train --promote" in text


def test_evidence_that_contradicts_itself_is_refused() -> None:
    boasted = measured(logits_that_are_right(TARGETS, RIGHT), TARGETS, metrics={"accuracy": 0.99, "loss": 0.1})
    assert "0.9 from its predictions" in refusal(candidate(*boasted), candidate(*GOOD, reference="digits/1"))
    assert "0.9 from its predictions" in refusal(candidate(*GOOD), candidate(*boasted, reference="digits/1"))


LIMITED = GateSettings(min_metrics={"accuracy": 0.95})
COMPARED = GateSettings(max_regression={"accuracy": 0.01})


@pytest.mark.parametrize("policy", [LIMITED, COMPARED])
def test_metrics_that_the_predictions_do_not_give_are_refused_by_every_rule(policy: GateSettings) -> None:
    holder = candidate(*measured(logits_that_are_right(TARGETS, TARGETS >= 0), TARGETS), reference="digits/1")
    boast = replace(GOOD[0], values={**GOOD[0].values, "metrics": {"accuracy": 0.9999}})
    for facts in ((*GOOD, boast), (boast, GOOD[1])):
        refused = {entry.rule: entry for entry in judge(candidate(*facts), policy, holder).refusals}
        assert "0.9 from its predictions" in refused["recomputed.accuracy"].received
    honest = judge(candidate(*GOOD), policy, holder).refusals
    assert "recomputed.accuracy" not in [entry.rule for entry in honest]
    elsewhere = measured(logits_that_are_right(TARGETS, RIGHT), TARGETS, dataset="sha256:other")
    assert "recomputed.accuracy" not in [
        entry.rule for entry in judge(candidate(*elsewhere, boast), LIMITED).refusals
    ]  # predictions of other rows say nothing


def test_a_holder_that_was_made_worse_by_hand_is_no_way_around_the_gate() -> None:
    better = measured(logits_that_are_right(TARGETS, TARGETS >= 0), TARGETS)
    slighted = replace(better[0], values={**better[0].values, "metrics": {"accuracy": 0.1}})
    refused, regression = judge(candidate(*GOOD), COMPARED, candidate(*better, slighted, reference="digits/1")).refusals
    assert "has 1, the largest of 2 measurements" in regression.expected
    assert refused.rule == "recomputed.accuracy"
    assert "`digits/1`" in refused.expected


def test_metrics_of_slices_are_computed_anew_too() -> None:
    slices = {**GOOD[0].values["slices"], "class=0": {"rows": 30, "metrics": {"accuracy": 1.0}}}  # type: ignore[dict-item]
    boast = replace(GOOD[0], values={**GOOD[0].values, "slices": slices})
    policy = GateSettings(slices={"class=0": {"accuracy": 0.99}})
    refused = judge(candidate(*GOOD, boast), policy).refusals
    assert [entry.rule for entry in refused] == ["slices.class=0.accuracy", "recomputed.class=0.accuracy"]
    assert "the smallest of 2 measurements" in refused[0].received


def test_a_metric_that_no_predictions_give_is_believed() -> None:
    facts = measured(logits_that_are_right(TARGETS, RIGHT), TARGETS, metrics={"profit": 1.0})
    assert judge(candidate(*facts), GateSettings(min_metrics={"profit": 0.5})).passed
    sampled = measured(logits_that_are_right(TARGETS, RIGHT), TARGETS, max_rows=50)
    assert judge(candidate(*sampled), GateSettings(min_metrics={"accuracy": 0.9})).passed


def test_outputs_that_are_no_numbers_are_never_compared() -> None:
    logits = logits_that_are_right(TARGETS, RIGHT)
    logits[0] = np.nan
    spoilt = measured(logits, TARGETS, metrics={"accuracy": 0.9, "loss": 0.1})
    for subject, holder in ((spoilt, GOOD), (GOOD, spoilt)):
        assert "without NaN" in refusal(candidate(*subject), candidate(*holder, reference="digits/1"))


def test_a_metric_that_nobody_can_compute_is_refused_by_name() -> None:
    facts = measured(logits_that_are_right(TARGETS, RIGHT), TARGETS, metrics={"profit": 1.0})
    policy = GateSettings(
        max_regression={"profit": 0.1}, directions={"profit": "higher"}, confidence=0.95, resamples=100
    )
    refused = found(candidate(*facts), "max_regression.profit", policy, candidate(*facts, reference="digits/1"))
    assert not refused.passed
    assert "noa.metrics" in (refused.remedy or "")
    assert judge(
        candidate(*facts), policy.model_copy(update={"confidence": None}), candidate(*facts, reference="digits/1")
    ).passed


def test_predictions_whose_bytes_were_changed_are_refused() -> None:
    from noa_registry.gates import GateInput, GateWork, evaluate

    other = measured(logits_that_are_right(TARGETS, ~RIGHT), TARGETS)[1].attachments[0].content
    for content in (b"", b"no tensors", other[:-1], other):
        gate_input = GateInput(
            candidate=candidate(*GOOD),
            alias="champion",
            policy=CONFIDENT,
            holder=candidate(*GOOD, reference="digits/1"),
        )
        work = GateWork(lambda _digest, content=content: content)
        report = evaluate(gate_input, work)
        # The same rows with other answers contradict the recorded metrics.
        assert not report.passed


def test_what_a_bootstrap_was_judged_by_is_in_the_verdict() -> None:
    chosen = found(candidate(*GOOD), "max_regression.accuracy", CONFIDENT, candidate(*GOOD, reference="digits/1"))
    assert chosen.measured == {
        "holder": 0.9,
        "challenger": 0.9,
        "difference": 0.0,
        "lower": 0.0,
        "upper": 0.0,
        "rows": 90,
        "confidence": 0.95,
        "resamples": 100,
        "seed": 0,
        "differing_rows": 0,
        "method": METHOD,
        "dataset_digest": "sha256:rows",
    }


def test_the_same_facts_are_judged_once_and_a_new_fact_anew() -> None:
    from noa_registry.gates import GateInput, GateWork, evaluate

    reads: list[str] = []
    contents = {entry.digest: entry.content for fact in GOOD for entry in fact.attachments}

    def read(digest: str) -> bytes:
        reads.append(digest)
        return contents[digest]

    def gate_input(*facts: Evidence) -> GateInput:
        return GateInput(
            candidate=candidate(*facts),
            alias="champion",
            policy=CONFIDENT,
            holder=candidate(*GOOD, reference="digits/1"),
        )

    work = GateWork(read)
    first = evaluate(gate_input(*GOOD), work)
    assert evaluate(gate_input(*GOOD), work) is first
    assert len(reads) == 1  # both have the same predictions
    assert evaluate(gate_input(*GOOD, latency((1, 1, 1))), work) == first
    assert len(reads) == 1
    worse = replace(GOOD[0], values={**GOOD[0].values, "metrics": {"accuracy": 0.1}})
    assert not evaluate(gate_input(*GOOD, worse), GateWork(read)).passed


@pytest.mark.parametrize(
    "wrong",
    [
        {"confidence": 1.0},
        {"confidence": 0.5},
        {"confidence": float("nan")},
        {"resamples": 99},
        {"confidence": 0.9999, "resamples": 1000},
        {"seed": -1},
        {"max_latency_ms": {"p95": 1.0}},
        {"max_latency_ms": {"p99@0": 1.0}},
        {"max_size_bytes": 0},
        {"require": ("Scan!",)},
        {"approvals": -1},
        {"check": "policy"},
        {"check": "policy.py"},
        {"check": "policy.py:not a name"},
        {"min_metrics": {"accuracy": float("nan")}},
        {"slices": {"class=1": {"accuracy": float("inf")}}},
        {"max_regresion": {"accuracy": 0.1}},
    ],
)
def test_settings_of_a_gate_that_cannot_be_meant_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        GateSettings.model_validate(wrong)


@pytest.mark.parametrize("order", [1, -1])
def test_predictions_that_are_attached_later_narrow_no_interval(order: int) -> None:
    others = np.roll(RIGHT, 45)  # as many right, but other rows
    honest = measured(logits_that_are_right(TARGETS, others), TARGETS)
    flattering = GOOD[1]  # what the holder answers: no row differs
    policy = GateSettings(max_regression={"accuracy": 0.01}, confidence=0.95, resamples=200)
    holder = candidate(*GOOD, reference="digits/1")
    assert honest[0].values["metrics"] != {}
    assert not found(candidate(*honest), "max_regression.accuracy", policy, holder).passed
    assert found(candidate(honest[0], flattering), "max_regression.accuracy", policy, holder).passed
    facts = [honest[1], flattering][::order]
    assert not found(candidate(honest[0], *facts), "max_regression.accuracy", policy, holder).passed
    # ... and neither do those that flatter the version by speaking against the holder
    worse = measured(logits_that_are_right(TARGETS, others), TARGETS, metrics=dict(GOOD[0].values["metrics"]))  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert not found(
        candidate(*honest), "max_regression.accuracy", policy, candidate(*GOOD, worse[1], reference="digits/1")
    ).passed
