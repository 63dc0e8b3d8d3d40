"""Metrics say by themselves on which rows they were measured: what a gate makes of a digest that nobody knows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gate_kit import ONNX, candidate, judge, logits_that_are_right, measured, verdict
from noa.settings import GateSettings, RegistrySettings
from noa_registry import Attachment, GateReport, Registry, metrics_evidence
from noa_registry.gates import Candidate
from noa_registry.gates.known_policy import policy_digest

if TYPE_CHECKING:
    from tests.registry.conftest import Formats

TARGETS = np.arange(30) % 3
KNOWN, INVENTED = "sha256:" + "a" * 64, "sha256:" + "b" * 64
LEAST = GateSettings(min_metrics={"accuracy": 0.9})


def claimed(dataset: str, **values: float) -> Candidate:
    fact = metrics_evidence(format="onnx", digest=ONNX, dataset_digest=dataset, split="test", values=values)
    return candidate(fact)


def really_measured(dataset: str, reference: str = "digits/1") -> Candidate:
    logits = logits_that_are_right(TARGETS, np.ones(30, bool))
    return candidate(*measured(logits, TARGETS, dataset=dataset), reference=reference)


def test_metrics_on_rows_that_nobody_knows_pass_with_a_warning_that_names_them() -> None:
    report = judge(claimed(INVENTED, accuracy=1.0), LEAST)
    assert report.passed
    (warning,) = report.warnings
    assert (warning.rule, warning.state) == ("dataset", "warning")
    assert INVENTED in (warning.warning or "")
    assert GateReport.from_dict(report.to_dict()) == report


def test_rows_are_known_by_kept_predictions_the_versions_own_data_or_the_holder() -> None:
    for subject, holder in (
        (really_measured(KNOWN, "digits/2"), None),
        (replace(claimed(KNOWN, accuracy=1.0), dataset_digest=KNOWN), None),
        (claimed(KNOWN, accuracy=1.0), really_measured(KNOWN)),
    ):
        assert judge(subject, LEAST, holder).warnings == ()
        assert judge(subject, LEAST.model_copy(update={"known_dataset": True}), holder).passed
    assert judge(claimed(INVENTED, accuracy=1.0), LEAST, really_measured(KNOWN)).warnings


def test_predictions_of_other_rows_than_the_record_says_explain_nothing() -> None:
    """The digest is the holder's, the rows were made up: other targets, or another number than the metrics name."""
    right = np.ones(30, bool)
    holder = really_measured(KNOWN)
    other = (TARGETS + 1) % 3
    made_up = candidate(*measured(logits_that_are_right(other, right), other, dataset=KNOWN))
    metrics, _ = measured(logits_that_are_right(TARGETS, right), TARGETS, dataset=KNOWN)
    _, fewer = measured(logits_that_are_right(TARGETS[:9], right[:9]), TARGETS[:9], dataset=KNOWN)
    for subject, said in ((made_up, "the same targets"), (candidate(metrics, fewer), "for the 30 rows that")):
        for policy in (LEAST, LEAST.model_copy(update={"known_dataset": True, "datasets": (KNOWN,)})):
            refused = verdict(judge(subject, policy, holder), "dataset")
            assert (refused.state, said in refused.expected) == ("refused", True), refused
    assert judge(really_measured(KNOWN, "digits/2"), LEAST, holder).passed


def test_rules_about_rows_that_the_gate_does_not_name_say_which_count() -> None:
    policy = GateSettings(min_metrics={"accuracy": 0.9}, slices={"odd": {"accuracy": 0.9}}, datasets=(INVENTED,))
    report = judge(really_measured(KNOWN, "digits/2"), policy)
    for rule in ("min_metrics.accuracy", "slices.odd.accuracy"):
        found = verdict(report, rule)
        assert not found.passed
        assert "on the rows that the gate's `datasets` names" in found.received
        assert found.remedy == "Measure it on these rows, or correct `datasets` in the gate"
    nothing = verdict(judge(candidate(), policy), "min_metrics.accuracy")
    assert nothing.received == "no test metrics of these bytes"


