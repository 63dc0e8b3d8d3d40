"""`noa runs` on runs that were tracked really: as a list, one by one, side by side, as curves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from noa.settings import load_settings
from noa_cli.__main__ import run
from noa_registry import MetricRow, Tracker, open_tracker
from noa_registry.runs.datasets import DatasetInput
from noa_training.job_folder import attempt_folder, write_state


def track(tracker: Tracker, *, name: str, backend: str, losses: list[float], rate: str, status: str | None) -> str:
    """Write a run as a job does."""
    tags = {
        "noa.job_id": name,
        "noa.attempt": "1",
        "noa.model": "digits",
        "noa.backend": backend,
        "noa.recipe": "recipe.py",
        "noa.best_by": "accuracy",
        "noa.steps_per_epoch": "2",
        "noa.env.python": "3.11.9",
        "noa.env.packages": json.dumps({"numpy": "2.1", backend: "1.0"}),
        "mlflow.source.git.commit": "0" * 40,
        "mlflow.user": "ada",
        "team": "vision",
    }
    run_id = tracker.start_run(name, {"lr": rate, "epochs": 3}, tags)
    rows = [
        MetricRow(key="train.loss", value=loss, step=step, timestamp_ms=1000 + step) for step, loss in enumerate(losses)
    ]
    rows += [MetricRow(key="best.accuracy", value=1 - losses[-1], step=len(losses), timestamp_ms=2000)]
    tracker.log_metrics(run_id, rows)
    data = DatasetInput(
        name="digits-train", digest="d" * 32, context="training", source_type="code", source="{}", schema="{}",
        profile='{"num_rows": 9}',
    )  # fmt: skip
    tracker.log_datasets(run_id, [data])
    tracker.log_file(run_id, "config.json", b"{}")
    if status is not None:
        tracker.finish(run_id, status)  # type: ignore[arg-type]
    return run_id


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, add_empty_registry: Callable[[Path], None]) -> Path:
    """A project with three runs: finished, failed, and one whose process is gone."""
    root = tmp_path_factory.mktemp("tracked")
    (root / "noa.toml").write_text('[project]\nname = "mine"\n')
    add_empty_registry(root)
    settings = load_settings(root).settings
    tracker = open_tracker(settings.registry, "mine")
    runs = [
        track(tracker, name="one", backend="torch", losses=[0.9, 0.5, 0.25], rate="0.1", status="FINISHED"),
        track(tracker, name="two", backend="jax", losses=[0.8, 0.75], rate="0.2", status="FAILED"),
        track(tracker, name="\x1b[31mred", backend="torch", losses=[0.5], rate="0.1", status=None),
    ]
    tracker.close()
    folder = attempt_folder(settings.training.jobs_dir / "\x1b[31mred", 1)
    write_state(folder, "failed", now=1.0)
    (root / "ids.json").write_text(json.dumps(runs))
    return root


def ids(project: Path) -> list[str]:
    return json.loads((project / "ids.json").read_text())


def noa(project: Path, capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    capsys.readouterr()
    assert run([*words, "--directory", str(project)]) == code, capsys.readouterr()
    return capsys.readouterr().out


def test_a_list_shows_each_run_and_what_is_asked_for(tracked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two, red = ids(tracked)
    out = noa(tracked, capsys, "runs", "list")
    first = next(line for line in out.splitlines() if one[:12] in line)
    for part in ("one", "torch", "finished", "accuracy 0.75"):
        assert part in first
    assert "experiment" not in out and "\x1b" not in out and "\\x1b[31mred" in out
    assert "interrupted" in next(line for line in out.splitlines() if red[:12] in line)
    assert [word for word in out.split() if word in {one[:12], two[:12], red[:12]}] == [
        red[:12], two[:12], one[:12],
    ]  # fmt: skip
    found = json.loads(noa(tracked, capsys, "runs", "list", "backend:torch", "-status:interrupted", "--json"))
    assert [entry["run_id"] for entry in found["runs"]] == [one]
    assert found["runs"][0]["metric"] == {"name": "accuracy", "value": 0.75, "is_best": True}
    assert two[:12] in noa(tracked, capsys, "runs", "list", "metric.train.loss>0.5")
    assert "train.loss 0.25 (last)" in noa(tracked, capsys, "runs", "list", "one", "--metric", "loss")
    page = json.loads(noa(tracked, capsys, "runs", "list", "--limit", "2", "--json"))
    rest = json.loads(noa(tracked, capsys, "runs", "list", "--limit", "2", "--cursor", page["next_cursor"], "--json"))
    assert [entry["run_id"] for entry in page["runs"] + rest["runs"]] == [red, two, one]
    assert noa(tracked, capsys, "runs", "list", "model:nobody") == ""
    assert run(["runs", "list", "stat:x", "--directory", str(tracked)]) == 1
    assert "Did you mean `status`?" in capsys.readouterr().err


def test_one_run_is_shown_with_all_it_holds(tracked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two, _ = ids(tracked)
    out = noa(tracked, capsys, "runs", "show", one[:10])
    for part in (one, "ada", "train.loss", "0.25", "lr", "digits-train", "numpy", "team", "vision", "config.json"):
        assert part in out
    found = json.loads(noa(tracked, capsys, "runs", "show", one, "--json"))
    assert found["params"] == {"epochs": "3", "lr": "0.1"}
    assert found["environment"] == {"python": "3.11.9", "numpy": "2.1", "torch": "1.0"}
    assert found["git"] == {"commit": "0" * 40}
    assert [dataset["name"] for dataset in found["datasets"]] == ["digits-train"]
    assert found["files"] == [{"path": "config.json", "size_bytes": 2}]
    assert "two" in noa(tracked, capsys, "runs", "show", "two")
    assert run(["runs", "show", "", "--directory", str(tracked)]) == 1
    assert "noa runs list" in capsys.readouterr().err
    assert run(["runs", "show", "zzz", "--json", "--directory", str(tracked)]) == 1
    assert json.loads(capsys.readouterr().err)["error"] == "NotFoundError"
    del two


def test_runs_are_compared_by_what_differs(tracked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two, red = ids(tracked)
    out = noa(tracked, capsys, "runs", "compare", one, two)
    assert "+0.5" in out.replace("best.accuracy", "") or "-0.5" in out
    assert "lr" in out and "epochs" not in out.replace("noa.steps_per_epoch", "")
    assert "the same: git, data, tags" in out
    found = json.loads(noa(tracked, capsys, "runs", "compare", one, two, red, "--json"))
    assert {row["key"]: row["values"] for row in found["params"]} == {"lr": ["0.1", "0.2", "0.1"]}
    accuracy = next(row for row in found["metrics"] if row["key"] == "best.accuracy")
    assert accuracy["values"] == [0.75, 0.25, 0.5] and accuracy["differences"] == [0.0, -0.5, -0.25]
    several = noa(tracked, capsys, "runs", "compare", one, two, red)
    assert f"the difference from {one[:12]}" in several and "(-0.5)" in several
    assert run(["runs", "compare", one, "--directory", str(tracked)]) == 1
    assert "2 to 20" in capsys.readouterr().err


def test_curves_are_drawn_as_text_or_as_a_picture(
    tracked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, _ = ids(tracked)
    text = noa(tracked, capsys, "runs", "plot", one)
    assert text.startswith(f"train.loss over steps\none ({one[:8]}): 0.9 -> 0.25 in 3 points\n")
    both = noa(tracked, capsys, "runs", "plot", one, two, "--over", "epoch")
    assert "a  one" in both and "b  two" in both and "over epochs" in both
    for name in ("loss.png", "loss.svg"):
        assert noa(tracked, capsys, "runs", "plot", one, two, "-o", str(tmp_path / name)) == ""
        assert (tmp_path / name).stat().st_size > 1000
    found: list[Any] = json.loads(noa(tracked, capsys, "runs", "plot", one, "--metric", "train.loss", "--json"))
    assert [(curve["key"], curve["x"], curve["values"]) for curve in found] == [
        ("train.loss", [0.0, 1.0, 2.0], [0.9, 0.5, 0.25])
    ]
    assert run(["runs", "plot", one, "-o", "x.pdf", "--directory", str(tracked)]) == 1
    assert ".png or .svg" in capsys.readouterr().err
    assert run(["runs", "plot", one, "--metric", "acuracy", "--directory", str(tracked)]) == 1
    assert "`best.accuracy`" in capsys.readouterr().err


def test_an_output_without_braille_gets_letters(
    tracked: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("noa_cli.commands.runs_plot._has_braille", lambda: False)
    text = noa(tracked, capsys, "runs", "plot", ids(tracked)[0])
    assert text.isascii() and "aa" in text


def test_where_nothing_was_tracked_a_list_is_empty_and_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "noa.toml").write_text("")
    assert noa(tmp_path, capsys, "runs", "list") == ""
    assert json.loads(noa(tmp_path, capsys, "runs", "list", "--json"))["runs"] == []
    assert [path.name for path in tmp_path.iterdir()] == ["noa.toml"]


def test_what_is_read_while_a_job_writes_is_one_state(tracked: Path, tmp_path: Path) -> None:
    """A reader holds a state of the database and keeps no writer waiting."""
    from noa_registry.runs import open_runs

    project = tmp_path / "project"
    shutil.copytree(tracked, project)
    settings = load_settings(project).settings.registry
    tracker = open_tracker(settings.model_copy(update={"lock_timeout_s": 5.0}), "mine")
    with open_runs(settings) as book:
        for step in range(20):
            run_id = tracker.start_run(f"r{step}", {}, {"noa.best_by": "x"})
            tracker.log_metrics(run_id, [MetricRow(key="best.x", value=step, step=step, timestamp_ms=step)])
            page = book.page(f"name:r{step}")
            assert [(one.run_id, one.metric and one.metric.value) for one in page.runs] == [(run_id, step)]
    tracker.close()
