"""Show a pipeline while it runs: one live line per backend on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from noa_cli import _console as console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from noa_flows.pipeline_values import PipelineEvent
    from noa_training import JobEvent

_LINE_EVERY_S = 5.0


class _View(Protocol):
    def show(self, lane: str, text: str, done: float | None) -> None:
        """Replace what a lane shows; `done` is the share of its training steps."""
        ...

    def say(self, lane: str, text: str) -> None:
        """Keep a line for good."""
        ...


@contextmanager
def follow() -> Generator[Narrator]:
    """Yield what takes the events of a pipeline and shows them on standard error, from the first moment on."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    terminal = console.err()
    if not terminal.is_terminal:
        yield Narrator(_Lines())
        return
    columns = (
        TextColumn("{task.fields[lane]}", justify="right"),
        BarColumn(bar_width=24),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=terminal, transient=True) as progress:
        yield Narrator(_Live(progress))


class Narrator:
    """Turns events into what a view shows. Call it with each event."""

    def __init__(self, view: _View) -> None:
        self._view = view
        self._metrics: dict[str, str] = {}
        self._steps: dict[str, int] = {}

    def stopped_at(self) -> str:
        """Return where each lane was, e.g. `at step 120`, or `jax at step 90, torch at step 120`."""
        if len(self._steps) == 1:
            return f"at step {next(iter(self._steps.values()))}"
        steps = ", ".join(f"{lane} at step {step}" for lane, step in sorted(self._steps.items()))
        return steps or "before the first step"

    def __call__(self, event: PipelineEvent) -> None:
        """Show one event."""
        lane = event.backend or "model"
        if event.phase == "progress" and event.job is not None:
            self._take_job(lane, event.job)
        elif event.phase == "started":
            self._view.show(lane, event.step, None)
        elif event.phase == "done":
            seconds = f" in {event.seconds:.1f} s" if event.seconds is not None else ""
            self._view.say(lane, f"{event.step} done{seconds}")
        elif event.phase == "failed":
            self._view.say(lane, f"{event.step} failed")

    def _take_job(self, lane: str, job: JobEvent) -> None:
        from noa_training import EarlyStopped, Epoch, Finished, Resumed, Step, Warned

        match job:
            case Step():
                self._steps[lane] = job.step
                share = job.step / max(job.total_steps, 1)
                metrics = self._metrics.get(lane, "")
                self._view.show(
                    lane,
                    f"step {job.step}/{job.total_steps}  loss {job.loss:.4f}  {job.samples_per_s:,.0f} rows/s"
                    f"  {job.eta_s:.0f} s left{metrics}",
                    share,
                )
            case Epoch():
                self._metrics[lane] = f"  validation: {_join(job.metrics)}"
            case Resumed():
                self._view.say(lane, f"continues from step {job.step} ({job.checkpoint})")
            case EarlyStopped():
                self._view.say(lane, f"stopped early after epoch {job.epoch}; epoch {job.best_epoch} was the best")
            case Warned():
                self._view.say(lane, f"warning: {job.subject}: {job.message}")
            case Finished():
                text = f"trained {job.steps} steps in {job.seconds:.1f} s  validation: {_join(job.metrics)}"
                self._view.say(lane, text)
            case _:
                pass


def _join(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())


class _Lines:
    """Lines for logs: one when something happens, and one now and then while training."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def show(self, lane: str, text: str, done: float | None) -> None:
        now = time.monotonic()
        if done is not None and now - self._last.setdefault(lane, now) >= _LINE_EVERY_S:
            self._last[lane] = now
            console.note(f"{lane:>5}  {text}")

    def say(self, lane: str, text: str) -> None:
        console.note(f"{lane:>5}  {text}")


class _Live:
    """One bar per lane."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        # Nobody looks at an empty line while the frameworks are imported and the recipe makes its data.
        self._first: TaskID | None = progress.add_task("reading the recipe", total=None, lane="noa")

    def show(self, lane: str, text: str, done: float | None) -> None:
        if self._first is not None:
            self._progress.remove_task(self._first)
            self._first = None
        if lane not in self._tasks:
            self._tasks[lane] = self._progress.add_task("", total=None, lane=lane)
        total = None if done is None else 1.0
        self._progress.update(self._tasks[lane], description=console.visible(text), total=total, completed=done or 0.0)

    def say(self, lane: str, text: str) -> None:
        self._progress.console.print(console.visible(f"{lane:>5}  {text}"), markup=False, style="dim")
