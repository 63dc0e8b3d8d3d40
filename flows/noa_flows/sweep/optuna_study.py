"""The one place that knows Optuna: a study in a journal file, its sampler and pruner, and trials as plain values.

The journal is a file of Optuna's own (`JournalStorage`), so that its tools read it. Who writes holds the sweep's lock,
so the journal needs none. A trial appears in it with all its values at once, and a killed process leaves at most half a
line at the end, which is cut off when the study is opened again. Each trial is drawn by a sampler that is seeded by the
seed of the search and the trial's number: what a search draws next is a function of what is in the journal.

The value of a choice that has no plain form, such as a list of sizes, is its JSON text in the journal.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from noa.atomic_write import translate_disk_errors
from noa.errors import DependencyMissingError, IntegrityError
from noa_flows.sweep.plan import BACKEND_KEY
from noa_flows.sweep.values import TrialState, TrialView

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    from noa.settings import ParameterSettings
    from noa_flows.sweep.plan import SweepPlan

STARTUP_TRIALS: Final = 10
"""So many trials are drawn at random before TPE begins; Optuna's default."""
_PRUNED, _JOB, _ROWS, _SECONDS, _METRICS = "pruned_at", "job", "rows", "seconds", "metrics"
_MESSAGE, _SAME_AS = "message", "same_as"
_FEWEST_TO_JUDGE: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySpec:
    """What decides how trials are drawn and ended. `choices` of a parameter are told apart by their position."""

    name: str
    backends: tuple[str, ...]
    space: Mapping[str, ParameterSettings]
    larger_is_better: bool
    sampler: str
    seed: int
    pruner: str
    reduction: int
    min_epochs: int


def spec_of(plan: SweepPlan) -> StudySpec:
    """Return what a plan says of its study."""
    return StudySpec(
        name=plan.name,
        backends=tuple(plan.requests),
        space=plan.space,
        larger_is_better=plan.larger_is_better,
        sampler=plan.search.sampler,
        seed=plan.search.seed,
        pruner=plan.search.pruner,
        reduction=plan.search.reduction,
        min_epochs=plan.search.min_epochs,
    )


