"""The worker process, for real: killed at random, stopped, orphaned, refused."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from noa_training import (
    Failed,
    Finished,
    JobEvent,
    Resumed,
    Step,
    Warned,
    WorkerRequest,
    load_result,
    parse_event,
    read_state,
)
from samples import mostly

if TYPE_CHECKING:
    from tests.training.conftest import Jobs

DEADLINE_S = 120.0
# Small steps, many checkpoints: a kill hits the middle of an epoch, and often a checkpoint that is being written.
OFTEN = {"checkpoint_every_s": 0.01, "log_every_steps": 1}
LONG = {"epochs": 30, "data.rows": 320}
MODELS = {
    "cnn": "model=cnn(channels=(4, 8), hidden=16, dropout=0.2)",
    "resnet": 'model="resnet", model_params={"channels": (4, 8), "blocks": 1, "dropout": 0.2}',
}


@contextmanager
def worker(jobs: Jobs, backend: str, settings: dict[str, Any], **changes: Any) -> Iterator[subprocess.Popen[str]]:
    path = jobs.root / f"request-{backend}.json"
    request = WorkerRequest(
        request=jobs.request(backend, **changes), settings=jobs.settings(**settings), parent_pid=os.getpid()
    )
    path.write_text(request.to_json())
    command = [sys.executable, "-m", "noa_training.worker", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def events_of(process: subprocess.Popen[str]) -> Iterator[JobEvent]:
    assert process.stdout is not None
    for line in process.stdout:
        yield parse_event(line)


def finish(process: subprocess.Popen[str]) -> tuple[int, list[JobEvent], str]:
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, [parse_event(line) for line in out.splitlines()], err


def weights_of(folder: str | Path) -> dict[str, np.ndarray]:
    return load_file(Path(folder) / "model" / "weights.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "most_kills", "model"),
    mostly("chaos", [*product(["torch", "jax"], [3], MODELS), ("torch", 1, "resnet")], sample=[("torch", 1, "resnet")]),
)
def test_killed_at_random_and_continued_ends_bit_identical(
    jobs: Jobs, backend: str, most_kills: int, model: str
) -> None:
    """With dropout and shuffling, one thread; the uninterrupted run is done last, by a worker like the others.

    A residual network has running statistics, which no optimizer knows.
    """
    recipe = jobs.root / "recipe.py"
    text = recipe.read_text()
    assert MODELS["cnn"] in text
    recipe.write_text(text.replace(MODELS["cnn"], MODELS[model]))
    chance = random.Random(f"{backend}-kills")
    resumed: list[int] = []
    kills = 0
    # A few more where chance had every checkpoint at the end of an epoch.
    while kills < most_kills or (kills < most_kills + 2 and not any(step % 10 for step in resumed)):
        kills += 1
        with worker(jobs, backend, OFTEN, overrides=LONG) as process:
            count = 0
            wanted = chance.randint(5, 50)
            for event in events_of(process):
                if isinstance(event, Resumed):
                    resumed.append(event.step)
                count += isinstance(event, Step)
                if count >= wanted:
                    break
            time.sleep(chance.random() * 0.01)  # anywhere within a step or a write, not right after an event
            process.send_signal(signal.SIGKILL)
            assert process.wait(DEADLINE_S) == -signal.SIGKILL, f"it ended before kill {kills}"
    with worker(jobs, backend, OFTEN, overrides=LONG) as process:
        code, events, err = finish(process)
    assert code == 0, err
    resumed += [event.step for event in events if isinstance(event, Resumed)]
    assert len(resumed) == kills and resumed == sorted(resumed) and resumed[0] > 0
    assert any(step % 10 for step in resumed), "a kill in mid-epoch"
    killed = load_result(Path(events[-1].folder))  # type: ignore[union-attr]
    with worker(jobs, backend, {}, overrides=LONG) as process:
        code, events, err = finish(process)
    assert code == 0, err
    whole = load_result(Path(events[-1].folder))  # type: ignore[union-attr]
    assert (killed.attempt, whole.attempt) == (1, 2)
    assert whole.resumed_from_step is None and killed.resumed_from_step == resumed[-1]
    assert killed.metrics == whole.metrics and killed.steps == whole.steps
    assert any(name.endswith(".running_mean") for name in weights_of(whole.folder)) == (model == "resnet")
    for name, value in weights_of(whole.folder).items():
        np.testing.assert_array_equal(weights_of(killed.folder)[name], value)


def test_sigterm_writes_a_checkpoint_and_ends_with_143(jobs: Jobs) -> None:
    with worker(jobs, "torch", {"log_every_steps": 1}, overrides={"epochs": 10_000}) as process:
        event = next(event for event in events_of(process) if isinstance(event, Step) and event.step >= 3)
        process.terminate()
        code, rest, err = finish(process)
    assert code == 143, err
    failed = rest[-1]
    assert isinstance(failed, Failed) and failed.state == "cancelled"
    assert rest[-2].kind == "checkpoint"
    folder = next((jobs.root / "jobs" / event.job_id).glob("attempt-1"))
    assert read_state(folder).state == "cancelled"
    assert list((folder / "checkpoints").glob("step-*"))


def test_the_worker_dies_with_its_parent(jobs: Jobs, tmp_path: Path) -> None:
    request = WorkerRequest(request=jobs.request(overrides={"epochs": 100_000}), settings=jobs.settings())
    (tmp_path / "request.json").write_text(request.to_json())
    parent = textwrap.dedent("""
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-m", "noa_training.worker", sys.argv[1]], stdout=subprocess.PIPE)
        print(child.pid, flush=True)
        while b'"step"' not in child.stdout.readline():
            pass
        print("training", flush=True)
        sys.stdin.read()
    """)
    command = [sys.executable, "-c", parent, str(tmp_path / "request.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        assert process.stdout.readline() == "training\n"
        process.kill()
        process.wait(10)
        _, alive = psutil.wait_procs([child], timeout=10)
        assert not alive
    folder = next((jobs.root / "jobs").glob("tiny-torch-*/attempt-1"))
    assert read_state(folder).state == "interrupted"


def test_only_events_are_on_standard_output_and_the_thread_limit_is_set(jobs: Jobs) -> None:
    recipe = jobs.root / "recipe.py"
    probe = (
        'import os\nprint("hello", os.environ["OMP_NUM_THREADS"], os.environ["XLA_FLAGS"])\nos.write(1, b"raw\\n")\n'
    )
    recipe.write_text(probe + recipe.read_text())
    with worker(jobs, "torch", {}) as process:
        code, events, err = finish(process)
    assert code == 0
    assert isinstance(events[-1], Finished)
    assert "hello 1 --xla_cpu_multi_thread_eigen=false" in err and "raw" in err


LEFTOVERS = """
def left(rows=200):
    import subprocess, threading, time
    threading.Thread(target=lambda: time.sleep(100_000), name="sleeper").start()
    subprocess.Popen(["sleep", "60.125"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return data(rows)


tiny = replace(tiny, data=left)
"""


def test_what_a_recipe_leaves_running_is_named_and_ends_no_later_than_the_job(jobs: Jobs) -> None:
    recipe = jobs.root / "recipe.py"
    recipe.write_text("from dataclasses import replace\n" + recipe.read_text() + LEFTOVERS)
    with worker(jobs, "torch", {}) as process:
        code, events, err = finish(process)
    assert code == 0, err
    finished, warned = events[-2:]
    assert isinstance(finished, Finished) and load_result(Path(finished.folder)).steps > 0
    assert isinstance(warned, Warned) and warned.job_id == finished.job_id
    assert "thread `sleeper`" in warned.message and "sleep 60.125" in warned.message
    psutil.Process(int(warned.message.partition("process ")[2].partition(" ")[0])).kill()  # a job's warden does that


def test_a_refused_recipe_is_one_failed_event_and_one_line(jobs: Jobs) -> None:
    with worker(jobs, "torch", {}, overrides={"epoch": 3}) as process:
        code, events, err = finish(process)
    assert code == 1
    assert [type(event) for event in events] == [Failed]
    assert isinstance(events[0], Failed) and events[0].error["error"] == "RecipeError"
    assert err.strip().splitlines()[-1].startswith("RecipeError: `epoch` is nothing")


@pytest.mark.parametrize("content", [None, "", "{}", '{"request": {}, "settings": {}}', "[1]"])
def test_an_unreadable_request_ends_with_2(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "request.json"
    if content is not None:
        path.write_text(content)
    command = [sys.executable, "-m", "noa_training.worker", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 2
    assert done.stdout == "" and "not readable" in done.stderr
    assert "Traceback" not in done.stderr
