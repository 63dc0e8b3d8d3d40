"""The room's shop window."""

from __future__ import annotations

import subprocess
import sys

import noa_training
from noa_training import Failed, Step, parse_event


def test_importing_the_room_loads_no_framework_and_not_even_numpy() -> None:
    heavy = ("numpy", "torch", "jax", "mlflow", "pydantic")
    code = f"import sys, noa_training; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_everything_in_the_window_is_there() -> None:
    assert all(getattr(noa_training, name) is not None for name in noa_training.__all__)
    assert len(set(noa_training.__all__)) == len(noa_training.__all__)


def test_events_read_back_from_their_line() -> None:
    step = Step(
        job_id="j", at=1.5, step=3, epoch=1, total_steps=9, loss=0.5, learning_rate=0.1, samples_per_s=9.0, eta_s=2.0
    )
    failed = Failed(job_id="j", at=1.5, state="failed", message="m", error={"error": "TrainingError", "where": None})
    for event in (step, failed):
        assert parse_event(event.to_json()) == event
        assert "\n" not in event.to_json()
