"""The training loop: steps, validation, early stopping and checkpoints, the same for every backend.

Between two steps it reads a clock and a flag and nothing else; losses are fetched every `log_every_steps` steps and
before each checkpoint, so that no checkpoint holds weights that a non-finite loss has spoilt.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from noa.errors import TrainingError
from noa.settings import TrainingSettings
from noa_training.backends.interface import Trainer
from noa_training.checkpoints import CheckpointStore, Progress, Snapshot
from noa_training.datasets import Dataset
from noa_training.evaluation import evaluate_outputs
from noa_training.metric_names import is_larger_better
from noa_training.recipes import Recipe
from noa_training.reporting import Reporter
from noa_training.schedules import Plan, learning_rates

# Checkpoints at the end of epochs may take this share of the time; short epochs would otherwise be mostly fsync.
_CHECKPOINT_SHARE = 0.05


class JobCancelledError(TrainingError):
    """The job was asked to stop; it continues from its checkpoint when it is started again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopResult:
    """Where the loop ended. `best` are the weights of the best epoch, `outputs` the model's last validation outputs."""

    progress: Progress
    best: Mapping[str, np.ndarray]
    outputs: np.ndarray


class TrainingLoop:
    """Trains until the epochs are done, the metric no longer improves, or somebody asks to stop."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        plan: Plan,
        trainer: Trainer,
        *,
        settings: TrainingSettings,
        store: CheckpointStore,
        reporter: Reporter,
        should_stop: Callable[[], bool],
    ) -> None:
        self._recipe = recipe
        self._dataset = dataset
        self._plan = plan
        self._trainer = trainer
        self._settings = settings
        self._store = store
        self._reporter = reporter
        self._should_stop = should_stop
        self._belongs_to = {"dataset": dataset.digest}
        self._progress = Progress()
        self._best: Mapping[str, np.ndarray] | None = None
        self._outputs: np.ndarray | None = None
        self._losses: list[np.ndarray] = []
        self._reported_step = 0
        self._last_checkpoint = time.perf_counter()
        self._checkpoint_cost = 0.0

    def resume(self) -> int | None:
        """Continue from the newest checkpoint that verifies; return its step, None if there is none."""
        found = self._store.newest(self._try_restore, lambda path, reason: self._reporter.warn(path.name, reason))
        if found is None:
            return None
        path, snapshot = found
        self._progress, self._best = snapshot.progress, snapshot.best
        self._reported_step = snapshot.progress.step
        self._reporter.resumed(snapshot.progress.step, path.name)
        return snapshot.progress.step

    def run(self) -> LoopResult:
        """Train to the end.

        Raises:
            TrainingError: the loss is not finite; names the step.
            JobCancelledError: asked to stop; a checkpoint was written.
            StorageError: the disk refused a checkpoint; the job can be continued from an earlier one.
        """
        self._reporter.begin(self._progress.step)
        while self._progress.epochs_done < self._plan.epochs and not self._progress.has_stopped:
            self._train_epoch(self._progress.epochs_done)
            self._validate_epoch(self._progress.epochs_done)
        assert self._best is not None
        outputs = self._trainer.predict(self._dataset.validation) if self._outputs is None else self._outputs
        return LoopResult(progress=self._progress, best=self._best, outputs=outputs)

    def _try_restore(self, snapshot: Snapshot) -> str | None:
        if dict(snapshot.belongs_to) != self._belongs_to:
            return f"it belongs to other data ({snapshot.belongs_to.get('dataset')}, now {self._belongs_to['dataset']})"
        self._trainer.restore(snapshot.state)
        return None

    def _train_epoch(self, epoch: int) -> None:
        plan, trainer, clock = self._plan, self._trainer, time.perf_counter
        first, log_every = epoch * plan.steps_per_epoch, self._settings.log_every_steps
        schedule, base = self._recipe.schedule, self._recipe.optimizer.learning_rate
        rates = learning_rates(schedule, base, first=first, count=plan.steps_per_epoch, total=plan.total_steps)
        step = self._progress.step
        trainer.begin_epoch(plan.order(epoch), rates, step - first)
        for position in range(step - first, plan.steps_per_epoch):
            if self._should_stop():
                self._cancel(step)
            trainer.step()
            step += 1
            if step % log_every == 0:
                self._report(step, epoch, float(rates[position]))
            if clock() - self._last_checkpoint >= self._settings.checkpoint_every_s:
                self._checkpoint(step)
        self._progress = replace(self._progress, step=step)
        if len(rates) and step > self._reported_step:
            self._report(step, epoch, float(rates[-1]))

    def _validate_epoch(self, epoch: int) -> None:
        self._collect(self._progress.step)
        self._outputs = self._trainer.predict(self._dataset.validation)
        metrics = evaluate_outputs(self._recipe, self._outputs, self._dataset.validation)
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"the validation metric `{name}` is not finite after step {self._progress.step}",
                    received=str(value),
                    remedy="Lower the learning rate, or set `gradient_clip`",
                    step=self._progress.step,
                )
        is_best = self._judge(epoch, metrics)
        self._reporter.epoch(self._progress.step, epoch + 1, metrics, is_best=is_best)
        if self._progress.has_stopped:
            self._reporter.early_stopped(self._progress.step, epoch + 1, self._progress.best_epoch)
        spent = time.perf_counter() - self._last_checkpoint
        if spent >= min(self._settings.checkpoint_every_s, self._checkpoint_cost / _CHECKPOINT_SHARE):
            self._checkpoint(self._progress.step)
        if self._should_stop() and self._progress.epochs_done < self._plan.epochs and not self._progress.has_stopped:
            self._cancel(self._progress.step)

    def _judge(self, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Update best weights and early-stopping counters; return whether this epoch is the best so far."""
        progress, name, stopping = self._progress, self._recipe.best_by, self._recipe.early_stopping
        sign = 1.0 if is_larger_better(name) else -1.0
        value = sign * metrics[name]
        is_best = progress.best_metrics is None or value > sign * progress.best_metrics[name]
        if is_best:
            self._best = self._trainer.state().weights
            progress = replace(progress, best_epoch=epoch + 1, best_metrics=dict(metrics))
        margin = 0.0 if stopping is None else stopping.min_delta
        has_gain = progress.gain_reference is None or value > progress.gain_reference + margin
        waited = 0 if has_gain else progress.epochs_without_gain + 1
        self._progress = replace(
            progress,
            epochs_done=epoch + 1,
            gain_reference=value if has_gain else progress.gain_reference,
            epochs_without_gain=waited,
            has_stopped=stopping is not None and waited >= stopping.patience and epoch + 1 < self._plan.epochs,
        )
        return is_best

    def _collect(self, step: int) -> None:
        losses = self._trainer.take_losses()
        bad = np.flatnonzero(~np.isfinite(losses))
        if len(bad):
            at = step - len(losses) + int(bad[0]) + 1
            raise TrainingError(
                f"the loss is not finite at step {at}",
                received=str(float(losses[bad[0]])),
                remedy="Lower the learning rate, or set `gradient_clip`; the checkpoints before it are kept",
                step=at,
            )
        self._losses.append(losses)

    def _report(self, step: int, epoch: int, rate: float) -> None:
        self._collect(step)
        losses = np.concatenate(self._losses)
        self._losses = []
        self._reported_step = step
        if len(losses):
            self._reporter.step(step, epoch + 1, loss=float(losses.mean(dtype=np.float64)), learning_rate=rate)

    def _checkpoint(self, step: int) -> None:
        self._collect(step)
        start = time.perf_counter()
        self._progress = replace(self._progress, step=step)
        snapshot = Snapshot(
            state=self._trainer.state(), best=self._best, progress=self._progress, belongs_to=self._belongs_to
        )
        path = self._store.save(snapshot)
        self._last_checkpoint = time.perf_counter()
        self._checkpoint_cost = self._last_checkpoint - start
        self._reporter.checkpoint(step, path.name, self._checkpoint_cost)

    def _cancel(self, step: int) -> None:
        self._checkpoint(step)
        raise JobCancelledError(
            f"the job was stopped at step {step}",
            remedy="Start it again with the same arguments to continue",
            step=step,
        )
