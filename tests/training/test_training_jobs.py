"""`run_job` in this process, on both backends."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from noa.digests import sha256_file
from noa.errors import ConflictError, IntegrityError, NoaError, NotFoundError, RecipeError, StorageError, TrainingError
from noa.formats import Runnable
from noa_conversion import JaxModel, TorchModel, load_format
from noa_conversion.formats.jax_format import flat_params
from noa_training import (
    EarlyStopped,
    Epoch,
    Failed,
    Finished,
    JobCancelledError,
    JobRequest,
    Resumed,
    Started,
    Step,
    TrainedJob,
    Warned,
    WorkerRequest,
    evaluate,
    load_dataset,
    load_result,
    load_trained,
    parse_event,
    read_state,
    recipe_of,
)
from noa_training.job_folder import JobLock

if TYPE_CHECKING:
    from tests.training.conftest import Jobs

BACKENDS = ["torch", "jax"]


def weights_of(job: TrainedJob) -> dict[str, np.ndarray]:
    return load_file(job.folder / "model" / "weights.safetensors")


def outputs_of(model: TorchModel | JaxModel, array: np.ndarray) -> np.ndarray:
    if isinstance(model, JaxModel):
        return np.asarray(model.apply(model.params, array))
    import torch

    with torch.inference_mode():
        return np.asarray(model.module(torch.from_numpy(array)).numpy())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_job_leaves_a_model_that_can_be_rebuilt_loaded_and_evaluated(jobs: Jobs, backend: str) -> None:
    job = jobs.run(backend)
    recipe = recipe_of(job.request)
    dataset = load_dataset(recipe, root=jobs.root)
    live = load_trained(job)
    if isinstance(live, JaxModel):
        names = list(flat_params(live.params))
        assert names == sorted(names), "an order of its own in each process would give other bytes of the same weights"
    runnable: Runnable = load_format(backend, job.native_folder, threads=1)
    assert live.signature == runnable.signature
    assert live.signature.outputs[0].describe() == "float32(batch, 3)"
    assert (live.signature.inputs[0].name, live.signature.outputs[0].name) == ("image", "logits")
    native = runnable.run(dict(dataset.test.inputs))["logits"]
    np.testing.assert_allclose(outputs_of(live, dataset.test.inputs["image"]), native, rtol=1e-5, atol=1e-6)
    assert evaluate(recipe, runnable, dataset.test)["accuracy"] > 0.6  # a guess has 0.33
    best = evaluate(recipe, runnable, dataset.validation)
    assert best == pytest.approx(job.metrics, rel=1e-5), "the best epoch's weights are the model"
    assert load_result(job.folder) == job == TrainedJob.from_json(job.to_json())
    assert job.dataset_digest == dataset.digest
    assert read_state(job.folder).state == "finished"
    assert not (job.folder / "checkpoints").exists()


@pytest.mark.parametrize("backend", BACKENDS)
def test_events_tell_the_story_in_order_and_are_on_disk(jobs: Jobs, backend: str) -> None:
    job = jobs.run(backend, settings={"log_every_steps": 2})
    kinds = jobs.kinds()
    assert kinds[0] == "started" and kinds[-1] == "finished"
    started: Started = jobs.of(Started)[0]
    assert (started.total_steps, started.rows, started.attempt) == (24, 200, 1)
    steps: list[Step] = jobs.of(Step)
    assert [event.step for event in steps] == list(range(2, 25, 2))
    assert steps[0].loss > steps[-1].loss
    assert steps[-1].eta_s == 0 and steps[-1].samples_per_s > 0
    epochs: list[Epoch] = jobs.of(Epoch)
    assert [event.epoch for event in epochs] == [1, 2, 3, 4]
    assert set(epochs[0].metrics) == {"loss", "accuracy", "f1"}
    best = [event for event in epochs if event.is_best][-1]
    assert best.metrics == job.metrics
    lines = (job.folder / "events.jsonl").read_text().splitlines()
    assert [parse_event(line) for line in lines] == jobs.events


@pytest.mark.parametrize("backend", BACKENDS)
def test_stopped_anywhere_and_continued_ends_bit_identical(jobs: Jobs, backend: str) -> None:
    whole = weights_of(jobs.run(backend, seed=11))
    jobs.root.joinpath("jobs").rename(jobs.root / "first")
    counts = (3, 9)
    for count in counts:
        with pytest.raises(JobCancelledError):
            jobs.run(backend, seed=11, should_stop=jobs.stop_after(count))
        state = read_state(Path(jobs.of(Started)[-1].folder))
        assert state.state == "cancelled"
    job = jobs.run(backend, seed=11)
    resumed_at = [event.step for event in jobs.of(Resumed)]
    assert resumed_at == sorted(resumed_at) and len(resumed_at) == len(counts)
    assert job.resumed_from_step == resumed_at[-1] > 0
    assert job.attempt == 1
    for name, value in weights_of(job).items():
        np.testing.assert_array_equal(value, whole[name])


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(jobs: Jobs) -> None:
    whole = weights_of(jobs.run())
    jobs.root.joinpath("jobs").rename(jobs.root / "first")
    with pytest.raises(JobCancelledError):
        jobs.run(should_stop=jobs.stop_after(15), settings={"checkpoint_every_s": 0})
    checkpoints = Path(jobs.of(Started)[-1].folder) / "checkpoints"
    newest = max(checkpoints.glob("step-*"))
    victim = newest / "data" / "state.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1])
    job = jobs.run()
    warned: list[Warned] = jobs.of(Warned)
    assert [event.subject for event in warned] == [newest.name]
    assert "state.safetensors" in warned[0].message
    assert job.resumed_from_step is not None and f"step-{job.resumed_from_step:08d}" < newest.name
    for name, value in weights_of(job).items():
        np.testing.assert_array_equal(value, whole[name])


def test_a_finished_job_is_started_anew_with_the_next_attempt(jobs: Jobs) -> None:
    first, second = jobs.run(), jobs.run()
    assert (first.attempt, second.attempt) == (1, 2)
    assert first.job_id == second.job_id and first.folder != second.folder
    for name, value in weights_of(first).items():
        np.testing.assert_array_equal(value, weights_of(second)[name])


def test_changed_arguments_are_another_job(jobs: Jobs) -> None:
    plain = jobs.run()
    changed = [jobs.run(seed=9), jobs.run(overrides={"data.rows": "100"}), jobs.run(name="other")]
    assert len({job.job_id for job in (plain, *changed)}) == 4
    assert changed[1].steps == 12 and changed[1].dataset_digest != plain.dataset_digest
    assert changed[2].name == "other"
    assert changed[0].params["seed"] == 9


def test_other_data_is_not_continued(jobs: Jobs) -> None:
    recipe = jobs.root / "recipe.py"
    recipe.write_text(
        recipe.read_text()
        .replace("def data(rows=200", "import shift\n\ndef data(rows=200")
        .replace("(7)", "(shift.SEED)")
    )
    (jobs.root / "shift.py").write_text("SEED = 7\n")
    with pytest.raises(JobCancelledError):
        jobs.run(should_stop=jobs.stop_after(8))
    import shift  # type: ignore[import-not-found]

    shift.SEED = 8
    job = jobs.run()
    assert job.resumed_from_step is None
    assert "belongs to other data" in jobs.of(Warned)[0].message


def test_two_at_once_the_second_is_refused(jobs: Jobs) -> None:
    job = jobs.run()
    with JobLock(job.folder.parent), pytest.raises(ConflictError, match=f"process {os.getpid()}"):
        jobs.run()
    assert jobs.of(Failed) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loss_that_is_not_finite_names_its_step_and_spoils_no_checkpoint(jobs: Jobs, backend: str) -> None:
    overrides = {"optimizer.learning_rate": 1e30, "gradient_clip": 1e30, "schedule.warmup_steps": 0}
    with pytest.raises(TrainingError, match=r"not finite (at|after) step \d+") as caught:
        jobs.run(backend, overrides=overrides, settings={"log_every_steps": 100})
    assert 1 < caught.value.facts["step"] <= 6  # type: ignore[operator]
    failed: Failed = jobs.of(Failed)[0]
    assert failed.state == "failed" and failed.error["error"] == "TrainingError"
    folder = Path(jobs.of(Started)[0].folder)
    assert read_state(folder).state == "failed"
    assert not list(folder.glob("checkpoints/step-*"))


@pytest.mark.parametrize(
    ("body", "line", "message"),
    [
        ("    raise ValueError('no table')", 19, "`data` failed: ValueError: no table"),
        ("    return np.load('gone.npy')", 19, "FileNotFoundError"),
        ("    return 3", None, "returned no dataset"),
    ],
)
def test_an_error_in_data_is_reported_with_its_line(jobs: Jobs, body: str, line: int | None, message: str) -> None:
    recipe = jobs.root / "recipe.py"
    text = recipe.read_text().replace("    random = np.random.default_rng(7)\n", body + "\n")
    recipe.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        jobs.run()
    expected = next(i for i, row in enumerate(text.splitlines(), 1) if row == body) if line else None
    assert caught.value.where is not None and caught.value.where.startswith(f"{recipe}:")
    assert expected is None or caught.value.where == f"{recipe}:{expected}"
    assert jobs.of(Failed)[0].state == "failed"


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_in_the_users_model_is_reported_with_its_line(jobs: Jobs, backend: str) -> None:
    recipe = jobs.root / "recipe.py"
    factories = (
        "\n\ndef broken(shape):\n    return {}['torch']\n\n"
        "from noa_training import Factories\nfrom dataclasses import replace\n"
        "broken_recipe = replace(tiny, model=Factories(torch=broken, jax=broken))\n"
    )
    recipe.write_text(recipe.read_text() + factories)
    with pytest.raises(TrainingError, match="KeyError") as caught:
        jobs.run(backend, recipe="recipe.py:broken_recipe")
    assert caught.value.where is not None and caught.value.where.startswith(f"{recipe}:")


BOTH_FACTORIES = """
def torch_factory(shape):
    from torch import nn
    return nn.Sequential(nn.Flatten(), nn.Linear(36, shape.outputs + 2))


