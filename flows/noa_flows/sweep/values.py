"""What a search says of itself: its trials, how many there are of each kind, what happens, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from noa_flows.pipeline_values import PipelineEvent

TrialState: TypeAlias = Literal["running", "interrupted", "finished", "pruned", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialView:
    """One trial. `overrides` are the values that were tried, by key of the recipe.

    `value` is the sweep's metric on the validation split: of the epoch whose weights are the model if it finished, of
    the last epoch if it was pruned, None otherwise. `epochs` holds the metric after each epoch, from 1 on, and
    `metrics` all that was measured of a finished model. `job` is the folder of its attempt as seen from the jobs'
    folder, "" before there is one; `rows` the digest of the validation rows of a finished one; `same_as` the trial with
    the same values whose outcome it has taken; `seconds` the time it was trained.
    """

    number: int
    state: TrialState
    backend: str
    overrides: Mapping[str, object]
    value: float | None = None
    epochs: Mapping[int, float] = field(default_factory=dict[int, float])
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    seconds: float = 0.0
    job: str = ""
    rows: str = ""
    message: str = ""
    same_as: int | None = None

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "number": self.number,
            "state": self.state,
            "backend": self.backend,
            "overrides": dict(self.overrides),
            "value": self.value,
            "epochs": {str(epoch): value for epoch, value in self.epochs.items()},
            "metrics": dict(self.metrics),
            "seconds": self.seconds,
            "job": self.job,
            "rows": self.rows,
            "message": self.message,
            "same_as": self.same_as,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepCounts:
    """How many trials there are; `planned` is how many there are to be, `running` includes what was interrupted."""

    planned: int
    running: int = 0
    finished: int = 0
    pruned: int = 0
    failed: int = 0

    @property
    def ended(self) -> int:
        """How many have come to an end."""
        return self.finished + self.pruned + self.failed

    @property
    def begun(self) -> int:
        """How many there are."""
        return self.ended + self.running

    def to_dict(self) -> dict[str, int]:
        """Return plain JSON values."""
        return {
            "planned": self.planned,
            "running": self.running,
            "finished": self.finished,
            "pruned": self.pruned,
            "failed": self.failed,
        }


def count_trials(trials: Sequence[TrialView], *, planned: int) -> SweepCounts:
    """Count trials by state."""
    states = [trial.state for trial in trials]
    return SweepCounts(
        planned=planned,
        running=states.count("running") + states.count("interrupted"),
        finished=states.count("finished"),
        pruned=states.count("pruned"),
        failed=states.count("failed"),
    )


def best_trial(trials: Sequence[TrialView], *, larger_is_better: bool) -> TrialView | None:
    """Return the finished trial with the best value, of equals the first; None if none has finished."""
    sign = -1.0 if larger_is_better else 1.0
    finished = [
        (sign * trial.value, trial.number, trial) for trial in trials if _has_model(trial) and trial.value is not None
    ]
    return min(finished, key=lambda entry: entry[:2])[2] if finished else None


def _has_model(trial: TrialView) -> bool:
    return trial.state == "finished" and bool(trial.job)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepEvent:
    """Something happened in a search. `counts` and `best` are how it stands afterwards.

    `trial` is whom it concerns; `epoch` of `epochs` where it has just been validated, with `value`; `eta_s` the seconds
    that are left at this pace, None if nothing is known yet. `step` is the event of a step after the search.
    """

    kind: Literal["started", "continued", "waiting", "epoch", "ended", "note", "step"]
    counts: SweepCounts
    best: TrialView | None = None
    trial: TrialView | None = None
    epoch: int = 0
    epochs: int = 0
    value: float | None = None
    eta_s: float | None = None
    message: str = ""
    step: PipelineEvent | None = None


OnSweepEvent: TypeAlias = Callable[[SweepEvent], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredTrial:
    """The version that the best trial has become. `metrics` are those of the served format on the test split."""

    reference: str
    digest: str
    trial: int
    metrics: Mapping[str, float]
    is_new: bool

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "reference": self.reference,
            "digest": self.digest,
            "trial": self.trial,
            "metrics": dict(self.metrics),
            "is_new": self.is_new,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """A search as it stands: `is_running` while a process works on it; `note` says why it ended before its time.

    `space` holds the values that are searched, by key, `fixed` what is set for all trials; `importance` the share of
    each key in the spread of the metric, largest first, empty if too little is known; `folder` holds all its files.
    """

    name: str
    model: str
    recipe: str
    backends: tuple[str, ...]
    metric: str
    larger_is_better: bool
    space: Mapping[str, Mapping[str, object]]
    fixed: Mapping[str, object]
    counts: SweepCounts
    trials: tuple[TrialView, ...]
    best: TrialView | None
    folder: Path
    is_running: bool = False
    registered: RegisteredTrial | None = None
    importance: Mapping[str, float] = field(default_factory=dict[str, float])
    plots: tuple[Path, ...] = ()
    note: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "model": self.model,
            "recipe": self.recipe,
            "backends": list(self.backends),
            "metric": self.metric,
            "larger_is_better": self.larger_is_better,
            "space": {key: dict(entry) for key, entry in self.space.items()},
            "fixed": dict(self.fixed),
            "counts": self.counts.to_dict(),
            "best": None if self.best is None else self.best.number,
            "trials": [trial.to_dict() for trial in self.trials],
            "is_running": self.is_running,
            "registered": None if self.registered is None else self.registered.to_dict(),
            "importance": dict(self.importance),
            "plots": [str(path) for path in self.plots],
            "folder": str(self.folder),
            "note": self.note,
            "seconds": self.seconds,
        }
