"""`noa sweep` on the command line: what would be done, what was done, and how it goes on."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from noa.settings import ParameterSettings
from noa_cli.__main__ import run
from noa_cli._sweep_progress import SweepNarrator, duration
from noa_flows.sweep import SweepEvent, TrialView
from noa_flows.sweep.folder import SweepFolder
from noa_flows.sweep.optuna_study import StudySpec, SweepStudy
from noa_flows.sweep.values import SweepCounts, best_trial, count_trials

SPACE = {
    "model.hidden": ParameterSettings(choices=((4,), (8,))),
    "optimizer.learning_rate": ParameterSettings(low=1e-3, high=0.1, log=True),
}
LIMITS = {
    "trials": 4,
    "parallel": 1,
    "timeout_s": 0.0,
    "pruner": "asha",
    "reduction": 3,
    "min_epochs": 1,
    "max_failures": 3,
}


@pytest.fixture
def searched(registered: Path) -> Path:
    """A project with a search of four trials, of which one was being trained when its process died."""
    path = registered / ".noa" / "sweeps" / "noisy"
    if not path.exists():
        folder = SweepFolder(name="noisy", path=path, lock=registered / ".noa" / "locks" / "sweep-noisy.lock")
        definition = {
            "format": 1,
            "recipe": "noisy",
            "model": "noisy",
            "backends": ["torch"],
            "metric": "accuracy",
            "space": {key: entry.to_dict() for key, entry in SPACE.items()},
            "fixed": {"epochs": "3"},
            "sampler": "tpe",
            "seed": 0,
            "source": "sha256:1",
        }
        folder.begin(definition, LIMITS)
        fill(folder.journal)
        folder.write_result({"reference": "noisy/1", "digest": "sha256:2", "trial": 0, "metrics": {"accuracy": 0.625}})
    return registered


def fill(journal: Path) -> None:
    study = SweepStudy(
        StudySpec(
            name="noisy",
            backends=("torch",),
            space=SPACE,
            larger_is_better=True,
            sampler="tpe",
            seed=0,
            pruner="asha",
            reduction=3,
            min_epochs=1,
        ),
        journal,
    )
    for _ in range(4):
        study.draw()
    study.report(0, 1, 0.75)
    study.finish(0, 0.75, metrics={"accuracy": 0.75}, rows="sha256:3", job="noisy-torch-1/attempt-1", seconds=200.0)
    study.report(1, 1, 0.5)
    study.prune(1, job="noisy-torch-2/attempt-1", seconds=2.0)
    study.fail(2, "the loss is not finite", job="noisy-torch-3/attempt-1", seconds=1.0)


def test_a_search_is_listed_and_shown_and_nothing_is_written(
    searched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in searched.rglob("*") if path.is_file()}
    assert run(["sweep", "--list", "-C", str(searched)]) == 0
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip().startswith("noisy")]
    assert row == ["noisy", "noisy", "3/4", "1", "1", "interrupted", "accuracy", "0.7500", "noisy/1"]
    assert run(["sweep", "show", "noisy", "-C", str(searched)]) == 0
    shown = capsys.readouterr().out
    assert "0.001 to 0.1, logarithmic" in shown and "[4], [8]" in shown
    assert "3 of 4 trials done: 1 finished, 1 pruned, 1 failed, 1 interrupted" in shown
    assert "accuracy 0.7500 on the validation split, which flatters the best of 4 trials" in shown
    assert "noisy/1: on the test split, which chose nothing: accuracy 0.6250" in shown
    assert "noa train noisy --backend torch --set epochs=3 --set 'model.hidden=[" in shown
    assert run(["sweep", "show", "noisy", "--json", "-C", str(searched)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [trial["state"] for trial in document["trials"]] == ["finished", "pruned", "failed", "interrupted"]
    assert document["best"] == 0 and document["counts"]["planned"] == 4 and document["registered"]["trial"] == 0
    assert {path: path.stat().st_mtime_ns for path in searched.rglob("*") if path.is_file()} == before


def test_a_dry_run_shows_the_space_and_the_first_trials_and_writes_nothing(
    searched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "sweep",
        "noisy",
        "--space",
        "epochs=2..10:step=4",
        "--space",
        "model.hidden=[4],[8]",
        "-n",
        "3",
        "--dry-run",
    ]
    words += ["--name", "new", "-C", str(searched)]
    assert run(words) == 0
    said = capsys.readouterr()
    assert "2 to 10 in steps of 4" in said.out and "3 trials of 6 points by tpe, seed 0" in said.out
    assert "nothing was trained or written" in said.out and "noise" not in said.out
    assert run([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["first"]) == 3 and {one["backend"] for one in document["first"]} == {"torch"}
    assert all(one["overrides"]["epochs"] in (2, 6, 10) for one in document["first"])
    assert not (searched / ".noa" / "sweeps" / "new").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["sweep"], 1, "nothing to search is named"),
        (["sweep", "show"], 1, "no search is named"),
        (["sweep", "show", "nosy"], 1, "no sweep `nosy` has begun here"),
        (["sweep", "nosy"], 1, "no sweep and no recipe `nosy`"),
        (["sweep", "noisy"], 1, "the space is empty"),
        (["sweep", "noisy", "--space", "epochs"], 1, "an entry of a space is not readable"),
        (["sweep", "noisy", "--space", "epochs=1..4", "--trials", "0"], 2, "greater than or equal to 1"),
        (["sweep", "noisy", "more", "--space", "epochs=1..4"], 2, "follows only `show`"),
        (["sweep", "noisy", "--space", "epochs=1..4", "--pruner", "best"], 1, "`pruner` of the sweep"),
        (["sweep", "noisy", "--space", "epochs=1..4", "--name", "show"], 1, "cannot be called `show`"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_any_work(
    words: list[str], code: int, said: str, searched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*words, "-C", str(searched)]) == code
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert [path.name for path in (searched / ".noa" / "sweeps").iterdir()] == ["noisy"]


class Written:
    """A view that keeps what it is shown."""

    def __init__(self) -> None:
        self.out = io.StringIO()

    def total(self, text: str, done: float) -> None:
        self.out.write(f"total {done:.2f} {text}\n")

    def trial(self, number: int, text: str, done: float | None) -> None:
        self.out.write(f"{number} {done} {text}\n")

    def end(self, number: int) -> None:
        self.out.write(f"{number} gone\n")

    def say(self, text: str) -> None:
        self.out.write(f"said {text}\n")


def test_the_line_of_a_search_tells_how_it_stands() -> None:
    view = Written()
    narrator = SweepNarrator("digits", "accuracy", view)
    assert narrator.stopped_at() == "before the first trial"
    done = TrialView(number=0, state="finished", backend="torch", overrides={"epochs": 3}, value=0.5, job="a")
    ends = TrialView(number=1, state="pruned", backend="torch", overrides={}, value=0.25, epochs={1: 0.25})
    runs = TrialView(number=2, state="running", backend="jax", overrides={"model.hidden": (4,)})
    trials = [done, ends, runs]
    counts = count_trials(trials, planned=5)
    best = best_trial(trials, larger_is_better=True)
    narrator(SweepEvent(kind="started", counts=counts, best=best, trial=runs, eta_s=300.0))
    narrator(SweepEvent(kind="epoch", counts=counts, best=best, trial=runs, epoch=1, epochs=4, value=0.125, eta_s=90))
    narrator(SweepEvent(kind="ended", counts=counts, best=best, trial=ends, eta_s=None))
    said = view.out.getvalue().splitlines()
    assert said[:3] == [
        "said trial 2 started  jax  model.hidden=[4]",
        "2 None jax  model.hidden=[4]",
        "total 0.40 2/5 done  1 running  1 pruned  best accuracy 0.5000 (trial 0)  5 min left",
    ]
    assert said[3] == "2 0.25 epoch 1/4  accuracy 0.1250  jax  model.hidden=[4]"
    assert said[5:7] == ["1 gone", "said trial 1 pruned after 1 epoch  accuracy 0.2500"]
    assert narrator.stopped_at() == "after 2 of 5 trials"
    assert SweepCounts(planned=5, running=1, finished=1, pruned=1) == counts


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (119, "119 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
