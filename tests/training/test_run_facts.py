"""A run holds what somebody needs who asks later what was trained, on what, where and from which commit."""

from __future__ import annotations

import ctypes
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from noa.digests import digest_json
from noa.errors import RecipeError, TrainingError
from noa.settings import RegistrySettings, Settings
from noa_registry.mlflow_schema import import_mlflow
from noa_registry.runs import RunDetails, open_runs
from noa_registry.runs.files import RunFiles
from noa_training import environment, nvml
from noa_training.nvml import Gpus, find_gpus
from noa_training.system_metrics import SystemSampler

if TYPE_CHECKING:
    from tests.training.conftest import Jobs

# What the driver's library answers for two GPUs, the second of which does not tell its power.
LIBRARY = """
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } utilization_t;
static int places[16];
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle) { *handle = &places[index]; return 0; }
static int text(char *to, unsigned int length, const char *from) {
    unsigned int at = 0; do { if (at == length) return 7; to[at] = from[at]; } while (from[at++]); return 0; }
int nvmlDeviceGetName(void *handle, char *name, unsigned int length) { return text(name, length, "NVIDIA T1"); }
int nvmlSystemGetDriverVersion(char *version, unsigned int length) { return text(version, length, "580.1"); }
int nvmlDeviceGetMemoryInfo(void *handle, memory_t *m) { m->total = 8000000; m->used = 2000000; return 0; }
int nvmlDeviceGetUtilizationRates(void *handle, utilization_t *u) { u->gpu = 40 + ((int *)handle - places); return 0; }
int nvmlDeviceGetPowerUsage(void *handle, unsigned int *power) { *power = 50000; return handle != places ? 3 : 0; }
int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned int *limit) { *limit = 200000; return 0; }
"""

BROKEN = """
def broken(shape):
    raise ValueError("no correct-horse here")


"""


@pytest.fixture
def registry(tmp_path: Path, add_empty_registry: Callable[[Path], None]) -> RegistrySettings:
    add_empty_registry(tmp_path / "tracked")
    return Settings().resolved(tmp_path / "tracked").registry


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def run_of(registry: RegistrySettings, run_id: str) -> tuple[RunDetails, dict[str, bytes]]:
    """Return a run and the content of its files."""
    with open_runs(registry) as book:
        details = book.get(run_id)
    place = Path(details.artifact_uri.removeprefix("file://"))
    files = RunFiles(registry)
    return details, {file.path: (place / file.path).read_bytes() for file in files.list(details.artifact_uri, most=99)}


