"""A recipe is the user's own Python: whatever it does, it does not do it in noa's process."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from flows_helpers import make_project, read_pid, wait_until

import noa_flows
from noa.errors import ConversionError, DependencyMissingError, RecipeError, TrainingError
from noa.settings import Settings
from noa_conversion import load_format
from noa_flows import PipelineResult, evaluate_job, plan_pipeline, run_pipeline, train_job
from noa_flows._process_tree import is_alive
from noa_flows._recipe_messages import error_from, error_to, evidence_from, evidence_to
from noa_flows._recipe_output import OUTPUT_FILE
from noa_flows._test_data import load_test_data
from noa_flows.recipe_process import ask_recipe, end_recipe_processes, keep_recipe_processes
from noa_registry import Evidence, PredictionsEvidence, Registry
from noa_registry.evidence import Attachment
from noa_training import measure, recipe_of

SECRETS = ("NOA__WEBHOOKS__CI__SECRET", "NOA_FLOW_SETTINGS", "MLFLOW_TRACKING_PASSWORD")
SECOND_TIME = """
import sys
IS_SECOND = any("_recipe_child" in argument for argument in sys.orig_argv)
"""
HOSTILE = f"""
import json, os, threading, time, warnings
warnings.simplefilter("ignore")
with open(__file__ + ".seen", "a") as seen:
    seen.write(json.dumps([os.getpid(), [name for name in {SECRETS!r} if name in os.environ]]) + "\\n")
plain = data


def data(rows: int = 240):
    threading.Thread(target=time.sleep, args=(100_000,)).start()
    os.umask(0o777)
    os.close(2)
    os.close(0)
    os.fork()
    print("printed where the answers are")
    return plain(rows)


