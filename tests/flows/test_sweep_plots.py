"""The pictures of a search show what was tried, and the same search gives the same pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from noa_flows.sweep import SweepReport, TrialView
from noa_flows.sweep.matplotlib_plots import draw_history, draw_importance, draw_parameters, save_plots
from noa_flows.sweep.values import best_trial, count_trials

SPACE: Mapping[str, Mapping[str, object]] = {
    "model.hidden": {"choices": [[8], [8, 8]]},
    "name$with$signs": {"choices": ["a$b", "c" * 40]},
    "optimizer.learning_rate": {"low": 1e-4, "high": 0.1, "log": True},
}


def trial(number: int, state: str, value: float | None) -> TrialView:
    return TrialView(
        number=number,
        state=state,  # type: ignore[arg-type]
        backend=("jax", "torch")[number % 2],
        overrides={
            "model.hidden": ((8,), (8, 8))[number % 2],
            "name$with$signs": ("a$b", "c" * 40)[number % 2],
            "optimizer.learning_rate": 10.0 ** (-1 - number % 4),
        },
        value=value,
        job="" if state == "failed" else f"job-{number}",
    )


@pytest.fixture
def report(tmp_path: Path) -> SweepReport:
    trials = (
        trial(0, "finished", 0.7),
        trial(1, "pruned", 0.2),
        trial(2, "failed", None),
        trial(3, "finished", 0.9),
        trial(4, "finished", 0.8),
        trial(5, "running", None),
    )
    return SweepReport(
        name="digits$1$",
        model="digits",
        recipe="digits",
        backends=("jax", "torch"),
        metric="accuracy",
        larger_is_better=True,
        space=SPACE,
        fixed={},
        counts=count_trials(trials, planned=8),
        trials=trials,
        best=best_trial(trials, larger_is_better=True),
        folder=tmp_path,
        importance={"optimizer.learning_rate": 0.75, "model.hidden": 0.25},
    )


def points(figure: Figure, axes: int = 0) -> dict[str, list[tuple[float, float]]]:
    """Return the points by the form of their marks."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in figure.axes[axes].lines:
        pairs = zip(line.get_xdata(), line.get_ydata(), strict=True)  # type: ignore[arg-type]
        found.setdefault(str(line.get_marker()), []).extend((float(x), float(y)) for x, y in pairs)
    return found


def test_the_history_shows_every_trial_and_the_best_so_far(report: SweepReport) -> None:
    figure = draw_history(report)
    shown = points(figure)
    assert shown["o"] == [(0, 0.7), (3, 0.9), (4, 0.8)]
    assert shown["x"] == [(1, 0.2)] and [x for x, _ in shown["v"]] == [2] and shown["*"] == [(3, 0.9)]
    assert shown["None"] == [(0, 0.7), (3, 0.9), (4, 0.9)]
    assert "larger" not in figure.axes[0].get_ylabel() and "↑ better" in figure.axes[0].get_ylabel()


def test_each_key_has_its_place_and_its_scale(report: SweepReport) -> None:
    figure = draw_parameters(report)
    figure.canvas.draw()  # type: ignore[no-untyped-call]
    labels = [axes.get_xlabel() for axes in figure.axes if axes.axison]
    assert labels == ["backend", "model.hidden", r"name\$with\$signs", "optimizer.learning_rate"]
    assert points(figure, 0)["*"] == [(1, 0.9)] and points(figure, 1)["o"] == [(0, 0.7), (1, 0.9), (0, 0.8)]
    assert figure.axes[3].get_xscale() == "log"
    ticks = [tick.get_text() for tick in figure.axes[2].get_xticklabels()]
    assert ticks == [r"a\$b", "c" * 17 + "…"]


def test_importance_is_drawn_with_its_shares(report: SweepReport) -> None:
    axes = draw_importance(report).axes[0]
    assert [text.get_text().strip() for text in axes.texts] == ["0.25", "0.75"]


def test_pictures_are_the_same_bytes_again_and_none_of_what_is_unknown(report: SweepReport, tmp_path: Path) -> None:
    paths = save_plots(report)
    assert [path.name for path in paths] == ["history.png", "parameters.png", "importance.png"]
    first = [path.read_bytes() for path in paths]
    assert all(content.startswith(b"\x89PNG") for content in first)
    assert [path.read_bytes() for path in save_plots(report)] == first
    nothing = replace(report, trials=(trial(0, "failed", None),), best=None, importance={}, folder=tmp_path / "empty")
    assert save_plots(nothing) == () and not (tmp_path / "empty").exists()
