"""One real ONNX file through one importer, compared with onnxruntime: the child process of `real_models`.

Reads a request (path, feeds, target, mode) from standard input as JSON and prints what it found as JSON.
"""

from __future__ import annotations

import contextlib
import functools
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from noa.errors import ConversionError
from noa_conversion.child_process import die_with_parent

RELATIVE = 1e-3
SMALLEST = 1e-6  # onnxruntime's own levels of optimisation differ by that where probabilities are close to zero
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(double)": np.float64,
}

Run = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


def main() -> None:
    request = json.load(sys.stdin)
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_DATA, (request["memory_bytes"], request["memory_bytes"]))
    resource.setrlimit(resource.RLIMIT_CPU, (request["cpu_s"], request["cpu_s"] + 5))
    with contextlib.redirect_stdout(sys.stderr):  # frameworks print; our answer is the only line
        try:
            found = measure(request)
        except ConversionError as error:
            found = {"category": "refused", "reason": str(error)}
        except Exception as error:  # noqa: BLE001  # whatever is raised is the answer
            found = {"category": "error", "reason": f"{type(error).__name__}: {error}"[:2000]}
    print(json.dumps(found))


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    path = Path(request["path"])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = [make_inputs(session, feed, request["highest"], seed) for seed, feed in enumerate(request["feeds"])]
    wanted = [session.run(None, feed) for feed in feeds]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    load = {"torch": import_for_torch, "jax": import_for_jax}[request["target"]]
    run, axes = load(path, list(feeds[0].values()), compiled=request["mode"] == "compiled")
    found: dict[str, Any] = {"category": "pass", "reason": "", "import_s": time.perf_counter() - started, "error": 0.0}
    found["axes"] = axes
    found["nodes"] = count_nodes(path)
    for at, (feed, expected) in enumerate(zip(feeds, wanted, strict=True)):
        started = time.perf_counter()
        given = run(list(feed.values()))
        if at == 0:
            found["first_run_s"] = time.perf_counter() - started
        for output, wish, gift in zip(session.get_outputs(), expected, given, strict=True):
            problem, error = compare(wish, gift, of_largest=request["of_largest"])
            found["error"] = max(found["error"], error)
            if problem is not None:
                return {**found, "category": "wrong", "reason": f"output `{output.name}` of feed {at}: {problem}"}
    found["memory_mib"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return found


@functools.cache
def count_nodes(path: Path) -> int:
    from noa_conversion.onnx_graph.reading import read_model

    return sum(len(graph.nodes) for graph in read_model(path).graph.walk())


def make_inputs(session: Any, feed: Mapping[str, Any], highest: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """Fill the shapes: floats as images and audio have them, -1 to 1; the first token of a mask is never masked."""
    random = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for spec in session.get_inputs():
        wanted, dtype = feed.get(spec.name, spec.shape), _TYPES[spec.type]
        if not isinstance(wanted, (list, tuple)):
            arrays[spec.name] = np.asarray(wanted, dtype)
        elif np.issubdtype(dtype, np.integer):
            arrays[spec.name] = random.integers(0, highest[spec.name], wanted).astype(dtype)
            if highest[spec.name] == 2:
                arrays[spec.name][:, 0] = 1
        else:
            arrays[spec.name] = random.uniform(-1, 1, wanted).astype(dtype)
    return arrays


def import_for_torch(path: Path, inputs: Sequence[np.ndarray], *, compiled: bool) -> tuple[Run, str]:
    """Import with free axes; a file whose graph fixes them is imported once for each shape, as a user would do."""
    import torch

    from noa_conversion import import_onnx_to_torch
    from noa_conversion.importers.torch.free_axes import axis_name
    from noa_conversion.onnx_graph.reading import read_model

    torch.set_num_threads(1)
    declared = read_model(path).graph.inputs

    def sizes_of(arrays: Sequence[np.ndarray]) -> dict[str, int]:
        return {
            str(axis_name(axis, at, value.name)): array.shape[at]
            for value, array in zip(declared, arrays, strict=True)
            for at, axis in enumerate(value.shape or ())
            if not isinstance(axis, int)
        }

    modules: dict[tuple[tuple[str, int], ...], Any] = {}

    def module_for(arrays: Sequence[np.ndarray]) -> Any:
        sizes = sizes_of(arrays)
        key = tuple(sizes.items())
        if key not in modules:
            module = import_onnx_to_torch(path, sizes=sizes).module
            modules[key] = torch.compile(module) if compiled else module
        return modules[key]

    axes = "free"
    try:
        whole: Any = import_onnx_to_torch(path).module
        whole = torch.compile(whole) if compiled else whole
    except ConversionError:
        axes, whole = "fixed", None
        module_for(inputs)

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        module = module_for(arrays) if whole is None else whole
        with torch.no_grad():
            outputs = module(*(torch.from_numpy(array.copy()) for array in arrays))
        return [output.numpy() for output in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]

    return run, axes


def import_for_jax(path: Path, inputs: Sequence[np.ndarray], *, compiled: bool) -> tuple[Run, str]:
    """Import once; JAX compiles once per shape. Numbers that choose a branch are bound where both do not fit."""
    import jax

    from noa_conversion import import_onnx_to_jax

    imported = import_onnx_to_jax(path)
    apply = jax.jit(imported.apply) if compiled else imported.apply
    axes = "free"
    try:
        jax.eval_shape(imported.apply, imported.params, *inputs)
    except ConversionError:
        axes, apply = "bound", None

    def bound(arrays: Sequence[np.ndarray]) -> Any:
        """A branch that does not fit the shapes is left out once the number that chooses it is known."""
        bind = {
            value.name: array
            for value, array in zip(imported.inputs, arrays, strict=True)
            if not array.ndim and array.dtype.kind == "i"
        }
        with_numbers = import_onnx_to_jax(path, bind=bind)
        rest = [array for value, array in zip(imported.inputs, arrays, strict=True) if value.name not in bind]
        return jax.jit(with_numbers.apply)(with_numbers.params, *rest)

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        outputs = apply(imported.params, *arrays) if apply is not None else bound(arrays)
        return [np.asarray(output) for output in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]

    return run, axes


def compare(wanted: np.ndarray, given: np.ndarray, *, of_largest: float) -> tuple[str | None, float]:
    """Return how two outputs differ, if they do, and the largest error in shares of the largest element."""
    if wanted.shape != given.shape:
        return f"shape {given.shape}, expected {wanted.shape}", np.inf
    if wanted.dtype.kind != given.dtype.kind:
        return f"dtype {given.dtype}, expected {wanted.dtype}", np.inf
    if not wanted.size:
        return None, 0.0
    largest = max(float(np.abs(wanted).max()), 1e-6)
    difference = np.abs(wanted.astype(np.float64) - given.astype(np.float64))
    allowed = RELATIVE * np.abs(wanted) + max(of_largest * largest, SMALLEST)
    error = float(difference.max()) / largest
    wrong = int((~(difference <= allowed)).sum())
    if wrong:
        return f"{wrong} of {wanted.size} elements differ, by up to {error:.2g} of the largest", error
    return None, error


if __name__ == "__main__":
    main()
