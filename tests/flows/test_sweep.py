"""Searches with real jobs: what is asked is checked first, trials are kept over any end, the best becomes a version."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from flows_helpers import make_project, wait_until

from noa.errors import (
    ConflictError,
    InvalidInputError,
    NoaError,
    NotFoundError,
    RecipeError,
    TrainingError,
)
from noa.settings import Settings, load_settings
from noa_flows.recipe_process import keep_recipe_processes
from noa_flows.sweep import (
    SWEEP,
    SweepEvent,
    SweepPlan,
    SweepReport,
    TrialView,
    plan_sweep,
    preview_trials,
    read_sweep,
    run_sweep,
    sweep_names,
)
from noa_flows.sweep.folder import sweep_folder
from noa_registry import Registry
from noa_training import read_state

RATE = {"optimizer.learning_rate": {"low": 1e-4, "high": 0.2, "log": True}}
HIDDEN = {"model.hidden": {"choices": [[4], [8], [16]]}}
SWEEPS = """
[sweeps.rates]
recipe = "tiny"
trials = 2
seed = 5
pruner = "none"
[sweeps.rates.space]
optimizer.learning_rate = { low = 1e-3, high = 0.2, log = true }
model.hidden = { choices = [[4], [8]] }
"""
CHILD = """
import json, sys
from pathlib import Path
from noa.settings import load_settings
from noa_flows.recipe_process import keep_recipe_processes
from noa_flows.sweep import plan_sweep, run_sweep

settings = load_settings(Path(sys.argv[1])).settings
asked = json.loads(sys.argv[2])
with keep_recipe_processes(settings.root):
    plan = plan_sweep(settings, "tiny", **asked)
    run_sweep(settings, plan, register=False, on_event=lambda event: print(event.kind, flush=True))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, add_empty_registry: Callable[[Path], None]) -> Iterator[Settings]:
    """A project with a search, whose recipe has one process for all tests."""
    root = tmp_path_factory.mktemp("sweep") / "project"
    add_empty_registry(root)
    make_project(root)
    with (root / "noa.toml").open("a") as file:
        file.write(SWEEPS)
    with keep_recipe_processes(root):
        yield load_settings(root).settings


@pytest.fixture
def own(tmp_path: Path, add_empty_registry: Callable[[Path], None]) -> Settings:
    add_empty_registry(tmp_path / "project")
    return make_project(tmp_path / "project")


def asked(space: dict[str, dict[str, object]], **changes: object) -> dict[str, object]:
    return {"space": space, "changes": {"pruner": "none", **changes}, "name": "try"}


def jobs_of(settings: Settings) -> list[Path]:
    return sorted(settings.training.jobs_dir.glob("tiny-*/attempt-*"))


def processes_in(root: Path) -> list[str]:
    """Return the command lines of all processes that stand in a project's folder."""
    found: list[str] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            try:
                if (folder / "cwd").readlink().is_relative_to(root):
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return found


def outcomes(report: SweepReport) -> list[object]:
    """What a search has come to, without times."""
    return [
        (one.number, one.state, one.backend, dict(one.overrides), one.value, dict(one.epochs)) for one in report.trials
    ]


@pytest.fixture(scope="module")
def planned(project: Settings) -> SweepPlan:
    return plan_sweep(project, "rates")


@pytest.fixture(scope="module")
def heard() -> list[SweepEvent]:
    return []


@pytest.fixture(scope="module")
def searched(project: Settings, planned: SweepPlan, heard: list[SweepEvent]) -> SweepReport:
    """A search of two trials whose best has become `tiny/1`."""
    return run_sweep(project, planned, on_event=heard.append, actor="tester")


