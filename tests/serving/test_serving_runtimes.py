"""Runtimes behind endpoints: torch, JAX and ONNX in one process, their threads, compiled graphs, and accelerators."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import psutil
import pytest
from serving_kit import Project, affine_model, make_project

from noa.errors import InvalidInputError
from noa.formats import RuntimeAdapter, RuntimeOptions, find_adapter
from noa.settings import ConversionSettings, EndpointSettings, ServingSettings
from noa.signatures import Signature, TensorSpec
from noa_conversion import JaxModel, TorchModel, convert, measure_equivalence, save_native
from noa_conversion.latency import measure_performance
from noa_registry import VersionDraft
from noa_serving import Client, start_server
from noa_serving._application import compute_threads
from noa_serving._format_choice import choose_format
from noa_serving._runtimes import Runtimes
from samples import mostly

FEATURES = 4
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", FEATURES)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", FEATURES)),),
)
X = np.arange(3 * FEATURES, dtype=np.float32).reshape(3, FEATURES)
EXAMPLE = {"x": X}


def scale_model(scale: float) -> TorchModel:
    """`y = scale * x`, as a module of PyTorch."""
    import torch

    class Scale(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(scale))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    return TorchModel(module=Scale(), signature=SIGNATURE)


def save_torch(folder: Path, scale: float) -> None:
    """`y = scale * x`, in the format `torch`."""
    save_native(scale_model(scale), folder)


def save_onnx_of_torch(folder: Path, scale: float) -> None:
    """The same as `save_torch`, converted to `onnx`."""
    convert(scale_model(scale), folder, settings=ConversionSettings())


def save_jax(folder: Path, scale: float) -> None:
    """`y = scale * x`, in the format `jax`."""

    def apply(params: Mapping[str, Any], x: Any) -> Any:
        return x * params["scale"]

    save_native(JaxModel(apply=apply, params={"scale": np.float32(scale)}, signature=SIGNATURE), folder)


def register(project: Project, name: str, native: str, folder: Path) -> None:
    draft = VersionDraft(
        name=name,
        formats={native: folder},
        native=native,
        input_example=EXAMPLE,
        dataset_digest="sha256:" + "d" * 64,
    )
    with project.registry() as registry:
        registry.register(draft, actor="tests")


@pytest.mark.torch
@pytest.mark.jax
@pytest.mark.bentoml
@pytest.mark.parametrize("workers", mostly("conformance", [1, 2], sample=[2]))
def test_models_and_versions_of_three_runtimes_share_a_process_and_its_threads(
    tmp_path: Path, empty_state: Path, workers: int
) -> None:
    project = make_project(tmp_path, empty_state, workers=workers, threads=2 // workers)
    project.publish("plain", affine_model(5.0, features=FEATURES))
    for number, scale in enumerate((2.0, 3.0)):
        save_torch(tmp_path / "torch" / str(number), scale)
        register(project, "scaled", "torch", tmp_path / "torch" / str(number))
    save_jax(tmp_path / "jax", 4.0)
    register(project, "compiled", "jax", tmp_path / "jax")
    rules = {
        "old": EndpointSettings(model="scaled/1", format="torch"),
        "new": EndpointSettings(model="scaled/2", format="auto"),
        "xla": EndpointSettings(model="compiled/1", format="jax"),
        "plain": EndpointSettings(model="plain/1"),
    }
    threads = 2 // workers
    with start_server(project.settings, endpoints=rules, log_file=tmp_path / "server.log") as process:
        address = process.wait_ready(240)
        with Client(address.url, timeout_s=60) as client:
            for name, scale in (("old", 2.0), ("new", 3.0), ("xla", 4.0), ("plain", 5.0)):
                for rows in (1, 3):
                    found = client.predict(name, {"x": X[:rows]}).outputs["y"]
                    np.testing.assert_allclose(found, X[:rows] * scale)
            status = client.status()["endpoints"]
        shown: dict[str, str] = {name: status[name]["runtime"] for name in rules}
        assert shown["old"] == f"PyTorch on cpu, threads: {threads}"
        assert shown["new"] == shown["old"]
        assert shown["xla"] == "XLA on cpu"
        assert shown["plain"] == f"onnxruntime CPUExecutionProvider, threads: {threads}"
        pools = [xla_threads(one) for one in psutil.Process(process.pid).children()]
        assert [count for count in pools if count] == [threads] * workers


def xla_threads(process: psutil.Process) -> int:
    """How many threads XLA computes with in a process."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/comm")
    return sum(one.read_text().startswith("tf_XLAEigen") for one in tasks)