class SweepStudy:
    """The trials of one search; safe to use from several threads. `journal` None: in memory, gone at the end.

    Raises:
        DependencyMissingError: Optuna is not installed.
        IntegrityError: the journal is not readable, or holds another study.
        StorageError: the disk refused.
    """

    def __init__(self, spec: StudySpec, journal: Path | None) -> None:
        self._optuna = optuna = _import_optuna()
        self._spec = spec
        self._lock = threading.RLock()
        self._choices = {
            key: dict(zip(_labels(entry), entry.choices, strict=True)) for key, entry in spec.space.items()
        }
        self._distributions = self._make_distributions()
        self._storage: BaseStorage = optuna.storages.InMemoryStorage() if journal is None else _open(journal)
        self._pruner = self._make_pruner()
        names = [study.study_name for study in self._storage.get_all_studies()]
        with translate_disk_errors(journal or Path(spec.name)):
            if names:  # loading writes nothing
                self._study = optuna.load_study(study_name=names[0], storage=self._storage, pruner=self._pruner)
            else:
                direction = "maximize" if spec.larger_is_better else "minimize"
                self._study = optuna.create_study(
                    study_name=spec.name, storage=self._storage, direction=direction, pruner=self._pruner
                )
        self._id = self._storage.get_study_id_from_name(self._study.study_name)

    def trials(self) -> list[TrialView]:
        """Return all trials, by number."""
        with self._lock:
            return [self._view(trial) for trial in self._frozen()]

    def draw(self) -> TrialView:
        """Draw the next trial and keep it, as running."""
        optuna = self._optuna
        with self._lock:
            known = self._frozen()
            drawn = self._draw_after(known)
            self._study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.RUNNING, params=drawn, distributions=self._distributions
                )
            )
            return self._view(self._frozen()[len(known)])

    def was_pruned(self, number: int) -> bool:
        """Tell whether it was decided that a trial that still counts as running goes on no further."""
        with self._lock:
            return _PRUNED in self._trial(number).user_attrs

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Keep a trial's metric after an epoch and tell whether the trial is to end here.

        Epochs before the last that is known are no news; that one is judged again, for a process that was killed may
        have kept it and not judged it.
        """
        with self._lock:
            trial, key = self._trial(number), self._key(number)
            if _PRUNED in trial.user_attrs:
                return True
            if epoch < (trial.last_step or 0):
                return False
            if epoch not in trial.intermediate_values:
                self._storage.set_trial_intermediate_value(key, epoch, value)
            is_over = epoch >= self._spec.min_epochs and self._pruner.prune(self._study, self._trial(number))
            if is_over:
                self._storage.set_trial_user_attr(key, _PRUNED, epoch)
            return is_over

    def finish(
        self, number: int, value: float, *, metrics: Mapping[str, float], rows: str, job: str, seconds: float
    ) -> None:
        """End a trial whose model has `value` on the validation rows with this digest."""
        notes = {_METRICS: dict(metrics), _ROWS: rows, _JOB: job, _SECONDS: seconds}
        self._end(number, "finished", value, notes)

    def prune(self, number: int, *, job: str, seconds: float) -> None:
        """End a trial that goes on no further; it keeps the metric of its last epoch."""
        self._end(number, "pruned", None, {_JOB: job, _SECONDS: seconds})

    def fail(self, number: int, message: str, *, job: str, seconds: float) -> None:
        """End a trial that failed."""
        self._end(number, "failed", None, {_MESSAGE: message, _JOB: job, _SECONDS: seconds})

    def pause(self, number: int, *, job: str, seconds: float) -> None:
        """Keep what is known of a trial that was interrupted and is to be continued."""
        with self._lock:
            self._note(number, {_JOB: job, _SECONDS: seconds})

    def repeat(self, number: int, other: TrialView) -> None:
        """End a trial as another one with the same values has ended."""
        with self._lock:
            for epoch, value in other.epochs.items():
                self._storage.set_trial_intermediate_value(self._key(number), epoch, value)
            notes = {_SAME_AS: other.number, _METRICS: dict(other.metrics), _ROWS: other.rows, _JOB: other.job}
            notes |= {_MESSAGE: other.message} if other.message else {}
            self._end(number, other.state, other.value if other.state == "finished" else None, notes)

    def importance(self) -> dict[str, float]:
        """Return the share of each key in what makes finished trials differ, largest first; empty if too few are known.

        By PED-ANOVA. Source: Watanabe, Bansal and Hutter 2023, arXiv:2304.10255, as in Optuna.
        """
        with self._lock:
            finished = [trial for trial in self.trials() if trial.state == "finished" and trial.value is not None]
            several = [name for name, one in self._distributions.items() if not one.single()]
            if len(finished) < _FEWEST_TO_JUDGE or len({trial.value for trial in finished}) == 1 or not several:
                return {}
            evaluator = self._optuna.importance.PedAnovaImportanceEvaluator()
            found = evaluator.evaluate(self._study, params=several)
            total = sum(found.values())
            return {key: float(share / total) for key, share in found.items()} if total > 0 else {}

    def _draw_after(self, known: Sequence[FrozenTrial]) -> dict[str, Any]:
        """Draw in a copy: what is kept then appears in the journal in one line."""
        optuna = self._optuna
        direction = self._study.direction
        scratch = optuna.create_study(direction=direction, sampler=self._make_sampler(len(known)))
        scratch.add_trials(known)
        return dict(scratch.ask(self._distributions).params)

    def _make_sampler(self, number: int) -> BaseSampler:
        samplers = self._optuna.samplers
        seed = int(np.random.SeedSequence([self._spec.seed, number]).generate_state(1)[0])
        if self._spec.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        return samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)

    def _make_pruner(self) -> BasePruner:
        pruners = self._optuna.pruners
        if self._spec.pruner == "asha":
            return pruners.SuccessiveHalvingPruner(
                min_resource=self._spec.min_epochs, reduction_factor=self._spec.reduction
            )
        if self._spec.pruner == "median":
            return pruners.MedianPruner(n_warmup_steps=self._spec.min_epochs - 1)
        return pruners.NopPruner()

    def _make_distributions(self) -> dict[str, BaseDistribution]:
        kinds = self._optuna.distributions
        found: dict[str, BaseDistribution] = {}
        if len(self._spec.backends) > 1:
            found[BACKEND_KEY] = kinds.CategoricalDistribution(self._spec.backends)
        for key, entry in self._spec.space.items():
            if entry.choices:
                found[key] = kinds.CategoricalDistribution(_labels(entry))
            elif entry.is_whole:
                low, high = cast("int", entry.low), cast("int", entry.high)
                found[key] = kinds.IntDistribution(low, high, log=entry.log, step=int(entry.step or 1))
            else:
                low, high = float(entry.low or 0.0), float(entry.high or 0.0)
                step = None if entry.step is None else float(entry.step)
                found[key] = kinds.FloatDistribution(low, high, log=entry.log, step=step)
        return found

    def _end(self, number: int, state: TrialState, value: float | None, notes: Mapping[str, object]) -> None:
        states = self._optuna.trial.TrialState
        kinds = {"finished": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}
        with self._lock:
            self._note(number, notes)  # first: whatever is killed in between is a trial that still runs
            self._study.tell(number, value, state=kinds[state])

    def _note(self, number: int, notes: Mapping[str, object]) -> None:
        for name, note in notes.items():
            self._storage.set_trial_user_attr(self._key(number), name, note)

    def _frozen(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _trial(self, number: int) -> FrozenTrial:
        return self._storage.get_trial(self._key(number))

    def _key(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)

    def _view(self, trial: FrozenTrial) -> TrialView:
        states = self._optuna.trial.TrialState
        names: dict[object, TrialState] = {
            states.COMPLETE: "finished",
            states.PRUNED: "pruned",
            states.FAIL: "failed",
        }
        values = {key: self._choices.get(key, {}).get(value, value) for key, value in trial.params.items()}
        notes, epochs = trial.user_attrs, sorted(trial.intermediate_values.items())
        value = trial.values[0] if trial.values else None
        if trial.state == states.PRUNED and epochs:
            value = epochs[-1][1]
        return TrialView(
            number=trial.number,
            state=names.get(trial.state, "running"),
            backend=str(values.pop(BACKEND_KEY, self._spec.backends[0])),
            overrides=dict(sorted(values.items())),
            value=None if value is None else float(value),
            epochs={int(epoch): float(known) for epoch, known in epochs},
            metrics=cast("Mapping[str, float]", notes.get(_METRICS, {})),
            seconds=float(notes.get(_SECONDS, 0.0)),
            job=str(notes.get(_JOB, "")),
            rows=str(notes.get(_ROWS, "")),
            message=str(notes.get(_MESSAGE, "")),
            same_as=cast("int | None", notes.get(_SAME_AS)),
        )


class _SweepHoldsTheLock:
    """In place of a lock of the journal: one that a killed process leaves would hold up the next one for ever."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return