def test_predictions_that_cannot_be_read_explain_nothing() -> None:
    (metrics, predictions) = measured(logits_that_are_right(TARGETS, np.ones(30, bool)), TARGETS, dataset=KNOWN)
    lie = Attachment(media_type="application/octet-stream", content=b"nothing")
    empty = replace(predictions, values={**predictions.values, "attachment": lie.digest}, attachments=(lie,))
    unheard = replace(metrics, values={**metrics.values, "metrics": {"oddness": 1.0}})
    policy = GateSettings(min_metrics={"oddness": 0.9}, known_dataset=True)  # a metric that nobody can compute anew
    refused = verdict(judge(candidate(unheard, empty), policy), "dataset")
    assert (refused.state, refused.received.startswith("nothing")) == ("refused", False)


def test_a_policy_can_refuse_rows_that_nobody_knows() -> None:
    policy = LEAST.model_copy(update={"known_dataset": True})
    refused = verdict(judge(claimed(INVENTED, accuracy=1.0), policy), "dataset")
    assert (refused.state, refused.warning) == ("refused", None)
    assert INVENTED in refused.received


def test_a_policy_can_name_the_rows_that_count_and_newer_ones_do_not_stand_before_them() -> None:
    policy = LEAST.model_copy(update={"datasets": (KNOWN,)})
    refused = judge(claimed(INVENTED, accuracy=1.0), policy)
    assert {entry.rule for entry in refused.refusals} == {"dataset", "min_metrics.accuracy"}
    assert verdict(refused, "dataset").received == f"measured on {INVENTED} only"
    good, made_up = really_measured(KNOWN, "digits/2"), claimed(INVENTED, accuracy=0.1)
    both = replace(good, evidence=(*good.evidence, *made_up.evidence[1:]))
    assert judge(both, policy).passed
    assert not judge(both, LEAST).passed


def with_claim(side: Candidate, *facts: Candidate) -> Candidate:
    return replace(side, evidence=(*side.evidence, *(one for fact in facts for one in fact.evidence[1:])))


def of_right(share: int, dataset: str = KNOWN, reference: str = "digits/1") -> Candidate:
    logits = logits_that_are_right(TARGETS, np.arange(30) < share)
    return candidate(*measured(logits, TARGETS, dataset=dataset), reference=reference)


WORSE = GateSettings(max_regression={"accuracy": 0.01})
SURE = WORSE.model_copy(update={"confidence": 0.95, "resamples": 100})


@pytest.mark.parametrize("policy", [WORSE, SURE, WORSE.model_copy(update={"slice_regression": {"*": {"accuracy": 0}}})])
def test_made_up_rows_that_both_share_hide_no_rows_on_which_the_version_is_worse(policy: GateSettings) -> None:
    holder = with_claim(of_right(30), claimed(INVENTED, accuracy=0.5))
    worse = with_claim(of_right(28, reference="digits/2"), claimed(INVENTED, accuracy=0.999))
    refused = verdict(judge(worse, policy, holder), "max_regression.accuracy")
    assert not refused.passed
    assert refused.measured["dataset_digest"] == KNOWN
    if policy.confidence is None:
        assert judge(with_claim(of_right(30, reference="digits/2"), claimed(INVENTED, accuracy=0.999)), policy, holder)


def test_where_known_rows_are_not_shared_shared_unknown_ones_stand_in_for_nothing() -> None:
    holder = with_claim(of_right(30, dataset="sha256:" + "c" * 64), claimed(INVENTED, accuracy=0.5))
    worse = with_claim(of_right(28, reference="digits/2"), claimed(INVENTED, accuracy=0.999))
    refused = verdict(judge(worse, WORSE, holder), "max_regression.accuracy")
    assert (refused.passed, KNOWN in refused.expected) == (False, True)
    named = WORSE.model_copy(update={"datasets": (INVENTED,)})
    assert judge(worse, named, holder).passed