def jax_factory(shape):
    import numpy as np
    init = lambda seed: {"w": np.zeros((36, shape.outputs + 2), np.float32)}
    return init, lambda params, x: x.reshape(x.shape[0], -1) @ params["w"]


tiny = replace(tiny, model=Factories(torch=torch_factory, jax=jax_factory))
"""


def change_recipe(jobs: Jobs, addition: str) -> Path:
    recipe = jobs.root / "recipe.py"
    head = "from dataclasses import replace\nfrom noa_training import Factories\n"
    recipe.write_text(head + recipe.read_text() + addition)
    return recipe


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_factory_with_another_number_of_outputs_is_refused_by_name(jobs: Jobs, backend: str) -> None:
    change_recipe(jobs, BOTH_FACTORIES)
    with pytest.raises(RecipeError, match=rf"`{backend}_factory` gives another number.*\(batch, 3\).*\(batch, 5\)"):
        jobs.run(backend)
    assert jobs.kinds() == ["failed"], "before any training"


def test_classes_that_no_training_row_shows_are_named(jobs: Jobs) -> None:
    change_recipe(
        jobs,
        "def fourth(rows=200):\n    full = data(rows)\n    full.test.targets[:2] = [3, 5]\n    return full\n"
        "tiny = replace(tiny, data=fourth)\n",
    )
    jobs.run()
    warned = jobs.of(Warned)[0]
    assert (warned.subject, warned.message.partition(":")[0]) == (
        "data().test",
        "2 classes (3, 5) occur here and in no training row",
    )


def test_files_that_change_while_the_job_runs_are_named(jobs: Jobs) -> None:
    settings = jobs.root / "noa.toml"
    settings.write_text("# as it was\n")
    recipe = change_recipe(
        jobs,
        "def meddling(rows=200):\n    from pathlib import Path\n    here = Path(__file__)\n"
        "    here.write_text(here.read_text() + '# more\\n')\n    here.with_name('noa.toml').unlink()\n"
        "    return data(rows)\ntiny = replace(tiny, data=meddling)\n",
    )
    as_it_was = sha256_file(recipe)
    job = jobs.run()
    assert job.provenance["recipe_digest"] == as_it_was != sha256_file(recipe)
    said = {event.subject: event.message for event in jobs.of(Warned)}
    assert "has changed since the job began" in said["recipe.py"] and "is gone since" in said["noa.toml"]
    jobs.events.clear()
    change_recipe(jobs, "tiny = replace(tiny, data=data)\n")
    jobs.run()
    assert not jobs.of(Warned)


def test_an_endless_message_of_a_recipe_is_cut_and_kept_whole_on_disk(jobs: Jobs) -> None:
    change_recipe(
        jobs,
        "def loud(rows=200):\n    raise ValueError('first ' + 'x' * 5_000_000 + ' last')\n"
        "tiny = replace(tiny, data=loud)\n",
    )
    with pytest.raises(RecipeError) as caught:
        jobs.run()
    text = str(caught.value)
    assert len(text) < 4000 and "ValueError: first xxx" in text and "xxx last" in text
    assert "of 5000023 characters left out" in text
    traceback = next((jobs.root / "jobs").glob("tiny-*/attempt-1/traceback.txt"))
    assert str(traceback) in text and traceback.stat().st_size > 5_000_000
    assert (traceback.parent / "events.jsonl").stat().st_size < 20_000


def test_data_that_forks_goes_on_in_one_process(jobs: Jobs) -> None:
    change_recipe(
        jobs,
        "def forking(rows=200):\n    import os, warnings\n    warnings.simplefilter('ignore')\n    os.fork()\n"
        "    return data(rows)\ntiny = replace(tiny, data=forking)\n",
    )
    program = """
