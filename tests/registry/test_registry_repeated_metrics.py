from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from noa.errors import GateRefusedError, InvalidInputError
from noa.settings import GateSettings, RegistrySettings, Settings
from noa_registry import Evidence, Registry, RuleVerdict, metrics_evidence
from noa_registry.evidence import (
    BatchLatency,
    CalibrationEvidence,
    Hardware,
    LatencyEvidence,
    MetricsEvidence,
    ReliabilityBin,
    SliceMetrics,
)
from noa_registry.gates import Candidate, GateInput, evaluate

ONNX, ROWS = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def fact(dataset: str = ROWS, slices: dict[str, float] | None = None, **values: float) -> Evidence:
    parts = {name: SliceMetrics(rows=10, metrics={"accuracy": value}) for name, value in (slices or {}).items()}
    measured = MetricsEvidence(
        subject="onnx", digest=ONNX, dataset_digest=dataset, split="test", metrics=values, slices=parts
    )
    return measured.to_evidence()


def side(*evidence: Evidence, number: int = 2) -> Candidate:
    return Candidate(reference=f"digits/{number}", native="onnx", formats={"onnx": ONNX}, evidence=evidence)


def verdict(policy: GateSettings, rule: str, candidate: Candidate, holder: Candidate | None = None) -> RuleVerdict:
    report = evaluate(GateInput(candidate=candidate, alias="champion", policy=policy, holder=holder))
    return next(entry for entry in report.verdicts if entry.rule == rule)


def test_a_better_number_that_is_attached_later_gets_nothing_past_a_gate(
    sqlite_settings: RegistrySettings, make_formats: Callable[[int], Any]
) -> None:
    settings = Settings(registry=sqlite_settings, gates={"digits": GateSettings(min_metrics={"accuracy": 0.5})})
    formats = make_formats(2)
    with Registry.open(settings) as registry:
        low = formats.metrics(accuracy=0.3)
        registry.register(formats.draft(evidence=(formats.equivalence(), low)), actor="ada")
        with pytest.raises(GateRefusedError):
            registry.promote("digits", 1, reason="low", actor="ada")
        better = metrics_evidence(
            format=low.subject,
            digest=low.digest,
            dataset_digest=str(low.values["dataset_digest"]),
            split="test",
            values={"accuracy": 0.99},
        )
        registry.attach("digits", 1, better)
        with pytest.raises(GateRefusedError, match=r"0\.3, the smallest of 2 measurements: 0\.3 of .*, 0\.99 of "):
            registry.promote("digits", 1, reason="lie", actor="ada")


@pytest.mark.parametrize("order", [1, -1])
def test_the_worst_of_several_counts_by_the_direction_of_each_metric(order: int) -> None:
    facts = [fact(accuracy=0.95, loss=0.5), fact(accuracy=0.6, loss=0.1)][::order]
    policy = GateSettings(min_metrics={"accuracy": 0.9}, max_metrics={"loss": 0.3})
    for rule, received in (("min_metrics.accuracy", "0.6, the smallest of 2"), ("max_metrics.loss", "0.5, the larg")):
        found = verdict(policy, rule, side(*facts))
        assert not found.passed
        assert found.received.startswith(received)
        assert len(found.to_dict()["measured"]["measurements"]) == 2  # pyright: ignore[reportIndexIssue, reportUnknownArgumentType]


def test_the_same_number_measured_again_is_not_worth_a_word() -> None:
    found = verdict(
        GateSettings(min_metrics={"accuracy": 0.9}), "min_metrics.accuracy", side(*[fact(accuracy=0.95)] * 3)
    )
    assert (found.passed, found.received, dict(found.measured)) == (True, "0.95", {})


def test_the_worst_of_all_test_rows_counts_and_names_them() -> None:
    other = "sha256:" + "3" * 64
    facts = (fact(accuracy=0.1, dataset=other), fact(accuracy=0.95))
    found = verdict(GateSettings(min_metrics={"accuracy": 0.9}), "min_metrics.accuracy", side(*facts))
    assert not found.passed
    assert f" on {other[:19]}" in found.received
    assert f" on {ROWS[:19]}" in found.received