def test_a_run_holds_commit_difference_environment_data_configuration_and_files(
    jobs: Jobs, registry: RegistrySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_mlflow()
    from mlflow.data.schema import TensorDatasetSchema

    monkeypatch.setenv("MY_PASSWORD", "correct-horse")
    git(jobs.root, "init", "-q", "-b", "main")
    git(jobs.root, "add", "recipe.py")
    git(jobs.root, "commit", "-qm", "first")
    recipe = jobs.root / "recipe.py"
    recipe.write_text(recipe.read_text() + "\n# changed\nPASSWORD = 'correct-horse'\n")
    job = jobs.run(registry=registry, overrides={"epochs": 2}, settings={"log_every_steps": 7})
    assert job.run_id is not None
    run, files = run_of(registry, job.run_id)

    commit = git(jobs.root, "rev-parse", "HEAD")
    assert run.git == {"commit": commit, "branch": "main", "dirty": "true", "diff": job.provenance["git.diff"]}
    assert run.tags["mlflow.source.git.commit"] == commit
    assert run.tags["mlflow.source.name"] == "recipe.py" and run.tags["mlflow.source.type"] == "LOCAL"
    diff = files["git/diff.patch"].decode()
    assert "+# changed" in diff and "correct-horse" not in diff

    config = json.loads(files["config.json"])
    assert run.tags["noa.config_digest"] == digest_json(config)
    assert config["recipe"]["epochs"] == 2 and config["overrides"] == {"epochs": 2}
    assert config["training"]["log_every_steps"] == 7 and config["training"]["threads"] == 1
    assert run.params["training.log_every_steps"] == "7" and run.params["epochs"] == "2"

    machine = json.loads(files["environment.json"])
    assert run.environment["python"] == machine["python"] and run.environment["threads"] == "1"
    assert {"platform", "processor", "cores", "numpy", "torch", "noa"} <= set(run.environment)
    assert run.environment["torch"] == machine["packages"]["torch"]

    assert [one.context for one in run.datasets] == ["testing", "training", "validation"]
    train = run.datasets[1]
    assert train.name == "tiny-train" and train.profile["digest"] == job.provenance["data.train"]
    assert str(train.profile["digest"]).removeprefix("sha256:").startswith(train.digest)
    schema: Any = TensorDatasetSchema.from_dict(dict(train.schema))
    assert (schema.features.input_names(), schema.features.inputs[0].shape) == (["image"], (-1, 1, 6, 6))
    assert schema.targets.inputs[0].type.name == "int64"
    assert run.data["digest"] == job.dataset_digest

    last = {one.key: one.value for one in run.metrics}
    assert {key.removeprefix("best."): value for key, value in last.items() if key.startswith("best.")} == job.metrics
    assert last["system/system_memory_usage_megabytes"] > 0
    assert run.summary.metric is not None
    assert (run.summary.metric.name, run.summary.metric.is_best) == ("loss", True)
    assert (run.summary.model, run.summary.backend, run.summary.recipe) == ("tiny", "torch", "recipe.py")
    assert run.tags["noa.steps_per_epoch"] == "6"
    assert json.loads(files["model/signature.json"])["inputs"][0]["name"] == "image"
    assert b'"kind": "epoch"' in files["events.jsonl"]
    assert "traceback.txt" not in files


def test_a_failed_run_keeps_its_report_and_a_place_without_git_says_nothing_of_it(
    jobs: Jobs, registry: RegistrySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_PASSWORD", "correct-horse")
    recipe = jobs.root / "recipe.py"
    text = recipe.read_text().replace("import SGD,", "import SGD, Factories,")
    text = text.replace("model=cnn(channels=(4, 8), hidden=16, dropout=0.2)", "model=Factories(torch=broken)")
    recipe.write_text(text.replace("tiny = Recipe(", f"{BROKEN}tiny = Recipe("))
    with pytest.raises((RecipeError, TrainingError)):
        jobs.run(registry=registry)
    with open_runs(registry) as book:
        (summary,) = book.page("status:failed").runs
    run, files = run_of(registry, summary.run_id)
    traceback = files["traceback.txt"].decode()
    assert "ValueError: no ******** here" in traceback and "correct-horse" not in traceback
    assert run.git == {} and "git/diff.patch" not in files
    assert b'"kind": "failed"' in files["events.jsonl"] and b"correct-horse" not in files["events.jsonl"]


def test_secrets_in_parameters_are_masked(jobs: Jobs, registry: RegistrySettings) -> None:
    recipe = jobs.root / "recipe.py"
    text = recipe.read_text().replace("def data(rows=200,", "def data(url='', rows=200,")
    recipe.write_text(text.replace('data_params={"rows": 200}', 'data_params={"url": "pg://ada:hunter2@db/x"}'))
    job = jobs.run(registry=registry, overrides={"epochs": 1})
    assert job.run_id is not None
    run, files = run_of(registry, job.run_id)
    assert run.params["data.url"] == "pg://ada:********@db/x"
    assert "hunter2" not in json.dumps(run.to_dict(), default=str)
    assert not [name for name, content in files.items() if b"hunter2" in content]


def test_the_machine_is_sampled_under_the_names_of_mlflow(tmp_path: Path) -> None:
    sampler = SystemSampler(tmp_path)
    first, second = sampler.sample(), sampler.sample()
    sampler.close()
    assert first.keys() == second.keys()
    names = {name.removeprefix("system/") for name in first}
    assert {
        "cpu_utilization_percentage", "system_memory_usage_megabytes", "system_memory_usage_percentage",
        "disk_usage_percentage", "disk_available_megabytes", "process_memory_megabytes", "process_cpu_percentage",
    } <= names  # fmt: skip
    assert 0 <= second["system/cpu_utilization_percentage"] <= 100
    assert 10 < second["system/process_memory_megabytes"] < second["system/system_memory_usage_megabytes"] * 10


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A library that answers as that of NVIDIA's driver does: there is no GPU here."""
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(LIBRARY)
    command = ["cc", "-shared", "-fPIC", "-o", str(folder / "libnvml.so"), str(folder / "nvml.c")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return str(folder / "libnvml.so")


def test_gpus_are_asked_through_the_drivers_library(driver: str) -> None:
    gpus = find_gpus(driver)
    assert isinstance(gpus, Gpus)
    assert gpus.describe() == "2 x NVIDIA T1, driver 580.1"
    values = gpus.sample()
    gpus.close()
    assert values["gpu_0_memory_usage_percentage"] == values["gpu_1_memory_usage_percentage"] == 25.0
    assert (values["gpu_0_utilization_percentage"], values["gpu_1_utilization_percentage"]) == (40.0, 41.0)
    assert (values["gpu_0_power_usage_watts"], values["gpu_0_power_usage_percentage"]) == (50.0, 25.0)
    assert values["gpu_0_memory_usage_megabytes"] == 2.0
    assert not [name for name in values if name.startswith("gpu_1_power")]


def test_the_structures_are_those_of_nvidias_own_binding() -> None:
    pynvml: Any = pytest.importorskip("pynvml")
    for ours, theirs in ((nvml.Memory, pynvml.c_nvmlMemory_t), (nvml.Utilization, pynvml.c_nvmlUtilization_t)):
        assert ctypes.sizeof(ours) == ctypes.sizeof(theirs)
        assert [(name, kind) for name, kind, *_ in ours._fields_] == [(name, kind) for name, kind in theirs._fields_]


def test_where_there_is_no_gpu_or_only_another_library_there_is_none(tmp_path: Path) -> None:
    assert find_gpus(str(tmp_path / "none.so")) is None
    assert find_gpus("libc.so.6") is None


def test_the_environment_names_gpus_and_what_is_loaded(driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "find_gpus", lambda: find_gpus(driver))
    machine = environment.capture_machine(0)
    assert machine["gpus"] == "2 x NVIDIA T1, driver 580.1" and machine["threads"] == "default"
    assert int(machine["cores"]) >= 1 and machine["processor"]
    packages = environment.capture_packages("jax")
    assert {"noa", "numpy", "jax", "jaxlib", "pytest", "psutil"} <= set(packages)
    assert "pyyaml" in environment.capture_packages("torch") or "yaml" not in packages