def test_shared_rows_on_which_the_version_is_worse_refuse_beside_better_known_ones() -> None:
    for digest in (INVENTED, "sha256:" + "0" * 64):
        holder = with_claim(of_right(28), claimed(digest, accuracy=0.9))
        better = with_claim(of_right(30, reference="digits/2"), claimed(digest, accuracy=0.8))
        refused = verdict(judge(better, WORSE, holder), "max_regression.accuracy")
        assert (refused.passed, refused.measured["dataset_digest"]) == (False, digest)
        better = with_claim(of_right(30, reference="digits/2"), claimed(digest, accuracy=0.95))
        assert judge(better, WORSE, holder).passed


def test_a_metric_on_unknown_rows_only_meets_no_limit_of_a_version_with_known_ones() -> None:
    subject = with_claim(of_right(30, reference="digits/2"), claimed(INVENTED, accuracy=1.0, oddness=1.0))
    policy = GateSettings(min_metrics={"oddness": 0.9})
    refused = verdict(judge(subject, policy), "min_metrics.oddness")
    assert (refused.passed, INVENTED in refused.received, KNOWN in refused.received) == (False, True, True)
    assert judge(claimed(INVENTED, oddness=1.0), policy).passed


@pytest.mark.parametrize("policy", [GateSettings(), GateSettings(max_size_bytes=5000)])
def test_nothing_is_said_of_rows_where_no_metric_is_judged(policy: GateSettings) -> None:
    assert judge(claimed(INVENTED, accuracy=1.0), policy.model_copy(update={"known_dataset": True})).passed


def test_a_metric_whose_direction_nobody_knows_is_refused_until_somebody_says_it() -> None:
    better, worse = claimed(KNOWN, oddness=0.1), replace(claimed(KNOWN, oddness=0.2), reference="digits/1")
    policy = GateSettings(max_regression={"oddness": 0.0})
    refused = verdict(judge(better, policy, worse), "max_regression.oddness")
    assert not refused.passed
    assert 'directions = { "oddness" = "higher" }' in (refused.remedy or "")
    for direction, passed in (("lower", True), ("higher", False)):
        told = GateSettings.model_validate({"max_regression": {"oddness": 0.0}, "directions": {"oddness": direction}})
        assert judge(better, told, worse).passed is passed


@pytest.mark.parametrize("metric", ["logloss", "wer", "rmse", "cross_entropy"])
def test_the_fields_names_of_losses_are_known(metric: str) -> None:
    better, worse = claimed(KNOWN, **{metric: 0.1}), replace(claimed(KNOWN, **{metric: 0.2}), reference="digits/1")
    policy = GateSettings(max_regression={metric: 0.0})
    assert judge(better, policy, worse).passed
    assert not judge(replace(worse, reference="digits/2"), policy, replace(better, reference="digits/1")).passed


def test_settings_that_are_not_used_leave_the_digest_of_a_policy_as_it_was() -> None:
    without = "sha256:10cf6dacae3aa9fa83cb51e767d6298da72f00f7b92610b688b1ee41eec1f4d1"  # of the noa before they were
    assert policy_digest(GateSettings(), "champion") == without
    assert policy_digest(GateSettings(known_dataset=True), "champion") != policy_digest(GateSettings(), "champion")


def test_the_registry_names_live_versions_that_were_judged_on_unknown_rows(
    settings: RegistrySettings, formats: Formats
) -> None:
    gates = {"digits": LEAST.model_copy(update={"aliases": ("champion",)})}
    with Registry.open(settings, gates=gates) as registry:
        for dataset in (formats.draft().dataset_digest, INVENTED):
            registry.register(
                formats.draft(evidence=(formats.equivalence(), formats.metrics(dataset=dataset, accuracy=1.0))),
                actor="ada",
            )
        registry.promote("digits", 1, reason="first", actor="ada")
        registry.promote("digits", 2, alias="shadow", reason="to look at", actor="ada")
        assert registry.gate_warnings() == []  # known rows, and an alias that no gate guards
        registry.promote("digits", 2, reason="too good to be true", actor="eve")
        (report,) = registry.gate_warnings()
        assert (report.reference, report.alias) == ("digits/2", "champion")
        assert INVENTED in (report.warnings[0].warning or "")
        (stored,) = GateReport.from_dict(registry.history("digits")[0].verdict).warnings
        assert stored == report.warnings[0]
