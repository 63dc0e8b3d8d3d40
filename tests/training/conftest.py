"""A tiny project: a recipe file whose dataset is drawn from a seed, small enough to train in well under a second."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from noa.settings import TrainingSettings
from noa_training import JobEvent, JobRequest, TrainedJob, run_job

sys.path.insert(0, str(Path(__file__).parent))  # pytest imports test files by path, so a helper beside them needs this

TINY = """
import numpy as np

from noa_training import SGD, AdamW, Dataset, EarlyStopping, Recipe, Split, WarmupCosine, cnn, mlp


def images(rows, random):
    targets = random.integers(0, 3, rows)
    pixels = random.normal(0, 0.5, (rows, 1, 6, 6)).astype(np.float32)
    pixels[np.arange(rows), 0, targets * 2, :] += 2
    return Split(inputs={"image": pixels}, targets=targets)


def data(rows=200, noise=0.0):
    random = np.random.default_rng(7)
    return Dataset(train=images(rows, random), validation=images(50, random), test=images(50, random))


tiny = Recipe(
    name="tiny",
    data=data,
    data_params={"rows": 200},
    model=cnn(channels=(4, 8), hidden=16, dropout=0.2),
    objective="cross_entropy",
    metrics=("accuracy", "f1"),
    optimizer=AdamW(learning_rate=5e-3),
    schedule=WarmupCosine(warmup_steps=5),
    gradient_clip=1.0,
    epochs=4,
    batch_size=32,
    seed=3,
)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a `recipe.py`."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "recipe.py").write_text(TINY)
    return root


class Jobs:
    """Runs jobs of one project in this process and keeps their events."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.events: list[JobEvent] = []

    def settings(self, **changes: Any) -> TrainingSettings:
        return TrainingSettings(jobs_dir=self.root / "jobs", **changes)

    def request(self, backend: str = "torch", **changes: Any) -> JobRequest:
        return JobRequest(**({"recipe": "recipe.py", "root": self.root, "backend": backend, "threads": 1} | changes))

    def run(
        self,
        backend: str = "torch",
        *,
        settings: dict[str, Any] | None = None,
        should_stop: Callable[[], bool] | None = None,
        registry: Any = None,
        **changes: Any,
    ) -> TrainedJob:
        options: dict[str, Any] = {} if should_stop is None else {"should_stop": should_stop}
        return run_job(
            self.request(backend, **changes),
            self.settings(**settings or {}),
            registry=registry,
            on_event=self.events.append,
            **options,
        )

    @staticmethod
    def stop_after(count: int) -> Callable[[], bool]:
        """Return a `should_stop` that lets `count` steps pass."""
        asked = 0

        def should_stop() -> bool:
            nonlocal asked
            asked += 1
            return asked > count

        return should_stop

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def jobs(project: Path) -> Jobs:
    return Jobs(project)
