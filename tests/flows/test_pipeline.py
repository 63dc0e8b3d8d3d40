from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flows_helpers import make_project

from noa.errors import ConflictError, GateRefusedError, InvalidInputError, NotFoundError, RecipeError, TrainingError
from noa.settings import GateSettings, Settings, SigningSettings
from noa_flows import (
    PipelineEvent,
    PipelineResult,
    check_gate,
    find_holder,
    plan_pipeline,
    promote_best,
    run_pipeline,
    train_job,
)
from noa_flows._test_data import load_test_data
from noa_flows.pipeline import pipeline_lock
from noa_registry import Registry
from noa_training import JobEvent

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, add_empty_registry: Callable[[Path], None]) -> Settings:
    root = tmp_path_factory.mktemp("pipeline") / "project"
    add_empty_registry(root)
    return make_project(root)


@pytest.fixture(scope="module")
def events() -> list[PipelineEvent]:
    return []


@pytest.fixture(scope="module")
def champion(project: Settings, events: list[PipelineEvent]) -> Iterator[PipelineResult]:
    """The result of one pipeline that put `tiny/1` live."""
    yield run_pipeline(project, "tiny", promote=True, on_event=events.append, actor="tester")


def _strict(project: Settings, **gate: dict[str, float]) -> Settings:
    return project.model_copy(update={"gates": {"tiny": GateSettings.model_validate(gate)}})


def test_a_pipeline_registers_a_version_with_evidence_of_both_formats(
    champion: PipelineResult, project: Settings
) -> None:
    version = champion.best.version
    assert set(version.formats) == {"torch", "onnx"}
    assert {"python", "torch", "onnxruntime", "numpy"} <= set(version.environment)
    with Registry.open(project.registry) as registry:
        facts = {(fact.kind, fact.subject) for fact in registry.evidence("tiny", version.number)}
        assert {("metrics", "torch"), ("metrics", "onnx"), ("equivalence", "onnx")} <= facts


def test_promotion_is_in_the_ledger_with_its_reason(champion: PipelineResult, project: Settings) -> None:
    with Registry.open(project.registry) as registry:
        entry = registry.history("tiny", alias="champion")[-1]
    assert (entry.actor, entry.to_number) == ("tester", champion.best.version.number)
    assert "accuracy" in entry.reason


def test_every_step_reports_its_beginning_and_end(champion: PipelineResult, events: list[PipelineEvent]) -> None:
    del champion
    for step in ("train", "evaluate", "convert", "verify", "register", "gate", "promote", "deploy"):
        phases = [event.phase for event in events if event.step == step and event.phase != "progress"]
        assert phases == ["started", "done"], step
    assert any(event.job is not None and event.job.kind == "epoch" for event in events)


def test_a_gate_that_cannot_be_met_leaves_the_champion_untouched(champion: PipelineResult, project: Settings) -> None:
    before = find_holder(project, "tiny", "champion")
    settings = _strict(project, min_metrics={"accuracy": 2.0})
    with pytest.raises(GateRefusedError, match=r"accuracy.*expected at least 2"):
        check_gate(settings, champion.best, "champion")
    with pytest.raises(GateRefusedError, match=r"accuracy.*expected at least 2"):
        promote_best(settings, champion.best, "second", expect=None, reason="try", actor="tester")
    assert find_holder(project, "tiny", "champion") == before == champion.best.version.number
    assert find_holder(project, "tiny", "second") is None


def test_the_holder_is_measured_on_new_data_before_it_is_compared(champion: PipelineResult, project: Settings) -> None:
    settings = _strict(project, max_regression={"accuracy": 1.0})
    result = run_pipeline(settings, "tiny", overrides={"data.rows": 120}, promote=False)
    assert result.promotion is None
    report = check_gate(settings, result.best, "champion")
    rule = next(verdict for verdict in report.verdicts if verdict.rule == "max_regression.accuracy")
    assert rule.passed
    with Registry.open(project.registry) as registry:
        digests = {
            fact.values.get("dataset_digest") for fact in registry.evidence("tiny", champion.best.version.number)
        }
    assert load_test_data(result.best.job).digest in digests