@pytest.mark.torch
def test_the_best_trial_becomes_a_version_with_evidence_of_what_chose_it(
    searched: SweepReport, project: Settings
) -> None:
    assert [trial.state for trial in searched.trials] == ["finished"] * 2
    best, registered = searched.best, searched.registered
    assert best is not None and registered is not None and registered.is_new
    assert best.value == min(trial.value or 0.0 for trial in searched.trials), "a loss is better when it is smaller"
    with Registry.open(project.registry) as registry:
        version = registry.resolve(registered.reference)
        facts = registry.evidence("tiny", version.number)
    assert {("metrics", "torch"), ("metrics", "onnx"), ("equivalence", "onnx")} <= {(f.kind, f.subject) for f in facts}
    (fact,) = [fact for fact in facts if fact.kind == SWEEP]
    assert fact.digest == version.formats["torch"].digest
    told = {name: fact.values[name] for name in ("sweep", "trial", "trials", "finished", "metric", "value", "split")}
    assert told == {
        "sweep": "rates",
        "trial": best.number,
        "trials": 2,
        "finished": 2,
        "metric": "loss",
        "value": best.value,
        "split": "validation",
    }
    assert "flatters" in str(fact.values["chosen"]) and fact.values["overrides"] == json.loads(
        json.dumps(dict(best.overrides))
    )
    assert version.tags["noa.sweep"] == "rates" and version.tags["noa.sweep_trial"] == str(best.number)
    assert project.training.jobs_dir / best.job == Path(version.tags["noa.job_folder"])
    assert json.loads(version.tags["noa.overrides"]) == fact.values["overrides"], "it can be reproduced alone"


@pytest.mark.torch
def test_trials_are_the_ones_that_were_previewed_and_ordinary_jobs(
    searched: SweepReport, planned: SweepPlan, project: Settings, heard: list[SweepEvent]
) -> None:
    previewed = preview_trials(planned, most=10)
    assert [dict(one.overrides) for one in previewed] == [dict(one.overrides) for one in searched.trials]
    for trial in searched.trials:
        folder = project.training.jobs_dir / trial.job
        assert read_state(folder).state == "finished"
        assert list(trial.epochs) == [1, 2, 3, 4] and trial.value == min(trial.epochs.values())
    kinds = [event.kind for event in heard if event.kind != "step"]
    assert kinds == ["started", *["epoch"] * 4, "ended"] * 2
    last = heard[-1]
    assert (last.counts.finished, last.counts.running, last.counts.planned) == (2, 0, 2)
    steps = [event.step.step for event in heard if event.step is not None and event.step.phase == "done"]
    assert steps == ["evaluate", "convert", "verify", "register"]


@pytest.mark.torch
def test_a_search_that_is_done_is_not_done_again(searched: SweepReport, project: Settings) -> None:
    again = run_sweep(project, plan_sweep(project, "rates"), actor="tester")
    assert outcomes(again) == outcomes(searched) and len(jobs_of(project)) == 2
    assert again.registered is not None and searched.registered is not None
    assert not again.registered.is_new and again.registered.reference == searched.registered.reference
    assert again.registered.metrics == searched.registered.metrics
    seen = read_sweep(project, "rates")
    assert outcomes(seen) == outcomes(searched) and not seen.is_running
    assert {path.name for path in seen.plots} == {"history.png", "parameters.png"}
    with Registry.open(project.registry) as registry:
        assert len([fact for fact in registry.evidence("tiny", 1) if fact.kind == SWEEP]) == 1


def test_another_search_under_the_name_of_one_is_refused_with_what_differs(
    searched: SweepReport, project: Settings
) -> None:
    del searched
    plan = plan_sweep(project, "rates", space={"model.hidden": {"choices": [[4], [16]]}})
    with pytest.raises(ConflictError, match=r"`model.hidden` had other values.*\[4\], \[8\].*\[4\], \[16\].*--restart"):
        run_sweep(project, plan)
    with pytest.raises(ConflictError, match=r"`seed` was another.*expected 5; received 6"):
        run_sweep(project, plan_sweep(project, "rates", changes={"seed": 6}))
    with sweep_folder(project, "rates").hold(), pytest.raises(ConflictError, match=rf"process {os.getpid()}"):
        run_sweep(project, plan_sweep(project, "rates"))


