"""Show a search while it runs: one live line for all and one per running trial on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from noa_cli import _console as console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from noa_flows.sweep import SweepEvent, TrialView

_MINUTE_S = 60
_HOUR_S = 3600


class _View(Protocol):
    def total(self, text: str, done: float) -> None:
        """Replace the line of the whole search; `done` is the share of its trials."""
        ...

    def trial(self, number: int, text: str, done: float | None) -> None:
        """Replace the line of a running trial; `done` is the share of its epochs."""
        ...

    def end(self, number: int) -> None:
        """Take away the line of a trial."""
        ...

    def say(self, text: str) -> None:
        """Keep a line for good."""
        ...


@contextmanager
def follow_sweep(name: str, metric: str) -> Generator[SweepNarrator]:
    """Yield what takes the events of a search and shows them on standard error."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    terminal = console.err()
    if not terminal.is_terminal:
        yield SweepNarrator(name, metric, _Lines())
        return
    columns = (
        TextColumn("{task.fields[lane]}", justify="right", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=terminal, transient=True) as progress:
        yield SweepNarrator(name, metric, _Live(progress, name))


class SweepNarrator:
    """Turns events into what a view shows. Call it with each event."""

    def __init__(self, name: str, metric: str, view: _View) -> None:
        self._name = name
        self._metric = metric
        self._view = view
        self._last: SweepEvent | None = None

    def stopped_at(self) -> str:
        """Return how far the search is, e.g. `after 7 of 20 trials`."""
        if self._last is None:
            return "before the first trial"
        counts = self._last.counts
        return f"after {counts.ended} of {console.count(counts.planned, 'trial')}"

    def __call__(self, event: SweepEvent) -> None:
        """Show one event."""
        self._last = event
        if event.step is not None:
            self._take_step(event)
            return
        if event.trial is not None:
            self._take_trial(event, event.trial)
        elif event.message:
            self._view.say(event.message)
        self._view.total(self.summary(event), event.counts.ended / max(1, event.counts.planned))

    def summary(self, event: SweepEvent) -> str:
        """Return the line of the whole search."""
        counts = event.counts
        parts = [f"{counts.ended}/{counts.planned} done", f"{counts.running} running", f"{counts.pruned} pruned"]
        parts += [f"{counts.failed} failed"] if counts.failed else []
        if event.best is not None and event.best.value is not None:
            parts.append(f"best {self._metric} {event.best.value:.4f} (trial {event.best.number})")
        if event.eta_s is not None and counts.ended < counts.planned:
            parts.append(f"{duration(event.eta_s)} left")
        return "  ".join(parts)

    def _take_trial(self, event: SweepEvent, trial: TrialView) -> None:
        number = trial.number
        match event.kind:
            case "started" | "continued":
                self._view.say(f"trial {number} {event.kind}  {describe_values(trial)}")
                self._view.trial(number, describe_values(trial), None)
            case "epoch":
                text = f"epoch {event.epoch}/{event.epochs}  {self._metric} {event.value or 0.0:.4f}"
                self._view.trial(number, f"{text}  {describe_values(trial)}", event.epoch / max(1, event.epochs))
            case "ended":
                self._view.end(number)
                value = "" if trial.value is None else f"  {self._metric} {trial.value:.4f}"
                epochs = f" after {console.count(len(trial.epochs), 'epoch')}" if trial.state == "pruned" else ""
                state = "interrupted" if trial.state == "running" else trial.state
                why = f"  {event.message}" if event.message else ""
                self._view.say(f"trial {number} {state}{epochs}{value}{why}")
            case _:
                self._view.trial(number, event.message, None)
                self._view.say(event.message)

    def _take_step(self, event: SweepEvent) -> None:
        step = event.step
        assert step is not None
        if step.phase == "started":
            self._view.total(f"the best trial: {step.step}", 1.0)
        elif step.phase == "done":
            seconds = f" in {step.seconds:.1f} s" if step.seconds is not None else ""
            self._view.say(f"{step.step} done{seconds}")
        elif step.phase == "failed":
            self._view.say(f"{step.step} failed")


def describe_values(trial: TrialView) -> str:
    """Return what a trial tries, on one line."""
    return "  ".join([trial.backend, *(f"{key}={show_value(value)}" for key, value in trial.overrides.items())])


def show_value(value: object) -> str:
    """Return a value as it is written after `--set KEY=`, numbers with four digits that count."""
    import json

    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def duration(seconds: float) -> str:
    """Return e.g. `40 s`, `3 min` or `2.5 h`."""
    if seconds < 2 * _MINUTE_S:
        return f"{seconds:.0f} s"
    return f"{seconds / _MINUTE_S:.0f} min" if seconds < 2 * _HOUR_S else f"{seconds / _HOUR_S:.1f} h"


class _Lines:
    """Lines for logs: one when a trial begins and one when it ends, with how the whole stands."""

    def __init__(self) -> None:
        self._shown = ""

    def total(self, text: str, done: float) -> None:
        del done
        head = text.partition("  best")[0]
        if head != self._shown:
            self._shown = head
            console.note(text)

    def trial(self, number: int, text: str, done: float | None) -> None:
        del number, text, done

    def end(self, number: int) -> None:
        del number

    def say(self, text: str) -> None:
        console.note(text)


class _Live:
    """A bar for the search and one per running trial."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._total = progress.add_task("reading the recipe", total=None, lane=console.visible(name))
        self._trials: dict[int, TaskID] = {}

    def total(self, text: str, done: float) -> None:
        self._progress.update(self._total, description=console.visible(text), total=1.0, completed=done)

    def trial(self, number: int, text: str, done: float | None) -> None:
        if number not in self._trials:
            self._trials[number] = self._progress.add_task("", total=None, lane=f"trial {number}")
        total = None if done is None else 1.0
        task = self._trials[number]
        self._progress.update(task, description=console.visible(text), total=total, completed=done or 0.0)

    def end(self, number: int) -> None:
        task = self._trials.pop(number, None)
        if task is not None:
            self._progress.remove_task(task)

    def say(self, text: str) -> None:
        self._progress.console.print(console.visible(text), markup=False, style="dim")