def test_a_job_that_finished_but_was_never_registered_is_not_trained_again(
    champion: PipelineResult, project: Settings
) -> None:
    """As after a kill between training and registration."""
    del champion
    request = plan_pipeline(project, "tiny", seed=7).requests[0]
    first = train_job(request, project, on_event=lambda event: None)
    heard: list[PipelineEvent] = []
    result = run_pipeline(project, "tiny", seed=7, on_event=heard.append)
    assert result.best.job.folder == first.folder
    assert [event.job.kind for event in heard if event.job is not None] == ["warning"]
    again = train_job(request, project, on_event=lambda event: None)
    assert again.attempt == first.attempt + 1


def test_promotion_is_refused_if_another_holder_came_meanwhile(champion: PipelineResult, project: Settings) -> None:
    with pytest.raises(ConflictError, match="is not held by"):
        promote_best(project, champion.best, "champion", expect=999, reason="too late", actor="tester")


def test_what_cannot_work_is_refused_before_anything_starts(tmp_path: Path) -> None:
    settings = make_project(tmp_path)
    with pytest.raises(NotFoundError, match=r"no recipe `tinny`.*`tiny`"):
        run_pipeline(settings, "tinny")
    with pytest.raises(RecipeError, match="epoch"):
        run_pipeline(settings, "tiny", overrides={"epochs": 0})
    recipes = {"tiny": settings.recipes["tiny"].model_copy(update={"primary_metric": "f1"})}
    with pytest.raises(InvalidInputError, match="primary metric `f1`"):
        run_pipeline(settings.model_copy(update={"recipes": recipes}), "tiny", promote=True)
    assert not (tmp_path / ".noa").exists()


def test_a_recipe_can_be_named_by_its_file(tmp_path: Path) -> None:
    assert plan_pipeline(make_project(tmp_path), "recipe.py").model == "tiny"


def test_two_pipelines_of_one_model_do_not_run_at_once(tmp_path: Path) -> None:
    settings = make_project(tmp_path)
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path), held, release))
    process.start()
    try:
        assert held.wait(60)
        with pytest.raises(ConflictError, match=rf"already under way in process {process.pid}"):
            run_pipeline(settings, "tiny", promote=True)
    finally:
        release.set()
        process.join(20)
    with pipeline_lock(settings, "tiny"):
        pass


def _hold(folder: str, held: threading.Event, release: threading.Event) -> None:
    with pipeline_lock(make_project(Path(folder)), "tiny"):
        held.set()
        release.wait(60)


def test_a_cancelled_job_stops_and_keeps_its_checkpoint(tiny_project: Settings) -> None:
    settings = tiny_project
    request = plan_pipeline(settings, "tiny", overrides={"epochs": 1_000_000}).requests[0]
    cancel = threading.Event()
    heard: list[JobEvent] = []

    def hear(event: JobEvent) -> None:
        heard.append(event)
        if event.kind == "checkpoint":
            cancel.set()

    with pytest.raises(TrainingError, match="cancelled"):
        train_job(request, settings, on_event=hear, cancel=cancel)
    folder = Path(next(event for event in heard if event.kind == "started").folder)  # type: ignore[union-attr]
    assert list((folder / "checkpoints").iterdir())


def test_an_error_of_the_child_arrives_as_it_was(tiny_project: Settings) -> None:
    settings, recipe = tiny_project, tiny_project.root / "recipe.py"
    request = plan_pipeline(settings, "tiny").requests[0]
    recipe.write_text(recipe.read_text().replace("return Dataset", "1 / 0 #"))
    with pytest.raises(RecipeError, match="ZeroDivisionError") as caught:
        train_job(request, settings, on_event=lambda event: None)
    assert "recipe.py:" in str(caught.value.where)


def test_a_key_that_cannot_sign_is_found_before_training(project: Settings, tmp_path: Path) -> None:
    signing = SigningSettings(private_key=tmp_path / "missing.pem")
    registry = project.registry.model_copy(update={"signing": signing})
    told: list[PipelineEvent] = []
    with pytest.raises(InvalidInputError, match=r"missing\.pem"):
        run_pipeline(project.model_copy(update={"registry": registry}), "tiny", on_event=told.append)
    assert told == []
