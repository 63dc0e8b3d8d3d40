"""A search as tables and lines: its space, its trials, what matters, and what came of it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from noa_cli import _console as console
from noa_cli._sweep_progress import duration, show_value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from noa_flows.sweep import SweepPlan, SweepReport, TrialView

_MOST_ROWS = 10


def print_plan(plan: SweepPlan, trials: Sequence[TrialView]) -> None:
    """Print what a search would do, and the trials that it would begin with."""
    better = "larger" if plan.larger_is_better else "smaller"
    print_space({key: entry.to_dict() for key, entry in plan.space.items()}, tuple(plan.requests), title=plan.name)
    points = "" if plan.points == float("inf") else f" of {plan.points:,.0f} points"
    search = plan.search
    console.print_line(
        f"{console.count(search.trials, 'trial')}{points} by {search.sampler}, seed {search.seed}; "
        f"{search.parallel} at once with {console.count(plan.threads, 'thread')} each; pruner {search.pruner}; "
        f"best by {plan.metric} on the validation split, {better} is better"
    )
    columns, rows = _table(trials, plan.space, with_backend=len(plan.requests) > 1, outcome=False)
    console.print_table(columns, rows, title="The first trials")
    console.print_line("nothing was trained or written (dry run)")


def print_space(space: Mapping[str, Mapping[str, object]], backends: tuple[str, ...], *, title: str) -> None:
    """Print which values each key may have."""
    rows = [["backend", ", ".join(backends)]] if len(backends) > 1 else []
    rows += [[key, _values(entry)] for key, entry in space.items()]
    console.print_table(["key", "values"], rows, title=f"The space of {title}")


def print_report(report: SweepReport, *, is_whole: bool) -> None:
    """Print how a search stands or ended: all trials if `is_whole`, else those that count."""
    counts = report.counts
    shown = report.trials if is_whole else _leading(report)
    columns, rows = _table(shown, report.space, with_backend=len(report.backends) > 1, outcome=True)
    hidden = len(report.trials) - len(shown)
    title = f"{report.name}: {report.metric} on the validation split"
    console.print_table(columns, rows, title=f"{title}, the best {len(shown)}" if hidden else title)
    parts = [f"{counts.finished} finished", f"{counts.pruned} pruned", f"{counts.failed} failed"]
    parts += [f"{counts.running} {'running' if report.is_running else 'interrupted'}"] if counts.running else []
    console.print_line(f"{counts.ended} of {console.count(counts.planned, 'trial')} done: {', '.join(parts)}")
    if report.note:
        console.print_line(report.note)
    if report.importance:
        shares = ", ".join(f"{key} {share:.2f}" for key, share in report.importance.items())
        console.print_line(f"what matters (PED-ANOVA): {shares}")
    if report.best is not None:
        print_best(report, report.best)
    for path in report.plots:
        console.print_line(f"{path.stem}: {path}")


def print_best(report: SweepReport, best: TrialView) -> None:
    """Print the best trial, and what the test split says of it if it was registered."""
    tried = len(report.trials)
    console.print_line(
        f"best: trial {best.number}, {report.metric} {best.value or 0.0:.4f} on the validation split, "
        f"which flatters the best of {console.count(tried, 'trial')}"
    )
    found = report.registered
    if found is not None and found.trial == best.number:
        measured = "  ".join(f"{name} {value:.4f}" for name, value in found.metrics.items())
        console.print_line(f"{found.reference}: on the test split, which chose nothing: {measured}")
    console.print_line(f"the same training: {training_command(report, best)}")


def training_command(report: SweepReport, trial: TrialView) -> str:
    """Return the command that trains a trial's values without a search."""
    words = ["noa", "train", report.recipe, "--backend", trial.backend]
    for key, value in {**report.fixed, **trial.overrides}.items():
        words += ["--set", f"{key}={value if isinstance(value, float) else show_value(value)}"]
    return shlex.join(words)


def print_list(reports: Sequence[SweepReport]) -> None:
    """Print all searches of a project, one a line."""
    console.print_table(
        ["sweep", "recipe", "trials", "pruned", "failed", "state", "best", "registered"],
        [
            [
                report.name,
                report.recipe,
                f"{report.counts.ended}/{report.counts.planned}",
                report.counts.pruned,
                report.counts.failed,
                _state(report),
                None if report.best is None else f"{report.metric} {report.best.value or 0.0:.4f}",
                None if report.registered is None else report.registered.reference,
            ]
            for report in reports
        ],
    )


def _state(report: SweepReport) -> str:
    if report.is_running:
        return "running"
    return "done" if report.counts.ended >= report.counts.planned else "interrupted"


def _leading(report: SweepReport) -> list[TrialView]:
    """Return the best finished trials and, if there is room, the others."""
    sign = -1.0 if report.larger_is_better else 1.0

    def rank(trial: TrialView) -> tuple[int, float, int]:
        is_finished = trial.state == "finished" and trial.value is not None
        return (0 if is_finished else 1, sign * (trial.value or 0.0) if is_finished else 0.0, trial.number)

    return sorted(report.trials, key=rank)[:_MOST_ROWS]


def _table(
    trials: Sequence[TrialView], space: Mapping[str, object], *, with_backend: bool, outcome: bool
) -> tuple[list[str], list[list[object]]]:
    columns = ["trial", *(["state", "value"] if outcome else []), *(["backend"] if with_backend else []), *space]
    columns += ["epochs", "time"] if outcome else []
    rows: list[list[object]] = []
    for trial in trials:
        row: list[object] = [trial.number]
        if outcome:
            state = f"{trial.state}, as {trial.same_as}" if trial.same_as is not None else trial.state
            row += [state, None if trial.value is None else f"{trial.value:.4f}"]
        row += [trial.backend] if with_backend else []
        row += [show_value(trial.overrides[key]) if key in trial.overrides else None for key in space]
        row += [len(trial.epochs) or None, duration(trial.seconds) if trial.seconds else None] if outcome else []
        rows.append(row)
    return columns, rows


def _values(entry: Mapping[str, object]) -> str:
    choices = entry.get("choices")
    if isinstance(choices, list | tuple):
        return ", ".join(show_value(choice) for choice in choices)  # pyright: ignore[reportUnknownVariableType]
    text = f"{show_value(entry.get('low'))} to {show_value(entry.get('high'))}"
    text += f" in steps of {show_value(entry['step'])}" if "step" in entry else ""
    return f"{text}, logarithmic" if entry.get("log") else text