@pytest.mark.torch
def test_the_faster_of_two_really_proven_formats_is_chosen_by_evidence_and_by_measuring(project: Project) -> None:
    root = Path(project.settings.root)
    save_torch(root / "torch", 2.0)
    save_onnx_of_torch(root / "onnx", 2.0)
    folders = {"torch": root / "torch", "onnx": root / "onnx"}
    proof = measure_equivalence(
        source="torch",
        source_folder=folders["torch"],
        target="onnx",
        target_folder=folders["onnx"],
        samples=EXAMPLE,
        settings=project.settings.conversion,
    )
    assert proof.passed
    times = [
        measure_performance(name, folder, EXAMPLE, threads=1, batches=(1,), seconds_per_batch=0.2)[0]
        for name, folder in folders.items()
    ]
    runtimes = Runtimes(threads=1)
    with project.registry() as registry:
        for number, evidence in enumerate(([proof], [proof, *times]), start=1):
            draft = VersionDraft(
                name="scaled",
                formats=folders,
                native="torch",
                input_example=EXAMPLE,
                dataset_digest="sha256:" + "d" * 64,
                evidence=tuple(evidence),
            )
            registry.register(draft, actor="tests")
            found = choose_format(registry, registry.resolve(f"scaled/{number}"), runtimes)
            # PyTorch takes several times as long for so small a model, on any machine.
            assert found.format == "onnx"
            assert ("measured here" in found.reason) == (number == 1)


@pytest.mark.parametrize(("workers", "threads"), [(1, 0), (2, 0), (64, 0), (2, 3)])
def test_the_threads_of_a_worker_are_the_cores_divided_by_the_workers_or_as_set(workers: int, threads: int) -> None:
    settings = ServingSettings(workers=workers, threads=threads)
    cores = len(os.sched_getaffinity(0))
    assert compute_threads(settings) == (threads or max(1, cores // workers))


@pytest.mark.torch
def test_the_threads_of_torch_are_those_of_the_pool_that_computes(tmp_path: Path) -> None:
    import torch

    save_torch(tmp_path / "model", 2.0)
    before = torch.get_num_threads()
    seen: list[int] = []
    try:
        find_adapter("torch").load(tmp_path / "model", threads=1)
        for _ in range(2):
            thread = Thread(target=lambda: seen.append(torch.get_num_threads()))
            thread.start()
            thread.join()
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1]


@pytest.mark.torch
@pytest.mark.slow
def test_a_compiled_model_answers_as_before_at_any_batch(tmp_path: Path) -> None:
    save_torch(tmp_path / "model", 2.0)
    runtimes = Runtimes(threads=1, is_compiled=True)
    found: Any = runtimes.load(tmp_path / "model", model="scaled", format="torch", example=EXAMPLE)
    assert found.runtime == "PyTorch on cpu, threads: 1; compiled"
    for rows in (1, 2, 3, 7):
        x = np.ones((rows, FEATURES), np.float32) * rows
        np.testing.assert_allclose(found.run({"x": x})["y"], x * 2.0)


@pytest.mark.torch
def test_a_model_that_cannot_be_compiled_runs_as_it_is_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no C++ compiler\nand more of it")

    save_torch(tmp_path / "model", 2.0)
    monkeypatch.setattr(torch, "compile", refuse)
    adapter = find_adapter("torch")
    assert isinstance(adapter, RuntimeAdapter)
    found = adapter.load_with(tmp_path / "model", RuntimeOptions(threads=1, is_compiled=True))
    assert found.runtime == "PyTorch on cpu, threads: 1; not compiled: no C++ compiler"
    np.testing.assert_allclose(found.run(EXAMPLE)["y"], X * 2.0)


@pytest.mark.torch
def test_a_compiled_model_that_differs_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    save_torch(tmp_path / "model", 2.0)
    monkeypatch.setattr(torch, "compile", lambda module: lambda *inputs: tuple(one * 7 for one in inputs))
    adapter = find_adapter("torch")
    assert isinstance(adapter, RuntimeAdapter)
    found = adapter.load_with(tmp_path / "model", RuntimeOptions(threads=1, is_compiled=True))
    assert found.runtime.endswith("; not compiled: output `y` differs")
    np.testing.assert_allclose(found.run(EXAMPLE)["y"], X * 2.0)


def test_a_gpu_that_does_not_start_leaves_onnx_on_the_cpu_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    affine_model(2.0, features=FEATURES)(tmp_path)
    adapter = find_adapter("onnx")
    assert isinstance(adapter, RuntimeAdapter)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    )
    assert adapter.accelerator() == "CUDAExecutionProvider"
    found: Any = Runtimes(threads=1, device="auto").load(tmp_path, model="m", format="onnx", example=EXAMPLE)
    assert found.device == "cpu"
    assert found.runtime.endswith("; CUDAExecutionProvider is there and does not start")
    np.testing.assert_allclose(found.run(EXAMPLE)["y"], X * 2.0)
    plain: Any = Runtimes(threads=1, device="cpu").load(tmp_path, model="m", format="onnx", example=EXAMPLE)
    assert plain.runtime == "onnxruntime CPUExecutionProvider, threads: 1"


