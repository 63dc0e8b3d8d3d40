"""Conversion: a model imported from ONNX against the same model written by hand, and what the import itself takes.

The hand-written models have the weights that the ONNX file has. Both run in one process of one thread, in bursts that
take turns; medians of the CPU time per call are compared, which others on the machine disturb less than the clock, and
the outputs must agree. The import is of MiniLM's architecture (90 MB) with random weights, in a process that has
imported a small model before, so that loading the framework is not counted: seconds, and the peak of memory
above what the process held before.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.rows import Row

BATCHES = (1, 16)
LIMIT_S, LIMIT_MEMORY = 5.0, 3.0
_SHORTEST_BURST_S = 0.05
_ROUNDS = {True: 3, False: 11}
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


def run(*, quick: bool) -> list[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        _child("export", folder, quick=quick)
        for backend in ("torch", "jax"):
            rows += [Row(**row) for row in _child(f"speed-{backend}", folder, quick=quick)]
            rows += [Row(**row) for row in _child(f"import-{backend}", folder, quick=quick)]
    return rows


def _child(job: str, folder: str, *, quick: bool) -> list[dict[str, Any]]:
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_conversion", job, folder, str(int(quick))],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **_ENVIRONMENT},
    )
    if result.returncode != 0:
        raise RuntimeError(result.stderr[-2000:])
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    job, folder, quick = sys.argv[1], Path(sys.argv[2]), bool(int(sys.argv[3]))
    jobs: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "export": lambda: write_models(folder),
        "speed-torch": lambda: measure_torch(folder, rounds=_ROUNDS[quick]),
        "speed-jax": lambda: measure_jax(folder, rounds=_ROUNDS[quick]),
        "import-torch": lambda: measure_import(folder, "torch"),
        "import-jax": lambda: measure_import(folder, "jax"),
    }
    print(json.dumps(jobs[job]()))


def write_models(folder: Path) -> list[dict[str, Any]]:
    """Write every model as ONNX, and MiniLM's weights and ONNX file."""
    from safetensors.torch import save_model

    from benchmarks.conformance.minilm_torch import MiniLM, export_minilm
    from benchmarks.conversion_models_torch import MODELS, export

    for name in MODELS:
        (folder / name).mkdir()
        export(name, folder / name)
    save_model(MiniLM(), str(folder / "minilm.safetensors"))
    export_minilm(folder / "minilm.safetensors", folder / "minilm")
    return []


def measure_torch(folder: Path, *, rounds: int) -> list[dict[str, Any]]:
    import torch

    from benchmarks.conversion_models_torch import MODELS, build
    from noa_conversion import import_onnx_to_torch

    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name, (_, sample, _) in MODELS.items():
        native, imported = build(name), import_onnx_to_torch(folder / name / "model.onnx").module
        modes: dict[str, Callable[[Any], Any]] = {"eager": lambda module: module, "torch.compile": torch.compile}
        for mode, prepare in modes.items():
            for batch in BATCHES:
                torch._dynamo.reset()
                x = torch.randn(batch, *sample, generator=torch.Generator().manual_seed(1))
                ours, theirs = prepare(imported), prepare(native)
                with torch.no_grad():
                    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-3, atol=1e-4)
                    times = interleave(lambda: ours(x), lambda: theirs(x), rounds=rounds)  # noqa: B023
                rows.append(row(f"imported {name}, batch {batch}, {mode}", *times))
    return rows


def measure_jax(folder: Path, *, rounds: int) -> list[dict[str, Any]]:
    import jax
    import numpy as np

    from benchmarks.conversion_models_jax import MODELS
    from benchmarks.conversion_models_torch import MODELS as SHAPES
    from benchmarks.conversion_models_torch import build
    from noa_conversion import import_onnx_to_jax

    rows: list[dict[str, Any]] = []
    for name, native in MODELS.items():
        weights = {path: jax.numpy.asarray(tensor.numpy()) for path, tensor in build(name).state_dict().items()}
        imported = import_onnx_to_jax(folder / name / "model.onnx")
        ours, theirs = jax.jit(imported.apply), jax.jit(native)
        for batch in BATCHES:
            x = jax.numpy.asarray(np.random.default_rng(1).normal(size=(batch, *SHAPES[name][1])).astype(np.float32))
            np.testing.assert_allclose(ours(imported.params, x), theirs(weights, x), rtol=1e-3, atol=1e-4)
            times = interleave(
                lambda: jax.block_until_ready(ours(imported.params, x)),  # noqa: B023
                lambda: jax.block_until_ready(theirs(weights, x)),  # noqa: B023
                rounds=rounds,
            )
            rows.append(row(f"imported {name}, batch {batch}, jax.jit", *times))
    return rows


def row(what: str, ours: float, theirs: float) -> dict[str, Any]:
    return {"what": what, "figure": ours, "unit": "us of CPU", "peer": "written by hand", "peer_figure": theirs}


def interleave(ours: Callable[[], Any], theirs: Callable[[], Any], *, rounds: int) -> tuple[float, float]:
    """Return the medians over bursts that take turns, microseconds of the process's CPU per call."""
    for _ in range(3):
        ours(), theirs()
    started = time.process_time()
    theirs()
    calls = max(1, round(_SHORTEST_BURST_S / (time.process_time() - started)))
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(2 * rounds):
        which = turn % 2 if turn // 2 % 2 else 1 - turn % 2  # neither is always the first of a pair
        started = time.process_time()
        for _ in range(calls):
            (ours, theirs)[which]()
        times[which].append((time.process_time() - started) / calls * 1e6)
    return statistics.median(times[0]), statistics.median(times[1])


def measure_import(folder: Path, backend: str) -> list[dict[str, Any]]:
    from noa_conversion import import_onnx_to_jax, import_onnx_to_torch

    load: Callable[[Path], Any] = {"torch": import_onnx_to_torch, "jax": import_onnx_to_jax}[backend]
    small, large = folder / "MLP" / "model.onnx", folder / "minilm" / "model.onnx"
    load(small)
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    started = time.perf_counter()
    kept = load(large)
    seconds = time.perf_counter() - started
    peak = _memory("VmHWM")
    del kept
    size = large.stat().st_size
    title = f"import of {size / 1e6:.0f} MB to {backend}"
    return [
        {"what": f"{title}: time", "figure": seconds, "unit": "s", "peer": "limit", "peer_figure": LIMIT_S},
        {
            "what": f"{title}: peak memory",
            "figure": (peak - before) / size,
            "unit": "file sizes",
            "peer": "limit",
            "peer_figure": LIMIT_MEMORY,
        },
    ]


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


if __name__ == "__main__":
    main()
