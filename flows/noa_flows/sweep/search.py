"""Run the trials of a search, so many at once, until all are done, time is up or it is stopped.

This thread draws trials and records how they end; each trial runs in a thread of its own (`trial_run`).
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from noa.errors import InvalidInputError, NoaError, TrainingError
from noa_flows.recipe_process import end_recipe_processes
from noa_flows.sweep.trial_run import TrialOutcome, TrialRun, job_name
from noa_flows.sweep.values import SweepEvent, TrialView, best_trial, count_trials

if TYPE_CHECKING:
    from collections.abc import Sequence

    from noa.settings import Settings
    from noa_flows.sweep.optuna_study import SweepStudy
    from noa_flows.sweep.plan import SweepPlan
    from noa_flows.sweep.values import OnSweepEvent

_WAIT_S: Final = 0.2
_VALIDATION: Final = "data.validation"


class Search:
    """One call's work on a search. `on_event` is called from several threads, one call at a time."""

    def __init__(self, plan: SweepPlan, settings: Settings, study: SweepStudy, on_event: OnSweepEvent) -> None:
        self._plan = plan
        self._settings = settings
        self._study = study
        self._on_event = on_event
        self._lock = threading.Lock()
        self._active: dict[Future[TrialOutcome], TrialRun] = {}
        self._twins: list[TrialView] = []  # they wait for the trial with the same values
        self._failures = 0
        self._note = ""
        self._trials: Sequence[TrialView] = study.trials()
        self._pending = [trial for trial in self._trials if trial.state == "running"]

    def run(self) -> str:
        """Search, and return why it ended before its time, "" if it did not. No process is left.

        Raises:
            NoaError: what concerns more than one trial; what ran is to be continued.
            TrainingError: too many trials in a row failed.
        """
        limit = self._plan.search.timeout_s
        stop_at = time.monotonic() + limit if limit else float("inf")
        with ThreadPoolExecutor(max_workers=self._plan.search.parallel, thread_name_prefix="noa-trial") as pool:
            try:
                self._continue_judged()
                while True:
                    self._fill(pool)
                    if not self._active:
                        return self._note
                    done, _ = wait(self._active, timeout=_WAIT_S, return_when=FIRST_COMPLETED)
                    for future in sorted(done, key=lambda one: self._active[one].trial.number):
                        self._settle(self._active.pop(future), future.result())
                    if time.monotonic() >= stop_at and not self._note:
                        self._note = f"the time limit of {limit:g} s was reached; the same command continues"
                        self._stop()
            except BaseException:
                self._leave()
                raise

    def _continue_judged(self) -> None:
        """End what a killed process had decided to end."""
        for trial in [trial for trial in self._pending if self._study.was_pruned(trial.number)]:
            self._pending.remove(trial)
            self._study.prune(trial.number, job=trial.job, seconds=trial.seconds)
        self._refresh()

    def _fill(self, pool: ThreadPoolExecutor) -> None:
        while len(self._active) < self._plan.search.parallel and (trial := self._next()) is not None:
            twin = self._twin_of(trial)
            if twin is None:
                self._start(pool, trial)
            elif twin.state == "running":
                self._twins.append(trial)
            else:
                self._repeat(trial, twin)

    def _next(self) -> TrialView | None:
        if self._note:
            return None
        if self._pending:
            return self._pending.pop(0)
        if len(self._trials) >= self._plan.search.trials:
            return None
        tried = {_values(trial) for trial in self._trials}
        if len(tried) >= self._plan.points:
            if not self._active:
                self._note = f"all {len(tried)} points of the space are tried"
            return None
        trial = self._study.draw()
        self._refresh()
        return trial

    def _start(self, pool: ThreadPoolExecutor, trial: TrialView) -> None:
        number = trial.number
        run = TrialRun(
            trial=trial,
            request=self._plan.request(trial.backend, trial.overrides),
            settings=self._settings,
            study=self._study,
            metric=self._plan.metric,
            cores=self._plan.cores,
            on_epoch=lambda epoch, epochs, value: self._tell(
                "epoch", trial=trial, epoch=epoch, epochs=epochs, value=value
            ),
            on_wait=lambda: self._tell("waiting", trial=trial, message=f"trial {number} waits for free cores"),
        )
        self._tell("continued" if trial.job else "started", trial=trial)
        self._active[pool.submit(run.run)] = run

    def _settle(self, run: TrialRun, outcome: TrialOutcome) -> None:
        """Record how a trial ended, and let go on who waited for it."""
        self._record(outcome)
        number, error = outcome.number, outcome.error
        self._tell("ended", trial=self._trials[number], message="" if error is None else error.what)
        if outcome.state == "interrupted":
            return
        if error is not None and outcome.is_fatal:
            raise error
        self._failures = self._failures + 1 if outcome.state == "failed" else 0
        if error is not None and self._failures >= self._plan.search.max_failures:
            raise TrainingError(
                f"{self._failures} trials in a row failed; the last, trial {number}: {error.what}",
                where=error.where,
                expected=error.expected,
                received=error.received,
                remedy=error.remedy
                or f"Correct it and begin anew with --restart; see: noa sweep show {self._plan.name}",
            ) from error
        for trial in [trial for trial in self._twins if _values(trial) == _values(run.trial)]:
            self._twins.remove(trial)
            self._repeat(trial, self._trials[number])

    def _record(self, outcome: TrialOutcome) -> None:
        number, job = outcome.number, job_name(self._settings, outcome.job)
        trained = outcome.trained
        if trained is not None:
            rows = trained.provenance.get(_VALIDATION, "")
            self._refuse_other_rows(number, rows)
            value = float(trained.metrics[self._plan.metric])
            metrics = {name: float(number) for name, number in trained.metrics.items()}
            self._study.finish(number, value, metrics=metrics, rows=rows, job=job, seconds=outcome.seconds)
        elif outcome.state == "pruned":
            self._study.prune(number, job=job, seconds=outcome.seconds)
        elif outcome.state == "failed" and not outcome.is_fatal:
            message = "" if outcome.error is None else str(outcome.error)
            self._study.fail(number, message, job=job, seconds=outcome.seconds)
        else:
            self._study.pause(number, job=job, seconds=outcome.seconds)
        self._refresh()

    def _refuse_other_rows(self, number: int, rows: str) -> None:
        other = next((trial for trial in self._trials if trial.rows and trial.rows != rows), None)
        if other is not None:
            raise InvalidInputError(
                f"trial {number} was measured on other validation rows than trial {other.number}: they do not compare",
                where=self._plan.recipe,
                expected=other.rows,
                received=rows,
                remedy="Keep the validation split the same for all values of `data` and begin anew with --restart",
            )

    def _repeat(self, trial: TrialView, twin: TrialView) -> None:
        self._study.repeat(trial.number, twin)
        self._refresh()
        self._tell("ended", trial=self._trials[trial.number], message=f"the same values as trial {twin.number}")

    def _twin_of(self, trial: TrialView) -> TrialView | None:
        """Return an earlier trial with the same values; training it again would give the same."""
        earlier = self._trials[: trial.number]
        return next((one for one in earlier if one.same_as is None and _values(one) == _values(trial)), None)

    def _stop(self) -> None:
        for run in self._active.values():
            run.stop()

    def _leave(self) -> None:
        """Stop what runs, wait until it is gone, and keep what it has come to; whatever happens, nothing new begins."""
        self._stop()
        end_recipe_processes(self._plan.requests.values())
        for future in list(self._active):
            with suppress(NoaError):
                self._record(future.result())
            del self._active[future]

    def _refresh(self) -> None:
        self._trials = self._study.trials()

    def _tell(self, kind: Any, **parts: Any) -> None:
        counts = count_trials(self._trials, planned=self._plan.search.trials)
        best = best_trial(self._trials, larger_is_better=self._plan.larger_is_better)
        with self._lock:
            self._on_event(SweepEvent(kind=kind, counts=counts, best=best, eta_s=self._eta_s(), **parts))

    def _eta_s(self) -> float | None:
        """Return the seconds that are left if the other trials take as long as those that ended."""
        taken = [trial.seconds for trial in self._trials if trial.state != "running" and trial.same_as is None]
        if not taken:
            return None
        counts = count_trials(self._trials, planned=self._plan.search.trials)
        at_once = max(1, min(self._plan.search.parallel, self._plan.cores // self._plan.threads))
        return (counts.planned - counts.ended) * sum(taken) / len(taken) / at_once


def _values(trial: TrialView) -> str:
    return repr((trial.backend, sorted(trial.overrides.items())))


def as_interrupted(trials: Sequence[TrialView]) -> list[TrialView]:
    """Return trials as they are when no process works on them."""
    return [replace(trial, state="interrupted") if trial.state == "running" else trial for trial in trials]