def repair_journal(path: Path) -> int:
    """Cut off what a killed process left of its last line, and return how many bytes that were.

    Raises:
        StorageError: the disk refused.
    """
    if not path.is_file():
        return 0
    with translate_disk_errors(path), path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        keep, block = end, b""
        while keep and b"\n" not in block:
            begin = max(0, keep - (1 << 16))
            file.seek(begin)
            block = file.read(keep - begin)
            keep = begin + block.rfind(b"\n") + 1
        if keep < end:
            file.truncate(keep)
            file.flush()
            os.fsync(file.fileno())
        return end - keep


def _open(journal: Path) -> BaseStorage:
    optuna = _import_optuna()
    try:
        with translate_disk_errors(journal):
            journal.parent.mkdir(parents=True, exist_ok=True)
            backend = optuna.storages.journal.JournalFileBackend(
                str(journal), lock_obj=cast("Any", _SweepHoldsTheLock())
            )
            return optuna.storages.JournalStorage(backend)
    except (ValueError, KeyError, TypeError) as exc:
        raise IntegrityError(
            "the journal of a sweep is not readable",
            where=str(journal),
            received=str(exc)[:120],
            remedy="Begin anew with --restart; the trials' jobs are kept",
            file=journal.name,
        ) from exc


def _labels(entry: ParameterSettings) -> list[Any]:
    plain = (bool, int, float, str)
    return [choice if isinstance(choice, plain) else json.dumps(choice) for choice in entry.choices]


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as exc:
        raise DependencyMissingError("optuna", extra="sweep", purpose="searching for the best settings") from exc
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