import sys
from pathlib import Path
from noa.settings import TrainingSettings
from noa_training import JobRequest, run_job

root = Path(sys.argv[1])
request = JobRequest(recipe="recipe.py", root=root, backend="torch", threads=1)
run_job(request, TrainingSettings(jobs_dir=root / "jobs"), registry=None, on_event=lambda event: print(event.kind))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(jobs.root)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.split().count("started") == 1 and done.stdout.split().count("finished") == 1


def test_early_stopping_ends_the_job_and_keeps_the_best_epoch(jobs: Jobs) -> None:
    recipe = jobs.root / "recipe.py"
    text = recipe.read_text().replace("epochs=4,", "epochs=50,\n    early_stopping=EarlyStopping(patience=3),")
    recipe.write_text(text.replace("learning_rate=5e-3", "learning_rate=3e-2"))
    job = jobs.run()
    stopped: EarlyStopped = jobs.of(EarlyStopped)[0]
    epochs: list[Epoch] = jobs.of(Epoch)
    assert stopped.epoch == len(epochs) == stopped.best_epoch + 3 < 50
    losses = [event.metrics["loss"] for event in epochs]
    assert job.metrics["loss"] == min(losses) == losses[stopped.best_epoch - 1]


def test_a_full_disk_fails_truthfully_and_the_job_continues_later(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = weights_of(jobs.run())
    jobs.root.joinpath("jobs").rename(jobs.root / "first")
    real, calls = os.fsync, 0

    def full_after_some(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 60:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_after_some)
        with pytest.raises(StorageError, match="no space left"):
            jobs.run(settings={"checkpoint_every_s": 0})
    assert jobs.of(Failed)[-1].error["error"] == "StorageError"
    job = jobs.run()
    assert job.resumed_from_step is not None and job.resumed_from_step > 0
    for name, value in weights_of(job).items():
        np.testing.assert_array_equal(value, whole[name])


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"backend": "tensorflow"}, NotFoundError, "no backend `tensorflow`"),
        ({"recipe": "recipe.py:huge"}, NotFoundError, "no recipe `huge`"),
        ({"overrides": {"epoch": 1}}, RecipeError, "Did you mean `epochs`"),
        ({"seed": -1}, RecipeError, "`seed`"),
        ({"name": "a/b"}, RecipeError, "`name`"),
    ],
)
def test_a_wrong_request_is_refused_before_any_work(
    jobs: Jobs, changes: dict[str, Any], kind: type[NoaError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        jobs.run(**changes)
    assert not (jobs.root / "jobs").exists() and jobs.events == []


def test_weights_of_another_model_are_refused(jobs: Jobs) -> None:
    job = jobs.run()
    recipe = jobs.root / "recipe.py"
    recipe.write_text(recipe.read_text().replace("hidden=16", "hidden=8"))
    with pytest.raises(IntegrityError, match=r"weight `hidden\.weight` does not belong"):
        load_trained(job)
    (job.folder / "model" / "weights.safetensors").unlink()
    with pytest.raises(NotFoundError, match="weights are gone"):
        load_trained(job)


def test_requests_cross_a_process_border_unchanged(jobs: Jobs) -> None:
    request = jobs.request(overrides={"epochs": 3}, seed=4)
    assert JobRequest.from_json(request.to_json()) == request
    worker = WorkerRequest(request=request, settings=jobs.settings(), parent_pid=5)
    assert WorkerRequest.from_json(worker.to_json()) == worker


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"recipe": 1, "colour": 2}', '{"request": {}, "settings": {}}'])
def test_malformed_requests_are_refused(text: str) -> None:
    from noa.errors import InvalidInputError

    for kind in (JobRequest, WorkerRequest, TrainedJob):
        with pytest.raises(InvalidInputError):
            kind.from_json(text)


def test_a_job_whose_event_log_cannot_be_written_still_trains(jobs: Jobs) -> None:
    first = jobs.run()
    (first.folder.parent / "attempt-2" / "events.jsonl").mkdir(parents=True)
    second = jobs.run()
    assert second.attempt == 2
    assert [event.subject for event in jobs.of(Warned)] == ["events.jsonl"]
    assert len(jobs.of(Finished)) == 2


def test_git_commit_is_recorded(jobs: Jobs) -> None:
    import subprocess

    run = ["git", "-C", str(jobs.root), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "recipe.py"], ["commit", "-qm", "first"]):
        subprocess.run([*run, *arguments], check=True, timeout=30)
    head = subprocess.run([*run, "rev-parse", "HEAD"], check=True, timeout=30, capture_output=True, text=True)
    assert jobs.run().git_commit == head.stdout.strip()
    assert json.loads(jobs.run(overrides={"epochs": 1}).to_json())["git_commit"] == head.stdout.strip()
    assert replace(jobs.run(seed=8), seconds=0).git_commit is not None
