"""The examples train as they are, on a small slice, through the same `run_job` that `noa train` uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from noa.settings import TrainingSettings, load_settings
from noa_conversion import load_format
from noa_training import Dataset, JobEvent, JobRequest, Recipe, TrainedJob, evaluate, load_dataset, recipe_of, run_job

EXAMPLES = Path(__file__).parents[2] / "examples"


def train(example: str, backend: str, jobs_dir: Path, overrides: dict[str, Any]) -> tuple[TrainedJob, Recipe, Dataset]:
    events: list[JobEvent] = []
    path = load_settings(EXAMPLES / example).settings.recipes[example].path
    request = JobRequest(
        recipe=path,
        root=EXAMPLES / example,
        backend=backend,
        overrides=overrides,
        threads=1,  # type: ignore[arg-type]
    )
    job = run_job(request, TrainingSettings(jobs_dir=jobs_dir), registry=None, on_event=events.append)
    recipe = recipe_of(request)
    return job, recipe, load_dataset(recipe, root=request.root)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_digits_learns_from_a_slice_on_both_backends(tmp_path: Path, backend: str) -> None:
    overrides = {"data.fraction": 0.25, "epochs": 6}
    job, recipe, dataset = train("digits", backend, tmp_path, overrides)
    assert dataset.test.inputs["image"].shape == (360, 1, 8, 8)
    runnable = load_format(backend, job.native_folder, threads=1)
    assert evaluate(recipe, runnable, dataset.test)["accuracy"] > 0.9


def test_digits_tests_on_the_same_images_whatever_it_trains_on() -> None:
    root = EXAMPLES / "digits"
    requests = [
        JobRequest(recipe="recipe.py", root=root, backend="torch", overrides={"data.fraction": part})
        for part in (0.6, 1.0)
    ]
    small, large = (load_dataset(recipe_of(request), root=root) for request in requests)
    assert small.test.digest == large.test.digest and small.validation.digest == large.validation.digest
    assert small.train.rows < large.train.rows


def test_flights_learns_from_a_slice_and_tests_on_the_next_month(tmp_path: Path) -> None:
    overrides = {"data.months": 2, "data.rows_per_month": 2500, "epochs": 4, "batch_size": 128}
    job, recipe, dataset = train("flights", "torch", tmp_path, overrides)
    rows = (dataset.train.rows, dataset.validation.rows, dataset.test.rows)
    assert 4000 < rows[0] < 5600 and 200 < rows[1] < 600 and 2300 < rows[2] < 3100
    metrics = evaluate(recipe, load_format("torch", job.native_folder, threads=1), dataset.test)
    assert metrics["auc"] > 0.55, "better than chance on a month it has never seen"
    assert set(metrics) == {"loss", *recipe.metrics}


@pytest.mark.parametrize("example", ["digits", "flights"])
def test_the_settings_of_an_example_are_valid_and_name_its_recipe(example: str) -> None:
    settings = load_settings(EXAMPLES / example).settings
    assert set(settings.recipes) == set(settings.gates) == set(settings.endpoints) == {example}
    assert (settings.root / settings.recipes[example].path).is_file()


def test_the_demo_recipe_fits_on_one_page() -> None:
    assert len((EXAMPLES / "digits" / "recipe.py").read_text().splitlines()) <= 60


def test_the_digits_project_is_small() -> None:
    """It is what people see first: a whole project in sixty lines."""
    folder = Path(__file__).resolve().parents[2] / "examples" / "digits"
    assert sum(len((folder / name).read_text().splitlines()) for name in ("noa.toml", "recipe.py")) <= 60
