"""The trials of a search: drawn the same again, kept over any end of the process, judged once."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from noa.errors import IntegrityError, InvalidInputError
from noa.settings import ParameterSettings
from noa_flows.sweep import TrialView, parse_space
from noa_flows.sweep.optuna_study import StudySpec, SweepStudy, repair_journal

SPACE = {
    "model.hidden": ParameterSettings(choices=((8,), (8, 8), (16,))),
    "optimizer.learning_rate": ParameterSettings(low=1e-4, high=0.1, log=True),
    "schedule.warmup_steps": ParameterSettings(low=0, high=40, step=10),
}


def spec(**changes: object) -> StudySpec:
    values: dict[str, object] = {
        "name": "digits",
        "backends": ("jax", "torch"),
        "space": SPACE,
        "larger_is_better": True,
        "sampler": "tpe",
        "seed": 3,
        "pruner": "none",
        "reduction": 3,
        "min_epochs": 1,
    }
    return StudySpec(**(values | changes))  # type: ignore[arg-type]


def score(trial: TrialView) -> float:
    """A value that depends on what was drawn, as training does."""
    rate = trial.overrides["optimizer.learning_rate"]
    assert isinstance(rate, float)
    return 1.0 - abs(rate - 0.01) + 0.001 * len(json.dumps(trial.overrides["model.hidden"]))


def finish(study: SweepStudy, trial: TrialView, value: float | None = None) -> None:
    study.finish(
        trial.number, score(trial) if value is None else value, metrics={}, rows="sha256:1", job="job", seconds=1.0
    )


def drawn(study: SweepStudy) -> list[tuple[str, dict[str, object]]]:
    return [(trial.backend, dict(trial.overrides)) for trial in study.trials()]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_that_was_killed_between_all_trials_draws_what_one_in_a_go_does(sampler: str, tmp_path: Path) -> None:
    whole = SweepStudy(spec(sampler=sampler), None)
    for _ in range(14):
        finish(whole, whole.draw())
    for _ in range(14):
        study = SweepStudy(spec(sampler=sampler), tmp_path / "journal.log")
        finish(study, study.draw())
    assert drawn(SweepStudy(spec(sampler=sampler), tmp_path / "journal.log")) == drawn(whole)
    assert len({json.dumps(one) for one in drawn(whole)}) == 14
    assert drawn(whole) != drawn(SweepStudy(spec(seed=4), None))


def test_the_sampler_learns(tmp_path: Path) -> None:
    found: dict[str, float] = {}
    for sampler in ("tpe", "random"):
        study = SweepStudy(spec(sampler=sampler, seed=1), None)
        for _ in range(40):
            finish(study, study.draw())
        values = [trial.value or 0.0 for trial in study.trials()]
        found[sampler] = sum(values[20:]) / 20
    assert found["tpe"] > found["random"]


def test_a_journal_cut_at_any_byte_is_a_study_that_goes_on(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    study = SweepStudy(spec(), journal)
    for _ in range(3):
        finish(study, study.draw())
    whole, before = journal.read_bytes(), drawn(study)
    begin = whole.index(b"\n", len(whole) // 3) + 1
    for end in [*random.Random(0).sample(range(begin, len(whole)), 30), len(whole)]:
        journal.write_bytes(whole[:end])
        assert repair_journal(journal) == end - (whole.rindex(b"\n", 0, end) + 1)
        continued = SweepStudy(spec(), journal)
        trials = continued.trials()
        assert drawn(continued) == before[: len(trials)]
        assert all(trial.overrides.keys() == SPACE.keys() for trial in trials), "a trial appears with all its values"
        for trial in trials:
            if trial.state == "running":
                finish(continued, trial)
        while len(trials) < 3:
            finish(continued, continued.draw())
            trials = continued.trials()
        assert drawn(continued) == before
    assert repair_journal(tmp_path / "none.log") == 0


def test_a_line_of_more_than_a_block_is_cut_off_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    path.write_bytes(b"{}\n" + b"x" * 200_000)
    assert repair_journal(path) == 200_000
    assert path.read_bytes() == b"{}\n"
    path.write_bytes(b"x" * 200_000)
    assert repair_journal(path) == 200_000 and path.read_bytes() == b""


def test_a_journal_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    path.write_bytes(b"no json\n{}\n")
    with pytest.raises(IntegrityError, match=r"journal of a sweep is not readable.*--restart"):
        SweepStudy(spec(), path)


def test_looking_at_a_study_writes_nothing(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    study = SweepStudy(spec(), journal)
    finish(study, study.draw())
    before = journal.read_bytes()
    assert len(SweepStudy(spec(), journal).trials()) == 1
    assert journal.read_bytes() == before


def test_values_come_back_as_they_were_asked_for(tmp_path: Path) -> None:
    study = SweepStudy(spec(), tmp_path / "journal.log")
    for _ in range(12):
        study.draw()
    for trial in SweepStudy(spec(), tmp_path / "journal.log").trials():
        values = trial.overrides
        assert values["model.hidden"] in SPACE["model.hidden"].choices
        assert type(values["schedule.warmup_steps"]) is int and values["schedule.warmup_steps"] in range(0, 41, 10)
        assert 1e-4 <= float(str(values["optimizer.learning_rate"])) <= 0.1
        assert trial.backend in ("jax", "torch") and "backend" not in values


def test_one_backend_is_no_parameter() -> None:
    study = SweepStudy(spec(backends=("jax",)), None)
    trial = study.draw()
    assert trial.backend == "jax" and trial.overrides.keys() == SPACE.keys()


def test_successive_halving_ends_what_falls_behind_and_tells_so_again_after_a_kill(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    halving = spec(pruner="asha", reduction=2)
    study = SweepStudy(halving, journal)
    first, second = study.draw(), study.draw()
    assert [study.report(first.number, epoch, 0.9) for epoch in (1, 2, 3, 4)] == [False] * 4
    finish(study, first, 0.9)
    assert study.report(second.number, 1, 0.8)
    reopened = SweepStudy(halving, journal)
    assert [reopened.was_pruned(number) for number in (0, 1)] == [False, True]
    reopened.prune(1, job="job", seconds=1.0)
    assert [(trial.state, trial.value) for trial in reopened.trials()] == [("finished", 0.9), ("pruned", 0.8)]


def test_what_a_continued_job_says_again_changes_nothing(tmp_path: Path) -> None:
    study = SweepStudy(spec(pruner="asha", reduction=2), tmp_path / "journal.log")
    first, second = study.draw(), study.draw()
    for epoch in (1, 2, 3):
        assert not study.report(first.number, epoch, 0.9)
    assert study.report(second.number, 1, 0.1)
    before = study.trials()
    size = (tmp_path / "journal.log").stat().st_size
    reopened = SweepStudy(spec(pruner="asha", reduction=2), tmp_path / "journal.log")
    assert not any(reopened.report(first.number, epoch, 0.9) for epoch in (1, 2, 3))
    assert reopened.report(second.number, 1, 0.1) and reopened.report(second.number, 2, 0.95)
    assert (tmp_path / "journal.log").stat().st_size == size
    assert reopened.trials() == before


def test_nothing_is_pruned_before_its_epochs_and_the_median_decides() -> None:
    late = SweepStudy(spec(pruner="asha", reduction=2, min_epochs=3), None)
    for value in (0.9, 0.1):
        trial = late.draw()
        ends = [late.report(trial.number, epoch, value) for epoch in (1, 2, 3)]
    assert ends == [False, False, True]
    median = SweepStudy(spec(pruner="median"), None)
    for value in (0.5, 0.6, 0.7, 0.8, 0.9):
        trial = median.draw()
        assert not median.report(trial.number, 1, value)
        finish(median, trial, value)
    assert median.report(median.draw().number, 1, 0.65)
    assert not median.report(median.draw().number, 1, 0.75)


def test_a_trial_takes_the_outcome_of_its_twin() -> None:
    study = SweepStudy(spec(pruner="asha"), None)
    first, second = study.draw(), study.draw()
    study.report(first.number, 1, 0.5)
    study.fail(first.number, "the loss is not finite", job="job-a", seconds=2.0)
    study.repeat(second.number, study.trials()[0])
    twin = study.trials()[1]
    assert (twin.state, twin.same_as, twin.message, twin.epochs, twin.job, twin.seconds) == (
        "failed",
        0,
        "the loss is not finite",
        {1: 0.5},
        "job-a",
        0.0,
    )


def test_importance_names_what_decides_and_is_silent_about_the_unknown() -> None:
    study = SweepStudy(spec(backends=("torch",), sampler="random"), None)
    for _ in range(3):
        finish(study, study.draw())
    assert study.importance() == {}
    for _ in range(37):
        finish(study, study.draw())
    found = study.importance()
    assert next(iter(found)) == "optimizer.learning_rate"
    assert found.keys() == SPACE.keys() and sum(found.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("text", "key", "entry"),
    [
        ("lr=1e-4..1e-1:log", "lr", {"low": 1e-4, "high": 1e-1, "log": True}),
        ("epochs=2..10:step=2", "epochs", {"low": 2, "high": 10, "step": 2}),
        ("a.b = -1.5..2", "a.b", {"low": -1.5, "high": 2}),
        ("model.hidden=[32],[64,64]", "model.hidden", {"choices": [[32], [64, 64]]}),
        ("model.activation=relu,gelu", "model.activation", {"choices": ["relu", "gelu"]}),
        ("optimizer.nesterov=true,false", "optimizer.nesterov", {"choices": [True, False]}),
        ("batch_size=16", "batch_size", {"choices": [16]}),
        ('data.path="../a","../b"', "data.path", {"choices": ["../a", "../b"]}),
    ],
)
def test_a_space_is_read_from_the_command_line(text: str, key: str, entry: dict[str, object]) -> None:
    assert parse_space(text) == (key, entry)


@pytest.mark.parametrize(
    "text", ["lr", "=1..2", "lr=", "lr=1..", "lr=a..b", "lr=1..2:lin", "lr=1..2:step", "lr=true..2"]
)
def test_what_is_no_space_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"--space optimizer\.learning_rate=1e-4") as caught:
        parse_space(text)
    assert caught.value.where == f"--space {text}"


def test_stock_optuna_reads_the_journal(tmp_path: Path) -> None:
    import optuna

    study = SweepStudy(spec(), tmp_path / "journal.log")
    finish(study, study.draw(), 0.75)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log"))
    stock = optuna.load_study(study_name="digits", storage=optuna.storages.JournalStorage(backend))
    assert stock.best_value == 0.75 and stock.direction == optuna.study.StudyDirection.MAXIMIZE