def test_a_value_that_is_no_number_counts_before_all_others() -> None:
    facts = (fact(accuracy=float("nan")), fact(accuracy=0.95))
    assert not verdict(GateSettings(min_metrics={"accuracy": 0.9}), "min_metrics.accuracy", side(*facts)).passed


@pytest.mark.parametrize("name", ["a", "*"])
def test_the_worst_of_several_counts_in_slices_too(name: str) -> None:
    facts = (fact(accuracy=0.9, slices={"a": 0.2}), fact(accuracy=0.9, slices={"a": 0.99}), fact(accuracy=0.9))
    policy = GateSettings(slices={name: {"accuracy": 0.8}}, slice_regression={name: {"accuracy": 0.05}})
    holder = side(fact(accuracy=0.9, slices={"a": 0.9}), number=1)
    for rule in ("slices.a.accuracy", "slice_regression.a.accuracy"):
        found = verdict(policy, rule, side(*facts), holder)
        assert not found.passed
        assert "the smallest of 2 measurements" in found.received


def test_the_best_of_several_counts_for_the_version_that_is_to_be_replaced() -> None:
    policy = GateSettings(max_regression={"accuracy": 0.01, "loss": 0.1})
    holder = side(fact(accuracy=0.95, loss=0.2), fact(accuracy=0.1, loss=9.0), number=1)
    for rule in ("max_regression.accuracy", "max_regression.loss"):
        worse = verdict(policy, rule, side(fact(accuracy=0.9, loss=0.5)), holder)
        assert not worse.passed
        assert "of 2 measurements" in worse.expected
        assert verdict(policy, rule, side(fact(accuracy=0.95, loss=0.2)), holder).passed


@pytest.mark.parametrize(("name", "value"), [("accuracy", 1e308), ("f1", 1.2), ("recall", -0.1), ("roc_auc", 97.0)])
def test_a_value_that_no_such_metric_can_have_is_no_fact(
    name: str, value: float, sqlite_settings: RegistrySettings, make_formats: Callable[[int], Any]
) -> None:
    with pytest.raises(InvalidInputError, match=f"`{name}` cannot have this value"):
        metrics_evidence(format="onnx", digest=ONNX, dataset_digest=ROWS, split="test", values={name: value})
    with pytest.raises(InvalidInputError, match="of slice `a`"):
        fact(slices={"a": 3.0})
    formats = make_formats(2)
    by_hand = Evidence(
        kind="metrics",
        subject="onnx",
        digest=formats.digest("onnx"),
        values={"dataset_digest": ROWS, "split": "test", "metrics": {name: value}},
    )
    with Registry.open(sqlite_settings) as registry:
        registry.register(formats.draft(), actor="ada")
        with pytest.raises(InvalidInputError, match="cannot have this value"):
            registry.attach("digits", 1, by_hand)


def test_a_project_s_own_rule_sees_the_values_by_which_the_gate_judges(tmp_path: Path) -> None:
    (tmp_path / "policy.py").write_text(
        "from noa_registry import RuleVerdict\n"
        "def check(view):\n"
        "    seen = f'{dict(view.metrics)} {dict(view.holder_metrics)}'\n"
        "    return RuleVerdict(rule='seen', passed=True, expected='', received=seen)\n"
    )
    policy = GateSettings(check=f"{tmp_path / 'policy.py'}:check")
    candidate = side(fact(accuracy=0.3, loss=0.5, score=1.0), fact(accuracy=0.99, loss=0.1, score=7.0))
    holder = side(fact(accuracy=0.9, loss=0.2), fact(accuracy=0.1, loss=0.9), number=1)
    found = verdict(policy, "check.seen", candidate, holder)
    assert found.received == "{'accuracy': 0.3, 'loss': 0.5, 'score': 1.0} {'accuracy': 0.9, 'loss': 0.2}"


