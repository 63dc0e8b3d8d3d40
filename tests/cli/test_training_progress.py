"""What `noa train` shows, and what it says when somebody stops it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import noa_flows
from noa_cli import _console, _training_progress
from noa_cli.__main__ import run
from noa_flows import PipelineEvent
from noa_training import Step


def test_a_terminal_shows_at_once_what_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_console, "err", lambda: Console(stderr=True, force_terminal=True, width=100))
    with _training_progress.follow() as narrator:
        assert "reading the recipe" in capsys.readouterr().err
        narrator(PipelineEvent(step="train", phase="started", backend="torch"))
    assert "train" in capsys.readouterr().err


def test_whoever_stops_a_training_reads_how_it_goes_on(
    registered: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, on_event: Any, **__: Any) -> None:
        job = Step(
            job_id="j",
            at=0.0,
            epoch=1,
            step=120,
            total_steps=400,
            loss=0.5,
            learning_rate=0.1,
            samples_per_s=1e3,
            eta_s=2.0,
        )
        on_event(PipelineEvent(step="train", phase="progress", backend="torch", job=job))
        raise KeyboardInterrupt

    monkeypatch.setattr(noa_flows, "run_pipeline", interrupted, raising=False)
    assert run(["train", "noisy", "--directory", str(registered)]) == 130
    assert "stopped at step 120; the same command continues" in capsys.readouterr().err


def test_whoever_stops_waiting_for_a_run_reads_that_it_goes_on_and_how_to_end_it(
    registered: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(noa_flows, "run", lambda *_, **__: SimpleNamespace(id="a1b2"), raising=False)
    monkeypatch.setattr(noa_flows, "follow", interrupted, raising=False)
    monkeypatch.chdir(registered)
    assert run(["flows", "run", "noisy"]) == 130
    assert "the run goes on; end it with: noa flows cancel a1b2" in capsys.readouterr().err


def test_whoever_stops_noa_up_reads_what_that_stops(
    registered: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(noa_flows, "up", interrupted, raising=False)
    monkeypatch.chdir(registered)
    assert run(["up"]) == 130
    assert "what this call had started is stopped again; what ran before goes on" in capsys.readouterr().err
