from __future__ import annotations

import pytest

from noa.errors import IntegrityError
from noa.settings import GateSettings
from noa_registry import Evidence, GateReport, RuleVerdict, equivalence_evidence, metrics_evidence
from noa_registry.gates import Candidate, GateInput, evaluate, evaluate_rollback

NATIVE, ONNX, JAX = "sha256:native", "sha256:onnx", "sha256:jax"


def equivalence(*, passed: bool = True, source_digest: str = NATIVE, target_digest: str = ONNX) -> Evidence:
    return equivalence_evidence(
        source="torch",
        source_digest=source_digest,
        target="onnx",
        target_digest=target_digest,
        passed=passed,
        values={"max_difference": 0.5},
    )


def metrics(
    *, fmt: str = "onnx", digest: str = ONNX, dataset: str = "sha256:data", split: str = "test", **values: float
) -> Evidence:
    return metrics_evidence(format=fmt, digest=digest, dataset_digest=dataset, split=split, values=values)


def candidate(*evidence: Evidence, reference: str = "digits/2", formats: dict[str, str] | None = None) -> Candidate:
    chosen = {"torch": NATIVE, "onnx": ONNX} if formats is None else formats
    return Candidate(reference=reference, native="torch", formats=chosen, evidence=evidence)


def judge(subject: Candidate, policy: GateSettings | None = None, holder: Candidate | None = None) -> GateReport:
    return evaluate(GateInput(candidate=subject, alias="champion", policy=policy, holder=holder))


def verdict(report: GateReport, rule: str) -> RuleVerdict:
    return next(entry for entry in report.verdicts if entry.rule == rule)


def test_a_native_format_alone_needs_only_its_bytes() -> None:
    report = judge(candidate(formats={"torch": NATIVE}))
    assert report.passed
    assert [entry.rule for entry in report.verdicts] == ["bytes"]


def test_changed_bytes_are_refused_whatever_else_holds() -> None:
    report = evaluate(
        GateInput(candidate=candidate(equivalence()), alias="champion", bytes_problem="`model.onnx` was changed")
    )
    assert not report.passed
    assert verdict(report, "bytes").received == "`model.onnx` was changed"


@pytest.mark.parametrize(
    ("evidence", "received"),
    [
        ((), "no evidence"),
        ((equivalence(target_digest="sha256:other"),), "no evidence"),
        ((equivalence(source_digest="sha256:other"),), "other bytes"),
        ((equivalence(passed=False),), "failed: max_difference 0.5"),
        ((equivalence(), equivalence(passed=False)), "failed"),
    ],
)
def test_equivalence_must_have_passed_for_exactly_these_bytes(evidence: tuple[Evidence, ...], received: str) -> None:
    report = judge(candidate(*evidence))
    assert not report.passed
    assert received in verdict(report, "equivalence.onnx").received


def test_evidence_of_other_bytes_does_not_replace_that_of_these() -> None:
    assert judge(candidate(equivalence(), equivalence(passed=False, target_digest="sha256:other"))).passed


def test_every_format_needs_its_own_evidence() -> None:
    report = judge(candidate(equivalence(), formats={"torch": NATIVE, "onnx": ONNX, "jax": JAX}))
    assert [entry.rule for entry in report.refusals] == ["equivalence.jax"]


@pytest.mark.parametrize(
    ("values", "passed"),
    [
        ({"accuracy": 0.9, "loss": 0.5}, True),
        ({"accuracy": 0.89, "loss": 0.5}, False),
        ({"accuracy": 0.95, "loss": 0.51}, False),
        ({"accuracy": 0.95}, False),
        ({"accuracy": float("nan"), "loss": 0.1}, False),
        ({"accuracy": float("inf"), "loss": 0.1}, False),
        ({"accuracy": 0.95, "loss": float("-inf")}, False),
    ],
)
def test_limits_hold_on_the_test_split(values: dict[str, float], passed: bool) -> None:
    policy = GateSettings(min_metrics={"accuracy": 0.9}, max_metrics={"loss": 0.5})
    assert judge(candidate(equivalence(), metrics(**values)), policy).passed is passed


def test_metrics_of_another_split_or_of_other_bytes_do_not_count() -> None:
    policy = GateSettings(min_metrics={"accuracy": 0.9})
    for fact in (metrics(split="validation", accuracy=1.0), metrics(digest="sha256:other", accuracy=1.0)):
        report = judge(candidate(equivalence(), fact), policy)
        assert verdict(report, "min_metrics.accuracy").received == "no test metrics of these bytes"
        assert not report.passed


def test_the_metrics_of_onnx_are_preferred_to_those_of_the_native_format() -> None:
    policy = GateSettings(min_metrics={"accuracy": 0.9})
    native = metrics(fmt="torch", digest=NATIVE, accuracy=0.95)
    assert judge(candidate(equivalence(), native), policy).passed
    assert not judge(candidate(equivalence(), metrics(accuracy=0.5), native), policy).passed


def test_a_model_that_is_measured_again_and_is_worse_is_worse() -> None:
    policy = GateSettings(min_metrics={"accuracy": 0.9})
    assert not judge(candidate(equivalence(), metrics(accuracy=0.95), metrics(accuracy=0.5)), policy).passed


