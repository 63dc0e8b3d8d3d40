"""A search from its plan to its best version, and a look at one that is or was under way."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from noa.current_user import current_user
from noa.errors import DependencyMissingError, TrainingError
from noa.settings import ParameterSettings
from noa_flows.pipeline import StepRunner
from noa_flows.recipe_process import keep_recipe_processes
from noa_flows.sweep.folder import find_sweep, sweep_folder
from noa_flows.sweep.matplotlib_plots import save_plots
from noa_flows.sweep.optuna_study import StudySpec, SweepStudy, repair_journal, spec_of
from noa_flows.sweep.outcome import register_best
from noa_flows.sweep.search import Search, as_interrupted
from noa_flows.sweep.values import (
    RegisteredTrial,
    SweepEvent,
    SweepReport,
    TrialView,
    best_trial,
    count_trials,
)
from noa_training import is_larger_better

if TYPE_CHECKING:
    from noa.settings import Settings
    from noa_flows.pipeline_values import PipelineEvent
    from noa_flows.sweep.plan import SweepPlan
    from noa_flows.sweep.values import OnSweepEvent

_LIMITS = ("trials", "parallel", "timeout_s", "pruner", "reduction", "min_epochs", "max_failures")


def run_sweep(
    settings: Settings,
    plan: SweepPlan,
    *,
    on_event: OnSweepEvent | None = None,
    actor: str | None = None,
    register: bool = True,
    restart: bool = False,
) -> SweepReport:
    """Run or continue a search, draw its pictures and register its best trial; with all trials done, only the rest.

    `restart` sets an earlier search of this name aside, with its trials. Pictures are left out without matplotlib.

    Raises:
        ConflictError: the search is under way, or has begun with another recipe or space.
        TrainingError: no trial finished, or too many in a row failed.
        NoaError: what a step found; the trials are kept, and the same command continues.
    """
    begun = time.monotonic()
    tell = on_event or _say_nothing
    folder = sweep_folder(settings, plan.name)
    with keep_recipe_processes(settings.root), folder.hold():
        if restart:
            folder.set_aside()
        limits = plan.search.model_dump(mode="json", include=set(_LIMITS))
        folder.begin(plan.definition(), limits)
        repair_journal(folder.journal)
        study = SweepStudy(spec_of(plan), folder.journal)
        note = Search(plan, settings, study, tell).run()
        trials = as_interrupted(study.trials())
        best = best_trial(trials, larger_is_better=plan.larger_is_better)
        report = SweepReport(
            name=plan.name,
            model=plan.model,
            recipe=plan.recipe,
            backends=tuple(plan.requests),
            metric=plan.metric,
            larger_is_better=plan.larger_is_better,
            space={key: entry.to_dict() for key, entry in plan.space.items()},
            fixed=dict(plan.fixed),
            counts=count_trials(trials, planned=plan.search.trials),
            trials=tuple(trials),
            best=best,
            folder=folder.path,
            importance=study.importance(),
            note=note,
        )
        with suppress(DependencyMissingError):
            report = replace(report, plots=save_plots(report))
        if best is None:
            raise _none_finished(report)
        if register:
            runner = StepRunner(lambda event: tell(_step_event(report, event)))
            registered = register_best(plan, settings, trials, best, runner, actor=actor or current_user())
            folder.write_result(registered.to_dict())
            report = replace(report, registered=registered)
        return replace(report, seconds=time.monotonic() - begun)


def preview_trials(plan: SweepPlan, *, most: int) -> list[TrialView]:
    """Return the trials that a search begins with, as far as they do not depend on how others end; nothing is kept."""
    study = SweepStudy(spec_of(plan), None)
    return [study.draw() for _ in range(min(most, plan.search.trials))]


def read_sweep(settings: Settings, name: str) -> SweepReport:
    """Return how a search stands; writes nothing, and works while it is under way.

    Raises:
        NotFoundError: there is no such search; lists those that there are.
        IntegrityError: its files are not readable.
        DependencyMissingError: Optuna is not installed.
    """
    folder = find_sweep(settings, name)
    asked = folder.read()
    definition, limits = asked["definition"], asked["limits"]
    metric = str(definition["metric"])
    is_running = folder.is_held()
    study = SweepStudy(_spec(definition, limits, name), folder.journal) if folder.journal.is_file() else None
    known: Sequence[TrialView] = [] if study is None else study.trials()
    trials = known if is_running else as_interrupted(known)
    better = is_larger_better(metric)
    return SweepReport(
        name=name,
        model=str(definition["model"]),
        recipe=str(definition["recipe"]),
        backends=tuple(definition["backends"]),
        metric=metric,
        larger_is_better=better,
        space=cast("Mapping[str, Mapping[str, object]]", definition["space"]),
        fixed=cast("Mapping[str, object]", definition["fixed"]),
        counts=count_trials(trials, planned=int(limits["trials"])),
        trials=tuple(trials),
        best=best_trial(trials, larger_is_better=better),
        folder=folder.path,
        is_running=is_running,
        registered=_registered(folder.read_result()),
        importance={} if study is None else study.importance(),
        plots=tuple(sorted(folder.path.glob("*.png"))),
    )


def _spec(definition: Mapping[str, Any], limits: Mapping[str, Any], name: str) -> StudySpec:
    return StudySpec(
        name=name,
        backends=tuple(definition["backends"]),
        space={key: ParameterSettings.model_validate(entry) for key, entry in definition["space"].items()},
        larger_is_better=is_larger_better(str(definition["metric"])),
        sampler=str(definition["sampler"]),
        seed=int(definition["seed"]),
        pruner=str(limits["pruner"]),
        reduction=int(limits["reduction"]),
        min_epochs=int(limits["min_epochs"]),
    )


def _registered(result: Mapping[str, Any] | None) -> RegisteredTrial | None:
    if result is None:
        return None
    return RegisteredTrial(
        reference=str(result["reference"]),
        digest=str(result["digest"]),
        trial=int(result["trial"]),
        metrics={str(name): float(value) for name, value in result["metrics"].items()},
        is_new=False,
    )


def _step_event(report: SweepReport, event: PipelineEvent) -> SweepEvent:
    return SweepEvent(kind="step", counts=report.counts, best=report.best, step=event)


def _none_finished(report: SweepReport) -> TrainingError:
    failed = [trial for trial in report.trials if trial.state == "failed"]
    return TrainingError(
        f"no trial of the sweep `{report.name}` has finished: there is no best one",
        where=str(report.folder),
        expected="at least one finished trial",
        received=f"{report.counts.pruned} pruned, {len(failed)} failed, {report.counts.running} interrupted"
        + (f"; the last failure: {failed[-1].message}" if failed else ""),
        remedy=report.note or f"See `noa sweep show {report.name}`",
    )


def _say_nothing(event: SweepEvent) -> None:
    del event