WRONG: list[tuple[dict[str, dict[str, object]], dict[str, object], str, str]] = [
    ({"optimizer.learning_rat": {"low": 0.1, "high": 1.0}}, {}, "optimizer.learning_rat", "nothing that can be set"),
    ({"optimizer.learning_rate": {"low": 0.0, "high": 1.0}}, {}, "optimizer.learning_rate", "above 0"),
    ({"optimizer.beta1": {"low": 0.5, "high": 1.0}}, {}, "optimizer.beta1", "below 1"),
    ({"epochs": {"low": 1.0, "high": 4.0}}, {}, "epochs", "cannot be set"),
    ({"model.hidden": {"choices": [[4], 8]}}, {}, "model.hidden", "cannot be set"),
    ({"data.rows": {"choices": [240, "many"]}}, {}, "data.rows", "cannot be set"),
    ({"best_by": {"choices": ["loss", "accuracy"]}}, {}, "best_by", "says what is measured"),
    ({"backend": {"choices": ["torch", "jax"]}}, {}, "backend", "no key of a recipe"),
    ({"epochs": {"low": 4, "high": 1}}, {}, "space", "`epochs`: `low` is 4 and above `high`, 1"),
    (RATE, {"metric": "f1"}, "metric", "none that the recipe measures"),
    (RATE, {"pruner": "hyper"}, "pruner", "'asha', 'median' or 'none'"),
    (RATE, {"trials": 0}, "trials", "greater than or equal to 1"),
    (RATE, {"backends": ["tpu"]}, "backends", "'torch' or 'jax'"),
    (RATE, {"timeout_s": -1.0}, "timeout_s", "greater than or equal to 0"),
]


@pytest.mark.parametrize(("space", "changes", "field", "words"), WRONG, ids=[f"{row[2]}-{row[3]}" for row in WRONG])
def test_a_wrong_space_is_refused_with_its_field_before_any_work(
    space: dict[str, dict[str, object]], changes: dict[str, object], field: str, words: str, project: Settings
) -> None:
    before = [*jobs_of(project), *sweep_names(project)]
    with pytest.raises(InvalidInputError) as caught:
        plan_sweep(project, "recipe.py", space=space, changes=changes)
    assert words in str(caught.value) and caught.value.facts["field"] == field
    assert [*jobs_of(project), *sweep_names(project)] == before


