"""Every version that a pipeline registers has its latency and size, whichever goes live, and one name stands at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from flows_helpers import make_project

from noa.settings import GateSettings, Settings
from noa_flows import PipelineResult, check_gate, measure_version, run_pipeline
from noa_registry import Evidence, LatencyEvidence, Registry

pytestmark = [pytest.mark.torch, pytest.mark.jax]
ACTOR = "flow tiny-20300101 by ada"
LIMITS = GateSettings(max_latency_ms={"p50": 60_000.0, "p99@32": 60_000.0, "p99@3": 60_000.0}, max_size_bytes=1 << 30)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, add_empty_registry: Callable[[Path], None]) -> Settings:
    root = tmp_path_factory.mktemp("latency-evidence") / "project"
    add_empty_registry(root)
    return make_project(root).model_copy(update={"gates": {"tiny": LIMITS}})


@pytest.fixture(scope="module")
def live(project: Settings) -> PipelineResult:
    return run_pipeline(project, "tiny", backends=("torch", "jax"), promote=True, actor=ACTOR)


def facts_of(project: Settings, number: int) -> list[Evidence]:
    with Registry.open(project) as registry:
        return registry.evidence("tiny", number)


def test_the_runner_up_is_measured_too_and_passes_the_gate(live: PipelineResult, project: Settings) -> None:
    assert len(live.candidates) == 2
    for candidate in live.candidates:
        number = candidate.version.number
        facts = facts_of(project, number)
        kinds = Counter(fact.kind for fact in facts)
        assert kinds["size"] == 1
        latency = LatencyEvidence.from_evidence(next(fact for fact in facts if fact.kind == "latency"))
        assert [row.batch for row in latency.batches] == [1, 3, 32]
        with Registry.open(project) as registry:
            assert registry.check("tiny", number, record=False).passed


def test_all_that_a_run_writes_bears_one_name(live: PipelineResult, project: Settings) -> None:
    del live
    again = run_pipeline(project, "tiny", backends=("torch",), seed=2, promote=True, actor=ACTOR)
    written = [
        (fact.kind, fact.recording.by)
        for fact in facts_of(project, again.best.version.number)
        if fact.recording is not None
    ]
    assert {kind for kind, _ in written} >= {"metrics", "predictions", "compatibility", "latency", "size", "gate"}
    assert {by for _, by in written} == {ACTOR}
    with Registry.open(project) as registry:
        events = registry.events.newest(limit=100)
    told = {str(event.payload["actor"]) for event in events if event.kind == "evidence.attached"}
    assert ACTOR in told
    assert told <= {ACTOR, "ada"}  # whom the other tests here name


def test_a_registered_version_can_be_measured_again(live: PipelineResult, project: Settings) -> None:
    version = live.candidates[1].version
    before = Counter(fact.kind for fact in facts_of(project, version.number))
    with Registry.open(project) as registry:
        found = measure_version(registry, project, version, batches=(2,), seconds=0.2, actor="ada")
    facts = facts_of(project, version.number)
    assert LatencyEvidence.from_evidence(facts[-1]) == found
    assert [row.batch for row in found.batches] == [2]
    assert facts[-1].recording is not None
    assert facts[-1].recording.by == "ada"
    assert Counter(fact.kind for fact in facts) - before == Counter(latency=1)  # its size is known


def test_what_too_few_runs_say_is_measured_anew_before_a_gate_judges(live: PipelineResult, project: Settings) -> None:
    version = live.best.version
    asked = GateSettings(max_latency_ms={"p99@5": 60_000.0})
    settings = project.model_copy(update={"gates": {"tiny": asked}})
    with Registry.open(project) as registry:
        known = LatencyEvidence.from_evidence(
            next(fact for fact in registry.evidence("tiny", version.number) if fact.kind == "latency")
        )
        few = replace(known.batches[0], batch=5, runs=38, p99_ms=90_000.0, max_ms=90_000.0)
        registry.attach("tiny", version.number, replace(known, batches=(few,)).to_evidence(), actor="ada")
    for _ in range(2):
        assert check_gate(settings, live.best, "champion", actor=ACTOR).passed
    measured = [
        row.runs
        for fact in facts_of(project, version.number)
        if fact.kind == "latency"
        for row in LatencyEvidence.from_evidence(fact).batches
        if row.batch == 5
    ]
    assert measured[0] == 38
    assert len(measured) == 2
    assert measured[1] >= 299
