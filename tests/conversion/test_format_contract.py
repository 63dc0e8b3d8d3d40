"""One contract for every format: what is saved runs, alone, as the live model does."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noa.errors import InvalidInputError, NotFoundError, SignatureError
from noa.formats import FormatAdapter, Runnable, find_adapter
from noa.signatures import Signature
from noa_conversion import load_format

# (backend, model, format) and the file that holds the program
CASES = [
    ("torch", "image", "torch"),
    ("torch", "rows", "torch"),
    ("jax", "image", "jax"),
    ("jax", "rows", "jax"),
    ("torch", "rows", "onnx"),
    ("jax", "rows", "onnx"),
]
WITH_WEIGHTS = [case for case in CASES if case[2] != "onnx"]  # onnx keeps its weights in the program
PROGRAMS = {"torch": "program.pt2", "jax": "program.stablehlo", "onnx": "model.onnx"}


@pytest.fixture(params=CASES, ids=["-".join(case) for case in CASES])
def case(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    return request.param


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_a_stored_model_computes_what_the_live_one_does(case: tuple[str, str, str], batch: int, zoo: Any) -> None:
    backend, name, format_name = case
    model = zoo.live(backend, name)
    runnable = load_format(format_name, zoo.folder(*case))
    inputs = zoo.draw_inputs(model.signature, batch, seed=batch)
    assert runnable.signature == model.signature
    outputs = runnable.run(inputs)
    assert list(outputs) == [spec.name for spec in model.signature.outputs]
    for spec, (output, expected) in zip(
        model.signature.outputs,
        ((outputs[key], value) for key, value in zoo.live_outputs(model, inputs).items()),
        strict=True,
    ):
        assert output.dtype.name == spec.dtype
        assert output.shape == tuple(batch if isinstance(axis, str) else axis for axis in spec.shape)
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


def test_threads_share_one_loaded_model(case: tuple[str, str, str], zoo: Any) -> None:
    runnable = load_format(case[2], zoo.folder(*case), threads=1)
    batches = [zoo.draw_inputs(runnable.signature, 1 + index % 3, seed=index) for index in range(24)]
    alone = [runnable.run(inputs) for inputs in batches]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(runnable.run, batches))
    for one, other in zip(alone, together, strict=True):
        for name, value in one.items():
            np.testing.assert_allclose(other[name], value, rtol=1e-6, atol=1e-6)


def test_inputs_may_be_read_only_unaligned_and_strided(case: tuple[str, str, str], zoo: Any) -> None:
    runnable = load_format(case[2], zoo.folder(*case))
    plain = zoo.draw_inputs(runnable.signature, 4)
    odd: dict[str, np.ndarray] = {}
    for name, array in plain.items():
        shifted = np.frombuffer(b"\0" + array.tobytes(), np.uint8)[1:].view(array.dtype).reshape(array.shape)
        odd[name] = shifted if array.ndim != 2 else np.asfortranarray(array)
    for name, value in runnable.run(odd).items():
        np.testing.assert_allclose(value, runnable.run(plain)[name], rtol=1e-6, atol=1e-6)


def test_the_adapter_is_found_by_name_and_fits_the_interface(case: tuple[str, str, str], zoo: Any) -> None:
    adapter = find_adapter(case[2])
    assert isinstance(adapter, FormatAdapter)
    assert adapter.name == case[2]
    assert isinstance(adapter.load(zoo.folder(*case)), Runnable)


def test_the_signature_refuses_before_the_model_sees_an_input(case: tuple[str, str, str], zoo: Any) -> None:
    runnable = load_format(case[2], zoo.folder(*case))
    inputs = zoo.draw_inputs(runnable.signature, 2)
    name = next(iter(inputs))
    with pytest.raises(SignatureError, match=name):
        runnable.signature.validate({**inputs, name: inputs[name].astype(np.float64)})


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.97])
def test_a_truncated_program_is_refused(case: tuple[str, str, str], keep: float, zoo: Any, tmp_path: Path) -> None:
    folder = zoo.copy(zoo.folder(*case), tmp_path / "copy")
    program = folder / PROGRAMS[case[2]]
    data = program.read_bytes()
    program.write_bytes(data[: int(keep if keep in (0, 1, 100) else len(data) * keep)])
    with pytest.raises(InvalidInputError, match=program.name):
        load_format(case[2], folder)


def test_every_missing_file_is_refused_by_name(case: tuple[str, str, str], zoo: Any, tmp_path: Path) -> None:
    for name in [path.name for path in zoo.folder(*case).iterdir()]:
        folder = zoo.copy(zoo.folder(*case), tmp_path / "copy")
        (folder / name).unlink()
        with pytest.raises(InvalidInputError) as caught:
            load_format(case[2], folder)
        assert name in str(caught.value)


@pytest.mark.parametrize("case", WITH_WEIGHTS, ids=["-".join(case) for case in WITH_WEIGHTS])
def test_truncated_weights_are_refused(case: tuple[str, str, str], zoo: Any, tmp_path: Path) -> None:
    folder = zoo.copy(zoo.folder(*case), tmp_path / "copy")
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(InvalidInputError, match=r"weights\.safetensors"):
        load_format(case[2], folder)


@pytest.mark.parametrize("case", WITH_WEIGHTS, ids=["-".join(case) for case in WITH_WEIGHTS])
def test_weights_that_claim_a_huge_size_are_refused(case: tuple[str, str, str], zoo: Any, tmp_path: Path) -> None:
    folder = zoo.copy(zoo.folder(*case), tmp_path / "copy")
    header = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    (folder / "weights.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InvalidInputError, match=r"weights\.safetensors"):
        load_format(case[2], folder)


def test_a_signature_of_another_model_is_refused(case: tuple[str, str, str], zoo: Any, tmp_path: Path) -> None:
    folder = zoo.copy(zoo.folder(*case), tmp_path / "copy")
    signature = Signature.load(folder)
    (spec, *rest) = signature.outputs
    wrong = type(spec)(name=spec.name, dtype="float64" if case[2] != "jax" else "float16", shape=spec.shape)
    Signature(inputs=signature.inputs, outputs=(wrong, *rest)).save(folder)
    with pytest.raises(InvalidInputError, match=spec.name):
        load_format(case[2], folder)


def test_a_thread_count_below_one_is_refused(case: tuple[str, str, str], zoo: Any) -> None:
    with pytest.raises(InvalidInputError, match="thread"):
        load_format(case[2], zoo.folder(*case), threads=0)


def test_saving_twice_gives_the_same_bytes(case: tuple[str, str, str], zoo: Any, tmp_path: Path) -> None:
    from noa.digests import build_manifest
    from noa_conversion import convert

    model = zoo.live(case[0], case[1])
    convert(model, tmp_path / "again", to=case[2], settings=zoo.settings)
    first, second = (build_manifest(folder) for folder in (zoo.folder(*case), tmp_path / "again"))
    assert first == second


def test_no_file_names_the_machine_that_wrote_it(case: tuple[str, str, str], zoo: Any) -> None:
    for path in zoo.folder(*case).iterdir():
        data = path.read_bytes()
        assert b"conftest.py" not in data
        assert str(Path(__file__).parents[2]).encode() not in data


@pytest.mark.parametrize(
    ("format_name", "foreign"), [("onnx", ("torch", "jax")), ("torch", ("jax",)), ("jax", ("torch",))]
)
def test_running_a_format_imports_no_other_framework(format_name: str, foreign: tuple[str, ...], zoo: Any) -> None:
    folder = zoo.folder("jax" if format_name == "jax" else "torch", "rows", format_name)
    code = (
        "import sys, numpy as np, pathlib\n"
        "from noa_conversion import load_format\n"
        f"model = load_format({format_name!r}, pathlib.Path({str(folder)!r}))\n"
        "model.run({'numbers': np.zeros((2, 6), 'f'), 'kind': np.zeros((2, 2), 'i4')})\n"
        f"found = [name for name in {foreign!r} if name in sys.modules]\n"
        "sys.exit(f'imported {found}' if found else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_room_loads_no_framework_and_no_numpy() -> None:
    frameworks = ("numpy", "torch", "jax", "onnx", "onnxruntime", "sqlalchemy", "mlflow")
    code = f"import sys, noa_conversion; print([name for name in {frameworks!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_format_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="onnx"):
        load_format("tflite", tmp_path)