def test_what_is_asked_for_is_found_or_what_there_is_is_listed(project: Settings, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no sweep and no recipe `rate`.*Did you mean `rates`"):
        plan_sweep(project, "rate")
    plan = plan_sweep(project, "tiny", overrides={"epochs": "2"})  # the one search of this recipe
    assert (plan.name, plan.model, plan.metric, plan.larger_is_better) == ("rates", "tiny", "loss", False)
    assert plan.request("torch", {"model.hidden": (4,)}).overrides == {"epochs": "2", "model.hidden": (4,)}
    alone = plan_sweep(project, "recipe.py", space=RATE, changes={"metric": "accuracy", "parallel": 2})
    assert (alone.name, alone.larger_is_better, alone.threads) == ("tiny", True, max(1, alone.cores // 2))
    with pytest.raises(InvalidInputError, match="the space is empty"):
        plan_sweep(project, "strict")
    with pytest.raises(InvalidInputError, match=r"`epochs` is searched and set at once"):
        plan_sweep(project, "tiny", space={"epochs": {"low": 1, "high": 4}}, overrides={"epochs": "2"})
    with pytest.raises(NotFoundError, match=r"no sweep `rats` has begun here"):
        read_sweep(project, "rats")
    settings = make_project(tmp_path)
    recipe = tmp_path / "recipe.py"
    recipe.write_text(recipe.read_text().replace("import AdamW", "import Factories, AdamW"))
    recipe.write_text(recipe.read_text().replace("mlp(hidden=(8,))", "Factories(torch=lambda shape: None)"))
    with pytest.raises(RecipeError, match=r"no factory for the backend `jax`"):
        plan_sweep(settings, "tiny", space=RATE, changes={"backends": ["torch", "jax"]})


@pytest.mark.conformance
def test_pruned_trials_are_stopped_and_say_so(own: Settings) -> None:
    """Rates that are too small fall behind; what ends them leaves no process and no checkpoint."""
    space = {"optimizer.learning_rate": {"choices": [0.05, 1e-6, 2e-6, 0.1]}}
    plan = plan_sweep(
        own, "tiny", space=space, overrides={"epochs": 1500}, name="prune",
        changes={"pruner": "asha", "reduction": 2, "trials": 4, "sampler": "random", "seed": 5},
    )  # fmt: skip
    seen: dict[int, list[str]] = {}

    def hear(event: SweepEvent) -> None:
        if event.kind == "ended" and event.trial is not None and event.trial.state == "pruned":
            seen[event.trial.number] = [line for line in processes_in(own.root) if "noa_training.worker" in line]

    assert [one.overrides["optimizer.learning_rate"] for one in preview_trials(plan, most=4)] == [0.05, 2e-6, 0.1, 1e-6]
    report = run_sweep(own, plan, register=False, on_event=hear)
    assert [report.trials[number].state for number in (0, 1, 3)] == ["finished", "pruned", "pruned"]
    pruned = [trial for trial in report.trials if trial.state == "pruned" and trial.same_as is None]
    assert pruned and report.best is not None and report.best.state == "finished"
    assert seen and not any(seen.values())
    for trial in pruned:
        folder = own.training.jobs_dir / trial.job
        assert 1 <= len(trial.epochs) < 1500 and trial.value == list(trial.epochs.values())[-1]
        assert read_state(folder).state == "cancelled" and not (folder / "checkpoints").exists()
    assert not processes_in(own.root)


@pytest.mark.conformance
def test_both_backends_are_searched_at_once_within_the_cores(own: Settings) -> None:
    plan = plan_sweep(
        own, "tiny", space={**RATE, **HIDDEN}, name="both",
        changes={"backends": ["torch", "jax"], "trials": 8, "parallel": 2, "pruner": "none", "metric": "accuracy"},
    )  # fmt: skip
    most, now, lock = [0], [0], threading.Lock()

    def hear(event: SweepEvent) -> None:
        with lock:
            now[0] = event.counts.running
            most[0] = max(most[0], now[0])

    report = run_sweep(own, plan, on_event=hear, actor="tester")
    assert {trial.backend for trial in report.trials} == {"torch", "jax"}
    assert [trial.state for trial in report.trials] == ["finished"] * 8 and most[0] == 2
    assert report.best is not None and report.registered is not None
    assert report.best.value == max(trial.value or 0.0 for trial in report.trials)
    assert {path.name for path in report.plots} >= {"history.png", "parameters.png"}
    assert plan.threads * 2 <= max(2, plan.cores)


@pytest.mark.conformance
def test_the_digits_of_the_examples_are_searched_on_both_backends(
    tmp_path: Path, add_empty_registry: Callable[[Path], None]
) -> None:
    root = tmp_path / "digits"
    add_empty_registry(root)
    example = Path(__file__).parents[2] / "examples" / "digits"
    for name in ("noa.toml", "recipe.py"):
        (root / name).write_text((example / name).read_text())
    settings = load_settings(root).settings
    plan = plan_sweep(
        settings, "digits", space={**RATE, "model.channels": {"choices": [[4], [4, 8]]}},
        overrides={"data.fraction": 0.1, "epochs": 2},
        changes={"backends": ["torch", "jax"], "trials": 6, "parallel": 2, "metric": "accuracy", "reduction": 2},
    )  # fmt: skip
    report = run_sweep(settings, plan, actor="tester")
    assert report.counts.ended == 6 and report.counts.failed == 0
    assert {trial.backend for trial in report.trials} == {"torch", "jax"}
    assert report.registered is not None and report.registered.metrics["accuracy"] > 0.2
    assert not processes_in(root)


@pytest.mark.conformance
def test_equal_values_are_trained_once_and_a_space_that_is_tried_ends_the_search(own: Settings) -> None:
    plan = plan_sweep(own, "tiny", **asked(HIDDEN, trials=40, parallel=2))  # type: ignore[arg-type]
    assert plan.points == 3
    report = run_sweep(own, plan, register=False)
    assert len(jobs_of(own)) == 3 and report.note == "all 3 points of the space are tried"
    firsts = {json.dumps(one.overrides["model.hidden"]): one for one in report.trials if one.same_as is None}
    assert len(firsts) == 3
    for twin in [trial for trial in report.trials if trial.same_as is not None]:
        first = report.trials[twin.same_as or 0]
        assert (twin.overrides, twin.value, twin.epochs) == (first.overrides, first.value, first.epochs)


@pytest.mark.conformance
def test_a_trial_that_fails_is_counted_and_many_in_a_row_end_the_search(own: Settings) -> None:
    space = {"optimizer.learning_rate": {"choices": [1e30, 1e31, 0.05]}}
    plan = plan_sweep(own, "tiny", **asked(space, trials=9, sampler="random", max_failures=99))  # type: ignore[arg-type]
    report = run_sweep(own, plan, register=False)
    assert report.counts.failed >= 2 and report.best is not None
    assert report.best.overrides == {"optimizer.learning_rate": 0.05}
    assert "not finite" in next(trial.message for trial in report.trials if trial.state == "failed")
    bad = {"optimizer.learning_rate": {"low": 1e30, "high": 1e31}}
    plan = plan_sweep(own, "tiny", space=bad, name="bad", changes={"max_failures": 2, "pruner": "none"})
    with pytest.raises(TrainingError, match=r"2 trials in a row failed; the last, trial 1: .*not finite"):
        run_sweep(own, plan, register=False)
    assert read_sweep(own, "bad").counts.failed == 2
    plan = plan_sweep(own, "tiny", space=bad, name="bad", changes={"trials": 2, "pruner": "none"})
    with pytest.raises(TrainingError, match=r"no trial of the sweep `bad` has finished.*2 failed"):
        run_sweep(own, plan)


@pytest.mark.conformance
def test_a_recipe_that_changed_is_refused_and_a_search_begun_anew_keeps_the_old_one(own: Settings) -> None:
    run_sweep(own, plan_sweep(own, "tiny", **asked(HIDDEN, trials=1)), register=False)  # type: ignore[arg-type]
    recipe = own.root / "recipe.py"
    recipe.write_text(recipe.read_text().replace("batch_size=16", "batch_size=8"))
    plan = plan_sweep(own, "tiny", **asked(HIDDEN, trials=1))  # type: ignore[arg-type]
    with pytest.raises(ConflictError, match="the recipe's file has changed"):
        run_sweep(own, plan, register=False)
    report = run_sweep(own, plan, register=False, restart=True)
    old = read_sweep(own, "try.1")
    assert report.counts.ended == old.counts.ended == 1 and old.trials[0].job != report.trials[0].job


@pytest.mark.conformance
def test_trials_on_other_validation_rows_are_refused(own: Settings) -> None:
    plan = plan_sweep(own, "tiny", **asked({"data.rows": {"choices": [120, 240]}}, trials=4))  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=r"was measured on other validation rows than trial 0"):
        run_sweep(own, plan, register=False)


@pytest.mark.conformance
def test_the_time_limit_stops_with_a_checkpoint_and_the_same_command_continues(own: Settings) -> None:
    changes = {"trials": 2, "pruner": "none", "sampler": "random"}
    events: list[SweepEvent] = []

    def search(limit_s: float) -> TrialView:
        plan = plan_sweep(
            own, "tiny", space=RATE, overrides={"epochs": 9000}, name="slow", changes={**changes, "timeout_s": limit_s}
        )
        events.clear()
        with pytest.raises(TrainingError, match=rf"no trial.*1 interrupted.*the time limit of {limit_s:g} s"):
            run_sweep(own, plan, register=False, on_event=events.append)
        assert not processes_in(own.root)
        (trial,) = read_sweep(own, "slow").trials
        assert trial.state == "interrupted"
        return trial

    limit_s = 5.0
    while not (before := search(limit_s)).epochs:  # until this machine has come to the first epoch
        limit_s *= 2
    assert list((own.training.jobs_dir / before.job / "checkpoints").iterdir())
    after = search(limit_s)
    assert events[0].kind == "continued"
    assert len(after.epochs) > len(before.epochs) and after.seconds > before.seconds


def start(settings: Settings, what: dict[str, object]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(settings.root), json.dumps(what)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.chaos
def test_a_search_killed_at_random_ends_with_the_trials_of_one_in_a_go(
    own: Settings, tmp_path: Path, add_empty_registry: Callable[[Path], None]
) -> None:
    what = asked({**RATE, **HIDDEN}, trials=5, pruner="asha", reduction=2) | {"overrides": {"epochs": 40}}
    add_empty_registry(tmp_path / "whole")
    whole = make_project(tmp_path / "whole")
    run_sweep(whole, plan_sweep(whole, "tiny", **what), register=False)  # type: ignore[arg-type]
    pause, kills = random.Random(7), 0
    while True:
        process = start(own, what)
        try:
            process.wait(timeout=pause.uniform(1.5, 9.0))
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            assert kills < 60
            wait_until(lambda: not processes_in(own.root))
        finally:
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
    assert process.returncode == 0 and kills >= 2
    assert outcomes(read_sweep(own, "try")) == outcomes(read_sweep(whole, "try"))
    assert len(jobs_of(own)) == len(jobs_of(whole)), "no trial was trained twice"


@pytest.mark.chaos
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_search_that_is_stopped_leaves_no_process(number: signal.Signals, own: Settings) -> None:
    command = [sys.executable, "-m", "noa_cli", "sweep", "tiny", "--space", "optimizer.learning_rate=1e-4..0.2:log"]
    command += ["--name", "try", "--parallel", "2", "--trials", "4", "--set", "epochs=4000", "-C", str(own.root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_until(lambda: len(running_with_epochs(own)) == 2, deadline_s=120)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130 and "stopped after 0 of 4 trials; the same command continues" in said
    assert not processes_in(own.root)
    assert [trial.state for trial in read_sweep(own, "try").trials] == ["interrupted"] * 2


def running_with_epochs(settings: Settings) -> Sequence[object]:
    try:
        report = read_sweep(settings, "try")
    except NoaError:
        return []
    return [trial for trial in report.trials if trial.state == "running" and trial.epochs]


@pytest.mark.chaos
def test_two_searches_of_a_project_take_no_more_cores_than_there_are(own: Settings) -> None:
    """Each wants all cores: their trials take turns."""
    processes = [
        start(own, asked(RATE, trials=3, seed=seed) | {"name": f"turn-{seed}", "overrides": {"epochs": 300}})
        for seed in (1, 2)
    ]
    most, give_up_at = 0, time.monotonic() + 200
    try:
        while any(process.poll() is None for process in processes):
            assert time.monotonic() < give_up_at
            most = max(
                most, sum("noa_training.worker" in line and "_warden" not in line for line in processes_in(own.root))
            )
            time.sleep(0.05)
        said = [process.communicate()[0].split() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0] and most == 1
    assert any("waiting" in kinds for kinds in said)
