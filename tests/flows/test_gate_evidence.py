"""What the pipeline measures for gates, and that a worse challenger does not get through it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from flows_helpers import make_project

from noa.errors import GateRefusedError
from noa.settings import GateSettings, Settings
from noa_flows import PipelineResult, check_gate, find_holder, promote_best, run_pipeline
from noa_flows._test_data import load_test_data
from noa_registry import CompatibilityEvidence, LatencyEvidence, MetricsEvidence, PredictionsEvidence, Registry

pytestmark = pytest.mark.torch
CONFIDENT = {"max_regression": {"accuracy": 0.02}, "slice_regression": {"*": {"accuracy": 0.3}}, "confidence": 0.95}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, add_empty_registry: Callable[[Path], None]) -> Settings:
    root = tmp_path_factory.mktemp("gate-evidence") / "project"
    add_empty_registry(root)
    return make_project(root)


@pytest.fixture(scope="module")
def champion(project: Settings) -> PipelineResult:
    return run_pipeline(project, "tiny", promote=True, actor="tester")


@pytest.fixture(scope="module")
def worse(project: Settings, champion: PipelineResult) -> PipelineResult:
    """A model that has hardly learned anything, and has seen other rows."""
    del champion
    overrides = {"data.rows": 300, "epochs": 1, "optimizer.learning_rate": 1e-6}
    return run_pipeline(project, "tiny", overrides=overrides, seed=3)


def gated(project: Settings, **gate: object) -> Settings:
    return project.model_copy(update={"gates": {"tiny": GateSettings.model_validate(gate)}})


def test_a_registered_version_carries_all_that_was_measured(champion: PipelineResult, project: Settings) -> None:
    version = champion.best.version
    with Registry.open(project.registry) as registry:
        facts = registry.evidence("tiny", version.number)[:7]  # what came later is from judging others
        kinds = Counter((fact.kind, fact.subject) for fact in facts)
        assert kinds == Counter(
            {
                ("metrics", "torch"): 1,
                ("metrics", "onnx"): 1,
                ("predictions", "onnx"): 1,
                ("calibration", "onnx"): 1,
                ("latency", "onnx"): 1,
                ("size", "onnx"): 1,
                ("equivalence", "onnx"): 1,
            }
        )
        by_kind = {fact.kind: fact for fact in facts if fact.subject == "onnx"}
        assert {fact.digest for fact in by_kind.values()} == {version.formats["onnx"].digest}
        described = PredictionsEvidence.from_evidence(by_kind["predictions"])
        assert registry.attachment(described.attachment).media_type.endswith("safetensors")
    test = load_test_data(champion.best.job)
    assert (described.dataset_digest, described.rows) == (test.digest, test.rows)
    metrics = MetricsEvidence.from_evidence(by_kind["metrics"])
    assert sorted(metrics.slices) == ["class=0", "class=1"]
    assert sum(part.rows for part in metrics.slices.values()) == test.rows


def test_a_worse_challenger_is_refused_by_the_pipelines_gate_and_by_promotion(
    champion: PipelineResult, worse: PipelineResult, project: Settings
) -> None:
    settings = gated(project, **CONFIDENT)
    holder = champion.best.version.number
    with pytest.raises(GateRefusedError, match=r"max_regression\.accuracy"):
        check_gate(settings, worse.best, "champion")
    with pytest.raises(GateRefusedError, match=r"max_regression\.accuracy"):
        promote_best(settings, worse.best, "champion", expect=holder, reason="try", actor="tester")
    assert find_holder(project, "tiny", "champion") == champion.best.version.number


def test_the_holder_is_measured_row_by_row_on_the_challengers_rows(
    champion: PipelineResult, worse: PipelineResult, project: Settings
) -> None:
    with pytest.raises(GateRefusedError):
        check_gate(gated(project, **CONFIDENT), worse.best, "champion")
    rows = load_test_data(worse.best.job).digest
    with Registry.open(project.registry) as registry:
        before = registry.evidence("tiny", champion.best.version.number)
        found = registry.compare("tiny@champion", worse.best.version.reference)
    measured = [fact.kind for fact in before if fact.values.get("dataset_digest") == rows]
    assert sorted(measured) == ["calibration", "metrics", "predictions"]
    assert found.same_rows
    assert {entry.metric: entry.verdict for entry in found.metrics}["accuracy"] == "worse"
    with pytest.raises(GateRefusedError):
        check_gate(gated(project, **CONFIDENT), worse.best, "champion")
    with Registry.open(project.registry) as registry:
        after = registry.evidence("tiny", champion.best.version.number)
    assert len(after) == len(before)  # what is known is not measured again


def test_compatibility_with_the_holder_and_latency_are_attached_where_the_gate_asks(
    champion: PipelineResult, worse: PipelineResult, project: Settings
) -> None:
    settings = gated(project, max_latency_ms={"p99@32": 60_000.0}, compatible=True, require=("compatibility",))
    assert check_gate(settings, worse.best, "champion").passed
    with Registry.open(project.registry) as registry:
        facts = registry.evidence("tiny", worse.best.version.number)
    compatibility = CompatibilityEvidence.from_evidence(
        next(fact for fact in reversed(facts) if fact.kind == "compatibility")
    )
    assert compatibility.level == "compatible"
    assert compatibility.holder == champion.best.version.reference
    latencies = [LatencyEvidence.from_evidence(fact) for fact in facts if fact.kind == "latency"]
    assert len(latencies) == 1  # once on this machine: the slowest counts, so a second one could only make it worse
    impossible = gated(project, max_latency_ms={"p50": 1e-9})
    with pytest.raises(GateRefusedError, match=r"max_latency_ms\.p50"):
        check_gate(impossible, worse.best, "champion")


def test_a_gate_has_the_batch_sizes_measured_that_it_asks_for(champion: PipelineResult, project: Settings) -> None:
    settings = gated(project, max_latency_ms={"p99@64": 60_000.0, "p50": 60_000.0})
    for _ in range(2):
        assert check_gate(settings, champion.best, "champion").passed
    with Registry.open(project.registry) as registry:
        facts = registry.evidence("tiny", champion.best.version.number)
    measured = [LatencyEvidence.from_evidence(fact) for fact in facts if fact.kind == "latency"]
    assert [[entry.batch for entry in latency.batches] for latency in measured] == [[1, 32], [64]]


def test_training_measures_the_batch_sizes_of_the_gate_without_promoting(project: Settings) -> None:
    settings = gated(project, max_latency_ms={"p99@3": 60_000.0})
    result = run_pipeline(settings, "tiny", overrides={"epochs": 1}, seed=5, actor="tester")
    number = result.best.version.number
    with Registry.open(project.registry, gates=settings.gates) as registry:
        latency = next(fact for fact in registry.evidence("tiny", number) if fact.kind == "latency")
        report = registry.check("tiny", number, alias="champion")
    assert [entry.batch for entry in LatencyEvidence.from_evidence(latency).batches] == [1, 3, 32]
    assert all(verdict.passed for verdict in report.verdicts if verdict.rule == "max_latency_ms.p99@3")


def test_measuring_takes_less_than_two_seconds(champion: PipelineResult, project: Settings) -> None:
    from time import process_time

    from noa_conversion import load_format, measure_performance
    from noa_training import measure, recipe_of

    version, job = champion.best.version, champion.best.job
    test, folder = load_test_data(job), version.formats["onnx"].folder
    begun = process_time()
    runnable = load_format("onnx", folder, threads=1)
    measure(recipe_of(job.request), runnable, test, subject="onnx", digest=version.formats["onnx"].digest)
    measure_performance("onnx", folder, test.head(32).inputs, threads=1)
    assert process_time() - begun < 2