def again(formats: Any, **values: float) -> Evidence:
    first = formats.metrics(**values)
    return metrics_evidence(
        format=first.subject,
        digest=first.digest,
        dataset_digest=str(first.values["dataset_digest"]),
        split="test",
        values=values,
    )


def test_a_comparison_and_a_card_show_the_value_that_the_gate_judges(
    sqlite_settings: RegistrySettings, make_formats: Callable[[int], Any]
) -> None:
    settings = Settings(registry=sqlite_settings, gates={"digits": GateSettings(directions={"rank": "lower"})})
    with Registry.open(settings) as registry:
        for seed in (1, 2):
            formats = make_formats(seed)
            low = formats.metrics(accuracy=0.3, rank=9.0)
            registry.register(formats.draft(evidence=(formats.equivalence(), low)), actor="ada")
            registry.attach("digits", seed, again(formats, accuracy=0.99, rank=1.0))
        found = registry.compare("digits/1", "digits/2")
        assert {entry.metric: (entry.a, entry.b) for entry in found.metrics} == {
            "accuracy": (0.99, 0.3),
            "rank": (1.0, 9.0),
        }
        assert [entry.difference for entry in found.metrics] == [0.3 - 0.99, 8.0]
        remarks = "; ".join(found.notes)
        assert "`accuracy` of `digits/1` is 0.99, the largest of 2 measurements: 0.3 of " in remarks
        assert "`accuracy` of `digits/2` is 0.3, the smallest of 2 measurements: 0.3 of " in remarks
        text = registry.card("digits/2").to_markdown()
    assert "accuracy (onnx on test) is 0.3, the smallest of 2 measurements" in text.replace("\\", "")
    assert "rank (onnx on test) is 9, the largest of 2 measurements" in text.replace("\\", "")
    assert text.count("| onnx | test |") == 1


def test_a_comparison_and_a_card_show_the_worst_calibration_latency_and_equivalence(
    sqlite_settings: RegistrySettings, make_formats: Callable[[int], Any]
) -> None:
    formats = make_formats(1)
    digest = formats.digest("onnx")

    def calibration(ece: float) -> Evidence:
        bins = (ReliabilityBin(lower=0, upper=1, rows=5, confidence=0.5, accuracy=0.5),)
        return CalibrationEvidence(
            subject="onnx",
            digest=digest,
            dataset_digest=ROWS,
            split="test",
            rows=5,
            binning="1 bin",
            ece=ece,
            brier=0.1,
            bins=bins,
        ).to_evidence()

    def latency(batch: int, p50: float) -> Evidence:
        machine = Hardware(cpu="c", cores=1, threads=1, runtime="r", load=p50)
        row = BatchLatency(batch=batch, runs=9, p50_ms=p50, p99_ms=p50)
        return LatencyEvidence(subject="onnx", digest=digest, hardware=machine, batches=(row,)).to_evidence()

    with Registry.open(sqlite_settings) as registry:
        facts = (formats.equivalence(passed=False), calibration(0.4), latency(1, 8.0), latency(32, 16.0))
        registry.register(formats.draft(evidence=(*facts, formats.metrics(dataset=ROWS))), actor="ada")
        registry.attach("digits", 1, (formats.equivalence(), calibration(0.01), latency(1, 0.5)))
        found = registry.compare("digits/1", "digits/1").b
        assert found.calibration is not None
        assert found.latency is not None
        assert found.calibration.ece == 0.4
        assert [(row.batch, row.p50_ms) for row in found.latency.batches] == [(1, 8.0), (32, 16.0)]
        text = registry.card("digits/1").to_markdown()
    assert "0.4000" in text
    assert "0.0100" not in text
    assert "8 ms" in text
    assert "0.5 ms" not in text
    assert "| onnx | torch | failed |" in text
    assert "The format onnx was not shown to compute what the native one computes" in text