recipe = replace(recipe, data=data)
"""


def change(settings: Settings, addition: str) -> Settings:
    recipe = settings.root / "recipe.py"
    recipe.write_text(recipe.read_text() + "\nfrom dataclasses import replace\n" + addition)
    return settings


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.mark.torch
def test_what_a_recipe_does_to_its_process_reaches_neither_noa_nor_its_result(
    tiny_project: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = change(tiny_project, HOSTILE)
    for name in SECRETS:
        monkeypatch.setenv(name, "secret")
    mask, threads, before = os.umask(0o022), threading.active_count(), children()
    try:
        result = run_pipeline(settings, "tiny", promote=True)
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(mask)
    assert result.best.metrics["accuracy"] > 0.5
    with Registry.open(settings) as registry:
        assert registry.input_example(result.best.version)["features"].shape == (9, 4)
    seen = [ast.literal_eval(line) for line in (settings.root / "recipe.py.seen").read_text().splitlines()]
    assert len({pid for pid, _ in seen}) == 2, "the job and one process for everything else"
    assert os.getpid() not in {pid for pid, _ in seen}
    assert [names for _, names in seen if names] == []
    os.fstat(2)
    assert threading.active_count() <= threads
    assert children() <= before


@pytest.mark.torch
def test_a_recipe_that_ends_its_process_after_training_fails_the_command_with_a_reason(tiny_project: Settings) -> None:
    settings = change(
        tiny_project,
        SECOND_TIME + "import os\nplain = data\n"
        "def data(rows=240):\n    if IS_SECOND:\n        print('last words', flush=True)\n        os._exit(0)\n"
        "    return plain(rows)\nrecipe = replace(recipe, data=data)\n",
    )
    command = [sys.executable, "-m", "noa_cli", "train", "tiny"]
    done = subprocess.run(command, cwd=settings.root, capture_output=True, text=True, timeout=300, check=False)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1, said
    assert "ended in the step `evaluate` without an answer" in said and "exit code 0; last words" in said
    assert OUTPUT_FILE in said
    (kept,) = settings.root.glob(f".noa/jobs/*/attempt-1/{OUTPUT_FILE}")
    assert "last words" in kept.read_text()
    with Registry.open(settings) as registry:
        assert registry.models() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_process_ends_with_the_command_however_that_ends(tmp_path: Path, number: signal.Signals) -> None:
    settings = change(
        make_project(tmp_path / "project"),
        "import os, time\nfrom pathlib import Path\n"
        "Path(__file__ + '.pid').write_text(f'{os.getpid()}\\n')\ntime.sleep(1000)\n",
    )
    command = [sys.executable, "-m", "noa_cli", "train", "tiny"]
    with subprocess.Popen(command, cwd=settings.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            recipe = read_pid(settings.root / "recipe.py.pid")
            process.send_signal(number)
            process.wait(20)
        finally:
            process.kill()
    wait_until(lambda: not is_alive(recipe))
    assert process.returncode != 0


@pytest.fixture(scope="module", params=["torch", "jax"])
def trained(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    add_empty_registry: Callable[[Path], None],
) -> Iterator[tuple[Any, ...]]:
    root = tmp_path_factory.mktemp("recipe-process") / "project"
    add_empty_registry(root)
    settings = make_project(root)
    yield settings, run_pipeline(settings, "tiny", backends=[request.param])


@pytest.mark.torch
@pytest.mark.jax
def test_what_the_process_measures_is_what_is_measured_here(trained: tuple[Settings, PipelineResult]) -> None:
    settings, result = trained
    job, version = result.best.job, result.best.version
    test, recipe = load_test_data(job), recipe_of(job.request)
    with Registry.open(settings) as registry:
        facts = registry.evidence(version.name, version.number)
        example = registry.input_example(version)
        for format, folder in ((job.backend, job.native_folder), ("onnx", job.folder / "onnx")):
            digest = version.formats[format].digest
            here = measure(recipe, load_format(format, folder), test, subject=format, digest=digest)
            there = {fact.kind: fact for fact in facts if fact.subject == format}
            of_served_only = () if format == "onnx" else ("predictions", "calibration")
            for fact in here.evidence:
                assert fact.kind in of_served_only or there[fact.kind].values == fact.values
        described = PredictionsEvidence.from_evidence(next(fact for fact in facts if fact.kind == "predictions"))
        assert registry.attachment(described.attachment).content
    assert list(example) == list(test.inputs)
    np.testing.assert_array_equal(example["features"], test.inputs["features"][:9])


@pytest.mark.torch
def test_a_question_is_given_up_when_its_process_is_ended_and_the_next_one_is_answered(tmp_path: Path) -> None:
    settings = change(
        make_project(tmp_path / "project"),
        "import time\nfrom pathlib import Path\nplain = data\n"
        "def data(rows=240):\n    flag = Path(__file__ + '.waiting')\n"
        "    if not flag.exists():\n        flag.touch()\n        time.sleep(1000)\n    return plain(rows)\n"
        "recipe = replace(recipe, data=data)\n",
    )
    request = plan_pipeline(settings, "tiny").requests[0]
    asked = {"request": {"recipe": "recipe.py", "root": str(settings.root), "backend": "torch"}}
    caught: list[Exception] = []

    def ask() -> None:
        try:
            ask_recipe(request, "data", asked)
        except TrainingError as exc:
            caught.append(exc)

    before = children()
    with keep_recipe_processes(settings.root):
        thread = threading.Thread(target=ask)
        thread.start()
        wait_until((settings.root / "recipe.py.waiting").exists)
        begun = time.monotonic()
        end_recipe_processes([request])
        thread.join(20)
        assert not thread.is_alive() and time.monotonic() - begun < 10
        assert "stopped in the step `data`" in str(caught[0])
        assert ask_recipe(request, "data", asked)["rows"] == 80
        assert children() > before
    assert children() <= before


@pytest.mark.torch
def test_a_model_that_cannot_be_built_again_names_its_line(tiny_project: Settings) -> None:
    settings = change(
        tiny_project,
        SECOND_TIME + "from noa_training import Factories\n"
        "def factory(shape):\n    from torch import nn\n    if IS_SECOND:\n        return 1 / 0\n"
        "    return nn.Linear(4, shape.outputs)\nrecipe = replace(recipe, model=Factories(torch=factory))\n",
    )
    with pytest.raises(RecipeError, match=r"failed in the step `convert`: ZeroDivisionError") as caught:
        run_pipeline(settings, "tiny")
    assert "recipe.py:" in str(caught.value.where)


@pytest.mark.torch
def test_data_that_has_changed_since_training_is_refused_as_before(tiny_project: Settings) -> None:
    from noa.errors import IntegrityError

    settings = tiny_project
    job = train_job(plan_pipeline(settings, "tiny").requests[0], settings, on_event=lambda event: None)
    recipe = settings.root / "recipe.py"
    recipe.write_text(recipe.read_text().replace("default_rng(0)", "default_rng(1)"))
    with pytest.raises(IntegrityError, match="data has changed") as caught:
        evaluate_job(job, settings)
    assert caught.value.facts["file"] == "recipe.py"


def test_facts_and_errors_cross_the_border_unchanged() -> None:
    fact = Evidence(
        kind="equivalence",
        subject="onnx",
        digest="sha256:" + "0" * 64,
        passed=False,
        values={"worst": 0.1 + 0.2, "output": "logits", "rows": [1, 2]},
        attachments=(Attachment(media_type="text/plain", content=bytes(range(256))),),
    )
    again = evidence_from(evidence_to(fact))
    assert again == fact and again.attachments == fact.attachments
    error = error_from(
        error_to(ConversionError("differs", where="here", expected=1, remedy="do", evidence=fact, row=3))
    )
    assert isinstance(error, ConversionError)
    assert str(error) == "differs (here); expected 1. do" and error.facts == {"evidence": fact, "row": 3}
    missing = error_from(error_to(DependencyMissingError("jax", extra="jax", purpose="the backend `jax`")))
    assert isinstance(missing, DependencyMissingError) and missing.extra == "jax"


RUNS_RECIPES = {"find_recipe", "load_recipe", "recipe_of", "load_dataset", "load_trained", "finished_job", "run_job"}
ONLY_THERE = {"_recipe_space.py", "_recipe_steps.py", "_test_data.py"}
OF_ITS_OWN_COMMAND = {"optimisation.py"}  # `noa optimise` measures candidates on the recipe's rows in its own process


def test_no_step_of_a_pipeline_can_load_a_recipe() -> None:
    """What loads a recipe, its data or its model is imported by what runs in the recipe's process, and nowhere else."""
    found: set[str] = set()
    for file in Path(noa_flows.__file__).parent.rglob("*.py"):
        imports = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
        names = {alias.name for node in imports for alias in node.names}
        modules = {node.module for node in imports}
        if names & RUNS_RECIPES or modules & {
            "noa_flows._recipe_space",
            "noa_flows._recipe_steps",
            "noa_flows._test_data",
        }:
            found.add(file.name)
    assert found - {"_recipe_child.py"} == ONLY_THERE | OF_ITS_OWN_COMMAND