@dataclass
class Scaled:
    """A model on some device, whose answers are `scale * x`."""

    scale: float
    device: str
    signature: Signature = SIGNATURE

    @property
    def runtime(self) -> str:
        return f"a library on {self.device}"

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": inputs["x"] * np.float32(self.scale)}


@dataclass
class OnGpu:
    """An adapter of a library that has a GPU, on which models answer `scale * x` or fail."""

    scale: float | None
    asked: list[str] = field(default_factory=list[str])
    name: str = "fake"

    def load(self, folder: Path, *, threads: int | None = None) -> Scaled:
        return self.load_with(folder, RuntimeOptions(threads=threads))

    def load_with(self, folder: Path, options: RuntimeOptions) -> Scaled:
        self.asked.append(options.device)
        if options.device == "cpu":
            return Scaled(2.0, "cpu")
        if self.scale is None:
            raise InvalidInputError("out of memory on the GPU")
        return Scaled(self.scale, "gpu")

    def accelerator(self) -> str:
        return "gpu"


def load_fake(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, adapter: OnGpu, **options: Any
) -> tuple[Any, dict[str, np.ndarray]]:
    monkeypatch.setattr("noa_serving._runtimes.find_adapter", lambda _: adapter)
    runtimes = Runtimes(threads=1, **options)
    found: Any = runtimes.load(tmp_path, model="m", format="fake", example=EXAMPLE)
    return found, found.run(EXAMPLE)


def test_a_model_computes_on_a_gpu_that_answers_as_the_cpu_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found, _ = load_fake(monkeypatch, tmp_path, OnGpu(2.00001), device="auto")
    assert (found.device, found.runtime) == ("gpu", "a library on gpu")


@pytest.mark.parametrize(
    ("scale", "reason"),
    [(2.5, "not on gpu: output `y` differs there"), (None, "not on gpu: out of memory on the GPU")],
    ids=["differs", "fails"],
)
def test_a_gpu_that_answers_otherwise_or_fails_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scale: float | None, reason: str
) -> None:
    found, outputs = load_fake(monkeypatch, tmp_path, OnGpu(scale), device="auto")
    assert (found.device, found.runtime) == ("cpu", f"a library on cpu; {reason}")
    np.testing.assert_array_equal(outputs["y"], X * 2.0)


def test_a_server_that_is_set_to_the_cpu_asks_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    adapter = OnGpu(2.0)
    found, _ = load_fake(monkeypatch, tmp_path, adapter, device="cpu")
    assert (found.device, adapter.asked) == ("cpu", ["cpu"])


def test_a_program_of_jax_stays_on_the_cpu() -> None:
    adapter = find_adapter("jax")
    assert isinstance(adapter, RuntimeAdapter)
    assert adapter.accelerator() is None
