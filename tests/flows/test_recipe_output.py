"""What a recipe prints is in its job's folder, however the job ended, and fills no disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from noa.errors import RecipeError
from noa.settings import Settings
from noa_flows import evaluate_job, plan_pipeline, run_pipeline, train_job
from noa_flows._recipe_output import OUTPUT_FILE, RecipeOutput
from noa_flows.recipe_process import keep_recipe_processes

PRINTS = """
import logging, os, sys, warnings
from dataclasses import replace
plain = data


def data(rows=240):
    after = any("_recipe_child" in argument for argument in sys.orig_argv)
    print("printed", "after" if after else "in", "training")
    warnings.warn("warned of")
    logging.warning("logged")
    os.write(2, b"raw")
    frame = sys._getframe()
    while frame is not None:
        if "events" in frame.f_locals:
            os.write(frame.f_locals["events"].fileno(), b"z")
            break
        frame = frame.f_back
    fail()
    return plain(rows)


def fail():
    pass


recipe = replace(recipe, data=data)
"""


@pytest.mark.torch
def test_what_a_recipe_prints_is_in_the_folder_of_a_job_that_succeeds(tiny_project: Settings) -> None:
    settings, recipe = tiny_project, tiny_project.root / "recipe.py"
    recipe.write_text(recipe.read_text() + PRINTS)
    result = run_pipeline(settings, "tiny")
    text = (result.best.job.folder / OUTPUT_FILE).read_text()
    training, _, after = text.partition("[the recipe after training")
    assert training.startswith("[training]\nprinted in training\n")
    assert "printed after training\n" in after
    for part in (training, after):
        assert "UserWarning: warned of" in part and "WARNING:root:logged" in part and "raw" in part


@pytest.mark.torch
def test_a_job_that_fails_says_where_what_it_printed_is(tiny_project: Settings) -> None:
    settings, recipe = tiny_project, tiny_project.root / "recipe.py"
    request = plan_pipeline(settings, "tiny").requests[0]
    recipe.write_text(recipe.read_text() + PRINTS.replace("    pass", "    raise ValueError('no rows')"))
    with pytest.raises(RecipeError, match="no rows") as caught:
        train_job(request, settings, on_event=lambda event: None)
    (path,) = settings.root.glob(f".noa/jobs/*/attempt-1/{OUTPUT_FILE}")
    assert caught.value.remedy is not None and caught.value.remedy.endswith(f"what it printed is in {path}")
    assert "printed in training\n" in path.read_text()


@pytest.mark.torch
def test_a_step_after_training_that_fails_says_where_its_traceback_is(tiny_project: Settings) -> None:
    settings, recipe = tiny_project, tiny_project.root / "recipe.py"
    fails = "    if any('_recipe_child' in text for text in sys.orig_argv):\n        raise ValueError('no rows')"
    recipe.write_text(recipe.read_text() + PRINTS.replace("    pass", fails))
    job = train_job(plan_pipeline(settings, "tiny").requests[0], settings, on_event=lambda event: None)
    with keep_recipe_processes(settings.root), pytest.raises(RecipeError, match="no rows") as caught:
        evaluate_job(job, settings)
    path = job.folder / OUTPUT_FILE
    assert caught.value.remedy == f"What it printed is in {path}"
    assert "ValueError: no rows" in path.read_text().partition("[the recipe after training")[2]


def test_of_endless_output_the_first_and_the_last_part_are_kept(tmp_path: Path) -> None:
    output = RecipeOutput()
    lines = [f"{number:09} {'x' * 90}" for number in range(50_000)]
    for line in lines:
        output.take(line)
    path = output.append_to(tmp_path, "training")
    assert path is not None
    content = path.read_text()
    title, first, *middle, last = content.splitlines()
    assert (title, first, last) == ("[training]", lines[0], lines[-1])
    (gap,) = [line for line in middle if line.startswith("[")]
    left_out = int(gap.removeprefix("[").partition(" ")[0])
    kept = len(content) - len(title) - len(gap) - 2
    assert left_out + kept == sum(len(line) + 1 for line in lines) and kept <= 2 << 20
    assert output.last_line() == lines[-1]


def test_output_is_appended_and_a_folder_that_is_gone_costs_only_the_output(tmp_path: Path) -> None:
    output = RecipeOutput()
    assert output.append_to(tmp_path, "nothing yet") is None
    output.take("one")
    assert output.append_to(None, "no folder yet") is None
    output.append_to(tmp_path, "first")
    output.take("two")
    output.append_to(tmp_path, "second")
    assert (tmp_path / OUTPUT_FILE).read_text() == "[first]\none\n[second]\ntwo\n"
    output.take("three")
    assert output.append_to(tmp_path / "gone", "third") is None