def test_a_policy_for_other_aliases_leaves_only_the_rules_that_always_hold() -> None:
    policy = GateSettings(min_metrics={"accuracy": 0.9}, aliases=("production",))
    assert judge(candidate(equivalence()), policy).passed
    assert not judge(candidate(), policy).passed


@pytest.mark.parametrize(
    ("metric", "allowed", "mine", "theirs", "passed"),
    [
        ("accuracy", 0.01, 0.94, 0.95, True),
        ("accuracy", 0.01, 0.93, 0.95, False),
        ("accuracy", 0.0, 0.99, 0.95, True),
        ("loss", 0.1, 0.55, 0.5, True),
        ("loss", 0.1, 0.65, 0.5, False),
        ("log_loss", 0.0, 0.4, 0.5, True),
        ("accuracy", 0.01, 0.57, 0.58, True),  # 0.58 - 0.01 is 0.5699999999999999 in binary numbers
        ("accuracy", 0.01, 0.5699999, 0.58, False),
        ("loss", 0.1, 0.3, 0.2, True),  # and 0.2 + 0.1 is 0.30000000000000004
        ("loss", 0.1, 0.30000001, 0.2, False),
        ("accuracy", 0.01, float("nan"), 0.95, False),
        ("accuracy", 0.01, 0.95, float("nan"), False),
        ("loss", 0.1, float("-inf"), 0.5, False),
        ("loss", 0.1, 0.5, float("inf"), False),
    ],
)
def test_a_version_may_be_only_so_much_worse_than_the_holder(
    metric: str, allowed: float, mine: float, theirs: float, passed: bool
) -> None:
    holder = candidate(metrics(**{metric: theirs}), reference="digits/1")
    report = judge(
        candidate(equivalence(), metrics(**{metric: mine})), GateSettings(max_regression={metric: allowed}), holder
    )
    assert report.passed is passed
    assert "digits/" in verdict(report, f"max_regression.{metric}").expected


def test_without_another_holder_there_is_nothing_to_be_worse_than() -> None:
    policy = GateSettings(max_regression={"accuracy": 0.0})
    subject = candidate(equivalence())
    assert judge(subject, policy).passed
    assert judge(subject, policy, subject).passed


def test_metrics_on_different_datasets_are_not_compared_and_both_are_named() -> None:
    policy = GateSettings(max_regression={"accuracy": 0.0})
    holder = candidate(metrics(dataset="sha256:old", accuracy=0.1), reference="digits/1")
    subject = candidate(equivalence(), metrics(dataset="sha256:new", accuracy=0.9))
    found = verdict(judge(subject, policy, holder), "max_regression.accuracy")
    assert not found.passed
    assert "sha256:new" in found.expected
    assert "sha256:old" in found.received
    measured = candidate(*holder.evidence, metrics(dataset="sha256:new", accuracy=0.5), reference="digits/1")
    assert judge(subject, policy, measured).passed


def test_a_missing_metric_of_either_side_is_a_refusal() -> None:
    policy = GateSettings(max_regression={"accuracy": 0.0})
    with_metric, without = metrics(accuracy=0.9), metrics(loss=0.1)
    for mine, theirs, missing in ((without, with_metric, "digits/2"), (with_metric, without, "digits/1")):
        holder = candidate(theirs, reference="digits/1")
        found = verdict(judge(candidate(equivalence(), mine), policy, holder), "max_regression.accuracy")
        assert not found.passed
        assert missing in found.expected
        assert "there are `loss`" in found.received


def test_a_rollback_is_not_held_up_by_metrics_but_by_bytes_and_equivalence() -> None:
    assert evaluate_rollback(candidate(equivalence()), alias="champion", bytes_problem=None).passed
    assert not evaluate_rollback(candidate(), alias="champion", bytes_problem=None).passed
    assert not evaluate_rollback(candidate(equivalence()), alias="champion", bytes_problem="gone").passed


def test_a_report_survives_json() -> None:
    report = judge(candidate(metrics(accuracy=0.5)), GateSettings(min_metrics={"accuracy": 0.9}))
    assert GateReport.from_dict(report.to_dict()) == report
    with pytest.raises(IntegrityError):
        GateReport.from_dict({"reference": "digits/1"})


@pytest.mark.parametrize("kept", ["pickle", "safetensors"])
def test_a_version_that_nobody_can_run_is_refused_unless_the_policy_allows_it(kept: str) -> None:
    subject = Candidate(reference="old/1", native=kept, formats={kept: NATIVE}, evidence=())
    report = judge(subject)
    assert not report.passed
    assert "never loaded" in verdict(report, "runnable").received
    assert "allow_kept = true" in str(verdict(report, "runnable").remedy)
    assert not judge(subject, GateSettings()).passed
    assert judge(subject, GateSettings(allow_kept=True)).passed
    assert not judge(subject, GateSettings(allow_kept=True, aliases=("shadow",))).passed
    assert judge(candidate(formats={"torch": NATIVE})).passed
    assert evaluate_rollback(subject, alias="champion", bytes_problem=None).passed
